"""The authors' Flax model, for `benchmarks.peers`; nothing of it lies here.

It is imported from a checkout of google-research/vision_transformer, and
trained by a plain jitted step with optax's own optimizer. Like timm it is
given float images, scaled already. It knows no dtype but float32.
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

from benchmarks import peer_server
from mixer import model as model_lib
from mixer import npz, optim, runtime, weights
from mixer.exporting import timm_weights

_Patches = collections.namedtuple("_Patches", ["size"])


class Authors:
  """Their model; it has one variant."""

  def __init__(self, folder: pathlib.Path, models: Any):
    work, batch = peer_server.read(folder)
    self._work = work
    shape = model_lib.build(work["variant"], work["num_classes"])
    sizes = {
      name: work["shape"].get(name) or getattr(shape, name)
      for name in (
        "num_blocks",
        "hidden_dim",
        "tokens_mlp_dim",
        "channels_mlp_dim",
      )
    }
    self._model = models.MlpMixer(
      patches=_Patches((shape.patch_size,) * 2),
      num_classes=work["num_classes"],
      **sizes,
    )
    self._params = weights.unflatten(npz.read(folder / "flax.npz"))
    images = batch["image"].astype(np.float32) / 127.5 - 1
    self._images = jax.device_put(images)
    self._labels = jax.device_put(batch["label"])

  def _start(self) -> Any:
    return jax.tree.map(lambda x: jnp.array(np.array(x)), self._params)

  def _loss(self, params: Any, images: jax.Array, labels: jax.Array) -> Any:
    logits = self._model.apply({"params": params}, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  def forward(self, variant: str) -> peer_server.Run:
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

  def train(self, variant: str) -> peer_server.Run:
    del variant
    c = self._work["optimizer"]
    if c["name"] == "sgd":
      optimizer = optax.sgd(c["learning_rate"], c["momentum"])
    else:
      optimizer = optax.adamw(
        c["learning_rate"],
        weight_decay=c["weight_decay"],
        mask=optim.decay_mask,
      )

    def update(params: Any, state: Any, images: Any, labels: Any) -> Any:
      loss, grads = jax.value_and_grad(self._loss)(params, images, labels)
      updates, state = optimizer.update(grads, state, params)
      return optax.apply_updates(params, updates), state, loss

    step = jax.jit(update, donate_argnums=(0, 1))
    params = self._start()
    state = optimizer.init(params)

    def run(n: int) -> Any:
      nonlocal params, state
      loss = jnp.nan
      for _ in range(n):
        params, state, loss = step(params, state, self._images, self._labels)
      jax.block_until_ready((params, state))
      return loss

    return run

  def gradients(self, variant: str) -> dict[str, np.ndarray]:
    del variant
    found = jax.jit(jax.grad(self._loss))(
      self._start(), self._images, self._labels
    )
    return timm_weights.state_dict(jax.device_get(found))


def main() -> None:
  folder, memory, checkout = sys.argv[1:4]
  sys.path.insert(0, checkout)
  models = importlib.import_module("vit_jax.models_mixer")
  if memory == "returned":
    runtime.keep_freed_memory = lambda: None
  runtime.quiet_libraries()
  runtime.start()
  contender = Authors(pathlib.Path(folder), models)
  hello = {
    "version": f"google-research/vision_transformer, jax {jax.__version__}",
    "platform": jax.default_backend(),
  }
  work, _ = peer_server.read(pathlib.Path(folder))
  peer_server.serve(hello, contender, work["batch"])


if __name__ == "__main__":
  main()
