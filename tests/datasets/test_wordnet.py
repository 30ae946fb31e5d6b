"""Classes of ImageNet, against facts that were not read from our own file."""

import pathlib
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from mixer.datasets import wordnet
from mixer.errors import UserError

_FOLDER = pathlib.Path(wordnet.__file__).parent / "labels"
_TEDDY = "n04399382"

# The papers' and the releases' own counts.
_COUNTS = {
  "head": 21_843,
  "fall11": 21_841,
  "fall11_p": 11_221,
  "winter21_p": 10_450,
  "imagenet1k": 1000,
}


def tfds_labels(path: str) -> list[str]:
  return tfds.core.tfds_path(path).read_text().split()


@pytest.mark.parametrize("name", _COUNTS)
def test_lists_have_their_size_and_the_order_of_folders(name):
  ids = wordnet.classes(name)
  assert len(ids) == _COUNTS[name]
  assert list(ids) == sorted({*ids})
  assert all(re.fullmatch(r"n\d{8}", i) for i in ids)


def test_imagenet1k_has_the_labels_of_tfds():
  labels = tfds_labels("datasets/imagenet2012/labels.txt")
  assert list(wordnet.classes("imagenet1k")) == labels


@pytest.mark.parametrize(
  ("name", "index", "wnid", "lemma"),
  [
    # Numbers that everybody's tables of ImageNet-1k have.
    ("imagenet1k", 0, "n01440764", "tench"),
    ("imagenet1k", 1, "n01443537", "goldfish"),
    ("imagenet1k", 134, "n02012849", "crane"),
    ("imagenet1k", 207, "n02099601", "golden retriever"),
    ("imagenet1k", 281, "n02123045", "tabby"),
    ("imagenet1k", 517, "n03126707", "crane"),
    ("imagenet1k", 850, _TEDDY, "teddy"),
    ("imagenet1k", 999, "n15075141", "toilet tissue"),
    # The two that the head has and fall11 has not.
    ("head", 9205, "n03931044", "picture"),
    ("head", 15_027, "n09859684", "bleacher"),
    ("head", 0, "n00004475", "organism"),
    ("fall11", 0, "n00004475", "organism"),
    ("fall11_p", 0, "n00005787", "benthos"),
  ],
)
def test_places_that_are_known(name, index, wnid, lemma):
  assert wordnet.classes(name)[index] == wnid
  assert wordnet.describe(wnid).lemmas[0] == lemma


def test_which_list_is_part_of_which():
  lists = {name: {*wordnet.classes(name)} for name in wordnet.LISTS}
  assert lists["head"] - lists["fall11"] == {"n03931044", "n09859684"}
  assert lists["fall11"] < lists["head"]
  assert lists["winter21_p"] < lists["fall11_p"] < lists["fall11"]
  # All but one: users who map ImageNet-1k to the head have to know.
  assert lists["imagenet1k"] - lists["head"] == {_TEDDY}
  # ImageNet-21K-P left small classes out, eight dogs and seals among them.
  for name in ("fall11_p", "winter21_p"):
    assert len(lists["imagenet1k"] - lists[name]) == 9


@pytest.mark.parametrize(
  ("wnid", "lemmas", "definition", "kind"),
  [
    # As WordNet's own browser shows them.
    (
      "n02084071",
      ("dog", "domestic dog", "Canis familiaris"),
      "a member of the genus Canis (probably descended from the common wolf) "
      "that has been domesticated by man since prehistoric times; occurs in "
      "many breeds",
      "canine",
    ),
    (
      "n02958343",
      ("car", "auto", "automobile", "machine", "motorcar"),
      "a motor vehicle with four wheels; usually propelled by an internal "
      "combustion engine",
      "motor vehicle",
    ),
    ("n07753592", ("banana",), None, "edible fruit"),
    ("n09859684", ("bleacher",), None, "worker"),
  ],
)
def test_descriptions(wnid, lemmas, definition, kind):
  got = wordnet.describe(wnid)
  assert (got.wnid, got.lemmas, got.kind) == (wnid, lemmas, kind)
  assert got.definition == (definition or got.definition)


def test_every_class_is_described():
  for wnid in {*wordnet.classes("head"), *wordnet.classes("imagenet1k")}:
    synset = wordnet.describe(wnid)
    assert all(synset) and all(synset.lemmas)
    assert not {'"', "|", "\t"} & {*synset.definition}
    assert "_" not in "".join(synset.lemmas)


@pytest.mark.parametrize("name", _COUNTS)
def test_names_tell_classes_apart(name):
  names = wordnet.names(name)
  assert len({n.casefold() for n in names}) == _COUNTS[name]
  for wnid, text in zip(wordnet.classes(name), names, strict=True):
    assert text.startswith(wordnet.describe(wnid).lemmas[0])


def test_names_are_no_longer_than_they_need_be():
  assert [n for n in wordnet.names("imagenet1k") if "(" in n] == [
    "crane (wading bird)",
    "Cardigan (corgi)",
    "cardigan (sweater)",
    "crane (lifting device)",
    "maillot (tights)",
    "maillot (swimsuit)",
  ]
  assert wordnet.names(["n02012849"]) == ("crane",)
  # Of the same kind: another lemma; without one: the id.
  assert wordnet.names(["n01558993", "n01562265"]) == (
    "robin (American robin)",
    "robin (redbreast)",
  )
  assert wordnet.names(["n02077658", "n02077152"]) == (
    "fur seal (n02077658)",
    "fur seal (n02077152)",
  )
  assert wordnet.names([]) == ()


@given(st.data())
def test_names_of_any_classes_tell_them_apart(data):
  pool = wordnet.classes("head")[:3000]
  ids = data.draw(st.lists(st.sampled_from(pool), unique=True, max_size=300))
  assert len({*wordnet.names(ids)}) == len(ids)


@pytest.mark.parametrize("name", ["head", "fall11", "fall11_p", "winter21_p"])
def test_head_indices_invert(name):
  head, ids = np.array(wordnet.classes("head")), wordnet.classes(name)
  columns = wordnet.head_indices(name)
  assert columns.dtype == np.int32 and columns.shape == (len(ids),)
  assert head[columns].tolist() == list(ids)
  np.testing.assert_array_equal(columns, wordnet.head_indices(ids))
  if name == "fall11":
    assert {*range(21_843)} - {*columns.tolist()} == {9205, 15_027}


@given(st.lists(st.integers(0, 21_842)))
def test_head_indices_of_any_sequence(columns):
  head = wordnet.classes("head")
  ids = [head[c] for c in columns]
  assert wordnet.head_indices(ids).tolist() == columns


def test_head_indices_of_a_set_in_another_order():
  # TFDS's imagenet_resized has the order of the challenge's own tools.
  labels = tfds_labels("image_classification/imagenet_resized_labels.txt")
  assert labels != sorted(labels)
  columns = wordnet.head_indices(labels, allow_missing=True)
  assert (columns < 0).sum() == 1 and columns[labels.index(_TEDDY)] == -1
  head = wordnet.classes("head")
  assert all(
    head[c] == i for c, i in zip(columns, labels, strict=True) if i != _TEDDY
  )


def test_a_class_without_a_column_is_refused():
  with pytest.raises(UserError) as caught:
    wordnet.head_indices("imagenet1k")
  assert str(caught.value).startswith(
    "1 of 1,000 classes have no column in the 21,843-way head of the released "
    "checkpoints: n04399382. "
  )
  columns = wordnet.head_indices("imagenet1k", allow_missing=True)
  assert np.flatnonzero(columns < 0).tolist() == [850]


def test_what_is_not_known_is_named():
  ids = [f"n9{i:07}" for i in range(12)]
  for use in (wordnet.head_indices, wordnet.names):
    with pytest.raises(UserError, match="n90000000"):
      use(["n02084071", *ids])
  with pytest.raises(UserError, match="n90000009 and 2 more"):
    wordnet.head_indices(ids)
  for use in (wordnet.classes, wordnet.names, wordnet.head_indices):
    with pytest.raises(
      UserError, match="no list of classes named 'HEAD'; ther"
    ):
      use("HEAD")
  for wnid in ("", "dog", "n00001740", "n2084071"):
    with pytest.raises(UserError, match=f"has the id {wnid!r}"):
      wordnet.describe(wnid)


def test_names_of_a_class_that_is_there_twice():
  with pytest.raises(UserError, match="^the class n02084071 is there twice"):
    wordnet.names(["n02084071", "n02012849", "n02084071"])


def test_the_licence_is_beside_the_file():
  licence = (_FOLDER / "LICENSE-WordNet.txt").read_text()
  assert "WordNet 3.0 Copyright 2006 by Princeton University." in licence
  readme = (_FOLDER / "README.md").read_text()
  for name, letter in wordnet.LISTS.items():
    assert f"`{letter}` {name}" in readme
