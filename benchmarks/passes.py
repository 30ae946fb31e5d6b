"""The compiled functions of a config, each to be timed alone."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import peer_server
from mixer import config as config_lib
from mixer import durations, flops, optim, sharding
from mixer import step as step_lib
from mixer import update as update_lib

# In the order in which they are told.
NAMES = ("forward", "evaluation", "train", "optimizer")
_MATMUL = {"cpu": 2048}
_MATMUL_ELSEWHERE = 8192


def matmul(dtype: str) -> tuple[peer_server.Run, int]:
  """What multiplies two squares n times on one device, and the FLOP of it."""
  side = _MATMUL.get(jax.default_backend(), _MATMUL_ELSEWHERE)
  x = jax.random.normal(jax.random.key(0), (side, side), dtype)
  multiply = jax.jit(lambda x, y: (x @ y) / side)

  def run(n: int) -> None:
    y = x
    for _ in range(n):
      y = multiply(x, y)
    jax.block_until_ready(y)

  run(1)
  return run, 2 * side**3


class Passes:
  """A config's passes, with all they take on the device.

  Attributes:
    compiled: by name, see `NAMES`.
    compile_seconds: by name, of tracing and compiling.
    first_step_seconds: from nothing to the end of a first update.
    flop: by name, of a batch; those that the model's matmuls need.
  """

  def __init__(
    self,
    config: config_lib.Config,
    batch: Mapping[str, np.ndarray],
    num_classes: int,
    names: Sequence[str] = NAMES,
  ):
    """Compiles some, "train" among them, and makes one update.

    Args:
      config: of the run.
      batch: `image` uint8 `[B, H, W, 3]`, `label` int32 `[B]`, `mask`.
      num_classes: K.
      names: of the passes.
    """
    start = time.perf_counter()
    mesh = sharding.make_mesh()
    plan = durations.plan(config, 1)
    trainer = step_lib.Trainer(config, plan, num_classes, mesh)
    whole = sharding.put_batch(mesh, batch)
    self._whole = whole
    self._batch = {k: whole[k] for k in ("image", "label")}
    self._masked = {k: whole[k] for k in ("image", "mask")}
    self._state = trainer.init()
    # On several of a CPU's devices, updates that nobody waits for can wait
    # for each other for ever.
    self._one_by_one = jax.default_backend() == "cpu" and mesh.size > 1
    self.compiled: dict[str, Any] = {}
    self.compile_seconds: dict[str, float] = {}
    self._compile("train", trainer.train_step, self._state, self._batch)
    self.runner("train")(1)
    self.first_step_seconds = time.perf_counter() - start
    params = self._state.params
    trained, _ = optim.split(config, params)
    self._gradients = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      trained,
      sharding.optimizer(mesh, trained, config),
    )
    rest = {
      "forward": (trainer.inference.logits, params, self._masked),
      "evaluation": (trainer.inference.counts, params, whole),
      "optimizer": (
        optimizer_alone(config, plan, trainer),
        self._state,
        self._gradients,
      ),
    }
    for name, (function, *args) in rest.items():
      if name in names:
        self._compile(name, function, *args)
    count, size = config.batch_size, config_lib.image_size(config)
    forward = 2 * count * flops.forward_macs(trainer.model, size)[0]
    train = count * flops.update(trainer.model, config)
    self.flop = {"forward": forward, "evaluation": forward, "train": train}

  def _compile(self, name: str, function: Any, *args: Any) -> None:
    before = time.perf_counter()
    self.compiled[name] = function.lower(*args).compile()
    self.compile_seconds[name] = time.perf_counter() - before

  def runner(self, name: str) -> peer_server.Run:
    """What does a pass n times, and waits for its end."""
    compiled = self.compiled[name]
    if name in ("forward", "evaluation"):
      batch = self._masked if name == "forward" else self._whole

      def infer(n: int) -> None:
        found = None
        for _ in range(n):
          found = compiled(self._state.params, batch)
        jax.block_until_ready(found)

      return infer

    # Made here, so that they take no memory while other passes run.
    extra = self._batch if name == "train" else self._some_gradients()

    def update(n: int) -> None:
      for _ in range(n):
        found = compiled(self._state, extra)
        self._state = found[0] if name == "train" else found
        if self._one_by_one:
          jax.block_until_ready(self._state)
      jax.block_until_ready(self._state)

    return update

  def _some_gradients(self) -> Any:
    def make(x: Any) -> jax.Array:
      # Neither zero nor so small that numbers are subnormal, which are slow.
      return jax.device_put(np.full(x.shape, 1e-3, x.dtype), x.sharding)

    return jax.tree.map(make, self._gradients)


def optimizer_alone(
  config: config_lib.Config, plan: durations.Plan, trainer: step_lib.Trainer
) -> Any:
  """Jitted `(state, gradients) -> state`: clipping, optimizer, new weights."""
  optimizer = optim.make(config, plan)

  def update(state: update_lib.TrainState, gradients: Any) -> Any:
    trained, frozen = optim.split(config, state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
    params = optim.merge(optax.apply_updates(trained, updates), frozen)
    return dataclasses.replace(
      state, step=state.step + 1, params=params, opt_state=opt_state
    )

  where = jax.tree.map(lambda x: x.sharding, trainer.abstract)
  return jax.jit(update, out_shardings=where, donate_argnums=0)
