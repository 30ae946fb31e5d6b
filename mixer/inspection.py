"""What an image file becomes before a model sees it: upright, on white, small.

Preparation stores what comes out, and predicting looks at the same pixels.
"""

import io
import logging
import os
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from mixer import errors, image_files, images, jpeg, preprocess

Kind = images.Kind | Literal["mislabelled", "dark"]
# Problems with which an image can be used all the same.
USABLE = ("", "mislabelled", "dark")
# Sides of chroma blocks trade places when an image is turned on its side.
_TURNED = {"422": "440", "440": "422"}
_JPEG_SIDE = 65_500
BYTES = bytes, bytearray, memoryview
# Of who predicts.
EXPECTED = (
  "a path, the bytes of an image file, a file opened in binary mode, a Pillow "
  "image, or a uint8 array [H, W, 3]"
)


class Inspected(NamedTuple):
  """What was found."""

  data: bytes  # To store: as found, or encoded anew.
  kind: Kind = ""
  problem: str = ""  # A sentence without its full stop.
  pixels: np.ndarray | None = None  # Of `data`, if it need not be decoded.


def inspect(
  data: bytes,
  name: str,
  *,
  upright: bool = False,
  white_ground: bool = False,
  short_side: int = 0,
  quality: int = 95,
) -> Inspected:
  """Decodes an image wholly, and turns or resizes it where that is wanted.

  A resized image becomes a JPEG: grey if it was, RGB (as `preprocess.decode`
  makes it) if not, with the chroma subsampling of a JPEG as it was and none
  for other formats. It is the mean over areas, as in `preprocess.resize_short`.
  One that is only turned, or put on white ground, becomes a JPEG if it was one,
  and else a PNG.

  Args:
    data: the file's bytes.
    name: of which the suffix is compared with the content's format.
    upright: turn the image as its EXIF orientation says.
    white_ground: put what is transparent on white ground.
    short_side: to which a longer short side is reduced; 0 for none.
    quality: of JPEG encoding, where the image is encoded anew.

  Returns:
    What was found; nothing is raised for any bytes.
  """
  try:
    opened = images.Opened(data, white_ground)
    pixels = opened.pixels()
    turn = opened.orientation() if upright else 1
  except images.ImageError as e:
    return Inspected(data, e.kind, str(e))
  kind, problem = "", ""
  says = image_files.named(name) or opened.format
  if says != opened.format:
    kind = "mislabelled"
    content = opened.format.upper()
    problem = f"a {content} by its content, a {says.upper()} by its name"
  elif opened.dark:
    kind = "dark"
    problem = (
      "black: the upper 8 bits of all its values are 0; scale them to the bits "
      "that the file has"
    )
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
  """The pixels of what is to be stored: `preprocess.decode(found.data)`.

  They are to be used before the same thread decodes another image.
  """
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

  They are to be used before the same thread decodes another image. ValueError
  if there are none.
  """
  name, data = "", b""
  if isinstance(image, (str, os.PathLike)):
    name, data = os.fsdecode(image), images.read(image)
  elif isinstance(image, BYTES):
    data = bytes(image)
  elif isinstance(image, Image.Image):
    return images.of_pillow(image)
  elif hasattr(image, "read"):
    try:
      data = image.read(images.MAX_BYTES + 1)  # One more is refused.
    except (OSError, ValueError) as e:  # Text that is none, a closed file.
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
