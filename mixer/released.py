"""The authors' released weights: found, loaded strictly, written back.

The files (.npz) lie at https://storage.googleapis.com/mixer_models. Their keys
are '/'-joined names as `mixer.weights` has them, or older ones
(`mixer.older_layout`).
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from typing import Any, Literal

import jax
import numpy as np

from mixer import checkpoints, download, model, npz, older_layout, weights
from mixer.errors import UserError
from mixer.resolution import resize

__all__ = [
  "NAMES",
  "is_name",
  "kind",
  "load",
  "name_of",
  "resize",
  "resolve",
  "save",
]

NAMES = {
  "imagenet1k": ("Mixer-B_16", "Mixer-L_16"),
  "imagenet21k": ("Mixer-B_16", "Mixer-L_16"),
  "sam": ("Mixer-B_16", "Mixer-B_32"),
  "gsam": (
    "Mixer-B_16",
    "Mixer-B_32",
    "Mixer-S_16",
    "Mixer-S_32",
    "Mixer-S_8",
  ),
}
_URL = "https://storage.googleapis.com/mixer_models"
_IMAGE_SIZE = 224  # Of all of them.

Dialect = Literal["current", "older"]


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Loads weights.

  What is there under that path on this machine comes first: a file is an .npz,
  a folder a workdir of train.py (its newest checkpoint) or one of its
  checkpoints; of a run that kept an average of its weights, the average. Else
  it is the name or the address of a released file, which is downloaded once.

  Args:
    path: `weights.npz`, `runs/b16`, `runs/b16/checkpoints/300`,
      `imagenet21k/Mixer-B_16` (with or without .npz), or the https:// or gs://
      address of a released file.

  Returns:
    Nested dict of float32 numpy arrays, in the current layout.

  Raises:
    UserError: nothing of the kind, not readable, not the weights of a whole
      Mixer, or not finite.
  """
  if kind(path) == "checkpoint":
    params, _ = checkpoints.load_params(str(path))
    weights.shape_of(params, f"the weights in {path}")
    _check_finite(params, str(path))
    return params
  file = resolve(path)
  if _exists(path):
    return _load(file, None)
  try:
    return _load(file, _name(str(path)))
  except UserError as e:
    raise UserError(
      f"{e} Remove {file}, which {path} stands for: it is then downloaded anew."
    ) from e


def save(
  params: weights.Params,
  path: str | os.PathLike[str],
  dialect: Dialect = "current",
) -> None:
  """Writes weights as the authors did; the same weights give the same bytes.

  Args:
    params: nested dict of float32 arrays, of a whole Mixer.
    path: of the file, ending in .npz; it is there whole or not at all.
    dialect: the names in it; "older" for tools that know only those. Where the
      singleton axes stood isn't published; here there is one, in front.

  Raises:
    UserError: another name or other weights; the disk refuses.
  """
  path = pathlib.Path(path).expanduser()
  if path.suffix != ".npz":
    raise UserError(f"{path} can't be written: expected a name ending in .npz.")
  where = f"the weights for {path}"
  weights.shape_of(params, where)
  flat = {k: np.asarray(v) for k, v in weights.flatten(params).items()}
  wrong = [f"{k} is {v.dtype}" for k, v in flat.items() if v.dtype != "float32"]
  if wrong:
    raise UserError(
      f"{where} are not all float32, as released ones are: "
      f"{weights.shorten(wrong)}."
    )
  _check_finite(flat, where)
  npz.write(path, older_layout.to_older(flat) if dialect == "older" else flat)


def kind(path: str | os.PathLike[str]) -> Literal["npz", "checkpoint"]:
  """What a path is, without reading or downloading it.

  Raises:
    UserError: neither; lists the names.
  """
  place = _place(path)
  # One of them that is gone: what is there is told by who reads it.
  gone = place.name.isdecimal() and place.parent.name == "checkpoints"
  if os.path.isdir(place) or (gone and os.path.isdir(place.parent)):
    return "checkpoint"
  if _exists(path) or is_name(path):
    return "npz"
  if str(path).startswith("gs://") and not str(path).endswith(".npz"):
    return "checkpoint"  # Asking the store is left to who reads it.
  names = [f"{folder}/{name}" for folder in NAMES for name in NAMES[folder]]
  raise UserError(
    f"there are no weights at {path}: expected an .npz file, a workdir of "
    "train.py or one of its checkpoints on this machine, or the name of a "
    f"released file: {', '.join(names)}."
  )


def is_name(path: str | os.PathLike[str]) -> bool:
  """Whether it is the name, or the address, of a released file."""
  return _name(str(path)) is not None


def resolve(path: str | os.PathLike[str]) -> pathlib.Path:
  """The .npz file on this machine; downloads it if it must.

  Downloaded files lie in `$MIXER_CACHE/released/<folder>/<file>`, where
  MIXER_CACHE is `~/.cache/mixer` unless set. MIXER_RELEASED_URL replaces the
  address of their folders by that of a mirror.

  Raises:
    UserError: nothing of the kind; it is a checkpoint; or it can't be
      downloaded.
  """
  if kind(path) == "checkpoint":
    raise UserError(f"{path} is a folder where an .npz file was expected.")
  if _exists(path):
    return _place(path)
  name = _name(str(path))
  file = _cache() / f"{name}.npz"
  if not file.exists():
    download.fetch(f"{_base()}/{name}.npz", file, npz.shapes)
  return file


def name_of(path: str | os.PathLike[str]) -> str | None:
  """The released file that a path stands for, or that has its content.

  Args:
    path: as for `load`, of no checkpoint.

  Returns:
    "imagenet1k/Mixer-B_16"; None for weights that are another's, as far as can
    be seen: a copy is known where the file itself has been downloaded.

  Raises:
    UserError: it can't be read.
  """
  if not _exists(path):
    return _name(str(path))
  found = npz.fingerprint(pathlib.Path(path).expanduser())
  for file in _cache().glob("*/*.npz"):
    name = _name(f"{file.parent.name}/{file.name}")
    with contextlib.suppress(UserError):  # Another file that is damaged.
      if name and npz.fingerprint(file) == found:
        return name
  return None


def _cache() -> pathlib.Path:
  cache = pathlib.Path(os.environ.get("MIXER_CACHE") or "~/.cache/mixer")
  return cache.expanduser().absolute() / "released"


def _exists(path: str | os.PathLike[str]) -> bool:
  return os.path.exists(_place(path))


def _place(path: str | os.PathLike[str]) -> pathlib.Path:
  """On this machine; of a name that can't be one, nothing is there."""
  return pathlib.Path(os.path.expanduser(path))


def _base() -> str:
  return (os.environ.get("MIXER_RELEASED_URL") or _URL).rstrip("/")


def _name(path: str) -> str | None:
  """`imagenet21k/Mixer-B_16` of that, of its file or its address."""
  for base in (_base(), _URL, "gs://mixer_models"):
    path = path.removeprefix(f"{base}/")
  folder, _, name = path.removesuffix(".npz").partition("/")
  return f"{folder}/{name}" if name in NAMES.get(folder, ()) else None


def _load(path: pathlib.Path, name: str | None) -> dict[str, Any]:
  """Reads a file; compares names and shapes before it reads the values.

  Args:
    path: of an .npz file.
    name: the released file that it should be.

  Raises:
    UserError: it is not readable, not a whole Mixer's, or another one's.
  """
  names, like, shape = _look(path)
  if name is not None:
    _check_is(path, shape, name)
  arrays = npz.read(path)
  flat = {new: arrays[k].reshape(like[new].shape) for k, new in names.items()}
  _check_finite(flat, str(path))
  return weights.unflatten(flat)


def shape_of(path: str | os.PathLike[str]) -> weights.Shape:
  """The shape of the model in an .npz file; reads no values.

  Raises:
    UserError: it is not readable, or not a whole Mixer's.
  """
  return _look(resolve(path))[2]


def _look(
  path: pathlib.Path,
) -> tuple[dict[str, str], dict[str, jax.ShapeDtypeStruct], weights.Shape]:
  """A file's names with the current ones, the arrays by these, the shape."""
  found = npz.shapes(path)
  _refuse_others(path, found)
  if older_layout.is_older(found):
    names = older_layout.current_names(found, str(path))
    like = _abstract(
      {new: older_layout.squeezed(k, found[k]) for k, new in names.items()}
    )
    try:
      shape = weights.shape_of(like, "they")
    except UserError as e:
      says = older_layout.in_own_words(str(e), names)
      raise UserError(
        f"the weights in {path} have the names of the older layout, and {says} "
        "(Shapes are without singleton axes.)"
      ) from e
  else:
    names = {k: k for k in found}
    like = _abstract(found)
    shape = weights.shape_of(like, f"the weights in {path}")
  return names, like, shape


def _abstract(
  shapes: dict[str, tuple[int, ...]],
) -> dict[str, jax.ShapeDtypeStruct]:
  return {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}


def _check_finite(params: weights.Params, where: str) -> None:
  broken = weights.not_finite(params)
  if broken:
    raise UserError(
      f"{where}: there are NaNs or infinities in {weights.shorten(broken)}. "
      "Such weights compute nothing; take those of an earlier checkpoint."
    )


def _check_is(path: pathlib.Path, shape: weights.Shape, name: str) -> None:
  """Base names are the same in every folder, so files get mixed up."""
  folder, _, base = name.partition("/")
  spec = model.parse_variant(base.removeprefix("Mixer-").replace("_", "/"))
  wanted = weights.Shape(
    **dataclasses.asdict(spec),
    num_tokens=(_IMAGE_SIZE // spec.patch_size) ** 2,
    num_classes=21_843 if folder == "imagenet21k" else 1000,
  )
  lines = [
    f"{field} is {there}, not {right}"
    for (field, there), right in zip(
      dataclasses.asdict(shape).items(),
      dataclasses.astuple(wanted),
      strict=True,
    )
    if there != right
  ]
  if lines:
    raise UserError(f"{path} is not {name}: {', '.join(lines)}.")


def _refuse_others(path: pathlib.Path, found: Any) -> None:
  """Names checkpoints of other kinds, of which a list of keys says little."""
  for key in found:
    if re.search(r"MultiHeadDotProductAttention|pos_embedding", key):
      raise UserError(
        f"{path} holds a Vision Transformer, not an MLP-Mixer: {key} is among "
        "its parameters."
      )
  for key in found:
    top = key.split("/")[0]
    if top in ("opt", "opt_state", "params", "target"):
      raise UserError(
        f"{path} is a whole training state ({key}, ...), where weights alone "
        "were expected. Write what lies under `params/` (`opt/target/` in the "
        "oldest) to an .npz of its own, without that prefix."
      )
