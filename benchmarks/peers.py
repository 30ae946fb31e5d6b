"""Our forward pass and training step beside those of other codebases.

  python -m benchmarks.peers [--variants=S/32,S/16] [--batch=32] [--rounds=5]
    [--dtype=float32] [--authors=DIR]

The same weights, batch, loss, optimizer (AdamW) and number of threads, on the
same machine and in the same run, in turn: each contender is a process of its
own that waits, idle, while another is timed. First it is checked that they
compute the same: logits, all gradients, and the losses of three updates.
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
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import benchmarks
from benchmarks import step
from mixer import (
  __version__,
  durations,
  export_timm,
  initial,
  optim,
  sharding,
  train_step,
  trained,
  validation,
  weights,
)
from mixer import config as config_lib
from mixer import model as model_lib
from mixer.errors import UserError

RATE, DECAY = 1e-4, 0.1
UPDATES = 3
# Of timm; the fastest of each kind is compared.
SETTINGS = {
  "timm": ("eager", "eager+channels_last"),
  "timm compiled": ("compile", "compile+channels_last"),
}
# What each pass is checked by.
CHECKS = {"forward": ("logits",), "train": ("losses", "gradients")}
# Relative differences that are rounding alone, by dtype: of logits, and of
# gradients and losses.
_BOUNDS = {"float32": (1e-4, 1e-3), "bfloat16": (3e-2, 2e-1)}
# Of the largest gradient: below it one counts as zero.
_ZERO = 1e-3
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

  def weight(name: str, x: Any) -> np.ndarray:
    scale, start = 0.1, float(name.endswith("scale"))
    if name.endswith("kernel"):
      scale = np.prod(x.shape[:-1]) ** -0.5
    return rng.normal(start, scale, x.shape).astype(np.float32)

  flat = weights.flatten(shapes)
  return weights.unflatten({k: weight(k, v) for k, v in flat.items()})


class Contender:
  """Does passes; a subclass has `hello`, `run(name, n)` and `gradients`."""

  hello: dict[str, Any]
  # (a pass, how often) -> logits, or the loss before the last update.
  run: Callable[[str, int], Any]
  # By timm's names, at the first weights.
  gradients: Callable[[], dict[str, np.ndarray]]

  def check(self) -> dict[str, np.ndarray]:
    """`gradient/NAME`, `logits`, `losses` of the first updates."""
    found = {f"gradient/{k}": v for k, v in self.gradients().items()}
    found["logits"] = np.asarray(self.run("forward", 1), np.float32)
    losses = [float(self.run("train", 1)) for _ in range(UPDATES)]
    return found | {"losses": np.array(losses)}

  def seconds(self, name: str, seconds: float) -> float:
    """Of a pass."""
    return benchmarks.seconds_each(functools.partial(self.run, name), seconds)


class JaxContender(benchmarks.OnJax, Contender):
  """A subclass has `state`, `forward(params)`, `update(state)`, `loss`."""

  state: train_step.TrainState
  forward: Callable[[Any], jax.Array]
  update: Callable[[Any], tuple[Any, jax.Array]]
  loss: Callable[[Any], jax.Array]

  def run(self, name: str, n: int) -> Any:
    result: Any = None
    for _ in range(n):
      if name == "train":
        self.state, result = self.update(self.state)
      else:
        result = self.forward(self.state.params)
    jax.block_until_ready((self.state, result))
    return result

  def gradients(self) -> dict[str, np.ndarray]:
    found = jax.jit(jax.grad(self.loss))(self.state.params)
    return export_timm.state_dict(jax.device_get(found))


class Ours(JaxContender):
  """Our jitted passes."""

  def __init__(self, config_json: Any, params: Any):
    super().__init__()
    self.hello["version"] = f"mixer {__version__}"
    config = config_lib.from_json(config_json, {})
    mesh, plan = sharding.make_mesh(), durations.plan(config, 1)
    trainer = train_step.Trainer(config, plan, step.CLASSES, mesh)
    whole = sharding.put_batch(mesh, step.make_batch(config))
    masked = {k: whole[k] for k in ("image", "mask")}
    batch = {k: whole[k] for k in ("image", "label")}
    losses, taken = train_step.losses_of(
      config, trainer.model, step.CLASSES, 0, batch
    )
    self.state = initial.Origin("", params).place(trainer.init())
    self.forward = lambda p: trainer.inference.logits(p, masked)[0]
    self.loss = lambda p: losses(p, taken, None).mean()

    def update(state: Any) -> Any:
      state, metrics = trainer.train_step(state, batch)
      return state, metrics["loss"]

    self.update = update


class Authors(JaxContender):
  """The authors' model, trained by a plain jitted step and optax's AdamW."""

  def __init__(self, config_json: Any, params: Any, checkout: str):
    super().__init__()
    version = f"google-research/vision_transformer, jax {jax.__version__}"
    self.hello["version"] = version
    sys.path.insert(0, checkout)
    models = importlib.import_module("vit_jax.models_mixer")
    config = config_lib.from_json(config_json, {})
    shape = model_lib.from_config(config, step.CLASSES)
    names = ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")
    patches = collections.namedtuple("Patches", ["size"])
    model = models.MlpMixer(
      patches=patches((shape.patch_size,) * 2),
      num_classes=step.CLASSES,
      **{name: getattr(shape, name) for name in names},
    )
    batch = step.make_batch(config)
    images = jax.device_put(scaled(batch))
    labels = jax.device_put(batch["label"])

    def loss(params: Any, images: Any, labels: Any) -> jax.Array:
      logits = model.apply({"params": params}, images, train=True)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return losses.mean()

    optimizer = optax.adamw(RATE, weight_decay=DECAY, mask=optim.decay_mask)

    def update(state: Any, images: Any, labels: Any) -> Any:
      found, grads = jax.value_and_grad(loss)(state.params, images, labels)
      updates, moments = optimizer.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      return state.replace(params=params, opt_state=moments), found

    jitted = jax.jit(update, donate_argnums=0)
    forward = jax.jit(lambda p, x: model.apply({"params": p}, x, train=False))
    params = jax.tree.map(lambda x: jax.device_put(np.array(x)), params)
    self.state = train_step.TrainState(
      jnp.int32(0), params, optimizer.init(params), None
    )
    self.forward = lambda params: forward(params, images)
    self.update = lambda state: jitted(state, images, labels)
    self.loss = lambda params: loss(params, images, labels)


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


class Timm(Contender):
  """timm's MlpMixer under PyTorch, in one of the settings."""

  def __init__(self, config_json: Any, params: Any, setting: str):
    import torch  # pyright: ignore[reportMissingImports]

    name_operators(torch)
    import timm  # pyright: ignore[reportMissingImports]

    self._torch, device = torch, "cpu"
    torch.set_num_threads(benchmarks.cores())
    if torch.cuda.is_available():
      device = "cuda"
      torch.set_float32_matmul_precision("high")  # As XLA's there: TF32.
    self.hello = {
      "version": f"timm {timm.__version__}, torch {torch.__version__}",
      "platform": "gpu" if device == "cuda" else "cpu",
    }
    config = config_lib.from_json(config_json, {})
    named = trained.Trained(
      model_lib.plain(model_lib.from_config(config, step.CLASSES)),
      *(params, config_lib.image_size(config), 256, None, None),
      *("softmax", config.model.variant, config.model.variant),
    )
    model = timm.models.mlp_mixer.MlpMixer(
      **export_timm.arguments(named), act_layer=timm.layers.GELUTanh
    )
    state = export_timm.state_dict(params).items()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state})
    batch = step.make_batch(config)
    images = np.ascontiguousarray(scaled(batch).transpose(0, 3, 1, 2))
    self._images = torch.from_numpy(images).to(device)
    self._labels = torch.from_numpy(batch["label"]).long().to(device)
    self._model = model.to(device)
    if "channels_last" in setting:
      form: Any = {"memory_format": torch.channels_last}
      self._model = self._model.to(**form)
      self._images = self._images.contiguous(**form)
    compiled = setting.startswith("compile")
    self._call = torch.compile(self._model) if compiled else self._model
    half = config.model.dtype == "bfloat16"
    self._autocast = torch.autocast(device, torch.bfloat16, enabled=half)
    every = [*self._model.parameters()]
    groups = [
      {"params": [p for p in every if p.ndim > 1], "weight_decay": DECAY},
      {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    self._optimizer = torch.optim.AdamW(groups, RATE, fused=True)

  def check(self) -> dict[str, np.ndarray]:
    try:
      return super().check()
    except Exception as e:  # torch.compile's, where it lacks a compiler.
      print(f"timm is left out of a setting: {e}", file=sys.stderr)
      return {}

  def _backward(self) -> Any:
    with self._autocast:
      logits = self._call(self._images)
      loss = self._torch.nn.functional.cross_entropy(logits, self._labels)
    loss.backward()
    return loss.detach()

  def run(self, name: str, n: int) -> Any:
    result: Any = None
    if name == "train":
      for _ in range(n):
        self._optimizer.zero_grad(set_to_none=True)
        result = self._backward()
        self._optimizer.step()
    else:
      with self._torch.inference_mode(), self._autocast:
        for _ in range(n):
          result = self._call(self._images)
    return result.float().cpu().numpy()  # Waits.

  def gradients(self) -> dict[str, np.ndarray]:
    self._backward()
    named = self._model.named_parameters()
    grads: dict[str, Any] = {k: p.grad for k, p in named}
    return {k: grad.float().cpu().numpy() for k, grad in grads.items()}


def differences(
  ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> dict[str, float]:
  """The largest difference over the largest value of what `check` returns.

  `gradients` is the worst parameter's. Some are zero but for rounding (what is
  added to all channels of a token, LayerNorm takes away): they are measured by
  the largest of all.
  """
  assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
  found: dict[str, float] = {}
  gradients = [v for k, v in ours.items() if k.startswith("gradient/")]
  zero = _ZERO * max(float(np.abs(v).max()) for v in gradients)
  for name, value in ours.items():
    kind = "gradients" if name.startswith("gradient/") else name
    scale = float(np.abs(value).max())
    if kind == "gradients":
      scale = max(scale, zero)
    off = float(np.abs(theirs[name] - value).max()) / scale
    # NaN is never within a bound.
    found[kind] = float(np.maximum(found.get(kind, 0.0), off))
  return found


# A contender's name and its setting.
Field = dict[tuple[str, str], benchmarks.Process]
OURS = ("ours", "")


def gather(config: Any, authors: str | None) -> Field:
  """All contenders that there are, on one kind of device."""
  work = (config_lib.to_json(config), make_params(config))
  # Several processes share the device.
  shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  field: Field = {OURS: benchmarks.Process(Ours, *work, **shared)}
  if authors:
    other = benchmarks.Process(Authors, *work, authors, **shared)
    field["authors", ""] = other
  for name, settings in SETTINGS.items():
    for setting in settings:
      timm = benchmarks.Process(Timm, *work, setting, GLIBC_TUNABLES=_KEEPING)
      field[name, setting] = timm
  field = {key: process for key, process in field.items() if process.hello}
  if len(field) == 1:
    raise UserError(
      "there is nothing to compare with: install timm (pip install -e "
      '".[export]"), or name a checkout by --authors=DIR.'
    )
  if len({p.hello["platform"] for p in field.values()}) > 1:
    raise UserError(
      "the contenders run on different devices: install the build of each "
      "for the same, or set JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= for all."
    )
  return field


def check(field: Field, variant: str, dtype: str) -> dict[Any, Any]:
  """What contenders differ by from ours, if that is rounding alone."""
  ours, off = field[OURS].ask("check"), {}
  for key, process in field.items():
    if not (theirs := process.ask("check")) or key == OURS:
      continue
    off[key] = differences(ours, theirs)
    for kind, value in off[key].items():
      bound = _BOUNDS[dtype][kind != "logits"]
      if not value <= bound:
        raise UserError(
          f"{key[0]} doesn't compute what ours does: {kind} of {variant} "
          f"differ by {value:.1e}, where rounding makes {bound:.0e} at most."
        )
  return off


def compare(field: Field, variant: str, args: Any) -> list[dict[str, Any]]:
  """Checks and times one model; prints its rows."""
  rows, off = [], check(field, variant, args.dtype)
  for what, kinds in CHECKS.items():
    # The fastest setting of each.
    tried = {
      key: field[key].ask("seconds", what, args.seconds / 2) for key in off
    }
    fastest = {
      n: min((tried[k], k) for k in off if k[0] == n)[1] for n, _ in off
    }
    rates = {key: [] for key in (OURS, *fastest.values())}
    for _ in range(args.rounds):
      for key, found in rates.items():
        seconds = field[key].ask("seconds", what, args.seconds)
        found.append(args.batch / seconds)
    mine = rates.pop(OURS)
    for (name, setting), theirs in rates.items():
      differs = {kind: off[name, setting][kind] for kind in kinds}
      row = {"model": variant, "pass": what, "peer": name, "setting": setting}
      rows.append(row | {"ours": mine, "theirs": theirs, "differs": differs})
      ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
      benchmarks.row(
        *(variant, what, benchmarks.number(statistics.median(mine)), name),
        *(setting or "-", benchmarks.number(statistics.median(theirs))),
        f"{statistics.median(ratios):.2f} ({benchmarks.spread(ratios)})",
        ", ".join(f"{k} {v:.0e}" for k, v in differs.items()),
      )
  return rows


def peer_config(variant: str, batch: int, dtype: str) -> config_lib.Config:
  """That of `step`, with an optimizer that all have."""
  config = step.recipe(variant, batch, dtype)
  config.optimizer.update(learning_rate=RATE, weight_decay=DECAY, clip_norm=0.0)
  config.schedule.update(warmup="0 steps", decay="constant")
  validation.validate(config, 1)
  return config


def body(args: Any) -> None:
  """Measures, prints and writes."""
  # This process makes weights and waits; the device is the contenders'.
  jax.config.update("jax_platforms", "cpu")
  benchmarks.head(
    *("model", "pass", "ours, images/s", "other", "its setting"),
    *("theirs", "ours/theirs (spread)", "relative difference"),
  )
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
  shared = ("variants", "batch", "dtype", "seconds")
  parser = benchmarks.parser("peers", __doc__, *shared)
  parser.add_argument("--authors")
  return benchmarks.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
