"""The effective receptive field, against differences and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import model
from mixer.insight import activations, receptive
from tests import trained_files


@pytest.fixture(scope="module")
def small():
  module = model.MlpMixer(4, 2, 8, 6, 12, num_classes=3)
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), np.uint8)
  shapes = trained_files.random_params(
    model.MlpMixer(4, 2, 8, 6, 12, num_classes=3), 8
  )
  rng = np.random.default_rng(1)
  for i in range(2):
    mlp = shapes[f"MixerBlock_{i}"]["token_mixing"]
    mlp["Dense_0"]["kernel"] = rng.normal(0, 0.3, (6, 6)).astype(np.float32)
    mlp["Dense_1"]["kernel"] = rng.normal(0, 0.3, (6, 6)).astype(np.float32)
    mlp["Dense_1"]["bias"] = np.zeros(6, np.float32)
  return module, shapes, images


def test_layers_are_those_of_the_model(small):
  module, params, images = small
  x = jnp.asarray(images, jnp.float32) / 127.5 - 1
  out, found = jax.jit(lambda x: activations.layers(module, params, x))(x)
  own = jax.jit(lambda x: model.apply(module, params, x))(x)
  np.testing.assert_allclose(out, own, atol=1e-5)
  assert [layer.shape for layer in found] == [(3, 6, 8)] * 3
  # The stem by hand: patches, flattened, times the kernel.
  kernel = params["stem"]["kernel"].reshape(48, 8)
  patches = np.asarray(x).reshape(3, 2, 4, 3, 4, 3).swapaxes(2, 3)
  stem = patches.reshape(3, 6, 48) @ kernel + params["stem"]["bias"]
  np.testing.assert_allclose(found[0], stem, atol=1e-4)
  # The rest of the model, from its last layer.
  last = np.asarray(found[-1], np.float64)
  normed = last - last.mean(-1, keepdims=True)
  normed /= np.sqrt(normed.var(-1, keepdims=True) + 1e-6)
  norm, head = params["pre_head_layer_norm"], params["head"]
  features = (normed * norm["scale"] + norm["bias"]).mean(1)
  np.testing.assert_allclose(
    features @ head["kernel"] + head["bias"], out, atol=1e-4
  )


@pytest.fixture(scope="module")
def fields(small):
  """Of two images, and of each alone: after 0, 1 and 2 blocks."""
  module, params, images = small
  both = receptive.fields(module, params, images[:2], [0, 1, 2])
  alone = [
    receptive.fields(module, params, images[i : i + 1], [0, 1, 2])
    for i in range(2)
  ]
  return both, alone


def test_fields_equal_differences(small, fields):
  module, params, images = small
  found = fields[1][0]
  assert found.shape == (3, 8, 12)
  np.testing.assert_allclose(found.sum(axis=(1, 2)), 1)
  x = images[:1].astype(np.float32) / 127.5 - 1
  token = receptive.central((2, 3))
  assert token == 4

  run = jax.jit(lambda x: activations.layers(module, params, x)[1])

  def length(x):
    layers = run(jnp.asarray(x))
    return np.linalg.norm(np.asarray(layers[2][:, token], np.float64), axis=-1)

  # All at once: a batch of images, each with one number changed.
  steps = np.eye(x.size, dtype=np.float32).reshape(-1, *x.shape[1:]) * 2e-2
  slope = (length(x + steps) - length(x - steps)) / 4e-2
  expected = np.abs(slope).reshape(8, 12, 3).sum(-1)
  expected /= expected.sum()
  np.testing.assert_allclose(found[2], expected, atol=2e-3 * expected.max())


def test_a_field_stays_in_its_patch_until_tokens_are_mixed(fields):
  stem, mixed, _ = fields[0]
  outside = stem.copy()
  outside[4:8, 4:8] = 0
  assert not outside.any() and stem[4:8, 4:8].all()
  assert mixed.all()


def test_the_mean_counts_every_image_alike(fields):
  together, single = fields
  np.testing.assert_allclose(np.mean(single, axis=0), together, rtol=1e-4)


def test_permuted_patches(small):
  module, params, images = small
  permuted = module.clone(permute="patches", permute_seed=5)
  (field,) = receptive.fields(permuted, params, images[:1], [0])
  rows, columns = np.nonzero(field)
  assert set(rows) == {4, 5, 6, 7} and set(columns) == {4, 5, 6, 7}


def test_radius():
  field = np.zeros((8, 12))
  field[6, 5:7] = 1  # The central patch is rows 4 to 7, columns 4 to 7.
  assert receptive.radius(field, 4) == pytest.approx(0.5**0.5)
  field[:] = 0
  field[4:8, 0:4] = 1
  own = np.zeros((8, 12))
  own[4:8, 4:8] = 1
  assert receptive.radius(own, 4) < 2.2 < 3.9 < receptive.radius(field, 4) < 4.3
  assert np.isnan(receptive.radius(np.zeros((8, 12)), 4))
