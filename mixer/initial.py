"""What a run starts from: random weights, another run's, or released ones."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from mixer import (
  checkpoints,
  released,
  resolution,
  train_step,
  trained,
  weights,
)
from mixer import config as config_lib
from mixer import model as model_lib
from mixer import workdir as workdir_lib
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a run starts from.

  Attributes:
    message: for people.
    params: numpy arrays as the run's model takes them, with a head only if it
      is kept; None for random ones.
    tokens_mlp_dim: T of the run's model, which follows the weights; 0: as in
      the config.
  """

  message: str
  params: Any = None
  tokens_mlp_dim: int = 0

  @property
  def resolved(self) -> dict[str, int]:
    """What config.json has of it beside the config."""
    t = self.tokens_mlp_dim
    return {"tokens_mlp_dim": t} if t else {}

  def config(self, config: config_lib.Config) -> config_lib.Config:
    """The run's config, with the shape of its model."""
    shape = {f"model.{k}": v for k, v in self.resolved.items()}
    return config_lib.changed(config, shape) if shape else config

  def place(self, state: train_step.TrainState) -> train_step.TrainState:
    """Puts the weights into a freshly made state, and its average."""
    if self.params is None:
      return state

    def put(new: Any, old: jax.Array) -> jax.Array:
      # Each host gives its devices what they hold; nothing is compared.
      return jax.make_array_from_callback(
        old.shape, old.sharding, lambda index: new[index]
      )

    own = {k: state.params[k] for k in self.params}
    params = dict(state.params) | jax.tree.map(put, self.params, own)
    state = dataclasses.replace(state, params=params)
    if state.ema is None:
      return state
    # In buffers of its own, with the average's shardings.
    copy = jax.jit(
      lambda tree: jax.tree.map(jnp.copy, tree),
      out_shardings=jax.tree.map(lambda x: x.sharding, state.ema),
    )
    return dataclasses.replace(state, ema=copy(params))


def find(
  config: config_lib.Config,
  workdir: epath.PathLike,
  class_names: Sequence[str],
) -> Origin:
  """What a run starts from, with the weights that it needs.

  Nothing is read if the workdir has a checkpoint, with which the run goes on.

  Raises:
    UserError: as of `load`, or no weights are named where a recipe wants some.
  """
  if checkpoints.committed(workdir):
    resolved = workdir_lib.read_config(workdir)["resolved"]
    return Origin("going on", None, resolved.get("tokens_mlp_dim", 0))
  if config.init_from == config_lib.UNNAMED:
    raise UserError(
      "this recipe is for fine-tuning, and no weights are named. Put them "
      "behind the colon, as in "
      "--config=configs/finetune.py:model=imagenet21k/Mixer-B_16, or name a "
      "run, a file or a released one by --config.init_from=PATH. From random "
      f"weights: --config=configs/scratch.py:dataset={config.data.name}, or "
      "this recipe with --config.init_from= (nothing behind it)."
    )
  if not config.init_from:
    return Origin("starting from random weights")
  return load(config, class_names)


def load(config: config_lib.Config, class_names: Sequence[str]) -> Origin:
  """Reads the weights that `config.init_from` names, and fits them.

  Args:
    config: the run's; `init_head` and `init_resize` say how.
    class_names: of the run's data set, in the order of its labels.

  Raises:
    UserError: nothing there, no sound weights, or another model's.
  """
  path = config.init_from
  found = trained.load(path)
  # A released file has been checked where it was read.
  broken = weights.not_finite(found.params) if found.config else []
  if broken:
    raise UserError(
      f"init_from={path}: there are NaNs or infinities in "
      f"{weights.shorten(broken)}; take an earlier checkpoint."
    )
  _check_same(config, found)
  found, fitting = trained.fitted(
    found, config_lib.image_size(config), config.init_resize
  )
  params, note = dict(found.params), "their head is kept"
  if config.init_head == "keep":
    _check_head(config, found, class_names)
  else:
    params.pop("head", None)
    note = "with a fresh head"
  message = f"starting from the weights of {found.source}, {note}"
  return Origin(
    f"{message}; {fitting}" if fitting else message,
    params,
    found.module.tokens_mlp_dim,
  )


def _check_same(config: config_lib.Config, found: trained.Trained) -> None:
  """Refuses weights of another model than the config's, at their own size."""
  path, theirs, data = config.init_from, found.module, config.data
  permuted = (theirs.permute, theirs.permute_seed if theirs.permute else 0)
  if permuted != (data.permute, data.permute_seed if data.permute else 0):
    raise UserError(
      f"init_from={path} was trained on images under another permutation than "
      "this config's, so its weights mean nothing here; set "
      f"--config.data.permute={permuted[0]} "
      f"--config.data.permute_seed={permuted[1]}."
    )
  # Its T follows the weights.
  own = model_lib.from_config(config, 0).clone(
    tokens_mlp_dim=theirs.tokens_mlp_dim
  )
  if theirs.patch_size != own.patch_size:
    where = f"the weights of init_from={path}"
    shape = weights.shape_of(found.params, where)
    resolution.check_patch(shape, own.patch_size, where)
  images = jax.ShapeDtypeStruct((1, *found.image_size, 3), jnp.float32)
  wanted = jax.eval_shape(own.init, jax.random.key(0), images)["params"]
  headless = {k: v for k, v in found.params.items() if k != "head"}
  lines = weights.mismatches(weights.shapes(headless), weights.shapes(wanted))
  if lines:
    raise UserError(
      f"init_from={path} holds another model than this config: "
      + weights.shorten(lines)
      + ". Set model.* as it was there."
    )


def _check_head(
  config: config_lib.Config, found: trained.Trained, ours: Sequence[str]
) -> None:
  """Refuses to keep a head that is missing or for other classes."""
  theirs, data = found.class_ids, config.data.name
  if found.num_classes != len(ours):
    wrong = (
      f"have a head for {found.num_classes:,} classes, and data set {data} has "
      f"{len(ours):,}"
    )
  elif theirs is None:
    wrong = (
      "don't say which classes their head is for: name the workdir that they "
      "come from, or a file of `mixer export` with its FILE.npz.json beside it"
    )
  elif differing := [k for k, name in enumerate(ours) if theirs[k] != name]:
    k = differing[0]
    wrong = (
      f"have a head for other classes than data set {data} has: class {k} is "
      f"{theirs[k]!r} there and {ours[k]!r} here"
    )
  else:
    return
  raise UserError(
    f"init_head=keep: the weights of init_from={config.init_from} {wrong}; use "
    "--config.init_head=new for a fresh one."
  )


_SHAPE = (
  *("variant", "num_blocks", "hidden_dim", "tokens_mlp_dim"),
  *("channels_mlp_dim", "token_mixing", "token_groups", "group_projection"),
  *("pyramid_blocks", "pyramid_tokens"),
)


def model_of(path: str) -> tuple[dict[str, Any], tuple[int, int]]:
  """The shape of the model that weights are of."""
  if released.kind(path) == "checkpoint":
    place = workdir_lib.path(path)
    if place.parent.name == "checkpoints":
      place = place.parent.parent
    stored = workdir_lib.read_config(place)
    config = config_lib.from_json(stored["config"], stored["resolved"])
    keys = {key: config.model[key] for key in _SHAPE}
    return keys, config_lib.image_size(config)
  shape = weights.shape_of(released.load(path))
  sizes = ("num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")
  found = {key: getattr(shape, key) for key in sizes}
  side = math.isqrt(shape.num_tokens) * shape.patch_size
  for letter in "SBLH":
    variant = f"{letter}/{shape.patch_size}"
    spec = dataclasses.asdict(model_lib.parse_variant(variant))
    if spec.items() >= found.items():
      return {"variant": variant}, (side, side)
  return {"variant": f"S/{shape.patch_size}"} | found, (side, side)
