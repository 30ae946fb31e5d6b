"""ImageNet's classes: WordNet ids, names, and columns of the released head.

A class of ImageNet is a synset (a set of synonyms) of WordNet 3.0, named by
"n" and its 8-digit place in WordNet's file of nouns. Prepared data sets use
these ids as class names. The lists that are known here:

  head         21,843  outputs of the released ImageNet-21k checkpoints: fall11,
                       and n03931044 (picture), n09859684 (bleacher)
  fall11       21,841  all of ImageNet, as released in fall 2011
  fall11_p     11,221  ImageNet-21K-P (arXiv 2104.10972), made from fall11
  winter21_p   10,450  the same, made from the release of winter 2021
  imagenet1k    1,000  the challenge of 2012; TFDS's `imagenet2012`

Each is in the order of its ids, which is the order of labels in a data set
that is made from one folder a class. All but one class lie in the head: the
teddy bear of ImageNet-1k, n04399382, is not in fall11.

The whole release of winter 2021 (19,167 classes: fall11 less 2,674 of the
people) has no list here, as none was found that is published apart from the
images. A set that was prepared from it has the ids as its class names, and
`names` and `head_indices` take such a sequence in place of a list's name.

Names and definitions are WordNet's, Copyright 2006 by Princeton University
(labels/LICENSE-WordNet.txt); labels/README.md says how the file is made.
"""

import functools
import gzip
import pathlib
from collections import Counter
from collections.abc import Callable, Sequence
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
  """What WordNet says about a class.

  Attributes:
    wnid: as "n02012849".
    lemmas: its synonyms, as ("crane",), the most usual first.
    definition: as "large long-necked wading bird of marshes and plains in many
      parts of the world"; without WordNet's examples of usage.
    kind: the first lemma of what it is a kind of, as "wading bird".
  """

  wnid: str
  lemmas: tuple[str, ...]
  definition: str
  kind: str


def classes(name: str) -> tuple[str, ...]:
  """The ids of a list, in the order of its labels.

  Args:
    name: one of `LISTS`.

  Raises:
    UserError: an unknown list.
  """
  if name not in LISTS:
    raise UserError(
      f"there is no list of classes named {name!r}; there are "
      + ", ".join(LISTS)
      + ". Ids of your own go in as a sequence, as in ['n02084071']."
    )
  return _classes(name)


def describe(wnid: str) -> Synset:
  """Names and definition of a class of any list.

  Raises:
    UserError: an id that no list has.
  """
  (row,) = _rows([wnid])
  return _synset(row)


def names(which: str | Sequence[str]) -> tuple[str, ...]:
  """A name for people for each class, unlike every other one's.

  That is its first lemma. Where classes of the sequence share it (in upper or
  lower case), each gets in brackets what it is a kind of ("crane (wading
  bird)", "crane (lifting device)"); where that is the same too, another lemma
  ("robin (American robin)"); and the id where there is none.

  Args:
    which: a list's name, or a sequence of ids without repetition.

  Raises:
    UserError: an unknown list or id.
  """
  return _names(_ids(which))


def head_indices(
  which: str | Sequence[str], *, allow_missing: bool = False
) -> np.ndarray:
  """The column of the released 21,843-way head for each class.

  `logits[:, head_indices(ids)]` are the logits of a data set whose class names
  are `ids`; `head_indices(ids)[labels]` are its labels for that head.

  Args:
    which: a list's name, or any sequence of ids.
    allow_missing: give -1 for a class that the head lacks. Take these out
      before indexing: -1 is the last column to numpy.

  Returns:
    int32 `[K]`.

  Raises:
    UserError: an unknown list, or classes that the head lacks.
  """
  columns, ids = _columns(), _ids(which)
  found = np.array([columns.get(i, -1) for i in ids], np.int32)
  if not allow_missing and (found < 0).any():
    missing = [i for i in ids if i not in columns]
    known = _table()
    shown = [
      f"{i} ({_synset(known[i]).lemmas[0]})" if i in known else repr(i)
      for i in missing[:10]
    ]
    if len(missing) > 10:
      shown.append(f"and {len(missing) - 10:,} more")
    raise UserError(
      f"{len(missing):,} of {len(ids):,} classes have no column in the "
      f"{len(columns):,}-way head of the released checkpoints: "
      + ", ".join(shown)
      + ". Leave them out; its classes are WordNet ids as 'n02084071'."
    )
  return found


class _Row(NamedTuple):
  """A line of the file, unparsed."""

  wnid: str
  lists: str
  kind: str
  lemmas: str
  definition: str


@functools.lru_cache(maxsize=1)
def _table() -> dict[str, _Row]:
  with gzip.open(_FILE, "rt", encoding="ascii") as f:
    lines = f.read().splitlines()[1:]  # The first names the columns.
  rows = (_Row(*line.split("\t")) for line in lines)
  return {row.wnid: row for row in rows}


@functools.lru_cache
def _classes(name: str) -> tuple[str, ...]:
  letter = LISTS[name]
  return tuple(row.wnid for row in _table().values() if letter in row.lists)


@functools.lru_cache(maxsize=1)
def _columns() -> dict[str, int]:
  return {wnid: i for i, wnid in enumerate(_classes("head"))}


def _ids(which: str | Sequence[str]) -> tuple[str, ...]:
  return classes(which) if isinstance(which, str) else tuple(which)


def _rows(ids: Sequence[str]) -> list[_Row]:
  table = _table()
  unknown = [i for i in ids if i not in table]
  if unknown:
    shown = ", ".join(map(repr, unknown[:10]))
    if len(unknown) > 10:
      shown += f" and {len(unknown) - 10:,} more"
    raise UserError(
      f"no class of ImageNet has the id {shown}; ids are those of WordNet 3.0, "
      f"as 'n02084071', and {len(table):,} of them are known."
    )
  return [table[i] for i in ids]


def _synset(row: _Row) -> Synset:
  return Synset(
    row.wnid, tuple(row.lemmas.split("|")), row.definition, row.kind
  )


@functools.lru_cache(maxsize=8)
def _names(ids: tuple[str, ...]) -> tuple[str, ...]:
  if len({*ids}) < len(ids):
    (twice, _), *_ = Counter(ids).most_common(1)
    raise UserError(
      f"the class {twice} is there twice; names tell classes apart, so each id "
      "may be there once."
    )
  synsets = [_synset(row) for row in _rows(ids)]
  result = [s.lemmas[0] for s in synsets]
  # What goes in brackets, most telling first; "" where there is nothing.
  attempts: tuple[Callable[[Synset], str], ...] = (
    lambda s: s.kind,
    lambda s: s.lemmas[1] if len(s.lemmas) > 1 else "",
    lambda s: s.wnid,
  )
  for attempt in attempts:
    count = Counter(name.casefold() for name in result)
    for i, synset in enumerate(synsets):
      if count[result[i].casefold()] > 1 and attempt(synset):
        result[i] = f"{synset.lemmas[0]} ({attempt(synset)})"
  return tuple(result)
