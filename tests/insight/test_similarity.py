"""CKA against its definition in numpy, and its laws."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mixer import model
from mixer.insight import activations, similarity
from tests import trained_files


def gram(x):
  return (x @ x.T)[None]


def cka(*layers):
  """The matrix for features `[n, C]` of one batch."""
  return similarity.cka(similarity.hsic(np.concatenate([*map(gram, layers)])))


def by_u_statistic(x, y):
  """Unbiased HSIC, by the definition that Song et al. give first.

  The mean over all tuples of four different examples (i, j, q, r) of
  K[i, j] (L[i, j] + L[q, r] - 2 L[i, q]).
  """
  k, m, n = x @ x.T, y @ y.T, len(x)
  total, count = 0.0, 0
  for i in range(n):
    for j in range(n):
      for q in range(n):
        for r in range(n):
          if len({i, j, q, r}) == 4:
            total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
            count += 1
  return total / count


def test_hsic_is_the_mean_over_all_quadruples():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
  found = similarity.hsic(np.concatenate([gram(x), gram(y)]))
  expected = [[by_u_statistic(a, b) for b in (x, y)] for a in (x, y)]
  np.testing.assert_allclose(found, expected)


def test_of_many_examples_it_is_kornbliths():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1000, 4))
  y = x @ rng.normal(size=(4, 6)) + rng.normal(size=(1000, 6))
  a, b = x - x.mean(0), y - y.mean(0)
  norm = np.linalg.norm
  expected = norm(b.T @ a) ** 2 / (norm(a.T @ a) * norm(b.T @ b))
  assert cka(x, y)[0, 1] == pytest.approx(expected, abs=5e-3)


@hypothesis.given(
  st.integers(0, 2**32 - 1),
  st.integers(4, 12),
  st.integers(1, 6),
  st.floats(0.01, 100),
  st.booleans(),
)
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_rotating_scaling_and_shifting_change_nothing(
  seed, n, width, scale, sign
):
  rng = np.random.default_rng(seed)
  x, y = rng.normal(size=(n, width)), rng.normal(size=(n, 3))
  turned, _ = np.linalg.qr(rng.normal(size=(width, width)))
  other = (x @ turned) * (scale if sign else -scale) + rng.normal(size=width)
  hsics = similarity.hsic(np.concatenate([gram(x), gram(other), gram(y)]))
  hypothesis.assume(hsics[0, 0] > 1e-3 and hsics[2, 2] > 1e-3)
  found = similarity.cka(hsics)
  assert found[0, 1] == pytest.approx(1, abs=1e-6)
  assert found[0, 2] == pytest.approx(found[1, 2], abs=1e-6)
  np.testing.assert_allclose(found, found.T)


def test_independent_features_have_none_on_average():
  rng = np.random.default_rng(0)
  hsics = [
    similarity.hsic(
      np.concatenate(
        [gram(rng.normal(size=(8, 50))), gram(rng.normal(size=(8, 50)))]
      )
    )
    for _ in range(400)
  ]
  # The usual, biased estimator gives about 0.8 here.
  assert abs(similarity.cka(np.mean(hsics, axis=0))[0, 1]) < 0.05


@pytest.mark.parametrize("most", [64, 5])
def test_a_models_layers(monkeypatch, most):
  monkeypatch.setattr(similarity, "_MOST", most)
  module = model.MlpMixer(4, 2, 8, 6, 12)
  params = trained_files.random_params(module, 8)
  images = np.random.default_rng(0).integers(0, 256, (11, 8, 8, 3), np.uint8)
  found, cosine = similarity.layers(module, params, images)
  x = jnp.asarray(images, jnp.float32) / 127.5 - 1
  size = 11 if most == 64 else 5  # Of three batches one would have but 3.
  _, layers = jax.jit(lambda x: activations.layers(module, params, x))(x)
  layers = [np.asarray(layer, np.float64) for layer in layers]
  flat = [layer.reshape(11, -1) for layer in layers]
  used = 11 // size * size
  hsics = [
    similarity.hsic(np.stack([gram(f[i : i + size])[0] for f in flat]))
    for i in range(0, used, size)
  ]
  np.testing.assert_allclose(
    found, similarity.cka(np.mean(hsics, axis=0)), rtol=1e-3
  )
  for i, a in enumerate(layers):
    for j, b in enumerate(layers):
      norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
      expected = ((a * b).sum(-1) / norms)[:used].mean()
      assert cosine[i, j] == pytest.approx(expected, abs=1e-5)
