"""Runs train.py, or mixer replay, with a loss that is NaN for some images.

  python -m tests.reliability.poison UPDATES train|replay FLAGS

The batch of each of those updates (numbers with commas) becomes white, and a
white image has a NaN for its loss. So it comes from within the jitted update.
"""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

import input_pipeline
import train
from mixer import cli, train_step


def main() -> None:
  updates = {int(n) for n in sys.argv[1].split(",")}
  batches, inputs = input_pipeline.train_batches, train_step.training_inputs

  class Poisoned:
    def __init__(self, split: Any, config: Any, step: int = 0):
      self._batches, self._step = batches(split, config, step), step

    def __next__(self) -> Any:
      self._step += 1
      batch = next(self._batches)
      if self._step in updates:
        batch["image"] = np.full_like(batch["image"], 255)
      return batch

    def __getattr__(self, name: str) -> Any:
      return getattr(self._batches, name)

  def poisoned(batch: Any, *args: Any) -> Any:
    images, targets = inputs(batch, *args)
    white = (batch["image"] == 255).all(axis=(1, 2, 3), keepdims=True)
    return jnp.where(white, jnp.nan, images), targets

  input_pipeline.train_batches = Poisoned
  train_step.training_inputs = poisoned
  if sys.argv[2] == "replay":
    sys.exit(cli.main(["replay", *sys.argv[3:]]))
  sys.argv = ["train.py", *sys.argv[3:]]
  sys.exit(train.main(cli.parser("train.py").read(sys.argv[1:])))


if __name__ == "__main__":
  main()
