import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import class_matching, model, trained
from mixer.datasets import wordnet
from mixer.errors import UserError


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


def test_equal_classes_need_nothing():
  found = class_matching.match(trained_with(("a", "b")), ["a", "b"], "letters")
  assert found == class_matching.Matching()


@settings(deadline=None)
@given(st.permutations("abcdefg"), st.integers(1, 7))
def test_columns_lead_to_the_same_names(order, count):
  head = tuple("abcdefg")
  classes = tuple(order[:count])
  found = class_matching.match(trained_with(head), classes, "letters")
  if classes == head:
    assert found.columns is None
  else:
    assert found.columns is not None
    assert tuple(head[i] for i in found.columns) == classes
    assert "letters" in found.sentence
  assert found.missing == ()


def test_the_released_head_on_imagenet_1k():
  found = class_matching.match(
    trained_with(wordnet.classes("head")),
    wordnet.classes("imagenet1k"),
    "imagenet2012",
  )
  expected = wordnet.head_indices("imagenet1k", allow_missing=True)
  np.testing.assert_array_equal(found.columns, expected)
  assert found.missing == ("n04399382",)
  assert "of the 21,843 outputs" in found.sentence
  assert "; no output: n04399382, whose" in found.sentence


def test_a_released_head_on_a_part_of_imagenet_1k():
  part = wordnet.classes("imagenet1k")[::5]
  found = class_matching.match(
    trained_with(wordnet.classes("imagenet1k")), part, "imagenet_a"
  )
  np.testing.assert_array_equal(found.columns, np.arange(0, 1000, 5))
  assert "of the 1,000 outputs those of imagenet_a's 200" in found.sentence


@pytest.mark.parametrize(
  ("head", "classes", "words"),
  [
    (
      wordnet.classes("imagenet1k"),
      ["tench", "goldfish"],
      ["1,000 outputs", "2 classes", "2 of these", "'n01440764' there"],
    ),
    # More than one in a hundred, of the head that may lack some.
    (
      wordnet.classes("head"),
      [*wordnet.classes("imagenet1k")[:49], "n04399382"],
      ["1 of these", "'n04399382'"],
    ),
    (("a", "b", "c"), ["a", "c", "d"], ["class 1: 'b' there, 'c' here"]),
    (("a",), ["a", "b"], ["1 outputs", "1 of these"]),
  ],
  ids=["other", "too many", "order", "longer"],
)
def test_other_classes_are_refused(head, classes, words):
  with pytest.raises(UserError) as e:
    class_matching.match(trained_with(head), classes, "mine")
  text = str(e.value)
  for word in ["the checkpoint runs/x", "data set mine", "--fewshot", *words]:
    assert word in text


def test_unknown_classes_are_refused_unless_they_are_said_to_be_the_same():
  unknown = trained_with(None, 2)
  with pytest.raises(UserError, match="add --same_classes"):
    class_matching.match(unknown, ["a", "b"], "letters")
  found = class_matching.match(unknown, ["a", "b"], "letters", same=True)
  assert (found.columns, found.missing) == (None, ())
  assert found.sentence
  with pytest.raises(UserError, match="2 outputs, and data set letters 3"):
    class_matching.match(unknown, ["a", "b", "c"], "letters", same=True)


def test_without_a_head():
  bare = dataclasses.replace(trained_with(None), class_names=None)
  with pytest.raises(UserError, match="has no head.*--fewshot"):
    class_matching.match(bare, ["a"], "letters")
