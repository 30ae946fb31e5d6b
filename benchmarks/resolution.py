"""Fine-tuning at twice the resolution, by each way of fitting the weights.

  python -m benchmarks.resolution --workdir=runs/resolution [--seeds=5]

Pre-trains as `make demo` does, at 16 px, then compares on handwritten digits,
at 16 px and, by each of `mixer.resolution.METHODS`, at 32 px: before
fine-tuning, the accuracy of the untouched model on its own glyphs, and of a
ridge regression on its frozen features of digits; and the accuracy of the
model fine-tuned with 10 and with all labels a class, by the demo's recipe. The
digits are scans of 8 x 8 points: twice the pixels hold no more of them.

A seed stands for a pre-training, a draw of labels and a fine-tuning. Prints a
table and writes benchmarks/results/resolution.json. Started again, it goes on
where it was. A seed takes some 6 minutes on two quiet CPU cores.
"""

import argparse
import contextlib
import datetime
import io
import json
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import input_pipeline
import train
from configs import demo_finetune, demo_pretrain
from mixer import (
  command_line,
  evaluate,
  fewshot,
  finetune,
  inference,
  resolution,
  runtime,
  sharding,
)
from mixer import config as config_lib
from mixer import step as step_lib
from tools import demo

RESULTS = pathlib.Path(__file__).parent / "results" / "resolution.json"
LABELS = (10, 0)  # A class; 0 for all.
OLD = demo_pretrain.get_config().image_size
# Image size and how the weights are fitted to it.
ARMS = ((OLD, ""), *((2 * OLD, method) for method in resolution.METHODS))


def run(config: config_lib.Config, workdir: pathlib.Path) -> float:
  """Test accuracy of a run whose own lines go to a file."""
  start = time.perf_counter()
  log = io.StringIO()
  with contextlib.redirect_stdout(log):
    accuracy = train.train(config, workdir)["eval/accuracy"]
  (workdir / "log.txt").write_text(log.getvalue())
  seconds = time.perf_counter() - start
  print(f"  {workdir}: {accuracy:.3f} ({seconds:.0f} s)", flush=True)
  return accuracy


def fitted(
  recipe: config_lib.Config, workdir: pathlib.Path, size: int, method: str
) -> config_lib.Config:
  """A recipe that starts from the pre-training, at another size."""
  config = recipe.copy_and_resolve_references()
  config.data.data_dir = str(workdir.parent / "data")
  config.init_from = str(workdir / "pretrain")
  config.init_resize = method
  config.image_size = config.data.eval_short_side = size
  return config


class Frozen:
  """The pre-trained model as a config fits it, untrained from there on."""

  def __init__(self, config: config_lib.Config):
    self._config = config
    self.train, self.test = input_pipeline.open_splits(config)
    names = self.train.class_names
    origin = finetune.load(config, names)
    self._params, self._mesh = origin.params, sharding.make_mesh()
    kept = len(names) if config.init_head == "keep" else 0
    self._functions = inference.Inference(
      step_lib.build_model(origin.config(config), kept),
      config.loss.name,
      len(names),
      self._mesh,
    )

  def _batches(self, split: input_pipeline.Split) -> Any:
    return input_pipeline.eval_batches(split, self._config)

  def accuracy(self) -> float:
    """With its own head, on the test split."""
    return evaluate.evaluate(
      self._functions, self._params, self._batches(self.test), self._mesh
    )["accuracy"]

  def ridge(self, labels: int, seed: int) -> float:
    """Of a ridge regression on pre-logits, with so many labels a class."""
    train_split = self.train
    if labels:
      train_split = train_split.per_class(labels, seed)
    train_x, test_x = (
      evaluate.features(
        self._functions, self._params, self._batches(split), self._mesh
      )
      for split in (train_split, self.test)
    )
    return fewshot.ridge_accuracy(
      train_x,
      train_split.labels,
      test_x,
      self.test.labels,
      len(self.train.class_names),
      self._config.fewshot.l2,
    )


def compare(workdir: pathlib.Path, seed: int) -> list[dict[str, Any]]:
  """One seed: a row for each of `ARMS`."""
  workdir = workdir / f"seed_{seed}"
  config = demo_pretrain.get_config()
  config.data.data_dir = str(workdir.parent / "data")
  config.seed, config.fewshot.name = seed, ""
  run(config, workdir / "pretrain")
  rows = []
  for size, method in ARMS:
    glyphs = fitted(demo_pretrain.get_config(), workdir, size, method)
    glyphs.init_head = "keep"
    row: dict[str, Any] = {"seed": seed, "image_size": size, "method": method}
    row["glyphs"] = Frozen(glyphs).accuracy()
    digits = fitted(demo_finetune.get_config(), workdir, size, method)
    frozen = Frozen(digits)
    for labels in LABELS:
      digits.seed = digits.data.subset_seed = seed
      digits.data.examples_per_class = labels
      digits.total = f"{demo.STEPS[labels]} steps"
      row[f"ridge_{labels or 'all'}"] = frozen.ridge(labels, seed)
      name = f"{size}_{method}_{labels or 'all'}".replace("__", "_")
      row[f"tuned_{labels or 'all'}"] = run(digits, workdir / name)
    rows.append(row)
  return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Mean (range) over the seeds, a line for each of `ARMS`."""
  columns = [k for k in rows[0] if k not in ("seed", "image_size", "method")]
  titles = [c.replace("_", ", ") for c in columns]
  lines = [
    "Accuracy, mean (range) over seeds: of the untouched model on glyphs; on "
    "digits of\na ridge regression on its features, and fine-tuned; by labels "
    "a class",
    "".join(f"{t:<24}" for t in ("image size", *titles)).rstrip(),
  ]
  for size, method in ARMS:
    own = [r for r in rows if (r["image_size"], r["method"]) == (size, method)]
    cells = [f"{size} {method}"]
    for column in columns:
      values = [r[column] for r in own]
      spread = f"({min(values):.3f} to {max(values):.3f})"
      cells.append(f"{np.mean(values):.3f} {spread}")
    lines.append("".join(f"{cell:<24}" for cell in cells).rstrip())
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.resolution",
    description="Fine-tuning at twice the resolution.",
  )
  parser.add_argument("--workdir", default="runs/resolution", type=pathlib.Path)
  parser.add_argument("--seeds", default=5, type=int)
  args = parser.parse_args(argv)

  def body() -> None:
    runtime.quiet_libraries()
    runtime.start()
    rows = []
    for seed in range(args.seeds):
      rows += compare(args.workdir, seed)
      print(table(rows), flush=True)
      record = {
        "date": datetime.date.today().isoformat(),
        "processor": platform.processor() or platform.machine(),
        "environment": runtime.environment() | {"host": ""},
        "rows": rows,
      }
      RESULTS.write_text(json.dumps(record, indent=2) + "\n")

  return command_line.run(body)


if __name__ == "__main__":
  sys.exit(main())
