"""Classes of ImageNet, against facts that were not read from our own file."""

import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mixer.datasets import wordnet
from mixer.errors import UserError

_TEDDY = "n04399382"
# The papers' and the releases' own counts.
_COUNTS = {"head": 21_843, "fall11": 21_841, "fall11_p": 11_221}
_COUNTS |= {"winter21_p": 10_450, "imagenet1k": 1000}


def tfds_labels(path: str) -> list[str]:
  return tfds.core.tfds_path(path).read_text().split()


def test_which_list_is_part_of_which():
  lists = {name: {*wordnet.classes(name)} for name in wordnet.LISTS}
  assert {name: len(ids) for name, ids in lists.items()} == _COUNTS
  for name in lists:
    ids = wordnet.classes(name)
    assert list(ids) == sorted(ids)  # The order of folders.
    assert all(re.fullmatch(r"n\d{8}", i) for i in ids)
  assert lists["head"] - lists["fall11"] == {"n03931044", "n09859684"}
  assert lists["winter21_p"] < lists["fall11_p"] < lists["fall11"]
  assert lists["fall11"] < lists["head"]
  # All but one: users who map ImageNet-1k to the head have to know.
  assert lists["imagenet1k"] - lists["head"] == {_TEDDY}
  labels = tfds_labels("datasets/imagenet2012/labels.txt")
  assert list(wordnet.classes("imagenet1k")) == labels


def test_places_and_definitions_that_are_known():
  for name, index, wnid, lemma in (
    # Numbers that everybody's tables of ImageNet-1k have.
    ("imagenet1k", 0, "n01440764", "tench"),
    ("imagenet1k", 850, _TEDDY, "teddy"),
    ("imagenet1k", 999, "n15075141", "toilet tissue"),
    # The two that the head has and fall11 has not.
    ("head", 9205, "n03931044", "picture"),
    ("head", 15_027, "n09859684", "bleacher"),
    ("fall11", 0, "n00004475", "organism"),
    ("fall11_p", 0, "n00005787", "benthos"),
  ):
    assert wordnet.classes(name)[index] == wnid
    assert wordnet.describe(wnid).lemmas[0] == lemma
  dog = wordnet.describe("n02084071")  # As WordNet's own browser shows it.
  assert dog.lemmas == ("dog", "domestic dog", "Canis familiaris")
  assert dog.kind == "canine"
  assert dog.definition.startswith("a member of the genus Canis (probably desc")
  for wnid in {*wordnet.classes("head"), *wordnet.classes("imagenet1k")}:
    synset = wordnet.describe(wnid)
    assert all(synset) and all(synset.lemmas)
    assert not {'"', "|", "\t"} & {*synset.definition}


def test_names_tell_classes_apart_and_are_no_longer_than_they_need_be():
  for name, count in _COUNTS.items():
    names = wordnet.names(name)
    assert len({n.casefold() for n in names}) == count
    for wnid, text in zip(wordnet.classes(name), names, strict=True):
      assert text.startswith(wordnet.describe(wnid).lemmas[0])
  assert [n for n in wordnet.names("imagenet1k") if "(" in n] == [
    *("crane (wading bird)", "Cardigan (corgi)", "cardigan (sweater)"),
    *("crane (lifting device)", "maillot (tights)", "maillot (swimsuit)"),
  ]
  assert wordnet.names(["n02012849"]) == ("crane",) and not wordnet.names([])
  # Of the same kind: another lemma; without one: the id.
  for ids, names in (
    ("n01558993 n01562265", "robin (American robin),robin (redbreast)"),
    ("n02077658 n02077152", "fur seal (n02077658),fur seal (n02077152)"),
  ):
    assert wordnet.names(ids.split()) == tuple(names.split(","))


def test_columns_of_the_head_and_what_is_not_known():
  head = np.array(wordnet.classes("head"))
  for name in ("head", "fall11", "fall11_p", "winter21_p"):
    columns = wordnet.head_indices(name)
    assert columns.dtype == np.int32
    assert head[columns].tolist() == list(wordnet.classes(name))
  # TFDS's imagenet_resized has the order of the challenge's own tools.
  labels = tfds_labels("image_classification/imagenet_resized_labels.txt")
  assert labels != sorted(labels)
  columns = wordnet.head_indices(iter(labels), allow_missing=True)
  for column, label in zip(columns, labels, strict=True):
    assert column == -1 if label == _TEDDY else head[column] == label
  for use, argument, what in (
    (
      wordnet.head_indices,
      "imagenet1k",
      f"lacks 1 of 1000 .*'{_TEDDY}'; leave",
    ),
    (wordnet.names, ["n90000000"], "n90000000"),
    (wordnet.classes, "HEAD", "no list of classes is named 'HEAD'; .*'head'"),
  ):
    with pytest.raises(UserError, match=what):
      use(argument)
