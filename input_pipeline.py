"""From a data set's name to batches.

Global batch n is a pure function of (seed, n, batch size): the same bytes for
any number of hosts, threads and workers, and after any restart, so that there
is no iterator to save. Shuffling, repetition and augmentation act on single
records by their place in the endless shuffled sequence; that is then cut into
pieces of `batch_size / hosts`, and host p of P takes pieces p, p + P, p + 2P...
"""

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any, cast

import grain
import jax
import numpy as np
from absl import flags

from mixer import config as config_lib
from mixer import fewshot, preprocess
from mixer.datasets import split as split_lib

Split = split_lib.Split
Batch = dict[str, np.ndarray]


class _Purpose(enum.IntEnum):
  """What a seed is for; numbers apart from each other, never renumbered."""

  SHUFFLE = 100
  AUGMENT = 101


def _seed(seed: int, purpose: _Purpose) -> int:
  state = np.random.SeedSequence((seed, purpose)).generate_state(1)
  return int(state[0])


def open_splits(config: config_lib.Config) -> tuple[Split, Split]:
  """The training and the evaluation examples that the config names.

  Raises:
    UserError: see `mixer.datasets.split.open_split`; or their classes differ.
  """
  d = config.data
  train = split_lib.open_split(d.name, d.train_split, d.data_dir)
  if d.examples_per_class:
    train = train.per_class(d.examples_per_class, d.subset_seed)
  return train, split_lib.open_split(d.name, d.eval_split, d.data_dir)


def open_fewshot(config: config_lib.Config) -> fewshot.Task | None:
  """The few-shot evaluation that the config wants, if any."""
  f = config.fewshot
  if not f.name:
    return None
  data_dir = config.data.data_dir
  train = split_lib.open_split(f.name, f.train_split, data_dir)
  test = split_lib.open_split(f.name, f.eval_split, data_dir)
  return fewshot.Task(train, test, f.shots, f.seeds, f.l2)


def train_options(config: config_lib.Config) -> preprocess.TrainOptions:
  """The config's augmentation."""
  d = config.data
  randaugment = affine = None
  if d.randaugment_layers:
    randaugment = preprocess.RandAugment(
      d.randaugment_layers, d.randaugment_magnitude
    )
  if d.affine_degrees or d.affine_scale or d.affine_translate:
    affine = preprocess.Affine(
      d.affine_degrees, d.affine_scale, d.affine_translate
    )
  return preprocess.TrainOptions(
    size=(config.image_size, config.image_size),
    crop=d.crop,
    crop_area=(d.crop_area_min, 1.0),
    flip=d.flip,
    randaugment=randaugment,
    affine=affine,
  )


@dataclasses.dataclass(frozen=True)
class _Augment:
  """A record -> an augmented example; picklable, for workers."""

  split: Split
  options: preprocess.TrainOptions

  def __call__(
    self, record: dict[str, Any], rng: np.random.Generator
  ) -> dict[str, Any]:
    try:
      image = preprocess.train(record["image"], rng, self.options)
    except ValueError as e:
      raise self.split.decode_error(record["index"], e) from e
    return {"image": image, "label": np.int32(record["label"])}


@dataclasses.dataclass(frozen=True)
class _Evaluate:
  """An index -> an example, masked out beyond the end of the split."""

  split: Split
  size: int
  short_side: int

  def __call__(self, i: int) -> dict[str, Any]:
    if i >= len(self.split):
      image = np.zeros((self.size, self.size, 3), np.uint8)
      return {"image": image, "label": np.int32(0), "mask": np.bool_(False)}
    record = self.split[i]
    try:
      image = preprocess.evaluation(record["image"], self.size, self.short_side)
    except ValueError as e:
      raise self.split.decode_error(record["index"], e) from e
    label = np.int32(record["label"])
    return {"image": image, "label": label, "mask": np.bool_(True)}


def _iterate(dataset: Any, threads: int, workers: int) -> Iterator[Batch]:
  # A thread makes a whole batch: some batches wait, ready, for the device.
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=threads + 2
  )
  batches = dataset.to_iter_dataset(options)
  if workers:
    # Grain asks absl for flags of its own, parsed only where a program is
    # absl's: defaults do elsewhere.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers)
    )
  return iter(batches)


def train_batches(
  split: Split,
  config: config_lib.Config,
  start_step: int = 0,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Iterator[Batch]:
  """This host's parts of the global batches `start_step`, `start_step` + 1...

  Args:
    split: training examples.
    config: the run's.
    start_step: updates done; update N consumes batch N - 1.
    process_index: p, this host; None: as JAX says.
    process_count: P; None: as JAX says.

  Yields:
    `image` uint8 `[B / P, H, W, 3]`, `label` int32 `[B / P]`; without end.

  Raises:
    UserError: a record can't be decoded.
  """
  p = jax.process_index() if process_index is None else process_index
  count = jax.process_count() if process_count is None else process_count
  dataset = (
    grain.MapDataset.source(cast(Any, split))
    .shuffle(seed=_seed(config.seed, _Purpose.SHUFFLE))
    .repeat()
    .random_map(
      _Augment(split, train_options(config)),
      seed=_seed(config.seed, _Purpose.AUGMENT),
    )
    .batch(config.batch_size // count)
  )
  dataset = dataset[start_step * count + p :: count]
  return _iterate(dataset, config.data.threads, config.data.workers)


def eval_batches(
  split: Split,
  config: config_lib.Config,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Iterator[Batch]:
  """This host's parts of batches that hold every example exactly once.

  The last batch is filled up with examples whose `mask` is False, so that all
  hosts see equally many batches of equal size.

  Args:
    split: to be evaluated.
    config: the run's.
    process_index: p, this host; None: as JAX says.
    process_count: P; None: as JAX says.

  Yields:
    `image` uint8 `[B / P, H, W, 3]`, `label` int32, `mask` bool `[B / P]`.

  Raises:
    UserError: a record can't be decoded.
  """
  p = jax.process_index() if process_index is None else process_index
  count = jax.process_count() if process_count is None else process_count
  padded = -(-len(split) // config.batch_size) * config.batch_size
  load = _Evaluate(split, config.image_size, config.data.eval_short_side)
  dataset = (
    grain.MapDataset.range(padded).map(load).batch(config.batch_size // count)
  )
  return _iterate(dataset[p::count], config.data.threads, workers=0)
