"""Saliency against models whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import model
from mixer.insight import saliency
from tests import trained_files


def test_windows_cover_all_pixels_alike():
  assert saliency.window((224, 224), 16) == (64, 32)
  assert saliency.window((448, 448), 14) == (112, 56)
  assert saliency.window((16, 16), 4) == (8, 4)
  masks = saliency.covers((16, 24), 4)
  assert masks.shape[1:] == (16, 24)
  np.testing.assert_array_equal(masks.sum(axis=0), 4)
  assert saliency.covers((4, 4), 4).all(axis=0).any()


@pytest.fixture(scope="module")
def small():
  module = model.MlpMixer(4, 1, 8, 6, 12, num_classes=3)
  params = trained_files.random_params(module, 8)
  images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
  return module, params, images


def scores(module, params, x, loss):
  run = jax.jit(lambda x: model.apply(module, params, x))
  logits = np.asarray(run(jnp.asarray(x)), np.float64)
  if loss == "sigmoid":
    return logits, 1 / (1 + np.exp(-logits))
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return logits, e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_against_differences(small, loss):
  module, params, images = small
  found = saliency.explain(module, params, loss, images)
  x = images.astype(np.float32) / 127.5 - 1
  logits, own = scores(module, params, x, loss)
  for i, one in enumerate(found):
    assert one.label == logits[i].argmax()
    assert one.score == pytest.approx(own[i, one.label], abs=1e-5)
    masks = saliency.covers((8, 8), 4)
    covered = np.where(masks[..., None], 0, x[i]).astype(np.float32)
    _, after = scores(module, params, covered, loss)
    fall = one.score - after[:, one.label]
    pixel = [fall[masks[:, 2, 5]].mean(), fall[masks[:, 7, 0]].mean()]
    assert one.occlusion[2, 5] == pytest.approx(pixel[0], abs=1e-5)
    assert one.occlusion[7, 0] == pytest.approx(pixel[1], abs=1e-5)
    if loss == "softmax":
      steps = np.eye(192, dtype=np.float32).reshape(-1, 8, 8, 3) * 1e-2
      moved = np.concatenate([x[i] + steps, x[i] - steps])
      above, below = scores(module, params, moved, loss)[0].reshape(2, 192, 3)
      slope = np.abs(above - below)[:, one.label].reshape(8, 8, 3) / 2e-2
      np.testing.assert_allclose(
        one.gradient, slope.max(-1), atol=5e-3 * slope.max()
      )


@pytest.mark.slow
def test_smoothing_averages_signed_gradients(small):
  module, params, images = small
  plain = saliency.explain(module, params, "softmax", images[:1])
  smooth = saliency.explain(module, params, "softmax", images[:1], 40)
  again = saliency.explain(module, params, "softmax", images[:1], 40)
  np.testing.assert_array_equal(smooth[0].gradient, again[0].gradient)
  assert not np.allclose(smooth[0].gradient, plain[0].gradient, rtol=1e-2)
  # What changes sign from copy to copy cancels.
  assert smooth[0].gradient.mean() < 1.5 * plain[0].gradient.mean()
  np.testing.assert_array_equal(smooth[0].occlusion, plain[0].occlusion)
