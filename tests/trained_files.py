"""Makes what trained models are loaded from, without training."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from mixer import config as config_lib
from mixer import (
  metadata as metadata_lib,
)
from mixer import (
  model,
  saving,
  train_step,
  trained,
  weights,
)

_NAMES = list("0123456789")


def random_params(module, side):
  """Weights that are not special, made without a compilation."""
  images = jnp.zeros((1, side, side, 3))
  shapes = jax.eval_shape(module.init, jax.random.key(1), images)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )


def save(workdir, config, change=lambda metadata: None, scale=1.0):
  """A workdir as train.py leaves it; the state in it."""
  module = model.from_config(config, 10)
  params = random_params(module, config.image_size)
  params = jax.tree.map(lambda x: x * np.float32(scale), params)
  ema = None
  if config.optimizer.ema_decay:
    ema = jax.tree.map(lambda x: x * 2, params)
  state = train_step.TrainState(jnp.asarray(4), params, jnp.zeros(1), ema)
  metadata = {
    "config": config_lib.to_json(config),
    "resolved": {"total": 20},
    "class_names": _NAMES,
  }
  change(metadata)
  os.makedirs(workdir, exist_ok=True)
  with saving.Checkpoints(workdir) as c:
    c.save(4, state, metadata)
  return state


def npz(path, num_classes, bias=0.0, side=8, classes=None):
  """A file in the layout of the released ones; its weights.

  With classes it says of itself that it has these.
  """
  module = model.MlpMixer(4, 2, 8, 6, 12, num_classes=num_classes)
  flat = weights.flatten(random_params(module, side))
  if num_classes:
    flat["head/bias"] += np.float32(bias)
  np.savez(path, allow_pickle=False, **flat)
  if classes:
    loss = "sigmoid" if bias < -3 else "softmax"
    names = trained.names_for_people(tuple(classes))
    found = metadata_lib.Metadata(
      (side, side), round(side * 256 / 224), loss, tuple(classes), names
    )
    metadata_lib.write_beside(path, found)
  return flat


def shape_of(variant, num_classes):
  """Of a variant's weights, for images of 224 px."""
  spec = model.parse_variant(variant)
  return weights.Shape(
    spec.patch_size,
    spec.num_blocks,
    spec.hidden_dim,
    spec.tokens_mlp_dim,
    spec.channels_mlp_dim,
    (224 // spec.patch_size) ** 2,
    num_classes,
  )


def random_weights(shape, seed=0):
  """As of a trained model: signals keep their size, nothing is 0 or 1."""
  rng = np.random.default_rng(seed)
  flat = {}
  for name, dims in weights.expected(shape).items():
    array = rng.standard_normal(dims, np.float32)
    if name.endswith("kernel"):
      array /= np.float32(np.sqrt(np.prod(dims[:-1])))
    else:
      array = np.float32(name.endswith("scale")) + array / 10
    flat[name] = array
  return flat


def older(flat, axes="front", counts=("0", "0", "1", "0")):
  """The same in the older layout.

  Args:
    flat: of the current layout.
    axes: where the MLPs' arrays have singleton axes.
    counts: behind the name of a block's norms and mixings, in their order.
  """
  norm_0, tokens, norm_1, channels = counts
  widen = {
    "front": lambda x: x[None],
    "back": lambda x: x[..., None],
    "middle": lambda x: x[:, None] if x.ndim == 2 else x[None, None],
    "none": lambda x: x,
  }[axes]
  result = {
    "embedding/kernel": flat["stem/kernel"],
    "embedding/bias": flat["stem/bias"],
    "Mixer/encoder_norm/scale": flat["pre_head_layer_norm/scale"],
    "Mixer/encoder_norm/bias": flat["pre_head_layer_norm/bias"],
  }
  for name in flat:
    if name.startswith("head"):
      result[name] = flat[name]
  i = 0
  while f"MixerBlock_{i}/LayerNorm_0/scale" in flat:
    new, old = f"MixerBlock_{i}", f"Mixer/encoderblock_{i}"
    for a, b in ((norm_0, 0), (norm_1, 1)):
      for leaf in ("scale", "bias"):
        result[f"{old}/LayerNorm_{a}/{leaf}"] = flat[
          f"{new}/LayerNorm_{b}/{leaf}"
        ]
    for mixing, n in (("token_mixing", tokens), ("channel_mixing", channels)):
      for leaf in ("kernel", "bias"):
        for dense in (0, 1):
          result[f"{old}/{mixing}_phase_{n}/{leaf}{dense + 1}"] = widen(
            flat[f"{new}/{mixing}/Dense_{dense}/{leaf}"]
          )
    i += 1
  return result
