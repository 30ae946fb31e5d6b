"""A source whose members are changed on their way."""

from collections.abc import Callable, Iterator, Sequence

from mixer.datasets.sources import file_names
from mixer.datasets.sources.member import Member, Source


class Mapped:
  """Another source, with a function between; see `member.Source`.

  Attributes:
    description: see there.
    fingerprint: see there.
    total_bytes: see there.
    warnings: see there.
  """

  def __init__(
    self,
    source: Source,
    change: Callable[[Member], Member],
    class_names: Sequence[str],
    *more: object,
  ):
    """Reads nothing yet.

    Args:
      source: the other one.
      change: what becomes of its members.
      class_names: that there are afterwards.
      *more: whatever else than `source` decides what comes out.
    """
    self.description = source.description
    self.fingerprint = file_names.fingerprint([], source.fingerprint, *more)
    self.total_bytes = source.total_bytes
    self.warnings = source.warnings
    self._source, self._change = source, change
    self._classes = tuple(class_names)

  def class_names(
    self, progress: Callable[[int], None] = lambda done: None
  ) -> tuple[str, ...]:
    del progress  # They are known.
    return self._classes

  def members(self, start: int = 0) -> Iterator[tuple[Member, int]]:
    for member, done in self._source.members(start):
      yield self._change(member), done
