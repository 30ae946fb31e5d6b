"""The training state, and the jitted functions that use it."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from mixer import config as config_lib
from mixer import (
  durations,
  gradients,
  inference,
  objective,
  optim,
  sharding,
  token_mixing,
  weights,
)
from mixer import model as model_lib
from mixer.errors import UserError

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
    grad_dtype=jnp.dtype(config.sharding.reduce_dtype),
    layout=m.layout,
    remat=m.remat,
    token_mlp=m.token_mlp,
    mixing=token_mixing.TokenMixing(
      untied=m.token_mixing == "untied",
      groups=m.token_groups,
      projection=m.group_projection,
      pyramid=tuple(zip(m.pyramid_blocks, m.pyramid_tokens, strict=True)),
    ),
    permute=config.data.permute,
    permute_seed=config.data.permute_seed,
    **shape,
  )


def _check_kernels(
  config: config_lib.Config, model: model_lib.MlpMixer, mesh: Mesh
) -> None:
  """Refuses shapes that fused kernels for GPUs don't do."""
  if model.token_mlp != "pallas" or isinstance(mesh, AbstractMesh):
    return
  if mesh.devices.flat[0].platform in ("cpu", "tpu"):
    return
  # Here, as importing Pallas takes a second.
  from mixer.pallas import token_mlp_gpu

  height, width = config_lib.image_size(config)
  tokens = height // model.patch_size * (width // model.patch_size)
  sentence = token_mlp_gpu.refusal(
    tokens, model.hidden_dim, model.tokens_mlp_dim, model.dtype
  )
  if sentence:
    raise UserError(sentence)


class Trainer:
  """The jitted functions of a run, and the state's shape and place.

  Attributes:
    model: the Flax module.
    num_classes: K.
    abstract: the state as `jax.ShapeDtypeStruct`s that carry shardings.
    init: `() -> TrainState`, made where it is to lie.
    train_step: `(state, batch) -> (state, metrics)`; the state is donated.
    train_steps: the same of several batches, `[n, B, ...]`, one after the
      other; every metric is `[n]`.
    inference: the functions of the state's `eval_params` alone, as they lie.
  """

  def __init__(
    self,
    config: config_lib.Config,
    plan: durations.Plan,
    num_classes: int,
    mesh: Mesh,
  ):
    self.model = model_lib.placed(build_model(config, num_classes), mesh)
    self.num_classes = num_classes
    _check_kernels(config, self.model, mesh)
    optimizer = optim.make(config, plan)
    lr = optim.schedule(config, plan)

    def init() -> TrainState:
      size = config_lib.image_size(config)
      images = jnp.zeros((1, *size, 3), self.model.dtype)
      key = key_for(config.seed, Purpose.INIT)
      params = self.model.init(key, images)["params"]
      return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(optim.split(config, params)[0]),
        # A copy, as a donated buffer must not be given away twice.
        ema=jax.tree.map(jnp.copy, params)
        if config.optimizer.ema_decay
        else None,
      )

    abstract = jax.eval_shape(init)
    optim.check_names(config, weights.flatten(abstract.params))
    where = dataclasses.replace(
      jax.tree.map(lambda _: sharding.replicated(mesh), abstract),
      params=sharding.weights(mesh, abstract.params, config),
      opt_state=sharding.optimizer(mesh, abstract.opt_state, config),
      ema=sharding.optimizer(mesh, abstract.ema, config),
    )
    self.abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      where,
    )
    everywhere, split = sharding.replicated(mesh), sharding.batch(mesh)
    self.init = jax.jit(init, out_shardings=where)
    update = _train_step(config, self.model, num_classes, optimizer, lr, mesh)
    self.train_step = jax.jit(
      update,
      in_shardings=(where, split),
      out_shardings=(where, everywhere),
      donate_argnums=0,
    )
    self.train_steps = jax.jit(
      lambda state, batches: jax.lax.scan(update, state, batches),
      in_shardings=(where, sharding.batches(mesh)),
      out_shardings=(where, everywhere),
      donate_argnums=0,
    )
    self.inference = inference.Inference(
      self.model, config.loss.name, num_classes, mesh, where.eval_params
    )


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


def _train_step(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  num_classes: int,
  optimizer: optax.GradientTransformation,
  lr: optax.Schedule,
  mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """One update; metrics are of the weights before it, unperturbed.

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
