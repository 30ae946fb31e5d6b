import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import class_matching, model, trained
from mixer.datasets import wordnet
from mixer.errors import UserError

HEAD, IMAGENET = wordnet.classes("head"), wordnet.classes("imagenet1k")


def trained_with(class_ids, num_classes=None):
  k = len(class_ids or ()) if num_classes is None else num_classes
  return trained.Trained(
    module=model.MlpMixer(4, 1, 8, 4, 8, num_classes=k),
    params={},
    image_size=(8, 8),
    short_side=8,
    class_ids=class_ids,
    class_names=class_ids,
    loss="softmax",
    source="runs/x",
    origin="runs/x",
  )


@settings(deadline=None)
@given(st.permutations("abcdefg"), st.integers(1, 7))
def test_columns_lead_to_the_same_names(order, count):
  head, classes = tuple("abcdefg"), tuple(order[:count])
  found = class_matching.match(trained_with(head), classes, "letters")
  if classes == head:
    assert found == class_matching.Matching()
  else:
    assert tuple(head[i] for i in found.columns) == classes
    assert "letters" in found.sentence and found.missing == ()


def test_the_released_head_lacks_one_class_of_imagenet_1k():
  found = class_matching.match(trained_with(HEAD), IMAGENET, "imagenet2012")
  expected = wordnet.head_indices("imagenet1k", allow_missing=True)
  np.testing.assert_array_equal(found.columns, expected)
  assert found.missing == ("n04399382",)
  assert "of the 21,843 outputs" in found.sentence
  assert "; no output: n04399382, whose" in found.sentence


@pytest.mark.parametrize(
  ("head", "classes", "words"),
  [
    (IMAGENET, ["tench", "goldfish"], ["1,000 outputs", "2 of these"]),
    # More than one in a hundred, of the head that may lack some.
    (HEAD, [*IMAGENET[:49], "n04399382"], ["1 of these", "'n04399382'"]),
    (("a", "b", "c"), ["a", "c", "d"], ["class 1: 'b' there, 'c' here"]),
    (("a",), ["a", "b"], ["1 outputs", "1 of these"]),
  ],
  ids=["other", "too many", "order", "longer"],
)
def test_other_classes_are_refused(head, classes, words):
  with pytest.raises(UserError) as e:
    class_matching.match(trained_with(head), classes, "mine")
  for word in ["the checkpoint runs/x", "data set mine", "--fewshot", *words]:
    assert word in str(e.value)


def test_unknown_classes_are_refused_unless_they_are_said_to_be_the_same():
  unknown = trained_with(None, 2)
  with pytest.raises(UserError, match="add --same_classes"):
    class_matching.match(unknown, ["a", "b"], "letters")
  found = class_matching.match(unknown, ["a", "b"], "letters", same=True)
  assert found.columns is None and found.sentence
  with pytest.raises(UserError, match="2 outputs, and data set letters 3"):
    class_matching.match(unknown, ["a", "b", "c"], "letters", same=True)
  bare = dataclasses.replace(trained_with(None), class_names=None)
  with pytest.raises(UserError, match="has no head.*--fewshot"):
    class_matching.match(bare, ["a"], "letters")
