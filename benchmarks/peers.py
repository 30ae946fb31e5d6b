"""Our forward pass and training step beside those of other codebases.

  python -m benchmarks.peers [--models S/32,S/16] [--batch 32] [--rounds 5]
    [--dtype float32] [--optimizer adamw] [--authors DIR]
    [--torch_python PYTHON]

The same weights, batch, loss, optimizer and number of threads, on the same
machine and in the same run, in turn: each contender is a process of its own
that waits, idle, while another is timed. First it is checked that they compute
the same: logits, all gradients, and the losses of three updates. Contenders:
  ours                  what `train.py` jits; its batch is uint8, the others'
                        are float, scaled already
  ours, plain malloc    without runtime.keep_freed_memory (CPUs alone)
  timm                  eager, as PyTorch runs it
  timm compiled         under torch.compile
  authors               the Flax model in a checkout of
                        google-research/vision_transformer, where --authors
                        names one; float32 only
The others take the fastest of their variants (layouts, ways to compile, and
whether malloc keeps freed memory as it does for ours), found on the first
model by --trial seconds each. Where timm isn't installed, name a Python that
has it, or: pip install -e ".[export]".

Prints medians of the rounds as Markdown, and writes
benchmarks/results/peers_cpu.json, or peers_gpu.json.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import common, step
from benchmarks.peer_process import PLAIN, Setting, contenders
from mixer import cli, export_timm, npz, trained, validation, weights
from mixer import model as model_lib
from mixer.errors import UserError

# Relative differences that are rounding alone, by dtype: of logits, and of
# gradients and losses.
_BOUNDS = {"float32": (1e-4, 1e-3), "bfloat16": (3e-2, 2e-1)}
# Of the largest gradient: below it one counts as zero.
_ZERO = 1e-3


def make_work(
  folder: pathlib.Path,
  variant: str,
  batch: int,
  *,
  dtype: str = "float32",
  optimizer: str = "adamw",
  shape: dict[str, int] | None = None,
  image_size: int = 224,
  num_classes: int = step.CLASSES,
) -> dict[str, Any]:
  """Writes what contenders do: work.json, batch.npz, flax.npz, timm.npz.

  Args:
    folder: gets them.
    variant: of the model.
    batch: examples in one.
    dtype: in which the models compute.
    optimizer: "adamw", or "sgd" with momentum.
    shape: of the model, where it isn't the variant's (keys of config.model).
    image_size: pixels, of a side.
    num_classes: K.

  Returns:
    What is in `work.json`.
  """
  shape = shape or {}
  module = model_lib.build(variant, num_classes, **shape)
  like = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
  shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), like)
  rng = np.random.default_rng(0)

  def weight(name: str, x: Any) -> np.ndarray:
    # No zero anywhere, so that each parameter has a gradient and an effect.
    if name.endswith("kernel"):
      scale = np.prod(x.shape[:-1]) ** -0.5
      return rng.normal(0, scale, x.shape).astype(np.float32)
    start = 1.0 if name.endswith("scale") else 0.0
    return rng.normal(start, 0.1, x.shape).astype(np.float32)

  flat = {k: weight(k, v) for k, v in weights.flatten(shapes["params"]).items()}
  params = weights.unflatten(flat)
  model = trained.Trained(
    *(module, params, (image_size, image_size), 256, None, None),
    *("softmax", variant, variant),
  )
  work = {
    **{"variant": variant, "shape": shape, "image_size": image_size},
    **{"num_classes": num_classes, "batch": batch, "dtype": dtype},
    "optimizer": {
      "name": optimizer,
      "learning_rate": 1e-4,
      "weight_decay": 0.1 if optimizer == "adamw" else 0.0,
      "momentum": 0.9,
    },
    "timm": export_timm.arguments(model),
  }
  (folder / "work.json").write_text(json.dumps(work))
  config = step.recipe(variant, batch, dtype)
  config.image_size = image_size
  examples = step.make_batch(config, num_classes)
  np.savez(folder / "batch.npz", allow_pickle=False, **examples)
  npz.write(folder / "flax.npz", flat)
  state = export_timm.state_dict(params)
  np.savez(folder / "timm.npz", allow_pickle=False, **state)
  return work


def differences(
  ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> dict[str, float]:
  """The largest difference of each array over its largest value.

  Some gradients are zero but for rounding (what is added to all channels of a
  token, LayerNorm takes away): they are measured by the largest of all.

  Returns:
    `logits`; or `losses`, and `gradients`: the worst parameter's.

  Raises:
    UserError: the arrays aren't the same ones.
  """
  if {k: v.shape for k, v in ours.items()} != {
    k: v.shape for k, v in theirs.items()
  }:
    raise UserError(
      "the contenders have parameters of other names or shapes: "
      f"{sorted(ours.keys() ^ theirs.keys())[:4]}."
    )
  found: dict[str, float] = {}
  gradients = [v for k, v in ours.items() if k.startswith("gradient/")]
  largest = max((float(np.abs(v).max()) for v in gradients), default=0.0)
  for name, value in ours.items():
    kind = "gradients" if name.startswith("gradient/") else name
    scale = float(np.abs(value).max())
    if kind == "gradients":
      scale = max(scale, _ZERO * largest)
    off = float(np.abs(theirs[name] - value).max()) / scale
    # NaN is never within a bound.
    found[kind] = float(np.maximum(found.get(kind, 0.0), off))
  return found


def agree(
  ours: Setting, name: str, setting: Setting, what: str, work: dict[str, Any]
) -> dict[str, float]:
  """How far a contender's pass is from ours.

  Raises:
    UserError: too far for rounding.
  """
  found = differences(ours.check(what), setting.check(what))
  logits, rest = _BOUNDS[work["dtype"]]
  for kind, off in found.items():
    bound = logits if kind == "logits" else rest
    if not off <= bound:
      raise UserError(
        f"{name} doesn't compute what ours does: {kind} of {work['variant']} "
        f"differ by {off:.1e}, where rounding in {work['dtype']} makes "
        f"{bound:.0e} at most."
      )
  return found


def fastest(settings: list[Setting], what: str, seconds: float) -> int:
  """The place of the fastest; the better of two turns counts."""
  if len(settings) == 1:
    return 0
  turns = [[s.rate(what, seconds) for s in settings] for _ in range(2)]
  return int(np.argmax(np.max(turns, axis=0)))


def compare(
  field: dict[str, list[Setting]],
  work: dict[str, Any],
  chosen: dict[tuple[str, str], int],
  args: argparse.Namespace,
) -> list[dict[str, Any]]:
  """Checks and times one model; prints its rows.

  Args:
    field: settings by contender; "ours" has one.
    work: see `make_work`.
    chosen: (contender, pass) -> place of its best setting; filled in.
    args: `rounds`, `seconds` and `trial`.

  Raises:
    UserError: a contender stops, or doesn't compute the same.
  """
  (ours,), rows = field["ours"], []
  for what in step.PASSES:
    settings = {}
    for name, group in field.items():
      if (name, what) not in chosen:
        chosen[name, what] = fastest(group, what, args.trial)
      settings[name] = group[chosen[name, what]]
    off = {n: agree(ours, n, s, what, work) for n, s in settings.items()}
    rates: dict[str, list[float]] = {name: [] for name in settings}
    for i in range(args.rounds + 1):
      for name, setting in settings.items():
        # The first turn warms all up.
        rate = setting.rate(what, args.seconds if i else 0.0)
        rates[name] += [rate] * bool(i)
    for name, theirs in rates.items():
      if name == "ours":
        continue
      ratios = [a / b for a, b in zip(rates["ours"], theirs, strict=True)]
      row = {
        **{"model": work["variant"], "pass": what, "batch": work["batch"]},
        **{"dtype": work["dtype"], "peer": name},
        "variant": settings[name].name,
        "ours": statistics.median(rates["ours"]),
        "theirs": statistics.median(theirs),
        "spread": [min(ratios), max(ratios)],
        "differs": off[name],
      }
      row["ratio"] = row["ours"] / row["theirs"]
      rows.append(row)
      common.row(
        *(row["model"], what, common.number(row["ours"]), name),
        *(row["variant"], common.number(row["theirs"])),
        f"{row['ratio']:.2f} ({common.spread(ratios)})",
        ", ".join(f"{k} {v:.0e}" for k, v in off[name].items()),
      )
  return rows


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model or checkout, nothing to compare with, or
      contenders that don't compute the same.
  """
  for name in args.models:
    validation.validate(step.recipe(name, args.batch, args.dtype), 1)
  # This process makes weights and waits; the device is the contenders'.
  jax.config.update("jax_platforms", "cpu")
  record: dict[str, Any] = {"rounds": args.rounds, "rows": []}
  chosen: dict[tuple[str, str], int] = {}
  common.head(
    *("model", "pass", "ours, images/s", "other", "its setting"),
    *("theirs", "ours/theirs (spread)", "relative difference"),
  )
  for name in args.models:
    with tempfile.TemporaryDirectory() as place:
      folder = pathlib.Path(place)
      work = make_work(
        *(folder, name, args.batch), dtype=args.dtype, optimizer=args.optimizer
      )
      with contenders(folder, args) as field:
        record["rows"] += compare(field, work, chosen, args)
        hello = {k: v[0].peer.hello for k, v in field.items() if k != PLAIN}
    environment = hello["ours"].pop("environment")
    record |= common.record("benchmarks.peers", environment)
    record |= {"optimizer": work["optimizer"], "contenders": hello}
  name = f"peers_{record['environment']['platform']}.json"
  common.write(args.out or common.RESULTS / name, record)


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Our passes beside those of other codebases."
  )
  parser.add_argument("--models", type=common.names, default=["S/32", "S/16"])
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=3, help="of each")
  parser.add_argument("--trial", type=float, default=2, help="of each variant")
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument("--optimizer", choices=("adamw", "sgd"), default="adamw")
  parser.add_argument("--authors", type=pathlib.Path)
  parser.add_argument("--torch_python", default=sys.executable)
  parser.add_argument("--out", type=pathlib.Path, help="another .json file")
  return cli.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
