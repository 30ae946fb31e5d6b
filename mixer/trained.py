"""A trained model with all that evaluating it, or predicting with it, needs.

From a run everything comes from the checkpoint's own metadata; from an .npz
file from FILE.npz.json beside it, which `mixer export` writes, from what is
known of released files, or else from the weights themselves; from a
.safetensors file as `timm_format` says.
"""

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import (
  __version__,
  checkpoints,
  errors,
  files,
  metrics,
  released,
  resolution,
  runtime,
  timm_format,
  weights,
)
from mixer import config as config_lib
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
  """A trained model."""

  module: model_lib.MlpMixer  # With a head if the weights have one.
  params: Any  # Nested dict of float32 numpy arrays.
  image_size: tuple[int, int]  # (height, width) in pixels.
  # To which the shorter side is resized, by mean over areas, before the central
  # crop; 0 where images are squeezed to their size, bilinearly.
  short_side: int
  class_ids: tuple[str, ...] | None  # In order; None where nobody knows.
  class_names: tuple[str, ...] | None  # The same, for people.
  loss: str  # That it was trained with, "softmax" or "sigmoid".
  source: str  # Where it is, for people.
  origin: str  # The same, and what was done to it.
  config: config_lib.Config | None = None  # Of the run that it comes from.
  checkpoint: str = ""  # The path of that.
  interpolation: str = ""  # "pillow_bicubic", "pillow_bilinear": instead.

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
      "outputs are, so they are numbers; a workdir, or `mixer export`, does."
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
    ("dtype", dtype, ("float32", "bfloat16")),
  ):
    if value and value not in known:
      raise UserError(f"{name}={value!r}: expected one of {', '.join(known)}.")
  file = released.resolve(path)
  found = of_file(path, file) if file else _of_run(path, averaged)
  if file and file.suffix == timm_format.SUFFIX:
    copy = released.COPIES.get(released.name_of(path), "")
    exact = found.module.gelu == "exact"
    gelu = "exact GELU, as timm computes it" if exact else "tanh GELU"
    words = f"SHA-256 of its parameters {weights.digest(found.params)}"
    origin = f"{path} ({f'copy {copy}; ' if copy else ''}{gelu}; {words})"
    found = dataclasses.replace(found, origin=origin)
  if image_size is not None:
    found, message = fitted(found, image_size, method)
    if message:
      found = dataclasses.replace(found, origin=f"{found.origin}; {message}")
  if dtype:
    module = found.module.clone(dtype=jnp.dtype(dtype))
    found = dataclasses.replace(found, module=module)
  return found


def of_flags(args: argparse.Namespace) -> Trained:
  """Starts JAX, and loads the model that flags name (`flags.add_model`)."""
  runtime.start(args.platform)
  return load(args.checkpoint, args.image_size, args.resize, args.dtype)


def _best(path: str) -> tuple[str, str]:
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
  records = metrics.examine(workdir).records.values()
  scores = metrics.scores(records, name)
  there = checkpoints.committed(workdir)
  best = checkpoints.best({s: v for s, v in scores.items() if s in there})
  if best is None:
    return path, ", newest"
  return f"{workdir}/checkpoints/{best}", f", best by {name}"


def _of_run(path: str, averaged: bool) -> Trained:
  path, best = _best(path)
  params, info = checkpoints.load_params(path, averaged=averaged)
  where = f"{info['path']} (step {info['step']}{best}"
  try:
    config = config_lib.from_json(info["config"], info.get("resolved") or {})
    class_ids = tuple(info["class_names"])
    size = config_lib.image_size(config)
    module = model_lib.plain(model_lib.from_config(config, len(class_ids)))
    if lines := mismatches(params, module, size):
      raise ValueError(lines)
  except Exception as e:  # A foreign config may raise anything.
    raise UserError(
      f"checkpoint {info['path']} holds other weights or another config than "
      f"this version of mixer saves ({first_line(e)}); take another."
    ) from e
  kept = ", averaged weights" if averaged and info["averaged"] else ""
  return Trained(
    module=module,
    params=params,
    image_size=size,
    short_side=config.data.eval_short_side,
    class_ids=class_ids,
    class_names=names_for_people(class_ids),
    loss=config.loss.name,
    source=f"{where})",
    origin=f"{where}{kept})",
    config=config,
    checkpoint=info["path"],
  )


def mismatches(params: Any, module: model_lib.MlpMixer, size: Any) -> str:
  """What is wrong with weights for a module and images of a size; or ""."""
  images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
  own = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  lines = weights.mismatches(weights.shapes(params), weights.shapes(own))
  return weights.shorten(lines)


def of_file(path: str, file: pathlib.Path) -> Trained:
  """The model of a file of weights, to which `path` resolves."""
  params = released.read(file, path)
  shape = dataclasses.asdict(weights.shape_of(params))
  tokens, p = shape.pop("num_tokens"), shape["patch_size"]
  side, ids, loss = math.isqrt(tokens) * p, None, "softmax"
  name, is_timm = released.name_of(path), file.suffix == timm_format.SUFFIX
  if name:
    of_21k = name.startswith("imagenet21k/")
    ids = wordnet.classes("head" if of_21k else "imagenet1k")
  if "head" in params and np.mean(params["head"]["bias"]) < _SIGMOID_BIAS:
    loss = "sigmoid"
  known: dict[str, Any] = dict(image_size=(side, side), class_ids=ids)
  known |= dict(class_names=names_for_people(ids) if ids else None, loss=loss)
  known |= dict(short_side=round(side * _SHORT_SIDE / _CROP))
  if not (name and is_timm):  # The hub's copy of it is used as released.
    known |= read_beside(file)
  classes, k = known["class_ids"], shape["num_classes"]
  if math.prod(known["image_size"]) != tokens * p**2:
    said = timm_format.CONFIG if is_timm else beside(file).name
    raise UserError(
      f"the weights in {path} are for images of another size than "
      f"{known['image_size']}; where images are no squares, {said} has to say "
      "it, as `mixer export` writes it."
    )
  if classes and len(classes) != k:
    again = "Remove it: it is then" if name else "It must be exported or"
    raise UserError(
      f"{file} is not {path}: it has {k:,} classes, not {len(classes):,}. "
      f"{again} downloaded anew."
    )
  how: Any = dict(dtype=jnp.dtype(known.pop("dtype", "float32")))
  module = model_lib.MlpMixer(**shape, **how, gelu=known.pop("gelu", "tanh"))
  return Trained(module, params, **known, source=path, origin=path)


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
      f"their {found.module.permute} permuted: it takes no other "
      "--config.image_size=."
    )
  params, message = resolution.fit(found.params, size, method, old)
  width = weights.shape_of(params).tokens_mlp_dim
  changed = dataclasses.replace(
    found,
    module=found.module.clone(tokens_mlp_dim=width),
    params=params,
    image_size=size,
    short_side=round(max(size) * found.short_side / max(old)),
  )
  return changed, message


def names_for_people(class_ids: tuple[str, ...]) -> tuple[str, ...]:
  """Names in place of WordNet ids; others stay as they are."""
  try:
    return wordnet.names(class_ids)
  except UserError:  # Some are no WordNet ids that are known here.
    return class_ids


def metadata(model: Trained, dtype: str = "", **more: Any) -> dict[str, Any]:
  """What goes along with exported weights, as JSON by name."""
  height, width = model.image_size
  size = f"{height} x {width}"
  usual = "area" if model.short_side else "bilinear"
  way = model.interpolation or usual
  first = f"squeeze to {size} ({way})"
  if model.short_side:
    first = f"resize the shorter side to {model.short_side} ({way}), "
    first += f"crop the central {size}"
  found = {
    "image_height": height,
    "image_width": width,
    "short_side": model.short_side,
    "crop": "center",
    "interpolation": way,
    "preprocessing": f"RGB, {first} (height x width), uint8; the model "
    "itself scales them.",
    "scores": model.loss,
    "gelu": model.module.gelu,
    "dtype": dtype or None,
    "class_ids": model.class_ids,
    "class_names": model.class_names,
    **more,
    "mixer_version": __version__,
    "source": model.origin,
  }
  return {k: v for k, v in found.items() if v is not None}


def strings(found: dict[str, Any]) -> dict[str, str]:
  """The same as strings, of which lists and numbers are JSON."""
  return {
    k: errors.printable(v) if isinstance(v, str) else files.json_text(v)
    for k, v in found.items()
  }


def beside(file: pathlib.Path) -> pathlib.Path:
  """Where the metadata of an .npz file is."""
  return file.with_name(f"{file.name}.json")


def write_beside(file: pathlib.Path, model: Trained) -> None:
  """Writes an .npz file's metadata, bound to the weights that are in it."""
  dtype = jnp.dtype(model.module.dtype).name
  content = metadata(model, dtype, weights=weights.fingerprint(file))
  with files.atomic_write(beside(file), "w") as f:
    f.write(files.json_text(files.sealed(content), indent=2) + "\n")


def read_beside(file: pathlib.Path) -> dict[str, Any]:
  """A file's metadata as attributes of `Trained`, dtype and GELU.

  {} where there is none.
  """
  if file.suffix == timm_format.SUFFIX:
    return _attributes(timm_format.about(file))
  place = beside(file)
  if not place.exists():
    return {}
  found = files.read_json(place, f"what mixer export says of {file}")
  check = found.pop("sha256", None)
  same = check == files.json_sha256(found)
  if not same or found["weights"] != weights.fingerprint(file):
    raise UserError(
      f"{place} is damaged, or was not written with the weights in {file}: "
      f"export the model anew, or remove {place}."
    )
  return _attributes(found)


def _attributes(found: dict[str, Any]) -> dict[str, Any]:
  """What metadata say; without those that they leave out."""
  known = {k: found[k] for k in ("short_side", "dtype", "gelu") if k in found}
  if "image_height" in found:
    known["image_size"] = (found["image_height"], found["image_width"])
  if ids := tuple(found.get("class_ids") or ()):
    names = tuple(found.get("class_names") or names_for_people(ids))
    known |= {"class_ids": ids, "class_names": names}
  if "scores" in found:
    known["loss"] = found["scores"]
  if (way := found.get("interpolation", "")).startswith("pillow_"):
    known["interpolation"] = way
  return known
