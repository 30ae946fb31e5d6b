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


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  flags.checkout("mixer sweep")
  stop.listen()
  cli.train(args, sweep)


def sweep(
  config: config_lib.Config,
  workdir: epath.Path,
  allow_change: Sequence[str] = (),
) -> dict[str, Any]:
  """Tries the rates, trains with the best, prints and writes the results.

  Returns `trials`, each a learning rate and its accuracy (None if it diverged),
  and `last`, that of the best on `data.eval_split`.
  """
  import train  # Of the checkout.

  s, d = config.sweep, config.data
  example = '--config.sweep.eval_split="train[90%:]"'
  if not s.learning_rates or not s.train_split or not s.eval_split:
    raise UserError(
      "the config has nothing to choose: name rates and splits, as in "
      '--config.sweep.learning_rates="(0.003, 0.01)" '
      f'--config.sweep.train_split="train[:90%]" {example}.'
    )
  # All that the last run needs is opened before the first one trains.
  run = input_pipeline.open_inputs(config)
  splits = {f"data.{k}": s[k] for k in ("train_split", "eval_split")}
  trial = input_pipeline.open_inputs(config_lib.changed(config, splits))
  if trial.eval_split.expression == run.eval_split.expression:
    raise UserError(
      f"sweep.eval_split={s.eval_split} is data.eval_split as well; choose on "
      f"a part of the training split, as in {example}."
    )

  def attempt(
    name: str, rate: float, changes: dict[str, str]
  ) -> dict[str, Any]:
    changed = config_lib.changed(run.config, changes)
    changed.optimizer.learning_rate = rate
    print(f"\nlearning rate {rate:g} on {changed.data.train_split}", flush=True)
    try:
      found = train.train(changed, workdir / name, allow_change)
    except reporter.NotFinite as e:
      print(f"diverged: {e}", flush=True)
      found = {"eval/accuracy": None}
    return {"learning_rate": float(rate), "accuracy": found["eval/accuracy"]}

  trials = [attempt(f"lr_{r:g}", r, splits) for r in s.learning_rates]
  # The first of equals: rates are listed from the smallest on.
  best = max(
    trials, key=lambda t: -1 if t["accuracy"] is None else t["accuracy"]
  )
  if best["accuracy"] is None:
    raise UserError(
      "training diverged with every learning rate that was tried; add smaller "
      'ones, as in --config.sweep.learning_rates="(0.0003, 0.001)".'
    )
  last = attempt("final", best["learning_rate"], {})
  found = {"trials": trials, "last": last}
  if not jax.process_index():
    content = {**found, "config": config_lib.to_json(config)}
    workdir_lib.write_json(workdir / "sweep.json", content)
    print(f"\n{'learning rate':<16}accuracy on {s.eval_split}")
    for t in trials:
      result, mark = t["accuracy"], "  <- best" if t is best else ""
      text = "diverged" if result is None else f"{result:.4f}"
      print(f"{t['learning_rate']:<16g}{text}{mark}")
    print(
      f"\nlearning rate {best['learning_rate']:g}, trained on {d.train_split}: "
      f"accuracy {last['accuracy']:.4f} on {d.eval_split}"
    )
  return found
