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

import benchmarks
import input_pipeline
from configs import cifar10
from mixer import config as config_lib
from mixer import evaluate, sharding, train_step
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
_NETS = ("Mixer", "convolutions")
_WIDTHS = (32, 64, 128)


class ConvNet(nn.Module):
  """A residual net of 3 x 3 convolutions: `[B, H, W, 3]` to logits `[B, K]`."""

  num_classes: int
  permute: str = ""
  permute_seed: int = 0
  patch_size: int = 4  # Of the permutation alone.
  dtype: Any = jnp.float32
  layout: str = ""  # These two as `model_lib.placed` sets a Mixer's.
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


def macs(net: Any, side: int) -> int:
  """Multiply-accumulates for one image, of `ConvNet` without its head."""
  if not isinstance(net, ConvNet):
    return model_lib.forward_macs(net, side)[0]
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


def train(name: str, config: config_lib.Config) -> tuple[Any, list[float]]:
  """The trainer of a net, and its accuracy after each epoch."""
  inputs, mesh = input_pipeline.open_inputs(config), sharding.make_mesh()
  config, plan = inputs.config, inputs.plan
  classes, net = len(inputs.train_split.class_names), None
  if name == "convolutions":
    net = ConvNet(classes, config.data.permute, config.data.permute_seed)
  trainer = train_step.Trainer(config, plan, classes, mesh, net)
  state, accuracies = trainer.init(), []
  batches = input_pipeline.train_batches(inputs.train_split, config)
  epoch = len(inputs.train_split) / config.batch_size
  for step in range(plan.total):
    batch = sharding.put_batch(mesh, next(batches))
    state, _ = trainer.train_step(state, batch)
    if int((step + 1) / epoch) > int(step / epoch) or step + 1 == plan.total:
      test = input_pipeline.eval_batches(inputs.eval_split, config)
      found = evaluate.evaluate(trainer.inference, state.params, test)
      accuracies.append(found["accuracy"])
  return trainer, accuracies


def measure(args: Any) -> benchmarks.Rows:
  """A row of each net and shuffle; draws the picture at the end."""
  benchmarks.start()
  curves: dict[tuple[str, str], list[list[float]]] = {}
  for name in _NETS:
    for kind in _LOOKS:
      configs = [recipe(args, seed, kind) for seed in range(args.rounds)]
      trainers, runs = zip(*(train(name, c) for c in configs), strict=True)
      curves[name, kind] = [*runs]
      params = jax.tree.leaves(trainers[0].abstract.params)
      last = [100 * run[-1] for run in runs]
      plain = [100 * run[-1] for run in curves[name, "none"]]
      yield {
        "net": name,
        "shuffled": kind,
        "M parameters": sum(x.size for x in params) / 1e6,
        "MMAC an image": macs(trainers[0].model, configs[0].image_size) / 1e6,
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
  panels = figure.subplots(1, 2, sharey=True)
  axes = dict(zip(_NETS, panels, strict=True))
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
  benchmarks.save(path, figure)


if __name__ == "__main__":
  sys.exit(benchmarks.main(__doc__, measure, FLAGS))
