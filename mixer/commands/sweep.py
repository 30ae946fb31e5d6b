r"""Chooses a learning rate on held-out data, then trains on all of it.

  python -m mixer sweep --workdir=DIR \
    --config=configs/finetune.py:model=imagenet21k/Mixer-B_16,dataset=cifar10

Trains once for each of the config's `sweep.learning_rates` on
`sweep.train_split`, compares the accuracies on `sweep.eval_split` at the end,
and trains once more, on `data.train_split`, with the best rate. Only that run
sees `data.eval_split`, so its accuracy there was not chosen by.

Each run has a folder in the workdir, as train.py makes it: `lr_0.003`, ...,
`final`. `sweep.json` has the table. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence

from etils import epy

from mixer import cli, flags, stop
from mixer.errors import UserError

with epy.lazy_imports():
  import jax
  from etils import epath

  import input_pipeline
  import train
  from mixer import config as config_lib
  from mixer import reporter
  from mixer import workdir as workdir_lib


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own: those of train.py."""
  flags.add_run(parser)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A learning rate, and the accuracy it led to; None where it diverged."""

  learning_rate: float
  accuracy: float | None


def sweep(
  config: config_lib.Config,
  workdir: epath.Path,
  allow_change: Sequence[str] = (),
) -> tuple[list[Trial], Trial]:
  """Tries all rates, and trains with the best one.

  Args:
    config: with what to try in `sweep`.
    workdir: for all runs.
    allow_change: see `train.train`.

  Returns:
    The trials in the order of the config, and the last run: its rate, and its
    accuracy on `data.eval_split`.

  Raises:
    UserError: nothing to try, all of it diverged, or what train.py raises.
    stop.Preempted: stopped by a signal.
  """
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
  trial = input_pipeline.open_inputs(_choosing(config))
  chosen_by = trial.eval_split.expression
  if chosen_by == run.eval_split.expression:
    raise UserError(
      f"sweep.eval_split={s.eval_split} is data.eval_split as well: the last "
      "number would be of data that was chosen by. Hold out a part of the "
      'training split, as in --config.sweep.eval_split="train[90%:]".'
    )
  config = run.config
  trials = [
    _try(config, float(rate), workdir, allow_change)
    for rate in s.learning_rates
  ]
  finished = [t for t in trials if t.accuracy is not None]
  if not finished:
    raise UserError(
      "training diverged with every learning rate; add smaller ones to "
      "sweep.learning_rates."
    )
  # The first of equals: rates are listed from the smallest on.
  best = max(finished, key=lambda t: t.accuracy or 0.0).learning_rate
  print(f"\nlast run: learning rate {best:g} on {config.data.train_split}")
  last = train.train(_with_rate(config, best), workdir / "final", allow_change)
  return trials, Trial(best, last["eval/accuracy"])


def _with_rate(
  config: config_lib.Config, learning_rate: float
) -> config_lib.Config:
  rate = {"optimizer.learning_rate": learning_rate}
  return config_lib.changed(config, rate)


def _choosing(config: config_lib.Config) -> config_lib.Config:
  """With the splits that the rates are chosen on."""
  keys = ("train_split", "eval_split")
  splits = {f"data.{key}": config.sweep[key] for key in keys}
  return config_lib.changed(config, splits)


def _try(
  config: config_lib.Config,
  learning_rate: float,
  workdir: epath.Path,
  allow_change: Sequence[str],
) -> Trial:
  changed = _choosing(_with_rate(config, learning_rate))
  print(
    f"\nlearning rate {learning_rate:g} on {config.sweep.train_split}",
    flush=True,
  )
  try:
    values = train.train(
      changed, workdir / f"lr_{learning_rate:g}", allow_change
    )
  except reporter.NotFinite as e:
    print(f"diverged: {e.what}", flush=True)
    return Trial(learning_rate, None)
  return Trial(learning_rate, values["eval/accuracy"])


def table(
  config: config_lib.Config, trials: Sequence[Trial], last: Trial
) -> str:
  """The accuracies, a line a run."""
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


def run(
  config: config_lib.Config,
  workdir: epath.Path,
  allow_change: Sequence[str] = (),
) -> None:
  """Sweeps, prints the table, writes sweep.json."""
  trials, last = sweep(config, workdir, allow_change)
  if jax.process_index():
    return
  workdir_lib.write_json(
    workdir / "sweep.json",
    {
      "trials": [dataclasses.asdict(t) for t in trials],
      "last": dataclasses.asdict(last),
      "config": config_lib.to_json(config),
    },
  )
  print("\n" + table(config, trials, last))


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  flags.checkout("mixer sweep")
  stop.listen()
  cli.train(args, run)
