"""Where an update breaks: its losses, gradients and layers, one by one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import config as config_lib
from mixer import model as model_lib
from mixer import train_step, weights


@dataclasses.dataclass(frozen=True)
class Findings:
  """What an update meets.

  Attributes:
    losses: float32 `[B]`, of its examples, in the batch's order.
    weights: largest magnitude in each parameter before it, by name.
    gradients: the same of the gradients.
    layers: the same of what the stem, each block and the head give out, in
      their order, without dropout and mixup. NaN where there is a NaN.
  """

  losses: np.ndarray
  weights: dict[str, float]
  gradients: dict[str, float]
  layers: dict[str, float]


def examine(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  num_classes: int,
  state: train_step.TrainState,
  batch: train_step.Batch,
) -> Findings:
  """Looks into the update that comes next; changes nothing.

  Args:
    config: the run's.
    model: its module.
    num_classes: K.
    state: before the update.
    batch: of the update, over the mesh.
  """
  parts = config.optimizer.accumulate

  def look(state: train_step.TrainState, batch: train_step.Batch) -> Any:
    fn, whole = train_step.losses_of(
      config, model, num_classes, state.step, batch
    )
    _, grads = train_step.accumulated(fn, state.params, whole, parts)
    # Example i of B is the one at i // parts of part i % parts.
    each = [
      fn(
        state.params,
        jax.tree.map(lambda x, at=i: x[at::parts], whole),
        jnp.int32(i) if parts > 1 else None,
      )
      for i in range(parts)
    ]
    losses = jnp.stack(each, axis=1).reshape(-1)
    return losses, _largest(state.params), _largest(grads)

  losses, of_weights, of_gradients = jax.device_get(jax.jit(look)(state, batch))
  layers = jax.device_get(
    jax.jit(lambda params, batch: _layers(config, model, params, batch))(
      state.params, batch
    )
  )
  order = [
    "stem",
    *(f"MixerBlock_{i}" for i in range(model.num_blocks)),
    "pre_head_layer_norm",
    "head",
  ]
  return Findings(
    np.asarray(losses),
    _floats(of_weights),
    _floats(of_gradients),
    {k: float(layers[k]) for k in order if k in layers},
  )


def _largest(tree: Any) -> dict[str, jax.Array]:
  # NaN goes through `max`.
  return {k: jnp.abs(v).max() for k, v in weights.flatten(tree).items()}


def _floats(values: Mapping[str, Any]) -> dict[str, float]:
  return {k: float(v) for k, v in values.items()}


def _layers(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  params: Any,
  batch: train_step.Batch,
) -> dict[str, jax.Array]:
  """Largest magnitude of what each direct part of the model gives out."""
  images = model_lib.scale(batch["image"], model.dtype)
  # What is recomputed can't be captured.
  _, captured = model_lib.plain(model).apply(
    {"params": params},
    images,
    capture_intermediates=lambda module, _: len(module.path) == 1,
    mutable=["intermediates"],
  )
  found: Any = captured["intermediates"]
  return {
    name: jnp.abs(out["__call__"][0].astype(jnp.float32)).max()
    for name, out in found.items()
    if name != "__call__"
  }
