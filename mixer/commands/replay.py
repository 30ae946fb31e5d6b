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
from collections.abc import Mapping
from typing import Any

from etils import epy

from mixer import flags, progress
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
  add = parser.add_argument
  add("workdir", metavar="WORKDIR", help="of train.py")
  add("--step", type=int, required=True, help="the update, from 1")
  add("--data_dir", default="", help=flags.DATA_DIR)
  add("--json", action="store_true", help="print all as JSON")
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
  now = {workdir_lib.DATA_SET: split.identity}
  if lines := workdir_lib.data_set_differences(stored["resolved"], now):
    raise UserError(
      f"the run in {path} has read another data set:\n  "
      + "\n  ".join(map(printable, lines))
      + "\nName the folder of that one with --data_dir=DIR.",
      lines=True,
    )
  plan = durations.plan(config, len(split))
  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
  trainer = train_step.Trainer(config, plan, len(split.class_names), mesh)
  start = max((s for s in checkpoints.committed(path) if s < step), default=0)
  if start:
    where = checkpoints.directory(path) / str(start)
    state = checkpoints.restore(where, trainer.abstract)
  else:
    # As stored, the shape of the model follows the weights already.
    state = trainer.init()
    if config.init_from:
      state = initial.load(config, split.class_names).place(state)
  batches = input_pipeline.train_batches(split, config, start)
  batch = sharding.put_batch(mesh, next(batches))
  for _ in progress.track(range(start + 1, step), "updates"):
    state, _ = trainer.train_step(state, batch)
    batch = sharding.put_batch(mesh, next(batches))
  found = _examine(config, trainer, state, batch)
  _, metrics = trainer.train_step(state, batch)
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
  """Losses of the next update's examples; by name the largest magnitudes."""
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
  bad = np.flatnonzero(~np.isfinite(losses))
  what = f"losses: {len(bad)} of {len(losses)} are not finite; the first"
  if not len(bad):
    what, bad = "losses: all finite; the largest", np.argsort(-losses)[:3]
  each = (f"{losses[i]:.4g} (record {found['records'][i]})" for i in bad[:8])
  lines = [
    f"update {found['step']} of {workdir}, made again from {origin}",
    ", ".join(f"{name} {found['metrics'][name]:g}" for name in shown),
    f"{what} {', '.join(each)}",
  ]
  for kind in ("weights", "layers", "gradients"):
    values = found[kind]
    broken = [name for name, v in values.items() if not math.isfinite(v)]
    name = max(values, key=lambda name: values[name])
    what = f"all finite, the largest {values[name]:.4g} in {name}"
    if broken:
      what = f"{len(broken)} of {len(values)} are not finite, first {broken[0]}"
    lines.append(f"{kind}: {what}")
  return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  flags.checkout("mixer replay")
  runtime.start(args.platform)
  found = replay(args.workdir, args.step, args.data_dir)
  print(json.dumps(found) if args.json else text(found, args.workdir))
