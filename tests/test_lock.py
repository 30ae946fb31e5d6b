"""One run at a time in a workdir."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from mixer import lock
from mixer.errors import UserError
from tests import conftest


@pytest.fixture
def quick(monkeypatch):
  """All waits in a hundredth of the time."""
  monkeypatch.setattr(lock, "BEAT", 0.05)
  monkeypatch.setattr(lock, "WATCH", 0.5)


def record(workdir) -> dict:
  return json.loads((workdir / lock.FILE).read_bytes().rstrip(b"\0"))


def leave(workdir, **changes) -> dict:
  """What an owner on another machine has left behind."""
  workdir.mkdir(exist_ok=True)
  left = {"name": "process 99 on elsewhere", "boot": "b", "token": "t"}
  left |= {"beats": 7} | changes
  (workdir / "new").write_text(json.dumps(left))
  os.replace(workdir / "new", workdir / lock.FILE)
  return left


def until(condition):
  """Waits for what another thread or process does; a hang fails the test."""
  for _ in range(6000):
    if found := condition():
      return found
    time.sleep(0.01)
  raise AssertionError("it didn't come")


def lost(held) -> str:
  """What `check` says as soon as it has noticed."""

  def noticed():
    with contextlib.suppress(UserError):
      held.check()
      return ""
    with pytest.raises(lock.LostError, match="without saving") as caught:
      held.check()  # It stays lost.
    return str(caught.value)

  return until(noticed)


def refusal(workdir) -> str:
  before = record(workdir)["token"]
  with pytest.raises(
    UserError, match=f"--workdir={workdir} is in us"
  ) as caught:
    lock.Lock(workdir).__enter__()
  assert record(workdir)["token"] == before
  return str(caught.value)


_HOLD = """
import sys, time
from mixer import lock
lock.BEAT = 0.1
with lock.Lock(sys.argv[1]) as held:
  print("held", held.sentence, flush=True)
  try:
    while True:
      held.check()
      time.sleep(0.01)
  except lock.LostError as e:
    print(e, flush=True)
"""


@contextlib.contextmanager
def holder(workdir):
  """A process that holds the workdir, ended in any case."""
  command = [sys.executable, "-c", _HOLD, str(workdir), "--config=x.py"]
  pipe, root = subprocess.PIPE, conftest.ROOT
  with subprocess.Popen(command, cwd=root, stdout=pipe, text=True) as other:
    try:
      assert other.stdout.readline() == "held \n"
      yield other
    finally:
      other.kill()


def test_two_processes(tmp_path):
  with holder(tmp_path) as other:
    who = f"process {other.pid} on {os.uname().nodename} (user "
    assert who in refusal(tmp_path) and "--config=x.py`)" in refusal(tmp_path)
    # A suspended owner is one, and its counter stands still.
    other.send_signal(signal.SIGSTOP)
    assert who in refusal(tmp_path)
  with lock.Lock(tmp_path) as held:  # At once.
    assert who in held.sentence
    assert "no longer runs; its lock is taken over" in held.sentence
    assert f"process {os.getpid()} on" in record(tmp_path)["name"]
    assert f"process {os.getpid()} on" in refusal(tmp_path)
    held.check()
  assert list(tmp_path.iterdir()) == []
  with holder(tmp_path) as other:
    # One on another machine sees no more than a counter that stands still.
    other.send_signal(signal.SIGSTOP)
    new = leave(tmp_path)
    other.send_signal(signal.SIGCONT)
    # Suspended within a beat it ends that first: then the other writes again.
    until(lambda: other.poll() is not None or not leave(tmp_path))
    assert "was taken over by process 99 on elsewhere" in other.stdout.read()
  assert record(tmp_path) == new


def test_an_owner_elsewhere_that_stands_still_is_replaced(
  tmp_path, quick, capsys, monkeypatch
):
  leave(tmp_path)
  jumps = iter(range(10**6))  # Clocks that jump change nothing.
  monkeypatch.setattr(time, "time", lambda: next(jumps) * (-1e9))
  with lock.Lock(tmp_path) as held:
    assert "process 99 on elsewhere showed no sign of life" in held.sentence
    before = record(tmp_path)["beats"]
    until(lambda: record(tmp_path)["beats"] > before + 2)
    held.check()
  assert "watching for 0.5 s whether process 99" in capsys.readouterr().out


def test_an_owner_elsewhere_that_counts_is_one(tmp_path, quick):
  left, done = leave(tmp_path), threading.Event()

  def count():
    while not done.wait(0.05):
      left["beats"] += 1
      (tmp_path / "new").write_text(json.dumps(left))
      os.replace(tmp_path / "new", tmp_path / lock.FILE)

  thread = threading.Thread(target=count)
  thread.start()
  try:
    with pytest.raises(UserError, match="is in use: process 99 on elsewhere"):
      lock.Lock(tmp_path).__enter__()
  finally:
    done.set()
    thread.join()
  assert record(tmp_path)["token"] == "t"


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"{", b"\xff[]", b"3"])
def test_any_content_is_nobody_or_watched(tmp_path, quick, content):
  (tmp_path / lock.FILE).write_bytes(content)
  with lock.Lock(tmp_path) as held:
    assert not held.sentence or "that can't be made out show" in held.sentence
    assert bool(held.sentence) == bool(content.strip(b"\0"))


_RACE = """
import json, multiprocessing, sys
import jax
from mixer import lock
from mixer.errors import UserError
context = multiprocessing.get_context("fork")

def run(folder, rounds, barrier, results):
  for i in range(rounds):
    held = lock.Lock(f"{folder}/{i}")
    barrier.wait()
    try:
      held.__enter__()
      results.put((i, "won"))
    except UserError as e:
      results.put((i, str(e)))
    barrier.wait()
    if i % 2:
      held.release()

jax.process_count()
folder, count, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
barrier, results = context.Barrier(count), context.Queue()
processes = [
  context.Process(target=run, args=(folder, rounds, barrier, results))
  for _ in range(count)
]
for p in processes: p.start()
print(json.dumps([results.get() for _ in range(count * rounds)]))
for p in processes: p.join()
"""


def test_of_many_starts_at_once_one_wins(tmp_path):
  count, rounds = 8, 24
  for i in range(rounds):
    if i % 3:
      leave(tmp_path / str(i), boot=lock._boot())
    if i % 3 == 2:
      (tmp_path / str(i) / lock.FILE).write_text("")
  run = subprocess.run(
    [sys.executable, "-c", _RACE, str(tmp_path), str(count), str(rounds)],
    cwd=conftest.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert run.returncode == 0, run.stderr
  results = json.loads(run.stdout)
  for i in range(rounds):
    said = [text for j, text in results if j == i]
    assert len(said) == count and said.count("won") == 1, (i, said)
    others = [text for text in said if text != "won"]
    assert not [text for text in others if "in use: process" not in text]
    assert (tmp_path / str(i) / lock.FILE).exists() == (i % 2 == 0)


@pytest.mark.parametrize("gone", ["record", "workdir", "moved", "begun anew"])
def test_what_vanishes_is_told_and_not_made_anew(tmp_path, quick, gone):
  workdir = tmp_path / "run"
  with lock.Lock(workdir) as held:
    if gone == "record":
      (workdir / "config.json").touch()
      (workdir / lock.FILE).unlink()
    elif gone == "workdir":
      shutil.rmtree(workdir)
    else:
      workdir.rename(tmp_path / "elsewhere")
    if gone == "begun anew":  # By a save that was under way.
      (workdir / "checkpoints").mkdir(parents=True)
    said = lost(held)
  if gone == "record":
    assert f"{workdir / lock.FILE} was deleted" in said
    assert [p.name for p in workdir.iterdir()] == ["config.json"]
  else:
    assert f"--workdir={workdir} has vanished" in said
    assert workdir.exists() == (gone == "begun anew")


def test_a_disk_that_fails_for_a_while_is_borne(tmp_path, quick, monkeypatch):
  pwrite, failed = os.pwrite, []

  def broken(*unused):
    failed.append(1)
    raise OSError(errno.EROFS, "Read-only file system")

  with lock.Lock(tmp_path) as held:
    monkeypatch.setattr(os, "pwrite", broken)
    until(lambda: len(failed) > 2)
    held.check()
    monkeypatch.setattr(os, "pwrite", pwrite)
    before = record(tmp_path)["beats"]
    until(lambda: record(tmp_path)["beats"] > before)
    # One that was suspended beats before anything else is done.
    monkeypatch.setattr(lock, "BEAT", 1000.0)
    leave(tmp_path)
    now = lock._now()
    monkeypatch.setattr(lock, "_now", lambda: now + 3000)
    assert "was taken over by process 99 on elsewhere" in lost(held)
