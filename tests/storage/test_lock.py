"""One run at a time in a workdir."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import portpicker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.errors import UserError
from mixer.storage import lock, lock_file, owner
from tests import conftest


@pytest.fixture
def quick(monkeypatch):
  """All waits, but for those on other machines, in a hundredth of the time."""
  monkeypatch.setattr(lock, "BEAT", 0.05)
  monkeypatch.setattr(lock, "WATCH", 0.5)


def record(workdir) -> dict:
  return json.loads((workdir / lock.FILE).read_bytes().rstrip(b"\0"))


def leave(workdir, **changes) -> dict:
  """What an owner has left behind: this process, but for some of its marks."""
  workdir.mkdir(exist_ok=True)
  left = owner.this_process() | {"beats": 7} | changes
  (workdir / lock.FILE).write_text(json.dumps(left))
  return left


def refusal(workdir) -> str:
  before = (workdir / lock.FILE).read_bytes()
  with pytest.raises(UserError) as caught, lock.Lock(workdir):
    pass
  assert (workdir / lock.FILE).read_bytes() == before
  return str(caught.value)


def until(condition):
  """Waits for what another thread or process does; a hang fails the test."""
  for _ in range(6000):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError("it didn't come")


_HOLD = """
import sys, time
from mixer.storage import lock
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
  """Another process, which has the lock."""
  process = subprocess.Popen(
    [sys.executable, "-c", _HOLD, str(workdir), "--config=configs/x.py"],
    cwd=conftest.ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout and process.stdout.readline().startswith("held")
    yield process
  finally:
    process.kill()
    process.communicate()


def test_the_owner_leaves_its_name_and_takes_it_away(tmp_path):
  workdir = tmp_path / "runs" / "one"
  with lock.Lock(workdir) as held:
    found = record(workdir)
    held.check()
    assert held.sentence == ""
  assert found["pid"] == os.getpid() and found["host"] == os.uname().nodename
  assert os.path.basename(sys.argv[0]) in found["command"]
  assert list(workdir.iterdir()) == []
  with lock.Lock(workdir) as held:  # And again.
    assert held.sentence == ""


def test_a_second_run_is_refused_with_the_first_ones_name(tmp_path):
  with holder(tmp_path) as process:
    message = refusal(tmp_path)
    assert (
      f"--workdir={tmp_path} is in use: process {process.pid} on " in message
    )
    assert os.uname().nodename in message
    assert "--config=configs/x.py`) is training there" in message
    assert "stop it or use another --workdir." in message
    assert "suspended" not in message


def test_a_second_lock_of_the_same_process_is_refused(tmp_path):
  with lock.Lock(tmp_path) as first:
    assert f"process {os.getpid()} on" in refusal(tmp_path)
    first.check()


def test_what_was_killed_is_replaced_at_once(tmp_path):
  with holder(tmp_path) as process:
    process.send_signal(signal.SIGKILL)
    # It has ended but nobody has waited for it: it has its entry in /proc.
    until(lambda: owner._stat(process.pid)[0] == "Z")
    with lock.Lock(tmp_path) as held:
      assert f"process {process.pid} on" in held.sentence
      assert "no longer runs; its lock is taken over" in held.sentence
      held.check()
  (tmp_path / lock.FILE).write_text(json.dumps(record_of(process.pid)))
  with lock.Lock(tmp_path) as held:  # Now it has none.
    assert "no longer runs" in held.sentence


def record_of(pid: int) -> dict:
  return owner.this_process() | {"pid": pid}


def test_a_recycled_process_id_is_no_owner(tmp_path):
  leave(tmp_path, started=owner.this_process()["started"] - 1)
  with lock.Lock(tmp_path) as held:
    assert "no longer runs" in held.sentence


def test_a_suspended_owner_is_an_owner(tmp_path):
  with holder(tmp_path) as process:
    process.send_signal(signal.SIGSTOP)
    until(lambda: owner._stat(process.pid)[0] == "T")
    message = refusal(tmp_path)
    assert f"It is suspended: kill -CONT {process.pid} lets it" in message
    # One elsewhere sees no more than a counter that stands still.
    new = leave(tmp_path, host="elsewhere", pid=4321)
    process.send_signal(signal.SIGCONT)
    out, _ = process.communicate(timeout=60)
    assert "was taken over by process 4321 on elsewhere" in out
    assert "stops without saving" in out
    assert record(tmp_path) == new


ELSEWHERE = [
  {"host": "elsewhere"},
  {"boot": "another"},
  {"namespace": "pid:[1]"},
]


@pytest.mark.parametrize("place", ELSEWHERE, ids=str)
def test_an_owner_elsewhere_that_stands_still_is_replaced(
  tmp_path, quick, place, capsys
):
  left = leave(tmp_path, **place)
  with lock.Lock(tmp_path) as held:
    assert f"process {left['pid']} on {left['host']}" in held.sentence
    assert (
      "showed no sign of life for 0.5 s; its lock is taken" in held.sentence
    )
    held.check()
  assert "watching for 0.5 s whether process" in capsys.readouterr().out


@pytest.mark.parametrize("place", ELSEWHERE, ids=str)
def test_an_owner_elsewhere_that_counts_is_one(tmp_path, quick, place):
  left = leave(tmp_path, **place)
  later = dict(left)
  done = threading.Event()

  def count():
    # Only once it is watched; os.replace is what makes it whole.
    while not done.wait(0.05):
      later["beats"] += 1
      (tmp_path / "new").write_text(json.dumps(later))
      os.replace(tmp_path / "new", tmp_path / lock.FILE)

  thread = threading.Thread(target=count)
  thread.start()
  try:
    with pytest.raises(UserError, match="is in use: process"):
      lock.Lock(tmp_path).__enter__()
  finally:
    done.set()
    thread.join()
  assert record(tmp_path)["token"] == left["token"]


def test_an_owner_elsewhere_that_ends_leaves_no_word(
  tmp_path, quick, monkeypatch
):
  leave(tmp_path, host="elsewhere")
  monkeypatch.setattr(
    lock.time, "sleep", lambda _: (tmp_path / lock.FILE).unlink(missing_ok=True)
  )
  with lock.Lock(tmp_path) as held:
    assert held.sentence == ""
    assert record(tmp_path)["host"] == os.uname().nodename


def test_clocks_that_jump_change_nothing(tmp_path, quick, monkeypatch):
  jumps = iter(range(10**6))
  monkeypatch.setattr(time, "time", lambda: next(jumps) * (-1e9))
  leave(tmp_path, host="elsewhere")
  with lock.Lock(tmp_path) as held:
    assert "showed no sign of life for 0.5 s" in held.sentence
    before = record(tmp_path)["beats"]
    until(lambda: record(tmp_path)["beats"] > before + 2)
    held.check()


@pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 4096])
def test_what_a_machine_that_went_down_leaves_is_nobody(tmp_path, content):
  (tmp_path / lock.FILE).write_bytes(content)
  with lock.Lock(tmp_path) as held:
    assert held.sentence == ""


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"{}", b"3"])
def test_what_is_no_record_is_watched(tmp_path, quick, content):
  (tmp_path / lock.FILE).write_bytes(content)
  with lock.Lock(tmp_path) as held:
    assert "a process that can't be made out showed no sign" in held.sentence


@given(
  st.binary()
  | st.dictionaries(st.text(), st.integers()).map(
    lambda d: json.dumps(d).encode()
  )
)
def test_any_record_can_be_described(data):
  assert owner.describe(owner.parse(data)).startswith(("process ", "a process"))
  assert owner.is_alive(owner.parse(data)) is None


@given(
  st.none() | st.booleans() | st.integers() | st.text() | st.floats(),
  # Start times that no process has, as that of process 1 in a container is a
  # small number, which is drawn sooner or later; 2**40 ticks are centuries.
  st.none() | st.integers(max_value=-1) | st.integers(2**40) | st.text(),
)
def test_only_this_very_process_is_alive(pid, started):
  found = owner.is_alive(
    owner.this_process() | {"pid": pid, "started": started}
  )
  assert found is not True


def test_who_can_not_be_looked_up_is_watched(monkeypatch):
  me = owner.this_process()
  assert owner.is_alive(me) is True
  # As for a process of another user where /proc is mounted with hidepid.
  monkeypatch.setattr(owner, "_stat", lambda pid: None)
  assert owner.is_alive(me) is None
  assert owner.is_alive(me | {"pid": 2**22 + 1}) is False
  # And on a system without /proc.
  monkeypatch.setattr(owner, "_PROC", owner.pathlib.Path("/nowhere"))
  nowhere = owner.this_process()
  assert nowhere["boot"] is nowhere["started"] is None
  assert owner.is_alive(nowhere) is None


_RACE = """
import json, multiprocessing, sys
import jax
from mixer.storage import lock, owner
from mixer.errors import UserError
context = multiprocessing.get_context("fork")

def run(folder, rounds, barrier, results):
  jax.process_index()
  for i in range(rounds):
    held = lock.Lock(f"{folder}/{i}")
    barrier.wait()
    try:
      held.__enter__()
      results.put((i, "won"))
    except UserError as e:
      results.put((i, str(e)))
    barrier.wait()
    if i % 2:  # Otherwise it stays, as by kill -9.
      held.release()

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


@pytest.mark.parametrize("left", ["nothing", "a dead owner", "an empty file"])
def test_of_many_starts_at_once_one_wins(tmp_path, left):
  count, rounds = 8, 40
  for i in range(rounds):
    if left == "a dead owner":
      leave(tmp_path / str(i), started=1)
    elif left == "an empty file":
      (tmp_path / str(i)).mkdir()
      (tmp_path / str(i) / lock.FILE).touch()
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
    assert len(said) == count and said.count("won") == 1
    assert all("is in use: process" in t for t in said if t != "won")
    assert (tmp_path / str(i) / lock.FILE).exists() == (i % 2 == 0)


def lost(held) -> str:
  """What `check` says as soon as it has noticed."""
  said = []

  def noticed():
    try:
      held.check()
    except lock.LostError as e:
      said.append(str(e))
    return said

  until(noticed)
  with pytest.raises(lock.LostError, match="without saving"):
    held.check()  # It stays lost.
  return said[0]


def test_who_was_replaced_is_told_by_whom(tmp_path, quick):
  with lock.Lock(tmp_path) as held:
    new = leave(tmp_path, host="elsewhere", pid=99, command="python other.py")
    message = lost(held)
  assert "was taken over by process 99 on elsewhere" in message
  assert "`python other.py`" in message
  assert record(tmp_path) == new  # It is the other's, and stays.


def test_who_was_replaced_and_comes_to_himself_is_told_at_once(
  tmp_path, monkeypatch
):
  with lock.Lock(tmp_path) as held:
    leave(tmp_path, host="elsewhere", pid=99)
    held.check()  # The next beat is seconds away.
    now = lock._now()
    monkeypatch.setattr(lock, "_now", lambda: now + 60)
    with pytest.raises(lock.LostError, match="process 99 on elsewhere"):
      held.check()


def test_a_deleted_record_is_told(tmp_path, quick):
  with lock.Lock(tmp_path) as held:
    (tmp_path / "config.json").touch()
    (tmp_path / lock.FILE).unlink()
    assert f"{tmp_path / lock.FILE} was deleted" in lost(held)
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("gone", ["deleted", "renamed", "begun anew"])
def test_a_vanished_workdir_is_told(tmp_path, quick, gone):
  workdir = tmp_path / "run"
  with lock.Lock(workdir) as held:
    if gone == "deleted":
      shutil.rmtree(workdir)
    else:
      workdir.rename(tmp_path / "elsewhere")
    if gone == "begun anew":  # By a save that was under way.
      (workdir / "checkpoints").mkdir(parents=True)
    assert f"--workdir={workdir} has vanished" in lost(held)
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
    held.check()
    monkeypatch.setattr(os, "pwrite", broken)
    monkeypatch.setattr(lock, "PATIENCE", 0.2)
    message = lost(held)
  assert "has been out of reach for" in message
  assert "(Read-only file system)" in message
  assert "Mend the cause and start the same command again" in message


def test_a_full_disk_keeps_the_owner(tmp_path, quick, monkeypatch):
  with lock.Lock(tmp_path) as held:
    size = (tmp_path / lock.FILE).stat().st_size
    blocks = (tmp_path / lock.FILE).stat().st_blocks
    before = record(tmp_path)["beats"]
    until(lambda: record(tmp_path)["beats"] > before + 3)
    # Its counter needs no room beyond that which it has from the start.
    assert (tmp_path / lock.FILE).stat().st_size == size
    assert (tmp_path / lock.FILE).stat().st_blocks == blocks
    held.check()
  monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
  with pytest.raises(UserError, match="can't be written to .No space left"):
    lock.Lock(tmp_path).__enter__()


def test_a_workdir_that_takes_no_files_is_refused(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="can't be written to .File exists"):
    lock.Lock(tmp_path / "file").__enter__()


def test_no_thread_is_left(tmp_path, quick):
  before = threading.active_count()
  for _ in range(20):
    with lock.Lock(tmp_path):
      pass
  until(lambda: threading.active_count() == before)


def test_release_from_another_thread_lets_the_next_in(tmp_path):
  with lock.Lock(tmp_path) as held:
    thread = threading.Thread(target=held.release)
    thread.start()
    thread.join()
    assert list(tmp_path.iterdir()) == []
    with lock.Lock(tmp_path):
      held.release()  # Twice does no harm to the next one.
      held.check()
      assert record(tmp_path)


def test_what_holds_the_file_and_is_suspended_is_not_waited_for(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(lock_file, "_WAIT", 0.05)
  with open(tmp_path / lock.FILE, "w") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process, suspended perhaps"):
      lock.Lock(tmp_path).__enter__()


def test_a_file_system_without_flock_will_do(tmp_path, quick, monkeypatch):
  def flock(*unused):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", flock)
  with lock.Lock(tmp_path) as held:
    assert "is in use" in refusal(tmp_path)
    held.check()
  assert list(tmp_path.iterdir()) == []


def check_compare_and_swap(file, moves):
  """Follows what two clients do, and what a file must hold then."""
  seen, truth = [None, None], None
  for who, move, data in moves:
    fresh = seen[who] == truth
    if move == "read":
      seen[who] = file.read()
      assert (seen[who] and seen[who].data) == (truth and truth.data)
      seen[who] = truth
    elif move == "write":
      written = file.write(data, seen[who])
      assert (written is not None) == fresh
      if written is not None:
        assert written.data == data
        truth = seen[who] = written
    elif seen[who] is not None:
      file.remove(seen[who])
      if fresh:
        truth = seen[who] = None
    found = file.read()
    assert (found and found.data) == (truth and truth.data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("files")


def moves_of_two(count):
  """Up to so many moves: (who, what, content)."""
  # No content comes twice: a run's token and counter see to that.
  return st.lists(
    st.tuples(
      st.integers(0, 1),
      st.sampled_from(["read", "write", "write", "remove"]),
      st.integers(1, 10**9).map(lambda i: b"%d" % i),
    ),
    max_size=count,
    unique_by=lambda move: move[2],
  )


@given(moves_of_two(12))
def test_a_file_changes_only_under_who_knows_it(folder, moves):
  path = folder / "file"
  path.unlink(missing_ok=True)
  check_compare_and_swap(lock_file.open_file(path), moves)


_TWO = """
import sys
import jax
rank, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
from mixer.cluster import hosts
from mixer.storage import lock
from mixer.errors import UserError
try:
  with lock.Lock(workdir) as held:
    held.check()
    print("held", held.sentence, flush=True)
    hosts.gather("both", 0)
except UserError as e:
  print(e, flush=True)
hosts.gather("end", 0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("left", ["nothing", "dead", "alive"])
def test_all_processes_hear_the_same(tmp_path, left):
  if left != "nothing":
    leave(tmp_path, **({"started": 1} if left == "dead" else {}))
  port = str(portpicker.pick_unused_port())
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", _TWO, str(rank), port, str(tmp_path)],
      cwd=conftest.ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(2)
  ]
  said = [p.communicate(timeout=120) for p in processes]
  assert [p.returncode for p in processes] == [0, 0], said
  first, second = (out for out, _ in said)
  assert first == second
  expected = {
    "nothing": "held \n",
    "dead": "no longer runs; its lock is taken over\n",
    "alive": "is training there; stop it or use another --workdir.\n",
  }
  assert first.endswith(expected[left])
  assert (tmp_path / lock.FILE).exists() == (left == "alive")


def test_other_processes_hold_nothing(tmp_path, monkeypatch):
  with lock.Lock(tmp_path) as held:
    (tmp_path / lock.FILE).unlink()
    now = lock._now()
    monkeypatch.setattr(lock, "_now", lambda: now + 60)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    held.check()  # The first one looks.
