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


def parse(found: Mapping[str, Any], where: str) -> Metadata:
  """Reads what `to_json` or `to_strings` gave; `where` is for the error."""

  def get(name: str, default: Any, sound: Callable[[Any], bool]) -> Any:
    value = found.get(name, default)
    if isinstance(value, str) and not isinstance(default, str):
      with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(value)
    if not sound(value):
      raise UserError(f"{where} has {name}={value!r:.60}, which can't be.")
    return value

  def whole(least: int) -> Callable[[Any], bool]:
    return lambda n: type(n) is int and n >= least

  def some_of(*choices: str) -> Callable[[Any], bool]:
    return lambda text: text in choices and isinstance(text, str)

  def is_names(x: Any) -> bool:
    return isinstance(x, list | tuple) and all(isinstance(n, str) for n in x)

  short_side = get("short_side", None, whole(0))
  own = _interpolation(short_side)
  get("crop", _CROP, some_of(_CROP))
  get("interpolation", own, some_of(own))
  ids = tuple(get("class_ids", (), is_names))
  names = tuple(get("class_names", ids, is_names)) or ids
  if ids and len(ids) != len(names):
    raise UserError(
      f"{where} has {len(ids):,} class_ids, and another number of class_names."
    )
  return Metadata(
    image_size=(
      get("image_height", None, whole(1)),
      get("image_width", None, whole(1)),
    ),
    short_side=short_side,
    loss=get("scores", "", some_of("softmax", "sigmoid")),
    class_ids=ids or names or None,
    class_names=names or None,
    dtype=get("dtype", "", some_of("", "float32", "bfloat16")),
  )


def check(found: Metadata, wanted: Metadata, where: str) -> None:
  """Refuses what was read back, unless it is what was written."""
  if found != wanted:
    a, b = dataclasses.asdict(found), dataclasses.asdict(wanted)
    wrong = ", ".join(k for k in a if a[k] != b[k])
    raise UserError(
      f"{where} doesn't say what was written to it: {wrong} differ. Write it "
      "to another disk."
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
