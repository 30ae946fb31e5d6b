"""Looks at one image file: does it decode, and which bytes are to be stored.

Called in worker processes, so it loads neither TFDS nor JAX.
"""

import dataclasses
import io
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from mixer import image_files, images, jpeg, preprocess

Kind = images.Kind | Literal["mislabelled", "dark"]
# Problems with which an image can be used all the same.
USABLE = ("mislabelled", "dark")

# Sides of chroma blocks trade places when an image is turned on its side.
_TURNED = {"422": "440", "440": "422"}
_JPEG_SIDE = 65_500


class Wanted(Protocol):
  """What of `build_options.Options` is asked for here.

  Attributes:
    upright: turn images as their EXIF orientation says.
    white_ground: put what is transparent on white ground.
    short_side: to which longer short sides are reduced; 0 for none.
    quality: of JPEG encoding, where an image is encoded anew.
  """

  @property
  def upright(self) -> bool: ...
  @property
  def white_ground(self) -> bool: ...
  @property
  def short_side(self) -> int: ...
  @property
  def quality(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Options:
  """The least that is `Wanted`."""

  upright: bool = False
  white_ground: bool = False
  short_side: int = 0
  quality: int = 95


@dataclasses.dataclass(frozen=True)
class Inspected:
  """What was found.

  Attributes:
    data: the bytes to store; those found, unless the image was turned, put on
      white ground or resized.
    problem: why the image can't be used (or, if its kind is `USABLE`, what is
      odd about it); "" if nothing is wrong.
    kind: of the problem.
    height: pixels of what is to be stored; 0 if unknown.
    width: likewise.
    format: of what is to be stored, such as "jpeg"; "" if unknown.
    pixels: of `data`, uint8 [H, W, 3]; None where only decoding it tells, see
      `decoded`.
  """

  data: bytes
  problem: str = ""
  kind: Kind = ""
  height: int = 0
  width: int = 0
  format: str = ""
  pixels: np.ndarray | None = dataclasses.field(
    default=None, repr=False, compare=False
  )


def inspect(data: bytes, name: str, options: Wanted) -> Inspected:
  """Decodes an image wholly, and turns or resizes it where that is wanted.

  A resized image becomes a JPEG: grey if it was, RGB (as `preprocess.decode`
  makes it) if not, with the chroma subsampling of a JPEG as it was and none
  for other formats. It is the mean over areas, as in `preprocess.resize_short`.
  One that is only turned, or put on white ground, becomes a JPEG if it was one,
  and else a PNG.

  Args:
    data: the file's bytes.
    name: of which the suffix is compared with the content's format.
    options: what is wanted.

  Returns:
    What was found; nothing is raised for any bytes.
  """
  try:
    opened = images.Opened(data, options.white_ground)
    pixels = opened.pixels()
    turn = opened.orientation() if options.upright else 1
  except images.ImageError as e:
    return Inspected(data, str(e), e.kind, format=image_files.sniff(data))
  found = _stored(data, opened, pixels, turn, options)
  says = image_files.named(name) or opened.format
  if says != opened.format:
    found = dataclasses.replace(
      found,
      kind="mislabelled",
      problem=f"a {opened.format.upper()} by its content, a {says.upper()} "
      "by its name",
    )
  elif opened.dark:
    found = dataclasses.replace(
      found,
      kind="dark",
      problem="black: the upper 8 bits of all its values are 0; scale them to "
      "the bits that the file has",
    )
  return found


def decoded(found: Inspected) -> np.ndarray:
  """The pixels of what is to be stored, as training and evaluation see them.

  The same as `preprocess.decode(found.data)`, without decoding once more what
  the inspection has decoded.

  Args:
    found: without a problem, or with a `USABLE` one.

  Returns:
    uint8 [H, W, 3], to be read only, and used before the same thread decodes
    another image.

  Raises:
    ValueError: a sentence that says why the bytes can't be decoded.
  """
  if found.pixels is None:
    return images.Opened(found.data).pixels()
  return found.pixels


def _stored(
  data: bytes,
  opened: images.Opened,
  pixels: np.ndarray,
  turn: int,
  options: Wanted,
) -> Inspected:
  """The bytes to store, without a problem."""
  height, width = pixels.shape[:2]
  shrink = 0 < options.short_side < min(height, width)
  if not shrink and turn == 1 and not opened.flattened:
    return Inspected(
      data, height=height, width=width, format=opened.format, pixels=pixels
    )
  if shrink:
    pixels = preprocess.resize_short(pixels, options.short_side)
  sampling = opened.sampling
  if turn != 1:
    pixels = _turned(pixels, turn)
    if turn >= 5:
      sampling = _TURNED.get(sampling, sampling)
  height, width = pixels.shape[:2]
  pixels = np.ascontiguousarray(pixels[..., :1] if opened.grey else pixels)
  if (shrink or opened.format == "jpeg") and max(height, width) <= _JPEG_SIDE:
    encoded = jpeg.encode(pixels, options.quality, sampling)
    return Inspected(encoded, height=height, width=width, format="jpeg")
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0] if opened.grey else pixels).save(file, "PNG")
  return Inspected(file.getvalue(), height=height, width=width, format="png")


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
  """Undoes an EXIF orientation, 2 to 8."""
  if turn >= 5:  # Rows and columns have traded places.
    pixels = pixels.swapaxes(0, 1)
  if turn in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if turn in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return pixels
