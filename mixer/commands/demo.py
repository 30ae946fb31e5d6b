"""The main job from end to end, on data that ships with it.

  python -m mixer demo --workdir=runs/demo

Pre-trains a small Mixer on rendered glyphs, evaluates it few-shot on
handwritten digits, fine-tunes it there with few and with all labels, trains
the same from scratch, prints a table, draws demo.png, and checks that the
numbers are what they should be. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import pathlib
import sys
import time
from typing import Any

from etils import epy

from mixer import files, flags, stop

with epy.lazy_imports():
  import jax
  import numpy as np

  import input_pipeline
  import train
  from configs import demo_finetune, demo_pretrain
  from mixer import checkpoints, metrics, model, runtime
  from mixer import config as config_lib


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  parser.add_argument("--workdir", default="runs/demo", type=pathlib.Path)


# Labels a class (0: all of them) -> draws of them, that is runs.
DRAWS = {5: 3, 10: 3, 25: 2, 0: 1}
STEPS = {1: 100, 5: 100, 10: 150, 25: 250, 0: 600}


@dataclasses.dataclass(frozen=True)
class Row:
  """Test accuracies at one number of labels, a value a draw."""

  labels: int
  ridge: float | None
  tuned: list[float]
  scratch: list[float]

  @property
  def name(self) -> str:
    """For people."""
    return str(self.labels or "all")


def _run(config: config_lib.Config, workdir: pathlib.Path) -> dict[str, float]:
  """A run whose own lines go to a file."""
  start = time.perf_counter()
  log = io.StringIO()
  with contextlib.redirect_stdout(log):
    values = train.train(config, workdir)
  with files.atomic_write(workdir / "log.txt", "w") as f:
    f.write(log.getvalue())
  seconds = time.perf_counter() - start
  accuracy = values["eval/accuracy"]
  print(f"  {workdir.name:<24}{accuracy:.3f}  ({seconds:.0f} s)", flush=True)
  return values


def digits(
  workdir: pathlib.Path, labels: int, draws: int, ridge: float | None = None
) -> Row:
  """Fine-tunes, and trains from scratch, with that many labels a class.

  Args:
    workdir: with the pre-training in `pretrain`.
    labels: a class, one of `STEPS`; 0 for all.
    draws: of labels; each has a seed of its own.
    ridge: accuracy of a ridge regression, for the table.
  """
  found: dict[str, list[float]] = {"finetune": [], "scratch": []}
  for draw in range(draws):
    for kind, accuracies in found.items():
      config = demo_finetune.get_config()
      config.data.data_dir = str(workdir / "data")
      config.total = f"{STEPS[labels]} steps"
      config.seed = config.data.subset_seed = draw
      config.data.examples_per_class = labels
      if kind == "finetune":
        config.init_from = str(workdir / "pretrain")
      name = f"{kind}_{labels or 'all'}_{draw}"
      accuracies.append(_run(config, workdir / name)["eval/accuracy"])
  return Row(labels, ridge, found["finetune"], found["scratch"])


def _spread(values: list[float]) -> str:
  """Mean, and the range where there are several."""
  text = f"{np.mean(values):.3f}"
  if len(values) > 1:
    text += f" ({min(values):.3f} to {max(values):.3f})"
  return text


def table(rows: list[Row]) -> str:
  """The results, one line a number of labels."""
  lines = [
    "Accuracy on 397 handwritten test digits; mean (range) over draws",
    f"{'labels a class':<16}{'fine-tuned':<26}{'from scratch':<26}"
    "ridge on frozen features",
  ]
  for row in rows:
    ridge = "-" if row.ridge is None else f"{row.ridge:.3f}"
    lines.append(
      f"{row.name:<16}{_spread(row.tuned):<26}{_spread(row.scratch):<26}{ridge}"
    )
  return "\n".join(lines)


def check(fonts: float, rows: list[Row]) -> list[str]:
  """What should hold and doesn't.

  Args:
    fonts: accuracy on glyphs of held-out fonts.
    rows: for 5, 10, 25 and all labels.
  """
  tuned = {row.labels: float(np.mean(row.tuned)) for row in rows}
  scratch = {row.labels: float(np.mean(row.scratch)) for row in rows}
  claims = [("held-out fonts", fonts, 0.78)]
  for labels, least in ((5, 0.78), (10, 0.85), (25, 0.90), (0, 0.95)):
    claims.append((f"fine-tuned at {labels or 'all'}", tuned[labels], least))
  claims.append(("gain over scratch at 5", tuned[5] - scratch[5], 0.02))
  return [
    f"{what}: {value:.3f}, should be at least {least}"
    for what, value, least in claims
    if value < least
  ]


def _predictions(
  workdir: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Test images, their labels, and what the fully fine-tuned model says."""
  params, _ = checkpoints.load_params(str(workdir / "finetune_all_0"))
  config = demo_finetune.get_config()
  config.data.data_dir = str(workdir / "data")
  _, split = input_pipeline.open_splits(config)
  config.batch_size = len(split)
  batch = next(input_pipeline.eval_batches(split, config))
  module = model.from_config(config, len(split.class_names))
  images = model.scale(jax.numpy.asarray(batch["image"]), module.dtype)
  logits = model.apply(module, params, images)
  return batch["image"], batch["label"], np.asarray(jax.nn.softmax(logits))


def plot(workdir: pathlib.Path, rows: list[Row]) -> pathlib.Path:
  """Draws loss, accuracies, transfer and sample predictions."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  figure = plt.figure(figsize=(11, 7.5), layout="constrained")
  parts: Any = figure.subfigures(2, 1, height_ratios=(1.25, 1))
  upper, lower = parts
  left, middle, right = upper.subplots(1, 3)
  records = metrics.read(workdir / "pretrain")
  losses = [r for r in records if "train/loss" in r]
  evals = [r for r in records if "eval/accuracy" in r]
  left.plot([r["step"] for r in losses], [r["train/loss"] for r in losses])
  left.set(title="Pre-training on glyphs", xlabel="step", ylabel="loss")
  steps = [r["step"] for r in evals]
  middle.plot(
    steps, [r["eval/accuracy"] for r in evals], "o-", label="held-out fonts"
  )
  middle.plot(
    steps,
    [r["fewshot/10shot"] for r in evals],
    "s-",
    label="digits, 10-shot ridge",
  )
  middle.set(title="Evaluated on the way", xlabel="step", ylabel="accuracy")
  middle.set_ylim(0, 1)
  middle.legend(loc="lower right")
  places = np.arange(len(rows))
  for offset, kind, label in (
    (-0.2, "tuned", "fine-tuned"),
    (0.2, "scratch", "from scratch"),
  ):
    values = [getattr(row, kind) for row in rows]
    means = np.array([np.mean(v) for v in values])
    spread = [
      means - [min(v) for v in values],
      [max(v) for v in values] - means,
    ]
    right.bar(places + offset, means, 0.38, label=label, yerr=spread, capsize=3)
  right.set_xticks(places, [row.name for row in rows])
  right.set(title="Handwritten digits", xlabel="labels a class")
  right.set_ylim(0.5, 1.1)
  right.set_yticks(np.arange(0.5, 1.01, 0.1))
  right.legend(loc="upper center", ncols=2)

  images, labels, scores = _predictions(workdir)
  guesses, sure = scores.argmax(axis=-1), scores.max(axis=-1)
  evenly = np.linspace(0, len(images) - 1, 12).astype(int)
  doubtful = np.lexsort((sure, guesses == labels))[:12]
  for axis, i in zip(
    lower.subplots(2, 12).flat, (*evenly, *doubtful), strict=True
  ):
    axis.imshow(images[i])
    axis.set_axis_off()
    axis.set_title(
      f"{guesses[i]}  {sure[i]:.0%}",
      fontsize=9,
      color="black" if guesses[i] == labels[i] else "red",
    )
  wrong = int((guesses != labels).sum())
  lower.suptitle(
    "Test digits as the fine-tuned model reads them. Above: every "
    f"{len(images) // 12}th; below: the {wrong} wrong ones (red), then the "
    "least certain"
  )
  path = workdir / "demo.png"
  with files.atomic_write(path) as f:
    figure.savefig(f, dpi=110, format="png")
  plt.close(figure)
  return path


def demo(workdir: pathlib.Path) -> list[str]:
  """Runs everything; returns what doesn't hold."""
  start = time.perf_counter()
  data_dir = str(workdir / "data")
  config = demo_pretrain.get_config()
  config.data.data_dir = data_dir
  print(
    "1. Pre-training on glyphs:\n$ python train.py --config=configs/"
    f"demo_pretrain.py --workdir={workdir / 'pretrain'} "
    f"--config.data.data_dir={data_dir}",
    flush=True,
  )
  pretrained = train.train(config, workdir / "pretrain")
  print(
    "\n2. Fine-tuning on digits, and training from scratch:\n$ python train.py "
    f"--config=configs/demo_finetune.py --workdir={workdir / 'finetune_all_0'}"
    f" --config.data.data_dir={data_dir} --config.init_from="
    f"{workdir / 'pretrain'} ...\n"
    "  (kind, labels a class, draw of labels; accuracy on the test split)",
    flush=True,
  )
  rows = [
    digits(workdir, labels, draws, pretrained.get(f"fewshot/{labels}shot"))
    for labels, draws in DRAWS.items()
  ]
  fonts = pretrained["eval/accuracy"]
  print(f"\nGlyphs in held-out fonts: accuracy {fonts:.3f}\n")
  print(table(rows))
  print(f"\npicture: {plot(workdir, rows)}")
  seconds = time.perf_counter() - start
  print(f"all in {metrics.duration(seconds)}", flush=True)
  return check(fonts, rows)


def main(args: argparse.Namespace) -> int:
  """Does what the command line says; returns the exit code."""
  flags.checkout("mixer demo")
  stop.listen()
  runtime.start()
  failures = demo(args.workdir)
  for failure in failures:
    print(f"not as it should be: {failure}", file=sys.stderr)
  return stop.FAILED if failures else stop.DONE
