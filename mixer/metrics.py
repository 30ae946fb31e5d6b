"""The records of a run: metrics.jsonl and TensorBoard files.

A line of metrics.jsonl is a JSON object of a step and numbers. Its last field,
`check`, has the number of the line and a CRC-32 of the rest: a line that is
damaged or gone shows.
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import math
import pathlib
import socket
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from etils import epath

from mixer import files, lock
from mixer.errors import UserError

FILE = "metrics.jsonl"
_LARGEST = 1 << 30  # Bytes; some 3 million records.
# Seconds between two uploads, and between two flushes of TensorBoard's file.
_UPLOAD, _FLUSH = 30.0, 10.0
_MEND = (
  "Mend the cause and start the same command again: it goes on from the newest "
  "checkpoint."
)


@dataclasses.dataclass(frozen=True)
class Found:
  """Whole records by the number of their line, from 0; what else there is.

  `damage` is a sentence about lines that are damaged or gone, or ""; `changed`
  says whether damaged ones are there, but for a last one that was cut off.
  """

  records: dict[int, dict[str, Any]]
  damage: str
  changed: bool


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
  """The records of a run that are whole, in order."""
  return list(examine(workdir).records.values())


def scores(records: Iterable[dict[str, Any]], name: str) -> dict[int, float]:
  """A metric by step, a loss negated; none for the name ""."""
  sign = -1.0 if name.endswith("loss") else 1.0
  return {r["step"]: sign * r[name] for r in records if r.get(name) is not None}


def examine(workdir: epath.PathLike, least: int = 0) -> Found:
  """Reads the records of a run; `least` lines were written, as is known."""
  path, data = epath.Path(workdir) / FILE, b""
  try:
    data = files.read_bytes(path, "the metrics of a run", _LARGEST)
  except UserError as e:
    if not isinstance(e.__cause__, FileNotFoundError):
      raise
  *lines, _ = data.split(b"\n")  # A last one without its end was cut off.
  records = dict(sorted(r for r in map(_parse, lines) if r))
  count = max([least - 1, *records]) + 1
  gone = [n + 1 for n in range(count) if n not in records]
  changed = len(records) < len(lines)
  if not gone and not changed:
    return Found(records, "", False)
  shown = ", ".join(f"{n:,}" for n in gone[:5]) + ", ..." * (len(gone) > 5)
  return Found(
    records,
    f"{path}: {len(gone) or 'some'} of {max(count, len(lines)):,} lines are "
    f"damaged or gone ({shown or 'at the end'}); they are left out.",
    changed,
  )


def _line(number: int, record: dict[str, Any]) -> str:
  text = json.dumps(record)[:-1]
  crc = zlib.crc32(f"{number}{text}".encode())
  return f'{text}, "check": "{number} {crc:08x}"}}'


def _parse(line: bytes) -> tuple[int, dict[str, Any]] | None:
  """A line's number and record, if it is as `_line` made it."""
  try:
    record = json.loads(line)
    number = int(record.pop("check").split()[0])
    return (number, record) if _line(number, record).encode() == line else None
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
    return None


class Writer:
  """Appends records of metrics, on the first host alone.

  A run that goes on from step N first moves the records after N to `dropped`,
  as it will write them again: the file reads as if nothing had happened.
  `lines` were written so far; `damage` is about those found damaged.
  """

  def __init__(self, workdir: epath.PathLike, start_step: int, least: int = 0):
    """Opens the files; `least` lines were written, as the checkpoint knows."""
    self._active = jax.process_index() == 0
    found = examine(workdir, least)
    kept = {n: r for n, r in found.records.items() if r["step"] <= start_step}
    self.records = list(kept.values())
    self.dropped = [r for n, r in found.records.items() if n not in kept]
    self.lines = max([least - 1, *kept]) + 1
    self.damage = found.damage
    if not self._active:
      return
    self._path = epath.Path(workdir) / FILE
    with self._failing_clearly():
      if found.changed:
        names = (f"{FILE}.damaged.{n}" for n in itertools.count(1))
        aside = map(self._path.with_name, names)
        aside = next(path for path in aside if not path.exists())
        self._path.copy(aside)
        self.damage += f" The file as it was is {aside}."
      remote = files.is_remote(workdir)
      self._uploads = _Uploads(epath.Path(workdir)) if remote else None
      folder = pathlib.Path(self._uploads.folder if self._uploads else workdir)
      with files.atomic_write(folder / FILE, "w", _MEND) as f:
        f.writelines(f"{_line(n, r)}\n" for n, r in kept.items())
      self._file = open(folder / FILE, "a")
      self._board = _TensorBoard(folder / "tensorboard", start_step)

  def last(self, name: str) -> dict[str, float]:
    """The newest record that has that metric, with its `step`; or {}."""
    return next((r for r in reversed(self.records) if name in r), {})

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one record; a value that is not finite becomes null."""
    record = {"step": step} | {
      k: v if math.isfinite(v) else None for k, v in values.items()
    }
    self.records.append(record)
    self.lines += 1
    if not self._active:
      return
    with self._failing_clearly():
      self._file.write(f"{_line(self.lines - 1, record)}\n")
      self._file.flush()
      self._board.write(step, values)
      if self._uploads:
        self._uploads.keep_up()

  def flush(self) -> None:
    """Returns when all is where it is kept; call it before every save."""
    if self._active:
      with self._failing_clearly():
        self._board.flush()
        if self._uploads:
          self._uploads.catch_up()

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._active:
      for opened in (self._board, self._file, self._uploads):
        # What is full or out of reach `write` and `flush` have told.
        with contextlib.suppress(*files.failures(self._path)):
          if opened:
            opened.close()

  @contextlib.contextmanager
  def _failing_clearly(self) -> Iterator[None]:
    try:
      yield
    except files.failures(self._path) as e:
      raise UserError(
        f"metrics can't be written to {self._path}: {files.reason(e)}. {_MEND}"
      ) from e


class _TensorBoard:
  """Its event file, written in the caller's thread.

  The thread of tensorboardX's SummaryWriter dies of a full disk, and training
  then waits for it forever.
  """

  def __init__(self, folder: pathlib.Path, start_step: int):
    # Imported late: it takes a while, and reading records doesn't need it.
    import tensorboardX
    from tensorboardX.proto import event_pb2, summary_pb2

    events: Any = event_pb2  # Generated: no checker sees into it.
    summaries: Any = summary_pb2
    self._event, self._summary = events.Event, summaries.Summary
    folder.mkdir(exist_ok=True)
    # Unlike those of an earlier start, even one in the same second.
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
    self._file = tensorboardX.RecordWriter(str(folder / name))
    self._flushed = time.monotonic()
    self._add(file_version="brain.Event:2")
    # TensorBoard then forgets the steps that are written again.
    log = events.SessionLog(status=events.SessionLog.START)
    self._add(step=start_step + 1, session_log=log)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds values; they are on the disk within some seconds."""
    pair = self._summary.Value
    pairs = [pair(tag=k, simple_value=v) for k, v in values.items()]
    self._add(step=step, summary=self._summary(value=pairs))
    if time.monotonic() - self._flushed > _FLUSH:
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


class _Uploads:
  """Copies of growing files in an object store, to which nothing is appended.

  What the thread can't upload now and then is tried again the next time; what
  `catch_up` can't upload is an error.
  """

  def __init__(self, workdir: epath.Path):
    self._workdir = workdir
    self._temporary = tempfile.TemporaryDirectory(prefix="mixer-")
    self.folder = pathlib.Path(self._temporary.name)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "upload")
    self._upload = concurrent.futures.Future[None]()
    self._upload.set_result(None)
    self._last = time.monotonic()
    self._stored: dict[str, lock.StoredFile] = {}

  def keep_up(self) -> None:
    """Starts an upload if the last is over, and long ago."""
    if time.monotonic() - self._last > _UPLOAD and self._upload.done():
      self._start()

  def catch_up(self) -> None:
    """Returns when all that was written has arrived."""
    concurrent.futures.wait([self._upload])
    self._start()
    self._upload.result()

  def close(self) -> None:
    """Catches up and ends."""
    try:
      self.catch_up()
    finally:
      self._thread.shutdown()
      self._temporary.cleanup()

  def _start(self) -> None:
    self._last = time.monotonic()
    # Read at once: the thread must not see a line that is half written.
    found = {
      str(path.relative_to(self.folder)): path.read_bytes()
      for path in sorted(self.folder.rglob("*"))
      if path.is_file()
    }
    self._upload = self._thread.submit(self._send, found)

  def _send(self, found: dict[str, bytes]) -> None:
    for name, data in found.items():
      if name not in self._stored:
        self._stored[name] = lock.StoredFile(self._workdir / name)
        self._stored[name].read()
      file = self._stored[name]
      known = file.known
      # If it was written but the answer got lost, it reads as it should.
      if not file.write(data) and file.read() != data:
        file.known = known  # So it stays the other's.
        raise OSError("another run writes there, too")


_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))


def duration(seconds: float) -> str:
  """`42s`, `3m07s`, `5h02m`, `2d03h`."""
  s = round(seconds)
  for unit, name, size, part in _UNITS:
    if s >= unit:
      return f"{s // unit}{name}{s % unit // size:02d}{part}"
  return f"{s}s"
