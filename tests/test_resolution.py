import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import resolution, weights
from mixer.errors import UserError
from tests import reference, trained_files

P = 2
pre_logits = functools.partial(reference.forward, head=False)
sides = st.integers(1, 4)
grids = st.tuples(sides, sides)
factors = st.tuples(st.integers(1, 3), st.integers(1, 3))
seeds = st.integers(0, 999)


def make_shape(grid=(3, 4), t=5, c=6, patch=P):
  return weights.Shape(patch, 2, c, t, 7, math.prod(grid), 3)


def random_params(shape, seed=0) -> Any:
  return weights.unflatten(trained_files.random_weights(shape, seed))


def pixels(grid, by=(1, 1)):
  return grid[0] * by[0] * P, grid[1] * by[1] * P


def parts(images, by, method):
  """The images of the old size that the blocks of a large one see."""
  ky, kx = by
  _, height, width, _ = images.shape
  h, w = height // ky, width // kx
  for a, b in itertools.product(range(ky), range(kx)):
    if method == "tiles":
      yield images[:, a * h : (a + 1) * h, b * w : (b + 1) * w]
      continue
    out = np.empty((len(images), h, w, 3), np.float32)
    for y, x in itertools.product(range(0, h, P), range(0, w, P)):
      top, left = y * ky + a * P, x * kx + b * P
      patch = images[:, top : top + P, left : left + P]
      out[:, y : y + P, x : x + P] = patch
    yield out


@pytest.mark.parametrize("method", ["tiles", "interleaved"])
@settings(max_examples=40)
@given(grid=grids, by=factors, t=sides, c=sides, seed=seeds)
def test_pre_logits_are_the_mean_of_the_parts(method, grid, by, t, c, seed):
  params = random_params(make_shape(grid, t, c), seed)
  shape = (2, *pixels(grid, by), 3)
  images = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
  new = resolution.resize(params, pixels(grid, by), method, pixels(grid))
  old = [pre_logits(params, part) for part in parts(images, by, method)]
  np.testing.assert_allclose(
    pre_logits(new, images), np.mean(old, axis=0), atol=1e-9, rtol=0
  )


@functools.cache
def cubic(old, new):
  """[new, old], by another implementation; least squares to fewer."""
  if new < old:
    up = cubic(new, old)
    return np.linalg.lstsq(up, np.eye(old), rcond=None)[0]
  eye = jnp.eye(old, dtype=jnp.float32)
  return np.asarray(jax.image.resize(eye, (new, old), "cubic"), np.float64)


def token_mlp(params, fields):
  """The first block's, of fields [N, rows, cols]."""
  dense = params["MixerBlock_0"]["token_mixing"]
  x = fields.reshape(len(fields), -1)
  x = x @ dense["Dense_0"]["kernel"] + dense["Dense_0"]["bias"]
  x = np.asarray(jax.nn.gelu(jnp.asarray(x, jnp.float32)))
  x = x @ dense["Dense_1"]["kernel"] + dense["Dense_1"]["bias"]
  return x.reshape(fields.shape)


def to_grid(fields, grid):
  y, x = map(cubic, fields.shape[1:], grid)
  return np.einsum("ri,cj,nij->nrc", y, x, fields)


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ((4, 4), (7, 7)),
    ((4, 4), (3, 3)),
    ((4, 7), (7, 3)),
    ((4, 3), (4, 7)),
    ((1, 3), (4, 1)),
  ],
)
def test_the_resampled_mlp_is_the_old_one_on_the_old_grid(old, new):
  params = random_params(make_shape(old))
  resized = resolution.resize(params, pixels(new), "resample", pixels(old))
  fields = np.random.default_rng(1).standard_normal((5, *new))
  wanted = to_grid(token_mlp(params, to_grid(fields, old)), new)
  np.testing.assert_allclose(token_mlp(resized, fields), wanted, atol=2e-5)
  if all(a >= b for a, b in zip(new, old, strict=True)):  # And back again.
    back = resolution.resize(resized, pixels(old), "resample", pixels(new))
    same = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(same, back, params)


@pytest.mark.parametrize(
  ("size", "method", "width", "message"),
  [
    (
      (12, 16), "tiles", 20,
      "tiled from 3 x 4 to 6 x 8 tokens (paper, appendix C): "
      "token MLP width 5 -> 20",
    ),
    (
      (6, 24), "interleaved", 15,
      "interleaved from 3 x 4 to 3 x 12 tokens (ours, not the paper's): "
      "token MLP width 5 -> 15",
    ),
    (
      (4, 10), "resample", 5,
      "resampled from 3 x 4 to 2 x 5 tokens (ours, not in the paper): "
      "token MLP width stays 5",
    ),
    ([6, 8], "tiles", 5, ""),
    ((6, 8), "", 5, ""),
  ],
)  # fmt: skip
def test_what_is_logged_is_what_is_done(size, method, width, message):
  old = make_shape((3, 4))
  params = random_params(old)
  how = (size, method, (6, 8))
  resized, said = resolution.fit(params, *how)
  assert said == (f"token mixing {message}" if message else "")
  new = weights.shape_of(resized)
  assert new.tokens_mlp_dim == width
  assert new.num_tokens == math.prod(size) // P**2
  # Only token mixing changes, and nothing else is copied.
  before, after = map(weights.flatten, (params, resized))
  changed = {name for name in before if after[name] is not before[name]}
  assert all("/token_mixing/" in name for name in changed)
  assert bool(changed) == bool(message)


@pytest.mark.parametrize(
  ("size", "method"),
  [
    (np.int64(448), "tile"),
    ((224, 672), "tile"),
    (112, "resample"),
    ((448, 384), "resample"),
  ],
)
def test_the_method_that_suits_a_size(size, method):
  params = random_params(make_shape((14, 14), patch=16))
  assert f"token mixing {method}d from" in resolution.fit(params, size)[1]


@pytest.mark.parametrize(
  ("size", "how", "sentence"),
  [
    (230, [], "image_size=230: sides must be multiples .* 240 x 240"),
    ((448, 450), [], "image_size=.448, 450.: .* 448 x 464"),
    (0, [], "image_size=0 is no image size: expected .*height, width"),
    (448.0, [], "image_size=448.0 is no image size"),
    ("448", [], "image_size='448' is no image size"),
    ((448,), [], "image_size=.448,. is no image size"),
    (384, ["tiles"], "=tiles can't fit .* 14 x 14 to 24 x 24 tokens.* whole"),
    (112, ["interleaved"], "image_size=112, .* 7 x 7 tokens.*resample"),
    (448, ["bilinear"], "init_resize=bilinear can't fit"),
    (448, ["tiles", 256], "196 tokens, and from_size=256 has another number"),
    (448, ["tiles", 225], "from_size=225: sides must be multiples"),
  ],
)
def test_refusals(size, how, sentence):
  with pytest.raises(UserError, match=sentence):
    resolution.fit(random_params(make_shape((14, 14), patch=16)), size, *how)


def test_an_oblong_grid_must_be_given_where_it_changes():
  params = random_params(make_shape((3, 4)))
  with pytest.raises(UserError, match="12 tokens, and .*from_size"):
    resolution.resize(params, (12, 16))
  assert resolution.resize(params, (12, 16), from_size=(6, 8))
  same = resolution.resize(params, (6, 8))
  jax.tree.map(np.testing.assert_array_equal, same, params)
