r"""How much bias? A Mixer and a convolutional net on shuffled images.

  python -m benchmarks.bias [--epochs=4] [--rounds=3] [--examples=50000]
    [--data_dir=DIR] [--picture=runs/bias.png]

The paper's section 3.4 on CIFAR-10, prepared as in configs/cifar10.py, with
that recipe's small model and a residual net that costs no more. Both train on
the images as they are (`none`), with their patches and the pixels in each
patch shuffled by one fixed permutation (`patches`), and with all pixels
shuffled (`pixels`); once for each round, which is the seed of weights, batches
and permutation. Batches and optimizer (AdamW) are the same for both. The
picture has the accuracy on the test split after each epoch, as in figure 4.
"""

import pathlib
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import benchmarks
import input_pipeline
from configs import cifar10
from mixer import config as config_lib
from mixer import evaluate, files, optim, sharding, train_step
from mixer import model as model_lib

FLAGS = {
  "epochs": 4, "rounds": 3, "examples": 50_000, "data_dir": "",
  "picture": "runs/bias.png",
}  # fmt: skip
_LOOKS = {  # In the picture, of what is shuffled.
  "none": ("images as they are", "k", "-"),
  "patches": ("patches shuffled", "C0", "--"),
  "pixels": ("pixels shuffled", "C3", "-"),
}
_WIDTHS = (32, 64, 128)


class ConvNet(nn.Module):
  """A residual net of 3 x 3 convolutions: `[B, H, W, 3]` to logits `[B, K]`."""

  num_classes: int
  permute: str = ""
  permute_seed: int = 0
  patch_size: int = 4  # Of the permutation alone.
  dtype: Any = jnp.float32
  layout: str = ""  # These two as evaluation sets them for a Mixer.
  mesh: Any = None

  @nn.compact
  def __call__(self, images: Any, *, key: Any = None, pre_logits: bool = False):
    del key, pre_logits
    x = model_lib.permute(
      images, self.permute, self.patch_size, self.permute_seed
    )
    for width in _WIDTHS:
      x = nn.Conv(width, (3, 3), 2, use_bias=False)(x)
      y = nn.relu(nn.GroupNorm(8)(x))
      y = nn.Conv(width, (3, 3), use_bias=False)(y)
      y = nn.relu(nn.GroupNorm(8)(y))
      x += nn.Conv(width, (3, 3), use_bias=False)(y)
    x = nn.relu(nn.GroupNorm(8)(x)).mean((1, 2))
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(x)


def conv_macs(side: int) -> int:
  """Multiply-accumulates of `ConvNet` for one image, without its head."""
  total, before = 0, 3
  for width in _WIDTHS:
    side = -(-side // 2)
    total += side**2 * 9 * width * (before + 2 * width)
    before = width
  return total


def recipe(args: Any, seed: int, kind: str) -> config_lib.Config:
  """The config of a run: configs/cifar10.py's, with AdamW."""
  c = cifar10.get_config()
  c.seed = c.data.permute_seed = seed
  c.total = f"{args.epochs} epochs"
  c.data.data_dir = args.data_dir
  c.data.train_split = f"train[:{args.examples}]"
  c.data.permute = "" if kind == "none" else kind
  c.optimizer.update(name="adamw", learning_rate=3e-3)
  c.optimizer.args = {}
  return c


def train(
  module: Any, inputs: input_pipeline.Inputs
) -> tuple[Any, list[float]]:
  """The parameters at the end, and the accuracy after each epoch."""
  config, plan = inputs.config, inputs.plan
  classes, mesh = len(inputs.train_split.class_names), sharding.make_mesh()
  key = train_step.key_for(config.seed, train_step.Purpose.INIT)
  size = (1, *config_lib.image_size(config), 3)
  params = jax.jit(module.init)(key, jnp.zeros(size))["params"]
  optimizer = optim.make(config, plan)
  state, accuracies = optimizer.init(params), []
  inference = train_step.Inference(module, config.loss.name, classes, mesh)

  @jax.jit
  def update(params: Any, state: Any, step: Any, batch: Any) -> Any:
    losses, batch = train_step.losses_of(config, module, classes, step, batch)
    grads = jax.grad(lambda p: losses(p, batch, None).mean())(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  batches = input_pipeline.train_batches(inputs.train_split, config)
  epoch = len(inputs.train_split) / config.batch_size
  for step in range(plan.total):
    params, state = update(params, state, step, next(batches))
    if int((step + 1) / epoch) > int(step / epoch) or step + 1 == plan.total:
      test = input_pipeline.eval_batches(inputs.eval_split, config)
      found = evaluate.evaluate(inference, params, test)
      accuracies.append(found["accuracy"])
  return params, accuracies


def modules(config: config_lib.Config, classes: int) -> dict[str, Any]:
  """Both nets, shuffling as the config says."""
  shuffle = config.data.permute, config.data.permute_seed
  mixer = model_lib.from_config(config, classes).clone(layout="batch_major")
  return {"Mixer": mixer, "convolutions": ConvNet(classes, *shuffle)}


def measure(args: Any) -> benchmarks.Rows:
  """A row of each net and shuffle; draws the picture at the end."""
  benchmarks.start()
  curves: dict[tuple[str, str], list[list[float]]] = {}
  for name in ("Mixer", "convolutions"):
    for kind in _LOOKS:
      runs, seeds = curves.setdefault((name, kind), []), range(args.rounds)
      inputs: Any = None
      module: Any = None
      params: Any = None
      for seed in seeds:
        inputs = input_pipeline.open_inputs(recipe(args, seed, kind))
        classes = len(inputs.train_split.class_names)
        module = modules(inputs.config, classes)[name]
        params, accuracies = train(module, inputs)
        runs.append(accuracies)
      size = config_lib.image_size(inputs.config)
      macs = conv_macs(size[0])
      if name == "Mixer":
        macs = model_lib.forward_macs(module, size)[0]
      last = [100 * run[-1] for run in runs]
      plain = [100 * run[-1] for run in curves[name, "none"]]
      yield {
        "net": name,
        "shuffled": kind,
        "M parameters": sum(x.size for x in jax.tree.leaves(params)) / 1e6,
        "MMAC an image": macs / 1e6,
        "accuracy, %": last,
        "points lost": [a - b for a, b in zip(plain, last, strict=True)],
        "after each epoch": " ".join(
          f"{100 * x:.1f}" for x in np.mean(runs, axis=0)
        ),
      }
  _draw(pathlib.Path(args.picture), curves)


def _draw(path: pathlib.Path, curves: Any) -> None:
  """Mean accuracy after each epoch, and the range of all seeds."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(7, 3.2), layout="constrained")
  axes = dict(
    zip(
      ("Mixer", "convolutions"), figure.subplots(1, 2, sharey=True), strict=True
    )
  )
  epochs = range(1, 1 + len(next(iter(curves.values()))[0]))
  for (name, kind), runs in curves.items():
    percent = 100 * np.array(runs)
    label, color, style = _LOOKS[kind]
    look: Any = {"color": color, "linestyle": style, "label": label}
    axes[name].plot(epochs, percent.mean(0), **look)
    low, high = percent.min(0), percent.max(0)
    axes[name].fill_between(epochs, low, high, color=color, alpha=0.2)
  for name, axis in axes.items():
    axis.set(title=name, xlabel="epoch", xticks=epochs)
  axes["Mixer"].set_ylabel("accuracy on CIFAR-10's test split, %")
  axes["Mixer"].legend(frameon=False)
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.atomic_write(path) as f:
    figure.savefig(f, dpi=150, format="png")
  print(f"drawn: {path}", flush=True)


if __name__ == "__main__":
  sys.exit(benchmarks.main(__doc__, measure, FLAGS))
