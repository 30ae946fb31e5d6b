"""Where numbers go: metrics.jsonl, TensorBoard, the terminal.

A line of metrics.jsonl is a JSON object of a step and numbers. Its last field,
`check`, has the number of the line and a CRC-32 of what stands before it: a
line that is damaged or gone shows. Files from before there was one have none.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import re
import socket
import sys
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from etils import epath

from mixer import files, stop
from mixer import workdir as workdir_lib
from mixer.errors import UserError
from mixer.storage import uploading

FILE = "metrics.jsonl"
_LARGEST = 1 << 30  # Bytes; some 3 million records.
_CHECKED = re.compile(rb'(\{.*), "check": "([0-9]{1,15}) ([0-9a-f]{8})"\}')
_BEGIN = b'{"step": '
_MEND = (
  "Mend the cause and start the same command again: it goes on from the newest "
  "checkpoint."
)


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """The records of a run that are whole, in order."""
  return list(examine(workdir).records.values())


def scores(records: Iterable[dict[str, Any]], name: str) -> dict[int, float]:
  """A metric by step, so that more is better; none for the name "".

  Args:
    records: of `read`.
    name: of the metric; a loss is turned round. What isn't finite is left out.
  """
  sign = -1.0 if name.endswith("loss") else 1.0
  return {r["step"]: sign * r[name] for r in records if r.get(name) is not None}


@dataclasses.dataclass(frozen=True)
class Found:
  """What a file of metrics holds.

  Attributes:
    records: that are whole, by the number of their line from 0, in order.
    changed: lines that are none, but for a last one that was cut off.
    damage: a sentence about those, and about lines that are gone; or "".
  """

  records: dict[int, dict[str, Any]]
  changed: int
  damage: str


def examine(workdir: epath.PathLike, least: int = 0) -> Found:
  """Reads the records of a run.

  Args:
    workdir: of the run.
    least: lines that were written, as a checkpoint knows.

  Raises:
    UserError: the file can't be read.
  """
  path, data = epath.Path(workdir) / FILE, b""
  try:
    data = files.read_bytes(path, "the metrics of a run", _LARGEST)
  except UserError as e:
    if not isinstance(e.__cause__, FileNotFoundError):
      raise
  *lines, last = data.split(b"\n")
  if b"}" in last or not _BEGIN.startswith(last[: len(_BEGIN)]):
    lines.append(last)  # Else it was cut off by a kill.
  lines = [line for line in lines if line.strip()]
  records = dict(sorted(r for r in map(_checked, lines) if r))
  if not records and not least and b'"check"' not in data:
    found = [r for r in map(_record, lines) if r]
    records = dict(enumerate(found))
  changed = len(lines) - len(records)
  count = max([least - 1, *records]) + 1
  gone = [n for n in range(count) if n not in records]
  what = ""
  if gone:
    lines_gone = f"{len(gone):,} are damaged or gone ({_list(gone)})"
    what = f"of {count:,} lines {lines_gone}"
  elif changed:
    what = f"{changed:,} of its lines hold no record"
  return Found(records, changed, what and f"{path}: {what}; they are left out.")


def _checked(line: bytes) -> tuple[int, dict[str, Any]] | None:
  """A line's number and record, if it is as it was written."""
  parts = _CHECKED.fullmatch(line.strip())
  if parts is None or _crc(parts[2] + parts[1]) != parts[3].decode():
    return None
  record = _record(parts[1] + b"}")
  return (int(parts[2]), record) if record else None


def _record(line: bytes) -> dict[str, Any] | None:
  """The record of a line without a check, if it can be one."""
  try:
    found = json.loads(line)
  except (ValueError, RecursionError):
    return None
  sound = (
    isinstance(found, dict)
    and type(found.get("step")) is int
    and all(v is None or isinstance(v, int | float) for v in found.values())
  )
  return found if sound else None


def _line(number: int, record: dict[str, Any]) -> str:
  text = json.dumps(record)[:-1]
  crc = _crc(f"{number}{text}".encode())
  return f'{text}, "check": "{number} {crc}"}}\n'


def _crc(data: bytes) -> str:
  return f"{zlib.crc32(data):08x}"


def _list(numbers: Iterable[int], most: int = 5) -> str:
  """Lines, counted from 1, for a sentence: `3, 7 to 9`."""
  spans = [
    [n for _, n in group]
    for _, group in itertools.groupby(
      enumerate(numbers, 1), lambda pair: pair[1] - pair[0]
    )
  ]
  shown = [
    f"{s[0] + 1:,}" + (f" to {s[-1] + 1:,}" if len(s) > 1 else "")
    for s in spans[:most]
  ]
  return ", ".join(shown + ["..."] * (len(spans) > most))


class Writer:
  """Appends records of metrics, on the first host alone.

  A run that goes on from step N first drops the records after N, which it
  will write again: so the file reads as if nothing had happened.

  On a local disk a record is there as soon as it is written. Nothing can be
  appended to an object: there the files are kept here and uploaded whole, now
  and then and in `flush`. Only what a resume makes again anyway is lost if
  `flush` is called before every save.

  Attributes:
    records: from the first step on.
    dropped: those after the start step, which an earlier start has written.
    lines: written so far, those that were damaged since among them.
    damage: sentences about what was found damaged.
  """

  def __init__(self, workdir: epath.PathLike, start_step: int, least: int = 0):
    """Opens the files.

    Args:
      workdir: of the run.
      start_step: updates done.
      least: lines written until then, as far as is known.

    Raises:
      UserError: the workdir takes no files.
    """
    self._active = jax.process_index() == 0
    found = examine(workdir, least)
    kept = {n: r for n, r in found.records.items() if r["step"] <= start_step}
    self.records = list(kept.values())
    self.dropped = [r for n, r in found.records.items() if n not in kept]
    if not found.damage:  # Else numbers stay: what is gone shows for ever.
      kept = dict(enumerate(self.records))
    self.lines = max([least - 1, *kept]) + 1
    self.damage = found.damage
    if not self._active:
      return
    self._path = epath.Path(workdir) / FILE
    if found.changed:
      self.damage += f" The file as it was is {self._set_aside()}."
    with self._telling():
      self._place = uploading.place(epath.Path(workdir))
      path = self._place.local / FILE
      with files.atomic_write(path, "w", _MEND) as f:
        f.writelines(_line(n, r) for n, r in kept.items())
      self._file = open(path, "a")
      self._board = _Board(self._place.local / "tensorboard", start_step)

  def has(self, step: int, name: str) -> bool:
    """Whether a record of that step with that metric is there."""
    return any(r["step"] == step and name in r for r in self.records)

  def last(self, name: str) -> dict[str, float]:
    """The values of the newest record that has that metric."""
    found = [r for r in self.records if name in r]
    return {k: v for k, v in found[-1].items() if k != "step"} if found else {}

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one record; a value that is not finite becomes null.

    Raises:
      UserError: the disk doesn't take it.
    """
    record = {"step": step} | {
      k: v if math.isfinite(v) else None for k, v in values.items()
    }
    self.records.append(record)
    self.lines += 1
    if not self._active:
      return
    with self._telling():
      self._file.write(_line(self.lines - 1, record))
      self._file.flush()
      self._board.write(step, values)
      self._place.keep_up()

  def flush(self) -> None:
    """Returns when all is where it is kept; call it before every save.

    Raises:
      UserError: the disk or the store doesn't take it.
    """
    if not self._active:
      return
    with self._telling():
      self._board.flush()
      self._place.catch_up()

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._active:
      for end in (self._board.close, self._file.close, self._place.close):
        # `write` and `flush` have told of what is full or out of reach: what
        # they said comes first.
        with contextlib.suppress(*workdir_lib.failures(self._path)):
          end()

  def _set_aside(self) -> epath.Path:
    """Copies the file; one that is there already stays."""
    names = (f"{FILE}.damaged.{n}" for n in itertools.count(1))
    to = next(p for p in map(self._path.with_name, names) if not p.exists())
    with self._telling():
      self._path.copy(to)
    return to

  @contextlib.contextmanager
  def _telling(self) -> Iterator[None]:
    try:
      yield
    except workdir_lib.failures(self._path) as e:
      raise UserError(
        f"metrics can't be written to {self._path}: {workdir_lib.reason(e)}. "
        f"{_MEND}"
      ) from e


class _Board:
  """TensorBoard's event file.

  Written in the caller's thread: that of tensorboardX's SummaryWriter dies of
  a full disk, and training then waits for it forever.
  """

  def __init__(self, directory: pathlib.Path, start_step: int):
    # Imported late: it takes a while, and reading records doesn't need it.
    from tensorboardX import record_writer
    from tensorboardX.proto import event_pb2, summary_pb2

    events: Any = event_pb2  # Generated: no checker sees into it.
    summaries: Any = summary_pb2
    self._event, self._summary = events.Event, summaries.Summary
    session = events.SessionLog
    directory.mkdir(exist_ok=True)
    # Unlike those of an earlier start, even one in the same second.
    name = f"{time.time():.6f}.{socket.gethostname()}"
    self._file = record_writer.RecordWriter(
      str(directory / f"events.out.tfevents.{name}")
    )
    self._flushed = time.monotonic()
    self._add(file_version="brain.Event:2")
    # TensorBoard then forgets the steps that are written again.
    log = session(status=session.START)
    self._add(step=start_step + 1, session_log=log)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds values; they are on the disk within some seconds."""
    pairs = [
      self._summary.Value(tag=k, simple_value=v) for k, v in values.items()
    ]
    self._add(step=step, summary=self._summary(value=pairs))
    if time.monotonic() - self._flushed > 10:
      self.flush()

  def flush(self) -> None:
    """Brings to the disk what was added."""
    self._file.flush()
    self._flushed = time.monotonic()

  def _add(self, **fields: Any) -> None:
    event = self._event(wall_time=time.time(), **fields)
    self._file.write(event.SerializeToString())

  def close(self) -> None:
    """Closes the file, whatever becomes of what isn't on the disk."""
    self._file.close()


# The share of the time from which on waiting for data is worth a word.
_WAITING = 0.05


class Terminal:
  """Progress for people: one live line on a terminal, plain lines in a file.

  Only the first host prints.
  """

  def __init__(self, total: int):
    self._total = total
    self._live = sys.stdout.isatty()
    self._active = jax.process_index() == 0
    self._last = 0.0
    self._open = False

  def say(self, text: str) -> None:
    """A line that stays."""
    if self._active:
      end = "\r\x1b[K" if self._open else ""
      stop.say(f"{end}{text}")
      self._open = False

  def end(self) -> None:
    """Leaves the live line as it is and goes below it."""
    if self._active and self._open:
      stop.say("")
      self._open = False

  def progress(
    self, step: int, values: dict[str, float], *, logged: bool
  ) -> None:
    """Step, loss, speed and time left.

    Args:
      step: updates done.
      values: named as in metrics.jsonl.
      logged: whether they have been written as a record too; a file gets a
        line only then.
    """
    if not self._active:
      return
    if self._live:
      now = time.monotonic()
      if now - self._last > 0.1 or logged:
        self._last = now
        stop.say(f"\r\x1b[K{self._line(step, values)}", end="")
        self._open = True
    elif logged:
      stop.say(self._line(step, values))

  def _line(self, step: int, values: dict[str, float]) -> str:
    width = len(str(self._total))
    parts = [f"step {step:{width}d}/{self._total}"]
    parts.append(f"loss {values['train/loss']:.4f}")
    speed = values.get("train/images_per_second")
    if speed:
      parts.append(f"{speed:,.0f} images/s")
    if "train/mfu" in values:
      parts.append(f"MFU {values['train/mfu']:.1%}")
    if values.get("data/wait", 0) >= _WAITING:
      parts.append(f"waits for data {values['data/wait']:.0%}")
    if "train/seconds_per_step" in values:
      left = (self._total - step) * values["train/seconds_per_step"]
      parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
  """`42s`, `3m07s`, `5h02m`, `2d03h`."""
  s = round(seconds)
  if s < 60:
    return f"{s}s"
  if s < 3600:
    return f"{s // 60}m{s % 60:02d}s"
  if s < 86400:
    return f"{s // 3600}h{s % 3600 // 60:02d}m"
  return f"{s // 86400}d{s % 86400 // 3600:02d}h"
