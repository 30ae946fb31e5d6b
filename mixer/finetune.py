"""Starting from weights that exist: another run's, or released ones."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mixer import checkpoints, released, resolution, weights
from mixer import config as config_lib
from mixer import step as step_lib
from mixer import workdir as workdir_lib
from mixer.datasets import wordnet
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a run starts from.

  Attributes:
    sentence: for people.
    params: numpy arrays as the run's model takes them, with a head only where
      it is kept; None for random ones.
    tokens_mlp_dim: T of the run's model, which follows the weights; 0: as the
      config says.
  """

  sentence: str
  params: Any = None
  tokens_mlp_dim: int = 0

  @property
  def resolved(self) -> dict[str, int]:
    """What config.json tells beside the config."""
    t = self.tokens_mlp_dim
    return {"tokens_mlp_dim": t} if t else {}

  def config(self, config: config_lib.Config) -> config_lib.Config:
    """The run's config, with the shape that its model has."""
    if not self.tokens_mlp_dim:
      return config
    shaped: config_lib.Config = ml_collections.ConfigDict(config)
    shaped = shaped.copy_and_resolve_references()
    shaped.model.tokens_mlp_dim = self.tokens_mlp_dim
    return shaped

  def place(self, state: step_lib.TrainState) -> step_lib.TrainState:
    """Puts the weights into a freshly made state, and its average."""
    if self.params is None:
      return state
    own = {k: state.params[k] for k in self.params}
    placed = jax.tree.map(
      lambda new, old: jax.device_put(new, old.sharding), self.params, own
    )
    state = dataclasses.replace(state, params=dict(state.params) | placed)
    if state.ema is None:
      return state
    ema = jax.tree.map(lambda x: x.copy(), state.params)
    return dataclasses.replace(state, ema=ema)


def prepare(
  config: config_lib.Config,
  workdir: pathlib.Path,
  class_names: Sequence[str],
) -> Origin:
  """Finds out what a run starts from; reads the weights it needs.

  Args:
    config: the run's; `init_from`, `init_head` and `init_resize` say what.
    workdir: the run's. Where it holds a checkpoint nothing is read: the run
      goes on, with a model of the shape that it had.
    class_names: of the run's data set, in the order of its labels.

  Raises:
    UserError: nothing there, no sound weights, or another model's.
  """
  if checkpoints.committed(workdir):
    resolved = workdir_lib.read_config(workdir)["resolved"]
    return Origin("going on", None, resolved.get("tokens_mlp_dim", 0))
  if not config.init_from:
    return Origin("starting from random weights")
  return load(config, class_names)


def load(config: config_lib.Config, class_names: Sequence[str]) -> Origin:
  """Reads the weights that `config.init_from` names, and fits them.

  Args:
    config: the run's.
    class_names: of the run's data set, in the order of its labels.

  Raises:
    UserError: nothing there, no sound weights, or another model's.
  """
  path = config.init_from
  source = _read(path)
  broken = weights.not_finite(source.params)
  if broken:
    raise UserError(
      f"init_from={path}: there are NaNs or infinities in "
      f"{weights.shorten(broken)}; take an earlier checkpoint."
    )
  params, notes = dict(source.params), []
  head = params.pop("head", None)
  size = source.image_size
  kind, seed = source.permutation
  if (kind, seed) != _permutation(config.data):
    raise UserError(
      f"init_from={path} was trained on images under another permutation than "
      "this config's, so its weights mean nothing here; set "
      f"--config.data.permute={kind} --config.data.permute_seed={seed}."
    )
  found = _check_same(config, path, params, size)
  wanted = config_lib.image_size(config)
  if kind and size != wanted:
    raise UserError(
      f"init_from={path} was trained on images of {size[0]} x {size[1]} px "
      f"with their {kind} permuted, which no other size has in that order; use "
      f"--config.image_size={size[0]} --config.image_width={size[1]}."
    )
  if size != wanted:
    shape = weights.shape_of(params, f"the weights of init_from={path}")
    method = config.init_resize or resolution.choose(shape, wanted, size)
    params = resolution.resize(params, wanted, method, size)
    notes.append(resolution.describe(shape, wanted, method, size))
    found = resolution.tokens_mlp_dim(shape, wanted, method, size)
  if config.init_head == "keep":
    _check_head(config, head, source.class_names, class_names)
    params["head"] = head
    notes.insert(0, "their head is kept")
  else:
    notes.insert(0, "with a fresh head")
  sentence = f"starting from the weights of {source.name}, " + "; ".join(notes)
  return Origin(sentence, params, found)


@dataclasses.dataclass(frozen=True)
class _Source:
  """Weights as they were found; `class_names` None where nobody knows."""

  name: str
  params: Any
  image_size: tuple[int, int]
  class_names: Sequence[str] | None
  permutation: tuple[str, int] = ("", 0)


def _read(path: str) -> _Source:
  if released.kind(path) == "checkpoint":
    params, info = checkpoints.load_params(path)
    theirs = info["config"]
    side = theirs["image_size"]
    name = f"{info['path']} (step {info['step']})"
    return _Source(
      name,
      params,
      (side, theirs.get("image_width") or side),
      info.get("class_names"),
      _permutation(theirs.get("data", {})),
    )
  params = released.load(path)
  shape = weights.shape_of(params, f"the weights of init_from={path}")
  side = math.isqrt(shape.num_tokens) * shape.patch_size
  heads = {len(c): c for c in map(wordnet.classes, ("imagenet1k", "head"))}
  names = heads.get(shape.num_classes)
  return _Source(path, params, (side, side), names)


def _permutation(data: Mapping[str, Any]) -> tuple[str, int]:
  """That of the images, from a config's group `data`."""
  kind = data.get("permute", "")
  return kind, data.get("permute_seed", 0) if kind else 0


def _check_same(
  config: config_lib.Config, path: str, params: Any, size: tuple[int, int]
) -> int:
  """Refuses weights of another model than the config's, at their own size.

  Returns:
    T of the weights; 0 where they have none that is common to all channels.
  """
  found = weights.shapes(params)
  kernel = found.get("MixerBlock_0/token_mixing/Dense_0/kernel", ())
  t = kernel[1] if len(kernel) == 2 else 0
  module = step_lib.build_model(Origin("", None, t).config(config), 0)
  stem = found.get("stem/kernel", ())
  if len(stem) == 4 and stem[0] != module.patch_size:
    where = f"the weights of init_from={path}"
    shape = weights.shape_of(params, where)
    resolution.check_patch(shape, module.patch_size, where)
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  own = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  lines = weights.mismatches(found, weights.shapes(own))
  if lines:
    raise UserError(
      f"init_from={path} holds another model than this config: "
      + weights.listed(lines)
      + ". Set model.* as it was there."
    )
  return t


def _check_head(
  config: config_lib.Config,
  head: Any,
  theirs: Sequence[str] | None,
  ours: Sequence[str],
) -> None:
  """Refuses to keep a head that is missing or for other classes."""
  new = "use --config.init_head=new for a fresh one"
  keep = f"init_head=keep: the weights of init_from={config.init_from}"
  if head is None:
    raise UserError(f"{keep} have no head; {new}.")
  count = head["kernel"].shape[1]
  if count != len(ours):
    raise UserError(
      f"{keep} have a head for {count:,} classes, and data set "
      f"{config.data.name} has {len(ours):,}; {new}."
    )
  for k, (a, b) in enumerate(zip(theirs or ours, ours, strict=True)):
    if a != b:
      raise UserError(
        f"{keep} have a head for other classes than data set "
        f"{config.data.name} has: class {k} is {a!r} there and {b!r} here; "
        f"{new}."
      )
