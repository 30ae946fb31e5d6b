"""How far two models are apart."""

import dataclasses

import numpy as np
import pytest

from mixer.errors import UserError
from mixer.exporting import verification
from tests import reference
from tests.exporting import models


def outputs(logits, features=((1.0, 2.0),)):
  features = np.asarray(features, np.float32)
  return verification.Outputs(features, np.asarray(logits, np.float32))


def compare(ours, theirs, bound=1e-4):
  return verification.compare(ours, theirs, "something 1.0", bound)


def test_relative_is_to_the_largest_magnitude():
  ours, theirs = outputs([[-8.0, 4.0], [1, 2]]), outputs([[-8.0, 4.5], [3, 2]])
  found = compare(ours, theirs)
  features, logits = found.differences
  assert (features.absolute, features.relative) == (0, 0)
  assert (logits.absolute, logits.relative) == (2, 0.25)
  assert (found.agree, found.images) == (1, 1)
  assert not found.sound
  assert compare(ours, theirs, bound=0.25).sound


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_number_is_never_sound(bad):
  assert not compare(outputs([[1.0, 2.0]]), outputs([[1.0, bad]])).sound
  assert not compare(outputs([[1.0, bad]]), outputs([[1.0, 2.0]])).sound


def test_a_head_of_zeros():
  zero = outputs([[0.0, 0.0]])
  assert compare(zero, zero).sound
  assert not compare(zero, outputs([[0.0, 1e-9]])).sound


def test_other_shapes():
  with pytest.raises(UserError, match=r"logits of the shape \(1, 2\), not"):
    compare(outputs([[1.0, 2.0, 3.0]]), outputs([[1.0, 2.0]]))


def test_equal_bits_are_asked_for():
  other = outputs([[1.0, np.nextafter(np.float32(2), np.float32(3))]])
  found = compare(outputs([[1.0, 2.0]]), other, bound=0.0)
  assert not found.sound
  with pytest.raises(UserError) as caught:
    verification.check(found, models.make())
  assert "runs/a computes something else in something 1.0" in str(caught.value)
  assert "logits differ by 1.2e-07" in str(caught.value)


def test_the_table():
  text = verification.table(
    compare(outputs([[1.0, 2.0]]), outputs([[1.0, 2.5]])), [1, 5, 3]
  )
  first, head, features, logits, top = text.split("\n")
  assert first == (
    "compared on 1 images, in batches of 1, 5 and 3: mixer and something 1.0"
  )
  assert head.split() == ["absolute", "relative", "bound"]
  assert features.split() == ["features", "0.0e+00", "0.0e+00", "1e-04"]
  assert logits.split() == ["logits", "5.0e-01", "2.5e-01", "1e-04"]
  assert len(head) == len(features) == len(logits)
  assert top.split() == ["top-1", "1", "of", "1", "agree"]


def test_images_come_in_two_sizes_of_batch():
  takes = models.make()
  for made in (
    verification.batches(verification.random_images((8, 12)), takes),
    verification.batches([np.zeros((8, 12, 3), np.uint8)], takes),
    verification.batches(
      [np.full((8, 12, 3), k, np.uint8) for k in range(20)], takes
    ),
  ):
    assert all(b.dtype == np.uint8 and b.shape[1:] == (8, 12, 3) for b in made)
    sizes = [len(b) for b in made]
    assert sizes[0] == 1 and max(sizes) > 1
  assert sum(sizes) == 20
  np.testing.assert_array_equal(np.concatenate(made)[:, 0, 0, 0], np.arange(20))
  images = np.concatenate(models.batches(takes))
  assert {*images.min(axis=(1, 2, 3))} >= {0, 255}
  assert len(np.unique(images, axis=0)) == 6


@pytest.mark.parametrize("dtype", ["", "float32"])
def test_outputs_are_the_models(dtype):
  model = models.make(dtype="bfloat16" if dtype else "float32")
  batches = models.batches(model)
  found = verification.outputs(model, batches, dtype)
  x = np.concatenate(batches).astype(np.float64) / 127.5 - 1
  wanted = reference.forward(model.params, x)
  np.testing.assert_allclose(found.logits, wanted, atol=2e-5)
  assert dataclasses.replace(found, logits=None).features.shape == (6, 8)
