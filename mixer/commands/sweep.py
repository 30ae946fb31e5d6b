r"""Chooses a learning rate on held-out data, then trains on all of it.

  python -m mixer sweep --workdir=DIR \
    --config=configs/finetune.py:model=imagenet21k/Mixer-B_16,dataset=cifar10

Trains once for each of the config's `sweep.learning_rates` on
`sweep.train_split`, compares the accuracies on `sweep.eval_split` at the end,
and trains once more, on `data.train_split`, with the best rate. Only that run
sees `data.eval_split`, so nothing was chosen by its accuracy there.

Each run has a folder in the workdir, as train.py makes it: `lr_0.003`, ...,
`final`. `sweep.json` has the table. The same command continues a stopped one.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from etils import epy

from mixer import cli, flags, stop
from mixer.errors import UserError

with epy.lazy_imports():
  import jax
  from etils import epath

  import input_pipeline
  from mixer import config as config_lib
  from mixer import reporter
  from mixer import workdir as workdir_lib


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own: those of train.py."""
  flags.add_run(parser)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A learning rate, and the accuracy it led to; None if it diverged."""

  learning_rate: float
  accuracy: float | None


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  flags.checkout("mixer sweep")
  stop.listen()
  cli.train(args, _run)


def _run(
  config: config_lib.Config, workdir: epath.Path, allow_change: Sequence[str]
) -> None:
  trials, last = sweep(config, workdir, allow_change)
  if not jax.process_index():
    content = {
      "trials": [dataclasses.asdict(t) for t in trials],
      "last": dataclasses.asdict(last),
      "config": config_lib.to_json(config),
    }
    workdir_lib.write_json(workdir / "sweep.json", content)
    print("\n" + table(config, trials, last))


def sweep(
  config: config_lib.Config,
  workdir: epath.Path,
  allow_change: Sequence[str] = (),
) -> tuple[list[Trial], Trial]:
  """Returns the trials, and the run with the best rate on `data.eval_split`.

  Raises:
    UserError: nothing to try, all of it diverged, or as of `train.train`.
  """
  import train  # Of the checkout.

  s = config.sweep
  if not s.learning_rates or not s.train_split or not s.eval_split:
    raise UserError(
      "the config has nothing to choose: name rates and the splits to train "
      "and to choose on, as in "
      '--config.sweep.learning_rates="(0.003, 0.01)" '
      '--config.sweep.train_split="train[:90%]" '
      '--config.sweep.eval_split="train[90%:]".'
    )
  # All that the last run needs is opened before the first one trains.
  run = input_pipeline.open_inputs(config)
  splits = {f"data.{k}": s[k] for k in ("train_split", "eval_split")}
  trial = input_pipeline.open_inputs(config_lib.changed(config, splits))
  if trial.eval_split.expression == run.eval_split.expression:
    raise UserError(
      f"sweep.eval_split={s.eval_split} is data.eval_split as well: the last "
      "number would be of data that was chosen by. Hold out a part of the "
      'training split, as in --config.sweep.eval_split="train[90%:]".'
    )

  def accuracy(changes: dict[str, Any], name: str) -> float:
    changed = config_lib.changed(run.config, changes)
    found = train.train(changed, workdir / name, allow_change)
    return found["eval/accuracy"]

  trials = []
  for rate in s.learning_rates:
    print(f"\nlearning rate {rate:g} on {s.train_split}", flush=True)
    changes = {**splits, "optimizer.learning_rate": rate}
    try:
      trials.append(Trial(float(rate), accuracy(changes, f"lr_{rate:g}")))
    except reporter.NotFinite as e:
      print(f"diverged: {e}", flush=True)
      trials.append(Trial(float(rate), None))
  done = [t for t in trials if t.accuracy is not None]
  if not done:
    raise UserError(
      "training diverged with every learning rate that was tried; add smaller "
      'ones, as in --config.sweep.learning_rates="(0.0003, 0.001)".'
    )
  # The first of equals: rates are listed from the smallest on.
  best = max(done, key=lambda t: t.accuracy or 0.0).learning_rate
  print(f"\nlearning rate {best:g} on {config.data.train_split}", flush=True)
  last = accuracy({"optimizer.learning_rate": best}, "final")
  return trials, Trial(best, last)


def table(
  config: config_lib.Config, trials: Sequence[Trial], last: Trial
) -> str:
  """The accuracies, a line for each run."""
  lines = [f"{'learning rate':<16}accuracy on {config.sweep.eval_split}"]
  for t in trials:
    text = "diverged" if t.accuracy is None else f"{t.accuracy:.4f}"
    mark = "  <- best" if t.learning_rate == last.learning_rate else ""
    lines.append(f"{t.learning_rate:<16g}{text}{mark}")
  lines.append(
    f"\nlearning rate {last.learning_rate:g}, trained on "
    f"{config.data.train_split}: accuracy {last.accuracy:.4f} on "
    f"{config.data.eval_split}"
  )
  rates = sorted(t.learning_rate for t in trials)
  for edge, word in ((rates[0], "smallest"), (rates[-1], "largest")):
    if len(rates) > 1 and math.isclose(last.learning_rate, edge):
      lines.append(
        f"The best rate is the {word} tried: one beyond it may be better."
      )
  return "\n".join(lines)
