"""The model of a config, and the jitted functions of its run."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mixer import config as config_lib
from mixer import (
  durations,
  inference,
  optim,
  sharding,
  token_mixing,
  weights,
)
from mixer import model as model_lib
from mixer import update as update_lib


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
    optimizer = optim.make(config, plan)
    lr = optim.schedule(config, plan)

    def init() -> update_lib.TrainState:
      size = config_lib.image_size(config)
      images = jnp.zeros((1, *size, 3), self.model.dtype)
      key = update_lib.key_for(config.seed, update_lib.Purpose.INIT)
      params = self.model.init(key, images)["params"]
      return update_lib.TrainState(
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
    update = update_lib.make(
      config, self.model, num_classes, optimizer, lr, mesh
    )
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
