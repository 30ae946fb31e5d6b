"""Pre-trains and fine-tunes a small model, on data that ships with it.

  python -m mixer demo --workdir=runs/demo

Pre-trains a small Mixer on rendered glyphs, evaluates it few-shot on
handwritten digits, fine-tunes it there with 10 labels a class and with all,
trains the same from scratch, prints a table, draws demo.png, and checks that
the numbers are what they should be. Started again, it continues.
"""

from __future__ import annotations

import argparse
import contextlib
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
  from configs import demo as recipes
  from mixer import config as config_lib
  from mixer import metrics, predictor, runtime

# Labels a class -> draws of them, and steps of each run.
RUNS = {"10": (2, 150), "all": (1, 400)}
_KINDS = {"finetune": "fine-tuned", "scratch": "from scratch"}
_Results = dict[tuple[str, str], list[float]]


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  parser.add_argument("--workdir", default="runs/demo", type=pathlib.Path)


def main(args: argparse.Namespace) -> int:
  """Does what the command line says; returns the exit code."""
  flags.checkout("mixer demo")
  stop.listen()
  runtime.start()
  stop.listen_in_thread()
  failures = demo(args.workdir)
  for failure in failures:
    print(f"not as it should be: {failure}", file=sys.stderr)
  return stop.FAILED if failures else stop.DONE


def demo(workdir: pathlib.Path) -> list[str]:
  """Runs everything; returns what is not as it should be."""
  start, place = time.perf_counter(), workdir / "pretrain"
  print(f"1. Pre-training on glyphs, in {place}:", flush=True)
  before = _train(recipes.get_config(), place)
  text = (
    "\n2. Digits: test accuracy by kind of run, labels a class, draw of them"
  )
  print(text, flush=True)
  results = {
    (labels, kind): _digits(workdir, labels, kind)
    for labels in RUNS
    for kind in _KINDS
  }
  fonts = before["eval/accuracy"]
  print(f"\nGlyphs in held-out fonts: accuracy {fonts:.3f}\n")
  print(table(results, before.get("fewshot/10shot", 0.0)))
  print(f"\npicture: {_plot(workdir, results)}")
  duration = metrics.duration(time.perf_counter() - start)
  print(f"all in {duration}", flush=True)
  return check(results, fonts)


def _train(
  config: config_lib.Config, workdir: pathlib.Path
) -> dict[str, float]:
  import train  # Of the checkout.

  config.data.data_dir = str(workdir.parent / "data")
  return train.train(config, workdir)


def _digits(workdir: pathlib.Path, labels: str, kind: str) -> list[float]:
  """Accuracies of a kind of run, whose own lines go to a file."""
  draws, steps = RUNS[labels]
  found = []
  for draw in range(draws):
    config = recipes.get_config("digits")
    config.total = f"{steps} steps"
    config.seed = config.data.subset_seed = draw
    config.data.examples_per_class = 0 if labels == "all" else int(labels)
    if kind == "finetune":
      config.init_from = str(workdir / "pretrain")
    place = workdir / f"{kind}_{labels}_{draw}"
    start, log = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(log):
      found.append(_train(config, place)["eval/accuracy"])
    (place / "log.txt").write_text(log.getvalue())
    seconds = time.perf_counter() - start
    print(f"  {place.name:<24}{found[-1]:.3f}  ({seconds:.0f} s)", flush=True)
  return found


def table(results: _Results, ridge: float) -> str:
  """The results, a line for each number of labels."""
  lines = [
    "Accuracy on 397 handwritten test digits; mean (range) over draws",
    f"{'labels a class':<16}{'fine-tuned':<26}{'from scratch':<26}"
    "ridge on frozen features",
  ]
  for labels in RUNS:
    texts = [
      f"{np.mean(v):.3f}" + f" ({min(v):.3f} to {max(v):.3f})" * (len(v) > 1)
      for v in (results[labels, kind] for kind in _KINDS)
    ]
    last = f"{ridge:.3f}" if labels == "10" else "-"
    lines.append(f"{labels:<16}{texts[0]:<26}{texts[1]:<26}{last}")
  return "\n".join(lines)


def check(results: _Results, fonts: float) -> list[str]:
  """What is lower than it should be; `fonts`: accuracy on held-out fonts."""
  mean = {key: float(np.mean(values)) for key, values in results.items()}
  gain = mean["10", "finetune"] - mean["10", "scratch"]
  claims = [
    ("held-out fonts", fonts, 0.75),
    ("fine-tuned at 10", mean["10", "finetune"], 0.85),
    ("fine-tuned at all", mean["all", "finetune"], 0.94),
    ("gain over scratch at 10", gain, 0.02),
  ]
  return [
    f"{what}: {value:.3f}, should be at least {least}"
    for what, value, least in claims
    if value < least
  ]


def _plot(workdir: pathlib.Path, results: _Results) -> pathlib.Path:
  """Draws loss, accuracies, transfer and sample predictions."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  figure: Any = plt.figure(figsize=(11, 7.5), layout="constrained")
  above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
  left, middle, right = above.subplots(1, 3)
  records = metrics.read(workdir / "pretrain")
  for axis, name, style, label in (
    (left, "train/loss", "-", ""),
    (middle, "eval/accuracy", "o-", "held-out fonts"),
    (middle, "fewshot/10shot", "s-", "digits, 10-shot ridge"),
  ):
    shown = [(r["step"], r[name]) for r in records if name in r]
    axis.plot(*zip(*shown, strict=True), style, label=label)
  left.set(title="Pre-training on glyphs", xlabel="step", ylabel="loss")
  middle.set(title="Evaluated on the way", xlabel="step", ylim=(0, 1))
  middle.legend(loc="lower right")
  places = np.arange(len(RUNS))
  for offset, (kind, label) in zip((-0.2, 0.2), _KINDS.items(), strict=True):
    values = [results[labels, kind] for labels in RUNS]
    right.bar(places + offset, [np.mean(v) for v in values], 0.38, label=label)
    for place, each in zip(places + offset, values, strict=True):
      right.plot([place] * len(each), each, "k_")
  right.set_xticks(places, [*RUNS])
  right.set(
    title="Handwritten digits", xlabel="labels a class", ylim=(0.5, 1.1)
  )
  right.legend(loc="upper center", ncols=2)
  _draw_digits(below, workdir)
  path = workdir / "demo.png"
  with files.atomic_write(path) as f:
    figure.savefig(f, dpi=110, format="png")
  plt.close(figure)
  return path


def _draw_digits(figure: Any, workdir: pathlib.Path) -> None:
  """Draws test digits with what the fine-tuned model takes them for."""
  config = recipes.get_config("digits")
  config.data.data_dir = str(workdir / "data")
  _, split = input_pipeline.open_splits(config)
  config.batch_size = len(split)
  batch = next(input_pipeline.eval_batches(split, config))
  images, labels = batch["image"], batch["label"]
  model = predictor.load(str(workdir / "finetune_all_0"))
  scores = np.asarray(jax.nn.softmax(model.logits(images)))
  guesses, sure = scores.argmax(axis=-1), scores.max(axis=-1)
  evenly = np.linspace(0, len(images) - 1, 12).astype(int)
  doubtful = np.lexsort((sure, guesses == labels))[:12]
  axes = figure.subplots(2, 12).flat
  for axis, i in zip(axes, (*evenly, *doubtful), strict=True):
    axis.imshow(images[i])
    axis.set_axis_off()
    color = "black" if guesses[i] == labels[i] else "red"
    axis.set_title(f"{guesses[i]}  {sure[i]:.0%}", fontsize=9, color=color)
  wrong = int((guesses != labels).sum())
  figure.suptitle(
    f"Test digits as the fine-tuned model reads them: above, a sample; below, "
    f"the {wrong} wrong ones (red), then the least certain"
  )
