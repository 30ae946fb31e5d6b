"""`python -m mixer inspect`: what it shows of a checkpoint, and of two."""

import hashlib
import json
import re
import shutil
import struct

import jax
import numpy as np
import pytest

from configs import smoke
from mixer import cli, metrics, runtime, saving, weights
from tests import states, trained_files

pytestmark = pytest.mark.usefixtures("untouched")
_FORMATS = {"float32": "f", "float64": "d", "int32": "i", "uint8": "B"}
_ORIGIN = "starting from random weights"


def by_the_docstring(params) -> str:
  """The digest, byte by byte, from what `digest` promises."""
  text = b""
  for name, leaf in sorted(weights.flatten(params).items()):
    leaf = np.asarray(leaf)
    text += f"{name} {leaf.dtype.name} {leaf.shape}".encode() + b"\0"
    values = leaf.ravel(order="C").tolist()
    text += struct.pack(f"<{len(values)}{_FORMATS[leaf.dtype.name]}", *values)
  return hashlib.sha256(text).hexdigest()


def test_the_digest_is_what_its_docstring_says():
  rng = np.random.default_rng(0)
  leaves = [rng.normal(size=shape) * 9 for shape in ((), (2, 3), (0, 4), (5,))]
  params = {
    kind: {f"b{i}": np.abs(x).astype(kind) for i, x in enumerate(leaves)}
    for kind in _FORMATS
  }
  turned = {
    group: {
      name: np.asarray(x, x.dtype.newbyteorder(">"), order="F")
      for name, x in reversed(leaves.items())
    }
    for group, leaves in reversed(params.items())
  }
  expected = by_the_docstring(params)
  assert weights.digest(params) == weights.digest(turned) == expected


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir with an average and metrics; the state in it."""
  workdir = tmp_path_factory.mktemp("run")
  config = smoke.get_config()
  config.optimizer.ema_decay = 0.9
  history = runtime.history(None, 0, _ORIGIN)
  state = trained_files.save(workdir, config, lambda m: m.update(history))
  w = metrics.Writer(workdir, 0)
  w.write(2, {"train/loss": 2.0, "eval/accuracy": 0.25})
  w.write(4, {"train/loss": 1.0})
  w.write(5, {"train/loss": 0.5})  # Of after the checkpoint.
  w.close()
  return workdir, state


@pytest.fixture
def command(capsys):
  """Runs it; what it printed."""

  def go(*words, code=0):
    assert cli.main(["inspect", *map(str, words)]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") == bool(code)
    return captured.out + captured.err

  return go


def test_json_has_everything(run, command):
  workdir, state = run
  got = json.loads(command(workdir, "--json"))
  flat = weights.flatten(jax.device_get(state.params))
  leaves = [np.asarray(x, np.float64).ravel() for x in flat.values()]
  norm = np.linalg.norm(np.concatenate(leaves))
  assert got.pop("norm") == pytest.approx(norm, rel=1e-12)
  name = "MixerBlock_1/token_mixing"
  own = [np.ravel(x) for k, x in flat.items() if k.startswith(name)]
  own = np.concatenate(own).astype(np.float64)
  assert got.pop("modules")[name] == {
    "parameters": own.size,
    "norm": pytest.approx(np.linalg.norm(own)),
    "largest": np.abs(own).max(),
  }
  assert got.pop("config")["model"]["variant"] == "S/4"
  history = runtime.history(None, 0, _ORIGIN)
  history.pop("origin")
  assert got == {
    "path": str(workdir / "checkpoints" / "4"),
    "model": "2 blocks, C 32, T 16, F 64, patches of 4 px, 16 tokens",
    "step": 4,
    "parameters": sum(x.size for x in leaves),
    "finite": True,
    "sha256": by_the_docstring(state.params),
    "sha256_ema": by_the_docstring(state.ema),
    "digests": len(jax.tree.leaves(state)),
    "not_as_saved": [],
    "shapes": {k: list(x.shape) for k, x in flat.items()},
    "metrics": {"step": 4, "train/loss": 1.0, "eval/accuracy": 0.25},
    "resolved": {"total": 20},
    "class_names": list("0123456789"),
    **history,
  }


def test_text(run, command):
  workdir, state = run
  out = command(workdir / "checkpoints" / "4")
  rows = dict(line.split(maxsplit=1) for line in out.splitlines()[:-1])
  assert rows["sha256"] == by_the_docstring(state.params)
  assert (rows["step"], rows["metrics.eval/accuracy"]) == ("4", "0.25")
  assert f"jax {jax.__version__}" in out and _ORIGIN in out
  assert rows["config.batch_size"] == "32" and "config.seed" not in rows
  assert (rows["finite"], rows["not_as_saved"]) == ("True", "(none)")
  # A screen of it; every parameter only where that is asked for.
  assert "stem/kernel" not in out and out.count("\n") < 50
  more = command(workdir, "--parameters")
  assert more.startswith(out)
  (line,) = [x for x in more.splitlines() if x.startswith("stem/kernel ")]
  mean = np.mean(state.params["stem"]["kernel"])
  assert "4, 4, 3, 32" in line and f"{mean:.6g}" in line
  assert re.search(r"(?m)^head +parameters 330, norm ", more)


def test_damage_and_nothing_there(run, tmp_path, command):
  out = command(tmp_path, code=1)
  assert out.startswith(f"error: there is no checkpoint in {tmp_path}")
  assert "checkpoints: 4." in command(run[0] / "checkpoints" / "3", code=1)
  assert "no weights at" in command(tmp_path / "none.npz", code=1)
  shutil.copytree(run[0] / "checkpoints", tmp_path / "checkpoints")
  checkpoint = tmp_path / "checkpoints" / "4"

  def change(parts):
    for part in ("ema", "params"):
      bias = np.array(parts[part]["head"]["bias"])
      bias[3] = np.nan
      parts[part]["head"]["bias"] = bias

  states.rewrite(checkpoint, change)
  for more in ([], ["--json"]):
    out = command(tmp_path, *more, code=1)
    assert f"error: checkpoint {checkpoint} is damaged" in out
    assert "not as saved: ema/head/bias; params/head/bias" in out
    assert re.search(r'finite"?:? +False|"finite": false', out)


def test_a_file_of_weights(run, tmp_path, command):
  path = tmp_path / "own.npz"
  flat = trained_files.npz(path, 10)
  out = command(path)
  assert re.search("model +2 blocks, C 8, T 6, F 12, patches of 4 px", out)
  assert "\nstep " not in out and "digests" not in out
  got = json.loads(command(path, "--json"))
  content = path.read_bytes()
  assert got["file_sha256"] == hashlib.sha256(content).hexdigest()
  assert got["sha256"] == by_the_docstring(weights.unflatten(flat))
  out = command(run[0], path)
  assert "shapes.stem/kernel: 4, 4, 3, 32 -> 4, 4, 3, 8\n" in out


def test_a_run_beside_another(run, tmp_path, command):
  workdir, state = run
  bias = np.array(state.params["head"]["bias"])
  bias[3] += 1
  head = dict(state.params["head"]) | {"bias": jax.numpy.asarray(bias)}
  changed = state.replace(params=dict(state.params) | {"head": head})
  environment = {"versions": runtime.versions() | {"jax": "1"}, "host": "h"}
  with saving.Checkpoints(tmp_path) as c:
    c.save(9, changed, {"config": {"seed": 1}, "environment": environment})
  out = command(workdir, tmp_path)
  for line in (
    "config.seed: 0 -> 1",
    "step: 4 -> 9",
    "metrics.eval/accuracy: 0.25 -> (none)",
    f"environment.versions.jax: {jax.__version__} -> 1",
  ):
    assert f"{line}\n" in out
  assert "environment.versions.numpy" not in out
  (line,) = [x for x in out.splitlines() if x.startswith("head ")]
  assert float(line.split()[-1]) == pytest.approx(1 / 330, rel=1e-4)
  got = json.loads(command(workdir, tmp_path, "--json"))
  assert not got["same_weights"] and got["differences"]["step"] == [4, 9]
  a, b = (
    np.concatenate([np.ravel(x["bias"]), np.ravel(x["kernel"])]).astype(float)
    for x in (state.params["head"], head)
  )
  norm = np.linalg.norm
  assert got["modules"]["head"] == {
    "relative": pytest.approx(norm(b - a) / norm(a)),
    "cosine": pytest.approx(a @ b / norm(a) / norm(b)),
    "largest": pytest.approx(1),
    "changed": pytest.approx(1 / 330),
  }
  assert got["modules"]["stem"]["changed"] == 0
  out = command(workdir, workdir)
  assert out.endswith("\n\nThe weights are the same to the bit.\n")
