"""From a data set's name to batches.

Global batch n is a pure function of (seed, n, batch size): the same bytes for
any number of hosts and threads, and after any restart, so that there is no
iterator state to save. Shuffling, repetition and augmentation act on single
records by their place in the endless shuffled sequence; that is then cut into
pieces of `batch_size / hosts`, and host p of P takes pieces p, p + P, p + 2P...
`mixer.loader` makes them.
"""

import dataclasses
import itertools
from typing import Any

import grain
import jax
import numpy as np

from mixer import config as config_lib
from mixer import durations, evaluate, loader, preprocess, validation
from mixer.datasets import split as split_lib
from mixer.errors import UserError

Split = split_lib.Split
# What a seed is for; never renumbered.
_SHUFFLE, _AUGMENT = 100, 101


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A config that can work, and the data that a run of it needs."""

  config: config_lib.Config  # With the evaluation split that there is.
  train_split: Split
  eval_split: Split
  fewshot_task: evaluate.Fewshot | None
  plan: durations.Plan  # Durations in steps.

  @property
  def identity(self) -> dict[str, Any]:
    """JSON that tells the data from any other."""
    task = self.fewshot_task
    few = {"fewshot": task.identity} if task else {}
    return {**self.train_split.identity, **few}

  def train_records(self, step: int) -> list[int]:
    """See `train_records`."""
    return train_records(self.train_split, self.config, step)


def open_inputs(config: config_lib.Config) -> Inputs:
  """Opens the data; a UserError names what can't work, before it is tried."""
  validation.validate(config, jax.device_count())
  train, evaluation = open_splits(config)
  if config.loss.class_weights:
    class_weights(train)  # Now, as it may take long.
  return Inputs(
    config_lib.changed(config, {"data.eval_split": evaluation.expression}),
    train,
    evaluation,
    open_fewshot(config),
    durations.plan(config, len(train)),
  )


def open_splits(config: config_lib.Config) -> tuple[Split, Split]:
  """The training and the evaluation examples that the config names."""
  d = config.data
  train = split_lib.open_split(d.name, d.train_split, d.data_dir)
  if d.examples_per_class:
    train = train.per_class(d.examples_per_class, d.subset_seed)
  evaluation = split_lib.open_split(d.name, d.eval_split, d.data_dir)
  if train.class_names != evaluation.class_names:
    raise UserError(
      f"data set {d.name} has other classes in {d.train_split} than in "
      f"{d.eval_split}; its function should name the same ones, in one order."
    )
  return train, evaluation


def class_weights(split: Split) -> np.ndarray:
  """float32 `[K]`: of each class 1 / its share of the split, / their number.

  So the mean over the split's examples is 1. Reads the labels of all of them.
  """
  counts = np.bincount(split.labels, minlength=len(split.class_names))
  balanced = len(split) / (np.count_nonzero(counts) * np.maximum(counts, 1))
  return balanced.astype(np.float32)


def open_fewshot(config: config_lib.Config) -> evaluate.Fewshot | None:
  """The few-shot evaluation that the config wants, if any."""
  f, data_dir = config.fewshot, config.data.data_dir
  if not f.name:
    return None
  train = split_lib.open_split(f.name, f.train_split, data_dir)
  test = split_lib.open_split(f.name, f.eval_split, data_dir)
  return evaluate.Fewshot(train, test, f.shots, f.seeds, f.l2)


def _seed(config: config_lib.Config, purpose: int) -> int:
  state = np.random.SeedSequence((config.seed, purpose)).generate_state(1)
  return int(state[0])


def _order(split: Split, config: config_lib.Config) -> Any:
  """Places in the endless shuffled sequence -> examples of the split."""
  seed = _seed(config, _SHUFFLE)
  return grain.MapDataset.range(len(split)).shuffle(seed=seed).repeat()


def train_records(
  split: Split, config: config_lib.Config, step: int
) -> list[int]:
  """The records, places in the data set, of the batch of an update, from 1."""
  order, size = _order(split, config), config.batch_size
  places = range((step - 1) * size, step * size)
  return [int(split.records[int(order[place])]) for place in places]


def train_batches(
  split: Split, config: config_lib.Config, start_step: int = 0
) -> loader.Loader[loader.Batch]:
  """This host's parts of the global batches `start_step`, `start_step` + 1...

  Update N consumes batch N - 1. Gives `image` uint8 `[B / P, H, W, 3]`, `label`
  int32 `[B / P]`, of P hosts, without end, and `weight` float32 `[B / P]` with
  `loss.class_weights`; `next` raises UserError if a record can't be decoded.
  """
  hosts, order = jax.process_count(), _order(split, config)
  length, size = config.batch_size // hosts, config_lib.image_size(config)
  _, *fields = (f.name for f in dataclasses.fields(preprocess.TrainOptions))
  options = preprocess.TrainOptions(size, *(config.data[k] for k in fields))
  seed = _seed(config, _AUGMENT)
  weights = class_weights(split) if config.loss.class_weights else None

  def make(places: range, images: np.ndarray) -> list[int]:
    def prepare(k: int, image: Any, out: np.ndarray) -> None:
      # A generator for each place: whoever draws before or beside.
      rng = np.random.Generator(np.random.Philox(key=[seed, places[k]]))
      preprocess.train(image, rng, options, out)

    examples = [int(order[place]) for place in places]
    return loader.fill(split, examples, images, prepare)

  def finish(images: np.ndarray, labels: list[int]) -> loader.Batch:
    batch = {"image": images, "label": np.array(labels, np.int32)}
    return batch if weights is None else batch | {"weight": weights[labels]}

  first = start_step * hosts + jax.process_index()
  return loader.Loader(
    (
      range(n * length, (n + 1) * length) for n in itertools.count(first, hosts)
    ),
    make,
    finish,
    (length, *size),
    config.data.threads,
    config.data.prefetch_batches,
  )


def eval_batches(
  split: Split, config: config_lib.Config
) -> loader.Loader[loader.Batch]:
  """`evaluate.batches` with the config's image size and batch size."""
  data, size = config.data, config_lib.image_size(config)
  work = config.batch_size, data.threads, data.prefetch_batches
  return evaluate.batches(split, size, data.eval_short_side, *work)
