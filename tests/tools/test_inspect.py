"""What `python -m tools.inspect` shows."""

import hashlib
import json
import shutil
import struct

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from configs import smoke
from mixer import (
  checkpoints,
  durations,
  metrics,
  runtime,
  sharding,
  stop,
  weights,
)
from mixer import step as step_lib
from tests.storage import test_saved
from tools import inspect

_PLAN = durations.Plan(
  total=20, warmup=2, log_every=1, eval_every=1, checkpoint_every=1
)
_FORMATS = {"float32": "f", "float64": "d", "int32": "i", "uint8": "B"}


def by_the_docstring(params) -> str:
  """The digest, byte by byte, from what `digest` promises."""
  leaves = {}

  def collect(tree, prefix):
    for key, value in tree.items():
      if isinstance(value, dict):
        collect(value, f"{prefix}{key}/")
      else:
        leaves[prefix + key] = value

  collect(params, "")
  text = b""
  for name in sorted(leaves):
    leaf = np.asarray(leaves[name])
    text += f"{name} {leaf.dtype.name} {leaf.shape}".encode()
    text += b"\0"
    values = leaf.ravel(order="C").tolist()
    text += struct.pack(f"<{len(values)}{_FORMATS[leaf.dtype.name]}", *values)
  return hashlib.sha256(text).hexdigest()


_ARRAYS = st.sampled_from(sorted(_FORMATS)).flatmap(
  lambda name: numpy_st.arrays(
    name,
    numpy_st.array_shapes(min_dims=0, max_dims=3, max_side=3),
    elements={"allow_nan": False} if name.startswith("f") else None,
  )
)
_NAMES = st.text("abcX_0", min_size=1, max_size=4)
_PARAMS = st.recursive(
  st.dictionaries(_NAMES, _ARRAYS, min_size=1, max_size=3),
  lambda inner: st.dictionaries(
    _NAMES, inner | _ARRAYS, min_size=1, max_size=3
  ),
  max_leaves=4,
)


@given(_PARAMS)
def test_digest_is_what_its_docstring_says(params):
  assert inspect.digest(params) == by_the_docstring(params)


def reversed_tree(tree):
  return {
    k: reversed_tree(v) if isinstance(v, dict) else v
    for k, v in reversed(tree.items())
  }


@given(_PARAMS)
def test_digest_does_not_depend_on_the_order_of_a_dict(params):
  assert inspect.digest(reversed_tree(params)) == inspect.digest(params)


@given(_PARAMS)
def test_digest_does_not_depend_on_the_layout_in_memory(params):
  turned = jax.tree.map(lambda x: np.asarray(x, order="F"), params)
  assert inspect.digest(turned) == inspect.digest(params)
  swapped = jax.tree.map(lambda x: x.astype(x.dtype.newbyteorder(">")), params)
  assert inspect.digest(swapped) == inspect.digest(params)


@given(_PARAMS, st.data())
def test_digest_changes_with_one_bit(params, data):
  leaves, structure = jax.tree.flatten(params)
  which = data.draw(st.integers(0, len(leaves) - 1))
  raw = bytearray(leaves[which].tobytes())
  bit = data.draw(st.integers(0, len(raw) * 8 - 1))
  raw[bit // 8] ^= 1 << bit % 8
  old = leaves[which]
  leaves[which] = np.frombuffer(bytes(raw), old.dtype).reshape(old.shape)
  other = jax.tree.unflatten(structure, leaves)
  assert inspect.digest(other) != inspect.digest(params)


def test_digest_depends_on_names_types_and_shapes():
  zeros = np.zeros((2, 3), np.float32)
  all_different = [
    {"a": zeros},
    {"b": zeros},
    {"a": {"a": zeros}},
    {"a": zeros.reshape(3, 2)},
    {"a": zeros.ravel()},
    {"a": zeros.view(np.int32)},
    {"a": zeros, "b": zeros},
  ]
  assert len({inspect.digest(p) for p in all_different}) == len(all_different)


def test_digest_is_the_same_wherever_arrays_lie():
  value = np.arange(8, dtype=np.float32)
  mesh = sharding.make_mesh()
  expected = inspect.digest({"a": value})
  for where in (sharding.replicated(mesh), sharding.batch(mesh)):
    assert inspect.digest({"a": jax.device_put(value, where)}) == expected


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
  """Lets main() not change the tests' own process."""
  monkeypatch.setattr(runtime, "start", lambda platform: None)
  monkeypatch.setattr(runtime, "quiet_libraries", lambda: None)


def trained(workdir, ema_decay: float, step: int = 4):
  """A workdir with one checkpoint; the state in it."""
  config = smoke.get_config()
  config.optimizer.ema_decay = ema_decay
  trainer = step_lib.Trainer(config, _PLAN, 10, sharding.make_mesh())
  state = trainer.init()
  if ema_decay:
    state = state.replace(ema=jax.tree.map(lambda x: x * 2 + 1, state.ema))
  metadata = {
    "origin": "starting from random weights",
    "class_names": list("0123456789"),
    "environment": {"versions": runtime.versions()},
    "config": {"seed": 0},
    "resolved": {"total": 20},
  }
  with checkpoints.Checkpoints(workdir) as c:
    c.save(step, state, metadata)
  return state


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir with an average and metrics; the state in it."""
  workdir = tmp_path_factory.mktemp("run")
  state = trained(workdir, 0.9)
  w = metrics.Writer(workdir, 0)
  w.write(2, {"train/loss": 2.0, "eval/accuracy": 0.25})
  w.write(4, {"train/loss": 1.0})
  w.write(5, {"train/loss": 0.5})  # Of after the checkpoint.
  w.close()
  return workdir, state


def test_json(run, capsys):
  workdir, state = run
  assert inspect.main([str(workdir), "--json"]) == 0
  got = json.loads(capsys.readouterr().out)
  params = jax.device_get(state.params)
  leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(params)]
  norm = np.sqrt(sum(np.sum(x**2) for x in leaves))
  assert got.pop("norm") == pytest.approx(norm, rel=1e-12)
  assert got == {
    "path": str(workdir / "checkpoints" / "4"),
    "step": 4,
    "parameters": sum(x.size for x in leaves),
    "finite": True,
    "sha256": by_the_docstring(params),
    "sha256_ema": by_the_docstring(jax.device_get(state.ema)),
    "digests": len(jax.tree.leaves(state)),
    "not_as_saved": [],
    "shapes": {k: list(v) for k, v in weights.shapes(state.params).items()},
    "metrics": {"step": 4, "train/loss": 1.0, "eval/accuracy": 0.25},
    "config": {"seed": 0},
    "resolved": {"total": 20},
    "class_names": list("0123456789"),
    "origin": "starting from random weights",
    "environment": {"versions": runtime.versions()},
  }


def test_text(run, capsys):
  workdir, state = run
  assert inspect.main([str(workdir / "checkpoints" / "4")]) == 0
  out = capsys.readouterr().out
  assert f"sha256      {by_the_docstring(jax.device_get(state.params))}" in out
  assert f"sha256_ema  {by_the_docstring(jax.device_get(state.ema))}" in out
  assert "step        4\n" in out
  assert f"jax {jax.__version__}" in out
  assert "stem/kernel" in out and "(4, 4, 3, 32)" in out
  assert "eval/accuracy" in out and "0.25" in out
  assert "NOT ALL FINITE" not in out
  count = len(jax.tree.leaves(state))
  assert f"digests     {count} arrays, all as saved\n" in out


def test_arrays_that_are_not_as_saved(run, tmp_path, capsys):
  shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")
  checkpoint = tmp_path / "checkpoints" / "4"

  def change(parts):
    bias = np.array(parts["training"]["opt_state"][1]["mu"]["head"]["bias"])
    bias[3] += 1
    parts["training"]["opt_state"][1]["mu"]["head"]["bias"] = bias

  test_saved.rewrite(checkpoint, change)
  for more in ([], ["--json"]):
    assert inspect.main([str(tmp_path), *more]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: checkpoint {checkpoint} is damaged")
    assert "NOT AS SAVED: training/opt_state/1/mu/head/bias" in captured.err
    name = '"training/opt_state/1/mu/head/bias"' if more else "NOT AS SAVED"
    assert name in captured.out


def test_a_checkpoint_from_before_there_were_digests(run, tmp_path, capsys):
  state = jax.device_get(run[1])
  parts = {"params": state.params, "training": {"step": state.step}}
  where = tmp_path / "checkpoints" / "4"
  test_saved.ocp.save_checkpointables(where, parts, custom_metadata={})
  assert inspect.main([str(tmp_path)]) == 0
  assert "digests     none: this" in capsys.readouterr().out


def test_without_average_or_metrics(tmp_path, capsys):
  trained(tmp_path, 0.0, step=0)
  assert inspect.main([str(tmp_path), "--json"]) == 0
  got = json.loads(capsys.readouterr().out)
  assert "sha256_ema" not in got
  assert (got["metrics"], got["step"]) == ({}, 0)


def test_a_broken_state_is_pointed_out(tmp_path, capsys):
  state = trained(tmp_path / "good", 0.0)
  head = {"kernel": state.params["head"]["kernel"] + np.float32("nan")}
  params = dict(state.params) | {"head": dict(state.params["head"]) | head}
  with checkpoints.Checkpoints(tmp_path / "bad") as c:
    c.save(1, state.replace(params=params), {})
  assert inspect.main([str(tmp_path / "bad")]) == 0
  assert "NOT ALL FINITE" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_nothing_there(tmp_path, capsys, more):
  assert inspect.main([str(tmp_path), *more]) == stop.FAILED == 1
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.startswith(f"error: there is no checkpoint in {tmp_path}")
  assert captured.err.count("\n") == 1


def test_a_step_that_is_not_there(run, capsys):
  path = run[0] / "checkpoints" / "3"
  assert inspect.main([str(path)]) == 1
  assert "there are: 4." in capsys.readouterr().err
