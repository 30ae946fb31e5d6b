"""What is known of a model besides its weights: classes, loss, preprocessing.

ONNX and safetensors files have it inside, as strings, of which lists and
numbers are JSON; a folder of StableHLO has it in info.json, and an .npz file in
FILE.npz.json beside it.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mixer import errors, files, npz
from mixer.errors import UserError

DTYPES = ("float32", "bfloat16")
_CROP = "center"


@dataclasses.dataclass(frozen=True)
class Metadata:
  """Classes, loss, and what is done to an image before.

  Attributes:
    image_size: (height, width) in pixels.
    short_side: to which the shorter side is resized, by mean over areas, before
      the central crop; 0 where images are squeezed to their size, bilinearly.
    loss: that it was trained with, "softmax" or "sigmoid".
    class_ids: of its outputs, in order; None where nobody knows.
    class_names: the same, for people.
    dtype: of activations and matmul operands; "" for what suits the file.
  """

  image_size: tuple[int, int]
  short_side: int
  loss: str
  class_ids: tuple[str, ...] | None
  class_names: tuple[str, ...] | None
  dtype: str = ""

  def to_json(self, **more: Any) -> dict[str, Any]:
    """JSON values by name; without what nobody knows."""
    height, width = self.image_size
    first = f"squeeze to {height} x {width}, bilinearly"
    if self.short_side:
      first = (
        f"resize the shorter side to {self.short_side} by mean over areas, "
        f"crop the central {height} x {width}"
      )
    found = {
      "image_height": height,
      "image_width": width,
      "short_side": self.short_side,
      "crop": _CROP,
      "interpolation": _interpolation(self.short_side),
      "preprocessing": f"RGB, {first} (height x width), uint8; the model "
      "itself scales them.",
      "scores": self.loss,
      "dtype": self.dtype or None,
      "class_ids": self.class_ids,
      "class_names": self.class_names,
      **more,
    }
    return {k: v for k, v in found.items() if v is not None}

  def to_strings(self, **more: str) -> dict[str, str]:
    """The same as strings."""
    return {
      k: errors.printable(v) if isinstance(v, str) else files.json_text(v)
      for k, v in self.to_json(**more).items()
    }


def _interpolation(short_side: int) -> str:
  return "area" if short_side else "bilinear"


def _is_whole(x: Any) -> bool:
  return type(x) is int and x >= 0


def _is_names(x: Any) -> bool:
  return isinstance(x, list | tuple) and all(isinstance(n, str) for n in x)


# What stands for a value that isn't there, and which are sound.
_VALUES: dict[str, tuple[Any, Callable[[Any], bool]]] = {
  "image_height": (None, lambda x: _is_whole(x) and x > 0),
  "image_width": (None, lambda x: _is_whole(x) and x > 0),
  "short_side": (None, _is_whole),
  "crop": (_CROP, lambda x: x == _CROP),
  "interpolation": ("", lambda x: x in ("", "area", "bilinear")),
  "scores": ("", lambda x: x in ("softmax", "sigmoid")),
  "dtype": ("", lambda x: x in ("", *DTYPES)),
  "class_ids": ((), _is_names),
  "class_names": ((), _is_names),
}


def parse(found: Mapping[str, Any], where: str) -> Metadata:
  """Reads what `to_json` or `to_strings` gave; `where` is for the error."""
  get = {}
  for name, (default, is_sound) in _VALUES.items():
    value = found.get(name, default)
    if isinstance(value, str) and not isinstance(default, str):
      with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(value)
    if not is_sound(value):
      raise UserError(f"{where} has {name}={value!r:.60}, which can't be.")
    get[name] = value
  own = _interpolation(get["short_side"])
  if get["interpolation"] not in ("", own):
    raise UserError(
      f"{where} has interpolation={get['interpolation']!r}, which can't be "
      f"with short_side={get['short_side']}: that is {own}."
    )
  ids = tuple(get["class_ids"])
  names = tuple(get["class_names"]) or ids
  if ids and len(ids) != len(names):
    raise UserError(
      f"{where} has {len(ids):,} class_ids, and another number of class_names."
    )
  return Metadata(
    (get["image_height"], get["image_width"]),
    get["short_side"],
    get["scores"],
    ids or names or None,
    names or None,
    get["dtype"],
  )


def beside(path: pathlib.Path) -> pathlib.Path:
  """Where the metadata of an .npz file is."""
  return path.with_name(f"{path.name}.json")


def write_beside(path: pathlib.Path, found: Metadata, **more: Any) -> None:
  """Writes an .npz file's; it is bound to the weights that are in the file."""
  content = found.to_json(weights=npz.fingerprint(path), **more)
  with files.atomic_write(beside(path), "w") as f:
    f.write(files.json_text(files.sealed(content), indent=2) + "\n")


def read_beside(path: pathlib.Path, num_classes: int) -> Metadata | None:
  """An .npz file's, whose head has `num_classes`; None where there is none."""
  place = beside(path)
  if not place.exists():
    return None
  content = files.read_json(place, f"what mixer export says of {path}")
  check = content.pop("sha256", None)  # One that somebody wrote has none.
  if (check or "weights" in content) and check != files.json_sha256(content):
    raise UserError(
      f"{place} is damaged, or was changed by hand: its sha256 differs. Export "
      "the model anew, or, to vouch for what it says, remove `sha256` and "
      "`weights` from it."
    )
  if content.get("weights", "") not in ("", npz.fingerprint(path)):
    raise UserError(
      f"{place} was not written with the weights in {path}: export them anew, "
      f"or, if it has nothing to do with them, remove {place}."
    )
  found = parse(content, str(place))
  if found.class_ids and len(found.class_ids) != num_classes:
    raise UserError(
      f"{place} has {len(found.class_ids):,} classes, and {path} has "
      f"{num_classes:,} outputs."
    )
  return found
