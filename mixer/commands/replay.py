"""Makes one update of a run again, slowly, and says where it breaks.

  python -m mixer replay WORKDIR --step=N

Starts from the newest checkpoint before update N, or from the beginning where
there is none, makes the updates in between as the run made them, and looks into
update N: which examples have a loss that is not finite, and which weights,
layers and gradients. Nothing in the workdir changes.

On the hardware, software and number of devices of the run, every bit is as it
was there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from etils import epy

from mixer import flags
from mixer.errors import UserError, printable

with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  import input_pipeline
  from mixer import (
    checkpoints,
    durations,
    initial,
    runtime,
    sharding,
    train_step,
    weights,
  )
  from mixer import config as config_lib
  from mixer import model as model_lib
  from mixer import workdir as workdir_lib


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  parser.add_argument("workdir", metavar="WORKDIR", help="of train.py")
  parser.add_argument(
    "--step", type=int, required=True, metavar="N", help="the update, from 1"
  )
  parser.add_argument("--data_dir", default="", help=flags.DATA_DIR)
  parser.add_argument("--json", action="store_true", help="print all as JSON")
  flags.add_platform(parser)


def replay(workdir: str, step: int, data_dir: str = "") -> dict[str, Any]:
  """Makes the updates up to `step` again and looks into that one; JSON."""
  path = workdir_lib.path(workdir)
  stored = workdir_lib.read_config(path)
  total = stored["resolved"]["total"]
  if not 1 <= step <= total:
    raise UserError(
      f"--step={step}: the run in {path} has the updates 1 to {total}."
    )
  config = config_lib.from_json(stored["config"], stored["resolved"])
  config.data.data_dir = data_dir or config.data.data_dir
  split, _ = input_pipeline.open_splits(config)
  now = {"resolved": {workdir_lib.DATA_SET: split.identity}}
  if changed := workdir_lib.data_set_differences(stored, now):
    raise UserError(
      f"the run in {path} has read another data set:\n  "
      + "\n  ".join(map(printable, changed))
      + "\nName the folder where that one lies with --data_dir=DIR.",
      lines=True,
    )
  plan = durations.plan(config, len(split))
  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
  trainer = train_step.Trainer(config, plan, len(split.class_names), mesh)
  earlier = [s for s in checkpoints.committed(path) if s < step]
  if earlier:
    state = checkpoints.restore_at(path, earlier[-1], trainer.abstract)
  else:
    # As stored, the shape of the model follows the weights already.
    state = trainer.init()
    if config.init_from:
      state = initial.load(config, split.class_names).place(state)
  start = earlier[-1] if earlier else 0
  batches = input_pipeline.train_batches(split, config, start)
  batch = sharding.put_batch(mesh, next(batches))
  for done in range(start, step - 1):
    print(f"\rupdate {done + 1} of {step}", end="", file=sys.stderr)
    state, _ = trainer.train_step(state, batch)
    batch = sharding.put_batch(mesh, next(batches))
  found = _examine(config, trainer, state, batch)
  _, metrics = trainer.train_step(state, batch)
  print("\r\x1b[K" if step - start > 1 else "", end="", file=sys.stderr)
  return {
    "step": step,
    "from_step": start,
    "metrics": {k: v.item() for k, v in jax.device_get(metrics).items()},
    "records": input_pipeline.train_records(split, config, step),
  } | found


def _examine(
  config: config_lib.Config,
  trainer: train_step.Trainer,
  state: train_step.TrainState,
  batch: train_step.Batch,
) -> dict[str, Any]:
  """Looks into the update that comes next.

  Returns the `losses` of its examples, in the batch's order; and by name the
  largest magnitudes in `weights`, `gradients` and what `layers` give out
  without dropout and mixup. NaN where there is one.
  """
  model, parts = trainer.model, config.optimizer.accumulate

  def largest(tree: Any) -> Any:  # NaN goes through `max`.
    return {
      name: jnp.abs(x.astype(jnp.float32)).max()
      for name, x in weights.flatten(tree).items()
    }

  def look(state: train_step.TrainState, batch: train_step.Batch) -> Any:
    losses, whole = train_step.losses_of(
      config, model, trainer.num_classes, state.step, batch
    )
    _, grads = train_step.accumulated(losses, state.params, whole, parts)
    # Example i of B is the one at i // parts of part i % parts.
    each = [
      losses(
        state.params,
        jax.tree.map(lambda x, at=i: x[at::parts], whole),
        jnp.int32(i) if parts > 1 else None,
      )
      for i in range(parts)
    ]
    # The plain model, as what is recomputed can't be captured.
    _, captured = model_lib.plain(model).apply(
      {"params": state.params},
      model_lib.scale(batch["image"], model.dtype),
      capture_intermediates=lambda module, _: len(module.path) == 1,
      mutable=["intermediates"],
    )
    layers: Any = captured["intermediates"]
    outputs = {k: v["__call__"][0] for k, v in layers.items() if k[0] != "_"}
    losses_B = jnp.stack(each, axis=1).reshape(-1)
    return losses_B, *map(largest, (state.params, grads, outputs))

  losses_B, *found = jax.device_get(jax.jit(look)(state, batch))
  found = [{k: v.item() for k, v in part.items()} for part in found]
  blocks = [f"MixerBlock_{i}" for i in range(model.num_blocks)]
  order = ["stem", *blocks, "pre_head_layer_norm", "head"]
  return {
    "losses": losses_B.tolist(),
    "weights": found[0],
    "gradients": found[1],
    "layers": {name: found[2][name] for name in order},
  }


def text(found: Mapping[str, Any], workdir: str) -> str:
  """What was found, for people."""
  start, losses = found["from_step"], np.array(found["losses"])
  origin = f"checkpoint {start}" if start else "the beginning"
  shown = ("loss", "grad_norm", "learning_rate")
  lines = [
    f"update {found['step']} of {workdir}, made again from {origin}",
    ", ".join(f"{name} {found['metrics'][name]:g}" for name in shown),
  ]
  said = f"every one of the {len(losses)} losses is finite; the largest"
  which = np.argsort(-losses)[:3]
  bad = np.flatnonzero(~np.isfinite(losses))
  if len(bad):
    said = f"losses that are not finite: {len(bad)} of {len(losses)}"
    which = bad[:8]
  each = (f"{losses[i]:.4g} (record {found['records'][i]})" for i in which)
  lines.append(f"{said}: {', '.join(each)}{', ...' * (len(bad) > 8)}")
  for kind in ("weights", "layers", "gradients"):
    values = found[kind]
    broken = [name for name, v in values.items() if not math.isfinite(v)]
    name = max(values, key=lambda name: values[name])
    said = f"all finite, the largest {values[name]:.4g} in {name}"
    if broken:
      said = f"{len(broken)} of {len(values)} are not finite, first {broken[0]}"
    lines.append(f"{kind}: {said}")
  return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  flags.checkout("mixer replay")
  runtime.start(args.platform)
  found = replay(args.workdir, args.step, args.data_dir)
  print(json.dumps(found) if args.json else text(found, args.workdir))
