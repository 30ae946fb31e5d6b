"""Between the process and the program: platform, memory, versions."""

import ctypes
import faulthandler
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import platform as platform_lib
import sys
import threading
import time
import warnings
from typing import Any

import absl.logging
import jax

from mixer import __version__, stop
from mixer.cluster import distributed
from mixer.errors import UserError

# XLA's CPU backend may fuse matmuls through YNNPACK, which in jaxlib 0.10.2
# can return wrong values (jax issue 39103): we keep it off. XLA reads the
# variable when the backend starts.
_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type="


def set_xla_flags() -> None:
  """Turns off the XLA features that we don't trust; call before any array.

  A flag that the user has set stays as it is. Where libtpu is installed all
  are left alone: it reads the same variable and needn't know the same flags.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  tpu = importlib.util.find_spec("libtpu") is not None
  if "ynn_fusion_type" not in flags and not tpu:
    os.environ["XLA_FLAGS"] = f"{flags} {_CPU_FLAG}".strip()


def start(
  platform: str = "", request: distributed.Request | None = None
) -> None:
  """Starts JAX on the platform that the user asked for.

  Args:
    platform: "cpu", "gpu", "tpu", or "" for the best that is there.
    request: whether there are other processes; None: there are none.

  Raises:
    UserError: JAX finds no such device, or the other processes don't come.
  """
  set_xla_flags()
  if _is_cpu_alone(platform):
    keep_freed_memory()
  if platform:
    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
  if request is not None:
    distributed.start(request)
  _find_devices(platform)
  _keep_compiled()


def start_as_library() -> None:
  """Starts JAX for a program that isn't ours, and decides little for it.

  Memory is its own affair, and so is a compilation cache that it has set; a
  backend that it has started keeps its flags.

  Raises:
    UserError: JAX finds no device.
  """
  set_xla_flags()
  _find_devices("")
  if jax.config.values["jax_compilation_cache_dir"] is None:
    _keep_compiled()


def _find_devices(platform: str) -> None:
  try:
    # Without a word from the user JAX falls back to the CPU, with a warning
    # of its own where an accelerator is there but fails to start.
    jax.devices()
  except (RuntimeError, AssertionError) as e:
    asked = platform or os.environ.get("JAX_PLATFORMS", "")
    lines = str(e).splitlines()
    raise UserError(
      f"JAX finds no device of the platform {asked!r} here"
      + (f" ({lines[0]})" if lines else "")
      + ". For an accelerator install JAX's build for it "
      '(pip install -e ".[gpu]" or ".[tpu]"), or leave --platform and '
      "JAX_PLATFORMS out to run on what is there."
    ) from e


def _keep_compiled() -> None:
  """Keeps what is compiled for other processes."""
  cache = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR",
    str(pathlib.Path("~/.cache/mixer/xla").expanduser()),
  )
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _is_cpu_alone(platform: str) -> bool:
  """Whether JAX can only run on the CPU; asked before it starts."""
  asked = platform or os.environ.get("JAX_PLATFORMS", "")
  if asked:
    return asked == "cpu"
  installed = (m.name for m in pkgutil.iter_modules())
  return not any(
    name == "libtpu" or (name.startswith("jax_") and "plugin" in name)
    for name in installed
  )


def keep_freed_memory() -> None:
  """Lets glibc's malloc keep what is freed, in place of returning it.

  XLA's CPU backend allocates its temporaries anew in every step; fetching
  those pages from the kernel each time takes a good part of it (docs/log.md).
  Does nothing where malloc is another. Call before JAX starts: its threads
  would have heaps of their own by then.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return
  # From malloc.h: one heap, large blocks in it too, and it is never cut.
  trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
  mallopt(arena_max, 1)
  mallopt(mmap_max, 0)
  mallopt(trim_threshold, 2**31 - 1)
  mallopt(top_pad, 64 * 2**20)


def versions() -> dict[str, str]:
  """Of Python, this code and the libraries that results depend on."""
  names = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "pillow",
    "tensorflow-datasets",
  )
  return {
    "mixer": __version__,
    "python": platform_lib.python_version(),
  } | {n: importlib.metadata.version(n) for n in names}


def environment() -> dict[str, Any]:
  """What this run runs on, for its log and its checkpoints."""
  device = jax.devices()[0]
  return {
    "platform": device.platform,
    "device_kind": device.device_kind,
    "num_devices": jax.device_count(),
    "num_processes": jax.process_count(),
    "host": platform_lib.node(),
    "cpu_count": os.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "versions": versions(),
  }


# Seconds that a thread can't come too late by itself.
_SUSPENDED = 10.0
_STDERR = 2  # The descriptor: what `sys.stderr` is may be anything.


class Hangs:
  """Ends the process when it isn't heard of for too long.

  It says where every thread is, and exits with `stop.LOST`.
  """

  def __init__(self, seconds: float):
    """Starts looking.

    Args:
      seconds: for which it may be silent; 0: for ever.
    """
    self._seconds = seconds
    self._heard = time.monotonic()
    self._ended = threading.Event()
    if seconds:
      threading.Thread(target=self._look, name="hangs", daemon=True).start()

  def heard(self) -> None:
    """Something has gone on."""
    self._heard = time.monotonic()

  def end(self) -> None:
    """Looks no more."""
    self._ended.set()

  def _look(self) -> None:
    pause = min(1.0, self._seconds / 4)
    before = time.monotonic()
    while not self._ended.wait(pause):
      now = time.monotonic()
      # All was suspended, this thread too (Ctrl-Z): that is no hang.
      if now - before > pause + _SUSPENDED:
        self._heard = now
      before = now
      if now - self._heard > self._seconds:
        print(
          f"\nnothing has gone on for {self._seconds:g} s (hang_seconds); what "
          "the threads are at:",
          file=sys.stderr,
        )
        faulthandler.dump_traceback(_STDERR)
        stop.exit_at_once(stop.LOST)


def quiet_libraries() -> None:
  """Keeps our own lines readable: no third-party chatter."""
  # What they log as an error reaches us as an exception too, and Orbax logs
  # one failed save with ten tracebacks.
  absl.logging.set_verbosity(absl.logging.FATAL)
  warnings.filterwarnings("ignore", category=DeprecationWarning)
