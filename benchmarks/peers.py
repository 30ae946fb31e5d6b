"""Our forward pass and training step beside those of other codebases.

  python -m benchmarks.peers [--variants=S/32,S/16] [--batch=32] [--rounds=5]
    [--seconds=3] [--dtype=float32] [--authors=DIR]

The same weights, batch, loss, optimizer (AdamW) and number of threads, on the
same machine and in the same run, in turn: each contender is a process of its
own that waits, idle, while another is timed. First it is checked that they
compute the same: logits, and the losses of three updates.
  ours     what `train.py` jits; its batch is uint8, the others' is float
  timm     under PyTorch, eager and by torch.compile, in channels_last
  authors  the Flax model in a checkout of google-research/vision_transformer,
           where --authors names one (it wants einops too); float32 only
On CPUs malloc keeps what is freed, for all as for ours. timm comes with:
pip install -e ".[export]".
"""

import collections
import contextlib
import functools
import importlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax.training import train_state

import benchmarks
from benchmarks import step
from mixer import __version__, export_timm, optim, runtime, trained
from mixer import config as config_lib
from mixer import model as model_lib
from mixer.errors import UserError

FLAGS = benchmarks.MODELS | {"authors": ""}
RATE, DECAY = 1e-4, 0.1
# What each pass is checked by, and relative differences of rounding alone.
CHECKS = {
  "forward": ("logits", {"float32": 1e-4, "bfloat16": 3e-2}),
  "train": ("losses", {"float32": 1e-3, "bfloat16": 2e-1}),
}
_KEPT = []  # What a library defines is gone with it.


def work(
  variant: str, batch: int, dtype: str, settings: str = ""
) -> tuple[config_lib.Config, Any, np.ndarray, np.ndarray]:
  """That of `step` with an optimizer that all have, weights, images, labels.

  No weight is zero: each has a gradient and an effect. Ours scales its images
  in its time; the others' are float.
  """
  config = step.changed(step.recipe(variant, batch, dtype), settings)
  config.optimizer.update(learning_rate=RATE, weight_decay=DECAY, clip_norm=0.0)
  config.schedule.update(warmup="0 steps", decay="constant")
  found, rng = step.make_batch(config), np.random.default_rng(0)
  images = found["image"].astype(np.float32) / 127.5 - 1
  module = model_lib.plain(model_lib.from_config(config, step.CLASSES))
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]

  def weight(x: Any) -> np.ndarray:
    scale = np.prod(x.shape[:-1]) ** -0.5
    return rng.normal(0, scale, x.shape).astype(np.float32)

  return config, jax.tree.map(weight, shapes), images, found["label"]


def contender(
  version: str,
  platform: str,
  forward: Callable[[], Any],
  train: Callable[[], Any],
  wait: Callable[[Any], Any] = np.asarray,
) -> dict[str, Any]:
  """What a process is asked; of an update, the loss before it is given."""
  runs = {"forward": forward, "train": train}
  forward()  # torch.compile fails where there is no compiler.

  def check() -> dict[str, np.ndarray]:
    logits = np.asarray(wait(forward()), np.float32)
    losses = [float(wait(train())) for _ in range(3)]
    return {"logits": logits, "losses": np.array(losses)}

  return {
    "version": lambda: version,
    "platform": lambda: platform,
    "check": check,
    "seconds": lambda name, seconds: benchmarks.seconds_each(
      runs[name], seconds, wait
    ),
  }


def ours(*spec: Any) -> dict[str, Any]:
  """Our jitted passes."""
  platform = benchmarks.start()["platform"]
  config, params, *_ = work(*spec)
  (forward, _), (train, _) = step.passes(config, params).values()
  return contender(f"mixer {__version__}", platform, forward, train)


def authors(checkout: str, *spec: Any) -> dict[str, Any]:
  """The authors' model, trained by a plain jitted step and optax's AdamW."""
  platform = benchmarks.start()["platform"]
  sys.path.insert(0, checkout)
  models = importlib.import_module("vit_jax.models_mixer")
  config, params, images, labels = work(*spec)
  shape = model_lib.from_config(config, step.CLASSES)
  patches = collections.namedtuple("Patches", ["size"])
  model = models.MlpMixer(
    patches((shape.patch_size,) * 2),
    *(step.CLASSES, shape.num_blocks, shape.hidden_dim),
    *(shape.tokens_mlp_dim, shape.channels_mlp_dim),
  )
  images, labels = jax.device_put((images, labels))
  logits = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels
  adamw = optax.adamw(RATE, weight_decay=DECAY, mask=optim.decay_mask)
  state = train_state.TrainState.create(
    apply_fn=None, params=jax.device_put(params), tx=adamw
  )

  @functools.partial(jax.jit, donate_argnums=0)
  def updated(state: Any, images: Any, labels: Any) -> Any:
    def loss(params: Any) -> jax.Array:
      found = model.apply({"params": params}, images, train=True)
      return cross_entropy(found, labels).mean()

    found, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), found

  def forward() -> jax.Array:
    return logits(state.params, images)

  def train() -> jax.Array:
    nonlocal state
    state, found = updated(state, images, labels)
    return found

  version = f"google-research/vision_transformer, jax {jax.__version__}"
  return contender(version, platform, forward, train)


def name_operators(torch: Any) -> None:
  """Lets timm be imported beside a torchvision whose operators don't load.

  As one for CUDA's doesn't beside PyTorch for CPUs. No Mixer uses them, but
  without their names the import fails.
  """
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    version = importlib.metadata.version("torchvision")
    if not _KEPT and torch.version.cuda is None and "+" not in version:
      names = torch.library.Library("torchvision", "DEF")
      for name in ("nms", "qnms"):
        names.define(f"{name}(Tensor a) -> Tensor")
      _KEPT.append(names)


def timm(compiled: bool, *spec: Any) -> dict[str, Any]:
  """timm's MlpMixer under PyTorch."""
  runtime.keep_freed_memory()  # As ours does on CPUs.
  import torch  # pyright: ignore[reportMissingImports]

  name_operators(torch)
  import timm  # pyright: ignore[reportMissingImports]

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_num_threads(benchmarks.cores())
  torch.set_float32_matmul_precision("high")  # On GPUs TF32, as XLA's there.
  config, params, images, labels = work(*spec)
  named = trained.Trained(
    model_lib.plain(model_lib.from_config(config, step.CLASSES)),
    *(params, config_lib.image_size(config), 256, None, None),
    *("softmax", config.model.variant, config.model.variant),
  )
  model: Any = timm.models.mlp_mixer.MlpMixer(
    **export_timm.arguments(named), act_layer=timm.layers.GELUTanh
  )
  state = export_timm.state_dict(params).items()
  model.load_state_dict({k: torch.from_numpy(v) for k, v in state})
  # A photograph's channels beside each other: faster, or as fast.
  model = model.to(device, memory_format=torch.channels_last)
  x = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
  y = torch.from_numpy(labels).long().to(device)
  call = torch.compile(model) if compiled else model
  half = config.model.dtype == "bfloat16"
  autocast = torch.autocast(device, torch.bfloat16, enabled=half)
  kernels = [p for p in model.parameters() if p.ndim > 1]
  others = [p for p in model.parameters() if p.ndim <= 1]
  groups = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
  adamw = torch.optim.AdamW(groups, RATE, weight_decay=DECAY, fused=True)

  def forward() -> Any:
    with torch.inference_mode(), autocast:
      return call(x)

  def train() -> Any:
    adamw.zero_grad(set_to_none=True)
    with autocast:
      loss = torch.nn.functional.cross_entropy(call(x), y)
    loss.backward()
    adamw.step()
    return loss.detach()

  return contender(
    f"timm {timm.__version__}, torch {torch.__version__}",
    "gpu" if device == "cuda" else "cpu",
    *(forward, train, lambda x: x.float().cpu().numpy()),
  )


def measure(args: Any) -> benchmarks.Rows:
  """Rows of all variants, passes and peers, once all compute the same."""
  for variant in args.variants.split(","):
    spec = variant, args.batch, args.dtype
    work: dict[str, Any] = {"ours": (ours, *spec)}
    if args.authors:
      work["authors"] = authors, args.authors, *spec
    work |= {"timm": (timm, False, *spec), "timm compiled": (timm, True, *spec)}
    # Several processes share the device.
    with benchmarks.field(work, XLA_PYTHON_CLIENT_PREALLOCATE="false") as asks:
      if len(asks) == 1 or len({ask("platform") for ask in asks.values()}) > 1:
        raise UserError(
          "there is nothing to compare with on this device: install timm (pip "
          'install -e ".[export]") for it, or name a checkout by --authors=DIR;'
          " JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= puts all on the CPU."
        )
      yield from compare(asks, variant, args)


def compare(asks: Any, variant: str, args: Any) -> benchmarks.Rows:
  """Rows of a variant."""
  checks = {name: ask("check") for name, ask in asks.items()}
  for what, (kind, bounds) in CHECKS.items():
    mine, differs = checks["ours"][kind], {}
    for name, found in checks.items():
      off = float(np.abs(found[kind] - mine).max() / np.abs(mine).max())
      if not off <= bounds[args.dtype]:  # NaN is never.
        raise UserError(
          f"{name} doesn't compute what ours does: {kind} of {variant} differ "
          f"by {off:.1e} of the largest, more than rounding does."
        )
      differs[name] = f"{kind} {off:.0e}"
    times = benchmarks.in_turn(asks, args.rounds, "seconds", what, args.seconds)
    rates = {k: [args.batch / s for s in found] for k, found in times.items()}
    own = rates.pop("ours")
    for name, theirs in rates.items():
      yield {
        "model": variant,
        "pass": what,
        "ours, images/s": own,
        "other": name,
        "theirs": theirs,
        "ours/theirs": benchmarks.ratios(own, theirs),
        "relative difference": differs[name],
        "version": asks[name]("version"),
      }


if __name__ == "__main__":
  sys.exit(benchmarks.main(__doc__, measure, FLAGS))
