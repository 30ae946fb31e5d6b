"""Our model and our jitted training step, for `benchmarks.peers`."""

import pathlib
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import peer_server, step
from mixer import __version__, durations, npz, runtime, sharding, weights
from mixer import config as config_lib
from mixer import step as step_lib
from mixer import update as update_lib
from mixer.exporting import timm_weights


def make_config(work: dict[str, Any]) -> config_lib.Config:
  """The config of a run that does this work."""
  config = step.recipe(work["variant"], work["batch"], work["dtype"])
  for key, value in work["shape"].items():
    config.model[key] = value
  config.image_size = work["image_size"]
  config.schedule.warmup = "0 steps"
  config.schedule.decay = "constant"
  optimizer = work["optimizer"]
  for key in ("name", "learning_rate", "weight_decay", "momentum"):
    config.optimizer[key] = optimizer[key]
  config.optimizer.clip_norm = 0.0
  return config


class Ours:
  """What `Trainer` jits, and nothing else; it has one variant."""

  def __init__(self, folder: pathlib.Path):
    work, batch = peer_server.read(folder)
    self._config = make_config(work)
    self._mesh = sharding.make_mesh()
    plan = durations.plan(self._config, 1)
    self._classes = work["num_classes"]
    self._trainer = step_lib.Trainer(
      self._config, plan, self._classes, self._mesh
    )
    self._params = weights.unflatten(npz.read(folder / "flax.npz"))
    whole = sharding.put_batch(self._mesh, batch)
    self._batch = {k: whole[k] for k in ("image", "label")}
    self._masked = {k: whole[k] for k in ("image", "mask")}

  def _start(self) -> update_lib.TrainState:
    state = self._trainer.init()
    params = jax.tree.map(
      lambda x, like: jax.device_put(np.array(x), like.sharding),
      self._params,
      state.params,
    )
    return state.replace(params=params)

  def forward(self, variant: str) -> peer_server.Run:
    del variant
    params = self._start().params

    def run(n: int) -> Any:
      logits = None
      for _ in range(n):
        logits, _ = self._trainer.inference.logits(params, self._masked)
      return jax.block_until_ready(logits)

    return run

  def train(self, variant: str) -> peer_server.Run:
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
    def gradient(params: Any, batch: update_lib.Batch) -> Any:
      losses, batch = update_lib.losses_of(
        self._config, self._trainer.model, self._classes, 0, batch
      )
      return jax.grad(lambda p: losses(p, batch, None).mean())(params)

    found = gradient(self._start().params, self._batch)
    return timm_weights.state_dict(jax.device_get(found))


def main() -> None:
  folder, memory = pathlib.Path(sys.argv[1]), sys.argv[2]
  if memory == "returned":
    # What it is worth is measured by leaving it out.
    runtime.keep_freed_memory = lambda: None
  runtime.quiet_libraries()
  runtime.start()
  environment = runtime.environment() | {"host": ""}
  contender = Ours(folder)
  hello = {
    "version": f"mixer {__version__}",
    "platform": environment["platform"],
    "environment": environment,
  }
  peer_server.serve(hello, contender, peer_server.read(folder)[0]["batch"])


if __name__ == "__main__":
  main()
