"""What a model says about an image."""

import dataclasses

import numpy as np

from mixer import text


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The classes with the highest scores, the highest first.

  Attributes:
    source: the image's path; or its place among the images, as "images[3]".
    names: of the classes, for people.
    scores: probabilities of softmax, or sigmoids, each for itself, where the
      model was trained with those.
    indexes: of the model's outputs, from 0.
    class_ids: of the classes as the data set names them, such as WordNet ids;
      "" where nobody knows.
    problem: why there are none, a sentence without its full stop; "" if there
      are. Only `Predictor.stream` gives such; `predict` raises.
  """

  source: str
  names: tuple[str, ...] = ()
  scores: tuple[float, ...] = ()
  indexes: tuple[int, ...] = ()
  class_ids: tuple[str, ...] = ()
  problem: str = ""

  def lines(self, width: int = 0) -> list[str]:
    """A line for each class; the first begins with the source.

    Args:
      width: of the source's column, at least; all lines are indented so far.
    """
    source = text.printable(self.source)
    if self.problem:
      return [f"{source:<{width}}  {text.printable(self.problem)}"]
    width = max(width, len(source))
    labels = [source] + [""] * (len(self.names) - 1)
    rows = zip(labels, self.scores, self.names, strict=True)
    return [
      f"{label:<{width}}  {s:6.3f}  {text.printable(name)}"
      for label, s, name in rows
    ]

  def __str__(self) -> str:
    return "\n".join(self.lines())


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """What the head would see of an image.

  Attributes:
    source: as in `Prediction`.
    values: pre-logits float32 [C]; NaN where there is a problem.
    problem: as in `Prediction`.
  """

  source: str
  values: np.ndarray
  problem: str = ""
