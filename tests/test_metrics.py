"""Records of metrics, and what a running training reports."""

import json
import math
import os
import sys
import types

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from configs import smoke
from mixer import durations, metrics, model, reporter
from mixer.errors import UserError

_METRICS = ("loss", "learning_rate", "grad_norm", "param_norm")


@pytest.fixture
def writer(tmp_path):
  """`writer(start_step)` -> an open writer; all are closed at the end."""
  opened = []

  def make(start_step: int = 0, least: int = 0) -> metrics.Writer:
    opened.append(metrics.Writer(tmp_path, start_step, least))
    return opened[-1]

  yield make
  for each in opened:
    each.close()


@settings(max_examples=40)
@given(st.dictionaries(st.text(min_size=1), st.floats(), max_size=5))
def test_any_value_comes_back_or_is_null(tmp_path_factory, values):
  for name in ("step", "check"):
    values.pop(name, None)
  folder = tmp_path_factory.mktemp("w")
  w = metrics.Writer(folder, 0)
  w.write(7, values)
  # Read while open: a record is there as soon as it is written.
  (line,) = (folder / metrics.FILE).read_text().splitlines()
  got = json.loads(line, parse_constant=lambda _: pytest.fail("is not JSON"))
  assert got.pop("check").startswith("0 ") and got.pop("step") == 7
  expected = {k: v if math.isfinite(v) else None for k, v in values.items()}
  assert got == expected
  assert metrics.read(folder) == [{"step": 7} | expected]
  w.close()


def test_going_on_drops_what_will_come_again(tmp_path, writer):
  assert metrics.read(tmp_path) == []
  w = writer()
  for step in (1, 10, 20, 30):
    w.write(step, {"train/loss": float(step)})
    if step == 20:
      w.write(20, {"eval/accuracy": 0.5})
  w.close()
  again = writer(20)
  assert [r["step"] for r in metrics.read(tmp_path)] == [1, 10, 20, 20]
  assert again.last("eval/accuracy") == {"step": 20, "eval/accuracy": 0.5}
  assert again.dropped == [{"step": 30, "train/loss": 30.0}]
  again.write(30, {"train/loss": -1.0})
  assert [r["step"] for r in metrics.read(tmp_path)] == [1, 10, 20, 20, 30]
  assert again.last("nothing") == {}
  assert metrics.scores(again.records, "eval/accuracy") == {20: 0.5}
  assert metrics.scores(again.records, "train/loss")[30] == 1.0
  again.close()
  # A line cut off by a kill is dropped without a word.
  path = tmp_path / metrics.FILE
  path.write_bytes(path.read_bytes()[:-9])
  again = writer(40)
  assert (again.damage, len(again.records)) == ("", 4)


def test_what_is_damaged_or_gone_is_told(tmp_path, writer):
  w = writer()
  for step in range(1, 5):
    w.write(step, {"train/loss": 1 / step})
  w.close()
  path = tmp_path / metrics.FILE
  data = path.read_bytes()
  for place in range(0, len(data), 7):
    flipped = bytearray(data)
    flipped[place] ^= 1 << place % 8
    path.write_bytes(flipped)
    found = metrics.examine(tmp_path, 4)
    assert all(w.records[n] == r for n, r in found.records.items())
    # A newline that is another character takes the next line along.
    assert len(found.records) >= 2 + (data[place : place + 1] != b"\n")
    assert bool(found.damage) == (len(found.records) < 4 or found.changed)
  path.write_bytes(data.replace(b"0.5", b"0.7"))
  again = writer(4)
  assert "1 of 4 lines are damaged or gone (2); they are le" in again.damage
  assert b"0.7" in (tmp_path / f"{metrics.FILE}.damaged.1").read_bytes()
  again.write(5, {"train/loss": 0.25})
  again.close()
  # The number of a line stays: so what is gone is told at the next start, too.
  again = writer(5)
  assert [r["step"] for r in again.records] == [1, 3, 4, 5]
  assert "1 of 5 lines are damaged or gone (2)" in again.damage
  assert not (tmp_path / f"{metrics.FILE}.damaged.2").exists()
  # Of lines gone at the end only a checkpoint knows.
  damage = metrics.examine(tmp_path, 9).damage
  assert "5 of 9 lines are damaged or gone (2, 6, 7, 8, 9)" in damage


def events(path) -> list:
  """What TensorBoard reads: length, its check, event, its check; repeated."""
  data, found = path.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], "little")
    found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  return found


def test_tensorboard_has_the_same_numbers(tmp_path, writer):
  w = writer()
  w.write(30, {"train/loss": 2.5, "odd": math.inf})
  w.flush()
  w = writer(20)  # Within the same second, too.
  w._every = -1.0
  w.write(21, {"eval/accuracy": 0.75})  # There without a flush.
  folder = sorted((tmp_path / "tensorboard").iterdir())
  assert all(path.name.startswith("events.out.tfevents.") for path in folder)
  first, second = map(events, folder)
  assert first[0].file_version == "brain.Event:2"
  values = [
    (e.step, v.tag, v.simple_value) for e in first for v in e.summary.value
  ]
  assert values == [(30, "train/loss", 2.5), (30, "odd", math.inf)]
  (value,) = (v for e in second for v in e.summary.value)
  assert (value.tag, value.simple_value) == ("eval/accuracy", 0.75)
  # All from there on is forgotten.
  start = event_pb2.SessionLog.START
  assert [e.step for e in second if e.session_log.status == start] == [21]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("which", ["metrics.jsonl", "events.out"])
def test_a_full_disk_is_told(writer, which):
  w = writer()
  (number,) = (
    n
    for n in os.listdir("/proc/self/fd")
    if which in os.path.basename(os.path.realpath(f"/proc/self/fd/{n}"))
  )
  with open("/dev/full", "wb", buffering=0) as full:
    os.dup2(full.fileno(), int(number))
  with pytest.raises(UserError, match="No space left.*start the same command"):
    for step in range(10_000):  # Rather than to wait forever.
      w.write(step, {"train/loss": 2.5})
  w.close()  # What has been told stays the only error.


def test_other_hosts_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  w = metrics.Writer(tmp_path, 0)
  w.write(1, {"train/loss": 2.5})
  w.flush()
  assert w.last("train/loss")["step"] == 1  # They decide as the first one does.
  w.close()
  assert not list(tmp_path.iterdir())


class Run:
  """A reporter with updates of a second, that have no device behind them."""

  def __init__(self, workdir, monkeypatch, start=0, peak=None, **changes):
    config = smoke.get_config()
    for key, value in changes.items():
      config[key] = value
    self.now, self.workdir, self.read = 0.0, workdir, []
    monkeypatch.setattr(reporter.time, "monotonic", lambda: self.now)
    monkeypatch.setattr(reporter.hardware, "peak", lambda kind: peak)
    inputs = types.SimpleNamespace(
      config=config,
      plan=durations.plan(config, 1400),
      train_records=lambda step: list(range(step, step + 32)),
    )
    self.report = reporter.Reporter(
      workdir, inputs, model.from_config(config, 10), start, 0.0
    )
    timing = types.SimpleNamespace(waited=0.25, images_per_second=7.0)
    self.report.loader = types.SimpleNamespace(timing=lambda: timing)
    self.report.goodput.begin()

  def update(self, step: int, **values: float) -> None:
    """One whose metrics note when they are read."""
    self.now += 1.0

    def late(value: float):
      item = lambda: self.read.append(step) or value  # noqa: E731
      return types.SimpleNamespace(item=item)

    values = dict.fromkeys(_METRICS, 1.0) | values
    self.report.update(step, {k: late(v) for k, v in values.items()})

  def records(self) -> dict[int, dict]:
    return {r["step"]: r for r in metrics.read(self.workdir)}


@pytest.fixture
def run(tmp_path, monkeypatch):
  """`run(**changes)` -> a `Run`; closed at the end."""
  made = []

  def make(*args, **changes) -> Run:
    made.append(Run(tmp_path, monkeypatch, *args, **changes))
    return made[-1]

  yield make
  for each in made:
    each.report.close()


def test_metrics_are_read_one_update_late_and_logged_when_due(run):
  r = run(total="25 steps", log_every="10 steps")
  for step in range(1, 26):
    r.update(step)
    assert {*r.read} == {*range(1, step)}
  assert [*r.records()] == [1, 10, 20]
  r.report.settle()
  assert {*r.read} == {*range(1, 26)} and [*r.records()] == [1, 10, 20, 25]
  again = run(5, total="25 steps", log_every="10 steps")
  again.update(6)
  again.update(7)
  assert [*again.records()] == [1]  # As if it had not stopped.
  for last in (10, 15, 20, 25):  # Several at a time: each is told.
    loss = np.arange(last - 4, last + 1, dtype=np.float32)
    values = {k: np.ones(5, np.float32) for k in _METRICS} | {"loss": loss}
    again.report.update(last, values, 5)
  again.report.settle()
  found = {s: v["train/loss"] for s, v in again.records().items()}
  assert found == {1: 1, 10: 10, 20: 20, 25: 25}


def test_speed_is_that_of_training_alone(run):
  r = run(log_every="10 steps", batch_size=32, peak=1e9)
  for step in range(1, 32):
    r.update(step)
    if step == 15:
      with r.report.goodput.spend("evaluation"):
        r.now += 100
      with r.report.goodput.spend("saving"), pytest.raises(OSError):
        r.now += 100
        raise OSError
  found = r.records()
  assert "train/images_per_second" not in found[1]
  for step in (10, 20, 30):
    assert found[step]["train/seconds_per_step"] == pytest.approx(1.0)
    assert found[step]["train/images_per_second"] == pytest.approx(32)
    assert found[step]["data/images_per_second"] == 7.0
  assert found[20]["data/wait"] == pytest.approx(0.025)
  flop = model.update_flop(
    model.from_config(smoke.get_config(), 10), smoke.get_config()
  )
  assert found[20]["train/mfu"] == pytest.approx(32 * flop / 8e9)


def test_a_broken_update_stops_the_run_or_is_skipped(run, capsys):
  r = run(nonfinite_limit=2)
  r.update(1, learning_rate=math.inf)  # Nobody's concern.
  r.update(2, grad_norm=math.nan)
  with pytest.raises(reporter.NotFinite) as caught:
    r.report.settle()  # As before every save.
  text = str(caught.value)
  assert text.startswith("train/grad_norm is nan at step 2: training stops the")
  assert "records 2, 3, 4, 5, 6, 7, ... of digits, train" in text
  assert f"python -m mixer replay {r.workdir} --step=2" in text
  report = json.loads((r.workdir / "nonfinite" / "2.json").read_text())
  assert report["records"] == [*range(2, 34)] and report["split"] == "train"
  for step in (3, 4, 6, 7):
    r.update(step, loss=math.inf, skipped=1.0)
    if step == 4:
      r.update(5, skipped=0.0)
  out = capsys.readouterr().out
  assert "train/loss is inf at step 6: skipped. Its batch" in out
  r.update(8, loss=math.inf, skipped=1.0)
  with pytest.raises(reporter.NotFinite, match="The 2 updates before it were"):
    r.report.settle()


def test_time_goes_on_over_starts(run, capsys):
  r = run(log_every="1 steps", keep_best="eval/loss")
  r.update(1)
  with r.report.goodput.spend("data"):
    r.now += 3
    with r.report.goodput.spend("saving"):
      r.now += 2
  r.report.evaluation(1, {"eval/loss": 0.5, "eval/examples": 7})
  assert r.report.scores() == {1: -0.5}
  r.update(2)
  r.update(3)
  r.report.close()
  assert "step 1: eval/loss 0.5000\n" in capsys.readouterr().out
  again = run(1, log_every="1 steps")  # Update 2 was in vain.
  again.now += 5
  again.report.account(1)
  found = {
    k.removeprefix("goodput/"): v
    for k, v in metrics.read(r.workdir)[-1].items()
    if v and k != "step"
  }
  assert found == {"data": 3, "saving": 2, "step": 7, "lost": 1}
  out = capsys.readouterr().out
  assert " 7.7%  lost to restarts" in out and "in all" in out


def test_the_line_of_an_evaluation_is_short(run, capsys):
  values = {"eval/accuracy": 0.5, "eval/balanced_accuracy": 0.25}
  values |= {"eval/macro_f1": 0.125, "eval/examples": 8}
  for imbalance in (1.5, 1.6):
    run().report.evaluation(1, values | {"eval/imbalance": imbalance})
  alike, unlike = capsys.readouterr().out.splitlines()
  assert alike == "step 1: eval/accuracy 0.5000"
  assert unlike == f"{alike}  eval/balanced_accuracy 0.2500"


def test_a_terminal_gets_one_live_line(run, capsys, monkeypatch):
  monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
  r = run(total="100 steps", log_every="10 steps", peak=1e9)
  for step in range(1, 12):
    r.update(step)
  r.report.say("a line")
  live, line = capsys.readouterr().out.rsplit("\n", 2)[0].rsplit("\r\x1b[K", 1)
  assert line == "a line" and "\n" not in live
  text = live.rsplit("\r\x1b[K", 1)[-1]
  assert text.startswith("step  10/100  loss 1.0000  32 images/s  MFU ")
  assert text.endswith("%  1m30s left")
  r.update(12)
  r.report.close()
  assert capsys.readouterr().out.endswith("\n")
