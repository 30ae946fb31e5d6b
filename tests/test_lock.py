"""One run at a time in a workdir."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mixer import lock
from mixer.errors import UserError
from tests import conftest


def record(workdir) -> dict:
  return json.loads((workdir / lock.FILE).read_bytes().strip(b" \0"))


def until(condition):
  """Waits for what another thread or process does; a hang fails the test."""
  for _ in range(6000):
    if found := condition():
      return found
    time.sleep(0.01)
  raise AssertionError("it didn't come")


def refusal(workdir) -> str:
  with pytest.raises(
    UserError, match=f"--workdir={workdir} is in us"
  ) as caught:
    lock.Lock(workdir).__enter__()
  return str(caught.value)


_HOLD = """
import sys, time
from mixer import lock
with lock.Lock(sys.argv[1]):
  print("held", flush=True)
  time.sleep(1000)
"""


def test_two_processes(tmp_path, capsys):
  command = [sys.executable, "-c", _HOLD, str(tmp_path), "--config=x.py"]
  pipe, root = subprocess.PIPE, conftest.ROOT
  with subprocess.Popen(command, cwd=root, stdout=pipe, text=True) as other:
    assert other.stdout.readline() == "held\n"
    who = f"process {other.pid} on {os.uname().nodename} (user "
    assert who in refusal(tmp_path) and "--config=x.py`)" in refusal(tmp_path)
    other.send_signal(signal.SIGSTOP)  # A suspended owner is one.
    assert who in refusal(tmp_path)
    other.kill()
  with lock.Lock(tmp_path) as held:  # At once.
    out = capsys.readouterr().out
    assert who in out and "no longer runs; its lock of this workdir is" in out
    assert f"process {os.getpid()} on" in record(tmp_path)["name"]
    assert f"process {os.getpid()} on" in refusal(tmp_path)
    held.check()
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"{", b"\xff[]", b"3"])
def test_any_content_of_a_dead_owner_is_taken_over(tmp_path, content, capsys):
  (tmp_path / lock.FILE).write_bytes(content)
  with lock.Lock(tmp_path):
    out = capsys.readouterr().out
    assert ("unknown process no longer" in out) == bool(content.strip(b"\0"))
    assert record(tmp_path)["name"]


_RACE = """
import multiprocessing, os, sys
import jax
from mixer import lock
from mixer.errors import UserError
context = multiprocessing.get_context("fork")

def run(folder, rounds, barrier):
  for i in range(rounds):
    held = lock.Lock(f"{folder}/{i}")
    barrier.wait()
    try:
      held.__enter__()
      os.write(2, f"{i} won\\n".encode())
    except UserError as e:
      os.write(2, f"{i} {e}\\n".encode())
    barrier.wait()
    if i % 2:
      held.release()

jax.process_count()
folder, count, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
args = (folder, rounds, context.Barrier(count))
processes = [context.Process(target=run, args=args) for _ in range(count)]
for p in processes: p.start()
for p in processes: p.join()
"""


def test_of_many_starts_at_once_one_wins(tmp_path):
  count, rounds = 8, 12
  for i in range(0, rounds, 3):
    (tmp_path / str(i)).mkdir()
    (tmp_path / str(i) / lock.FILE).write_text('{"name": "x"}')
  words = (str(tmp_path), str(count), str(rounds))
  run = subprocess.run(
    [sys.executable, "-c", _RACE, *words],
    cwd=conftest.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert run.returncode == 0, run.stderr
  for i in range(rounds):
    mine = [x for x in run.stderr.splitlines() if x.startswith(f"{i} ")]
    won = [x for x in mine if x.endswith(" won")]
    assert len(mine) == count and len(won) == 1, mine
    assert sum("is in use: process" in x for x in mine) == count - 1
    assert (tmp_path / str(i) / lock.FILE).exists() == (i % 2 == 0)


@pytest.mark.parametrize("gone", ["record", "replaced", "moved", "begun anew"])
def test_what_vanishes_is_noticed_and_not_made_anew(tmp_path, gone):
  workdir, there = tmp_path / "run", gone in ("record", "replaced")
  with lock.Lock(workdir) as held:
    held.check()
    if there:
      (workdir / "config.json").touch()
      (workdir / lock.FILE).unlink()
    else:
      workdir.rename(tmp_path / "elsewhere")
    if gone == "replaced":
      (workdir / lock.FILE).write_text("another's")
    if gone == "begun anew":  # By a save that was under way.
      (workdir / "checkpoints").mkdir(parents=True)
    what = f"{lock.FILE} was deleted" if there else f"{workdir} has vanished"
    for _ in range(2):  # It stays lost.
      with pytest.raises(lock.LostError, match=f"{what}.*without saving"):
        held.check()
  names = {p.name for p in workdir.iterdir()} if workdir.exists() else None
  assert (
    names
    == {
      "record": {"config.json"},
      "replaced": {"config.json", lock.FILE},
      "moved": None,
      "begun anew": {"checkpoints"},
    }[gone]
  )


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch, capsys):
  def none(*unused):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(lock.fcntl, "flock", none)
  with lock.Lock(tmp_path) as held:
    held.check()
  assert "can't be locked (No locks available)" in capsys.readouterr().out
  assert not (tmp_path / lock.FILE).exists()
