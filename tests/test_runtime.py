"""Start, signals, environment."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mixer import runtime, stop

_ROOT = pathlib.Path(__file__).parent.parent


def python(code: str, **env: str) -> subprocess.CompletedProcess:
  """Runs code in a process of its own."""
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=_ROOT,
    env=os.environ | {"XLA_FLAGS": ""} | env,
    capture_output=True,
    text=True,
    timeout=120,
  )


_START = (
  "from mixer import runtime, errors\n"
  "import jax\n"
  "try:\n"
  "  runtime.start({!r})\n"
  "  print(jax.devices()[0].platform)\n"
  "except errors.UserError as e:\n"
  "  print('refused:', e)\n"
)


def test_start_on_an_absent_platform_is_refused():
  # A platform that no machine has: this one may have a GPU.
  done = python(_START.format(""), JAX_PLATFORMS="abacus")
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(
    "refused: JAX finds no device of the platform 'abacus' here ("
  )
  assert "leave --platform and JAX_PLATFORMS out" in done.stdout
  assert "pip install -e" in done.stdout


def test_a_library_leaves_the_program_its_own():
  code = (
    "import jax\n"
    "from mixer import runtime\n"
    "runtime.keep_freed_memory = None  # Not to be called.\n"
    "{}\n"
    "runtime.start_as_library()\n"
    "print(jax.config.jax_compilation_cache_dir)\n"
  )
  own = "jax.config.update('jax_compilation_cache_dir', '/own')"
  for line, said in ((own, "/own"), ("", "/home/me/.cache/mixer/xla")):
    done = python(
      "import os; os.environ.pop('JAX_COMPILATION_CACHE_DIR')\n"
      + code.format(line),
      HOME="/home/me",
      JAX_PLATFORMS="cpu",
    )
    assert done.stdout.strip() == said, done.stderr


def test_start_prefers_the_flag_to_the_environment(tmp_path):
  cache = str(tmp_path / "cache")
  done = python(
    _START.format("cpu")
    + "print(jax.config.jax_compilation_cache_dir)\n"
    + "import jax.numpy as jnp\n"
    + "jax.jit(lambda x: x @ x)(jnp.ones((8, 8))).block_until_ready()\n",
    JAX_PLATFORMS="abacus",
    JAX_COMPILATION_CACHE_DIR=cache,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == ["cpu", cache]
  assert list((tmp_path / "cache").iterdir())  # Used from the start.


def find_no_libtpu(monkeypatch):
  find = runtime.importlib.util.find_spec
  monkeypatch.setattr(
    runtime.importlib.util,
    "find_spec",
    lambda name, *a: None if name == "libtpu" else find(name, *a),
  )


@pytest.mark.parametrize(
  "before", ["", "--xla_force_host_platform_device_count=8"]
)
def test_xla_flags_are_added(monkeypatch, before):
  find_no_libtpu(monkeypatch)
  monkeypatch.setenv("XLA_FLAGS", before)
  runtime.set_xla_flags()
  once = os.environ["XLA_FLAGS"]
  added = "--xla_cpu_experimental_ynn_fusion_type="
  assert once.split() == [*before.split(), added]
  runtime.set_xla_flags()
  assert os.environ["XLA_FLAGS"] == once


def test_xla_flags_need_not_exist(monkeypatch):
  find_no_libtpu(monkeypatch)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  runtime.set_xla_flags()
  assert "ynn_fusion_type=" in os.environ["XLA_FLAGS"]


def test_xla_flags_of_the_user_stay(monkeypatch):
  find_no_libtpu(monkeypatch)
  own = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT --a=1"
  monkeypatch.setenv("XLA_FLAGS", own)
  runtime.set_xla_flags()
  assert os.environ["XLA_FLAGS"] == own


def test_xla_flags_are_left_alone_beside_libtpu(monkeypatch):
  monkeypatch.setattr(
    runtime.importlib.util, "find_spec", lambda name, *a: object()
  )
  monkeypatch.setenv("XLA_FLAGS", "--own=1")
  runtime.set_xla_flags()
  assert os.environ["XLA_FLAGS"] == "--own=1"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_memory_is_kept():
  done = python(
    "import ctypes, json, platform\n"
    "from mixer import runtime\n"
    "c = ctypes.CDLL(None)\n"
    "c.malloc.restype = ctypes.c_void_p\n"
    "c.malloc.argtypes = c.free.argtypes = [ctypes.c_size_t]\n"
    "def resident():\n"
    "  with open('/proc/self/statm') as f:\n"
    "    return int(f.read().split()[1]) * 4096 / 2**20\n"
    "def kept():\n"
    "  before = resident()\n"
    "  block = c.malloc(100 * 2**20)\n"
    "  ctypes.memset(block, 1, 100 * 2**20)\n"
    "  full = resident()\n"
    "  c.free(block)\n"
    "  return full - before, resident() - before\n"
    "first = kept()\n"
    "runtime.keep_freed_memory()\n"
    "print(json.dumps([platform.libc_ver()[0], first, kept()]))\n"
  )
  assert done.returncode == 0, done.stderr
  libc, (took, left), (took_then, left_then) = json.loads(done.stdout)
  if libc != "glibc":
    pytest.skip("another malloc")
  assert took > 90 and left < 10  # MiB; returned to the kernel.
  assert took_then > 90 and left_then > 90


def test_without_mallopt_nothing_happens(monkeypatch):
  monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: object())
  runtime.keep_freed_memory()

  def fail(name):
    raise OSError

  monkeypatch.setattr(runtime.ctypes, "CDLL", fail)
  runtime.keep_freed_memory()


@pytest.mark.parametrize(
  ("asked", "variable", "installed", "alone"),
  [
    ("cpu", "", ["jax_cuda13_plugin"], True),
    ("gpu", "", [], False),
    ("tpu", "cpu", [], False),
    ("cpu", "cuda", [], True),
    ("", "cpu", ["libtpu"], True),
    ("", "cuda", [], False),
    ("", "cuda,cpu", [], False),
    ("", "", [], True),
    ("", "", ["jax", "jaxlib", "numpy"], True),
    ("", "", ["jax_cuda13_plugin"], False),
    ("", "", ["jax_cuda12_plugin", "jax"], False),
    ("", "", ["libtpu"], False),
  ],
)
def test_memory_is_kept_on_cpus_alone(
  monkeypatch, asked, variable, installed, alone
):
  class Module:
    def __init__(self, name):
      self.name = name

  monkeypatch.setenv("JAX_PLATFORMS", variable)
  monkeypatch.setattr(
    runtime.pkgutil, "iter_modules", lambda: [Module(n) for n in installed]
  )
  assert runtime._is_cpu_alone(asked) == alone


def test_versions_are_those_installed():
  import jax
  import numpy as np

  got = runtime.versions()
  assert got["jax"] == jax.__version__ and got["numpy"] == np.__version__
  assert got["python"] == ".".join(map(str, sys.version_info[:3]))
  assert all(isinstance(v, str) and v for v in got.values())
  assert json.loads(json.dumps(got)) == got


def test_environment_is_json():
  got = runtime.environment()
  assert json.loads(json.dumps(got, allow_nan=False)) == got
  assert (got["platform"], got["num_devices"]) == ("cpu", 8)
  assert got["num_processes"] == 1
  assert "device_count=8" in got["xla_flags"]
  assert got["versions"] == runtime.versions()


def test_a_hang_is_heard_of_and_a_suspension_is_none():
  # The process is stopped for longer than it may be silent, then goes on; and
  # only then it is silent by itself.
  code = (
    "import os, time\n"
    "from mixer import runtime, stop\n"
    "runtime._SUSPENDED = 0.5\n"
    "hangs = runtime.Hangs(2.0)\n"
    "print('ready', flush=True)\n"
    "time.sleep(1000)\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGSTOP)
  time.sleep(4)
  process.send_signal(signal.SIGCONT)
  since = time.monotonic()
  _, err = process.communicate(timeout=60)
  assert process.returncode == stop.LOST
  # Anew from where it went on; and it can't be early.
  assert time.monotonic() - since > 1.0
  assert "nothing has gone on for 2 s (hang_seconds)" in err
  assert "line 6 in <module>" in err


def test_what_goes_on_is_no_hang():
  done = python(
    "import time\n"
    "from mixer import runtime\n"
    "hangs = runtime.Hangs(2.0)\n"
    "for _ in range(30):\n"
    "  time.sleep(0.1)\n"
    "  hangs.heard()\n"
    "hangs.end()\n"
    "time.sleep(3)\n"
    "print('alive')\n"
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "alive\n"
