"""What `preprocess` computes with: decoding, crop boxes and resampling.

Call `preprocess`; these functions take and return what spares copies.
"""

import io
import math
from typing import Protocol

import cv2
import numpy as np
from PIL import Image

from mixer import jpeg

# The loader's threads work on one image each; OpenCV's own would only get in
# their way. Intel's routines inside it round otherwise than the rest.
cv2.setNumThreads(0)
cv2.ipp.setUseIPP(False)

Box = tuple[int, int, int, int]  # (left, top, right, bottom)

# Beyond it Pillow calls an image a decompression bomb.
MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
_CROP_ATTEMPTS = 100
# Enlarged at least this much, an area-filtered image is a mosaic of squares.
_MOSAIC = 2


class Opened(Protocol):
  """An encoded image of which the size is known.

  Attributes:
    height: pixels.
    width: pixels.
  """

  height: int
  width: int

  def pixels(self) -> np.ndarray:
    """All of them, uint8 [height, width, 3]; see `crop`."""
    ...

  def crop(self, box: Box, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a box, reduced by 2, 4 or 8 while both sides exceed `size`.

    Args:
      box: within the image.
      size: (height, width) to which the result is going to be resized.

    Returns:
      uint8 [height, width, 3], no smaller than `size` unless the box is; to be
      used before the same thread decodes another image.

    Raises:
      ValueError: a sentence that says why the bytes can't be decoded.
    """
    ...


def open_image(encoded: bytes) -> Opened:
  """Reads the size, and as little else as its format allows.

  Raises:
    ValueError: a sentence that says why the bytes can't be decoded.
  """
  head = jpeg.header(encoded)
  if head is None or head.height * head.width > MAX_PIXELS:
    return _Decoded(np.asarray(open_rgb(encoded)))
  return _Jpeg(encoded, head)


class _Jpeg:
  """A JPEG that libjpeg-turbo decodes; Pillow has a second try at the rest."""

  def __init__(self, encoded: bytes, head: jpeg.Header):
    self._encoded, self._head = encoded, head
    self.height, self.width = head.height, head.width

  def pixels(self) -> np.ndarray:
    try:
      return jpeg.decode(self._encoded, self._head)
    except ValueError:
      return np.asarray(open_rgb(self._encoded))

  def crop(self, box: Box, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    n = _reduction(bottom - top, right - left, size)
    try:
      return jpeg.decode(self._encoded, self._head, box, n)
    except ValueError:
      return _Decoded(np.asarray(open_rgb(self._encoded))).crop(box, size)


class _Decoded:
  """What had to be decoded to know its size."""

  def __init__(self, image: np.ndarray):
    self._image = image
    self.height, self.width = image.shape[:2]

  def pixels(self) -> np.ndarray:
    return self._image

  def crop(self, box: Box, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    image = self._image[top:bottom, left:right]
    n = _reduction(bottom - top, right - left, size)
    if n == 1:
      return image
    smaller = image.shape[1] // n, image.shape[0] // n
    return cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)


def _reduction(height: int, width: int, size: tuple[int, int]) -> int:
  """8, 4 or 2 if each side is so many times that of `size`; else 1."""
  times = min(height // size[0], width // size[1])
  return 1 if times < 2 else min(8, 1 << times.bit_length() - 1)


def reduce_and_resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """`preprocess.resize`."""
  box = (0, 0, image.shape[1], image.shape[0])
  return resize(_Decoded(image).crop(box, size), size)


def resize(
  image: np.ndarray, size: tuple[int, int], out: np.ndarray | None = None
) -> np.ndarray:
  """Bilinear interpolation between the centres of pixels, not antialiased.

  Args:
    image: uint8 [H, W, 3].
    size: (height, width) of the result.
    out: where to write it, uint8 [*size, 3]; None for a fresh array.

  Returns:
    uint8 [*size, 3].
  """
  height, width = size
  if out is None:
    out = np.empty((height, width, 3), np.uint8)
  if image.shape[:2] == size:
    out[...] = image
  else:
    cv2.resize(image, (width, height), out, interpolation=cv2.INTER_LINEAR)
  return out


def open_rgb(encoded: bytes) -> Image.Image:
  """Decodes to a loaded RGB Pillow image; see `preprocess.decode`.

  Raises:
    ValueError: a sentence that says why the bytes can't be decoded.
  """
  if not encoded:
    raise ValueError("the image is empty: 0 bytes")
  try:
    image = Image.open(io.BytesIO(encoded))
    # Reads the pixels now, while their errors can be told from others.
    image.load()
    return to_rgb(image)
  except Image.UnidentifiedImageError as error:
    raise ValueError(
      f"not an image in any format that Pillow reads: {len(encoded)} bytes "
      f"that begin with {encoded[:16]!r}"
    ) from error
  except MemoryError:
    raise
  # For damaged bytes Pillow's plugins let through whatever trips them:
  # OSError, SyntaxError, struct.error, IndexError, DecompressionBombError ...
  except Exception as error:
    raise ValueError(f"cannot decode the image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
  """Converts any of Pillow's modes, see `preprocess.decode`."""
  if image.mode == "RGB":
    return image
  if image.mode.startswith("I"):  # "I;16" and its byte orders, or 32-bit "I".
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
      raise ValueError(
        "its 32-bit values have no agreed range; save it as 8-bit"
      )
    return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
  if image.mode == "F":
    raise ValueError("its float values have no agreed range; save it as 8-bit")
  if image.mode in ("P", "PA"):
    # Straight to RGB, Pillow warns of a palette with transparency.
    image = image.convert("RGBA")
  return image.convert("RGB")


def crop_box(
  height: int,
  width: int,
  rng: np.random.Generator,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> Box:
  """Draws `preprocess.inception_crop`'s (left, top, right, bottom)."""
  least, most = area[0] * height * width, area[1] * height * width
  for _ in range(_CROP_ATTEMPTS):
    ratio = aspect[0] + (aspect[1] - aspect[0]) * rng.random()
    # The tallest crop whose rounded width still fits into the image.
    widest = math.ceil((width + 0.5) / ratio) - 1
    high = min(round(math.sqrt(most / ratio)), height, widest)
    low = min(round(math.sqrt(least / ratio)), high)
    crop_height = low + int(rng.integers(high - low + 1))
    # Rounding may have carried the area over a limit: one step back.
    if crop_height * round(crop_height * ratio) < least:
      crop_height += 1
    if crop_height * round(crop_height * ratio) > most:
      crop_height -= 1
    crop_width = round(crop_height * ratio)
    if (
      least <= crop_height * crop_width <= most
      and 0 < crop_height <= height
      and 0 < crop_width <= width
    ):
      top = int(rng.integers(height - crop_height + 1))
      left = int(rng.integers(width - crop_width + 1))
      return left, top, left + crop_width, top + crop_height
  return 0, 0, width, height


def affine(
  image: Image.Image,
  rng: np.random.Generator,
  degrees: float,
  scale: float,
  translate: float,
) -> Image.Image:
  """`preprocess.affine` on a Pillow image."""
  width, height = image.size
  angle, grow, right, down = rng.random(4)
  turn = math.radians((2 * angle - 1) * degrees)
  grow = 1 + (2 * grow - 1) * scale
  # Pillow wants the way back, from a place in the result to the original.
  cos, sin = math.cos(turn) / grow, math.sin(turn) / grow
  x = width / 2 + (2 * right - 1) * translate * width
  y = height / 2 + (2 * down - 1) * translate * height
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    (
      cos,
      -sin,
      width / 2 - cos * x + sin * y,
      sin,
      cos,
      height / 2 - sin * x - cos * y,
    ),
    Image.Resampling.BILINEAR,
  )


def short_size(height: int, width: int, short_side: int) -> tuple[int, int]:
  """(height, width) once the shorter of them is `short_side`."""
  factor = short_side / min(height, width)
  return round(height * factor), round(width * factor)


def resize_part(
  image: np.ndarray,
  whole: tuple[int, int],
  start: tuple[int, int],
  part: tuple[int, int],
) -> np.ndarray:
  """Computes a part of what `preprocess.resize_short` gives.

  Args:
    image: uint8 [H, W, 3].
    whole: (height, width) to which the whole image would be resized.
    start: (top, left) of the part in that.
    part: (height, width) of the part.

  Returns:
    uint8 [*part, 3].
  """
  (top, left), (height, width) = start, part
  if whole[0] <= image.shape[0] and whole[1] <= image.shape[1]:
    # The same mean over areas, faster, though of the whole image.
    smaller = cv2.resize(image, whole[::-1], interpolation=cv2.INTER_AREA)
    return smaller[top : top + height, left : left + width].copy()
  enlargement = min(whole) / min(image.shape[:2])
  taps = _bilinear_taps if enlargement >= _MOSAIC else _area_taps
  row, row_weight = taps(image.shape[0], whole[0], top, height)
  column, column_weight = taps(image.shape[1], whole[1], left, width)
  # Only the columns that are needed, and rows first: they are contiguous.
  image = image[:, column[0, 0] : column[-1, -1] + 1]
  column -= column[0, 0]
  rows = np.zeros((height, image.shape[1], 3), np.float32)
  for k in range(row.shape[1]):
    rows += row_weight[:, k, None, None] * image[row[:, k]]
  result = np.zeros((height, width, 3), np.float32)
  for k in range(column.shape[1]):
    result += column_weight[:, k, None] * rows.take(column[:, k], axis=1)
  return np.rint(result).astype(np.uint8)


def _area_taps(
  size: int, new_size: int, start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """Which pixels a resized row or column is the mean of.

  Args:
    size: original number of pixels.
    new_size: to which all of them are resized.
    start: first of the new pixels wanted.
    count: number of new pixels wanted.

  Returns:
    int64 [count, K] indices of original pixels and their float32 [count, K]
    weights, which sum to 1.
  """
  new = np.arange(start, start + count)
  low, high = new * size / new_size, (new + 1) * size / new_size
  first = new * size // new_size
  taps = int((np.ceil(high) - first).max())
  index = first[:, None] + np.arange(taps)
  overlap = np.minimum(high[:, None], index + 1) - np.maximum(
    low[:, None], index
  )
  weight = overlap.clip(0) * (new_size / size)
  return index.clip(max=size - 1), weight.astype(np.float32)


def _bilinear_taps(
  size: int, new_size: int, start: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """As `_area_taps`, for interpolation between the centres of pixels."""
  place = (np.arange(start, start + count) + 0.5) * size / new_size - 0.5
  low = np.floor(place)
  index = np.stack([low, low + 1], -1).astype(np.int64).clip(0, size - 1)
  weight = np.stack([low + 1 - place, place - low], -1)
  return index, weight.astype(np.float32)
