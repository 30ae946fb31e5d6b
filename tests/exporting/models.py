"""Small trained models of every kind, and places to export them to."""

import contextlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from mixer import block, model, trained
from mixer.exporting import placing, verification

MIXINGS = {
  "plain": block.TokenMixing(),
  "untied": block.TokenMixing(untied=True),
  "groups": block.TokenMixing(groups=2),
  "all": block.TokenMixing(
    untied=True, groups=4, projection=True, pyramid=((1, 3),)
  ),
}


def make(
  mixing="plain",
  permute="",
  dtype="float32",
  size=(8, 12),
  num_classes=5,
  **changes,
):
  """A model with random weights, of two blocks unless a module is given."""
  module = changes.pop("module", None) or model.MlpMixer(
    patch_size=4,
    num_blocks=2,
    hidden_dim=8,
    tokens_mlp_dim=5,
    channels_mlp_dim=13,
    num_classes=num_classes,
    dtype=jnp.dtype(dtype),
    mixing=MIXINGS[mixing],
    permute=permute,
    permute_seed=3,
  )
  numbers = range(module.num_classes)
  attributes = dict(
    module=module,
    params=_params(module, size),
    image_size=size,
    short_side=16,
    class_ids=tuple(f"n{k:08}" for k in numbers) or None,
    class_names=tuple(f"kind {k}" for k in numbers) or None,
    loss="softmax",
    source="runs/a",
    origin="runs/a (step 4)",
  )
  return trained.Trained(**(attributes | changes))


def without_weights(side, short_side, module=None):
  """One of square images, of which only the description counts."""
  module = module or model.MlpMixer(1, 1, 1, 1, 1)
  ids = tuple(f"n{k:08}" for k in range(module.num_classes)) or None
  rest = (ids, ids, "softmax", "", "")
  return trained.Trained(module, {}, (side, side), short_side, *rest)


def _params(module, size):
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(1), images)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )


def batches(model):
  """Random images as the model takes them."""
  images = verification.random_images(model.image_size)
  return verification.batches(images, model)


@contextlib.contextmanager
def place(path, suffix, members=()):
  """Where an export is written; committed at the end."""
  with placing.place(str(path), suffix, members) as found:
    yield found
    found.commit()


def left_over(folder: pathlib.Path) -> list[str]:
  """Everything in it, hidden or not."""
  return sorted(p.name for p in folder.iterdir())
