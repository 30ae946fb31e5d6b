import hashlib
import itertools

import numpy as np
import pytest

import input_pipeline
from mixer.datasets import split as split_lib
from mixer.errors import UserError

STEPS = 5


def digest(batch):
  sha = hashlib.sha256()
  for name in sorted(batch):
    sha.update(name.encode())
    sha.update(np.ascontiguousarray(batch[name]).tobytes())
  return sha.hexdigest()


def global_batches(split, config, hosts, start=0, steps=STEPS):
  """The global batches as `hosts` processes make them, put together."""
  parts = [
    list(
      itertools.islice(
        input_pipeline.train_batches(split, config, start, p, hosts), steps
      )
    )
    for p in range(hosts)
  ]
  return [
    {k: np.concatenate([part[n][k] for part in parts]) for k in parts[0][n]}
    for n in range(steps)
  ]


@pytest.fixture
def train_split(smoke_config):
  return input_pipeline.open_splits(smoke_config)[0]


@pytest.fixture
def expected(train_split, smoke_config):
  batches = global_batches(train_split, smoke_config, 1)
  assert len({digest(b) for b in batches}) == STEPS
  return [digest(b) for b in batches]


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_batches_are_the_same_on_any_number_of_hosts(
  train_split, smoke_config, expected, hosts
):
  batches = global_batches(train_split, smoke_config, hosts)
  assert [digest(b) for b in batches] == expected


@pytest.mark.parametrize("start", [1, 3, 4])
@pytest.mark.parametrize("hosts", [1, 2])
def test_batches_are_the_same_from_any_start(
  train_split, smoke_config, expected, start, hosts
):
  batches = global_batches(
    train_split, smoke_config, hosts, start, STEPS - start
  )
  assert [digest(b) for b in batches] == expected[start:]


@pytest.mark.parametrize("threads", [1, 7])
def test_batches_are_the_same_with_any_number_of_threads(
  train_split, smoke_config, expected, threads
):
  smoke_config.data.threads = threads
  batches = global_batches(train_split, smoke_config, 1)
  assert [digest(b) for b in batches] == expected


def test_seeds_and_batch_sizes_make_other_batches(
  train_split, smoke_config, expected
):
  smoke_config.seed = 1
  other = global_batches(train_split, smoke_config, 1)
  assert not {digest(b) for b in other} & set(expected)


def test_epochs_hold_every_example_once_in_another_order(
  train_split, smoke_config
):
  smoke_config.batch_size = 100  # 1400 examples: 14 batches an epoch.
  smoke_config.data.crop = "resize"
  batches = global_batches(train_split, smoke_config, 1, steps=28)
  keys = [image.tobytes() for b in batches for image in b["image"]]
  labels = np.concatenate([b["label"] for b in batches])
  first, second = keys[:1400], keys[1400:]
  assert sorted(first) == sorted(second)
  assert first != second
  np.testing.assert_array_equal(
    np.bincount(labels[:1400]), np.bincount(train_split.labels)
  )


def test_shapes_and_types(train_split, smoke_config):
  batch = next(input_pipeline.train_batches(train_split, smoke_config, 0, 1, 4))
  assert batch["image"].shape == (8, 16, 16, 3)
  assert batch["image"].dtype == np.uint8
  assert batch["label"].shape == (8,)
  assert batch["label"].dtype == np.int32


@pytest.mark.parametrize("hosts", [1, 2, 4])
# Every size up to one more than a batch: the last hosts may have none at all.
@pytest.mark.parametrize("size,batch_size", [(n, 8) for n in range(1, 10)])
def test_evaluation_covers_every_example_once(
  train_split, smoke_config, hosts, size, batch_size
):
  smoke_config.batch_size = batch_size
  part = split_lib.dataclasses.replace(train_split, indices=np.arange(size))
  per_host = [
    list(input_pipeline.eval_batches(part, smoke_config, p, hosts))
    for p in range(hosts)
  ]
  counts = {len(batches) for batches in per_host}
  assert counts == {-(-size // batch_size)}  # All hosts see equally many.
  labels, images = [], []
  for n in range(counts.pop()):
    for batches in per_host:
      batch = batches[n]
      assert batch["mask"].shape == (batch_size // hosts,)
      labels.extend(batch["label"][batch["mask"]])
      images.extend(batch["image"][batch["mask"]])
  np.testing.assert_array_equal(labels, part.labels)
  assert len(images) == size


class Damaged:
  """A data source in which one record is cut off."""

  def __init__(self, source, bad):
    self._source, self._bad = source, bad

  def __len__(self):
    return len(self._source)

  def __getitems__(self, indices):
    records = self._source.__getitems__(indices)
    for i, record in zip(indices, records, strict=True):
      if i == self._bad:
        record["image"] = record["image"][: len(record["image"]) // 2]
    return records


@pytest.mark.parametrize(
  "evaluation,workers", [(True, 0), (False, 0), (False, 1)]
)
def test_a_damaged_record_is_named(
  train_split, smoke_config, evaluation, workers
):
  smoke_config.data.workers = workers
  split = split_lib.dataclasses.replace(
    train_split, source=Damaged(train_split.source, 77)
  )
  make = (
    input_pipeline.eval_batches if evaluation else input_pipeline.train_batches
  )
  with pytest.raises(
    UserError, match="data set digits, split train, record 77 can't be decoded"
  ):
    for _ in itertools.islice(make(split, smoke_config), 44):
      pass


def test_open_splits_takes_the_subset_that_the_config_names(smoke_config):
  smoke_config.data.examples_per_class = 3
  train, evaluation = input_pipeline.open_splits(smoke_config)
  np.testing.assert_array_equal(np.bincount(train.labels), np.full(10, 3))
  assert len(evaluation) == 397


def test_fewshot_is_opened_where_the_config_names_it(smoke_config):
  assert input_pipeline.open_fewshot(smoke_config) is None
  smoke_config.fewshot.name = "digits"
  assert input_pipeline.open_fewshot(smoke_config) is not None
  smoke_config.fewshot.shots = (1000,)
  with pytest.raises(UserError, match=r"1000 are asked for.*fewshot\.shots"):
    input_pipeline.open_fewshot(smoke_config)


@pytest.mark.parametrize(
  "workers",
  [
    4,
    *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3)),
  ],
)
def test_workers_make_the_same_batches(
  train_split, smoke_config, expected, workers
):
  smoke_config.data.workers = workers
  batches = global_batches(train_split, smoke_config, 1)
  assert [digest(b) for b in batches] == expected
