"""Signals, hangs and starts, on one process and on several."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import cli, distributed, runtime, stop
from mixer.errors import UserError
from tests import conftest


def start(code: str, *args: str, **options) -> subprocess.Popen[str]:
  """Starts code in a process of its own."""
  pipe = subprocess.PIPE
  options = {"stdout": pipe, "stderr": pipe} | options
  return subprocess.Popen(
    [sys.executable, "-c", code, *args], cwd=conftest.ROOT, text=True, **options
  )


def run(code: str, **env: str) -> tuple[int, str, str]:
  """The exit code, stdout and stderr of code in a process of its own."""
  process = start(code, env=os.environ | {"XLA_FLAGS": ""} | env)
  out, err = process.communicate(timeout=120)
  return process.returncode, out, err


def test_a_command_is_interrupted_once_and_handlers_come_back():
  number, before = signal.SIGTERM, signal.getsignal(signal.SIGTERM)
  with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
    with stop.interrupting():
      try:
        os.kill(os.getpid(), number)
      finally:  # Schedulers and terminals repeat themselves.
        os.kill(os.getpid(), number)
  assert signal.getsignal(number) is before


# Asleep in C, so that it is the thread that has to hear.
_DEAF = """
import ctypes, os, signal, sys, threading
from mixer import stop
stop.listen()
stop.listen_in_thread()
threading.Timer(0.3, os.kill, (os.getpid(), signal.{})).start()
watch = stop.Watch().__enter__()
watch.leaving.append(lambda: print("released", flush=True))
{}
for _ in range(9): ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_any_work_ends_it_at_once(name):
  code, out, err = run(_DEAF.format(name, ""))
  assert (code, out) == (stop.PREEMPTED, "released\n")
  assert err == f"{name}: stopped, nothing was under way\n"


def test_a_second_ctrl_c_exits_at_once():
  again = "threading.Timer(0.9, os.kill, (os.getpid(), signal.SIGINT)).start()"
  code, _, err = run(_DEAF.format("SIGINT", f"watch.working = True\n{again}"))
  assert code == 128 + signal.SIGINT
  assert err.strip() == "second Ctrl-C: exiting at once, not saved"


_ARENAS = """
import ctypes, sys
from mixer import stop
stop.listen()
import train
words = ["--config=configs/smoke.py", "--workdir=w", "--cluster=none"]
args = train.cli.parser("train.py").read([*words, "--platform=cpu"])
train.distributed.start(args)
x = train.jax.random.normal(train.jax.random.key(0), (999, 999))
(x @ x).block_until_ready()
libc = ctypes.CDLL(None)
libc.open_memstream.restype = ctypes.c_void_p
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = libc.open_memstream(ctypes.byref(text), ctypes.byref(size))
libc.malloc_info(0, ctypes.c_void_p(stream))
libc.fclose(ctypes.c_void_p(stream))
print(text.value.decode())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")
def test_all_threads_share_one_heap_on_a_cpu():
  """A second costs a step a third: large blocks in it come with page faults."""
  code, out, err = run(_ARENAS)
  assert (code, out.count("<heap nr=")) == (0, 1), err


_WORK = """
import signal, sys, time
if sys.argv[2] == "nohup":
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
else:
  import fcntl, termios
  fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mixer import stop
stop.listen()
stop.listen_in_thread()
with stop.Watch() as watch:
  watch.working = True
  try:
    for i in range(100 if sys.argv[2] == "nohup" else 2000):
      stop.say("at work")
      time.sleep(0.01)
      watch.check()
  except stop.Preempted as e:
    open(sys.argv[1], "w").write(str(e))
    sys.exit(stop.PREEMPTED)
"""


def test_a_closed_terminal_stops_it_in_good_order_but_not_nohup(tmp_path):
  main, terminal = os.openpty()
  streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
  saved = str(tmp_path / "saved")
  process = start(_WORK, saved, "", start_new_session=True, **streams)
  os.close(terminal)
  assert os.read(main, 7) == b"at work"
  os.close(main)
  assert process.wait(60) == stop.PREEMPTED
  assert (tmp_path / "saved").read_text().startswith("SIGHUP: stopped and")
  process = start(_WORK, saved, "nohup")
  assert process.stdout.readline() == "at work\n"
  process.send_signal(signal.SIGHUP)
  assert process.communicate(timeout=60)[1] == ""
  assert process.returncode == 0


class Board:
  """`mixer.distributed.Board` among threads."""

  def __init__(self, count):
    self.posted, self._passed, self._posts = {}, [], 0
    self._barrier = threading.Barrier(count)

  def post(self, kind, message):
    self._posts += 1
    if self._posts > 2:  # What doesn't arrive is posted again.
      self.posted.setdefault(kind, message)

  def read(self):
    return dict(self.posted)

  def next_after(self, passed):
    self._passed.append(passed)
    self._barrier.wait(30)
    return 1 + max(self._passed)


@settings(max_examples=6)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=4), st.integers(1, 40))
def test_all_processes_stop_at_the_same_check(delays, at):
  # Threads in place of processes: each at a pace of its own.
  board, stopped = Board(len(delays)), []

  def work(delay, first):
    with stop.Watch(board, poll=0.01) as watch:
      with contextlib.suppress(stop.Preempted):
        for i in range(100_000):
          passed[threading.get_ident()] = i
          watch.check()
          if first and i == at:
            watch.heard(signal.SIGTERM)
          time.sleep(delay / 1000)
    # It would come out of the service while Python ends.
    assert not watch._reader.is_alive()
    stopped.append(watch)

  passed: dict[int, int] = {}
  threads = [
    threading.Thread(target=work, args=(delay, i == 0))
    for i, delay in enumerate(delays)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert len(stopped) == len(delays)
  assert len({*passed.values()}) == 1 and min(passed.values()) > at


def test_what_failed_elsewhere_ends_this_process_too():
  code, _, err = run(
    "import threading\n"
    "from mixer import stop\n"
    "class Board:\n"
    "  def read(self): return {'failed': 'process 1 on b failed: no disk'}\n"
    "  def stay(self): pass\n"
    "with stop.Watch(Board()):\n"
    "  threading.Event().wait(60)\n"
  )
  assert (code, err.strip()) == (stop.FAILED, "process 1 on b failed: no disk")


_SILENT = """
import time
from mixer import stop
with stop.Watch() as watch:
  watch.limit_silence(2.0)
  for _ in range(30):
    print('alive', flush=True)
    time.sleep(0.1)
    watch.check()
  time.sleep(1000)
"""


def test_a_hang_ends_it_and_a_suspension_is_none():
  # It is suspended for longer than it may be silent, then goes on with checks;
  # and only then it is silent.
  process = start(_SILENT)
  assert process.stdout.readline() == "alive\n"
  process.send_signal(signal.SIGSTOP)
  time.sleep(4)
  process.send_signal(signal.SIGCONT)
  out, err = process.communicate(timeout=60)
  assert (process.returncode, out.count("alive")) == (stop.LOST, 29)
  assert "no progress for 2 s (hang_seconds)" in err
  assert "line 10 in <module>" in err
  # Scripts of users depend on them.
  assert (stop.DONE, stop.FAILED, stop.PREEMPTED, stop.LOST) == (0, 1, 42, 75)


_SLURM = {
  f"SLURM_{name}": value
  for name, value in zip(
    distributed._SLURM, "7 n[1-4] 4 2 0".split(), strict=True
  )
}


def flags(**given):
  """The flags of train.py."""
  words = [f"--{name}={value}" for name, value in given.items()]
  need = ["--config=configs/smoke.py", "--workdir=x"]
  return cli.parser("train.py").read([*need, *words])


@pytest.mark.parametrize(
  ("expected", "machine"),
  [
    ("none", {}),
    ("slurm", _SLURM),
    ("none", _SLURM | {"SLURM_NTASKS": "1"}),
    # A batch job that is not under srun.
    ("none", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}),
    ("tpu", {"chips": 4}),
    ("none", {"chips": 4, "JAX_PLATFORMS": "cpu"}),
    ("none", {"chips": 4, "TPU_SKIP_MDS_QUERY": "1"}),
    ("gke", {"chips": 4, "TPU_WORKER_HOSTNAMES": "a,b"}),
    ("none", {"chips": 8, "TPU_WORKER_HOSTNAMES": "localhost"}),
    # Names without chips: a machine that only compiles.
    ("none", {"TPU_WORKER_HOSTNAMES": "a,b"}),
    ("explicit", {"JAX_COORDINATOR_ADDRESS": "a:1"} | _SLURM),
  ],
)
def test_the_kind_of_cluster_is_what_the_machine_says(
  monkeypatch, expected, machine
):
  for name in (*_SLURM, *distributed._GKE, "TPU_SKIP_MDS_QUERY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("JAX_PLATFORMS", "")
  chips = machine.get("chips", 0)
  own = {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"} | machine
  for name in own.keys() - {"chips"}:
    monkeypatch.setenv(name, own[name])
  if expected != "explicit":
    monkeypatch.delenv("JAX_NUM_PROCESSES")
  counter = "num_available_tpu_chips_and_device_id"
  hardware = distributed.hardware_utils
  monkeypatch.setattr(hardware, counter, lambda: (chips, None))
  monkeypatch.setattr(runtime, "is_installed", lambda name: True)
  for name in ("configure", "find_devices"):
    monkeypatch.setattr(runtime, name, lambda platform: None)
  asked = {}
  joined = distributed.jax.distributed
  monkeypatch.setattr(joined, "initialize", lambda **o: asked.update(o))
  monkeypatch.setattr(distributed.jax.config, "update", lambda *args: None)
  assert distributed.start(flags()) == expected
  assert bool(asked) == (expected != "none")
  if expected == "explicit":
    assert asked["coordinator_address"] == "a:1"
    assert (asked["num_processes"], asked["process_id"]) == (4, 2)


def test_half_an_address_is_refused(monkeypatch):
  monkeypatch.setattr(runtime, "configure", lambda platform: None)
  host = {"coordinator_address": "a:1"}
  for words, word in (
    ({"cluster": "explicit"}, "--coordinator_address=''"),
    ({"coordinator_address": "host", "num_processes": 2}, "_address='host'"),
    (host, "--num_processes=0"),
    (host | {"num_processes": 2, "process_id": 2}, "--process_id=2"),
  ):
    with pytest.raises(UserError, match=word):
      distributed.start(flags(**words))


def test_a_start_takes_the_flag_and_keeps_what_is_compiled(tmp_path):
  code, out, err = run(
    "from mixer import errors, runtime\n"
    "import jax\n"
    "try:\n"
    "  runtime.start()\n"
    "except errors.UserError as e:\n"
    "  print(e)\n"
    "runtime.start('cpu')\n"
    "print(jax.devices()[0].platform)\n"
    "jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))).block_until_ready()\n",
    JAX_PLATFORMS="abacus",
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"),
  )
  assert code == 0, err
  refused, started = out.splitlines()
  assert "JAX finds no device of the platform 'abacus' here (" in refused
  assert started == "cpu" and list((tmp_path / "cache").iterdir())


def test_xla_flags(monkeypatch):
  own = "--xla_cpu_experimental_ynn_fusion_type="
  for before, libtpu, after in (
    ("--a=1", False, f"--a=1 {own}"),
    (f"{own}X", False, f"{own}X"),
    ("--a=1", True, "--a=1"),
  ):
    monkeypatch.setattr(runtime, "is_installed", lambda name, tpu=libtpu: tpu)
    monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
      runtime.set_xla_flags()
      assert os.environ["XLA_FLAGS"] == after


def test_what_a_checkpoint_keeps_of_starts(monkeypatch):
  first = runtime.history(None, 0, "starting anew")
  second = runtime.history(first, 7, "going on")
  known = {"origin": "starting anew", "environment": runtime.environment()}
  assert second["history"] == [{"steps": [0, 7], **known}]
  monkeypatch.setenv("XLA_FLAGS", "--other=1")
  third = runtime.history(second, 9, "going on")
  assert [e["steps"] for e in third["history"]] == [[0, 7], [9]]
  assert third["origin"] == "starting anew"
  assert third["environment"]["xla_flags"] == "--other=1"
  assert third["environment"]["versions"]["jax"]
