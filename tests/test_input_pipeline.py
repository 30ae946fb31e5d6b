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


@pytest.mark.parametrize(
  ("hosts", "start", "threads"),
  [(2, 0, 16), (8, 0, 16), (1, 3, 1), (4, 1, 7)],
)
def test_batches_are_a_function_of_seed_number_and_size(
  train_split, smoke_config, expected, hosts, start, threads
):
  smoke_config.data.threads = threads
  batches = global_batches(
    train_split, smoke_config, hosts, start, STEPS - start
  )
  assert [digest(b) for b in batches] == expected[start:]
  # The bytes that all versions have made.
  assert expected[0][:12] == "e5edafb2d2ea"
  smoke_config.seed = 1
  (other,) = global_batches(train_split, smoke_config, 1, steps=1)
  assert digest(other) not in expected


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


@pytest.mark.parametrize("hosts", [1, 2, 4])
# The last hosts may have no example at all.
@pytest.mark.parametrize("size", [1, 3, 8, 9])
def test_evaluation_covers_every_example_once(
  train_split, smoke_config, hosts, size
):
  smoke_config.batch_size = batch_size = 8
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
      assert batch["image"].shape == (batch_size // hosts, 16, 16, 3)
      assert batch["image"].dtype == np.uint8
      assert batch["label"].dtype == np.int32
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
  "make", [input_pipeline.eval_batches, input_pipeline.train_batches]
)
def test_a_damaged_record_is_named(train_split, smoke_config, make):
  split = split_lib.dataclasses.replace(
    train_split, source=Damaged(train_split.source, 77)
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
