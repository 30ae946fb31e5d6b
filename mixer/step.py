"""The training state, and the jitted functions that use it."""

import enum
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mixer import config as config_lib
from mixer import durations, inference, objective, optim, sharding
from mixer import model as model_lib

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Purpose(enum.IntEnum):
  """What a random key is for; folded into the seed, so never renumber."""

  INIT = 0
  MIXUP = 1
  DROPOUT = 2


@flax.struct.dataclass
class TrainState:
  """All that training carries from step to step.

  Attributes:
    step: int32, updates done.
    params: float32 tree.
    opt_state: optax's.
    ema: an average of `params`, or None where the config wants none.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any

  @property
  def eval_params(self) -> Any:
    """What evaluation uses: the average where there is one."""
    return self.params if self.ema is None else self.ema


def key_for(
  seed: int, purpose: Purpose, step: jax.Array | int = 0
) -> jax.Array:
  """The random key of a purpose at a step: no key lives in the state."""
  key = jax.random.fold_in(jax.random.key(seed), purpose)
  return jax.random.fold_in(key, step)


def build_model(
  config: config_lib.Config, num_classes: int
) -> model_lib.MlpMixer:
  """The module that a config describes."""
  m = config.model
  shape = {
    k: m[k]
    for k in (
      "num_blocks",
      "hidden_dim",
      "tokens_mlp_dim",
      "channels_mlp_dim",
    )
    if m[k]
  }
  return model_lib.build(
    m.variant,
    num_classes,
    dropout=m.dropout,
    stochastic_depth=m.stochastic_depth,
    head_bias=m.head_bias,
    dtype=jnp.dtype(m.dtype),
    remat=m.remat,
    **shape,
  )


class Trainer:
  """The jitted functions of a run, and the state's shape and place.

  Attributes:
    model: the Flax module.
    num_classes: K.
    abstract: the state as `jax.ShapeDtypeStruct`s that carry shardings.
    init: `() -> TrainState`, made where it is to lie.
    train_step: `(state, batch) -> (state, metrics)`; the state is donated.
    inference: the functions of `params` alone.
  """

  def __init__(
    self,
    config: config_lib.Config,
    plan: durations.Plan,
    num_classes: int,
    mesh: Mesh,
  ):
    self.model = build_model(config, num_classes)
    self.num_classes = num_classes
    optimizer = optim.make(config, plan)
    lr = optim.schedule(config, plan)

    def init() -> TrainState:
      side = config.image_size
      images = jnp.zeros((1, side, side, 3), self.model.dtype)
      key = key_for(config.seed, Purpose.INIT)
      params = self.model.init(key, images)["params"]
      return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy, as a donated buffer must not be given away twice.
        ema=jax.tree.map(jnp.copy, params)
        if config.optimizer.ema_decay
        else None,
      )

    abstract = jax.eval_shape(init)
    where = sharding.state(mesh, abstract)
    self.abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      where,
    )
    everywhere, split = sharding.replicated(mesh), sharding.batch(mesh)
    self.init = jax.jit(init, out_shardings=where)
    self.train_step = jax.jit(
      _train_step(config, self.model, num_classes, optimizer, lr),
      in_shardings=(where, split),
      out_shardings=(where, everywhere),
      donate_argnums=0,
    )
    self.inference = inference.Inference(
      self.model, config.loss.name, num_classes, mesh, where.params
    )


def _train_step(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  num_classes: int,
  optimizer: optax.GradientTransformation,
  lr: optax.Schedule,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """One update; metrics are of the weights before it."""

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    images, targets = objective.training_inputs(
      key_for(config.seed, Purpose.MIXUP, state.step),
      batch,
      config,
      num_classes,
    )
    dropout_key = key_for(config.seed, Purpose.DROPOUT, state.step)

    def loss_fn(params: Any) -> jax.Array:
      logits = model_lib.apply(model, params, images, key=dropout_key)
      return objective.losses(config.loss.name, logits, targets).mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      ema = optax.incremental_update(
        params, ema, 1.0 - config.optimizer.ema_decay
      )
    metrics = {
      "loss": loss,
      "learning_rate": lr(state.step),
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(state.params),
    }
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  return train_step
