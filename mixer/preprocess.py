"""From an encoded image to uint8 pixels of the size that the model takes.

Everything here runs on the host, one image at a time; scaling to [-1, 1] and
mixup happen on the device. `train` and `evaluation` are the two chains; both
take the bytes of a file, or pixels: uint8 [H, W, 3] or [H, W]. A training image
is a pure function of its bytes, the options and the generator's state.

Sizes are an int for a square, or (height, width).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from mixer import errors, images, jpeg, randaugment

Size = int | Sequence[int]
_CROP_ASPECT = (3 / 4, 4 / 3)  # Width / height.
_CROP_ATTEMPTS = 100
# Rows and columns that are resized together: float32 takes memory.
_TILE = 128, 1024
_Taps = tuple[np.ndarray, np.ndarray, np.float32]


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """What `train` does to an image, in this order; named as in the config.

  Attributes:
    size: of the result.
    crop: "inception" for a random crop, "resize" to squash the whole image.
    crop_area_min: smallest crop, as a fraction of the image's area.
    flip: mirror half of the images, left to right.
    affine_degrees: random rotation, up to this either way.
    affine_scale: random enlargement, by 1 - scale to 1 + scale; below 1.
    affine_translate: random shift along each axis, up to this fraction of the
      side either way.
    randaugment_layers: operations applied to each image, 0 for none.
    randaugment_magnitude: their strength, 0 to 30.
  """

  size: Size = 224
  crop: Literal["inception", "resize"] = "inception"
  crop_area_min: float = 0.05
  flip: bool = True
  affine_degrees: float = 0.0
  affine_scale: float = 0.0
  affine_translate: float = 0.0
  randaugment_layers: int = 0
  randaugment_magnitude: float = 10


def decode(encoded: bytes) -> np.ndarray:
  """Decodes a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF image to RGB.

  Grey and palette images are expanded; CMYK is converted as the product of
  ink and black; of values of more than 8 bits the upper 8 are kept;
  transparency is dropped, showing the colour stored beneath; of an animation
  the first frame is taken. All this, JPEG's fast integer transform, and
  ignoring the EXIF orientation is what TensorFlow's decoders do in the
  reference: ImageNet's labels and published accuracies go with images that are
  not turned.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: the bytes are damaged, no image of those formats, one of more
      than 134,217,728 pixels (67,108,864 of WebP and AVIF), or without an 8-bit
      meaning; the message says which.
  """
  return images.Opened(encoded).pixels().copy()


def train(
  image: bytes | np.ndarray,
  rng: np.random.Generator,
  options: TrainOptions,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Decodes, crops, flips and augments one image for training.

  Args:
    image: the bytes of an image file, or pixels.
    rng: the only source of randomness.
    options: what to do.
    out: where to write the result, contiguous; None for a fresh array.

  Returns:
    uint8 [height, width, 3], writable.

  Raises:
    ValueError: the image can't be decoded, see `decode`.
  """
  o, opened = options, images.Opened(image)
  size = _pair(o.size)
  box = (0, 0, opened.width, opened.height)
  if o.crop == "inception":
    box = crop_box(opened.height, opened.width, rng, o.crop_area_min)
  out = np.empty((*size, 3), np.uint8) if out is None else out
  _bilinear(opened.crop(box, size), out)
  if o.flip and rng.random() < 0.5:
    cv2.flip(out, 1, out)
  if o.affine_degrees or o.affine_scale or o.affine_translate:
    out[...] = affine(
      out, rng, o.affine_degrees, o.affine_scale, o.affine_translate
    )
  if o.randaugment_layers:
    out[...] = randaugment.apply(
      out, rng, o.randaugment_layers, o.randaugment_magnitude
    )
  return out


def evaluation(
  image: bytes | np.ndarray, size: Size = 224, short_side: int = 256
) -> np.ndarray:
  """Decodes an image and takes its middle, as the paper evaluates.

  The shorter side is resized to `short_side` as `resize_short` does, then
  `size` is cut out of the middle, half a pixel up and left where it must be.

  Args:
    image: the bytes of an image file, or pixels.
    size: of the result.
    short_side: see above; 0: no crop, `resize` squashes the whole image, as in
      training and as VTAB does (arXiv 1910.04867).

  Returns:
    uint8 [height, width, 3], writable, sharing no memory with `image`.

  Raises:
    ValueError: the image can't be decoded, see `decode`.
    UserError: the crop is larger than what it is taken from.
  """
  crop = _pair(size)
  if short_side and short_side < max(crop):
    raise errors.UserError(
      f"short_side={short_side} is smaller than the crop size={size} taken "
      f"from it: give a short_side of at least {max(crop)} (the paper has 256 "
      "for a crop of 224)."
    )
  pixels = images.Opened(image).pixels()
  if not short_side:
    return resize(pixels, crop)
  whole = _short_size(pixels, short_side)
  start = (whole[0] - crop[0]) // 2, (whole[1] - crop[1]) // 2
  return _area_resize(pixels, whole, start, crop)


def crop_box(
  height: int, width: int, rng: np.random.Generator, area_min: float
) -> jpeg.Box:
  """Draws the (left, top, right, bottom) of a random crop.

  Its aspect ratio is uniform in [3/4, 4/3], its height uniform among those
  that keep its area at least `area_min` of the image's and the crop inside,
  and its place uniform: the law of `tf.image.sample_distorted_bounding_box`,
  of the published runs. (torchvision draws the area uniformly, and larger
  crops.) If 100 draws give no crop, as in a strip 27 times as long as it is
  wide, the box is the whole image.
  """
  least, most = area_min * height * width, 1.0 * height * width
  for _ in range(_CROP_ATTEMPTS):
    ratio = _CROP_ASPECT[0] + (_CROP_ASPECT[1] - _CROP_ASPECT[0]) * rng.random()
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


def resize(image: np.ndarray, size: Size) -> np.ndarray:
  """Squashes the image to exactly `size`.

  Bilinear between the centres of pixels, not antialiased, as `tf.image.resize`
  did for the published runs, unlike Pillow and torchvision. An image of at
  least twice `size` is first reduced by means over 2, 4 or 8 pixels a side:
  photographs of a camera's full size turn to noise in the reference.
  """
  out = np.empty((*_pair(size), 3), np.uint8)
  _bilinear(images.reduce(image, out.shape[:2]), out)
  return out


def _bilinear(image: np.ndarray, out: np.ndarray) -> None:
  height, width = out.shape[:2]
  if image.shape == out.shape:
    out[...] = image
  else:
    cv2.resize(image, (width, height), out, interpolation=cv2.INTER_LINEAR)


def affine(
  image: np.ndarray,
  rng: np.random.Generator,
  degrees: float,
  scale: float,
  translate: float,
) -> np.ndarray:
  """Rotates, scales, shifts at random, see `TrainOptions`; fills in black."""
  height, width = image.shape[:2]
  angle, grow, right, down = rng.random(4)
  turn = math.radians((2 * angle - 1) * degrees)
  grow = 1 + (2 * grow - 1) * scale
  # Pillow takes the way back, from a place in the result to the original.
  cos, sin = math.cos(turn) / grow, math.sin(turn) / grow
  x = width / 2 + (2 * right - 1) * translate * width
  y = height / 2 + (2 * down - 1) * translate * height
  rows = (cos, -sin, width / 2 - cos * x + sin * y)
  matrix = (*rows, sin, cos, height / 2 - sin * x - cos * y)
  how = Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
  return np.array(Image.fromarray(image).transform((width, height), *how))


def resize_short(image: np.ndarray, short_side: int) -> np.ndarray:
  """Resizes the shorter side to `short_side` and keeps the aspect ratio.

  Each pixel is the mean of the area that it covers in the original, parts of
  pixels included, cut off to a whole number: to the bit what
  `tf.image.resize(method="area")` and a cast give, the paper's evaluation
  (Pillow's box filter counts a pixel wholly or not at all). What is enlarged
  twice or more becomes a mosaic of squares by that, there too.
  """
  whole = _short_size(image, short_side)
  return _area_resize(image, whole, (0, 0), whole)


def _short_size(image: np.ndarray, short_side: int) -> tuple[int, int]:
  """(height, width) once the shorter of them is `short_side`."""
  # As big_vision's resize_small, in float32.
  height, width = image.shape[:2]
  ratio = np.float32(short_side) / np.float32(min(height, width))
  return round(float(height * ratio)), round(float(width * ratio))


def _area_resize(
  image: np.ndarray,
  whole: tuple[int, int],
  start: tuple[int, int],
  part: tuple[int, int],
) -> np.ndarray:
  """The `part` at `start` (top, left) of an image resized to `whole`."""
  (top, left), (height, width) = start, part
  if whole == image.shape[:2]:
    return image[top : top + height, left : left + width].copy()
  result = np.empty((height, width, 3), np.uint8)
  down, across = _TILE
  for y in range(0, height, down):
    taps = _taps(image.shape[0], whole[0], top + y, min(down, height - y))
    for x in range(0, width, across):
      result[y : y + down, x : x + across] = _means(
        image,
        taps,
        _taps(image.shape[1], whole[1], left + x, min(across, width - x)),
      )
  return result


def _means(image: np.ndarray, rows: _Taps, columns: _Taps) -> np.ndarray:
  """Means over areas, float32 [rows, columns, 3]."""
  (row, row_weight, height), (column, weight, width) = rows, columns
  top, left = row.min(), column.min()
  image = image[top : row.max() + 1, left : column.max() + 1]
  # Columns first, as TensorFlow does, and both by whole lines of memory.
  lines = _sum(cv2.transpose(image), column - left, weight)
  result = _sum(cv2.transpose(lines), row - top, row_weight)
  return result * (np.float32(1) / (height * width))


def _sum(
  image: np.ndarray, index: np.ndarray, weight: np.ndarray
) -> np.ndarray:
  """Weighted sums of lines: [H, W, 3] to float32 [N, W, 3]."""
  result = np.zeros((len(index), *image.shape[1:]), np.float32)
  for k in range(index.shape[1]):
    result += image[index[:, k]] * weight[:, k, None, None]
  return result


def _taps(size: int, new_size: int, start: int, count: int) -> _Taps:
  """Which of `size` pixels each of `count` new pixels covers, and how much.

  In float32, step by step as TensorFlow's ResizeArea, for the same bits: where
  a mean is a whole number they decide whether the cast makes it one less.
  Gives indices of pixels [count, K], the length of each that is covered, and
  that of a new pixel.
  """
  # Beyond, float32 doesn't tell neighbours apart.
  real = np.float32 if new_size < 1 << 24 else np.float64
  scale = real(size) / real(new_size)
  new = np.arange(start, start + count)
  low, high = new.astype(real) * scale, (new + 1).astype(real) * scale
  first, end = np.floor(low).astype(int), np.ceil(high).astype(int)
  index = first[:, None] + np.arange((end - first).max())
  old, low, high = index.astype(real), low[:, None], high[:, None]
  whole = np.where(old + 1 > high, high - old, real(1))
  partly = np.where(old + 1 > high, scale, old + 1 - low)
  weight = np.where(old < low, partly, whole)
  weight[index >= end[:, None]] = 0
  return index.clip(max=size - 1), weight.astype(np.float32), np.float32(scale)


def _pair(size: Size) -> tuple[int, int]:
  """Reads a size as (height, width)."""
  pair = (size, size) if isinstance(size, int) else tuple(size)
  if len(pair) != 2 or min(pair) < 1:
    raise errors.UserError(
      f"An image's size must be a positive number or (height, width), such as "
      f"224 or (224, 224), but is {size!r}."
    )
  return pair[0], pair[1]
