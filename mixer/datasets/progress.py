"""The progress bar of preparing a data set."""

from collections.abc import Collection, Iterator
from typing import TypeVar

import tqdm

_T = TypeVar("_T")


def bar(items: Collection[_T], name: str) -> Iterator[_T]:
  """The items, with a bar on stderr where that is a terminal."""
  # `disable=None` is tqdm's word for "unless it is a terminal".
  yield from tqdm.tqdm(
    items, desc=name, unit=" classes", disable=None, leave=False
  )
