"""What a preparation has done so far, in a folder beside the data set's.

    identity.json       of what by which options
    00000.json, ...     one a committed chunk, written when its shards are
    end.json            the source is read to its end; its warnings
    drawn.json          the shards of the held-out splits, when they are
    shards/             the shards, and each chunk's hashes
    report.tsv          the problems, for people

What no entry refers to is half-written or left over, and goes at the start.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixer import errors
from mixer.datasets.preparation import build_files, build_options
from mixer.datasets.preparation.build_files import Shard
from mixer.errors import UserError

MISLABELLED = "mislabelled"
DUPLICATE = "duplicate"
IN_TWO_CLASSES = "in two classes"
IN_TWO_SPLITS = "in two splits"
DARK = "dark"
# Of files that decode none the less.
NOT_BAD = (MISLABELLED, DUPLICATE, IN_TWO_CLASSES, IN_TWO_SPLITS, DARK)


@dataclasses.dataclass(frozen=True)
class Chunk:
  """A committed part of the source.

  Attributes:
    members: how many files of the source.
    bytes_done: of the source, after them.
    shards: what they are in.
    candidates: keys of the records of the shard of candidates, in hex.
    problems: kind, member and sentence of each.
    hashes: the file with the images' hashes, "" if none are kept.
  """

  members: int
  bytes_done: int
  shards: tuple[Shard, ...]
  candidates: tuple[str, ...]
  problems: tuple[tuple[str, str, str], ...]
  hashes: str

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> "Chunk":
    shards = tuple(Shard(**shard) for shard in value.pop("shards"))
    candidates = tuple(value.pop("candidates"))
    problems = tuple((k, n, s) for k, n, s in value.pop("problems"))
    return cls(shards=shards, candidates=candidates, problems=problems, **value)


@dataclasses.dataclass
class Totals:
  """Of all chunks so far."""

  chunks: int = 0
  members: int = 0
  bytes_done: int = 0
  images: int = 0
  bytes_written: int = 0
  problems: dict[str, int] = dataclasses.field(default_factory=dict)

  def add(self, chunk: Chunk) -> None:
    self.chunks += 1
    self.members += chunk.members
    self.bytes_done = chunk.bytes_done
    self.images += sum(s.images for s in chunk.shards)
    self.bytes_written += sum(s.bytes for s in chunk.shards)
    for kind, _, _ in chunk.problems:
      self.problems[kind] = self.problems.get(kind, 0) + 1

  @property
  def bad(self) -> int:
    """Files that don't decode."""
    return bad(self.problems)


def bad(problems: Mapping[str, int]) -> int:
  """Those of the problems that are files that don't decode."""
  return sum(n for kind, n in problems.items() if kind not in NOT_BAD)


class Journal:
  """The folder; whoever has one holds the lock."""

  def __init__(self, folder: pathlib.Path, identity: Mapping[str, Any]):
    """Starts, or goes on.

    Raises:
      UserError: the folder belongs to another source or other options.
    """
    self.folder = folder
    self.shards = folder / "shards"
    # As JSON gives it back.
    identity = json.loads(json.dumps(identity))
    found = folder / "identity.json"
    if not found.exists():
      # Nothing was committed before this file was there.
      with build_files.explained(folder):
        if folder.exists():
          shutil.rmtree(folder)
        self.shards.mkdir(parents=True)
        build_files.sync(folder.parent)
    else:
      changed = differences(build_files.read_checked(found), identity)
      if changed:
        raise UserError(
          f"In {folder} lies what an earlier preparation had done when it was "
          f"stopped, and it differs in {', '.join(changed)}. Give the source "
          "and the options of that time to go on with it, or --restart to "
          "discard it and begin anew."
        )
    # Allowed differences count from now on.
    build_files.write_checked(found, identity)
    self.totals = Totals()
    for chunk in self.chunks():
      self.totals.add(chunk)
    if self.ended:
      chunks = build_files.read_checked(folder / "end.json")["chunks"]
      if chunks != self.totals.chunks:
        raise UserError(
          f"{self._entry(self.totals.chunks)} is gone, one of {chunks:,}. "
          f"{build_files.RESTART}"
        )
    self._clear_and_check()
    self._write_report()

  def chunks(self) -> Iterator[Chunk]:
    """The committed chunks, in order; read anew, as they may be large."""
    number = 0
    while (path := self._entry(number)).exists():
      yield Chunk.from_json(build_files.read_checked(path))
      number += 1

  def commit(self, chunk: Chunk) -> None:
    """Makes a chunk count, the files of which are whole and synced."""
    build_files.sync(self.shards)
    build_files.write_checked(
      self._entry(self.totals.chunks), dataclasses.asdict(chunk)
    )
    self.totals.add(chunk)
    self._append_report(chunk)

  @property
  def ended(self) -> bool:
    return (self.folder / "end.json").exists()

  def end(self, warnings: Sequence[str]) -> None:
    """The source has no more; `warnings` is what it has to say about that."""
    end = {"warnings": list(warnings), "chunks": self.totals.chunks}
    build_files.write_checked(self.folder / "end.json", end)

  def warnings(self) -> list[str]:
    """Of the source, once it is read to its end."""
    return build_files.read_checked(self.folder / "end.json")["warnings"]

  def drawn(self) -> tuple[Shard, ...] | None:
    """The shards of the held-out splits, and what was left over."""
    path = self.folder / "drawn.json"
    if not path.exists():
      return None
    return tuple(Shard(**shard) for shard in build_files.read_checked(path))

  def commit_drawn(self, shards: list[Shard]) -> None:
    """Makes them count; their files are whole and synced."""
    build_files.sync(self.shards)
    build_files.write_checked(
      self.folder / "drawn.json", [dataclasses.asdict(s) for s in shards]
    )

  @property
  def report(self) -> pathlib.Path:
    return self.folder / "report.tsv"

  def _entry(self, number: int) -> pathlib.Path:
    return self.folder / f"{number:05}.json"

  def _clear_and_check(self) -> None:
    sizes = {shard.file: shard.file_bytes for shard in self.drawn() or ()}
    keep = set()
    for chunk in self.chunks():
      sizes |= {shard.file: shard.file_bytes for shard in chunk.shards}
      keep.add(chunk.hashes)
    for path in self.shards.glob("*"):
      if path.name not in sizes and path.name not in keep:
        path.unlink()
    for path in self.folder.glob("*.part"):
      path.unlink()
    if (self.folder / "data").exists():
      return  # Shards are being renamed there, after all was well.
    for name, size in sizes.items():
      path = self.shards / name
      if not path.exists() or path.stat().st_size != size:
        raise UserError(
          f"{path} was committed with {size:,} bytes, and is "
          + (f"{path.stat().st_size:,} long" if path.exists() else "gone")
          + f" now. {build_files.RESTART}"
        )

  def _write_report(self) -> None:
    # Anew at each start: a kill may have come between a commit and its lines.
    with build_files.explained(self.report):
      with open(self.report, "w", encoding="utf-8") as f:
        f.write("kind\tfile\twhat\n")
    for chunk in self.chunks():
      self._append_report(chunk)

  def _append_report(self, chunk: Chunk) -> None:
    if not chunk.problems:
      return
    with build_files.explained(self.report):
      with open(self.report, "a", encoding="utf-8") as f:
        for row in chunk.problems:
          f.write("\t".join(map(errors.printable, row)) + "\n")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """In what one identity, as it was stored, differs from another."""
  return [
    _HASHED.get(name)
    or f"{name} ({_short(name, old)} then, {_short(name, new)} now)"
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
    # Where such files end the preparation, there are none in what it wrote.
    and (name, old.get(name)) != ("on_mislabelled", "fail")
  ]


_HASHED = {
  "source": "the source (its place, or its files' number, sizes or times)",
  "classes": "the list of classes",
}


def _short(name: str, identity: Mapping[str, Any]) -> str:
  value = identity.get(name)
  if name == "hold_out" and value is not None:
    flag = build_options.hold_out_flag(dict(value))
    return flag.removeprefix("--hold_out=")
  text = value if isinstance(value, str) else json.dumps(value)
  return text if len(text) <= 60 else text[:57] + "..."
