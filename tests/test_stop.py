"""Signals, on one process and on several."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import stop

_ROOT = pathlib.Path(__file__).parent.parent


def python(code: str) -> subprocess.CompletedProcess:
  """Runs code in a process of its own."""
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )


@pytest.fixture
def handlers():
  """Handlers of our own, to be found again; pytest's come back at the end."""
  came = []

  def own(number, frame):
    came.append(number)

  before = {n: signal.signal(n, own) for n in stop._SIGNALS}
  yield own, came
  for number, handler in before.items():
    signal.signal(number, handler)


@pytest.mark.parametrize("number", stop._SIGNALS)
def test_a_signal_becomes_a_flag(handlers, number):
  own, came = handlers
  with stop.Watch() as watch:
    watch.check()
    os.kill(os.getpid(), number)
    assert watch.name == number.name
    with pytest.raises(stop.Preempted, match=number.name):
      watch.check()
    with pytest.raises(stop.Preempted):  # Until it is obeyed.
      watch.check()
  assert came == []
  assert signal.getsignal(signal.SIGTERM) is own
  assert signal.getsignal(signal.SIGINT) is own
  os.kill(os.getpid(), number)
  assert came == [number]


def test_handlers_come_back_after_an_exception(handlers):
  own, _ = handlers
  with pytest.raises(ValueError), stop.Watch():
    raise ValueError
  assert signal.getsignal(signal.SIGTERM) is own
  assert signal.getsignal(signal.SIGINT) is own


def test_outside_the_main_thread_it_listens_to_nothing(handlers):
  own, _ = handlers
  seen = []

  def work():
    with stop.Watch() as watch:
      seen.append(signal.getsignal(signal.SIGTERM))
      watch.check()

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [own]
  assert signal.getsignal(signal.SIGTERM) is own


def test_a_second_ctrl_c_exits_at_once():
  done = python(
    "import os, signal\n"
    "from mixer import stop\n"
    "with stop.Watch() as watch:\n"
    "  os.kill(os.getpid(), signal.SIGINT)\n"
    "  print(watch.name, flush=True)\n"
    "  os.kill(os.getpid(), signal.SIGINT)\n"
    "  print('still here', flush=True)\n"
  )
  assert done.returncode == 128 + signal.SIGINT
  assert done.stdout == "SIGINT\n"
  assert done.stderr.strip() == "second Ctrl-C: exiting at once, not saved"


def test_a_repeated_sigterm_changes_nothing(handlers):
  # Slurm and Kubernetes send it more than once; and of several processes each
  # may hear of it from its own machine and from the others.
  with stop.Watch() as watch:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
      os.kill(os.getpid(), number)
    assert watch.name == "SIGTERM"
    with pytest.raises(stop.Preempted, match="SIGTERM"):
      watch.check()


# Asleep in C, so that it is the thread that has to hear.
_DEAF = (
  "import os, signal, sys, threading\n"
  "from mixer import stop\n"
  "stop.listen()\n"
  "{}"
  "threading.Timer(0.2, os.kill, (os.getpid(), signal.{})).start()\n"
  "import ctypes\n"
  "for _ in range(9): ctypes.CDLL(None).sleep(60)\n"
)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_before_any_work_ends_it_at_once(name):
  done = python(_DEAF.format("", name))
  assert done.returncode == stop.PREEMPTED, done.stderr
  assert done.stderr == f"{name}: stopped, nothing was under way\n"


def test_a_signal_in_start_up_releases_what_is_held():
  more = (
    "watch = stop.Watch().__enter__()\n"
    "watch.leaving.append(lambda: print('released', flush=True))\n"
  )
  done = python(_DEAF.format(more, "SIGTERM"))
  assert done.returncode == stop.PREEMPTED, done.stderr
  assert done.stdout == "released\n"


def test_a_signal_while_working_waits_for_the_next_check():
  done = python(
    "import os, signal, time\n"
    "from mixer import stop\n"
    "stop.listen()\n"
    "with stop.Watch() as watch:\n"
    "  watch.check()\n"
    "  watch.working()\n"
    "  os.kill(os.getpid(), signal.SIGTERM)\n"
    "  while not watch.name: time.sleep(0.01)\n"
    "  try:\n"
    "    watch.check()\n"
    "  except stop.Preempted as e:\n"
    "    print(e)\n"
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("SIGTERM: stopped and saved")


_WORK = (
  "import fcntl, sys, termios, time\n"
  "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
  "from mixer import stop\n"
  "stop.listen()\n"
  "with stop.Watch() as watch:\n"
  "  watch.working()\n"
  "  try:\n"
  "    for i in range(2000):\n"
  "      stop.say('at work')\n"
  "      time.sleep(0.01)\n"
  "      watch.check()\n"
  "  except stop.Preempted as e:\n"
  "    stop.say(e, sys.stderr)\n"
  "    open(sys.argv[1], 'w').write(str(e))\n"
  "    sys.exit(stop.PREEMPTED)\n"
)


def test_a_terminal_that_is_closed_stops_it_in_good_order(tmp_path):
  main, terminal = os.openpty()
  process = subprocess.Popen(
    [sys.executable, "-c", _WORK, tmp_path / "saved"],
    cwd=_ROOT,
    stdin=terminal,
    stdout=terminal,
    stderr=terminal,
    start_new_session=True,
  )
  os.close(terminal)
  assert os.read(main, 7) == b"at work"
  os.close(main)
  assert process.wait(60) == stop.PREEMPTED
  assert (tmp_path / "saved").read_text().startswith("SIGHUP: stopped and")


def test_a_closed_terminal_is_no_matter_under_nohup():
  done = python(
    "import os, signal\n"
    "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # As nohup has it.
    "from mixer import stop\n"
    "stop.listen()\n"
    "with stop.Watch() as watch, stop.interrupting():\n"
    "  watch.working()\n"
    "  os.kill(os.getpid(), signal.SIGHUP)\n"
    "  watch.check()\n"
    "print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)\n"
  )
  assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.parametrize("number", stop._SIGNALS)
def test_a_signal_interrupts_once(handlers, number):
  own, _ = handlers
  with pytest.raises(KeyboardInterrupt, match=number.name):
    with stop.interrupting():
      try:
        os.kill(os.getpid(), number)
      finally:  # Schedulers and terminals repeat themselves.
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
  assert all(signal.getsignal(s) is own for s in stop._SIGNALS)


class Board:
  """`mixer.cluster.hosts.Board` among threads."""

  def __init__(self, count):
    self.said = {}
    self._barrier = threading.Barrier(count)
    self._passed = []

  def post(self, kind, text):
    self.said.setdefault(kind, text)

  def read(self):
    return dict(self.said)

  def stay(self):
    pass

  def next_after(self, passed):
    self._passed.append(passed)
    self._barrier.wait(30)
    return 1 + max(self._passed)


@settings(deadline=None, max_examples=6)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=4), st.integers(1, 40))
def test_all_processes_stop_at_the_same_check(delays, at):
  # Threads in place of processes: each at a pace of its own.
  board, stopped = Board(len(delays)), []

  def run(delay, first):
    watch = stop.Watch(board, poll=0.01)
    thread = threading.Thread(target=watch._look, daemon=True)
    thread.start()
    for i in range(100_000):
      try:
        watch.check()
      except stop.Preempted as e:
        stopped.append((i, str(e)))
        break
      if first and i == at:
        watch.heard(signal.SIGTERM)
      time.sleep(delay / 1000)
    watch.__exit__()

  threads = [
    threading.Thread(target=run, args=(delay, i == 0))
    for i, delay in enumerate(delays)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert len(stopped) == len(delays)
  assert len({i for i, _ in stopped}) == 1
  assert stopped[0][0] > at
  assert all(text.startswith("SIGTERM on ") for _, text in stopped)


def test_what_failed_elsewhere_ends_this_process_too():
  done = python(
    "import threading\n"
    "from mixer import stop\n"
    "class Board:\n"
    "  def read(self): return {'failed': 'process 1 on b failed: no disk'}\n"
    "  def stay(self): pass\n"
    "with stop.Watch(Board()):\n"
    "  threading.Event().wait(60)\n"
  )
  assert done.returncode == stop.FAILED
  assert done.stderr.strip() == "process 1 on b failed: no disk"


def test_time_begins_with_the_process_once():
  done = python(
    "import time; from mixer import stop; t = time.monotonic()\n"
    "a, b = stop.began(), stop.began()\n"
    "print(a <= t <= b)\n"
  )
  assert done.stdout == "True\n"


def test_exit_codes():
  # Scripts of users depend on them.
  assert (stop.DONE, stop.FAILED, stop.PREEMPTED) == (0, 1, 42)
  assert stop.LOST == 75
