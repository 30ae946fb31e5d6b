"""The records of a run: metrics.jsonl, TensorBoard files, Weights & Biases.

A line of metrics.jsonl is a JSON object of a step and numbers. Its last field,
`check`, has the number of the line and a CRC-32 of the rest: a line that is
damaged or gone shows.
"""

import contextlib
import itertools
import json
import math
import pathlib
import secrets
import socket
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
from etils import epath

from mixer import files, lock
from mixer.errors import UserError, first_line

FILE = "metrics.jsonl"
_LARGEST = 1 << 30  # Bytes; some 3 million records.
_MEND = (
  "Mend the cause and start the same command again: it goes on from the newest "
  "checkpoint."
)


class Found(NamedTuple):
  """What a file of metrics holds."""

  records: dict[int, dict[str, Any]]  # By the number of their line, from 0.
  damage: str  # A message about lines that are damaged or gone, or "".
  changed: bool  # Whether damaged lines are there, but for one that is cut off.


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
  changed, damage = len(records) < len(lines), ""
  if gone or changed:
    shown = ", ".join(map(str, gone[:5])) + ", ..." * (len(gone) > 5)
    damage = (
      f"{path}: {len(gone) or 'some'} of {max(count, len(lines)):,} lines are "
      f"damaged or gone ({shown or 'at the end'}); they are left out."
    )
  return Found(records, damage, changed)


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
  """Appends records of metrics, on the first host alone; `lines` so far.

  A run that goes on from step N first moves the records after N to `dropped`,
  as it will write them again: the file reads as if nothing had happened. What
  takes records has `write(step, values)`, `flush()` and `close()`.
  """

  def __init__(self, workdir: epath.PathLike, start_step: int, least: int = 0):
    """Opens the files; `least` lines were written, as the checkpoint knows."""
    found = examine(workdir, least)
    kept = {n: r for n, r in found.records.items() if r["step"] <= start_step}
    self.records = list(kept.values())
    self.dropped = [r for n, r in found.records.items() if n not in kept]
    self.lines = max([least - 1, *kept]) + 1
    self.damage = found.damage
    self._path, self._sinks = epath.Path(workdir) / FILE, []
    # A bucket's flush takes a while, and may fail until the next save.
    self._every, self._bearable = 10.0, ()
    if files.is_remote(workdir):
      self._every, self._bearable = 30.0, (UserError,)
    self._flushed = time.monotonic()
    if jax.process_index():
      return
    with self._failing_clearly():
      if found.changed:
        names = (f"{FILE}.damaged.{n}" for n in itertools.count(1))
        aside = map(self._path.with_name, names)
        aside = next(path for path in aside if not path.exists())
        self._path.copy(aside)
        self.damage += f" The file as it was is {aside}."
      folder, copies = pathlib.Path(workdir), []
      if files.is_remote(workdir):
        copies = [_Copies(self._path)]
        folder = copies[0].folder
      with files.atomic_write(folder / FILE, "w", _MEND) as f:
        f.writelines(f"{_line(n, r)}\n" for n, r in kept.items())
      lines = _Lines(folder / FILE, self.lines)
      self._sinks = [lines, _TensorBoard(folder, start_step), *copies]

  def log_to_wandb(self, project: str, config: dict[str, Any]) -> None:
    """Sends what is written from now on to Weights & Biases as well."""
    if not jax.process_index():
      start = self.records[-1]["step"] if self.records else 0
      self._sinks.append(_Wandb(self._path.parent, project, config, start))

  def last(self, name: str) -> dict[str, float]:
    """The newest record that has that metric, with its `step`; or {}."""
    return next((r for r in reversed(self.records) if name in r), {})

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one record; a value that is not finite becomes null."""
    self.records.append({"step": step} | _finite(values))
    self.lines += 1
    with self._failing_clearly():
      for sink in self._sinks:
        sink.write(step, values)
    if time.monotonic() - self._flushed > self._every:
      with contextlib.suppress(*self._bearable):
        self.flush()

  def flush(self) -> None:
    """Returns when all is where it is kept; call it before every save."""
    self._flushed = time.monotonic()
    with self._failing_clearly():
      for sink in self._sinks:
        sink.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    sinks, self._sinks = self._sinks, []
    for sink in sinks:
      # An earlier `write` or `flush` has reported what is full.
      with contextlib.suppress(*files.failures(self._path)):
        sink.close()

  @contextlib.contextmanager
  def _failing_clearly(self) -> Iterator[None]:
    try:
      yield
    except files.failures(self._path) as e:
      raise UserError(
        f"metrics can't be written to {self._path}: {files.reason(e)}. {_MEND}"
      ) from e


def _finite(values: dict[str, float]) -> dict[str, float | None]:
  return {k: v if math.isfinite(v) else None for k, v in values.items()}


class _Lines:
  """Lines of metrics.jsonl, behind those that are there."""

  def __init__(self, path: pathlib.Path, number: int):
    self._file, self._number = open(path, "a"), number
    self.flush, self.close = self._file.flush, self._file.close

  def write(self, step: int, values: dict[str, float]) -> None:
    record = {"step": step} | _finite(values)
    self._file.write(f"{_line(self._number, record)}\n")
    self._file.flush()
    self._number += 1


class _Copies:
  """Copies the others' files to a bucket, where nothing can be appended."""

  def __init__(self, path: epath.Path):
    self._temporary = tempfile.TemporaryDirectory(prefix="mixer-")
    self.folder, self._workdir = pathlib.Path(self._temporary.name), path.parent
    self._stored = {FILE: lock.StoredFile(path)}
    self._stored[FILE].read()

  def write(self, step: int, values: dict[str, float]) -> None:
    pass

  def flush(self) -> None:
    for path in filter(pathlib.Path.is_file, self.folder.rglob("*")):
      name = str(path.relative_to(self.folder))
      if name not in self._stored:
        self._stored[name] = lock.StoredFile(self._workdir / name)
      if not self._stored[name].write(path.read_bytes()):
        raise OSError("another run writes there, too")

  def close(self) -> None:
    try:
      self.flush()
    finally:
      self._temporary.cleanup()


class _TensorBoard:
  """An event file; SummaryWriter's thread would die of a full disk unseen."""

  def __init__(self, workdir: pathlib.Path, start_step: int):
    # Imported late: it takes a while, and reading records doesn't need it.
    import tensorboardX
    from tensorboardX.proto import event_pb2

    self._events = events = vars(event_pb2)  # Of these no checker knows.
    # Another name than that of an earlier start in the same second.
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
    folder = workdir / "tensorboard"
    folder.mkdir(exist_ok=True)
    self._file = tensorboardX.RecordWriter(str(folder / name))
    self.flush, self.close = self._file.flush, self._file.close
    self._add(file_version="brain.Event:2")
    # TensorBoard then forgets the steps that are written again.
    log = events["SessionLog"](status=1)  # START
    self._add(step=start_step + 1, session_log=log)

  def _add(self, **fields: Any) -> None:
    event = self._events["Event"](wall_time=time.time(), **fields)
    self._file.write(event.SerializeToString())

  def write(self, step: int, values: dict[str, float]) -> None:
    pairs = [{"tag": k, "simple_value": v} for k, v in values.items()]
    self._add(step=step, summary={"value": pairs})


class _Wandb:
  """A run on Weights & Biases; what it drops is what it has already."""

  def __init__(
    self, workdir: epath.Path, project: str, config: dict[str, Any], start: int
  ):
    path, local = workdir / "wandb_id", not files.is_remote(workdir)
    try:
      import wandb  # pyright: ignore[reportMissingImports]

      if not start or not path.exists():  # Else the run goes on there, too.
        path.write_text(secrets.token_hex(8))
      self._run = wandb.init(
        project=project,
        name=workdir.name or None,
        config=config,
        dir=str(workdir) if local else None,
        id=path.read_text(),
        resume="allow",
      )
    except Exception as e:
      raise UserError(
        f"log.wandb={project}: W&B can't be used: {first_line(e)}; "
        'pip install -e ".[metrics]" and `wandb login`, or WANDB_MODE=offline. '
        'To do without: --config.log.wandb="".'
      ) from e
    self.flush = lambda: None

  def write(self, step: int, values: dict[str, float]) -> None:
    # A run goes on without it.
    with contextlib.suppress(Exception):
      self._run.log(values, step=step)

  def close(self) -> None:
    with contextlib.suppress(Exception):
      self._run.finish()


def duration(seconds: float) -> str:
  """`3m07s`, `51h02m`."""
  minutes, s = divmod(round(seconds), 60)
  hours, m = divmod(minutes, 60)
  return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s"
