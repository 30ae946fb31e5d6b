"""`mixer export`: what others take, proven before it is there."""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import resource
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs import smoke
from mixer import (
  block,
  cli,
  export,
  metadata,
  model,
  npz,
  predictor,
  trained,
  weights,
)
from mixer import export_onnx as onnx_lib
from mixer import export_stablehlo as stablehlo
from mixer import export_timm as timm
from mixer.commands import export as command
from mixer.errors import UserError
from tests import reference, trained_files

FORMS = {"timm": timm, "onnx": onnx_lib, "stablehlo": stablehlo}
VARIANT = block.TokenMixing(
  untied=True, groups=4, projection=True, pyramid=((1, 3),)
)
EVERY = [
  ("npz", "a.npz"),
  ("timm", "a.safetensors"),
  ("timm", "made"),
  ("onnx", "a.onnx"),
  ("stablehlo", "a.stablehlo"),
  ("stablehlo", "made"),
]
pytestmark = pytest.mark.usefixtures("untouched")


def make(size=(8, 12), short_side=16, num_classes=5, module=None, **changes):
  """A model with random weights, of two blocks unless a module is given."""
  module = module or model.MlpMixer(4, 2, 8, 5, 13, num_classes=num_classes)
  module = module.clone(**changes)
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(1), images)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )
  ids = tuple(f"n{k:08}" for k in range(module.num_classes)) or None
  names = tuple(f"kind {k}" for k in range(module.num_classes)) or None
  where = ("softmax", "runs/a", "runs/a (step 4)")
  return trained.Trained(module, params, size, short_side, ids, names, *where)


def write(found, path, to, **more):
  """Exports a model; what was written, and the table if it was run."""
  form = FORMS[to]
  if to == "stablehlo":
    more.setdefault("platforms", ("cpu", "cuda", "tpu"))
  with export.place(str(path), form.SUFFIX, form.MEMBERS) as place:
    written = form.write(found, place, **more)
    images = command.random_images(found.image_size)
    table = "" if written.missing else command.verify(found, written, images)
    place.commit()
  return written, table


def names_in(folder: pathlib.Path):
  return sorted(p.name for p in folder.iterdir())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  return workdir, trained_files.save(workdir, smoke.get_config())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """The file of a smaller one, which is loaded sooner."""
  path = tmp_path_factory.mktemp("small") / "in.npz"
  trained_files.npz(path, 5, classes=list("abcde"))
  return path


def run_export(checkpoint, output, *more) -> int:
  words = [f"--checkpoint={checkpoint}", f"--output={output}", *more]
  return cli.main(["export", *words])


def without(monkeypatch, *packages):
  """As where they aren't installed."""
  for name in packages:
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("averaged", [True, False])
def test_npz_has_the_same_bits(run, tmp_path, capsys, averaged):
  workdir, state = run
  output = tmp_path / "weights.npz"
  more = [] if averaged else ["--no-averaged"]
  assert run_export(workdir, output, "--to=npz", *more) == 0
  expected = weights.flatten(state.ema if averaged else state.params)
  with np.load(output, allow_pickle=False) as found:
    assert {*found} == {*expected}
    for name, value in expected.items():
      assert found[name].tobytes() == np.asarray(value).tobytes(), name
  out = capsys.readouterr().out
  count = sum(x.size for x in expected.values())
  assert out.startswith(f"{output}: {count:,} parameters of {workdir}/check")
  assert ("averaged weights" in out) == averaged
  assert "on 6 images, in batches of 1 and 5: mixer and the file" in out
  assert "equal bits" in out and "6 of 6 agree" in out
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
  (tmp_path / "run").mkdir()
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


def test_what_is_not_as_written_is_not_kept(
  small, tmp_path, capsys, monkeypatch
):
  beside, arrays = metadata.write_beside, npz.write
  output = tmp_path / "model.npz"
  output.write_text("the old one")

  def other_metadata(path, found, **more):
    beside(path, dataclasses.replace(found, short_side=17), **more)

  def other_arrays(path, flat):
    arrays(path, flat | {"stem/bias": flat["stem/bias"] + np.float32(1e-3)})

  for where, name, wrong, said in (
    (metadata, "write_beside", other_metadata, "was written to it: short_side"),
    (npz, "write", other_arrays, "logits differ by .* where equal bits is"),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(where, name, wrong)
      assert run_export(small, output) == 1
    found = capsys.readouterr()
    assert re.search(said, found.err) and not found.out
    assert output.read_text() == "the old one"
    assert names_in(tmp_path) == ["model.npz"]


def test_onnx_of_images_of_the_users(run, tmp_path, capsys, monkeypatch):
  rng = np.random.default_rng(0)
  names = []
  for i in range(3):
    names.append(str(tmp_path / f"{i}.png"))
    pixels = rng.integers(0, 256, (30, 20 + i, 3), np.uint8)
    Image.fromarray(pixels).save(names[-1])
  output = tmp_path / "model.onnx"
  more = ("--to=onnx", "--images", *names)
  assert run_export(run[0], output, *more, "--dtype=bfloat16") == 0
  out = capsys.readouterr().out
  assert "on 3 images, in batches of 1 and 2: mixer and onnxruntime" in out
  assert "Both in float32, in which the export computes" in out
  loading = out.split("To load it:\n\n")[1]
  found = {}
  exec("\n".join(line[2:] for line in loading.splitlines()), found)
  assert found["logits"].shape == (2, 10)
  said = found["model"].get_modelmeta().custom_metadata_map
  assert json.loads(said["class_names"]) == list("0123456789")
  assert "central 16 x 16" in said["preprocessing"]
  assert run_export(run[0], output, "--to=onnx", "--images", "no.png") == 1
  assert "no.png" in capsys.readouterr().err
  # A graph that scales pixels to [1, 3].
  build = onnx_lib.build

  def other(found, strings):
    made = build(found, strings)
    next(n for n in made.graph.node if n.op_type == "Sub").op_type = "Add"
    return made

  before = output.read_bytes()
  monkeypatch.setattr(onnx_lib, "build", other)
  assert run_export(run[0], output, *more) == 1
  error = capsys.readouterr().err
  assert "computes something else in onnxruntime" in error
  assert "logits differ by" in error and "1e-04 is allowed" in error
  assert output.read_bytes() == before


def test_more_weights_than_an_onnx_file_holds(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_lib, "_LARGEST", 2_000)
  found = make(num_classes=200)
  written, table = write(found, tmp_path / "m.onnx", "onnx")
  assert "6 of 6 agree" in table
  assert "in m.onnx.data beside it" in written.notes[0]
  # Once more, over what is there, and without what runs it.
  without(monkeypatch, "onnxruntime")
  written, _ = write(found, tmp_path / "m.onnx", "onnx")
  assert written.missing.startswith("onnxruntime can't be imported")
  assert names_in(tmp_path) == ["m.onnx", "m.onnx.data"]
  made = onnx.load(tmp_path / "m.onnx")
  (head,) = [x for x in made.graph.initializer if x.name == "head/kernel"]
  np.testing.assert_array_equal(
    onnx.numpy_helper.to_array(head), found.params["head"]["kernel"]
  )


@pytest.mark.parametrize("num_classes", [3, 0])
def test_onnx_of_a_fresh_head_or_none(tmp_path, num_classes):
  found = make(num_classes=num_classes)
  if num_classes:  # Logits are zeros.
    zeros = jax.tree.map(np.zeros_like, found.params["head"])
    found = dataclasses.replace(found, params=found.params | {"head": zeros})
  _, table = write(found, tmp_path / "m.onnx", "onnx")
  assert ("logits         0.0e+00" in table) == bool(num_classes)
  session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
  assert len(session.get_outputs()) == 1 + bool(num_classes)


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("made", {"permute": "pixels", "permute_seed": 3, "mixing": VARIANT}),
    ("p.stablehlo", {"dtype": jnp.bfloat16, "num_classes": 0}),
  ],
)
def test_stablehlo_has_the_same_bits(tmp_path, name, changes):
  _, table = write(make(**changes), tmp_path / name, "stablehlo")
  assert "features       0.0e+00     0.0e+00  equal bits" in table
  more = [] if name == "made" else [f"{name}.json"]
  assert names_in(tmp_path) == [name, *more]


def test_stablehlo_needs_no_mixer(tmp_path, monkeypatch):
  """In a process of its own, which can't find mixer."""
  found, code = make(), ""
  for i, name in enumerate(("made", "p.stablehlo")):
    written, _ = write(found, tmp_path / name, "stablehlo")
    code += f"{written.loading}\nnp.save('{i}.npy', outputs['logits'])\n"
  code += "import sys\nassert 'mixer' not in sys.modules\n"
  words = [sys.executable, "-I", "-c", code]
  subprocess.run(words, cwd=tmp_path, check=True)
  black = [np.zeros((2, 8, 12, 3), np.uint8)]
  wanted = export.outputs(export.runner(found), black)["logits"]
  for i in range(2):
    # XLA_FLAGS, which it inherits, may change the last ones.
    assert np.load(tmp_path / f"{i}.npy").tobytes() == wanted.tobytes()
  info = json.loads((tmp_path / "made" / "info.json").read_text())
  assert info["class_names"][2] == "kind 2" and info["dtype"] == "float32"
  written, _ = write(found, tmp_path / "made", "stablehlo", platforms=("cuda",))
  assert "is for cuda, and this is a machine with cpu" in written.missing
  data = (tmp_path / "made" / "model.stablehlo").read_bytes()
  exported = jax.export.deserialize(bytearray(data))
  assert exported.platforms == ("cuda",)
  monkeypatch.setattr(stablehlo, "_LARGEST", 1_000)
  with pytest.raises(UserError, match="give --output the name of a folder"):
    write(found, tmp_path / "p.stablehlo", "stablehlo")


def timm_forward(w, x):
  """What timm's MlpMixer computes of `[B, 3, H, W]`, with tanh GELU."""

  def linear(x, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

  def norm(x, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    scaled = (x - mean) / np.sqrt(var + 1e-6)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

  def mlp(x, name):
    x = linear(x, f"{name}.fc1")
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return linear(0.5 * x * (1 + np.tanh(inner)), f"{name}.fc2")

  kernel = w["stem.proj.weight"]
  p, (b, c, height, width) = kernel.shape[-1], x.shape
  patches = x.reshape(b, c, height // p, p, width // p, p)
  x = np.einsum("bcypxq,ocpq->byxo", patches, kernel).reshape(b, -1, 8)
  x = x + w["stem.proj.bias"]
  for i in range(2):
    y = norm(x, f"blocks.{i}.norm1").transpose(0, 2, 1)
    x = x + mlp(y, f"blocks.{i}.mlp_tokens").transpose(0, 2, 1)
    x = x + mlp(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp_channels")
  return linear(norm(x, "norm").mean(axis=1), "head")


def test_timm_names_shapes_and_arithmetic(tmp_path, monkeypatch):
  """Without PyTorch; test_export_torch.py has timm itself."""
  without(monkeypatch, "torch", "timm")
  found = make()
  written, table = write(found, tmp_path / "w.safetensors", "timm")
  assert "torch and timm" in written.missing and not table
  flat = safetensors.numpy.load_file(tmp_path / "w.safetensors")
  assert len(flat) == 6 + 2 * 12
  images = np.stack(
    [predictor.fit(i, found) for i in command.random_images((8, 12))]
  ).astype(np.float64)
  x = (images / 255 - 0.5) / 0.5
  double = {k: v.astype(np.float64) for k, v in flat.items()}
  np.testing.assert_allclose(
    timm_forward(double, x.transpose(0, 3, 1, 2)),
    reference.forward(found.params, images / 127.5 - 1),
    rtol=1e-9,
    atol=1e-9,
  )


def test_timm_config(tmp_path, small, capsys, monkeypatch):
  without(monkeypatch, "torch", "timm")
  assert run_export(small, tmp_path / "made", "--to=timm") == 0
  said = capsys.readouterr()
  assert said.err.startswith("\nNOT VERIFIED: torch and timm")
  assert "pip install torch timm" in said.err and "compared" not in said.out
  file = tmp_path / "made" / "model.safetensors"
  with safetensors.safe_open(file, "np") as opened:
    found = metadata.parse(opened.metadata(), "it")
  assert found == trained.load(str(small)).metadata
  config = json.loads((tmp_path / "made" / "config.json").read_text())
  # timm can't make such a size by name, and is given none.
  assert config["architecture"] == "mlp_mixer"
  assert config["model_args"]["embed_dim"] == 8
  named = dataclasses.replace(
    make(short_side=256), module=model.build("B/16", 5), image_size=(224, 224)
  )
  config = timm.config(named)
  assert config["architecture"] == "mixer_b16_224"
  # What its function sets itself must not be there.
  assert {*config["model_args"]} == {"img_size", "mlp_ratio"}
  pretrained = config["pretrained_cfg"]
  assert pretrained["crop_pct"] == 0.875
  assert pretrained["label_names"][3] == "n00000003"
  squeezed = timm.config(make(short_side=0))["pretrained_cfg"]
  assert (squeezed["crop_pct"], squeezed["crop_mode"]) == (1.0, "squash")


@given(
  st.integers(1, 8192), st.integers(1, 2048), st.integers(1, 999), st.integers()
)
def test_timm_cuts_off_to_the_width_and_the_short_side(width, c, side, more):
  module = model.MlpMixer(1, 1, c, width, 1)
  short = side + more % 1024
  where = ("softmax", "", "")
  found = trained.Trained(module, {}, (side, side), short, None, None, *where)
  config = timm.config(found)
  assert int(config["model_args"]["mlp_ratio"][0] * c) == width
  assert math.floor(side / config["pretrained_cfg"]["crop_pct"]) == short


@pytest.mark.parametrize("to", ["timm", "onnx"])
@pytest.mark.parametrize(
  "changes", [{"permute": "pixels"}, {"mixing": VARIANT}]
)
def test_variants_are_refused(tmp_path, to, changes):
  path = tmp_path / f"a{FORMS[to].SUFFIX}"
  with pytest.raises(UserError, match="(pixels|untied).*to=stablehlo"):
    write(make(**changes), path, to)
  assert not names_in(tmp_path)


@pytest.mark.parametrize("to", FORMS)
def test_packages_are_asked_for_first(tmp_path, capsys, monkeypatch, to):
  """Before the weights are read, which here aren't even there."""
  (package,) = FORMS[to].PACKAGES
  without(monkeypatch, package)
  path = tmp_path / f"a{FORMS[to].SUFFIX}"
  assert run_export("runs/no", path, f"--to={to}") == 1
  assert f"pip install {package}" in capsys.readouterr().err
  assert not names_in(tmp_path)


@pytest.mark.parametrize(("to", "name"), EVERY)
def test_a_disk_that_is_full(small, tmp_path, capsys, monkeypatch, to, name):
  """A limit on the size of files does what a full disk does."""
  without(monkeypatch, "torch", "timm", "onnxruntime")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
  try:
    code = run_export(small, tmp_path / name, f"--to={to}")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert code == 1
  error = capsys.readouterr().err
  assert error.startswith(f"error: {tmp_path / name}")
  assert "can't be written: " in error and "File too large" in error
  assert not names_in(tmp_path)


def test_where_it_is_put(tmp_path, monkeypatch):
  there, link = tmp_path / "there", tmp_path / "a.onnx"
  there.mkdir()
  link.symlink_to("there/b")
  with export.place(str(link), ".onnx") as place:
    place.part.write_text("new")
    assert not (there / "b").exists()
    place.commit()
  assert link.is_symlink() and names_in(there) == ["b"]
  assert (there / "b").read_text() == "new"
  path = tmp_path / "v1.5" / "x"
  members, replace = ("info", "weights", "program"), pathlib.Path.replace

  def stop(self, target):
    if str(target).endswith("weights"):
      raise KeyboardInterrupt
    return replace(self, target)

  for text in ("old", "new", "left", "killed"):
    with contextlib.suppress(KeyboardInterrupt):
      with export.place(str(path), ".onnx", members) as place:
        for name in members:
          (place.part / name).write_text(text)
        if text == "killed":
          monkeypatch.setattr(pathlib.Path, "replace", stop)
        if text != "left":
          place.commit()
    if text == "killed":  # No mixture that can be loaded.
      assert names_in(path) == ["info", "weights"]
    else:
      kept = "new" if text == "left" else text
      assert [(path / name).read_text() for name in members] == [kept] * 3
    assert names_in(path.parent) == ["x"]


@pytest.mark.parametrize(
  ("to", "name", "said"),
  [
    ("npz", "weights.pt", "expected a name ending in .npz"),
    ("npz", "/dev/null/w.npz", "w.npz can't be written: "),
    ("npz", "folder.npz", "it is a folder; expected a name ending in .npz"),
    ("timm", "a.npz", "or the name of a folder for config.json and model.saf"),
    ("timm", "file", "it is a file; expected"),
    ("npz", "pipe.npz", "it is a pipe or a device; expected"),
    ("timm", "full", "holds something else (a, b, c); expected"),
    ("npz", "none.npz", "there are no weights at runs/no"),
  ],
)
def test_names_that_cannot_be(tmp_path, capsys, to, name, said):
  """Said before the weights are read."""
  (tmp_path / "file").write_text("")
  (tmp_path / "folder.npz").mkdir()
  os.mkfifo(tmp_path / "pipe.npz")
  (tmp_path / "full").mkdir()
  for other in ("a", "b", "c", "config.json"):
    (tmp_path / "full" / other).write_text("")
  before = names_in(tmp_path)
  assert run_export("runs/no", os.path.join(tmp_path, name), f"--to={to}") == 1
  assert said in capsys.readouterr().err
  assert names_in(tmp_path) == before
