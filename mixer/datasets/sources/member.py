"""What a source of images hands to its preparation, one at a time."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol


@dataclasses.dataclass(frozen=True)
class Member:
  """One image file of a source, as it was found.

  Attributes:
    name: unique in the source and the same for every form of it, such as
      "n01440764/n01440764_10026.JPEG" whether that lay in a tar of tars or in
      folders. Splits, keys and reports rest on it.
    class_name: of its label.
    split: where the layout says so ("train", "test", "validation"); "" where
      the builder draws.
    data: the file's bytes.
    error: why `data` could not be read whole; "" if it was.
    more: further features of its record, and their numbers.
  """

  name: str
  class_name: str
  split: str
  data: bytes
  error: str = ""
  more: tuple[tuple[str, tuple[int, ...]], ...] = ()


class Source(Protocol):
  """A form in which a set of images lies on disk.

  Attributes:
    description: for a person: "a tar of 19,167 tars, gzip (/data/x.tar.gz)".
    fingerprint: tells this source from another one, or from the same path with
      other content (paths, sizes, times of change); a build that was stopped
      goes on only with the same.
    total_bytes: to be read in all, as they lie on disk; for progress, and may
      be an estimate.
    warnings: sentences for the user; more may come while it is read.
  """

  description: str
  fingerprint: str
  total_bytes: int
  warnings: list[str]

  def class_names(
    self, progress: Callable[[int], None] = lambda done: None
  ) -> tuple[str, ...]:
    """All classes, sorted, or the list that the source was given as it is.

    May have to read the source once to tell; remembers them then.

    Args:
      progress: told the bytes done so far, if it has to.
    """
    ...

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    """Members from number `start` on, each with the bytes of disk done so far.

    The order is the same each time. What isn't an image by its name alone
    (directories, hidden files, ".txt") is no member and not counted.

    Raises:
      UserError: the source ends in the middle, or can't be read on.
    """
    ...
