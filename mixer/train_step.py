"""The training step: mixup, loss, gradient, update; and inference.

Everything here runs on the devices. Hosts ship uint8 images and labels.
"""

import enum
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jax.sharding import Mesh

from mixer import config as config_lib
from mixer import durations, optim, sharding, weights
from mixer import model as model_lib

with epy.lazy_imports():  # Inference without labels needs none of it.
  import optax

Batch = dict[str, jax.Array]
# (params, batch, number of the part or None) -> losses, float32 `[B]`.
LossFn = Callable[[Any, Batch, Any], jax.Array]


class Purpose(enum.IntEnum):
  """What a random key is for; folded into the seed, so never renumber."""

  INIT = 0
  MIXUP = 1
  DROPOUT = 2
  CUTMIX = 3


@flax.struct.dataclass
class TrainState:
  """All that training carries from step to step."""

  step: jax.Array  # int32, updates done.
  params: Any  # A float32 tree.
  opt_state: Any
  ema: Any  # An average of `params`, or None where the config wants none.

  @property
  def eval_params(self) -> Any:
    """What evaluation uses: the average where there is one."""
    return self.params if self.ema is None else self.ema


def key_for(seed: int, purpose: Purpose, step: Any = 0) -> jax.Array:
  """The random key of a purpose at a step: no key lives in the state."""
  key = jax.random.fold_in(jax.random.key(seed), purpose)
  return jax.random.fold_in(key, step)


class Trainer:
  """The jitted functions of a run, and the shape and shardings of its state.

  `init()` makes a state where its arrays belong, `train_step(state, batch)`
  gives (state, metrics) and takes the state's memory, `train_steps` does so for
  batches `[n, B, ...]`; `inference` has functions of `eval_params`.
  """

  def __init__(
    self,
    config: config_lib.Config,
    plan: durations.Plan,
    num_classes: int,
    mesh: Mesh,
    module: Any = None,
  ):
    """`module`, if given, is trained in place of what the config describes."""
    module = module or model_lib.from_config(config, num_classes)
    self.model = model_lib.placed(module, mesh)
    self.num_classes = num_classes
    self._config, self._mesh = config, mesh
    self._optimizer = optim.make(config, plan)
    self._learning_rate = optim.schedule(config, plan)

    init = self._init  # The same object, so that it is traced once.
    abstract = jax.eval_shape(init)
    optim.check_names(config, weights.flatten(abstract.params))
    everywhere: Any = sharding.replicated(mesh)
    where = TrainState(
      everywhere,
      sharding.weights(mesh, abstract.params, config),
      sharding.optimizer(mesh, abstract.opt_state, config),
      sharding.optimizer(mesh, abstract.ema, config),
    )
    self.abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      where,
    )
    self.init = jax.jit(init, out_shardings=where)

    def jit(function: Any, split: Any) -> Any:
      return jax.jit(
        function,
        in_shardings=(where, split),
        out_shardings=(where, everywhere),
        donate_argnums=0,
      )

    self.train_step = jit(self._update, sharding.batch(mesh))
    self.train_steps = jit(
      lambda state, batches: jax.lax.scan(self._update, state, batches),
      sharding.batches(mesh),
    )
    self.inference = Inference(
      self.model, config.loss.name, num_classes, mesh, where.eval_params
    )

  def _init(self) -> TrainState:
    config = self._config
    images = jnp.zeros((1, *config_lib.image_size(config), 3), self.model.dtype)
    key = key_for(config.seed, Purpose.INIT)
    params = self.model.init(key, images)["params"]
    opt_state = self._optimizer.init(optim.split(config, params)[0])
    # A copy, as a donated buffer must not be given away twice.
    average = config.optimizer.ema_decay and jax.tree.map(jnp.copy, params)
    return TrainState(jnp.int32(0), params, opt_state, average or None)

  def _update(self, state: TrainState, batch: Batch) -> Any:
    """One update; metrics are of the weights before it, unperturbed.

    With SAM, `sam_loss` is at the perturbed weights, and `grad_norm` not finite
    where the gradient there isn't. `skipped` is 1 where only `step` moves.
    """
    config, c = self._config, self._config.optimizer
    constrain = jax.lax.with_sharding_constraint

    # Gradients are summed to where they are needed, and only weights gathered.
    def apart(tree: Any) -> Any:
      return constrain(tree, sharding.optimizer(self._mesh, tree, config))

    def together(tree: Any) -> Any:
      return constrain(tree, sharding.weights(self._mesh, tree, config))

    losses, batch = losses_of(
      config, self.model, self.num_classes, state.step, batch
    )
    trained, frozen = optim.split(config, state.params)

    def gradient(trained: Any) -> tuple[jax.Array, Any]:
      loss, grads = accumulated(
        lambda trained, *part: losses(optim.merge(trained, frozen), *part),
        trained,
        batch,
        c.accumulate,
      )
      return loss, apart(together(grads))

    loss, grads = gradient(trained)
    old = apart(state.params)
    metrics = {
      "loss": loss,
      "learning_rate": self._learning_rate(
        optim.updates_done(state.opt_state, state.step)
      ),
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(old),
    }
    if c.sam_rho:
      # Uphill by rho along the whole gradient (arXiv 2010.01412, equation 2).
      norm = metrics["grad_norm"]
      far = jnp.where(norm > 0, c.sam_rho / norm, 0.0)
      uphill = jax.tree.map(lambda p, g: p + far * g, trained, grads)
      metrics["sam_loss"], grads = gradient(together(uphill))
      # What stops a run is its grad_norm.
      norm = optax.tree.norm(grads)
      metrics["grad_norm"] = jnp.where(
        jnp.isfinite(norm), metrics["grad_norm"], norm
      )
    trained, frozen = optim.split(config, old)
    updates, opt_state = self._optimizer.update(
      grads, state.opt_state, trained, value=loss
    )
    trained = apart(optax.apply_updates(trained, updates))
    ema = state.ema
    if ema is not None:
      averaged, still = optim.split(config, ema)
      averaged = optax.incremental_update(trained, averaged, 1.0 - c.ema_decay)
      ema = optim.merge(averaged, still)
    params = optim.merge(trained, frozen)
    new = TrainState(state.step + 1, params, opt_state, ema)
    if config.nonfinite == "skip":
      sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
      metrics["skipped"] = jnp.where(sound, 0.0, 1.0)
      before = TrainState(new.step, old, state.opt_state, state.ema)
      new = jax.tree.map(lambda x, y: jnp.where(sound, x, y), new, before)
    return new, metrics


def losses_of(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  num_classes: int,
  step: jax.Array | int,
  batch: Batch,
) -> tuple[LossFn, Batch]:
  """What update `step` + 1 makes smaller, and the batch as that takes it.

  If the batch has a `weight` for each example, it multiplies the loss.
  """
  own = own_share(config, step)
  if own is not None:
    # As uint8, of the whole batch: little moves between devices.
    batch = batch | {
      f"neighbour_{k}": jnp.roll(v, 1, axis=0) for k, v in batch.items()
    }
  dropout_key = key_for(config.seed, Purpose.DROPOUT, step)

  def losses(params: Any, batch: Batch, part: Any) -> jax.Array:
    images, targets = training_inputs(batch, config, num_classes, own)
    key = dropout_key if part is None else jax.random.fold_in(dropout_key, part)
    logits = model_lib.apply(model, params, images, key=key)
    found = example_losses(config.loss.name, logits, targets)
    if "weight" in batch:
      other = batch.get("neighbour_weight", 0.0)
      share = 1.0 if own is None else own.mean()
      found *= share * batch["weight"] + (1.0 - share) * other
    return found

  return losses, batch


def own_share(config: config_lib.Config, step: Any) -> jax.Array | None:
  """What is an example's own of each pixel; the rest is its left neighbour's.

  One draw for the batch, a from Beta(p, p). Mixup (arXiv 1710.09412) as the
  authors draw it: max(a, 1 - a), a scalar. CutMix (arXiv 1905.04899): `[H, W,
  1]`, 0 in a box of 1 - a of the area where it is inside, else 1. Of both, each
  is taken in half of the updates. None: nothing is mixed.
  """
  own, loss = None, config.loss
  if p := loss.mixup:
    a = jax.random.beta(key_for(config.seed, Purpose.MIXUP, step), p, p)
    own = jnp.maximum(a, 1.0 - a)
  if p := loss.cutmix:
    keys = jax.random.split(key_for(config.seed, Purpose.CUTMIX, step), 4)
    side = jnp.sqrt(1.0 - jax.random.beta(keys[0], p, p))

    def inside(key: jax.Array, size: int) -> jax.Array:
      half = (side * size / 2).astype(jnp.int32)
      away = jnp.arange(size) - jax.random.randint(key, (), 0, size)
      return (-half <= away) & (away < half)

    height, width = config_lib.image_size(config)
    box = inside(keys[1], height)[:, None] & inside(keys[2], width)
    cut = jnp.where(box[..., None], 0.0, 1.0)
    if own is not None:
      cut = jnp.where(jax.random.bernoulli(keys[3]), cut, own)
    own = cut
  return own


def training_inputs(
  batch: Batch, config: config_lib.Config, num_classes: int, own: Any = None
) -> tuple[jax.Array, jax.Array]:
  """Images in the compute dtype and targets `[B, K]`, mixed by `own_share`."""

  def read(prefix: str = "") -> tuple[jax.Array, jax.Array]:
    images = model_lib.scale(batch[f"{prefix}image"], jnp.dtype("float32"))
    targets = jax.nn.one_hot(batch[f"{prefix}label"], num_classes)
    if config.loss.label_smoothing:
      targets = optax.smooth_labels(targets, config.loss.label_smoothing)
    return images, targets

  images, targets = read()
  if own is not None:
    other_images, other_targets = read("neighbour_")
    images = own * images + (1 - own) * other_images
    share = own.mean()
    targets = share * targets + (1 - share) * other_targets
  return images.astype(config.model.dtype), targets


def example_losses(name: str, logits: Any, targets: Any) -> jax.Array:
  """Each example's, float32 `[B]`, in nats; a sigmoid's summed over classes."""
  if name == "softmax":
    return optax.softmax_cross_entropy(logits, targets)
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


def accumulated(
  loss_fn: LossFn, params: Any, batch: Any, parts: int
) -> tuple[jax.Array, Any]:
  """The mean loss of a batch and its gradient, one part after the other.

  Part i has the examples i, i + parts, i + 2 parts and so on: every device cuts
  what it holds, and no example moves.
  """

  def mean(params: Any, examples: Any, part: Any) -> Any:
    losses = loss_fn(params, examples, part)
    return losses.mean(), losses

  gradient = jax.grad(mean, has_aux=True)
  if parts == 1:
    grads, losses = gradient(params, batch, None)
    return losses.mean(), grads
  cut = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]), batch)

  def add(sums: Any, i: jax.Array) -> tuple[Any, jax.Array]:
    examples = jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), cut
    )
    grads, losses = gradient(params, examples, i)
    return jax.tree.map(jnp.add, sums, grads), losses

  zeros = jax.tree.map(jnp.zeros_like, params)
  # Their sum alone, so that XLA can reduce it over devices behind the loop.
  sums, losses = jax.lax.scan(add, zeros, jnp.arange(parts))
  return losses.mean(), jax.tree.map(lambda x: x / parts, sums)


class Inference:
  """Jitted functions `(params, batch) -> ...` of a model.

  A batch has `image` uint8 `[B, H, W, 3]`, `mask` bool `[B]` and maybe `label`
  int32 `[B]`, split over the mesh. Results are whole on every device.

  Attributes:
    num_classes, mesh: K, and all devices.
    features, logits: `-> ([B, C or K], [B])`, float32, and mask.
    examples: `-> dict` of `classes` int32 and `scores` float32 `[B, top]`
      (softmax over all classes, or sigmoids; of equal logits the lower class
      first; a NaN makes all classes -1), `mask`; if labelled `label`, `loss`.
  """

  def __init__(
    self,
    model: model_lib.MlpMixer,
    loss: str,
    num_classes: int,
    mesh: Mesh,
    params_sharding: Any = None,
    *,
    columns: np.ndarray | None = None,
    top: int = 5,
  ):
    """Makes the functions; each compiles when it is first called.

    `columns`, int `[K]`, has the head's column for each class where labels are
    of other classes than the head's; -1 for one that the head lacks, which is
    never predicted. `examples` gives `top` classes, at most K.
    """
    self.num_classes, self.mesh = num_classes, mesh
    model = model_lib.placed(model, mesh)
    everywhere = sharding.replicated(mesh)
    where = (params_sharding or everywhere, sharding.batch(mesh))

    def apply(params: Any, batch: Batch, pre_logits: bool) -> jax.Array:
      images = model_lib.scale(batch["image"], model.dtype)
      return model_lib.apply(model, params, images, pre_logits=pre_logits)

    def logits_BK(params: Any, batch: Batch) -> jax.Array:
      logits = apply(params, batch, False)
      if columns is None:
        return logits
      chosen = jnp.take(logits, np.maximum(columns, 0), axis=-1)
      return jnp.where(columns < 0, -jnp.inf, chosen)

    def examples(params: Any, batch: Batch) -> Batch:
      logits = logits_BK(params, batch)
      values, classes = jax.lax.top_k(logits, min(top, num_classes))
      sound = ~jnp.isnan(logits).any(axis=-1, keepdims=True)
      total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
      softmax = loss == "softmax"
      scores = jnp.exp(values - total) if softmax else jax.nn.sigmoid(values)
      classes = jnp.where(sound, classes, -1)
      found = {"classes": classes, "scores": scores, "mask": batch["mask"]}
      if "label" in batch:
        targets = jax.nn.one_hot(batch["label"], num_classes)
        found["label"] = batch["label"]
        found["loss"] = example_losses(loss, logits, targets)
      return found

    self.features, self.logits, self.examples = (
      jax.jit(function, in_shardings=where, out_shardings=everywhere)
      for function in (
        lambda params, batch: (apply(params, batch, True), batch["mask"]),
        lambda params, batch: (logits_BK(params, batch), batch["mask"]),
        examples,
      )
    )
