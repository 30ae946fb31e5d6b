"""ImageNet's classes: WordNet ids, names, and columns of the released head.

A class is a synset (a set of synonyms) of WordNet 3.0, named by "n" and its
8-digit offset in WordNet's file of nouns; prepared data sets use these ids as
class names. Names and definitions are WordNet's, Copyright 2006 by Princeton
University (labels/LICENSE-WordNet.txt; labels/README.md says more).
"""

import functools
import gzip
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mixer.errors import UserError

# Lists of classes, each in the order of its ids, which is that of labels in a
# set of one folder a class -> the list's letter in the file. All classes but
# the teddy bear of ImageNet-1k, n04399382, are in the head.
LISTS = {
  # 21,843 outputs of the released ImageNet-21k checkpoints: fall11, n03931044
  # (picture) and n09859684 (bleacher).
  "head": "h",
  "fall11": "f",  # 21,841: all of ImageNet, as released in fall 2011.
  "fall11_p": "p",  # 11,221: ImageNet-21K-P (arXiv 2104.10972), from fall11.
  "winter21_p": "w",  # 10,450: the same, from the release of winter 2021.
  "imagenet1k": "i",  # 1,000: the challenge of 2012; TFDS's `imagenet2012`.
}
_FILE = pathlib.Path(__file__).parent / "labels" / "synsets.txt.gz"


class Synset(NamedTuple):
  """What WordNet says about a class."""

  wnid: str  # As "n02012849".
  lists: str  # The letters of those that contain it.
  kind: str  # The first lemma of its hypernym, as "wading bird".
  lemmas: tuple[str, ...]  # Synonyms, as ("crane",), the most usual first.
  definition: str  # Without WordNet's examples of usage.


@functools.cache
def _table() -> dict[str, Synset]:
  with gzip.open(_FILE, "rt", encoding="ascii") as f:
    rows = [line.rstrip("\n").split("\t") for line in f][1:]
  return {
    wnid: Synset(wnid, lists, kind, tuple(lemmas.split("|")), definition)
    for wnid, lists, kind, lemmas, definition in rows
  }


@functools.cache
def classes(name: str) -> tuple[str, ...]:
  """The ids of one of `LISTS`, in the order of its labels."""
  if name not in LISTS:
    raise UserError(f"no list of classes is named {name!r}; {[*LISTS]} are.")
  return tuple(s.wnid for s in _table().values() if LISTS[name] in s.lists)


def describe(wnid: str) -> Synset:
  """Names and definition of a class of any list."""
  if wnid not in _table():
    raise UserError(
      f"no class of ImageNet has the id {wnid!r}; ids look like 'n02084071'."
    )
  return _table()[wnid]


def names(which: str | Sequence[str]) -> tuple[str, ...]:
  """A name for people for each class of a list, unlike every other one's.

  That is its first lemma. Classes that share it (in upper or lower case) get in
  brackets their hypernym ("crane (wading bird)"); where that is shared too,
  another lemma ("robin (American robin)"); and the id where there is none.
  """
  synsets = [describe(i) for i in _ids(which)]
  result = [s.lemmas[0] for s in synsets]
  for attempt in (
    lambda s: s.kind,
    lambda s: "".join(s.lemmas[1:2]),
    lambda s: s.wnid,
  ):
    count = Counter(name.casefold() for name in result)
    for i, synset in enumerate(synsets):
      if count[result[i].casefold()] > 1 and attempt(synset):
        result[i] = f"{synset.lemmas[0]} ({attempt(synset)})"
  return tuple(result)


def head_indices(
  which: str | Iterable[str], *, allow_missing: bool = False
) -> np.ndarray:
  """int32 `[K]`: each class's column of the released 21,843-way head.

  `logits[:, head_indices(ids)]` are the logits of a data set with the classes
  `ids`; `head_indices(ids)[labels]` are its labels for that head. A class that
  the head lacks is a UserError, or -1 with `allow_missing`.
  """
  columns = {wnid: i for i, wnid in enumerate(classes("head"))}
  ids = _ids(which)
  missing = [i for i in ids if i not in columns]
  if missing and not allow_missing:
    raise UserError(
      f"the head of the released checkpoints lacks {len(missing)} of "
      f"{len(ids)} classes, such as {missing[0]!r}; leave them out."
    )
  return np.array([columns.get(i, -1) for i in ids], np.int32)


def _ids(which: str | Iterable[str]) -> tuple[str, ...]:
  return classes(which) if isinstance(which, str) else tuple(which)
