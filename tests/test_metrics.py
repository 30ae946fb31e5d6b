"""Where numbers go: the file, TensorBoard, the terminal."""

import json
import math
import os
import struct
import sys

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from mixer import metrics
from mixer.errors import UserError


@pytest.fixture
def writer(tmp_path):
  """`writer(start_step)` -> an open writer; all are closed at the end."""
  opened = []

  def make(start_step: int = 0) -> metrics.Writer:
    opened.append(metrics.Writer(tmp_path, start_step))
    return opened[-1]

  yield make
  for each in opened:
    each.close()


def lines(workdir) -> list[dict]:
  text = (workdir / metrics.FILE).read_text()
  assert text == "" or text.endswith("\n")
  found = [json.loads(line, parse_constant=_fail) for line in text.splitlines()]
  for number, record in enumerate(found):
    # The last field: what is to the left of it reads as ever.
    assert list(record)[-1] == "check"
    assert record.pop("check").startswith(f"{number} ")
  return found


def _fail(constant):
  raise AssertionError(f"{constant} is not JSON")


def crc32c(data: bytes) -> int:
  """Castagnoli's, bit by bit, as RFC 3720 has it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
  return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
  crc = crc32c(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(path) -> list:
  """What TensorBoard reads: length, its check, event, its check; repeated."""
  data, found = path.read_bytes(), []
  while data:
    (size,), (check,) = struct.unpack("<Q", data[:8]), data_int(data[8:12])
    assert check == masked(data[:8])
    body, rest = data[12 : 12 + size], data[12 + size :]
    assert data_int(rest[:4])[0] == masked(body)
    found.append(event_pb2.Event.FromString(body))
    data = rest[4:]
  return found


def data_int(data: bytes):
  return struct.unpack("<I", data)


def scalars(path) -> list[tuple[int, str, float]]:
  return [
    (e.step, v.tag, v.simple_value)
    for e in events(path)
    for v in e.summary.value
  ]


def boards(workdir) -> list:
  return sorted((workdir / "tensorboard").iterdir())


def test_crc32c_of_the_rfc():
  assert crc32c(b"\0" * 32) == 0x8A9136AA
  assert crc32c(b"123456789") == 0xE3069283


def test_records_are_lines_of_json(tmp_path, writer):
  w = writer()
  w.write(1, {"train/loss": 2.5, "train/grad_norm": 0.1})
  w.write(2, {"eval/accuracy": 0.75})
  # Read while open: a record is there as soon as it is written.
  assert lines(tmp_path) == [
    {"step": 1, "train/loss": 2.5, "train/grad_norm": 0.1},
    {"step": 2, "eval/accuracy": 0.75},
  ]
  assert metrics.read(tmp_path) == w.records == lines(tmp_path)


@given(st.dictionaries(st.text(min_size=1), st.floats(), max_size=5))
def test_any_value_comes_back_or_is_null(tmp_path_factory, values):
  for name in ("step", "check"):
    values.pop(name, None)
  directory = tmp_path_factory.mktemp("w")
  w = metrics.Writer(directory, 0)
  w.write(7, values)
  w.close()
  (got,) = lines(directory)
  assert got.pop("step") == 7
  assert got.keys() == values.keys()
  for name, value in values.items():
    assert got[name] == (value if math.isfinite(value) else None)


def test_what_is_not_finite_is_null(tmp_path, writer):
  w = writer()
  w.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.0})
  assert lines(tmp_path) == [
    {"step": 1, "a": None, "b": None, "c": None, "d": 0.0}
  ]


def test_has_and_last(writer):
  w = writer()
  assert w.last("eval/accuracy") == {}
  w.write(1, {"train/loss": 3.0})
  w.write(2, {"eval/accuracy": 0.5, "eval/loss": 1.0})
  w.write(2, {"train/loss": 2.0})
  w.write(4, {"eval/accuracy": 0.6, "eval/loss": 0.9})
  w.write(5, {"train/loss": 1.0})
  assert w.has(2, "eval/accuracy") and w.has(2, "train/loss")
  assert not w.has(1, "eval/accuracy") and not w.has(3, "train/loss")
  assert w.last("eval/accuracy") == {"eval/accuracy": 0.6, "eval/loss": 0.9}
  assert w.last("nothing") == {}


def test_going_on_drops_what_will_come_again(tmp_path, writer):
  w = writer()
  for step in (1, 10, 20, 30):
    w.write(step, {"train/loss": float(step)})
  w.write(20, {"eval/accuracy": 0.5})
  w.close()
  again = writer(20)
  assert [r["step"] for r in lines(tmp_path)] == [1, 10, 20, 20]
  assert again.has(20, "eval/accuracy") and not again.has(30, "train/loss")
  assert again.dropped == [{"step": 30, "train/loss": 30.0}]
  again.write(30, {"train/loss": -1.0})
  assert [r["step"] for r in lines(tmp_path)] == [1, 10, 20, 20, 30]
  assert again.last("train/loss") == {"train/loss": -1.0}
  assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("cut", range(1, 36))
def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path, cut):
  whole = '{"step": 1, "train/loss": 2.0}\n'
  torn = '{"step": 2, "train/loss": 1.25, "a": 1}'
  (tmp_path / metrics.FILE).write_text(whole + torn[:cut])
  assert metrics.read(tmp_path) == [{"step": 1, "train/loss": 2.0}]
  w = metrics.Writer(tmp_path, 5)
  w.write(3, {"train/loss": 0.5})
  w.close()
  assert [r["step"] for r in lines(tmp_path)] == [1, 3]


def test_a_flipped_bit_is_told_and_takes_one_record(tmp_path, writer):
  w = writer()
  for step in (1, 2, 3):
    w.write(step, {"train/loss": 1 / step})
  w.close()
  path = tmp_path / metrics.FILE
  data = path.read_bytes()
  for place in range(0, len(data), 7):
    flipped = bytearray(data)
    flipped[place] ^= 1 << place % 8
    path.write_bytes(flipped)
    found = metrics.examine(tmp_path)
    assert all(w.records[n] == r for n, r in found.records.items())
    # A newline that is another character takes the next line along.
    assert len(found.records) >= 1 + (data[place : place + 1] != b"\n")
    lost = {0, 1, 2} - found.records.keys()
    assert bool(found.damage) == bool(lost or found.changed)
  path.write_bytes(data.replace(b"0.5", b"0.7"))
  again = writer(3)
  sentence = "of 3 lines 1 are damaged or gone (2); they are left out. The file"
  assert sentence in again.damage
  assert b"0.7" in (tmp_path / f"{metrics.FILE}.damaged.1").read_bytes()
  again.write(4, {"train/loss": 0.25})
  again.close()
  # The number of a line stays: so what is gone is told at the next start, too.
  again = writer(4)
  assert [r["step"] for r in again.records] == [1, 3, 4]
  assert "of 4 lines 1 are damaged or gone (2); they are" in again.damage
  assert not (tmp_path / f"{metrics.FILE}.damaged.2").exists()


def test_lines_that_are_gone_are_told(tmp_path, writer):
  w = writer()
  for step in range(1, 9):
    w.write(step, {"train/loss": 1.0})
  w.close()
  path = tmp_path / metrics.FILE
  whole = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b"".join(whole[:1] + whole[4:6]))
  assert "of 6 lines 3 are damaged or gone (2 to 4)" in (
    metrics.examine(tmp_path).damage
  )
  # Of those at the end only a checkpoint knows.
  assert "of 8 lines 5 are damaged or gone (2 to 4, 7 to 8)" in (
    metrics.examine(tmp_path, 8).damage
  )
  w = metrics.Writer(tmp_path, 9, least=8)
  w.write(9, {"train/loss": 1.0})
  w.close()
  assert list(metrics.examine(tmp_path).records) == [0, 4, 5, 8]


def test_a_file_without_checks_gets_them(tmp_path, writer):
  old = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": None}]
  text = "".join(json.dumps(r) + "\n" for r in old)
  (tmp_path / metrics.FILE).write_text(f"{text}[]\n")
  assert metrics.read(tmp_path) == old
  w = writer(2)
  assert "1 of its lines hold no record" in w.damage
  assert lines(tmp_path) == old


def test_no_file_no_records(tmp_path):
  assert metrics.read(tmp_path) == []


def test_tensorboard_has_the_same_numbers(tmp_path, writer):
  w = writer()
  w.write(1, {"train/loss": 2.5, "train/grad_norm": 0.125})
  w.write(3, {"eval/accuracy": 0.75, "odd": math.inf})
  w.close()
  (path,) = boards(tmp_path)
  assert "tfevents" in path.name  # By which TensorBoard knows it.
  assert scalars(path) == [
    (1, "train/loss", 2.5),
    (1, "train/grad_norm", 0.125),
    (3, "eval/accuracy", 0.75),
    (3, "odd", math.inf),
  ]
  assert events(path)[0].file_version == "brain.Event:2"


def test_tensorboard_is_told_where_a_run_goes_on(tmp_path, writer):
  w = writer()
  w.write(30, {"train/loss": 1.0})
  w.close()
  w = writer(20)  # Within the same second, too.
  w.write(30, {"train/loss": 2.0})
  w.close()
  first, second = boards(tmp_path)
  assert scalars(first) == [(30, "train/loss", 1.0)]
  assert scalars(second) == [(30, "train/loss", 2.0)]
  start = event_pb2.SessionLog.START
  told = [e.step for e in events(second) if e.session_log.status == start]
  # All from there on is forgotten.
  assert told == [21]


def test_tensorboard_can_be_read_within_seconds(tmp_path, writer, monkeypatch):
  w = writer()
  now = metrics.time.monotonic()
  monkeypatch.setattr(metrics.time, "monotonic", lambda: now + 11)
  w.write(1, {"train/loss": 2.5})
  (path,) = boards(tmp_path)
  assert scalars(path) == [(1, "train/loss", 2.5)]


def test_a_flush_brings_all_to_the_disk(tmp_path, writer):
  w = writer()
  w.write(1, {"train/loss": 2.5})
  w.flush()
  (path,) = boards(tmp_path)
  assert scalars(path) == [(1, "train/loss", 2.5)]
  assert lines(tmp_path) == w.records
  w.flush()
  assert scalars(path) == [(1, "train/loss", 2.5)]


def test_a_folder_that_takes_no_files_is_told(tmp_path, monkeypatch):
  def refuse(*args):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(os, "replace", refuse)
  with pytest.raises(UserError, match=r"denied\. Mend .* newest checkpoint"):
    metrics.Writer(tmp_path, 0)


def test_other_hosts_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  w = metrics.Writer(tmp_path, 0)
  w.write(1, {"train/loss": 2.5})
  w.flush()
  assert w.has(1, "train/loss")  # They decide as the first one does.
  w.close()
  assert not list(tmp_path.iterdir())


class FullDisk:
  """Lets what is opened lie on a disk without room."""

  def __init__(self):
    # What a device without room says, and no less.
    self._full = open("/dev/full", "wb", buffering=0)

  def __call__(self, file):
    os.dup2(self._full.fileno(), file.fileno())

  def close(self):
    self._full.close()


@pytest.fixture
def fill():
  if not os.path.exists("/dev/full"):
    pytest.skip("needs /dev/full")
  disk = FullDisk()
  yield disk
  disk.close()


def test_a_full_disk_is_told(writer, fill):
  w = writer()
  fill(w._file)
  with pytest.raises(UserError, match="No space left on device") as caught:
    w.write(1, {"train/loss": 2.5})
  assert metrics.FILE in str(caught.value)
  assert "start the same command again" in str(caught.value)
  w.close()  # What has been told stays the only error.


def test_a_disk_too_full_for_tensorboard_is_told(writer, fill):
  w = writer()
  fill(w._board._file._writer)
  with pytest.raises(UserError, match="No space left on device"):
    for step in range(10_000):  # Rather than to wait forever.
      w.write(step, {"train/loss": 2.5})
  w.close()


@pytest.mark.parametrize(
  ("seconds", "text"),
  [
    (0, "0s"),
    (0.4, "0s"),
    (42, "42s"),
    (59.4, "59s"),
    (59.6, "1m00s"),
    (187, "3m07s"),
    (3599, "59m59s"),
    (3599.7, "1h00m"),
    (18_120, "5h02m"),
    (86_399, "23h59m"),
    (86_400, "1d00h"),
    (183_600, "2d03h"),
  ],
)
def test_duration(seconds, text):
  assert metrics.duration(seconds) == text


@given(st.floats(0, 1e7))
def test_duration_is_right_to_its_last_unit(seconds):
  text = metrics.duration(seconds)
  units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
  total, number = 0, ""
  for char in text:
    if char.isdigit():
      number += char
    else:
      total += int(number) * units[char]
      number, last = "", units[char]
  assert -0.5 <= seconds - total < last + 0.5


_VALUES = {"train/loss": 1.25}


def test_a_file_gets_plain_lines_of_what_is_logged(capsys):
  t = metrics.Terminal(100)
  for step in range(1, 21):
    t.progress(step, _VALUES, logged=step % 10 == 0)
  t.say("between")
  t.end()
  assert capsys.readouterr().out.splitlines() == [
    "step  10/100  loss 1.2500",
    "step  20/100  loss 1.2500",
    "between",
  ]


class Live:
  """Makes a terminal whose clock stands still; `wait` advances it."""

  def __init__(self, monkeypatch):
    self._monkeypatch = monkeypatch
    self._now = 1000.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: self._now)

  def __call__(self, total: int) -> metrics.Terminal:
    with self._monkeypatch.context() as patch:
      patch.setattr(sys.stdout, "isatty", lambda: True)
      return metrics.Terminal(total)

  def wait(self, seconds: float) -> None:
    self._now += seconds


@pytest.fixture
def live(monkeypatch):
  return Live(monkeypatch)


def screen(out: str) -> list[str]:
  """The lines that a terminal shows: a carriage return goes to the start."""
  rows = [""]
  for part in out.replace("\r", "\0\r").replace("\n", "\0\n").split("\0"):
    if part.startswith("\n"):
      rows.append("")
    elif part.startswith("\r"):
      assert part.startswith("\r\x1b[K")  # Nothing of it is left over.
      rows[-1] = ""
    rows[-1] += part.lstrip("\r\n").removeprefix("\x1b[K")
  return rows


def test_a_terminal_gets_one_live_line(live, capsys):
  t = live(100)
  t.say("first")
  for step in range(1, 6):
    live.wait(0.2)
    t.progress(step, _VALUES, logged=False)
  assert screen(capsys.readouterr().out) == [
    "first",
    "step   5/100  loss 1.2500",
  ]


def test_a_line_that_stays_takes_the_live_ones_place(live, capsys):
  t = live(100)
  t.progress(1, _VALUES, logged=True)
  t.say("evaluated")
  t.progress(2, _VALUES, logged=True)
  t.end()
  t.end()
  t.say("done")
  assert screen(capsys.readouterr().out) == [
    "evaluated",
    "step   2/100  loss 1.2500",
    "done",
    "",
  ]


def test_a_live_line_is_not_drawn_too_often(live, capsys):
  t = live(10_000)
  for step in range(1, 1001):
    live.wait(0.001)
    t.progress(step, _VALUES, logged=False)
  assert 5 <= capsys.readouterr().out.count("\r") <= 11
  t.progress(1001, _VALUES, logged=True)  # What is logged is always shown.
  assert "step  1001/10000" in capsys.readouterr().out


def test_what_a_line_says(capsys):
  values = _VALUES | {
    "train/images_per_second": 12345.6,
    "train/mfu": 0.4321,
    "train/seconds_per_step": 0.5,
  }
  metrics.Terminal(100).progress(40, values, logged=True)
  assert capsys.readouterr().out == (
    "step  40/100  loss 1.2500  12,346 images/s  MFU 43.2%  30s left\n"
  )


@pytest.mark.parametrize("tty", [False, True])
def test_other_hosts_print_nothing(monkeypatch, capsys, tty):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(sys.stdout, "isatty", lambda: tty)
  t = metrics.Terminal(100)
  t.say("text")
  t.progress(1, _VALUES, logged=True)
  t.end()
  assert capsys.readouterr().out == ""
