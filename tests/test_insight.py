"""Numbers of `mixer.insight` against closed forms, differences and loops."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import model, trained, weights
from mixer.errors import UserError
from mixer.insight import activations, kernels
from tests import trained_files


def of(module, size, loss="softmax"):
  """A trained model with random weights."""
  images = jnp.zeros((1, *size, 3))
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )
  return trained.Trained(module, params, size, 9, None, None, loss, "", "")


def pictures(count, height, width):
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (count, height, width, 3), np.uint8)


def scaled(images):
  return images.astype(np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def small():
  """Two blocks, 2 x 3 tokens, and images."""
  module = model.MlpMixer(4, 2, 8, 6, 12, num_classes=3)
  return of(module, (8, 12)), pictures(3, 8, 12)


def wave(rows, columns, height, width):
  """That many periods over the height and the width."""
  y, x = np.mgrid[:height, :width]
  return np.cos(2 * np.pi * (rows * y / height + columns * x / width))


def test_frequencies_of_waves():
  for rows, columns, expected in ((0, 0, 0), (0, 2, 2 / 8), (3, 4, 0.5**0.5)):
    image = wave(rows, columns, 6, 8)
    found = kernels.frequencies(np.stack([image, -3 * image]))
    np.testing.assert_allclose(found, expected, atol=1e-9)
  a, b = wave(1, 0, 8, 8), 2 * wave(3, 0, 8, 8)
  for image in (a + b, np.stack([a, b, 0 * b], -1)):
    expected = (1 * 1 / 8 + 4 * 3 / 8) / 5  # The mean by power.
    np.testing.assert_allclose(kernels.frequencies(image[None]), expected)


def test_waves_are_found_low_first_beside_their_inverse():
  low, high = wave(0, 1, 4, 6), wave(2, 3, 4, 6)
  units = np.stack([high, -0.5 * low, low, -2 * high, wave(1, 1, 4, 6)])
  order = kernels.token_places((4, 6), "patches", 7)
  kernel = units.reshape(5, 24)[:, order].T
  found = kernels.token_units(kernel, (4, 6), order)
  # Of the middle one, all that is left are at right angles: the lower index.
  np.testing.assert_allclose(found, units[[1, 2, 4, 0, 3]], atol=1e-6)
  with pytest.raises(UserError, match="no place in a permuted image"):
    kernels.token_places((3, 3), "pixels")


def test_stem_kernels_keep_their_signs_and_use_the_whole_range():
  kernel = np.random.default_rng(0).normal(size=(5, 5, 3, 7)).astype(np.float32)
  kernel[..., 3] = 0
  found = kernels.stem_kernels(kernel)
  np.testing.assert_array_equal(found[0], 0.5)  # All zero: frequency 0.
  order = np.argsort(kernels.frequencies(np.moveaxis(kernel, -1, 0)))
  for image, channel in zip(found[1:], order[1:], strict=True):
    own = kernel[..., channel]
    image = (image - 0.5) * 2 * np.abs(own).max()
    np.testing.assert_allclose(image, own, atol=1e-6)


def test_montage_puts_every_picture_in_its_place():
  images = np.arange(5, dtype=np.float32)[:, None, None, None] / 5
  found = kernels.montage(np.broadcast_to(images, (5, 2, 3, 3)), 2)
  assert found.shape == (3 * 3 - 1, 2 * 4 - 1, 3) and found.dtype == np.uint8
  for i in range(5):
    y, x = i // 2 * 3, i % 2 * 4
    assert (found[y : y + 2, x : x + 3] == round(i / 5 * 255)).all()
  for gap in (found[2], found[:, 3], found[6:, 4:]):
    assert (gap == 255).all()
  blue, zero, red = kernels.montage(np.array([[[-2.0, 0.0, 2.0]]]), 1)[0]
  assert blue[2] > blue[0] and red[0] > red[2] and zero.min() > 240


def test_a_published_model_is_named():
  for name in ("S/32", "H/14"):
    shape = trained_files.shape_of(name, 10)
    shapes = weights.expected(shape).items()
    zeros = {k: np.broadcast_to(0.0, v) for k, v in shapes}
    found = kernels.model_name(weights.unflatten(zeros))
    assert found == f"{name}, {shape.num_tokens} tokens"
  assert "another model" in kernels.model_name({"a": np.zeros(1)})


def pairwise(grid):
  """Distances by the definition."""
  places = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
  return np.array([[math.dist(a, b) for b in places] for a in places])


def mlp_of(w1, w2):
  return {f"Dense_{i}": {"kernel": w} for i, w in enumerate((w1, w2))}


def reach(w1, w2, distance):
  found = kernels.mixing_distances(mlp_of(w1, w2), distance)
  assert found is not None
  return found


def test_mixing_distances():
  # Of random weights, by loops.
  distance = kernels.token_distances((2, 3), np.arange(6))
  np.testing.assert_allclose(distance, pairwise((2, 3)))
  rng = np.random.default_rng(0)
  w1, w2 = rng.normal(size=(6, 4)), rng.normal(size=(4, 6))
  whole, units = reach(w1, w2, distance)
  means = []
  for out in range(6):
    size = [abs(w1[k] @ w2[:, out]) for k in range(6)]
    far = sum(a * distance[k, out] for k, a in enumerate(size))
    means.append(far / sum(size))
  assert whole == pytest.approx(np.mean(means))
  for unit in range(4):
    weight = np.abs(np.outer(w1[:, unit], w2[unit]))
    expected = (weight * distance).sum() / weight.sum()
    assert units[unit] == pytest.approx(expected)
  # Of maps that are known; of the shift, around the corner.
  line, one = pairwise((1, 4)), np.eye(4, dtype=np.float32)
  shift = np.roll(one, 1, axis=0)
  for w1, expected in (
    (-2 * one, 0),
    (np.full((4, 4), -0.3, np.float32), line.mean()),
    (shift, (1 + 1 + 1 + 3) / 4),
    (0 * one, np.nan),
    # Groups whose channels change places, and whose tokens don't.
    (np.roll(np.eye(8, dtype=np.float32), 4, axis=0), 0),
    # An MLP for each channel: their mean.
    (np.stack([one, shift]), 1.5 / 2),
  ):
    w2 = np.broadcast_to(np.eye(w1.shape[-1]), w1.shape).astype(np.float32)
    whole, units = reach(w1, w2, line)
    assert whole == pytest.approx(expected, nan_ok=True)
    assert np.nanmax(np.append(units, 0)) <= line.max()
  # A pyramid's step has none.
  step = mlp_of(one, np.ones((4, 2), np.float32))
  assert kernels.mixing_distances(step, line) is None
  # Permuted patches are where they come from in the image.
  order = model.random_order(9, 3)
  apart = kernels.token_distances(
    (3, 3), kernels.token_places((3, 3), "patches", 3)
  )
  np.testing.assert_allclose(apart, pairwise((3, 3))[np.ix_(order, order)])


def test_layers_are_those_of_the_model(small):
  found, images = small
  x = scaled(images)
  tokens = activations.layers(found.module, found.params, jnp.asarray(x))
  assert [layer.shape for layer in tokens] == [(3, 6, 8)] * 3
  # The stem by hand: patches, flattened, times the kernel.
  stem = found.params["stem"]
  patches = x.reshape(3, 2, 4, 3, 4, 3).swapaxes(2, 3)
  expected = patches.reshape(3, 6, 48) @ stem["kernel"].reshape(48, 8)
  np.testing.assert_allclose(tokens[0], expected + stem["bias"], atol=1e-4)
  # What enters the head, from the last layer.
  last = np.asarray(tokens[-1], np.float64)
  normed = last - last.mean(-1, keepdims=True)
  normed /= np.sqrt(normed.var(-1, keepdims=True) + 1e-6)
  norm = found.params["pre_head_layer_norm"]
  features = (normed * norm["scale"] + norm["bias"]).mean(1)
  np.testing.assert_allclose(
    activations.features(found, images), features, atol=1e-4
  )


def test_receptive_fields_equal_differences(small):
  found, images = small
  where = np.arange(6)
  fields, single, other = (
    activations.receptive_fields(found, some, [0, 1, 2], where)
    for some in (images[:2], images[:1], images[1:2])
  )
  np.testing.assert_allclose((single + other) / 2, fields, rtol=1e-4)
  np.testing.assert_allclose(single.sum(axis=(1, 2)), 1)
  x = scaled(images[:1])
  run = jax.jit(lambda x: activations.layers(found.module, found.params, x)[2])

  def length(x):
    return np.linalg.norm(np.asarray(run(x)[:, 4], np.float64), axis=-1)

  # All at once: a batch of images, each with one number changed.
  steps = np.eye(x.size, dtype=np.float32).reshape(-1, *x.shape[1:]) * 2e-2
  slope = (length(x + steps) - length(x - steps)) / 4e-2
  expected = np.abs(slope).reshape(8, 12, 3).sum(-1)
  expected /= expected.sum()
  np.testing.assert_allclose(single[2], expected, atol=2e-3 * expected.max())
  # In its patch until tokens are mixed.
  inside = np.zeros((8, 12), bool)
  inside[4:8, 4:8] = True
  np.testing.assert_array_equal(fields[0] > 0, inside)
  assert fields[1].all()
  field = np.zeros((8, 12))
  assert np.isnan(activations.radius(field, 4))
  field[6, 5:7] = 1
  assert activations.radius(field, 4) == pytest.approx(0.5**0.5)


def test_hsic_is_the_mean_over_all_quadruples():
  """The definition that Song et al. give first."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
  grams = np.stack([x @ x.T, y @ y.T])
  places = [at for at in np.ndindex(6, 6, 6, 6) if len({*at}) == 4]

  def mean(k, m):
    return np.mean(
      [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in places]
    )

  expected = [[mean(a, b) for b in grams] for a in grams]
  np.testing.assert_allclose(activations.hsic(grams), expected)
  # Of many examples its CKA is Kornblith's.
  x = rng.normal(size=(1000, 4))
  y = x @ rng.normal(size=(4, 6)) + rng.normal(size=(1000, 6))
  a, b, norm = x - x.mean(0), y - y.mean(0), np.linalg.norm
  expected = norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b))
  found = activations.cka(activations.hsic(np.stack([x @ x.T, y @ y.T])))
  assert found[0, 1] == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("most", [64, 5])
def test_similarity_of_a_models_layers(monkeypatch, most):
  monkeypatch.setattr(activations, "batch_size", lambda model: most)
  found = of(model.MlpMixer(4, 2, 8, 6, 12), (8, 8))
  images = pictures(11, 8, 8)
  got, cosine = activations.similarity(found, images)
  size = 11 if most == 64 else 5  # Of three batches one would have but 3.
  x = jnp.asarray(scaled(images))
  layers = activations.layers(found.module, found.params, x)
  layers = [np.asarray(layer, np.float64) for layer in layers]
  flat = np.stack([layer.reshape(11, -1) for layer in layers])
  used = 11 // size * size
  hsics = [
    activations.hsic(np.einsum("lnc,lmc->lnm", *[flat[:, i : i + size]] * 2))
    for i in range(0, used, size)
  ]
  expected = activations.cka(np.mean(hsics, axis=0))
  np.testing.assert_allclose(got, expected, rtol=1e-3)
  unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in layers]
  expected = [[(a * b).sum(-1)[:used].mean() for b in unit] for a in unit]
  np.testing.assert_allclose(cosine, expected, atol=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_saliency_equals_differences(loss):
  module = model.MlpMixer(4, 1, 8, 6, 12, num_classes=3)
  found = of(module, (8, 8), loss)
  image = pictures(1, 8, 8)
  run = jax.jit(lambda x: model.apply(module, found.params, x))

  def scores(x):
    logits = np.asarray(run(x.astype(np.float32)), np.float64)
    if loss == "sigmoid":
      return logits, 1 / (1 + np.exp(-logits))
    return logits, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

  x = scaled(image)
  ((label, score, slope, fall),) = activations.saliency(found, image, 0)
  logits, own = scores(x)
  assert label == logits.argmax()
  assert score == pytest.approx(own[0, label], abs=1e-5)
  side, masks = activations.windows((8, 8), 4)
  assert side == 8 and (masks.sum(axis=0) == 4).all()
  after = scores(np.where(masks[..., None], 0, x))[1][:, label]
  for y, x_ in ((2, 5), (7, 0)):
    expected = (score - after)[masks[:, y, x_]].mean()
    assert fall[y, x_] == pytest.approx(expected, abs=1e-5)
  steps = np.eye(192).reshape(-1, 8, 8, 3) * 1e-2
  above, below = scores(np.concatenate([x + steps, x - steps]))[0].reshape(
    2, 192, 3
  )
  expected = np.abs(above - below)[:, label].reshape(8, 8, 3).max(-1) / 2e-2
  np.testing.assert_allclose(slope, expected, atol=5e-3 * expected.max())
  # Averaged over noisy copies: always the same ones, and signed.
  smooth, again = (activations.saliency(found, image, 9)[0] for _ in range(2))
  np.testing.assert_array_equal(smooth[2], again[2])
  np.testing.assert_array_equal(smooth[3], fall)
  assert not np.allclose(smooth[2], slope, rtol=1e-2)
  assert smooth[2].mean() < 1.5 * slope.mean()


def test_features_in_a_plane():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(20, 5)) * [5, 3, 1, 1, 1] + 7
  points, axes = activations.plane(x, "pca")
  u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
  np.testing.assert_allclose(np.abs(points), np.abs(u * s)[:, :2], atol=1e-9)
  share = s[0] ** 2 / (s**2).sum()
  assert axes[0] == f"component 1 ({share:.0%} of the variance)"
  # t-SNE keeps two groups apart, alike each time; also of few.
  x = rng.normal(size=(24, 8)) + np.repeat([[0], [9]], 12, axis=0)
  points, again = (activations.plane(x, "tsne")[0] for _ in range(2))
  np.testing.assert_array_equal(points, again)
  nearest = np.linalg.norm(points[:, None] - points, axis=-1)
  np.fill_diagonal(nearest, np.inf)
  np.testing.assert_array_equal(nearest.argmin(1) < 12, np.arange(24) < 12)
  assert np.isfinite(activations.plane(x[:5], "tsne")[0]).all()
