"""Features as points in a plane."""

import importlib.util
import warnings

import numpy as np

from mixer.errors import UserError

TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
METHODS = tuple(TITLES)
# Fewer points have no neighbourhoods to speak of.
LEAST = 5


def check(method: str) -> None:
  """Refuses what can't be had, before the work.

  Raises:
    UserError: "umap" without its package.
  """
  if method == "umap" and importlib.util.find_spec("umap") is None:
    raise UserError(
      "--embedding=umap needs a package that is not installed: python -m pip "
      "install umap-learn. --embedding=tsne and --embedding=pca need none."
    )


def plane(features: np.ndarray, method: str) -> tuple[np.ndarray, list[str]]:
  """Lays features out in two dimensions; always alike.

  Args:
    features: `[N, C]`, N at least `LEAST`.
    method: "pca": the two directions of the largest variance; "tsne" (van der
      Maaten and Hinton 2008) and "umap" (arXiv 1802.03426): neighbours stay
      neighbours, while distances and axes mean little.

  Returns:
    float64 `[N, 2]`, and what to write at the two axes.
  """
  import threadpoolctl  # Of scikit-learn.
  from sklearn import decomposition, manifold

  x = features.astype(np.float64)
  if method == "pca":
    pca = decomposition.PCA(2, svd_solver="full")
    with np.errstate(invalid="ignore"):  # Features that are all alike.
      out = pca.fit_transform(x)
      shares = np.nan_to_num(pca.explained_variance_ratio_)
    return out, [
      f"component {i + 1} ({share:.0%} of the variance)"
      for i, share in enumerate(shares)
    ]
  neighbours = min(30.0, (len(x) - 1) / 3)
  if method == "tsne":
    tsne = manifold.TSNE(
      2, perplexity=neighbours, init="pca", random_state=0, n_jobs=1
    )
    # Several threads would add up in any order.
    with threadpoolctl.threadpool_limits(1):
      return tsne.fit_transform(x).astype(np.float64), _axes("t-SNE")
  import umap  # pyright: ignore[reportMissingImports]

  with warnings.catch_warnings():
    # It tells that a seed makes it use one thread.
    warnings.simplefilter("ignore", UserWarning)
    mapper = umap.UMAP(
      n_neighbors=int(min(15, len(x) - 1)), random_state=0, n_jobs=1
    )
    return np.asarray(mapper.fit_transform(x), np.float64), _axes("UMAP")


def _axes(name: str) -> list[str]:
  return [f"{name} {i} (no unit)" for i in (1, 2)]
