import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import model, weights
from mixer.errors import UserError
from tests import trained_files


def abstract(variant, num_classes, side=224):
  module = model.build(variant, num_classes)
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize("num_classes", [0, 10, 21843])
@pytest.mark.parametrize("variant", model.VARIANTS)
def test_shape_of_every_variant(variant, num_classes):
  shape = weights.shape_of(abstract(variant, num_classes))
  assert shape == trained_files.shape_of(variant, num_classes)


def test_unflatten_is_the_inverse_of_flatten():
  params = abstract("S/32", 10)
  assert weights.unflatten(weights.flatten(params)) == params


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (lambda f: f.clear(), "stem/kernel is missing; there are none"),
    (lambda f: f.pop("head/bias"), "head/bias \\(10,\\) is missing"),
    (
      lambda f: f.update({"cls": f["head/bias"]}),
      "cls \\(10,\\) is unexpected",
    ),
    (
      lambda f: f.pop("MixerBlock_2/LayerNorm_0/bias"),
      "MixerBlock_2/LayerNorm_0/bias \\(512,\\) is missing",
    ),
    (
      lambda f: f.update({"MixerBlock_99999999/x": f["head/bias"]}),
      "MixerBlock_8/LayerNorm_0/bias \\(512,\\) is missing",
    ),
    (
      lambda f: f.update({"head/bias": np.zeros(3)}),
      "head/bias is \\(3,\\) there and \\(10,\\) here",
    ),
    (
      lambda f: f.update({"stem/kernel": np.zeros(3)}),
      "stem/kernel is \\(3,\\); there are",
    ),
  ],
)
def test_what_is_no_mixer_is_refused(change, sentence):
  flat = weights.flatten(abstract("S/32", 10))
  change(flat)
  with pytest.raises(UserError, match="(?s)file.npz are not.*" + sentence):
    weights.shape_of(weights.unflatten(flat), "the weights in file.npz")


def test_everything_that_is_wrong_is_listed():
  flat = weights.flatten(abstract("S/32", 10))
  gone = [k for k in flat if "LayerNorm_0" in k]
  for name in gone:
    flat.pop(name)
  with pytest.raises(UserError) as caught:
    weights.shape_of(weights.unflatten(flat))
  assert len(gone) == 16
  for name in gone:
    assert f"\n  {name} (512,) is missing" in str(caught.value)


def test_not_finite():
  params = {"a": {"b": np.array([1.0, np.nan]), "c": np.zeros(2)}}
  params["d"] = np.array(-np.inf)
  assert weights.not_finite(params) == ["a/b", "d"]


def test_mismatches():
  assert weights.mismatches(
    {"a": (1,), "b": (2,), "d": (4,)}, {"b": (2,), "c": (3,), "d": (5,)}
  ) == [
    "a (1,) is unexpected",
    "c (3,) is missing",
    "d is (4,) there and (5,) here",
  ]
  assert weights.mismatches({"a": (1,)}, {"a": (1,)}) == []


@pytest.mark.parametrize(
  ("count", "end"), [(1, "x0"), (8, "x7"), (9, "; and 1 more")]
)
def test_long_lists_are_shortened(count, end):
  text = weights.shorten([f"x{i}" for i in range(count)])
  assert text.endswith(end) and text.count("x") == min(count, 8)
