"""Which outputs of a trained head belong to the classes of a data set."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mixer import trained
from mixer.datasets import wordnet
from mixer.errors import UserError

# Of a data set's classes so many may be missing in the released 21,843-way
# head: ImageNet-1k's teddy bear is, and nothing else of any published list.
_MAY_LACK = 0.01


@dataclasses.dataclass(frozen=True)
class Matching:
  """What to compare with a data set's labels.

  Attributes:
    columns: int32 `[K]`, the output for each class of the data set, -1 for one
      that has none; None where class k is output k.
    missing: the classes that have none.
    sentence: what was done, for people; "" where classes and outputs are the
      same.
  """

  columns: np.ndarray | None = None
  missing: tuple[str, ...] = ()
  sentence: str = ""


def match(
  model: trained.Trained,
  classes: Sequence[str],
  data: str,
  *,
  same: bool = False,
) -> Matching:
  """Finds the output of each class of a data set, by name or WordNet id.

  Args:
    model: with a head.
    classes: of the data set, in the order of its labels.
    data: the name of the data set.
    same: the outputs are these classes, in this order, whatever their names.

  Raises:
    UserError: there is no head, its classes aren't known, or are others.
  """
  where, count = f"the checkpoint {model.origin}", model.num_classes
  head = model.class_ids
  if not count:
    raise UserError(
      f"{where} has no head, so it predicts no classes; --fewshot evaluates "
      "its features."
    )
  if same and count != len(classes):
    raise UserError(
      f"--same_classes: {where} has {count:,} outputs, and data set {data} "
      f"{len(classes):,} classes. Name the data set that it was trained on."
    )
  if same:
    return Matching(sentence="outputs are taken for the classes, in order")
  if head is None:
    raise UserError(
      f"{where} doesn't say which classes its {count:,} outputs stand for, so "
      f"they can't be compared with the labels of {data}. If they are its "
      f"{len(classes):,} classes, in order, add --same_classes; a released "
      "file is known by its name, as --checkpoint=imagenet1k/Mixer-B_16; "
      "--fewshot needs no classes."
    )
  if tuple(head) == tuple(classes):
    return Matching()
  place = {name: k for k, name in enumerate(head)}
  columns = np.array([place.get(name, -1) for name in classes], np.int32)
  missing = tuple(c for c in classes if c not in place)
  released = tuple(head) == wordnet.classes("head")
  if len(missing) > (int(_MAY_LACK * len(classes)) if released else 0):
    shown = ", ".join(map(repr, missing[:5]))
    pairs = enumerate(zip(head, classes, strict=False))
    first = "The first to differ is class {}: {!r} there, {!r} here. "
    apart = next(((k, a, b) for k, (a, b) in pairs if a != b), None)
    raise UserError(
      f"{where} and data set {data} have different classes: it has "
      f"{len(head):,} outputs, the data set {len(classes):,} classes, and "
      f"{len(missing):,} of these are among no outputs ({shown}"
      f"{', ...' if len(missing) > 5 else ''}). "
      + (first.format(*apart) if apart else "")
      + "Name the data set that it was trained on, or one with a part of "
      "those classes; or try its features with --fewshot."
    )
  sentence = (
    f"of the {count:,} outputs those of {data}'s {len(classes):,} classes are "
    "compared"
  )
  if len(head) == len(classes) and not missing:
    sentence = f"the outputs are put into the order of {data}'s classes"
  if missing:
    sentence += (
      f"; no output: {', '.join(missing)}, whose examples count as wrong, and "
      "no loss is given"
    )
  return Matching(columns, missing, sentence)
