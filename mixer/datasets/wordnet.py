"""ImageNet's classes: WordNet ids, names, and columns of the released head.

A class of ImageNet is a synset (a set of synonyms) of WordNet 3.0, named by
"n" and its 8-digit place in WordNet's file of nouns. Prepared data sets use
these ids as class names. The lists that are known here, each in the order of
its ids, which is the order of labels in a set of one folder a class:

  head         21,843  outputs of the released ImageNet-21k checkpoints: fall11,
                       and n03931044 (picture), n09859684 (bleacher)
  fall11       21,841  all of ImageNet, as released in fall 2011
  fall11_p     11,221  ImageNet-21K-P (arXiv 2104.10972), made from fall11
  winter21_p   10,450  the same, made from the release of winter 2021
  imagenet1k    1,000  the challenge of 2012; TFDS's `imagenet2012`

All but one class are in the head: the teddy bear of ImageNet-1k, n04399382, is
not in fall11. The whole release of winter 2021 (19,167 classes: fall11 less
2,674 of the people) has no list here, as none was found that is published apart
from the images; a set that was prepared from it has the ids as class names.

Names and definitions are WordNet's, Copyright 2006 by Princeton University
(labels/LICENSE-WordNet.txt); labels/README.md says how the file is made.
"""

import functools
import gzip
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mixer.errors import UserError

# List -> its letter in the file.
LISTS = {
  "head": "h",
  "fall11": "f",
  "fall11_p": "p",
  "winter21_p": "w",
  "imagenet1k": "i",
}
_FILE = pathlib.Path(__file__).parent / "labels" / "synsets.txt.gz"


class Synset(NamedTuple):
  """What WordNet says about a class."""

  wnid: str  # As "n02012849".
  lists: str  # The letters of those that it is in.
  kind: str  # The first lemma of what it is a kind of, as "wading bird".
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
    raise UserError(
      f"there is no list of classes named {name!r}; there are "
      + ", ".join(LISTS)
      + ". Ids of your own go in as a sequence, as in ['n02084071']."
    )
  return tuple(s.wnid for s in _table().values() if LISTS[name] in s.lists)


def describe(wnid: str) -> Synset:
  """Names and definition of a class of any list."""
  if wnid not in _table():
    raise UserError(
      f"no class of ImageNet has the id {wnid!r}; ids are those of WordNet "
      f"3.0, as 'n02084071', and {len(_table()):,} of them are known."
    )
  return _table()[wnid]


def names(which: str | Sequence[str]) -> tuple[str, ...]:
  """A name for people for each class, unlike every other one's.

  That is its first lemma. Where classes of the sequence share it (in upper or
  lower case), each gets in brackets what it is a kind of ("crane (wading
  bird)", "crane (lifting device)"); where that is the same too, another lemma
  ("robin (American robin)"); and the id where there is none.

  Raises:
    UserError: an unknown list or id, or an id that is there twice.
  """
  ids = classes(which) if isinstance(which, str) else tuple(which)
  if len({*ids}) < len(ids):
    raise UserError("a class is there twice; names tell classes apart.")
  synsets = [describe(wnid) for wnid in ids]
  result = [s.lemmas[0] for s in synsets]
  # What goes in brackets, most telling first; "" where there is nothing.
  for attempt in (
    lambda s: s.kind,
    lambda s: s.lemmas[1] if len(s.lemmas) > 1 else "",
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
  """The column of the released 21,843-way head for each class.

  `logits[:, head_indices(ids)]` are the logits of a data set whose class names
  are `ids`; `head_indices(ids)[labels]` are its labels for that head.

  `which` is a list's name or any sequence of ids. With `allow_missing` a class
  that the head lacks gets -1: take these out, it is the last column to numpy.

  Returns:
    int32 `[K]`.

  Raises:
    UserError: an unknown list, or classes that the head lacks.
  """
  columns = {wnid: i for i, wnid in enumerate(classes("head"))}
  ids = classes(which) if isinstance(which, str) else tuple(which)
  missing = [i for i in ids if i not in columns]
  if missing and not allow_missing:
    more = f" and {len(missing) - 10:,} more" if len(missing) > 10 else ""
    raise UserError(
      f"{len(missing):,} of {len(ids):,} classes have no column in the "
      f"{len(columns):,}-way head of the released checkpoints: "
      f"{', '.join(map(str, missing[:10]))}{more}. Leave them out; its classes "
      "are WordNet ids as 'n02084071'."
    )
  return np.array([columns.get(i, -1) for i in ids], np.int32)
