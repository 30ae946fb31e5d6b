"""How far it is and how fast it goes, on stderr."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

from mixer import errors, predictor

_One = TypeVar("_One", predictor.Prediction, predictor.Features)


class Counter:
  """Counts images and tells of those that can't be used.

  Attributes:
    done: images that are done with, those that can't be used among them.
    failed: of those.
  """

  def __init__(self, total: int, bar: bool):
    """Prepares to count.

    Args:
      total: images there are.
      bar: show one, if stderr is a terminal.
    """
    self.done = self.failed = 0
    self._total = total
    self._bar = bar and sys.stderr.isatty()

  def count(self, those: Iterable[_One]) -> Iterator[_One]:
    """Lets them pass; ends with a line about the speed, unless it is one.

    An image counts when the next one is asked for.
    """
    start = time.perf_counter()
    with tqdm.tqdm(
      total=self._total, unit=" images", disable=not self._bar, leave=False
    ) as bar:
      for one in those:
        if one.problem:
          self.failed += 1
          said = errors.printable(f"error: {one.source}: {one.problem}")
          bar.write(said, sys.stderr)
        yield one
        self.done += 1
        bar.update()
    if self._total > 1:
      seconds = time.perf_counter() - start
      failed = f"; {self.failed:,} can't be used" if self.failed else ""
      print(
        f"{self.done:,} images in {seconds:.1f} s, "
        f"{self.done / seconds:,.1f} images/s{failed}",
        file=sys.stderr,
      )
