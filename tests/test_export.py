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
  export_onnx,
  export_stablehlo,
  export_timm,
  model,
  predictor,
  trained,
  weights,
)
from mixer.commands import export as command
from tests import reference, trained_files

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


@pytest.fixture
def export(tmp_path, capsys, monkeypatch):
  """Runs the command, on a model of `make` or on a path; stdout, stderr."""
  load = trained.load

  def run(found, name, to, *more, code=0):
    if isinstance(model := found, trained.Trained):
      found = "it"
      monkeypatch.setattr(
        trained, "load", lambda path, *_: model if path == "it" else load(path)
      )
    words = [f"--checkpoint={found}", f"--output={tmp_path / name}"]
    assert cli.main(["export", *words, f"--to={to}", *more]) == code
    return capsys.readouterr()

  return run


def loaded(out):
  """What the lines that are printed make."""
  found = {}
  text = out.split("To load it:\n")[1].replace("\n  ", "\n")
  exec(text, found)
  return found


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


def without(monkeypatch, *packages):
  """As where they aren't installed."""
  for name in packages:
    monkeypatch.setitem(sys.modules, name, None)


def test_npz_has_the_same_bits(run, tmp_path, export):
  workdir, state = run
  output = tmp_path / "new" / "weights.npz"
  out = export(workdir, "new/weights.npz", "npz").out
  expected = weights.flatten(state.ema)
  with np.load(output, allow_pickle=False) as found:
    assert {*found} == {*expected}
    for name, value in expected.items():
      assert found[name].tobytes() == np.asarray(value).tobytes(), name
  count = sum(x.size for x in expected.values())
  assert out.startswith(f"{output}: {count:,} parameters of {workdir}/check")
  assert "averaged weights" in out
  assert "compared on 4 images" in out and "equal bits" in out
  # It is a model that every command takes, this one too.
  export(output, "again.npz", "npz")
  assert (tmp_path / "again.npz").read_bytes() == output.read_bytes()
  beside = json.loads(output.with_name("weights.npz.json").read_text())
  assert beside["source"].endswith("averaged weights)")


def test_a_run_and_its_export_answer_alike_for_files(tmp_path, export):
  """Preprocessing, loss, precision and class names go along."""
  config = smoke.get_config()
  config.data.eval_short_side = 0  # Squeezed, where the paper crops.
  config.loss.name, config.model.dtype = "sigmoid", "bfloat16"
  names = {"class_names": [f"kind {k}" for k in range(10)]}
  trained_files.save(tmp_path / "run", config, lambda m: m.update(names))
  path = str(tmp_path / "banner.png")
  noise = np.random.default_rng(0).integers(0, 256, (40, 240, 3), np.uint8)
  Image.fromarray(noise).save(path)
  export(tmp_path / "run", "weights.npz", "npz", "--images", path)
  one, other = (
    predictor.Predictor(trained.load(str(tmp_path / each))).predict(path)
    for each in ("run", "weights.npz")
  )
  assert one == other and {*one[0].names} <= {*names["class_names"]}


def test_what_computes_something_else_is_not_kept(
  small, tmp_path, export, monkeypatch
):
  output, write, make = tmp_path / "m.npz", weights.write, export_onnx.build
  output.write_text("the old one")

  def other(path, flat):
    write(path, flat | {"stem/bias": flat["stem/bias"] + np.float32(1e-3)})

  def scaled(found):  # Pixels to [1, 3].
    made = make(found)
    next(n for n in made.graph.node if n.op_type == "Sub").op_type = "Add"
    return made

  monkeypatch.setattr(weights, "write", other)
  monkeypatch.setattr(export_onnx, "build", scaled)
  for to, bound in (("npz", "equal bits"), ("onnx", "1e-04")):
    found = export(small, f"m.{to}", to, code=1)
    assert re.search(f"features differ by .* {bound} is allowed", found.err)
    assert not found.out and names_in(tmp_path) == ["m.npz"]
    assert output.read_text() == "the old one"


def test_onnx_of_images_of_the_users(run, tmp_path, export):
  rng = np.random.default_rng(0)
  names = []
  for i in range(3):
    names.append(str(tmp_path / f"{i}.png"))
    pixels = rng.integers(0, 256, (30, 20 + i, 3), np.uint8)
    Image.fromarray(pixels).save(names[-1])
  words = ("--images", *names, "--dtype=bfloat16")
  out = export(run[0], "m.onnx", "onnx", *words).out
  assert "compared on 3 images" in out and "1e-04" in out
  found = loaded(out)
  images = rng.integers(0, 256, (5, 16, 16, 3), np.uint8)
  params = jax.tree.map(np.asarray, run[1].ema)
  np.testing.assert_allclose(
    found["run"](images)["logits"],
    reference.forward(params, images / 127.5 - 1),
    rtol=1e-4, atol=1e-4,
  )  # fmt: skip
  metadata = found["model"].get_modelmeta().custom_metadata_map
  assert json.loads(metadata["class_names"]) == list("0123456789")
  assert "central 16 x 16" in metadata["preprocessing"]
  err = export(run[0], "m.onnx", "onnx", "--images", "no.png", code=1).err
  assert "no.png can't be used" in err


def test_more_weights_than_an_onnx_file_holds(tmp_path, export, monkeypatch):
  monkeypatch.setattr(export_onnx, "_LARGEST", 2_000)
  export(make(num_classes=0), "m.onnx", "onnx")
  session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
  assert [x.name for x in session.get_outputs()] == ["features"]
  found = make(num_classes=200)
  assert "m.onnx.data, m.onnx" in export(found, "m.onnx", "onnx").out
  # Once more, over what is there, and without what runs it.
  without(monkeypatch, "onnxruntime")
  said = export(found, "m.onnx", "onnx")
  assert "NOT VERIFIED: packages can" in said.err
  assert "compared" not in said.out
  assert names_in(tmp_path) == ["m.onnx", "m.onnx.data"]
  made = onnx.load(tmp_path / "m.onnx")
  (head,) = [x for x in made.graph.initializer if x.name == "head/kernel"]
  np.testing.assert_array_equal(
    onnx.numpy_helper.to_array(head), found.params["head"]["kernel"]
  )


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("made", {"permute": "pixels", "permute_seed": 3, "mixing": VARIANT}),
    ("p.stablehlo", {"dtype": jnp.bfloat16, "num_classes": 0}),
  ],
)
def test_stablehlo_has_the_same_bits(tmp_path, export, name, changes):
  out = export(make(**changes), name, "stablehlo").out
  assert "features       0.0e+00     0.0e+00  equal bits" in out
  more = [] if name == "made" else [f"{name}.json"]
  assert names_in(tmp_path) == [name, *more]


def test_stablehlo_needs_no_mixer(tmp_path, export, monkeypatch):
  """In a process of its own, which can't find mixer."""
  found, code = make(), "import numpy\nblack = numpy.zeros((2, 8, 12, 3), 'u1')"
  for i, name in enumerate(("made", "p.stablehlo")):
    text = export(found, name, "stablehlo").out.split("To load it:\n")[1]
    code += text.replace("\n  ", "\n")
    code += f"\nnumpy.save('{i}.npy', run(black)['logits'])\n"
  code += "import sys\nassert 'mixer' not in sys.modules\n"
  words = [sys.executable, "-I", "-c", code]
  subprocess.run(words, cwd=tmp_path, check=True)
  wanted = command.runner(found)(np.zeros((2, 8, 12, 3), np.uint8))["logits"]
  for i in range(2):
    # XLA_FLAGS, which it inherits, may change the last ones.
    assert np.load(tmp_path / f"{i}.npy").tobytes() == wanted.tobytes()
  info = json.loads((tmp_path / "made" / "info.json").read_text())
  assert info["class_names"][2] == "kind 2" and info["dtype"] == "float32"
  err = export(found, "made", "stablehlo", "--platforms=cuda").err
  assert "NOT VERIFIED: the program is for cuda, not for cpu" in err
  monkeypatch.setattr(export_stablehlo, "_LARGEST", 1_000)
  err = export(found, "p.stablehlo", "stablehlo", code=1).err
  assert "give --output the name of a folder" in err


def test_timm_without_pytorch(tmp_path, small, export, monkeypatch):
  """Names, shapes, arithmetic; test_export_torch.py has timm itself."""
  without(monkeypatch, "torch")
  found = make()
  said = export(found, "w.safetensors", "timm")
  assert (
    "NOT VERIFIED: packages" in said.err and "make setup-export" in said.err
  )
  assert "compared" not in said.out
  flat = safetensors.numpy.load_file(tmp_path / "w.safetensors")
  assert len(flat) == 6 + 2 * 12
  stem, mlp = "stem.proj.weight", "blocks.1.mlp_tokens.fc2.weight"
  kernel = found.params["MixerBlock_1"]["token_mixing"]["Dense_1"]["kernel"]
  np.testing.assert_array_equal(flat[mlp], kernel.T)
  wanted = np.einsum("yxic->ciyx", found.params["stem"]["kernel"])
  np.testing.assert_array_equal(flat[stem], wanted)
  with safetensors.safe_open(tmp_path / "w.safetensors", "np") as opened:
    metadata = opened.metadata()
  assert json.loads(metadata["class_ids"])[4] == "n00000004"
  export(small, "made", "timm")
  config = json.loads((tmp_path / "made" / "config.json").read_text())
  # timm can't make such a size by name, and is given none.
  assert config["architecture"] == "mlp_mixer"
  assert config["model_args"]["embed_dim"] == 8
  named = dataclasses.replace(
    make(short_side=256), module=model.build("B/16", 5), image_size=(224, 224)
  )
  config = export_timm.config(named)
  assert config["architecture"] == "mixer_b16_224"
  # What its function sets itself must not be there.
  assert {*config["model_args"]} == {"img_size", "mlp_ratio"}
  pretrained = config["pretrained_cfg"]
  assert pretrained["crop_pct"] == 0.875
  assert pretrained["label_names"][3] == "n00000003"
  squeezed = export_timm.config(make(short_side=0))["pretrained_cfg"]
  assert (squeezed["crop_pct"], squeezed["crop_mode"]) == (1.0, "squash")


@given(
  st.integers(1, 8192), st.integers(1, 2048), st.integers(1, 999), st.integers()
)
def test_timm_cuts_off_to_the_width_and_the_short_side(width, c, side, more):
  module = model.MlpMixer(1, 1, c, width, 1)
  short = side + more % 1024
  where = ("softmax", "", "")
  found = trained.Trained(module, {}, (side, side), short, None, None, *where)
  config = export_timm.config(found)
  assert int(config["model_args"]["mlp_ratio"][0] * c) == width
  assert math.floor(side / config["pretrained_cfg"]["crop_pct"]) == short


@pytest.mark.parametrize(
  ("name", "to", "package"),
  [
    ("a.npz", "npz", ""),
    ("a.safetensors", "timm", "safetensors"),
    ("a.onnx", "onnx", "onnx"),
  ],
)
def test_variants_are_refused_and_packages_asked_for_first(
  tmp_path, export, monkeypatch, name, to, package
):
  for changes in ({"permute": "pixels"}, {"mixing": VARIANT}):
    err = export(make(**changes), name, to, code=1).err
    assert re.search("(pixels|untied=True).*to=stablehlo", err)
  if package:
    without(monkeypatch, package)
    monkeypatch.delitem(sys.modules, f"mixer.export_{to}")
    err = export("runs/no", name, to, code=1).err
    assert re.search(f"import of {package} .*pip install onnx onnx", err)
  assert not names_in(tmp_path)


@pytest.mark.parametrize(("to", "name"), EVERY)
def test_a_disk_that_is_full(small, tmp_path, export, monkeypatch, to, name):
  """A limit on the size of files does what a full disk does."""
  without(monkeypatch, "torch", "timm", "onnxruntime")
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
  try:
    error = export(small, name, to, code=1).err
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert error.startswith(f"error: {tmp_path / name}")
  assert "can't be written: " in error and "File too large" in error
  assert not names_in(tmp_path)


def test_where_it_is_put(tmp_path, monkeypatch):
  there, link = tmp_path / "there", tmp_path / "a.onnx"
  there.mkdir()
  link.symlink_to("there/b")
  with command._aside(link, export_onnx) as (target, place):
    target.write_text("new")
    assert not (there / "b").exists()
    place()
  assert link.is_symlink() and names_in(there) == ["b"]
  assert (there / "b").read_text() == "new"
  path, replace = tmp_path / "v1.5" / "x", pathlib.Path.replace
  members = export_stablehlo.MEMBERS

  def stop(self, target):
    if str(target).endswith("weights.npz"):
      raise KeyboardInterrupt
    return replace(self, target)

  for text in ("old", "new", "left", "killed"):
    with contextlib.suppress(KeyboardInterrupt):
      with command._aside(path, export_stablehlo) as (target, place):
        for name in members:
          (target / name).write_text(text)
        if text == "killed":
          monkeypatch.setattr(pathlib.Path, "replace", stop)
        if text != "left":
          place()
    if text == "killed":  # No mixture that can be loaded.
      assert names_in(path) == ["info.json", "weights.npz"]
    else:
      kept = "new" if text == "left" else text
      assert [(path / name).read_text() for name in members] == [kept] * 3
    assert names_in(path.parent) == ["x"]


@pytest.mark.parametrize(
  ("to", "name", "sentence"),
  [
    ("npz", "weights.pt", "expected the name of a file that ends in .npz."),
    ("npz", "/dev/null/w.npz", "w.npz can't be written: "),
    ("npz", "folder.npz", "expected the name of a file that ends in .npz."),
    ("timm", "file", "or of a new folder for config.json and README.md and"),
    ("npz", "pipe.npz", "can't be written: expected"),
    ("timm", "full", "can't be written: expected"),
    ("npz", "none.npz", "there are no weights at runs/no"),
  ],
)
def test_names_that_cannot_be(tmp_path, export, to, name, sentence):
  """Said before the weights are read."""
  (tmp_path / "file").write_text("")
  (tmp_path / "folder.npz").mkdir()
  os.mkfifo(tmp_path / "pipe.npz")
  (tmp_path / "full").mkdir()
  for other in ("a", "config.json"):
    (tmp_path / "full" / other).write_text("")
  before = names_in(tmp_path)
  assert sentence in export("runs/no", name, to, code=1).err
  assert names_in(tmp_path) == before
