"""From a batch to the next state: mixup, loss, gradient, update."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mixer import config as config_lib
from mixer import durations, optim, sharding, weights
from mixer import model as model_lib

# Losses of examples: (params, examples, number of the part) -> float32 `[B]`;
# the number is None where the batch is whole.
LossFn: TypeAlias = Callable[[Any, Any, jax.Array | None], jax.Array]
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Purpose(enum.IntEnum):
  """What a random key is for; folded into the seed, so never renumber."""

  INIT = 0
  MIXUP = 1
  DROPOUT = 2


@flax.struct.dataclass
class TrainState:
  """All that training carries from step to step.

  Attributes:
    step: int32, updates done.
    params: float32 tree.
    opt_state: optax's.
    ema: an average of `params`, or None where the config wants none.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any

  @property
  def eval_params(self) -> Any:
    """What evaluation uses: the average where there is one."""
    return self.params if self.ema is None else self.ema


def key_for(
  seed: int, purpose: Purpose, step: jax.Array | int = 0
) -> jax.Array:
  """The random key of a purpose at a step: no key lives in the state."""
  key = jax.random.fold_in(jax.random.key(seed), purpose)
  return jax.random.fold_in(key, step)


def with_neighbours(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Adds to every example its left neighbour, which mixup mixes in.

  As the hosts ship them, before a batch is cut into parts: the neighbours are
  those in the whole batch, and what moves between devices are bytes.

  Args:
    batch: arrays `[B, ...]`.

  Returns:
    The same and, as `neighbour_NAME`, each rolled by one.
  """
  rolled = {f"neighbour_{k}": jnp.roll(v, 1, axis=0) for k, v in batch.items()}
  return batch | rolled


def mixup_weight(key: jax.Array, p: float) -> jax.Array:
  """Mixup's weight (arXiv 1710.09412), as the authors' code draws it.

  One a is drawn from Beta(p, p) for the whole batch; a = max(a, 1 - a) goes to
  the example itself and 1 - a to its left neighbour in the batch.

  Args:
    key: random key.
    p: both parameters of the Beta distribution, above 0.

  Returns:
    float32 in [0.5, 1].
  """
  a = jax.random.beta(key, p, p)
  return jnp.maximum(a, 1.0 - a)


def one_hot(
  labels: jax.Array, num_classes: int, label_smoothing: float = 0.0
) -> jax.Array:
  """int `[B]` -> float32 `[B, K]`; smoothing spreads its share evenly."""
  targets = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
  if label_smoothing:
    targets = targets * (1 - label_smoothing) + label_smoothing / num_classes
  return targets


def example_losses(
  name: str, logits: jax.Array, targets: jax.Array
) -> jax.Array:
  """The loss of each example.

  Args:
    name: "softmax" (cross-entropy) or "sigmoid" (the sum over the classes of
      binary cross-entropies, as the authors pre-train).
    logits: float32 `[B, K]`.
    targets: float32 `[B, K]`.

  Returns:
    float32 `[B]`, in nats.
  """
  if name == "softmax":
    return optax.softmax_cross_entropy(logits, targets)
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


def training_inputs(
  batch: dict[str, jax.Array],
  config: config_lib.Config,
  num_classes: int,
  weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """A batch as shipped, or a part of it -> what the model and the loss take.

  Args:
    batch: `image` uint8 `[B, H, W, 3]`, `label` int32 `[B]`; with mixup their
      neighbours too, see `with_neighbours`.
    config: the run's.
    num_classes: K.
    weight: of `mixup_weight`; None for no mixup.

  Returns:
    Images `[B, H, W, 3]` in the compute dtype, targets float32 `[B, K]`.
  """

  def read(prefix: str = "") -> tuple[jax.Array, jax.Array]:
    labels, smoothing = batch[f"{prefix}label"], config.loss.label_smoothing
    return (
      model_lib.scale(batch[f"{prefix}image"], jnp.dtype("float32")),
      one_hot(labels, num_classes, smoothing),
    )

  images, targets = read()
  if weight is not None:
    other_images, other_targets = read("neighbour_")
    images = weight * images + (1 - weight) * other_images
    targets = weight * targets + (1 - weight) * other_targets
  return images.astype(config.model.dtype), targets


def accumulated(
  loss_fn: LossFn, params: Any, batch: Any, parts: int
) -> tuple[jax.Array, Any]:
  """The mean loss of a batch and its gradient, one part after the other.

  Only one part's activations are alive at a time. Part i has the examples i,
  i + parts, i + 2 parts and so on: every device cuts what it holds, so that no
  example moves.

  Args:
    loss_fn: of the examples of a part.
    params: what to differentiate by, float32.
    batch: tree of arrays `[B, ...]`.
    parts: how many; divides B, and what each device has of it.

  Returns:
    The loss, and a tree like `params`, float32.
  """

  def mean(
    params: Any, examples: Any, part: jax.Array | None
  ) -> tuple[jax.Array, jax.Array]:
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
  # The sum is all that is taken of the gradients in the loop, so that XLA can
  # reduce it over the devices once, behind the loop; so for TPUs it does.
  sums, losses = jax.lax.scan(add, zeros, jnp.arange(parts))
  return losses.mean(), jax.tree.map(lambda x: x / parts, sums)


def ascended(params: Any, grads: Any, rho: float) -> Any:
  """SAM's first step (arXiv 2010.01412, equation 2): uphill by `rho`.

  Args:
    params: of the loss.
    grads: its gradient there.
    rho: the distance, in the Euclidean norm over all of them.

  Returns:
    `params` + rho g / ||g||; where ||g|| is zero in float32, `params`.
  """
  norm = optax.tree.norm(grads)
  scale = jnp.where(norm > 0, rho / norm, 0.0)
  return jax.tree.map(lambda p, g: p + scale * g, params, grads)


def losses_of(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  num_classes: int,
  step: jax.Array | int,
  batch: Batch,
) -> tuple[LossFn, Batch]:
  """What an update makes smaller.

  Args:
    config: the run's.
    model: its module.
    num_classes: K.
    step: updates done before.
    batch: as shipped.

  Returns:
    The losses of the examples as a function of all parameters, see
    `LossFn`; and the batch, whole, as it takes it or parts of it.
  """
  weight = None
  if config.loss.mixup:
    key = key_for(config.seed, Purpose.MIXUP, step)
    weight = mixup_weight(key, config.loss.mixup)
    batch = with_neighbours(batch)
  dropout_key = key_for(config.seed, Purpose.DROPOUT, step)

  def losses(params: Any, batch: Batch, part: jax.Array | None) -> jax.Array:
    images, targets = training_inputs(batch, config, num_classes, weight)
    key = dropout_key
    if part is not None:
      key = jax.random.fold_in(key, part)
    logits = model_lib.apply(model, params, images, key=key)
    return example_losses(config.loss.name, logits, targets)

  return losses, batch


def make_update(
  config: config_lib.Config,
  model: model_lib.MlpMixer,
  num_classes: int,
  optimizer: optax.GradientTransformation,
  lr: optax.Schedule,
  mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
  """One update, `(state, batch) -> (state, metrics)`, to be jitted.

  Metrics are of the weights before it, unperturbed.
  With SAM, `sam_loss` is the loss at the perturbed weights, and `grad_norm`
  is not finite where the gradient there isn't. Where broken updates are
  skipped, `skipped` is 1 for one that was and 0 else; only `step` moves then.
  """
  c = config.optimizer

  # Gradients are summed to where they are needed, an update is computed where
  # its state lies, and only new weights are gathered.
  def apart(tree: Any) -> Any:
    where = sharding.optimizer(mesh, tree, config)
    return jax.lax.with_sharding_constraint(tree, where)

  def together(tree: Any) -> Any:
    where = sharding.weights(mesh, tree, config)
    return jax.lax.with_sharding_constraint(tree, where)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    each, batch = losses_of(config, model, num_classes, state.step, batch)
    trained, frozen = optim.split(config, state.params)

    def loss_fn(
      trained: Any, batch: Batch, part: jax.Array | None
    ) -> jax.Array:
      return each(optim.merge(trained, frozen), batch, part)

    def gradient(trained: Any) -> tuple[jax.Array, Any]:
      return accumulated(loss_fn, trained, batch, c.accumulate)

    loss, grads = gradient(trained)
    grads, old = apart(together(grads)), apart(state.params)
    metrics = {
      "loss": loss,
      "learning_rate": lr(_updates(state.opt_state)),
      "grad_norm": optax.tree.norm(grads),
      "param_norm": optax.tree.norm(old),
    }
    if c.sam_rho:
      perturbed = ascended(trained, grads, c.sam_rho)
      metrics["sam_loss"], grads = gradient(together(perturbed))
      grads = apart(together(grads))
      # What stops a run is its grad_norm.
      norm = optax.tree.norm(grads)
      metrics["grad_norm"] = jnp.where(
        jnp.isfinite(norm), metrics["grad_norm"], norm
      )
    trained, frozen = optim.split(config, old)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
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

  return train_step


def _updates(opt_state: Any) -> Any:
  """What the learning rate goes by: updates made, without those skipped."""

  def schedules(x: Any) -> bool:
    return isinstance(x, optax.ScaleByScheduleState)

  leaves = jax.tree.leaves(opt_state, is_leaf=schedules)
  return next(x.count for x in leaves if schedules(x))


class Trainer:
  """The jitted functions of a run, and the state's shape and place.

  Attributes:
    model: the Flax module.
    num_classes: K.
    abstract: the state as `jax.ShapeDtypeStruct`s that carry shardings.
    init: `() -> TrainState`, made where it is to lie.
    train_step: `(state, batch) -> (state, metrics)`; the state is donated.
    train_steps: the same of several batches, `[n, B, ...]`, one after the
      other; every metric is `[n]`.
    inference: the functions of the state's `eval_params` alone, as they lie.
  """

  def __init__(
    self,
    config: config_lib.Config,
    plan: durations.Plan,
    num_classes: int,
    mesh: Mesh,
  ):
    self.model = model_lib.placed(
      model_lib.from_config(config, num_classes), mesh
    )
    self.num_classes = num_classes
    optimizer = optim.make(config, plan)
    lr = optim.schedule(config, plan)

    def init() -> TrainState:
      size = config_lib.image_size(config)
      images = jnp.zeros((1, *size, 3), self.model.dtype)
      key = key_for(config.seed, Purpose.INIT)
      params = self.model.init(key, images)["params"]
      return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(optim.split(config, params)[0]),
        # A copy, as a donated buffer must not be given away twice.
        ema=jax.tree.map(jnp.copy, params)
        if config.optimizer.ema_decay
        else None,
      )

    abstract = jax.eval_shape(init)
    optim.check_names(config, weights.flatten(abstract.params))
    where = dataclasses.replace(
      jax.tree.map(lambda _: sharding.replicated(mesh), abstract),
      params=sharding.weights(mesh, abstract.params, config),
      opt_state=sharding.optimizer(mesh, abstract.opt_state, config),
      ema=sharding.optimizer(mesh, abstract.ema, config),
    )
    self.abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      where,
    )
    everywhere, split = sharding.replicated(mesh), sharding.batch(mesh)
    self.init = jax.jit(init, out_shardings=where)
    update = make_update(config, self.model, num_classes, optimizer, lr, mesh)
    self.train_step = jax.jit(
      update,
      in_shardings=(where, split),
      out_shardings=(where, everywhere),
      donate_argnums=0,
    )
    self.train_steps = jax.jit(
      lambda state, batches: jax.lax.scan(update, state, batches),
      in_shardings=(where, sharding.batches(mesh)),
      out_shardings=(where, everywhere),
      donate_argnums=0,
    )
    self.inference = Inference(
      self.model, config.loss.name, num_classes, mesh, where.eval_params
    )


class Inference:
  """Jitted functions `(params, batch) -> ...` of a model.

  A batch has `image` uint8 `[B, H, W, 3]`, `mask` bool `[B]` and, for `counts`
  and `examples`, `label` int32 `[B]`, split over the mesh. What comes out is
  whole on every device, and so on every host.

  Attributes:
    counts: `-> metrics`: sums over the examples (see `_counts`).
    features: `-> ([B, C], [B])`, pre-logits float32 and mask.
    logits: `-> ([B, K], [B])`, logits float32 and mask.
    top: `-> dict` of `classes` int32 and `scores` float32 `[B, top]` (see
      `_top`), and `mask` bool `[B]`.
    examples: `-> dict`, as `top`, and `label` int32, `loss` float32 `[B]`.
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

    Args:
      model: with or without a head.
      loss: name of the loss, see `example_losses`.
      num_classes: K, of the labels and of what comes out.
      mesh: of all devices.
      params_sharding: a sharding for each parameter, or one for all; None for
        a whole copy on every device.
      columns: int `[K]`, the head's column for each class, where labels are of
        other classes than the head's; -1 for a class that the head lacks,
        which is never predicted: its logit is minus infinity. None: class k
        has column k.
      top: how many classes `top` and `examples` give, at most K.
    """
    model = model_lib.placed(model, mesh)
    everywhere, split = sharding.replicated(mesh), sharding.batch(mesh)
    where = everywhere if params_sharding is None else params_sharding

    def jit(function: Callable[[Any, Batch], Any]) -> Any:
      return jax.jit(
        function, in_shardings=(where, split), out_shardings=everywhere
      )

    def apply(params: Any, batch: Batch, pre_logits: bool) -> jax.Array:
      images = model_lib.scale(batch["image"], model.dtype)
      return model_lib.apply(model, params, images, pre_logits=pre_logits)

    def logits_BK(params: Any, batch: Batch) -> jax.Array:
      logits = apply(params, batch, False)
      return logits if columns is None else _select(logits, columns)

    def examples(params: Any, batch: Batch) -> Batch:
      logits = logits_BK(params, batch)
      targets = one_hot(batch["label"], num_classes)
      return _top(logits, loss, min(top, num_classes)) | {
        "mask": batch["mask"],
        "label": batch["label"],
        "loss": example_losses(loss, logits, targets),
      }

    self.counts = jit(
      lambda params, batch: _counts(
        logits_BK(params, batch),
        batch["label"],
        batch["mask"],
        loss,
        num_classes,
      )
    )
    self.features = jit(
      lambda params, batch: (apply(params, batch, True), batch["mask"])
    )
    self.logits = jit(
      lambda params, batch: (logits_BK(params, batch), batch["mask"])
    )
    self.top = jit(
      lambda params, batch: (
        _top(logits_BK(params, batch), loss, min(top, num_classes))
        | {"mask": batch["mask"]}
      )
    )
    self.examples = jit(examples)


def _select(logits: jax.Array, columns: np.ndarray) -> jax.Array:
  """`[B, K']` -> `[B, K]`: the columns in their order, -1 for none."""
  chosen = jnp.take(logits, np.maximum(columns, 0), axis=-1)
  return jnp.where(columns < 0, -jnp.inf, chosen)


def _top(logits: jax.Array, loss: str, top: int) -> dict[str, jax.Array]:
  """The classes of the highest logits, the highest first.

  Of equal logits the lower class comes first, as in `_counts`. An example
  with a NaN among its logits has the class -1 throughout.

  Args:
    logits: float32 `[B, K]`.
    loss: name of the loss that the model was trained with.
    top: how many.

  Returns:
    `classes` int32 `[B, top]`; `scores` float32 `[B, top]`: probabilities that
    sum to 1 over all classes where `loss` is "softmax", and sigmoids, each
    for itself, where it is "sigmoid".
  """
  values, classes = jax.lax.top_k(logits, top)
  sound = ~jnp.isnan(logits).any(axis=-1, keepdims=True)
  if loss == "softmax":
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    scores = jnp.exp(values - total)
  else:
    scores = jax.nn.sigmoid(values)
  return {"classes": jnp.where(sound, classes, -1), "scores": scores}


def _counts(
  logits: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  loss: str,
  num_classes: int,
) -> dict[str, jax.Array]:
  """Sums over the examples that `mask` marks as real.

  A class counts as ranked above the label if its logit is higher, or equal
  with a lower index: so that ties have one answer, and top-1 is `argmax`.
  """
  targets = one_hot(labels, num_classes)
  each = example_losses(loss, logits, targets)
  own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  tied_before = jnp.arange(num_classes)[None, :] < labels[:, None]
  above = (logits > own) | ((logits == own) & tied_before)
  rank = above.sum(axis=-1)
  # No comparison with NaN holds, which would put the label first.
  sound = mask & ~jnp.isnan(logits).any(axis=-1)
  return {
    "count": mask.sum(dtype=jnp.int32),
    "correct": (sound & (rank < 1)).sum(dtype=jnp.int32),
    "correct_top5": (sound & (rank < 5)).sum(dtype=jnp.int32),
    "loss_sum": jnp.where(mask, each, 0).sum(),
  }


def update_flop(model: model_lib.MlpMixer, config: config_lib.Config) -> int:
  """FLOP of an update, per image, with what the config asks for.

  SAM trains twice; a linear probe goes forward, and through the head alone
  backward.
  """
  size = config_lib.image_size(config)
  if config.optimizer.train == "head":
    head = model.hidden_dim * model.num_classes
    # The head's input needs no gradient.
    flop = 2 * model_lib.forward_macs(model, size)[0] + 2 * head
  else:
    flop = model_lib.training_flop(model, size)
  return 2 * flop if config.optimizer.sam_rho else flop
