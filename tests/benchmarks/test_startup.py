import sys

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import startup
from mixer.errors import UserError

# As JAX 0.10 writes it, each line twice; and as older versions do.
LOG = """\
WARNING:2026-11-23 09:21:45,404:jax._src.dispatch:204: Finished tracing init \
for jit in 0.5 sec
W1123 09:21:45.404948 139804249594752 dispatch.py:204] Finished tracing init \
for jit in 0.5 sec
WARNING:2026-11-23 09:21:45:jax._src.dispatch:204: Finished XLA compilation \
of jit(init) in 1.25 sec
WARNING:2026-11-23 09:21:45:jax._src.dispatch:204: Finished tracing + \
transforming train_step for pjit in 0.25 sec
WARNING:2026-11-23 09:21:45:jax._src.dispatch:204: Finished jaxpr to MLIR \
module conversion jit(train_step) in 0.125 sec
WARNING:2026-11-23 09:21:49:jax._src.dispatch:204: Finished XLA compilation \
of jit(train_step) in 4 sec
WARNING:2026-11-23 09:21:49:jax._src.dispatch:204: Finished XLA compilation \
of jit(<lambda>) in 100 sec
"""


def test_what_jax_tells():
  found = startup.compile_times(LOG)
  assert found == {"state": 1.75, "trace": 0.375, "compile": 4.0}


seconds = st.floats(0, 1000)


@given(seconds, seconds, st.lists(seconds, min_size=4, max_size=4))
def test_phases_are_all_of_the_time(total, imports, spent):
  kinds = ("start", "compile", "data", "step")
  goodput = {f"goodput/{k}": v for k, v in zip(kinds, spent, strict=True)}
  found = startup.phases(total, imports, goodput, LOG)
  assert tuple(found) == startup.PHASES
  assert sum(found.values()) == pytest.approx(total, abs=1e-6)
  # However long another process took to import.
  assert found["start"] >= -1e-6


def test_a_run_that_fails_is_told(tmp_path):
  words = [sys.executable, "-c", "import sys; sys.exit('no such thing')"]
  with pytest.raises(UserError, match="first update: no such thing"):
    startup.first_update(words, tmp_path)


def test_jax_still_tells_what_it_compiles(caplog):
  # The wording is JAX's own affair: this notices when it changes.
  def train_step(x):
    return x + 3

  with jax.log_compiles():
    jax.jit(train_step)(1.0)
  told = "\n".join(f"WARNING:{r.getMessage()}" for r in caplog.records)
  found = startup.compile_times(told)
  assert found["trace"] > 0 and found["compile"] > 0 and not found["state"]


@pytest.mark.slow
def test_a_start(tmp_path, monkeypatch):
  # The tests' own eight devices can't share a batch of two.
  monkeypatch.setenv("XLA_FLAGS", "")
  words = startup.command("S/32", 2, "float32", tmp_path)
  words += ["--config.image_size=32", "--config.data.eval_short_side=32"]
  words += ["--config.model.num_blocks=1"]
  total, goodput, log = startup.first_update(words, tmp_path)
  found = startup.phases(total, 1.0, goodput, log)
  assert 0 < found["trace"] < total and 0 < found["compile"] < total
  assert found["python"] >= 0 and found["first update"] > 0
  assert list((tmp_path / "cache").iterdir())
