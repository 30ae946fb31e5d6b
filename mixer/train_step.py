"""The training step: mixup, loss, gradient, update; and inference.

Everything here runs on the devices. Hosts ship uint8 images and labels.
"""

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

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
# Losses of examples: (params, batch, number of the part) -> float32 `[B]`; the
# number is None for a whole batch.
LossFn: TypeAlias = Callable[[Any, Batch, jax.Array | None], jax.Array]


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


class Trainer:
  """The jitted functions of a run, and the shape and shardings of its state.

  Attributes:
    model: the Flax module.
    num_classes: K.
    abstract: the state as `jax.ShapeDtypeStruct`s that carry shardings.
    init: `() -> TrainState`, made where its arrays belong.
    train_step: `(state, batch) -> (state, metrics)`; the state is donated.
    train_steps: the same of several batches, `[n, B, ...]`, one after the
      other; every metric is `[n]`.
    inference: functions of the state's `eval_params`.
  """

  def __init__(
    self,
    config: config_lib.Config,
    plan: durations.Plan,
    num_classes: int,
    mesh: Mesh,
  ):
    module = model_lib.from_config(config, num_classes)
    self.model = model_lib.placed(module, mesh)
    self.num_classes = num_classes
    self._config, self._mesh = config, mesh
    self._optimizer = optim.make(config, plan)
    self._learning_rate = optim.schedule(config, plan)

    abstract = jax.eval_shape(self._init)
    optim.check_names(config, weights.flatten(abstract.params))
    everywhere = sharding.replicated(mesh)
    where = dataclasses.replace(
      jax.tree.map(lambda _: everywhere, abstract),
      params=sharding.weights(mesh, abstract.params, config),
      opt_state=sharding.optimizer(mesh, abstract.opt_state, config),
      ema=sharding.optimizer(mesh, abstract.ema, config),
    )
    self.abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      where,
    )
    self.init = jax.jit(self._init, out_shardings=where)
    self.train_step = jax.jit(
      self._update,
      in_shardings=(where, sharding.batch(mesh)),
      out_shardings=(where, everywhere),
      donate_argnums=0,
    )
    self.train_steps = jax.jit(
      lambda state, batches: jax.lax.scan(self._update, state, batches),
      in_shardings=(where, sharding.batches(mesh)),
      out_shardings=(where, everywhere),
      donate_argnums=0,
    )
    self.inference = Inference(
      self.model, config.loss.name, num_classes, mesh, where.eval_params
    )

  def _init(self) -> TrainState:
    config = self._config
    images = jnp.zeros((1, *config_lib.image_size(config), 3), self.model.dtype)
    key = key_for(config.seed, Purpose.INIT)
    params = self.model.init(key, images)["params"]
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=self._optimizer.init(optim.split(config, params)[0]),
      # A copy, as a donated buffer must not be given away twice.
      ema=jax.tree.map(jnp.copy, params)
      if config.optimizer.ema_decay
      else None,
    )

  def _update(
    self, state: TrainState, batch: Batch
  ) -> tuple[TrainState, Metrics]:
    """One update; metrics are of the weights before it, unperturbed.

    With SAM, `sam_loss` is the loss at the perturbed weights, and `grad_norm`
    is not finite where the gradient there isn't. Where broken updates are
    skipped, `skipped` is 1 for one that was, else 0; only `step` moves then.
    """
    config, c = self._config, self._config.optimizer

    # Gradients are summed to where they are needed, an update is computed where
    # its state lies, and only new weights are gathered.
    def apart(tree: Any) -> Any:
      where = sharding.optimizer(self._mesh, tree, config)
      return jax.lax.with_sharding_constraint(tree, where)

    def together(tree: Any) -> Any:
      where = sharding.weights(self._mesh, tree, config)
      return jax.lax.with_sharding_constraint(tree, where)

    losses, batch = losses_of(
      config, self.model, self.num_classes, state.step, batch
    )
    trained, frozen = optim.split(config, state.params)

    def gradient(trained: Any) -> tuple[jax.Array, Any]:
      return accumulated(
        lambda trained, *part: losses(optim.merge(trained, frozen), *part),
        trained,
        batch,
        c.accumulate,
      )

    loss, grads = gradient(trained)
    grads, old = apart(together(grads)), apart(state.params)
    updates_done = optim.updates_done(state.opt_state, state.step)
    metrics = {
      "loss": loss,
      "learning_rate": self._learning_rate(updates_done),
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
  """What update `step` + 1 makes smaller, and the batch as that takes it."""
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


def training_inputs(
  batch: Batch,
  config: config_lib.Config,
  num_classes: int,
  weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """A batch as shipped, or a part of it -> what the model and the loss take.

  For mixup it has neighbours too, see `with_neighbours`. The images come out in
  the compute dtype, the targets as float32 `[B, K]`.
  """

  def read(prefix: str = "") -> tuple[jax.Array, jax.Array]:
    labels, smoothing = batch[f"{prefix}label"], config.loss.label_smoothing
    images = model_lib.scale(batch[f"{prefix}image"], jnp.dtype("float32"))
    return images, one_hot(labels, num_classes, smoothing)

  images, targets = read()
  if weight is not None:
    other_images, other_targets = read("neighbour_")
    images = weight * images + (1 - weight) * other_images
    targets = weight * targets + (1 - weight) * other_targets
  return images.astype(config.model.dtype), targets


def with_neighbours(batch: Batch) -> Batch:
  """Adds `neighbour_NAME`, each example's left neighbour, which mixup mixes in.

  While they are uint8, before a batch is cut into parts: so the neighbours are
  those in the whole batch, and what moves between devices is small.
  """
  rolled = {f"neighbour_{k}": jnp.roll(v, 1, axis=0) for k, v in batch.items()}
  return batch | rolled


def mixup_weight(key: jax.Array, p: float) -> jax.Array:
  """Mixup's weight (arXiv 1710.09412), as the authors' code draws it.

  One a is drawn from Beta(p, p) for the whole batch; max(a, 1 - a) goes to the
  example itself and the rest to its left neighbour in the batch.
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
  """The loss of each example, float32 `[B]`, in nats.

  For "sigmoid" it is summed over the classes, as the authors pre-train.
  """
  if name == "softmax":
    return optax.softmax_cross_entropy(logits, targets)
  return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)


def accumulated(
  loss_fn: LossFn, params: Any, batch: Any, parts: int
) -> tuple[jax.Array, Any]:
  """The mean loss of a batch and its gradient, one part after the other.

  Only one part's activations are alive at a time. Part i has the examples i,
  i + parts, i + 2 parts and so on: every device cuts what it holds, so that no
  example moves. `parts` divides what each device has of the batch.
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

  That is `params` + rho g / ||g||, with the norm over all of them; `params`
  where it is zero in float32.
  """
  norm = optax.tree.norm(grads)
  scale = jnp.where(norm > 0, rho / norm, 0.0)
  return jax.tree.map(lambda p, g: p + scale * g, params, grads)


class Inference:
  """Jitted functions `(params, batch) -> ...` of a model.

  A batch has `image` uint8 `[B, H, W, 3]`, `mask` bool `[B]` and maybe `label`
  int32 `[B]`, split over the mesh. Results are whole on every device.

  Attributes:
    num_classes: K.
    mesh: of all devices.
    features: `-> ([B, C], [B])`, pre-logits float32 and mask.
    logits: `-> ([B, K], [B])`, logits float32 and mask.
    examples: `-> dict` of `classes` int32 and `scores` float32 `[B, top]` (see
      `_top`), `mask`, and for labelled batches `label` and `loss` float32
      `[B]`.
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
      loss: its name, see `example_losses`.
      num_classes: K, of labels and results.
      mesh: of all devices.
      params_sharding: a sharding for each parameter, or one for all; None for
        a whole copy on every device.
      columns: int `[K]`, the head's column for each class, where labels are of
        other classes than the head's; -1 for a class that the head lacks,
        which is never predicted: its logit is minus infinity. None: class k
        has column k.
      top: how many classes `examples` gives, at most K.
    """
    self.num_classes, self.mesh = num_classes, mesh
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
      if columns is None:
        return logits
      chosen = jnp.take(logits, np.maximum(columns, 0), axis=-1)
      return jnp.where(columns < 0, -jnp.inf, chosen)

    def examples(params: Any, batch: Batch) -> Batch:
      logits = logits_BK(params, batch)
      found = _top(logits, loss, min(top, num_classes))
      found["mask"] = batch["mask"]
      if "label" in batch:
        targets = one_hot(batch["label"], num_classes)
        found["label"] = batch["label"]
        found["loss"] = example_losses(loss, logits, targets)
      return found

    self.examples = jit(examples)
    self.features = jit(lambda p, batch: (apply(p, batch, True), batch["mask"]))
    self.logits = jit(lambda p, batch: (logits_BK(p, batch), batch["mask"]))


def _top(logits: jax.Array, loss: str, top: int) -> dict[str, jax.Array]:
  """`classes` int32 and `scores` float32 `[B, top]` of the highest logits.

  Of equal logits the lower class comes first; a NaN among them makes all -1.
  Scores are softmax's probabilities over all classes, or sigmoids.
  """
  values, classes = jax.lax.top_k(logits, top)
  sound = ~jnp.isnan(logits).any(axis=-1, keepdims=True)
  if loss == "softmax":
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    scores = jnp.exp(values - total)
  else:
    scores = jax.nn.sigmoid(values)
  return {"classes": jnp.where(sound, classes, -1), "scores": scores}


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
