"""Features in a plane."""

import importlib.util

import numpy as np
import pytest

from mixer.errors import UserError
from mixer.insight import embedding


def test_pca_is_the_singular_value_decomposition():
  x = np.random.default_rng(0).normal(size=(20, 5)) * [5, 3, 1, 1, 1] + 7
  points, axes = embedding.plane(x, "pca")
  u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
  np.testing.assert_allclose(np.abs(points), np.abs(u * s)[:, :2], atol=1e-9)
  share = s[0] ** 2 / (s**2).sum()
  assert axes[0] == f"component 1 ({share:.0%} of the variance)"


def test_features_that_are_all_alike():
  points, axes = embedding.plane(np.ones((6, 4), np.float32), "pca")
  assert not points.any() and axes[1].startswith("component 2 (0%")


def test_tsne_keeps_two_groups_apart():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(24, 8)) + np.repeat([[0], [9]], 12, axis=0)
  points, _ = embedding.plane(x, "tsne")
  nearest = np.linalg.norm(points[:, None] - points, axis=-1)
  np.fill_diagonal(nearest, np.inf)
  np.testing.assert_array_equal(nearest.argmin(1) < 12, np.arange(24) < 12)


@pytest.mark.slow
def test_tsne_repeats_and_takes_few():
  x = np.random.default_rng(0).normal(size=(embedding.LEAST, 8))
  points, again = (embedding.plane(x, "tsne")[0] for _ in range(2))
  np.testing.assert_array_equal(points, again)
  assert points.shape == (5, 2) and np.isfinite(points).all()


def test_umap_without_its_package(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="python -m pip install umap-learn"):
    embedding.check("umap")
  embedding.check("tsne")
