"""Our forward pass and training step beside those of other codebases.

  python -m benchmarks.peers [--variants=S/32,S/16] [--batch=32] [--rounds=5]
    [--seconds=3] [--dtype=float32] [--authors=DIR]

The same weights, batch, loss, optimizer (AdamW) and number of threads, on the
same machine and in the same run, in turn: each contender is a process of its
own that waits, idle, while another is timed. First it is checked that they
compute the same: logits, and the losses of three updates.
  ours     what `train.py` jits; its batch is uint8, the others' is float
  timm     under PyTorch, eager and by torch.compile
  authors  the Flax model in a checkout of google-research/vision_transformer,
           where --authors names one (it wants einops too); float32 only
On CPUs malloc keeps what is freed, for all as for ours. timm comes with:
pip install -e ".[export]".

Prints medians of the rounds as Markdown, and writes
benchmarks/results/peers_cpu.json, or peers_gpu.json.
"""

import collections
import contextlib
import functools
import importlib
import importlib.metadata
import statistics
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import benchmarks
from benchmarks import step
from mixer import __version__, export_timm, optim, trained, validation
from mixer import config as config_lib
from mixer import model as model_lib
from mixer.errors import UserError

RATE, DECAY = 1e-4, 0.1
OURS = ("ours", "")
# timm's, by name and setting; the fastest setting of a name is compared.
SETTINGS = (
  *(("timm", "eager"), ("timm", "eager+channels_last")),
  *(("timm compiled", "compile"), ("timm compiled", "compile+channels_last")),
)
UPDATES = 3
# What each pass is checked by, and relative differences of rounding alone.
CHECKS = {"forward": "logits", "train": "losses"}
_BOUNDS = {
  "float32": {"logits": 1e-4, "losses": 1e-3},
  "bfloat16": {"logits": 3e-2, "losses": 2e-1},
}
# What `runtime.keep_freed_memory` sets by mallopt, for any program.
_KEEPING = (
  "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:"
  f"glibc.malloc.trim_threshold={2**31 - 1}:glibc.malloc.top_pad={64 * 2**20}"
)


def make_params(config: Any) -> Any:
  """Weights without a zero: each has a gradient and an effect."""
  module = model_lib.plain(model_lib.from_config(config, step.CLASSES))
  like = np.zeros((1, *config_lib.image_size(config), 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), like)["params"]
  rng = np.random.default_rng(0)

  def weight(x: Any) -> np.ndarray:
    scale = np.prod(x.shape[:-1]) ** -0.5
    return rng.normal(0, scale, x.shape).astype(np.float32)

  return jax.tree.map(weight, shapes)


def functions(forward: benchmarks.Run, train: benchmarks.Run) -> dict[str, Any]:
  """What a contender is asked: `check`, and `seconds` of a pass.

  `forward` returns logits, and `train` the loss before the last update.
  """
  runs = {"forward": forward, "train": train}

  def check() -> dict[str, np.ndarray]:
    try:
      logits = np.asarray(forward(1), np.float32)
      losses = np.array([float(train(1)) for _ in range(UPDATES)])
      return {"logits": logits, "losses": losses}
    except Exception as e:  # torch.compile's, where it lacks a compiler.
      print(f"a contender is left out: {e}", file=sys.stderr)
      return {}

  def seconds(name: str, seconds: float) -> float:
    return benchmarks.seconds_each(runs[name], seconds)

  return {"check": check, "seconds": seconds}


def ours(config_json: Any, params: Any) -> Any:
  """Our jitted passes."""
  hello = benchmarks.start() | {"version": f"mixer {__version__}"}
  made = step.passes(config_lib.from_json(config_json, {}), params)
  return hello, functions(made["forward"][0], made["train"][0])


def authors(config_json: Any, params: Any, checkout: str) -> Any:
  """The authors' model, trained by a plain jitted step and optax's AdamW."""
  version = f"google-research/vision_transformer, jax {jax.__version__}"
  hello = benchmarks.start() | {"version": version}
  sys.path.insert(0, checkout)
  models = importlib.import_module("vit_jax.models_mixer")
  config = config_lib.from_json(config_json, {})
  shape = model_lib.from_config(config, step.CLASSES)
  patches = collections.namedtuple("Patches", ["size"])
  model = models.MlpMixer(
    patches=patches((shape.patch_size,) * 2),
    num_classes=step.CLASSES,
    **{name: getattr(shape, name) for name in step.SHAPE},
  )
  batch = step.make_batch(config)
  images, labels = jax.device_put((scaled(batch), batch["label"]))
  optimizer = optax.adamw(RATE, weight_decay=DECAY, mask=optim.decay_mask)

  def loss(params: Any, images: Any, labels: Any) -> jax.Array:
    logits = model.apply({"params": params}, images, train=True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()

  @functools.partial(jax.jit, donate_argnums=0)
  def updated(state: Any, images: Any, labels: Any) -> Any:
    params, moments = state
    found, grads = jax.value_and_grad(loss)(params, images, labels)
    updates, moments = optimizer.update(grads, moments, params)
    return (optax.apply_updates(params, updates), moments), found

  logits = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))
  params = jax.tree.map(jnp.array, params)
  held = [(params, optimizer.init(params))]

  def update() -> Any:
    held[0], found = updated(held[0], images, labels)
    return found

  forward = benchmarks.repeated(lambda: logits(held[0][0], images))
  return hello, functions(forward, benchmarks.repeated(update))


def scaled(batch: dict[str, np.ndarray]) -> np.ndarray:
  """Float images, as the others take them; ours scales in its time."""
  return batch["image"].astype(np.float32) / 127.5 - 1


_KEPT = []  # What a library defines is gone with it.


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


def timm(config_json: Any, params: Any, setting: str) -> Any:
  """timm's MlpMixer under PyTorch, in one of the settings."""
  import torch  # pyright: ignore[reportMissingImports]

  name_operators(torch)
  import timm  # pyright: ignore[reportMissingImports]

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_num_threads(benchmarks.cores())
  torch.set_float32_matmul_precision("high")  # On GPUs TF32, as XLA's there.
  config = config_lib.from_json(config_json, {})
  named = trained.Trained(
    model_lib.plain(model_lib.from_config(config, step.CLASSES)),
    *(params, config_lib.image_size(config), 256, None, None),
    *("softmax", config.model.variant, config.model.variant),
  )
  model: Any = timm.models.mlp_mixer.MlpMixer(
    **export_timm.arguments(named), act_layer=timm.layers.GELUTanh
  ).to(device)
  state = export_timm.state_dict(params).items()
  model.load_state_dict({k: torch.from_numpy(v) for k, v in state})
  batch = step.make_batch(config)
  pixels = np.ascontiguousarray(scaled(batch).transpose(0, 3, 1, 2))
  images = torch.from_numpy(pixels).to(device)
  labels = torch.from_numpy(batch["label"]).long().to(device)
  if "channels_last" in setting:
    model = model.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
  call = torch.compile(model) if setting.startswith("compile") else model
  half = config.model.dtype == "bfloat16"
  autocast = torch.autocast(device, torch.bfloat16, enabled=half)
  every = [*model.parameters()]
  groups = [
    {"params": [p for p in every if p.ndim > 1], "weight_decay": DECAY},
    {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, RATE, fused=True)

  def forward() -> Any:
    with torch.inference_mode(), autocast:
      return call(images)

  def train() -> Any:
    optimizer.zero_grad(set_to_none=True)
    with autocast:
      loss = torch.nn.functional.cross_entropy(call(images), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()

  def runs(one: Any) -> benchmarks.Run:
    return benchmarks.repeated(one, lambda x: x.float().cpu().numpy())

  version = f"timm {timm.__version__}, torch {torch.__version__}"
  kind = "gpu" if device == "cuda" else "cpu"
  hello = {"version": version, "platform": kind}
  return hello, functions(runs(forward), runs(train))


def peer_config(variant: str, batch: int, dtype: str) -> config_lib.Config:
  """That of `step`, with an optimizer that all have."""
  config = step.recipe(variant, batch, dtype)
  config.optimizer.update(learning_rate=RATE, weight_decay=DECAY, clip_norm=0.0)
  config.schedule.update(warmup="0 steps", decay="constant")
  validation.validate(config, 1)
  return config


def gather(config: Any, checkout: str) -> dict[Any, benchmarks.Process]:
  """All contenders that there are, by name and setting; ours is the first."""
  work = (config_lib.to_json(config), make_params(config))
  # Several processes share the device.
  shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  field: Any = {OURS: benchmarks.Process(ours, *work, **shared)}
  if checkout:
    other = benchmarks.Process(authors, *work, checkout, **shared)
    field["authors", ""] = other
  for key in SETTINGS:
    keeping = {"GLIBC_TUNABLES": _KEEPING}
    field[key] = benchmarks.Process(timm, *work, key[1], **keeping)
  field = {key: process for key, process in field.items() if process.hello}
  if len({p.hello["platform"] for p in field.values()}) > 1 or len(field) == 1:
    raise UserError(
      "there is nothing to compare with on this device: install timm (pip "
      'install -e ".[export]") for it, or name a checkout by --authors=DIR; '
      "JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= puts all on the CPU."
    )
  return field


def compare(field: Any, variant: str, args: Any) -> list[dict[str, Any]]:
  """Checks that all compute the same, times them, and prints rows."""
  rows, checked = [], {key: p.ask("check") for key, p in field.items()}
  checked = {key: found for key, found in checked.items() if found}
  for what, kind in CHECKS.items():
    mine, differs = checked[OURS][kind], {}
    for key, found in checked.items():
      off = float(np.abs(found[kind] - mine).max() / np.abs(mine).max())
      differs[key] = off
      if not off <= _BOUNDS[args.dtype][kind]:  # NaN is never.
        raise UserError(
          f"{key[0]} doesn't compute what ours does: {kind} of {variant} "
          f"differ by {off:.1e}, more than rounding does."
        )
    ask = {
      key: functools.partial(field[key].ask, "seconds", what, args.seconds)
      for key in checked
    }
    rates = {
      key: [args.batch / seconds for seconds in found]
      for key, found in benchmarks.in_turn(ask, args.rounds).items()
    }
    for name in dict.fromkeys(key[0] for key in checked if key != OURS):
      # The fastest of its settings.
      settings = [key for key in checked if key[0] == name]
      key = max(settings, key=lambda key: statistics.median(rates[key]))
      row = {"model": variant, "pass": what, "peer": name, "setting": key[1]}
      row |= {"ours": rates[OURS], "theirs": rates[key]}
      rows.append(row | {"differs": differs[key]})
      benchmarks.row(
        {
          "model": variant,
          "pass": what,
          "ours, images/s": benchmarks.number(rates[OURS]),
          "other": name,
          "its setting": key[1] or "-",
          "theirs": benchmarks.number(rates[key]),
          "ours/theirs (spread)": benchmarks.ratio(rates[OURS], rates[key]),
          "relative difference": f"{kind} {differs[key]:.0e}",
        }
      )
  return rows


def body(args: Any) -> None:
  """Measures, prints and writes."""
  # This process makes weights and waits; the device is the contenders'.
  jax.config.update("jax_platforms", "cpu")
  rows, hello = [], {}
  for variant in args.variants:
    config = peer_config(variant, args.batch, args.dtype)
    field = gather(config, args.authors)
    hello = {name: process.hello for (name, _), process in field.items()}
    rows += compare(field, variant, args)
    for process in field.values():
      process.close()
  versions = {name: h["version"] for name, h in hello.items()}
  record = {"batch": args.batch, "dtype": args.dtype, "versions": versions}
  benchmarks.write("peers", args, hello["ours"], record | {"rows": rows})


def main() -> int:
  """Runs the command line."""
  return benchmarks.main(__doc__, body, authors="", **benchmarks.MODELS)


if __name__ == "__main__":
  sys.exit(main())
