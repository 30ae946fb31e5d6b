"""What every test runs under."""

import os

# Before JAX starts: eight devices on any machine, so that sharding is real.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests compile the same functions, and so do the processes they start.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  os.path.join(os.path.dirname(os.path.dirname(__file__)), ".jax_cache"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import gc
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import hypothesis
import jax
import pytest

from configs import smoke
from mixer import runtime

runtime.set_xla_flags()
jax.config.update("jax_numpy_dtype_promotion", "strict")
# No test judges by wall time: a machine may be busy.
hypothesis.settings.register_profile("mixer", deadline=None)
hypothesis.settings.load_profile("mixer")

ROOT = pathlib.Path(__file__).parent.parent


def free_port() -> int:
  """A port that nobody listens at."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
  """Where the tests' data sets lie; `digits` is prepared on first use."""
  return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def smoke_config(data_dir: str):
  """configs/smoke.py with the tests' data."""
  config = smoke.get_config()
  config.data.data_dir = data_dir
  config.report = False  # tests/test_train.py has those that write one.
  return config


@pytest.fixture
def plain_config(smoke_config):
  """Smaller, and without random numbers in the model."""
  smoke_config.model.update(
    num_blocks=1, hidden_dim=16, dropout=0.0, stochastic_depth=0.0
  )
  return smoke_config


@pytest.fixture
def untouched(monkeypatch):
  """Lets main() not change the tests' own process."""
  monkeypatch.setattr(runtime, "start", lambda platform: None)
  monkeypatch.setattr(runtime, "quiet_libraries", lambda: None)


@pytest.fixture
def collected() -> Iterator[None]:
  """Lets complaints about what is left behind come in the test that left it."""
  yield
  gc.collect()


def noisy(test):
  """Marks a test after which Orbax, having given up, leaves tasks behind."""
  quiet = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine .* was never awaited:RuntimeWarning",
  )
  return quiet(pytest.mark.usefixtures("collected")(test))


def leaves(tree: Any) -> Iterator[tuple[str, Any]]:
  """(name, array) of a nested dict."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path), leaf


class TrainCommand:
  """Runs train.py as a user does: a process of its own, one CPU device."""

  def __init__(self, data_dir: str):
    self._data_dir = data_dir

  def start(
    self,
    workdir: pathlib.Path,
    *args: str,
    env: Mapping[str, str] | None = None,
    program: Sequence[str] = ("train.py",),
  ) -> subprocess.Popen:
    """Starts it, or another program, with `args` behind the usual ones."""
    return subprocess.Popen(
      [
        sys.executable,
        *program,
        "--config=configs/smoke.py",
        f"--workdir={workdir}",
        f"--config.data.data_dir={self._data_dir}",
        "--config.report=False",
        *args,
      ],
      cwd=ROOT,
      env=dict(os.environ) | {"XLA_FLAGS": ""} | dict(env or {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def __call__(
    self, workdir: pathlib.Path, *args: str
  ) -> subprocess.CompletedProcess:
    """Runs it to its end."""
    process = self.start(workdir, *args)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(
      process.args, process.returncode, out, err
    )


@pytest.fixture
def train_command(data_dir: str) -> TrainCommand:
  """To run train.py on the smoke config."""
  return TrainCommand(data_dir)
