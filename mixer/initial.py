"""What a run starts from: random weights, another run's, or released ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from mixer import checkpoints, released, train_step, trained, weights
from mixer import config as config_lib
from mixer import model as model_lib
from mixer import workdir as workdir_lib
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a run starts from."""

  message: str  # For people.
  # Numpy arrays as the run's model takes them, with a head only if it is kept;
  # None for random ones.
  params: Any = None
  # What config.json has of it beside the config: T, which follows the weights.
  resolved: dict[str, int] = dataclasses.field(default_factory=dict)

  def config(self, config: config_lib.Config) -> config_lib.Config:
    """The run's config, with the shape of its model."""
    shape = {f"model.{k}": v for k, v in self.resolved.items()}
    return config_lib.changed(config, shape) if shape else config

  def place(self, state: train_step.TrainState) -> train_step.TrainState:
    """Puts the weights into a freshly made state, and its average."""
    if self.params is None:
      return state

    def put(new: Any, old: jax.Array) -> jax.Array:
      # Each host gives its devices what they hold, in buffers of their own.
      return jax.make_array_from_callback(
        old.shape, old.sharding, lambda index: np.array(new[index])
      )

    def filled(tree: Any) -> Any:
      own = {k: tree[k] for k in self.params}
      return dict(tree) | jax.tree.map(put, self.params, own)

    ema = None if state.ema is None else filled(state.ema)
    return dataclasses.replace(state, params=filled(state.params), ema=ema)


def find(
  config: config_lib.Config,
  workdir: epath.PathLike,
  class_names: Sequence[str],
) -> Origin:
  """What a run in `workdir` starts from; one that goes on reads no weights."""
  if checkpoints.committed(workdir):
    resolved = workdir_lib.read_config(workdir)["resolved"]
    kept = {k: v for k, v in resolved.items() if k == "tokens_mlp_dim"}
    return Origin("going on", None, kept)
  if config.init_from == config_lib.UNNAMED:
    raise UserError(
      "no weights are named to fine-tune: name them as in configs/finetune.py:"
      "model=imagenet21k/Mixer-B_16, or by --config.init_from=PATH. For random "
      f"ones: --config=configs/scratch.py:dataset={config.data.name}."
    )
  if not config.init_from:
    return Origin("starting from random weights")
  return load(config, class_names)


def load(config: config_lib.Config, class_names: Sequence[str]) -> Origin:
  """Reads the weights that `config.init_from` names, and fits them.

  `class_names` are of the run's data set, in the order of its labels.
  """
  found = trained.load(config.init_from)
  weights.check_finite(found.params, f"init_from={config.init_from}")
  _check_same(config, found)
  found, fitting = trained.fitted(
    found, config_lib.image_size(config), config.init_resize
  )
  params, head = dict(found.params), "their head is kept"
  if config.init_head == "keep":
    _check_head(config, found, class_names)
  else:
    params.pop("head", None)
    head = "with a fresh head"
  source = found.source if found.config else found.origin
  message = f"starting from the weights of {source}, {head}"
  message = f"{message}; {fitting}" if fitting else message
  shape = {"tokens_mlp_dim": found.module.tokens_mlp_dim}
  return Origin(message, params, shape)


def _check_same(config: config_lib.Config, found: trained.Trained) -> None:
  """Refuses weights of another model than the config's, at their own size."""
  path, theirs, data = config.init_from, found.module, config.data
  seeds = theirs.permute_seed, data.permute_seed
  if theirs.permute != data.permute or (data.permute and len({*seeds}) > 1):
    raise UserError(
      f"init_from={path} was trained on images permuted otherwise: set "
      f"--config.data.permute={theirs.permute} "
      f"--config.data.permute_seed={theirs.permute_seed}."
    )
  if theirs.gelu != config.model.gelu:
    raise UserError(
      f"init_from={path} was trained with the {theirs.gelu} form of GELU: set "
      f"--config.model.gelu={theirs.gelu}."
    )
  # Its T follows the weights, and so does its number of tokens.
  width = theirs.tokens_mlp_dim
  own = model_lib.from_config(config, 0).clone(tokens_mlp_dim=width)
  sides = (s // theirs.patch_size * own.patch_size for s in found.image_size)
  headless = {k: v for k, v in found.params.items() if k != "head"}
  if lines := trained.mismatches(headless, own, sides):
    raise UserError(
      f"init_from={path} holds another model than this config: {lines}. Set "
      "model.* as it was there."
    )


def _check_head(
  config: config_lib.Config, found: trained.Trained, ours: Sequence[str]
) -> None:
  """Refuses to keep a head that is missing or for other classes."""
  theirs = found.class_ids or ()
  if theirs == tuple(ours):
    return
  pairs = enumerate(zip(theirs, ours, strict=False))
  differ = [f"; class {k} is {a!r} and {b!r}" for k, (a, b) in pairs if a != b]
  raise UserError(
    f"init_head=keep: init_from={config.init_from} has a head for other "
    f"classes than data set {config.data.name}: {found.num_classes:,} there "
    f"and {len(ours):,} here{''.join(differ[:1])}. {found.unnamed} Use "
    "--config.init_head=new for a fresh one."
  )


_SHAPE = (
  *("variant", "num_blocks", "hidden_dim", "tokens_mlp_dim"),
  *("channels_mlp_dim", "gelu", "token_mixing", "token_groups"),
  *("group_projection", "pyramid_blocks", "pyramid_tokens"),
)


def model_of(path: str) -> tuple[dict[str, Any], tuple[int, int]]:
  """The keys of config.model, and the image size, that weights are of."""
  file = released.resolve(path)
  if not file:  # JAX must not start: hosts meet later.
    place = workdir_lib.path(path)
    if place.parent.name == "checkpoints":
      place = place.parent.parent
    stored = workdir_lib.read_config(place)
    config = config_lib.from_json(stored["config"], stored["resolved"])
    keys = {key: config.model[key] for key in _SHAPE}
    return keys, config_lib.image_size(config)
  model = trained.of_file(path, file)
  module, patch = model.module, model.module.patch_size
  found = {k: getattr(module, k) for k in _SHAPE if hasattr(module, k)}
  gelu = {"gelu": found.pop("gelu")}
  for letter in "SBLH":
    variant = f"{letter}/{patch}"
    spec = dataclasses.asdict(model_lib.parse_variant(variant))
    if spec.items() >= found.items():
      return {"variant": variant} | gelu, model.image_size
  return {"variant": f"S/{patch}"} | found | gelu, model.image_size
