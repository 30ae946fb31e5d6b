"""What counts as an image, and how it becomes what the model takes.

A file's bytes go the way of a data set that is made from a folder: turned
upright, where they say so, and then as in evaluation. Pillow's images and
arrays join that way where a file would have been decoded.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mixer import images as images_lib
from mixer import preprocess, text
from mixer.datasets.preparation import inspection
from mixer.errors import UserError, first_line

_AS_SEEN = inspection.Options(upright=True, white_ground=True)


class Takes(Protocol):
  """What of `trained.Trained` is asked for here.

  Attributes:
    image_size: (height, width), in pixels.
    short_side: to which the shorter side is resized before the crop.
  """

  @property
  def image_size(self) -> tuple[int, int]: ...
  @property
  def short_side(self) -> int: ...


def each(images: Any) -> Iterator[Any]:
  """One image after the other: of one, of a stack, or of many.

  Args:
    images: a path, the bytes of a file, a file opened in binary mode, a Pillow
      image or an array [H, W], [H, W, 1] or [H, W, 3]: one image. An array [N,
      H, W, C] is N of them; whatever else can be iterated over gives one at a
      time.

  Raises:
    UserError: nothing of the kind.
  """
  single = isinstance(images, (str, os.PathLike, Image.Image))
  if single or _is_bytes(images) or hasattr(images, "read"):
    return iter((images,))
  if hasattr(images, "__array__"):
    array = np.asarray(images)
    if array.ndim == 1 and array.dtype.kind in "OU":  # A column of a table.
      return iter(array.tolist())
    return iter(array if array.ndim == 4 else (array,))
  if isinstance(images, Iterable) and not isinstance(images, Mapping):
    return iter(images)
  raise UserError(
    f"{type(images).__name__} is no image, nor many: expected {_EXPECTED}; or "
    "a list of those."
  )


def source(image: Any, place: int) -> str:
  """What to call an image: its path, or its place as in `images[3]`."""
  if isinstance(image, (str, os.PathLike)):
    return os.fsdecode(image)
  name = getattr(image, "name", "") if hasattr(image, "read") else ""
  if name and isinstance(name, (str, bytes)):
    return os.fsdecode(name)
  return f"images[{place}]"


def fit(image: Any, model: Takes) -> np.ndarray:
  """An image as the model takes it.

  Args:
    image: one, see `each`.
    model: that is to take it.

  Returns:
    uint8 [H, W, 3] of the model's image size, writable.

  Raises:
    ValueError: a sentence without its full stop that says why it can't be.
  """
  return preprocess.evaluation(
    _pixels(image), model.image_size, model.short_side
  )


def _pixels(image: Any) -> np.ndarray:
  """uint8 [H, W, 3], upright; to be used before the thread's next call."""
  if isinstance(image, (str, os.PathLike)):
    return _of_file(images_lib.read(image), os.fsdecode(image))
  if _is_bytes(image):
    return _of_file(bytes(image), "")
  if isinstance(image, Image.Image):
    return images_lib.of_pillow(image)
  if hasattr(image, "read"):
    return _of_file(_content(image), "")
  if hasattr(image, "__array__"):
    return images_lib.of_array(np.asarray(image))
  raise ValueError(
    f"a {type(image).__name__} is no image: expected {_EXPECTED}"
  )


_EXPECTED = (
  "a path, the bytes of an image file, a file opened in binary mode, a Pillow "
  "image, or a uint8 array [H, W, 3]"
)


def _is_bytes(image: Any) -> bool:
  return isinstance(image, (bytes, bytearray, memoryview))


def _content(file: Any) -> bytes:
  try:
    data = file.read(images_lib.MAX_BYTES + 1)  # One more is refused.
  except (OSError, ValueError) as e:  # Text that is none, a closed file.
    raise ValueError(f"the file can't be read: {first_line(e)}") from e
  if not isinstance(data, bytes):
    raise ValueError("the file gives text: open it in binary mode, 'rb'")
  return data


def _of_file(data: bytes, name: str) -> np.ndarray:
  found = inspection.inspect(data, name, _AS_SEEN)
  if found.problem and found.kind not in inspection.USABLE:
    raise ValueError(found.problem)
  if found.kind == "dark":
    where = text.printable(name or "an image")
    logging.getLogger("mixer").warning("%s: %s", where, found.problem)
  return inspection.decoded(found)
