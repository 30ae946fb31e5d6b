"""An update: the training state, and the function that makes the next one."""

import enum
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mixer import config as config_lib
from mixer import gradients, objective, optim, sharding
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


def losses_of(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  num_classes: int,
  step: jax.Array | int,
  batch: Batch,
) -> tuple[gradients.LossFn, Batch]:
  """What an update makes smaller.

  Args:
    config: the run's.
    model: its module.
    num_classes: K.
    step: updates done before.
    batch: as shipped.

  Returns:
    The losses of the examples as a function of all parameters, see
    `gradients.LossFn`; and the batch, whole, as it takes it or parts of it.
  """
  weight = None
  if config.loss.mixup:
    key = key_for(config.seed, Purpose.MIXUP, step)
    weight = objective.mixup_weight(key, config.loss.mixup)
    batch = objective.with_neighbours(batch)
  dropout_key = key_for(config.seed, Purpose.DROPOUT, step)

  def losses(params: Any, batch: Batch, part: jax.Array | None) -> jax.Array:
    images, targets = objective.training_inputs(
      batch, config, num_classes, weight
    )
    key = dropout_key
    if part is not None:
      key = jax.random.fold_in(key, part)
    logits = model_lib.apply(model, params, images, key=key)
    return objective.losses(config.loss.name, logits, targets)

  return losses, batch


def make(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  num_classes: int,
  optimizer: optax.GradientTransformation,
  lr: optax.Schedule,
  mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """One update, `(state, batch) -> (state, metrics)`, to be jitted.

  Metrics are of the weights before it, unperturbed.
  With SAM, `sam_loss` is the loss at the perturbed weights, and `grad_norm`
  is not finite where the gradient there isn't. Where broken updates are
  skipped, `skipped` is 1 for one that was and 0 else; only `step` moves then.
  """
  c = config.optimizer

  # Gradients are summed to where they are needed, an update is computed where
  # its state lies, and only new weights are gathered.
  def apart(tree: Any) -> Any:
    where = sharding.optimizer(mesh, tree, config)
    return jax.lax.with_sharding_constraint(tree, where)

  def together(tree: Any) -> Any:
    where = sharding.weights(mesh, tree, config)
    return jax.lax.with_sharding_constraint(tree, where)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    losses, batch = losses_of(config, model, num_classes, state.step, batch)
    trained, frozen = optim.split(config, state.params)

    def loss_fn(
      trained: Any, batch: Batch, part: jax.Array | None
    ) -> jax.Array:
      return losses(optim.merge(trained, frozen), batch, part)

    def gradient(trained: Any) -> tuple[jax.Array, Any]:
      return gradients.accumulated(loss_fn, trained, batch, c.accumulate)

    loss, grads = gradient(trained)
    grads, old = apart(together(grads)), apart(state.params)
    metrics = {
      "loss": loss,
      "learning_rate": lr(_updates(state.opt_state)),
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(old),
    }
    if c.sam_rho:
      perturbed = gradients.ascended(trained, grads, c.sam_rho)
      metrics["sam_loss"], grads = gradient(together(perturbed))
      grads = apart(together(grads))
      # What stops a run is its grad_norm.
      norm = optax.tree.norm(grads)
      metrics["grad_norm"] = jnp.where(
        jnp.isfinite(norm), metrics["grad_norm"], norm
      )
    trained, frozen = optim.split(config, old)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    trained = apart(optax.apply_updates(trained, updates))
    ema = state.ema
    if ema is not None:
      averaged, still = optim.split(config, ema)
      averaged = optax.incremental_update(trained, averaged, 1.0 - c.ema_decay)
      ema = optim.merge(averaged, still)
    params = optim.merge(trained, frozen)
    new = TrainState(state.step + 1, params, opt_state, ema)
    if config.nonfinite == "skip":
      sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
      metrics["skipped"] = jnp.where(sound, 0.0, 1.0)
      before = TrainState(new.step, old, state.opt_state, state.ema)
      new = jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, before)
    return new, metrics

  return train_step


def _updates(opt_state: Any) -> Any:
  """What the learning rate goes by: updates made, without those skipped."""

  def schedules(x: Any) -> bool:
    return isinstance(x, optax.ScaleByScheduleState)

  leaves = jax.tree.leaves(opt_state, is_leaf=schedules)
  return next(x.count for x in leaves if schedules(x))
