"""Signals, hangs and starts, on one process and on several."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import distributed, runtime, stop
from mixer.errors import UserError
from tests import conftest


def python(code: str, **env: str) -> subprocess.CompletedProcess:
  """Runs code in a process of its own."""
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=conftest.ROOT,
    env=os.environ | {"XLA_FLAGS": ""} | env,
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
def test_a_signal_stops_at_the_next_check_until_it_is_obeyed(handlers, number):
  own, came = handlers
  with stop.Watch() as watch:
    watch.check()
    for repeated in (number, signal.SIGTERM, signal.SIGTERM):
      os.kill(os.getpid(), repeated)
    assert watch.name == number.name
    for _ in range(2):
      with pytest.raises(stop.Preempted, match=f"{number.name}: stopped and s"):
        watch.check()
  assert came == []
  with pytest.raises(KeyboardInterrupt, match=number.name):
    with stop.interrupting():
      try:
        os.kill(os.getpid(), number)
      finally:  # Schedulers and terminals repeat themselves.
        os.kill(os.getpid(), signal.SIGTERM)
  assert all(signal.getsignal(s) is own for s in stop._SIGNALS)
  os.kill(os.getpid(), number)
  assert came == [number]


# Asleep in C, so that it is the thread that has to hear.
_DEAF = """
import ctypes, os, signal, sys, threading
from mixer import stop
stop.listen()
threading.Timer(0.3, os.kill, (os.getpid(), signal.{})).start()
{}
for _ in range(9): ctypes.CDLL(None).sleep(60)
"""
_WATCH = """
watch = stop.Watch().__enter__()
watch.leaving.append(lambda: print("released", flush=True))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_any_work_ends_it_at_once(name):
  done = python(_DEAF.format(name, _WATCH))
  assert done.returncode == stop.PREEMPTED, done.stderr
  assert done.stderr == f"{name}: stopped, nothing was under way\n"
  assert done.stdout == "released\n"


def test_a_second_ctrl_c_exits_at_once():
  work = _WATCH + "watch.working()\n"
  again = (
    "threading.Timer(0.9, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
  )
  done = python(_DEAF.format("SIGINT", work + again))
  assert done.returncode == 128 + signal.SIGINT
  assert done.stderr.strip() == "second Ctrl-C: exiting at once, not saved"


_WORK = """
import fcntl, sys, termios, time
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mixer import stop
stop.listen()
with stop.Watch() as watch:
  watch.working()
  try:
    for i in range(2000):
      stop.say("at work")
      time.sleep(0.01)
      watch.check()
  except stop.Preempted as e:
    stop.say(e, sys.stderr)
    open(sys.argv[1], "w").write(str(e))
    sys.exit(stop.PREEMPTED)
"""


def test_a_terminal_that_is_closed_stops_it_in_good_order(tmp_path):
  main, terminal = os.openpty()
  process = subprocess.Popen(
    [sys.executable, "-c", _WORK, tmp_path / "saved"],
    cwd=conftest.ROOT,
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
  done = python(
    "import os, signal\n"
    "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # As nohup has it.
    "from mixer import stop\n"
    "stop.listen()\n"
    "with stop.Watch() as watch, stop.interrupting():\n"
    "  watch.working()\n"
    "  os.kill(os.getpid(), signal.SIGHUP)\n"
    "  watch.check()\n"
  )
  assert done.returncode == 0, done.stderr


class Board:
  """`mixer.distributed.Board` among threads."""

  def __init__(self, count):
    self.said, self._passed, self._posts = {}, [], 0
    self._barrier = threading.Barrier(count)

  def post(self, kind, message):
    self._posts += 1
    if self._posts > 2:  # What doesn't arrive is posted again.
      self.said.setdefault(kind, message)

  def read(self):
    return dict(self.said)

  def next_after(self, passed):
    self._passed.append(passed)
    self._barrier.wait(30)
    return 1 + max(self._passed)


@settings(deadline=None, max_examples=6)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=4), st.integers(1, 40))
def test_all_processes_stop_at_the_same_check(delays, at):
  # Threads in place of processes: each at a pace of its own.
  board, stopped, ended = Board(len(delays)), [], []

  def run(delay, first):
    with stop.Watch(board, poll=0.01) as watch:
      for i in range(100_000):
        try:
          watch.check()
        except stop.Preempted as e:
          stopped.append((i, str(e)))
          break
        if first and i == at:
          watch.heard(signal.SIGTERM)
        time.sleep(delay / 1000)
    # It would come out of the service while Python ends.
    assert not watch._reader.is_alive()
    ended.append(watch)

  threads = [
    threading.Thread(target=run, args=(delay, i == 0))
    for i, delay in enumerate(delays)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert len(stopped) == len(ended) == len(delays)
  assert len({i for i, _ in stopped}) == 1 and stopped[0][0] > at
  assert all(message.startswith("SIGTERM on ") for _, message in stopped)


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


def test_a_hang_ends_it_and_a_suspension_is_none():
  # It is stopped for longer than it may be silent, then goes on with checks;
  # and only then it is silent.
  code = (
    "import time\n"
    "from mixer import stop\n"
    "with stop.Watch() as watch:\n"
    "  watch.limit_silence(2.0)\n"
    "  for _ in range(30):\n"
    "    print('alive', flush=True)\n"
    "    time.sleep(0.1)\n"
    "    watch.check()\n"
    "  time.sleep(1000)\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=conftest.ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "alive\n"
  process.send_signal(signal.SIGSTOP)
  time.sleep(4)
  process.send_signal(signal.SIGCONT)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out.count("alive")) == (stop.LOST, 29)
  assert "no progress for 2 s (hang_seconds)" in err
  assert "line 9 in <module>" in err
  # Scripts of users depend on them.
  assert (stop.DONE, stop.FAILED, stop.PREEMPTED, stop.LOST) == (0, 1, 42, 75)


_SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "n[1-4]",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
  ("expected", "machine"),
  [
    ("none", {}),
    ("slurm", _SLURM),
    ("none", _SLURM | {"SLURM_NTASKS": "1"}),
    # A batch job that is not under srun.
    ("none", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}),
    ("tpu", {"chips": 4}),
    ("none", {"chips": 4, "libtpu": None}),
    ("none", {"chips": 4, "JAX_PLATFORMS": "cpu"}),
    ("none", {"chips": 4, "TPU_SKIP_MDS_QUERY": "1"}),
    ("gke", {"chips": 4, "TPU_WORKER_HOSTNAMES": "a,b"}),
    ("none", {"chips": 8, "TPU_WORKER_HOSTNAMES": "localhost"}),
    # Names without chips: a machine that only compiles.
    ("none", {"TPU_WORKER_HOSTNAMES": "a,b"}),
  ],
)
def test_the_kind_of_cluster_is_what_the_machine_says(
  monkeypatch, expected, machine
):
  for name in (*_SLURM, *distributed._GKE, "TPU_SKIP_MDS_QUERY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("JAX_PLATFORMS", "")
  machine = {"chips": 0, "libtpu": True} | machine
  chips, libtpu = machine.pop("chips"), machine.pop("libtpu")
  counter = "num_available_tpu_chips_and_device_id"
  hardware = distributed.hardware_utils
  monkeypatch.setattr(hardware, counter, lambda: (chips, None))
  find = distributed.importlib.util
  monkeypatch.setattr(find, "find_spec", lambda name: libtpu)
  for name, value in machine.items():
    monkeypatch.setenv(name, value)
  assert distributed.find() == expected
  assert distributed.find(explicit=True) == "explicit"


@pytest.mark.parametrize(
  ("flags", "variables", "word"),
  [
    (("explicit",), {}, "--coordinator_address=''"),
    (("auto", "host", 2, 1), {}, "--coordinator_address='host'"),
    (("auto", "a:1"), {}, "--num_processes=0"),
    (("auto", "a:1", 2, 2), {}, "--process_id=2"),
    (("auto", "a:1"), {"JAX_NUM_PROCESSES": "4"}, "--num_processes=4 and --p"),
    ((), {"JAX_COORDINATOR_ADDRESS": "x"}, "--coordinator_address='x'"),
    ((), {"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID='first'"),
  ],
)
def test_half_an_address_is_refused(monkeypatch, flags, variables, word):
  monkeypatch.setattr(runtime, "configure", lambda platform: None)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=word):
    distributed.start("", *flags)


def test_a_start_takes_the_flag_and_keeps_what_is_compiled(tmp_path):
  done = python(
    "from mixer import distributed, errors, runtime\n"
    "import jax\n"
    "try:\n"
    "  runtime.start()\n"
    "except errors.UserError as e:\n"
    "  print(e)\n"
    "print(distributed.start('cpu'), jax.devices()[0].platform)\n"
    "jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))).block_until_ready()\n",
    JAX_PLATFORMS="abacus",
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"),
  )
  assert done.returncode == 0, done.stderr
  refused, started = done.stdout.splitlines()
  assert "JAX finds no device of the platform 'abacus' here (" in refused
  assert started == "none cpu"
  assert list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
  ("before", "libtpu", "after"),
  [
    (None, None, "--xla_cpu_experimental_ynn_fusion_type="),
    ("--a=1", None, "--a=1 --xla_cpu_experimental_ynn_fusion_type="),
    ("--xla_cpu_experimental_ynn_fusion_type=X", None, None),
    ("--own=1", "there", "--own=1"),
  ],
)
def test_xla_flags(monkeypatch, before, libtpu, after):
  find = runtime.importlib.util
  monkeypatch.setattr(find, "find_spec", lambda name: libtpu)
  monkeypatch.setenv("XLA_FLAGS", before or "")
  for _ in range(2):
    runtime.set_xla_flags()
    assert os.environ["XLA_FLAGS"] == (before if after is None else after)


def test_what_a_checkpoint_keeps_of_starts(monkeypatch):
  first = runtime.history(None, 0, "starting anew")
  second = runtime.history(first, 7, "going on")
  assert second["history"] == [
    {
      "steps": [0, 7],  # A thousand preemptions are an entry.
      "origin": "starting anew",
      "environment": runtime.environment(),
    }
  ]
  monkeypatch.setenv("XLA_FLAGS", "--other=1")
  third = runtime.history(second, 9, "going on")
  assert [e["steps"] for e in third["history"]] == [[0, 7], [9]]
  assert third["origin"] == "starting anew"
  assert third["environment"] == runtime.environment()
  assert third["environment"]["xla_flags"] == "--other=1"
  assert third["environment"]["versions"]["jax"]
  assert {"train.py", "mixer/stop.py"} < runtime.code().keys()
