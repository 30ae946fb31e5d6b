"""Batches are a function of the seed, their number and their size."""

import dataclasses
import hashlib
import itertools

import jax
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_sample_weight

import input_pipeline
from mixer.datasets import split as split_lib
from mixer.errors import UserError

STEPS = 5


def digest(batch):
  sha = hashlib.sha256()
  for name in sorted(batch):
    sha.update(name.encode())
    sha.update(np.ascontiguousarray(batch[name]).tobytes())
  return sha.hexdigest()[:12]


@pytest.fixture
def on_hosts(monkeypatch):
  """What each of several hosts makes; the hosts are all this process."""

  def make(count, function, *args):
    found = []
    for p in range(count):
      with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: count)
        patch.setattr(jax, "process_index", lambda p=p: p)
        found.append(function(*args))
    return found

  return make


@pytest.fixture
def train(smoke_config, on_hosts):
  """Makes global batches, put together of what the hosts make."""
  split, _ = input_pipeline.open_splits(smoke_config)

  def make(hosts=1, start=0, steps=STEPS):
    made = on_hosts(
      hosts, input_pipeline.train_batches, split, smoke_config, start
    )
    parts = zip(*(itertools.islice(b, steps) for b in made), strict=True)
    return [
      {k: np.concatenate([batch[k] for batch in part]) for k in part[0]}
      for part in parts
    ]

  return make


# Of the bytes that all versions have made.
_FIRST = "e5edafb2d2ea"


@pytest.mark.parametrize(
  ("hosts", "start", "threads"),
  [(2, 0, 16), (8, 0, 16), (1, 3, 1), (4, 1, 7)],
)
def test_batches_are_a_function_of_seed_number_and_size(
  train, smoke_config, hosts, start, threads
):
  expected = [digest(b) for b in train()]
  assert expected[0] == _FIRST and len({*expected}) == STEPS
  smoke_config.data.threads = threads
  batches = train(hosts, start, STEPS - start)
  assert [digest(b) for b in batches] == expected[start:]
  smoke_config.seed = 1
  assert digest(train(steps=1)[0]) not in expected


def test_epochs_hold_every_example_once_in_another_order(train, smoke_config):
  smoke_config.batch_size = 100  # 1400 examples: 14 batches an epoch.
  smoke_config.data.crop = "resize"
  batches = train(steps=28)
  keys = [image.tobytes() for b in batches for image in b["image"]]
  assert sorted(keys[:1400]) == sorted(keys[1400:])
  assert keys[:1400] != keys[1400:]
  split, _ = input_pipeline.open_splits(smoke_config)
  labels = np.concatenate([b["label"] for b in batches[:14]])
  np.testing.assert_array_equal(np.bincount(labels), np.bincount(split.labels))
  # Records are those of an update.
  records = input_pipeline.train_records(split, smoke_config, 3)
  np.testing.assert_array_equal(split.labels[records], batches[2]["label"])


@pytest.mark.parametrize("hosts", [1, 2, 4])
# The last hosts may have no example at all.
@pytest.mark.parametrize("size", [1, 3, 8, 9])
def test_evaluation_covers_every_example_once(
  smoke_config, on_hosts, hosts, size
):
  smoke_config.batch_size = 8
  split, _ = input_pipeline.open_splits(smoke_config)
  part = split_lib.dataclasses.replace(split, indices=np.arange(size))
  made = on_hosts(hosts, input_pipeline.eval_batches, part, smoke_config)
  labels = []
  # All hosts see equally many.
  for batches in zip(*made, strict=True):
    for batch in batches:
      assert batch["image"].shape == (8 // hosts, 16, 16, 3)
      assert batch["mask"].shape == batch["label"].shape == (8 // hosts,)
      assert (batch["image"].dtype, batch["label"].dtype) == ("u1", "i4")
      assert not batch["image"][~batch["mask"]].any()
      labels.extend(batch["label"][batch["mask"]])
  np.testing.assert_array_equal(labels, part.labels)


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
def test_a_damaged_record_is_named(smoke_config, make):
  split, _ = input_pipeline.open_splits(smoke_config)
  split = split_lib.dataclasses.replace(split, source=Damaged(split.source, 77))
  with pytest.raises(
    UserError, match="data set digits, split train, record 77 can't be decoded"
  ):
    for _ in itertools.islice(make(split, smoke_config), 44):
      pass


def test_images_of_a_small_set_are_decoded_once(smoke_config):
  split, _ = input_pipeline.open_splits(smoke_config)
  asked: list[int] = []

  class Counted:
    def __len__(self):
      return len(split.source)

    def __getitems__(self, indices):
      asked.extend(indices)
      return split.source.__getitems__(indices)

  def images(of):
    batches = input_pipeline.eval_batches(of, smoke_config)
    return np.concatenate([b["image"][b["mask"]] for b in batches])

  counted = dataclasses.replace(split, source=Counted(), kept={})
  plain = images(dataclasses.replace(split, kept=None))
  for _ in range(2):
    np.testing.assert_array_equal(images(counted), plain)
  assert sorted(asked) == [*range(len(split))]


def test_splits_and_few_shots_are_those_of_the_config(smoke_config):
  smoke_config.data.examples_per_class = 3
  train, evaluation = input_pipeline.open_splits(smoke_config)
  np.testing.assert_array_equal(np.bincount(train.labels), np.full(10, 3))
  assert len(evaluation) == 397
  assert input_pipeline.open_fewshot(smoke_config) is None
  smoke_config.fewshot.name = "digits"
  assert input_pipeline.open_fewshot(smoke_config) is not None
  smoke_config.fewshot.shots = (1000,)
  with pytest.raises(UserError, match=r"1000 are asked for.*fewshot\.shots"):
    input_pipeline.open_fewshot(smoke_config)


def test_weights_of_balanced_classes_are_scikit_learns(smoke_config):
  # Of unequal classes, one of them without an example.
  whole = split_lib.open_split("digits", "train", smoke_config.data.data_dir)
  label = whole.labels
  keep = np.flatnonzero((label != 3) & (np.arange(len(label)) % 12 >= label))
  split = dataclasses.replace(whole, indices=keep)
  smoke_config.batch_size, smoke_config.loss.class_weights = 8, "balanced"
  balanced = compute_sample_weight("balanced", split.labels)
  expected = dict(zip(split.labels.tolist(), balanced.tolist(), strict=True))
  assert balanced.mean() == pytest.approx(1) and max(balanced) > 1.5
  batches = input_pipeline.train_batches(split, smoke_config)
  for batch in itertools.islice(batches, 3):
    assert batch["weight"].dtype == np.float32
    want = [expected[k] for k in batch["label"].tolist()]
    np.testing.assert_allclose(batch["weight"], want, rtol=1e-6)
