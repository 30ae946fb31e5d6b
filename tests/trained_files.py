"""Makes what trained models are loaded from, without training."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np

from mixer import config as config_lib
from mixer import model, saving, train_step, trained, weights

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
  params = random_params(model.from_config(config, 10), config.image_size)
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
    describe(path, class_ids=tuple(classes))
  return flat


def describe(path, **changes):
  """Writes the metadata of an .npz file, with these in place of its own."""
  path.with_name(f"{path.name}.json").unlink(missing_ok=True)
  if ids := changes.get("class_ids"):
    changes["class_names"] = trained.names_for_people(ids)
  found = dataclasses.replace(trained.load(str(path)), **changes)
  trained.write_beside(path, found)


def shape_of(variant, num_classes):
  """Of a variant's weights, for images of 224 px."""
  spec = model.parse_variant(variant)
  tokens = (224 // spec.patch_size) ** 2
  more = {"num_tokens": tokens, "num_classes": num_classes}
  return weights.Shape(**dataclasses.asdict(spec), **more)


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


def older(flat, axes="front", counts="0010"):
  """The same in the older dialect.

  Args:
    flat: under the current names.
    axes: where the MLPs' arrays have singleton axes.
    counts: behind the name of a block's norms and mixings, in their order.
  """
  widen = {
    "front": lambda x: x[None],
    "back": lambda x: x[..., None],
    "middle": lambda x: x[:, None] if x.ndim == 2 else x[None, None],
    "none": lambda x: x,
  }[axes]
  norms = counts[0], counts[2]
  phases = {"token": counts[1], "channel": counts[3]}
  found = {}
  for name, array in flat.items():
    name = re.sub("^stem/", "embedding/", name)
    name = name.replace("pre_head_layer_norm", "Mixer/encoder_norm")
    name = name.replace("MixerBlock_", "Mixer/encoderblock_")
    name = re.sub(
      r"(LayerNorm_)(\d)", lambda m: f"{m[1]}{norms[int(m[2])]}", name
    )
    if "_mixing/" in name:
      array = widen(array)
      name = re.sub(
        r"(token|channel)_mixing/Dense_(\d)/(\w+)",
        lambda m: f"{m[1]}_mixing_phase_{phases[m[1]]}/{m[3]}{int(m[2]) + 1}",
        name,
      )
    found[name] = array
  return found
