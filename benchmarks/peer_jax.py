"""The contenders of `benchmarks.peers` that run under JAX.

Ours is what `Trainer` jits, and nothing else. The authors' Flax model is
imported from a checkout of google-research/vision_transformer (nothing of it
is here) and trained by a plain jitted step with optax's own optimizer; it has
no dtype but float32.
"""

import collections
import importlib
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import common, peer, step
from mixer import (
  __version__,
  durations,
  export_timm,
  npz,
  optim,
  runtime,
  sharding,
  train_step,
  weights,
)
from mixer import config as config_lib
from mixer import model as model_lib


def make_config(work: dict[str, Any]) -> config_lib.Config:
  """The config of a run that does this work."""
  config = step.recipe(work["variant"], work["batch"], work["dtype"])
  config.model.update(work["shape"])
  config.optimizer.update(work["optimizer"])
  config.image_size = work["image_size"]
  config.schedule.warmup = "0 steps"
  config.schedule.decay = "constant"
  config.optimizer.clip_norm = 0.0
  return config


class Ours:
  """Our jitted passes; they have one variant."""

  def __init__(self, folder: pathlib.Path):
    work, batch = peer.read(folder)
    self._config = make_config(work)
    self._classes = work["num_classes"]
    mesh = sharding.make_mesh()
    plan = durations.plan(self._config, 1)
    self._trainer = train_step.Trainer(self._config, plan, self._classes, mesh)
    self._params = weights.unflatten(npz.read(folder / "flax.npz"))
    whole = sharding.put_batch(mesh, batch)
    self._batch = {k: whole[k] for k in ("image", "label")}
    self._masked = {k: whole[k] for k in ("image", "mask")}
    environment = runtime.environment() | {"host": ""}
    self.hello = {
      "version": f"mixer {__version__}",
      "platform": environment["platform"],
      "environment": environment,
    }

  def _start(self) -> train_step.TrainState:
    state = self._trainer.init()
    params = jax.tree.map(
      lambda x, like: jax.device_put(np.array(x), like.sharding),
      self._params,
      state.params,
    )
    return state.replace(params=params)

  def forward(self, variant: str) -> common.Run:
    del variant
    params = self._start().params

    def run(n: int) -> Any:
      logits = None
      for _ in range(n):
        logits, _ = self._trainer.inference.logits(params, self._masked)
      return jax.block_until_ready(logits)

    return run

  def train(self, variant: str) -> common.Run:
    del variant
    state = self._start()

    def run(n: int) -> Any:
      nonlocal state
      metrics = {}
      for _ in range(n):
        state, metrics = self._trainer.train_step(state, self._batch)
      jax.block_until_ready(state)
      return metrics["loss"]

    return run

  def gradients(self, variant: str) -> dict[str, np.ndarray]:
    del variant

    @jax.jit
    def gradient(params: Any, batch: train_step.Batch) -> Any:
      losses, batch = train_step.losses_of(
        self._config, self._trainer.model, self._classes, 0, batch
      )
      return jax.grad(lambda p: losses(p, batch, None).mean())(params)

    found = gradient(self._start().params, self._batch)
    return export_timm.state_dict(jax.device_get(found))


class Authors:
  """Their model; it has one variant."""

  def __init__(self, folder: pathlib.Path, checkout: str):
    sys.path.insert(0, checkout)
    models = importlib.import_module("vit_jax.models_mixer")
    work, batch = peer.read(folder)
    self._optimizer = work["optimizer"]
    shape = model_lib.build(
      work["variant"], work["num_classes"], **work["shape"]
    )
    names = ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")
    patches = collections.namedtuple("Patches", ["size"])
    self._model = models.MlpMixer(
      patches=patches((shape.patch_size,) * 2),
      num_classes=work["num_classes"],
      **{name: getattr(shape, name) for name in names},
    )
    self._params = weights.unflatten(npz.read(folder / "flax.npz"))
    self._images = jax.device_put(peer.scaled(batch["image"]))
    self._labels = jax.device_put(batch["label"])
    self.hello = {
      "version": f"google-research/vision_transformer, jax {jax.__version__}",
      "platform": jax.default_backend(),
    }

  def _start(self) -> Any:
    return jax.tree.map(lambda x: jnp.array(np.array(x)), self._params)

  def _loss(self, params: Any, images: jax.Array, labels: jax.Array) -> Any:
    logits = self._model.apply({"params": params}, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  def forward(self, variant: str) -> common.Run:
    del variant
    call = jax.jit(
      lambda p, x: self._model.apply({"params": p}, x, train=False)
    )
    params = self._start()

    def run(n: int) -> Any:
      logits = None
      for _ in range(n):
        logits = call(params, self._images)
      return jax.block_until_ready(logits)

    return run

  def train(self, variant: str) -> common.Run:
    del variant
    c = self._optimizer
    optimizer = (
      optax.sgd(c["learning_rate"], c["momentum"])
      if c["name"] == "sgd"
      else optax.adamw(
        c["learning_rate"],
        weight_decay=c["weight_decay"],
        mask=optim.decay_mask,
      )
    )

    def update(params: Any, state: Any, images: Any, labels: Any) -> Any:
      loss, grads = jax.value_and_grad(self._loss)(params, images, labels)
      updates, state = optimizer.update(grads, state, params)
      return optax.apply_updates(params, updates), state, loss

    jitted = jax.jit(update, donate_argnums=(0, 1))
    params = self._start()
    state = optimizer.init(params)

    def run(n: int) -> Any:
      nonlocal params, state
      loss = jnp.nan
      for _ in range(n):
        params, state, loss = jitted(params, state, self._images, self._labels)
      jax.block_until_ready((params, state))
      return loss

    return run

  def gradients(self, variant: str) -> dict[str, np.ndarray]:
    del variant
    found = jax.jit(jax.grad(self._loss))(
      self._start(), self._images, self._labels
    )
    return export_timm.state_dict(jax.device_get(found))


def make(
  kind: str, folder: pathlib.Path, keep: bool, checkout: str = ""
) -> peer.Contender:
  """Starts JAX, and makes a contender.

  Args:
    kind: "ours" or "authors".
    folder: with the work.
    keep: whether malloc keeps what is freed, as in a run.
    checkout: of the authors' code.
  """
  if not keep:
    runtime.keep_freed_memory = lambda: None
  runtime.quiet_libraries()
  runtime.start()
  return Ours(folder) if kind == "ours" else Authors(folder, checkout)
