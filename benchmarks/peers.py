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

Prints images/s as medians of the rounds; writes
benchmarks/results/peers_cpu.json (or peers_gpu.json) and a picture beside it.
"""

import argparse
import json
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import peer_comparison, peer_plot, records, step
from benchmarks.peer_field import PLAIN, Field
from mixer import command_line, npz, trained, validation, weights
from mixer import model as model_lib
from mixer.exporting import timm_weights


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
  """Leaves in a folder what contenders do: work.json, batch and weights.

  Args:
    folder: gets `work.json`, `batch.npz`, and the same random weights in
      `flax.npz` and `timm.npz`.
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
  shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), like)[
    "params"
  ]
  rng = np.random.default_rng(0)

  def weight(name: str, x: Any) -> np.ndarray:
    # No zero anywhere, so that each parameter has a gradient and a say.
    if name.endswith("kernel"):
      scale = np.prod(x.shape[:-1]) ** -0.5
      return rng.normal(0, scale, x.shape).astype(np.float32)
    start = 1.0 if name.endswith("scale") else 0.0
    return rng.normal(start, 0.1, x.shape).astype(np.float32)

  flat = {k: weight(k, v) for k, v in weights.flatten(shapes).items()}
  params = weights.unflatten(flat)
  model = trained.Trained(
    module,
    params,
    (image_size, image_size),
    256,
    None,
    None,
    "softmax",
    variant,
    variant,
  )
  work = {
    "variant": variant,
    "shape": shape,
    "image_size": image_size,
    "num_classes": num_classes,
    "batch": batch,
    "dtype": dtype,
    "optimizer": {
      "name": optimizer,
      "learning_rate": 1e-4,
      "weight_decay": 0.1 if optimizer == "adamw" else 0.0,
      "momentum": 0.9,
    },
    "timm": timm_weights.arguments(model),
  }
  (folder / "work.json").write_text(json.dumps(work))
  config = step.recipe(variant, batch, dtype)
  config.image_size = image_size
  examples = step.make_batch(config, num_classes)
  np.savez(folder / "batch.npz", allow_pickle=False, **examples)
  npz.write(folder / "flax.npz", flat)
  state = timm_weights.state_dict(params)
  np.savez(folder / "timm.npz", allow_pickle=False, **state)
  return work


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
  # Whose environment is that of the process with our contender.
  record = records.start("benchmarks.peers", {}) | {
    "rounds": args.rounds,
    "rows": [],
    "agreement": [],
    "trials": [],
  }
  chosen: peer_comparison.Chosen = {}
  for name in args.models:
    with tempfile.TemporaryDirectory() as place:
      folder = pathlib.Path(place)
      work = make_work(
        folder,
        name,
        args.batch,
        dtype=args.dtype,
        optimizer=args.optimizer,
      )
      field = Field(folder, args)
      try:
        peer_comparison.compare(field, folder, work, chosen, record, args)
      finally:
        field.close()
      record |= {
        "environment": field.ours.hello["environment"],
        "optimizer": work["optimizer"],
        "contenders": {
          k: v[0].peer.hello for k, v in field.settings.items() if k != PLAIN
        },
      }
  platform_name = record["environment"]["platform"]
  path = args.out or records.RESULTS / f"peers_{platform_name}.json"
  print()
  records.write(path, record)
  peer_plot.draw(record, path.with_suffix(".png"))
  print(f"drawn to {path.with_suffix('.png')}")


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Our passes beside those of other codebases."
  )
  parser.add_argument(
    "--models", type=lambda x: x.split(","), default=["S/32", "S/16"]
  )
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
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
