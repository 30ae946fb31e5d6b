"""What an image file becomes before a model sees it: upright, on white, small.

Preparation stores the result, and prediction looks at the same pixels.
"""

import io
import logging
import os
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from mixer import errors, image_files, images, jpeg, preprocess

# Problems with which an image can be used all the same.
USABLE = ("", "mislabelled", "dark")
# Sides of chroma blocks trade places when an image is turned on its side.
_TURNED = {"422": "440", "440": "422"}
_JPEG_SIDE = 65_500
BYTES = bytes, bytearray, memoryview
EXPECTED = (
  "a path, the bytes of an image file, a file opened in binary mode, a Pillow "
  "image, or a uint8 array [H, W, 3]"
)


class Inspected(NamedTuple):
  """An inspected image; `problem` is a sentence without its full stop."""

  data: bytes  # To store: as it was, or encoded anew.
  kind: images.Kind | Literal["mislabelled", "dark"] = ""
  problem: str = ""
  pixels: np.ndarray | None = None  # Of `data`, unless it was encoded anew.


def inspect(
  data: bytes,
  name: str,
  *,
  upright: bool = False,
  white_ground: bool = False,
  short_side: int = 0,
  quality: int = 95,
) -> Inspected:
  """Decodes an image wholly; turns, flattens or resizes it where wanted.

  A resized image becomes a JPEG, with the chroma subsampling that it had. An
  image that is only turned or flattened becomes a JPEG if it was one, else a
  PNG. Nothing is raised for any bytes.
  """
  try:
    opened = images.Opened(data, white_ground)
    pixels = opened.pixels()
    turn = opened.orientation() if upright else 1
  except images.ImageError as e:
    return Inspected(data, e.kind, str(e))
  kind, problem = "", ""
  suffix = image_files.named(name) or opened.format
  if suffix != opened.format:
    content = opened.format.upper()
    kind = "mislabelled"
    problem = f"a {content} by its content, a {suffix.upper()} by its name"
  elif opened.dark:
    kind = "dark"
    problem = "black: the upper 8 bits of all its values are 0; scale them up"
  shrink = 0 < short_side < min(pixels.shape[:2])
  if not shrink and turn == 1 and not opened.flattened:
    return Inspected(data, kind, problem, pixels)
  if shrink:
    pixels = preprocess.resize_short(pixels, short_side)
  pixels = _turned(pixels[..., :1] if opened.grey else pixels, turn)
  if (shrink or opened.format == "jpeg") and max(pixels.shape) <= _JPEG_SIDE:
    sampling = opened.sampling
    sampling = _TURNED.get(sampling, sampling) if turn >= 5 else sampling
    return Inspected(jpeg.encode(pixels, quality, sampling), kind, problem)
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0] if opened.grey else pixels).save(file, "PNG")
  return Inspected(file.getvalue(), kind, problem)


def decoded(found: Inspected) -> np.ndarray:
  """Pixels of `found.data`, valid until this thread decodes another image."""
  if found.pixels is None:
    return images.Opened(found.data).pixels()
  return found.pixels


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
  """Undoes an EXIF orientation, 1 to 8."""
  if turn >= 5:  # Rows and columns have traded places.
    pixels = pixels.swapaxes(0, 1)
  if turn in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if turn in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return np.ascontiguousarray(pixels)


def pixels(image: Any) -> np.ndarray:
  """uint8 [H, W, 3] of an image in any form: upright, on white ground.

  They are valid until this thread decodes another image. ValueError: no image.
  """
  name, data = "", b""
  if isinstance(image, Image.Image):
    return images.of_pillow(image)
  if isinstance(image, (str, os.PathLike)):
    name, data = os.fsdecode(image), images.read(image)
  elif isinstance(image, BYTES):
    data = bytes(image)
  elif hasattr(image, "read"):
    try:
      data = image.read(images.MAX_BYTES + 1)  # One more is refused.
    except (OSError, ValueError) as e:
      why = errors.first_line(e)
      raise ValueError(f"the file can't be read: {why}") from e
    if not isinstance(data, bytes):
      raise ValueError("the file gives text: open it in binary mode, 'rb'")
  elif hasattr(image, "__array__"):
    return images.of_array(np.asarray(image))
  else:
    kind = type(image).__name__
    raise ValueError(f"a {kind} is no image: expected {EXPECTED}")
  found = inspect(data, name, upright=True, white_ground=True)
  if found.kind not in USABLE:
    raise ValueError(found.problem)
  if found.kind == "dark":
    where = errors.printable(name or "an image")
    logging.getLogger("mixer").warning("%s: %s", where, found.problem)
  return decoded(found)
