"""A trained model with all that evaluating it, or predicting with it, needs.

From a run everything comes from the checkpoint's own metadata; from an .npz
file from what is beside it (`mixer.metadata`), from what is known of released
files, or else from the weights themselves.
"""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import checkpoints, metrics, released, resolution, runtime, weights
from mixer import config as config_lib
from mixer import metadata as metadata_lib
from mixer import model as model_lib
from mixer import workdir as workdir_lib
from mixer.datasets import wordnet
from mixer.errors import UserError, first_line

# The paper's short side for its crop.
_SHORT_SIDE, _CROP = 256, 224
# A head that was trained with a sigmoid loss expects each class to be absent:
# its biases begin at about -7 (1,000 classes) or -10 (21,843) and stay near. A
# softmax loss leaves their mean where it begins, at 0.
_SIGMOID_BIAS = -3.0


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained model; see `metadata.Metadata` for what isn't said here."""

  module: model_lib.MlpMixer  # With a head if the weights have one.
  params: Any  # Nested dict of float32 numpy arrays.
  image_size: tuple[int, int]
  short_side: int
  class_ids: tuple[str, ...] | None
  class_names: tuple[str, ...] | None
  loss: str
  source: str  # Where it is, for people.
  origin: str  # The same, and what was done to it.
  config: config_lib.Config | None = None  # Of the run that it comes from.

  @property
  def num_classes(self) -> int:
    """K; 0 without a head."""
    return self.module.num_classes

  @property
  def unnamed(self) -> str:
    """A sentence where classes are numbers, as nobody knows them; else ""."""
    if self.class_ids or not self.num_classes:
      return ""
    return (
      f"{self.source} doesn't say which classes its {self.num_classes:,} "
      "outputs are, so they are numbers. A workdir knows them, and so does a "
      "file that `mixer export` writes, by FILE.npz.json beside it; a released "
      "one is known by its name."
    )

  @property
  def metadata(self) -> metadata_lib.Metadata:
    """What goes along with its weights where it is exported."""
    return metadata_lib.Metadata(
      *(self.image_size, self.short_side, self.loss),
      *(self.class_ids, self.class_names),
    )


def load(
  path: str,
  image_size: int | Sequence[int] | None = None,
  method: str = "",
  dtype: str = "",
  averaged: bool = True,
) -> Trained:
  """Loads a trained model, see `mixer.load`; `method` is its `resize`.

  The short side before the crop changes in proportion to `image_size`.
  """
  for name, value, known in (
    ("resize", method, resolution.METHODS),
    ("dtype", dtype, metadata_lib.DTYPES),
  ):
    if value and value not in known:
      raise UserError(
        f"{name}={value!r} is not known; expected one of {', '.join(known)}."
      )
  is_file = released.kind(path) == "npz"
  found = _of_file(path) if is_file else _of_run(path, averaged)
  if image_size is not None:
    found, said = fitted(found, image_size, method)
    if said:
      found = dataclasses.replace(found, origin=f"{found.origin}; {said}")
  if dtype:
    module = found.module.clone(dtype=jnp.dtype(dtype))
    found = dataclasses.replace(found, module=module)
  return found


def of_flags(args: argparse.Namespace) -> Trained:
  """Starts JAX, and loads the model that the flags of `flags.add_model` name.

  Raises:
    UserError: no such platform; or as of `load`.
  """
  runtime.start(args.platform)
  return load(args.checkpoint, args.image_size, args.resize, args.dtype)


def _chosen(path: str) -> tuple[str, str]:
  """The best checkpoint of a workdir that keeps it, and words about that."""
  workdir = workdir_lib.path(path)
  if not (workdir / workdir_lib.CONFIG).exists():
    return path, ""  # It names a checkpoint.
  try:
    name = workdir_lib.read_config(workdir)["config"].get("keep_best")
  except UserError:
    return path, f", newest, as {workdir_lib.CONFIG} can't be read"
  if not name:
    return path, ""
  found = metrics.examine(workdir)
  known = metrics.scores(found.records.values(), name)
  there = checkpoints.committed(workdir)
  best = checkpoints.best({s: v for s, v in known.items() if s in there})
  sure = ", as far as damaged metrics tell" if found.damage else ""
  if best is None:
    return path, f", newest{sure}"
  return f"{workdir}/checkpoints/{best}", f", best by {name}{sure}"


def _of_run(path: str, averaged: bool) -> Trained:
  path, best = _chosen(path)
  params, info = checkpoints.load_params(path, averaged=averaged)
  where = info["path"]
  try:
    config = config_lib.from_json(info["config"], info.get("resolved") or {})
    class_ids = tuple(info["class_names"])
    size = config_lib.image_size(config)
    module = model_lib.plain(model_lib.from_config(config, len(class_ids)))
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    like = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  except UserError:
    raise
  except Exception as e:  # A foreign config may raise anything.
    raise UserError(
      f"checkpoint {where} lacks the config and the class names that train.py "
      f"saves with it ({first_line(e)}); take another checkpoint."
    ) from e
  if lines := weights.mismatches(weights.shapes(params), weights.shapes(like)):
    raise UserError(
      f"checkpoint {where} holds weights of another model than the config that "
      f"was saved with it: {weights.shorten(lines)}. It was made by another "
      "version of mixer, or is not whole; take another checkpoint."
    )
  kept = ", averaged weights" if averaged and info["averaged"] else ""
  return Trained(
    module=module,
    params=params,
    image_size=size,
    short_side=config.data.eval_short_side,
    class_ids=class_ids,
    class_names=names_for_people(class_ids),
    loss=config.loss.name,
    source=f"{where} (step {info['step']}{best})",
    origin=f"{where} (step {info['step']}{best}{kept})",
    config=config,
  )


def _of_file(path: str) -> Trained:
  params = released.load(path)
  file = released.resolve(path)
  shape = weights.shape_of(params, f"the weights in {path}")
  known = metadata_lib.read_beside(file, shape.num_classes)
  known = known or _of_weights(path, params, shape)
  height, width = known.image_size
  p = shape.patch_size
  if height % p or width % p or height * width != shape.num_tokens * p**2:
    raise UserError(
      f"the weights in {path} are for {shape.num_tokens} patches of {p} px, "
      f"which images of {height} x {width} px don't have. What `mixer export` "
      f"writes into {metadata_lib.beside(file).name} says the right size."
    )
  attributes = dataclasses.asdict(shape)
  attributes.pop("num_tokens")  # It follows from the image.
  attributes["dtype"] = jnp.dtype(known.dtype or "float32")
  return Trained(
    module=model_lib.MlpMixer(**attributes),
    params=params,
    image_size=known.image_size,
    short_side=known.short_side,
    class_ids=known.class_ids,
    class_names=known.class_names,
    loss=known.loss,
    source=path,
    origin=path,
  )


def _of_weights(
  path: str, params: weights.Params, shape: weights.Shape
) -> metadata_lib.Metadata:
  """What can be known without metadata: of released files all."""
  side = math.isqrt(shape.num_tokens) * shape.patch_size
  class_ids = None
  if name := released.name_of(path):
    of_21k = name.startswith("imagenet21k/")
    class_ids = wordnet.classes("head" if of_21k else "imagenet1k")
  loss = "softmax"
  if shape.num_classes and np.mean(params["head"]["bias"]) < _SIGMOID_BIAS:
    loss = "sigmoid"
  names = names_for_people(class_ids) if class_ids else None
  short_side = round(side * _SHORT_SIDE / _CROP)
  return metadata_lib.Metadata((side, side), short_side, loss, class_ids, names)


def fitted(
  found: Trained, image_size: int | Sequence[int], method: str = ""
) -> tuple[Trained, str]:
  """The same model for images of another size, and a sentence about it."""
  old, size = found.image_size, resolution.pixels(image_size)
  if size == old:
    return found, ""
  if found.module.permute:
    raise UserError(
      f"{found.source} was trained on images of {old[0]} x {old[1]} px with "
      f"their {found.module.permute} permuted, which no other size has in that "
      "order; leave --image_size (in training --config.image_size) at that."
    )
  shape = weights.shape_of(found.params, f"the weights in {found.origin}")
  change = resolution.plan(shape, size, method, old)
  params = resolution.resize(found.params, size, change.method, old)
  changed = dataclasses.replace(
    found,
    module=found.module.clone(
      tokens_mlp_dim=weights.shape_of(params).tokens_mlp_dim
    ),
    params=params,
    image_size=size,
    short_side=round(max(size) * found.short_side / max(old)),
  )
  return changed, change.sentence(shape.tokens_mlp_dim)


def names_for_people(class_ids: tuple[str, ...]) -> tuple[str, ...]:
  """Names in place of WordNet ids; others stay as they are."""
  try:
    return wordnet.names(class_ids)
  except UserError:  # Some are no WordNet ids that are known here.
    return class_ids
