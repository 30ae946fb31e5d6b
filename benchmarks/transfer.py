r"""Transfer between photographs: pre-trained on five classes, for five others.

  python -m benchmarks.transfer [--epochs=15] [--steps=300] [--rounds=3]
    [--data_dir=DIR] [--workdir=runs/transfer]

CIFAR-10, prepared as in configs/cifar10.py, with that recipe. The even classes
(airplane, bird, deer, frog, ship) are pre-trained on; then, with a few labels a
class of the odd ones: a linear probe (the few-shot evaluation's ridge
regression on frozen features), the recipe from there, and from random weights.
A round is the seed of weights, batches and labels. The picture has the accuracy
on the odd classes' test images. The same command goes on where it stopped.
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
from typing import Any

import numpy as np

import benchmarks
from configs import cifar10
from mixer import config as config_lib
from mixer.datasets import split as split_lib

FLAGS = {"epochs": 15, "steps": 300, "rounds": 3, "data_dir": ""}
FLAGS |= {"workdir": "runs/transfer"}
DATA, LABELS = "cifar10", (5, 25, 100)
# Learning rates of blocks and of all else, chosen as docs/experiments.md says.
RATES = {"fine-tuned": (3e-3, 1e-3), "from scratch": (1e-2, 5e-3)}


@dataclasses.dataclass(frozen=True)
class Half:
  """Examples of every other class, numbered anew: a data set by code."""

  split: split_lib.Split
  places: np.ndarray

  def __len__(self) -> int:
    return len(self.places)

  def __getitem__(self, i: int) -> dict[str, Any]:
    (record,) = self.split.decoded([self.places[i]])
    return record | {"label": record["label"] // 2}


@functools.cache
def _half(first: int, split: str, data_dir: str) -> tuple[Half, list[str]]:
  whole = split_lib.open_split(DATA, split, data_dir)
  places = np.flatnonzero(whole.labels % 2 == first)
  return Half(whole, places), [*whole.class_names[first::2]]


# The data sets `benchmarks.transfer:even`, to pre-train on, and `:odd`.
even, odd = functools.partial(_half, 0), functools.partial(_half, 1)


def recipe(args: Any, seed: int, which: str) -> config_lib.Config:
  """The config of all runs, configs/cifar10.py's."""
  c = cifar10.get_config()
  c.seed = c.data.subset_seed = seed
  c.data.name, c.data.data_dir = f"benchmarks.transfer:{which}", args.data_dir
  c.report = False
  c.eval_every = c.checkpoint_every = "100%"
  return c


def pretrain(args: Any, seed: int) -> tuple[pathlib.Path, dict[str, float]]:
  """The workdir of a pre-training, and its last evaluation."""
  c = recipe(args, seed, "even")
  c.total = f"{args.epochs} epochs"
  c.fewshot.update(name="benchmarks.transfer:odd", shots=LABELS)
  c.fewshot.seeds = args.rounds
  place = pathlib.Path(args.workdir) / f"pretrain_{seed}"
  return place, _train(c, place)


def tune(args: Any, seed: int, labels: int, way: str, start: str = "") -> float:
  """Accuracy on the odd classes after a training with few labels."""
  c = recipe(args, seed, "odd")
  c.data.examples_per_class = labels
  c.batch_size, c.total, c.init_from = 32, f"{args.steps} steps", start
  c.optimizer.learning_rate, adam = RATES[way]
  c.optimizer.args = {"adam_learning_rate": adam}
  name = f"{way.replace(' ', '_')}_{labels}_{seed}"
  return _train(c, pathlib.Path(args.workdir) / name)["eval/accuracy"]


def _train(config: config_lib.Config, place: pathlib.Path) -> dict[str, float]:
  """The last evaluation of a run, whose own lines are no part of the table."""
  import train

  with contextlib.redirect_stdout(sys.stderr):
    return train.train(config, place)


def measure(args: Any) -> benchmarks.Rows:
  """A row of each number of labels; draws the picture at the end."""
  benchmarks.start()
  seeds = range(args.rounds)
  places, before = zip(*(pretrain(args, s) for s in seeds), strict=True)
  found: dict[str, Any] = {way: [] for way in (*RATES, "linear probe")}
  for n in LABELS:
    probe = [values[f"fewshot/{n}shot"] for values in before]
    tuned = [tune(args, s, n, "fine-tuned", str(places[s])) for s in seeds]
    scratch = [tune(args, s, n, "from scratch") for s in seeds]
    for way, values in zip(found, (tuned, scratch, probe), strict=True):
      found[way].append([100 * x for x in values])
    yield {"labels a class": n} | {
      f"{way}, %": runs[-1] for way, runs in found.items()
    }
  _draw(pathlib.Path(args.workdir) / "transfer.png", found)


def _draw(path: pathlib.Path, found: dict[str, list[list[float]]]) -> None:
  """Means and ranges over the number of labels."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(5, 3.4), layout="constrained")
  axis = figure.subplots()
  for (way, runs), style in zip(found.items(), "os^", strict=True):
    percent, mean = np.array(runs), np.mean(runs, axis=1)
    bars = mean - percent.min(1), percent.max(1) - mean
    axis.errorbar(LABELS, mean, bars, fmt=f"{style}-", capsize=3, label=way)
  axis.set(xscale="log", xlabel="labels a class")
  axis.set(ylabel="accuracy on five other classes, %")
  axis.set_xticks(LABELS, [*map(str, LABELS)], minor=False)
  axis.minorticks_off()
  axis.legend(frameon=False)
  benchmarks.save(path, figure)


if __name__ == "__main__":
  sys.exit(benchmarks.main(__doc__, measure, FLAGS))
