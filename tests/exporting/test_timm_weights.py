"""Weights for timm against its published names, shapes and arithmetic.

Without PyTorch; test_timm_torch.py has timm itself.
"""

import json
import math

import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from mixer import model as model_lib
from mixer.errors import UserError
from mixer.exporting import packages, timm_weights, verification
from tests import reference
from tests.exporting import models

# Of timm 1.0.31: {k: v.shape for MlpMixer(num_classes=5, img_size=(8, 12),
# patch_size=4, num_blocks=2, embed_dim=8, mlp_ratio=(5 / 8, 13 / 8))}.
_TIMM = {
  "stem.proj.weight": (8, 3, 4, 4),
  "stem.proj.bias": (8,),
  "norm.weight": (8,),
  "norm.bias": (8,),
  "head.weight": (5, 8),
  "head.bias": (5,),
} | {
  f"blocks.{i}.{name}": shape
  for i in range(2)
  for name, shape in {
    "norm1.weight": (8,),
    "norm1.bias": (8,),
    "mlp_tokens.fc1.weight": (5, 6),
    "mlp_tokens.fc1.bias": (5,),
    "mlp_tokens.fc2.weight": (6, 5),
    "mlp_tokens.fc2.bias": (6,),
    "norm2.weight": (8,),
    "norm2.bias": (8,),
    "mlp_channels.fc1.weight": (13, 8),
    "mlp_channels.fc1.bias": (13,),
    "mlp_channels.fc2.weight": (8, 13),
    "mlp_channels.fc2.bias": (8,),
  }.items()
}


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
  """As where PyTorch isn't installed."""
  load = packages.importlib.import_module

  def find(name):
    if name.partition(".")[0] in ("torch", "timm") or name.endswith(".torch"):
      raise ImportError(f"No module named {name!r}")
    return load(name)

  monkeypatch.setattr(packages.importlib, "import_module", find)


def forward(w, x):
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
  p = kernel.shape[-1]
  b, c, height, width = x.shape
  patches = x.reshape(b, c, height // p, p, width // p, p)
  x = np.einsum("bcypxq,ocpq->boyx", patches, kernel)
  x = x.reshape(b, -1, x.shape[2] * x.shape[3]).transpose(0, 2, 1)
  x = x + w["stem.proj.bias"]
  i = 0
  while f"blocks.{i}.norm1.weight" in w:
    y = norm(x, f"blocks.{i}.norm1").transpose(0, 2, 1)
    x = x + mlp(y, f"blocks.{i}.mlp_tokens").transpose(0, 2, 1)
    x = x + mlp(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp_channels")
    i += 1
  x = norm(x, "norm").mean(axis=1)
  return linear(x, "head") if "head.weight" in w else x


def export(model, path):
  with models.place(path, ".safetensors", timm_weights.MEMBERS) as place:
    return timm_weights.export(
      model, place, verification.random_images(model.image_size)
    )


def test_names_shapes_and_arithmetic_are_timms(tmp_path):
  model = models.make()
  outcome = export(model, tmp_path / "w.safetensors")
  assert outcome.comparison is None
  assert "torch and timm and safetensors can't be imported" in outcome.missing
  found = safetensors.numpy.load_file(tmp_path / "w.safetensors")
  assert {k: v.shape for k, v in found.items()} == _TIMM
  images = models.batches(model)[1]
  double = {k: v.astype(np.float64) for k, v in found.items()}
  x = (images.astype(np.float64) / 255 - 0.5) / 0.5
  np.testing.assert_allclose(
    forward(double, x.transpose(0, 3, 1, 2)),
    reference.forward(model.params, images.astype(np.float64) / 127.5 - 1),
    rtol=1e-9,
    atol=1e-9,
  )


def test_a_folder(tmp_path):
  model = models.make(num_classes=0)
  export(model, tmp_path / "made")
  assert models.left_over(tmp_path / "made") == [
    "config.json",
    "model.safetensors",
  ]
  found = safetensors.numpy.load_file(tmp_path / "made" / "model.safetensors")
  assert {*found} == {k for k in _TIMM if not k.startswith("head")}
  config = json.loads((tmp_path / "made" / "config.json").read_text())
  assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 0
  # timm can't make such a size by name, and is given none.
  assert config["architecture"] == "mlp_mixer"
  assert config["model_args"]["img_size"] == [8, 12]
  assert config["model_args"]["embed_dim"] == 8


def test_sizes_that_timm_knows_by_name():
  model = models.without_weights(224, 256, model_lib.build("B/16", 10))
  config = timm_weights.config(model)
  assert config["architecture"] == "mixer_b16_224"
  # What its function sets itself must not be there.
  assert {*config["model_args"]} == {"img_size", "mlp_ratio"}
  pretrained = config["pretrained_cfg"]
  assert pretrained["crop_pct"] == 0.875
  assert pretrained["label_names"][3] == "n00000003"
  assert pretrained["input_size"] == [3, 224, 224]
  squeezed = timm_weights.config(models.make(short_side=0))["pretrained_cfg"]
  assert (squeezed["crop_pct"], squeezed["crop_mode"]) == (1.0, "squash")


@given(st.integers(1, 8192), st.integers(1, 2048))
def test_timm_cuts_a_product_off_at_the_width(width, channels):
  assert int(timm_weights._ratio(width, channels) * channels) == width


@given(st.integers(1, 1024), st.integers(0, 1024))
def test_timm_cuts_a_quotient_off_at_the_short_side(side, more):
  model = models.without_weights(side, side + more)
  assert math.floor(side / timm_weights._crop(model)) == side + more


@pytest.mark.parametrize(
  ("kind", "said"),
  [
    ({"permute": "pixels"}, "pixels permuted, of which timm's MlpMixer"),
    ({"mixing": "all"}, "untied=True, groups=4, projection=True, pyramid="),
  ],
)
def test_what_timm_has_no_model_for(tmp_path, kind, said):
  with pytest.raises(UserError, match=said):
    export(models.make(**kind), tmp_path / "w.safetensors")
  assert not models.left_over(tmp_path)


def test_values_are_moved_and_not_changed():
  model = models.make()
  found = timm_weights.state_dict(model.params)
  ours = sorted(x.tobytes() for x in map(np.sort, _flat(model.params)))
  assert ours == sorted(x.tobytes() for x in map(np.sort, _flat(found)))


def _flat(tree):
  return [np.asarray(x).ravel() for x in jax.tree.leaves(tree)]
