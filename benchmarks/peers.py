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
import importlib
import importlib.metadata
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
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
  runtime,
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


def make_work(config: Any, num_classes: int) -> dict[str, Any]:
  """What contenders do: `config`, weights for ours and for timm, a batch."""
  module = model_lib.plain(model_lib.from_config(config, num_classes))
  height, width = config_lib.image_size(config)
  like = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
  shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), like)
  rng = np.random.default_rng(0)

  def weight(name: str, x: Any) -> np.ndarray:
    # No zero anywhere, so that each parameter has a gradient and an effect.
    if name.endswith("kernel"):
      scale = np.prod(x.shape[:-1]) ** -0.5
      return rng.normal(0, scale, x.shape).astype(np.float32)
    start = 1.0 if name.endswith("scale") else 0.0
    return rng.normal(start, 0.1, x.shape).astype(np.float32)

  flat = {k: weight(k, v) for k, v in weights.flatten(shapes["params"]).items()}
  params = weights.unflatten(flat)
  model = trained.Trained(
    *(module, params, (height, width), 256, None, None),
    *("softmax", config.model.variant, config.model.variant),
  )
  batch = step.make_batch(config, num_classes)
  return {
    **{"config": config_lib.to_json(config), "num_classes": num_classes},
    **{"batch": batch, "params": params},
    # The others are given float images; ours scales in its time.
    "scaled": batch["image"].astype(np.float32) / 127.5 - 1,
    "timm": export_timm.arguments(model),
    "timm_weights": export_timm.state_dict(params),
  }


class Contender:
  """Measures passes in one or several settings.

  A subclass has `hello` (version, platform), `batch` (examples in one),
  `forward(setting)` and `train(setting)`, which make what runs a pass (its
  results are logits, and losses before an update), and `gradients(setting)`, of
  the loss at the first weights, by timm's names.
  """

  hello: dict[str, Any]
  batch: int
  forward: Callable[[str], benchmarks.Run]
  train: Callable[[str], benchmarks.Run]
  gradients: Callable[[str], dict[str, np.ndarray]]
  _ready: dict[tuple[str, str], benchmarks.Run]

  def check(self, name: str, setting: str) -> dict[str, np.ndarray]:
    """`logits`; or `losses` of the first updates and `gradient/NAME`."""
    if name == "forward":
      return {"logits": np.asarray(self.forward(setting)(1), np.float32)}
    run = self.train(setting)
    losses = np.array([float(run(1)) for _ in range(UPDATES)])
    gradients = self.gradients(setting).items()
    return {"losses": losses} | {
      f"gradient/{k}": np.asarray(v) for k, v in gradients
    }

  def rate(self, name: str, setting: str, seconds: float) -> float:
    """Images a second, the median of some seconds."""
    self._ready = getattr(self, "_ready", {})
    if (name, setting) not in self._ready:
      make = self.train if name == "train" else self.forward
      self._ready[name, setting] = make(setting)
      self._ready[name, setting](2)  # Compiles, and fills caches.
    run = self._ready[name, setting]
    return self.batch / benchmarks.seconds_each(run, seconds)


def repeated(function: Callable[[Any], tuple[Any, Any]], state: Any) -> Any:
  """What does `state, result = function(state)` n times."""

  def run(n: int) -> Any:
    nonlocal state
    result = None
    for _ in range(n):
      state, result = function(state)
    jax.block_until_ready((state, result))
    return result

  return run


class Ours(Contender):
  """Our jitted passes."""

  def __init__(self, work: dict[str, Any]):
    runtime.start()
    config = config_lib.from_json(work["config"], {})
    mesh, plan = sharding.make_mesh(), durations.plan(config, 1)
    self._trainer = train_step.Trainer(config, plan, work["num_classes"], mesh)
    self._config, self._origin = config, initial.Origin("", work["params"])
    whole = sharding.put_batch(mesh, work["batch"])
    self._batch = {k: whole[k] for k in ("image", "label")}
    self._masked = {k: whole[k] for k in ("image", "mask")}
    self.batch = config.batch_size
    self.hello = runtime.environment() | {"host": ""}
    self.hello["version"] = f"mixer {__version__}"

  def _start(self) -> train_step.TrainState:
    return self._origin.place(self._trainer.init())

  def forward(self, setting: str) -> benchmarks.Run:
    logits = self._trainer.inference.logits
    return repeated(
      lambda params: (params, logits(params, self._masked)[0]),
      self._start().params,
    )

  def train(self, setting: str) -> benchmarks.Run:
    def update(state: train_step.TrainState) -> Any:
      state, metrics = self._trainer.train_step(state, self._batch)
      return state, metrics["loss"]

    return repeated(update, self._start())

  def gradients(self, setting: str) -> dict[str, np.ndarray]:
    trainer = self._trainer
    losses, batch = train_step.losses_of(
      self._config, trainer.model, trainer.num_classes, 0, self._batch
    )
    gradient = jax.jit(jax.grad(lambda p: losses(p, batch, None).mean()))
    return export_timm.state_dict(
      jax.device_get(gradient(self._start().params))
    )


class Authors(Contender):
  """The authors' model, trained by a plain jitted step and optax's AdamW."""

  def __init__(self, work: dict[str, Any], checkout: str):
    runtime.start()
    sys.path.insert(0, checkout)
    models = importlib.import_module("vit_jax.models_mixer")
    config = config_lib.from_json(work["config"], {})
    shape = model_lib.from_config(config, work["num_classes"])
    names = ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")
    patches = collections.namedtuple("Patches", ["size"])
    self._model = models.MlpMixer(
      patches=patches((shape.patch_size,) * 2),
      num_classes=work["num_classes"],
      **{name: getattr(shape, name) for name in names},
    )
    self._params, self.batch = work["params"], config.batch_size
    self._images = jax.device_put(work["scaled"])
    self._labels = jax.device_put(work["batch"]["label"])
    self.hello = {
      "version": f"google-research/vision_transformer, jax {jax.__version__}",
      "platform": jax.default_backend(),
    }

  def _loss(self, params: Any, images: jax.Array, labels: jax.Array) -> Any:
    logits = self._model.apply({"params": params}, images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, labels
    ).mean()

  def forward(self, setting: str) -> benchmarks.Run:
    call = jax.jit(
      lambda p, x: self._model.apply({"params": p}, x, train=False)
    )
    params = jax.device_put(self._params)
    return repeated(lambda _: (None, call(params, self._images)), None)

  def train(self, setting: str) -> benchmarks.Run:
    optimizer = optax.adamw(RATE, weight_decay=DECAY, mask=optim.decay_mask)

    def update(state: Any, images: jax.Array, labels: jax.Array) -> Any:
      params, moments = state
      loss, grads = jax.value_and_grad(self._loss)(params, images, labels)
      updates, moments = optimizer.update(grads, moments, params)
      return (optax.apply_updates(params, updates), moments), loss

    jitted = jax.jit(update, donate_argnums=0)
    params = jax.tree.map(lambda x: jax.device_put(np.array(x)), self._params)
    return repeated(
      lambda state: jitted(state, self._images, self._labels),
      (params, optimizer.init(params)),
    )

  def gradients(self, setting: str) -> dict[str, np.ndarray]:
    found = jax.jit(jax.grad(self._loss))(
      self._params, self._images, self._labels
    )
    return export_timm.state_dict(jax.device_get(found))


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
  """timm's MlpMixer under PyTorch, in all settings from the same weights."""

  def __init__(self, work: dict[str, Any]):
    import torch  # pyright: ignore[reportMissingImports]

    name_operators(torch)
    import timm  # pyright: ignore[reportMissingImports]

    self._torch, self._timm = torch, timm
    self._work, self._device = work, "cpu"
    torch.set_num_threads(benchmarks.cores())
    if torch.cuda.is_available():
      self._device = "cuda"
      torch.set_float32_matmul_precision("high")  # As XLA's there: TF32.
    images = np.ascontiguousarray(work["scaled"].transpose(0, 3, 1, 2))
    self._images = torch.from_numpy(images).to(self._device)
    labels = torch.from_numpy(work["batch"]["label"])
    self._labels, self.batch = labels.long().to(self._device), len(images)
    half = work["config"]["model"]["dtype"] == "bfloat16"
    self._autocast = torch.autocast(self._device, torch.bfloat16, enabled=half)
    self.hello = {
      "version": f"timm {timm.__version__}, torch {torch.__version__}",
      "platform": "gpu" if self._device == "cuda" else "cpu",
    }

  def _made(self, setting: str) -> tuple[Any, Any, Any]:
    """The module, what is called in its place, and the images as it likes."""
    model = self._timm.models.mlp_mixer.MlpMixer(
      **self._work["timm"], act_layer=self._timm.layers.GELUTanh
    )
    state = self._work["timm_weights"].items()
    model.load_state_dict({k: self._torch.from_numpy(v) for k, v in state})
    model, images = model.to(self._device), self._images
    if "channels_last" in setting:
      form = {"memory_format": self._torch.channels_last}
      model, images = model.to(**form), images.contiguous(**form)
    compiled = setting.startswith("compile")
    return model, self._torch.compile(model) if compiled else model, images

  def _wait(self) -> None:
    if self._device == "cuda":
      self._torch.cuda.synchronize()

  def rate(self, name: str, setting: str, seconds: float) -> float:
    try:
      return super().rate(name, setting, seconds)
    except Exception as e:  # torch.compile's, where it lacks a compiler.
      print(f"timm, {setting}, is left out: {e}", file=sys.stderr)
      return 0.0

  def forward(self, setting: str) -> benchmarks.Run:
    model, call, images = self._made(setting)
    model.eval()

    def run(n: int) -> Any:
      logits = images
      with self._torch.inference_mode(), self._autocast:
        for _ in range(n):
          logits = call(images)
      self._wait()
      return logits.float().cpu().numpy()

    return run

  def _loss(self, call: Any, images: Any) -> Any:
    with self._autocast:
      logits = call(images)
      return self._torch.nn.functional.cross_entropy(logits, self._labels)

  def train(self, setting: str) -> benchmarks.Run:
    model, call, images = self._made(setting)
    every = [*model.parameters()]
    groups = [
      {"params": [p for p in every if p.ndim > 1], "weight_decay": DECAY},
      {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = self._torch.optim.AdamW(groups, RATE, fused=True)

    def run(n: int) -> float:
      loss = self._labels
      for _ in range(n):
        optimizer.zero_grad(set_to_none=True)
        loss = self._loss(call, images)
        loss.backward()
        optimizer.step()
      self._wait()
      return float(loss.detach())

    return run

  def gradients(self, setting: str) -> dict[str, np.ndarray]:
    model, call, images = self._made(setting)
    self._loss(call, images).backward()
    return {
      k: p.grad.float().cpu().numpy() for k, p in model.named_parameters()
    }


def differences(
  ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> dict[str, float]:
  """The largest difference of each array over its largest value.

  Some gradients are zero but for rounding (what is added to all channels of a
  token, LayerNorm takes away): they are measured by the largest of all.

  Returns:
    `logits`; or `losses`, and `gradients`: the worst parameter's.
  """
  assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
  found: dict[str, float] = {}
  gradients = [v for k, v in ours.items() if k.startswith("gradient/")]
  largest = max((float(np.abs(v).max()) for v in gradients), default=0.0)
  for name, value in ours.items():
    kind = "gradients" if name.startswith("gradient/") else name
    scale = float(np.abs(value).max())
    if kind == "gradients":
      scale = max(scale, _ZERO * largest)
    off = float(np.abs(theirs[name] - value).max()) / scale
    # NaN is never within a bound.
    found[kind] = float(np.maximum(found.get(kind, 0.0), off))
  return found


def compare(
  field: dict[str, benchmarks.Process], variant: str, args: Any
) -> list[dict[str, Any]]:
  """Checks and times one model; prints its rows.

  Raises:
    UserError: a contender computes something else.
  """
  rows, ours = [], field["ours"]
  for what in ("forward", "train"):
    contenders = {"ours": (ours, "")}
    if "authors" in field:
      contenders["authors"] = (field["authors"], "")
    for name, settings in SETTINGS.items() if "timm" in field else ():
      rates = [
        field["timm"].ask("rate", what, s, args.seconds / 2) for s in settings
      ]
      if any(rates):
        contenders[name] = field["timm"], settings[int(np.argmax(rates))]
    mine, off = ours.ask("check", what, ""), {}
    for name, (process, setting) in contenders.items():
      off[name] = differences(mine, process.ask("check", what, setting))
      for kind, value in off[name].items():
        bound = _BOUNDS[args.dtype][kind != "logits"]
        if not value <= bound:
          raise UserError(
            f"{name} doesn't compute what ours does: {kind} of {variant} "
            f"differ by {value:.1e}, where rounding makes {bound:.0e} at most."
          )
    rates = {name: [] for name in contenders}
    for i in range(args.rounds + 1):
      for name, (process, setting) in contenders.items():
        # The first turn warms all up.
        rate = process.ask("rate", what, setting, args.seconds * bool(i))
        rates[name] += [rate] * bool(i)
    mine = rates.pop("ours")
    for name, theirs in rates.items():
      ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
      setting = contenders[name][1]
      row = {"model": variant, "pass": what, "peer": name, "setting": setting}
      rows.append(row | {"ours": mine, "theirs": theirs, "differs": off[name]})
      benchmarks.row(
        *(variant, what, benchmarks.number(statistics.median(mine)), name),
        *(setting or "-", benchmarks.number(statistics.median(theirs))),
        f"{statistics.median(ratios):.2f} ({benchmarks.spread(ratios)})",
        ", ".join(f"{k} {v:.0e}" for k, v in off[name].items()),
      )
  return rows


def body(args: Any) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: no such model or checkout, nothing to compare with, or
      contenders that don't compute the same.
  """
  # This process makes weights and waits; the device is the contenders'.
  jax.config.update("jax_platforms", "cpu")
  benchmarks.head(
    *("model", "pass", "ours, images/s", "other", "its setting"),
    *("theirs", "ours/theirs (spread)", "relative difference"),
  )
  rows, hello = [], {}
  for variant in args.variants:
    config = step.recipe(variant, args.batch, args.dtype)
    config.optimizer.update(
      learning_rate=RATE, weight_decay=DECAY, clip_norm=0.0
    )
    config.schedule.update(warmup="0 steps", decay="constant")
    validation.validate(config, 1)
    work = make_work(config, step.CLASSES)
    # Several processes share the device.
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    field = {
      "ours": benchmarks.Process(Ours, work, **shared),
      "timm": benchmarks.Process(Timm, work, GLIBC_TUNABLES=_KEEPING),
    }
    if args.authors:
      field["authors"] = benchmarks.Process(
        Authors, work, args.authors, **shared
      )
    field = {name: process for name, process in field.items() if process.hello}
    if len(field) == 1:
      raise UserError(
        "there is nothing to compare with: install timm (pip install -e "
        '".[export]"), or name a checkout by --authors=DIR.'
      )
    hello = {name: process.hello for name, process in field.items()}
    if len({h["platform"] for h in hello.values()}) > 1:
      raise UserError(
        "the contenders run on different devices: install the build of each "
        "for the same, or set JAX_PLATFORMS=cpu CUDA_VISIBLE_DEVICES= for all."
      )
    rows += compare(field, variant, args)
    for process in field.values():
      process.close()
  found = hello["ours"]
  versions = {name: h["version"] for name, h in hello.items()}
  record = {"batch": args.batch, "dtype": args.dtype, "versions": versions}
  benchmarks.write("peers", args, found, record | {"rows": rows})


def main() -> int:
  """Runs the command line."""
  parser = benchmarks.parser("peers", __doc__)
  parser.add_argument(
    "--variants", type=benchmarks.names, default=["S/32", "S/16"]
  )
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--seconds", type=float, default=3, help="of each")
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="float32"
  )
  parser.add_argument("--authors")
  return benchmarks.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
