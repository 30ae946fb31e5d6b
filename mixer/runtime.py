"""JAX's platform and caches; what a run runs on: versions, source, machine."""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import platform as platform_lib
import subprocess
import warnings
from collections.abc import Mapping
from typing import Any

import absl.logging
import jax

from mixer import __version__
from mixer.errors import UserError, first_line

_ROOT = pathlib.Path(__file__).parent.parent
# XLA's CPU backend may fuse matmuls through YNNPACK, which in jaxlib 0.10.2
# can return wrong values (jax issue 39103): off, unless the user sets it.
_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type="
_LIBRARIES = (
  *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"),
  *("numpy", "pillow", "tensorflow-datasets"),
)


def start(platform: str = "") -> None:
  """Starts JAX on "cpu", "gpu", "tpu", or "" for the best that is there."""
  configure(platform)
  find_devices(platform)


def start_as_library() -> None:
  """As `start` for another's program: keeps its memory and cache settings."""
  set_xla_flags()
  find_devices("")
  if jax.config.values["jax_compilation_cache_dir"] is None:
    _keep_compiled()


def configure(platform: str) -> None:
  """What has to be set before JAX starts."""
  set_xla_flags()
  plugins = ("libtpu", "jax_cuda13_plugin", "jax_cuda12_plugin")
  asked = platform or os.environ.get("JAX_PLATFORMS", "")
  if asked == "cpu" or not (asked or any(map(is_installed, plugins))):
    keep_freed_memory()
  if platform:
    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
  _keep_compiled()


def is_installed(module: str) -> bool:
  """Whether it could be imported."""
  return importlib.util.find_spec(module) is not None


def set_xla_flags() -> None:
  """Turns off the XLA feature that we don't trust."""
  flags = os.environ.get("XLA_FLAGS", "")
  # libtpu reads the same variable and needn't know the same flags.
  if "ynn_fusion_type" not in flags and not is_installed("libtpu"):
    os.environ["XLA_FLAGS"] = f"{flags} {_CPU_FLAG}".strip()


def find_devices(platform: str) -> None:
  """Starts JAX's backend; UserError if there is no such device."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as e:
    asked = platform or os.environ.get("JAX_PLATFORMS", "")
    raise UserError(
      f"JAX finds no device of the platform {asked!r} here ({first_line(e)}): "
      'pip install -e ".[gpu]" or ".[tpu]" installs its build for accelerators.'
    ) from e


def _keep_compiled() -> None:
  """Keeps what is compiled for later processes."""
  default = os.path.expanduser("~/.cache/mixer/xla")
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", default)
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def keep_freed_memory() -> None:
  """Lets glibc's malloc keep what is freed; call before any thread starts.

  XLA's CPU backend allocates its temporaries anew in every step; fetching
  those pages from the kernel takes a good part of it (docs/log.md). A thread
  that is there before has an arena of its own, which later ones share.
  """
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL(None).mallopt
    # From malloc.h: one heap, large blocks in it too, and it is never cut.
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)


def quiet_libraries() -> None:
  """Silences libraries: what they log as errors are exceptions here too."""
  absl.logging.set_verbosity(absl.logging.FATAL)
  for name in ("gcsfs", "google.auth"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", category=DeprecationWarning)


def versions() -> dict[str, str]:
  """Of Python, this code and the libraries that results depend on."""
  own = {"mixer": __version__, "python": platform_lib.python_version()}
  return own | {n: importlib.metadata.version(n) for n in _LIBRARIES}


@functools.cache
def _source() -> tuple[str, str]:
  """A hash of the source files that train, and the checkout's Git commit."""
  files = [_ROOT / "train.py", _ROOT / "input_pipeline.py"]
  files += sorted((_ROOT / "mixer").rglob("*.py"))
  found = hashlib.sha256()
  for file in filter(pathlib.Path.is_file, files):
    found.update(f"{file.relative_to(_ROOT)}\n".encode() + file.read_bytes())
  commit = ""
  if (_ROOT / ".git").exists():
    words = ["git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD"]
    with contextlib.suppress(OSError):
      commit = subprocess.run(words, capture_output=True, text=True).stdout
  return found.hexdigest()[:16], commit.strip()


def environment() -> dict[str, Any]:
  """What runs and on what, for checkpoints and reports."""
  device, (source, commit) = jax.devices()[0], _source()
  return {
    "platform": device.platform,
    "device_kind": device.device_kind,
    "num_devices": jax.device_count(),
    "num_processes": jax.process_count(),
    "host": platform_lib.node(),
    "cpu_count": os.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "versions": versions(),
    "source": source,
    "commit": commit,
  }


def history(
  before: Mapping[str, Any] | None, step: int, origin: str
) -> dict[str, Any]:
  """What a checkpoint keeps of its starts, an entry for each environment."""
  now, entries = environment(), list((before or {}).get("history", ()))
  if entries and entries[-1]["environment"] == now:
    last = entries.pop()  # A thousand preemptions are one entry.
    entries.append(last | {"steps": [*last["steps"], step]})
  else:
    entries.append({"steps": [step], "origin": origin, "environment": now})
  origin = entries[0]["origin"]
  return {"origin": origin, "environment": now, "history": entries}
