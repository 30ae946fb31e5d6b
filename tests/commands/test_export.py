"""`python -m mixer export`: what others take, proven before it is there."""

import dataclasses
import json
import resource
import sys

import jax
import numpy as np
import onnxruntime
import pytest
import safetensors
from PIL import Image

from configs import smoke
from mixer import (
  cli,
  model,
  npz,
  predictor,
  trained,
  weights,
)
from mixer import metadata as metadata_lib
from mixer.exporting import onnx_graph
from tests import trained_files

pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  return workdir, trained_files.save(workdir, smoke.get_config())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """The file of a smaller one, which is loaded sooner."""
  path = tmp_path_factory.mktemp("small") / "in.npz"
  trained_files.npz(path, 5)
  return path


def run_export(workdir, output, *more) -> int:
  return cli.main(
    ["export", f"--checkpoint={workdir}", f"--output={output}", *more]
  )


def without(monkeypatch, *packages):
  """As where they aren't installed."""
  for name in packages:
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("averaged", [True, False])
def test_the_same_bits(run, tmp_path, capsys, averaged):
  workdir, state = run
  output = tmp_path / "weights.npz"
  more = [] if averaged else ["--no-averaged"]
  assert run_export(workdir, output, "--to=npz", *more) == 0
  expected = weights.flatten(state.ema if averaged else state.params)
  with np.load(output, allow_pickle=False) as found:
    assert {*found} == {*expected}
    for name, value in expected.items():
      assert found[name].dtype == np.float32
      assert found[name].tobytes() == np.asarray(value).tobytes(), name
  out = capsys.readouterr().out
  assert out.startswith(
    f"{output}: {sum(x.size for x in expected.values()):,} "
  )
  assert f"{workdir}/checkpoints/4 (step 4" in out
  assert ("averaged weights" in out) == averaged
  assert (
    "compared on 6 images, in batches of 1 and 5: mixer and the file" in out
  )
  assert "6 of 6 agree" in out
  if averaged:  # It is a model that every command takes, this one too.
    assert trained.load(str(output)).image_size == (16, 16)
    assert run_export(output, tmp_path / "again.npz") == 0
    assert (tmp_path / "again.npz").read_bytes() == output.read_bytes()


def test_a_run_and_its_export_answer_alike_for_files(tmp_path):
  """Preprocessing, loss, precision and class names go along."""
  config = smoke.get_config()
  config.data.eval_short_side = 0  # Squeezed, where the paper crops.
  config.loss.name, config.model.dtype = "sigmoid", "bfloat16"
  names = [f"kind {k}" for k in range(10)]
  trained_files.save(
    tmp_path / "run", config, lambda m: m.update(class_names=names)
  )
  path = str(tmp_path / "banner.png")
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(0, 256, (40, 240, 3), np.uint8)).save(path)
  output = tmp_path / "new" / "weights.npz"
  assert run_export(tmp_path / "run", output, "--images", path) == 0
  said = [
    predictor.Predictor(trained.load(str(each))).predict(path)
    for each in (tmp_path / "run", output)
  ]
  assert said[0] == said[1]
  assert set(said[0][0].names) <= set(names)


def test_metadata_that_is_not_as_written_is_noticed(
  run, tmp_path, capsys, monkeypatch
):
  write = metadata_lib.write_beside
  monkeypatch.setattr(
    metadata_lib,
    "write_beside",
    lambda path, found, **more: write(
      path, dataclasses.replace(found, short_side=17), **more
    ),
  )
  output = tmp_path / "weights.npz"
  assert run_export(run[0], output) == 1
  assert "weights.npz doesn't say what was written to it: short_side" in (
    capsys.readouterr().err
  )
  assert not [*tmp_path.iterdir()]


def test_what_was_written_is_compared(run, tmp_path, capsys, monkeypatch):
  write = npz.write

  def broken(path, arrays):
    name = "stem/kernel"
    write(path, arrays | {name: arrays[name] + np.float32(1e-3)})

  monkeypatch.setattr(npz, "write", broken)
  output = tmp_path / "weights.npz"
  assert run_export(run[0], output) == 1
  error = capsys.readouterr().err
  assert f"{output} doesn't hold what was written to it: stem/kernel" in error
  assert not [*tmp_path.iterdir()]


def test_one_that_computes_something_else_is_not_kept(
  small, tmp_path, capsys, monkeypatch
):
  """A graph that scales pixels to [1, 3]."""
  add = onnx_graph._Graph.add

  def other(self, op, *inputs, **attributes):
    return add(self, "Add" if op == "Sub" else op, *inputs, **attributes)

  monkeypatch.setattr(onnx_graph._Graph, "add", other)
  output = tmp_path / "model.onnx"
  output.write_text("the old one")
  assert run_export(small, output, "--to=onnx") == 1
  said = capsys.readouterr()
  assert "computes something else in onnxruntime" in said.err
  assert "logits differ by" in said.err and "1e-04 is allowed" in said.err
  assert not said.out
  assert output.read_text() == "the old one"
  assert [*tmp_path.iterdir()] == [output]


def test_onnx_of_images_of_the_users(run, tmp_path, capsys):
  rng = np.random.default_rng(0)
  names = []
  for i in range(3):
    names.append(str(tmp_path / f"{i}.png"))
    pixels = rng.integers(0, 256, (30, 20 + i, 3), np.uint8)
    Image.fromarray(pixels).save(names[-1])
  output = tmp_path / "model.onnx"
  code = run_export(run[0], output, "--to=onnx", "--images", *names)
  assert code == 0
  out = capsys.readouterr().out
  assert "compared on 3 images, in batches of 1 and 2: mixer and onnxr" in out
  session = onnxruntime.InferenceSession(output)
  names = session.get_modelmeta().custom_metadata_map["class_names"]
  assert json.loads(names) == list("0123456789")
  assert run_export(run[0], output, "--to=onnx", "--images", "no.png") == 1
  assert "no.png" in capsys.readouterr().err
  assert output.exists()


def test_stablehlo_in_a_folder(small, tmp_path, capsys):
  output = tmp_path / "program"
  more = ("--to=stablehlo", "--platforms=cpu,tpu", "--dtype=bfloat16")
  assert run_export(small, output, *more) == 0
  out = capsys.readouterr().out
  assert "equal bits" in out and "6 months newer and 3\nweeks older" in out
  info = json.loads((output / "info.json").read_text())
  assert info["platforms"] == ["cpu", "tpu"]
  assert info["dtype"] == "bfloat16"
  found = metadata_lib.parse(info, "it")
  wanted = trained.load(str(small)).metadata
  assert found == dataclasses.replace(wanted, dtype="bfloat16")


def test_not_verified_is_said(small, tmp_path, capsys, monkeypatch):
  without(monkeypatch, "torch", "timm")
  output = tmp_path / "made"
  assert run_export(small, output, "--to=timm") == 0
  said = capsys.readouterr()
  assert said.err.startswith("\nNOT VERIFIED: torch and timm")
  assert "pip install torch timm" in said.err
  assert "compared" not in said.out
  with safetensors.safe_open(output / "model.safetensors", "np") as file:
    said = file.metadata()
  assert said["format"] == "pt" and said["interpolation"] == "area"
  found = metadata_lib.parse(said, "it")
  assert found == trained.load(str(small)).metadata


@pytest.mark.parametrize(
  ("to", "package"),
  [("timm", "safetensors"), ("onnx", "onnx"), ("stablehlo", "flatbuffers")],
)
def test_what_it_takes_to_write(tmp_path, capsys, monkeypatch, to, package):
  """Said before the weights are read, which here aren't even there."""
  without(monkeypatch, package)
  suffix = {"timm": ".safetensors"}.get(to, f".{to}")
  assert run_export("runs/no", tmp_path / f"a{suffix}", f"--to={to}") == 1
  assert f"pip install {package}" in capsys.readouterr().err
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
  ("to", "name"),
  [
    ("npz", "a.npz"),
    ("timm", "a.safetensors"),
    ("timm", "made"),
    ("onnx", "a.onnx"),
    ("stablehlo", "a.stablehlo"),
    ("stablehlo", "made"),
  ],
)
def test_a_disk_that_is_full(small, tmp_path, capsys, monkeypatch, to, name):
  """A limit on the size of files does what a full disk does."""
  without(monkeypatch, "torch", "timm", "onnxruntime")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  output = tmp_path / name
  resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
  try:
    code = run_export(small, output, f"--to={to}")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert code == 1
  error = capsys.readouterr().err
  assert error.startswith(f"error: {output}")
  assert "can't be written: " in error
  assert "File too large" in error
  assert not [*tmp_path.iterdir()]


def test_a_damaged_checkpoint_is_not_exported(tmp_path, capsys):
  trained_files.save(tmp_path, smoke.get_config())
  (tmp_path / "checkpoints" / "4" / "ema" / "manifest.ocdbt").write_bytes(b"x")
  output = tmp_path / "weights.npz"
  assert run_export(tmp_path, output) == 1
  error = capsys.readouterr().err
  assert "checkpoints/4 is damaged: its file ema/manifest.ocdbt has 1" in error
  assert not output.exists()


@pytest.mark.parametrize("to", ["npz", "timm"])
def test_permuted_images_are_refused(tmp_path, capsys, to):
  config = smoke.get_config()
  config.data.permute = "pixels"
  trained_files.save(tmp_path, config)
  suffix = {"timm": ".safetensors"}.get(to, f".{to}")
  assert run_export(tmp_path, tmp_path / f"a{suffix}", f"--to={to}") == 1
  error = capsys.readouterr().err
  what = {"npz": "an .npz file", "timm": "timm's MlpMixer"}[to]
  assert f"with their pixels permuted, of which {what} can't tell" in error


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("weights.pt", "expected a name ending in .npz"),
    ("/dev/null/w.npz", "w.npz can't be written: "),
  ],
)
def test_names_that_cannot_be(tmp_path, capsys, name, said):
  """Said before the weights are read."""
  assert run_export("runs/no", tmp_path / name) == 1
  assert said in capsys.readouterr().err


def test_nothing_there(tmp_path, capsys):
  assert run_export(tmp_path / "no", tmp_path / "weights.npz") == 1
  assert "there are no weights at" in capsys.readouterr().err
  assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("platforms", ["gpu", "cpu,cpu", ""])
def test_platforms_that_jax_does_not_know(tmp_path, capsys, platforms):
  with pytest.raises(SystemExit):
    run_export(tmp_path, tmp_path / "a", f"--platforms={platforms}")
  assert "expected some of cpu,cuda,rocm,tpu" in capsys.readouterr().err


def test_a_fresh_head_of_a_model_of_another_size(tmp_path, capsys):
  """Logits are zeros, and the images are of a size that it wasn't made for."""
  module = model.MlpMixer(4, 1, 8, 6, 12, num_classes=3)
  params = trained_files.random_params(module, 8)
  params["head"] = jax.tree.map(np.zeros_like, params["head"])
  npz.save(params, tmp_path / "in.npz")
  output = tmp_path / "model.onnx"
  more = ("--to=onnx", "--image_size=16x8")
  assert run_export(tmp_path / "in.npz", output, *more) == 0
  out = capsys.readouterr().out
  assert "np.zeros((2, 16, 8, 3)" in out and "6 of 6 agree" in out
