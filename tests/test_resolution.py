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
BLOCKWISE = ("tiles", "interleaved")
pre_logits = functools.partial(reference.forward, head=False)

sides = st.integers(1, 4)
grids = st.tuples(sides, sides)
factors = st.tuples(st.integers(1, 3), st.integers(1, 3))
seeds = st.integers(0, 999)
examples = functools.partial(settings, deadline=None)


def make_shape(grid=(3, 4), t=5, c=6, k=3, patch=P):
  return weights.Shape(patch, 2, c, t, 7, math.prod(grid), k)


def random_params(shape, seed=0) -> Any:
  return weights.unflatten(trained_files.random_weights(shape, seed))


def pixels(grid, by=(1, 1)):
  return grid[0] * by[0] * P, grid[1] * by[1] * P


def random_images(size, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)


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


def assert_same(a: Any, b: Any, atol=0.0):
  a, b = weights.flatten(a), weights.flatten(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], atol=atol, err_msg=name)


@pytest.mark.parametrize("method", BLOCKWISE)
@examples(max_examples=40)
@given(grid=grids, by=factors, t=sides, c=sides, seed=seeds)
def test_pre_logits_are_the_mean_of_the_parts(method, grid, by, t, c, seed):
  params = random_params(make_shape(grid, t, c), seed)
  images = random_images(pixels(grid, by), seed)
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
    ((7, 7), (14, 14)),
    ((1, 3), (4, 1)),
  ],
)
def test_the_resampled_mlp_is_the_old_one_on_the_old_grid(old, new):
  params = random_params(make_shape(old))
  resized = resolution.resize(params, pixels(new), "resample", pixels(old))
  fields = np.random.default_rng(1).standard_normal((5, *new))
  wanted = to_grid(token_mlp(params, to_grid(fields, old)), new)
  np.testing.assert_allclose(token_mlp(resized, fields), wanted, atol=2e-5)


@examples(max_examples=40)
@given(grid=grids, more=st.tuples(sides, sides), seed=seeds)
def test_resampling_to_a_finer_grid_and_back_changes_nothing(grid, more, seed):
  params = random_params(make_shape(grid), seed)
  finer = (grid[0] + more[0] - 1, grid[1] + more[1] - 1)
  there = resolution.resize(params, pixels(finer), "resample", pixels(grid))
  back = resolution.resize(there, pixels(grid), "resample", pixels(finer))
  assert_same(back, params, atol=1e-5)


@pytest.mark.parametrize(
  ("size", "method", "width", "sentence"),
  [
    (
      (12, 16),
      "tiles",
      20,
      "tiled from 3 x 4 to 6 x 8 tokens (paper, appendix C): "
      "token MLP width 5 -> 20",
    ),
    (
      (6, 24),
      "interleaved",
      15,
      "interleaved from 3 x 4 to 3 x 12 tokens (ours, not the paper's): "
      "token MLP width 5 -> 15",
    ),
    (
      (4, 10),
      "resample",
      5,
      "resampled from 3 x 4 to 2 x 5 tokens (ours, not in the paper): "
      "token MLP width stays 5",
    ),
    ([6, 8], "tiles", 5, ""),
    ((6, 8), "", 5, ""),
  ],
)
def test_what_is_said_is_what_is_done(size, method, width, sentence):
  old = make_shape((3, 4))
  how = (size, method, (6, 8))
  said = resolution.plan(old, *how).sentence(old.tokens_mlp_dim)
  assert said == (f"token mixing {sentence}" if sentence else "")
  new = weights.shape_of(resolution.resize(random_params(old), *how))
  assert new.tokens_mlp_dim == width
  assert new.num_tokens == math.prod(size) // P**2


@pytest.mark.parametrize(
  ("size", "from_size", "method"),
  [
    (448, None, "tiles"),
    (np.int64(448), 224, "tiles"),
    ((224, 672), None, "tiles"),
    (224, None, "tiles"),
    (384, None, "resample"),
    (112, None, "resample"),
    ((448, 384), None, "resample"),
    ((448, 224), None, "tiles"),
    ((448, 112), (112, 448), "resample"),
  ],
)
def test_the_method_that_suits_a_size(size, from_size, method):
  shape = make_shape((14, 14), patch=16)
  assert resolution.plan(shape, size, "", from_size).method == method


@pytest.mark.parametrize("method", resolution.METHODS)
def test_only_token_mixing_changes_and_nothing_is_copied(method):
  params = random_params(make_shape((3, 3)))
  before = jax.tree.map(np.copy, params)
  old = weights.flatten(params)
  new = weights.flatten(resolution.resize(params, 12, method))
  changed = {name for name in old if new[name] is not old[name]}
  assert changed == {name for name in old if "/token_mixing/" in name} - (
    {f"MixerBlock_{i}/token_mixing/Dense_0/bias" for i in range(2)}
    if method == "resample"
    else set()
  )
  assert_same(params, before)
  same = weights.flatten(resolution.resize(params, 6, method))
  assert all(same[name] is old[name] for name in old)


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    ([230], "image_size=230: 230 px is no multiple.* px. Nearest: 224 or 240"),
    ([(448, 450)], "image_size=.448, 450.: 450 px.* Nearest: 448 or 464."),
    ([7], "no multiple.*Nearest: 16.$"),
    ([0], "image_size=0 is no image size: expected .*height, width"),
    ([448.0], "image_size=448.0 is no image size"),
    (["448"], "image_size='448' is no image size"),
    ([(448,)], "image_size=.448,. is no image size"),
    ([(448, 448.5)], "image_size=.448, 448.5. is no image size"),
    ([384], "init_resize=tiles needs .* whole multiple.* 14 x 14 tokens"),
    ([112, "interleaved"], "image_size=112 has 7 x 7.*resample"),
    ([448, "bilinear"], "init_resize='bilinear' is no method.*interleaved"),
    ([448, "tiles", 256], "196 tokens, and from_size=256 has another number"),
    ([448, "tiles", 225], "from_size=225: 225 px is no multiple"),
  ],
)
def test_refusals(change, sentence):
  arguments = change if len(change) > 1 else [*change, "tiles"]
  with pytest.raises(UserError, match=sentence):
    resolution.plan(make_shape((14, 14), patch=16), *arguments)


def test_an_oblong_grid_must_be_told_where_it_changes():
  params = random_params(make_shape((3, 4)))
  with pytest.raises(UserError, match="12 tokens, and .*from_size"):
    resolution.resize(params, (12, 16))
  assert resolution.resize(params, (12, 16), from_size=(6, 8))
  assert_same(resolution.resize(params, (6, 8)), params)
  del params["MixerBlock_1"]["token_mixing"]["Dense_1"]["bias"]
  with pytest.raises(UserError, match="whole MLP-Mixer.*Dense_1/bias"):
    resolution.resize(params, (6, 8))


def test_another_patch_is_refused():
  shape = make_shape((14, 14), patch=16)
  resolution.check_patch(shape, 16)
  with pytest.raises(
    UserError, match="^a.npz have patches of 16 px.* 32 px: .*ends in /16"
  ):
    resolution.check_patch(shape, 32, "a.npz")
