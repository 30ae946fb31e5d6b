"""JAX's platform and caches; what a run runs on: versions, source, machine."""

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
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


def configure(platform: str) -> None:
  """What has to be set before JAX starts."""
  set_xla_flags()
  if _is_cpu_alone(platform):
    keep_freed_memory()
  if platform:
    jax.config.update("jax_platforms", {"gpu": "cuda"}.get(platform, platform))
  _keep_compiled()


def start_as_library() -> None:
  """As `start` for another's program: keeps its memory and cache settings."""
  set_xla_flags()
  find_devices("")
  if jax.config.values["jax_compilation_cache_dir"] is None:
    _keep_compiled()


def set_xla_flags() -> None:
  """Turns off the XLA feature that we don't trust."""
  flags = os.environ.get("XLA_FLAGS", "")
  # libtpu reads the same variable and needn't know the same flags.
  tpu = importlib.util.find_spec("libtpu") is not None
  if "ynn_fusion_type" not in flags and not tpu:
    os.environ["XLA_FLAGS"] = f"{flags} {_CPU_FLAG}".strip()


def find_devices(platform: str) -> None:
  """Starts JAX's backend; UserError if there is no such device."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as e:
    asked = platform or os.environ.get("JAX_PLATFORMS", "")
    raise UserError(
      f"JAX finds no device of the platform {asked!r} here ({first_line(e)}). "
      "For an accelerator install JAX's build for it (pip install -e "
      '".[gpu]" or ".[tpu]"), or leave --platform and JAX_PLATFORMS out to run '
      "on what is there."
    ) from e


def _keep_compiled() -> None:
  """Keeps what is compiled for later processes."""
  default = os.path.expanduser("~/.cache/mixer/xla")
  cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", default)
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _is_cpu_alone(platform: str) -> bool:
  """Whether JAX can only run on the CPU; asked before it starts."""
  asked = platform or os.environ.get("JAX_PLATFORMS", "")
  if asked:
    return asked == "cpu"
  names = [m.name for m in pkgutil.iter_modules()]
  plugins = [n for n in names if n.startswith("jax_") and "plugin" in n]
  return not plugins and "libtpu" not in names


def keep_freed_memory() -> None:
  """Lets glibc's malloc keep what is freed; call before JAX starts.

  XLA's CPU backend allocates its temporaries anew in every step; fetching
  those pages from the kernel takes a good part of it (docs/log.md).
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


def quiet_libraries() -> None:
  """Silences libraries: what they log as errors are exceptions here too."""
  absl.logging.set_verbosity(absl.logging.FATAL)
  warnings.filterwarnings("ignore", category=DeprecationWarning)


def versions() -> dict[str, str]:
  """Of Python, this code and the libraries that results depend on."""
  own = {"mixer": __version__, "python": platform_lib.python_version()}
  return own | {n: importlib.metadata.version(n) for n in _LIBRARIES}


@functools.cache
def code() -> dict[str, str]:
  """A hash of each source file that training runs, by its path."""
  files = [_ROOT / "train.py", _ROOT / "input_pipeline.py"]
  files += sorted((_ROOT / "mixer").rglob("*.py"))
  return {
    str(f.relative_to(_ROOT)): hashlib.sha256(f.read_bytes()).hexdigest()[:16]
    for f in files
    if f.is_file()
  }


@functools.cache
def _commit() -> str:
  """The Git commit of the checkout; "" where there is none."""
  if not (_ROOT / ".git").exists():
    return ""
  command = ["git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return done.stdout.strip() if done.returncode == 0 else ""


def environment() -> dict[str, Any]:
  """What runs and on what, for checkpoints and reports."""
  device = jax.devices()[0]
  source = "".join(f"{name} {sha}\n" for name, sha in sorted(code().items()))
  return {
    "platform": device.platform,
    "device_kind": device.device_kind,
    "num_devices": jax.device_count(),
    "num_processes": jax.process_count(),
    "host": platform_lib.node(),
    "cpu_count": os.cpu_count(),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "versions": versions(),
    "source": hashlib.sha256(source.encode()).hexdigest()[:16],
    "commit": _commit(),
  }


def history(
  before: Mapping[str, Any] | None, step: int, origin: str
) -> dict[str, Any]:
  """What checkpoints keep of where they come from, after that of `before`.

  `origin` of the first start, `environment` of this one, and `history`: for
  each change of environment the `steps` at which starts in it began, and the
  `origin` and `environment` of the first of them.
  """
  now = environment()
  entries = list((before or {}).get("history", ()))
  if entries and entries[-1]["environment"] == now:
    # A thousand preemptions are one entry.
    last = entries.pop()
    entries.append(last | {"steps": [*last["steps"], step]})
  else:
    entries.append({"steps": [step], "origin": origin, "environment": now})
  origin = entries[0]["origin"]
  return {"origin": origin, "environment": now, "history": entries}
