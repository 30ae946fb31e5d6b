"""From an encoded image to uint8 pixels of the size that the model takes.

Everything here runs on the host, one image at a time; scaling to [-1, 1] and
mixup happen on the device. `train` and `evaluation` are the two chains; both
take the bytes of a file, or pixels: uint8 [H, W, 3] or [H, W]. Sizes are an int
for a square, or (height, width).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from mixer import errors, images, jpeg, randaugment

Size = int | Sequence[int]
# Pixels that are resized together: float32 takes memory.
_BLOCK = 1 << 17


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """What `train` does to an image, in this order; named as in the config."""

  size: Size = 224
  # "resize" squashes all of the image; so does "pad", and then shifts it by up
  # to an eighth of a side, 4 of 32 pixels, and mirrors what is beyond its edge.
  crop: Literal["inception", "resize", "pad"] = "inception"
  crop_area_min: float = 0.05  # Of the image's area.
  flip: bool = True  # Half of the images, left to right.
  affine_degrees: float = 0.0  # Rotation, up to this either way.
  affine_scale: float = 0.0  # Enlargement, by 1 - scale to 1 + scale; below 1.
  affine_translate: float = 0.0  # Shift, up to this share of a side either way.
  randaugment_layers: int = 0  # Operations applied to each image.
  randaugment_magnitude: float = 10  # 0 to 30.
  randaugment_scaled: bool = False  # Its pixels, of 224, by the image's side.


def decode(encoded: bytes) -> np.ndarray:
  """Decodes a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF image to RGB.

  As TensorFlow's decoders in the reference: CMYK is the product of ink and
  black; of more than 8 bits the upper 8 are kept; the colour beneath
  transparency shows; of an animation the first frame is taken; the EXIF
  orientation is ignored.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: the bytes are damaged, no image of those formats, too large, or
      without an 8-bit meaning; the message says which.
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
    uint8 [height, width, 3], writable. ValueError as of `decode`.
  """
  o, opened, size = options, images.Opened(image), _pair(options.size)
  box = (0, 0, opened.width, opened.height)
  if o.crop == "inception":
    box = crop_box(opened.height, opened.width, rng, o.crop_area_min)
  out = np.empty((*size, 3), np.uint8) if out is None else out
  cv2.resize(opened.crop(box, size), size[::-1], out)
  if o.crop == "pad":
    most = size[0] // 8, size[1] // 8
    y, x = (int(rng.integers(2 * n + 1)) for n in most)
    edges = most[0], most[0], most[1], most[1]
    padded = cv2.copyMakeBorder(out, *edges, cv2.BORDER_REFLECT_101)
    out[...] = padded[y : y + size[0], x : x + size[1]]
  if o.flip and rng.random() < 0.5:
    cv2.flip(out, 1, out)
  shape = o.affine_degrees, o.affine_scale, o.affine_translate
  if any(shape):
    out[...] = affine(out, rng, *shape)
  if o.randaugment_layers:
    how = o.randaugment_layers, o.randaugment_magnitude, o.randaugment_scaled
    out[...] = randaugment.apply(out, rng, *how)
  return out


def evaluation(
  image: bytes | np.ndarray,
  size: Size = 224,
  short_side: int = 256,
  interpolation: str = "",
) -> np.ndarray:
  """Decodes an image and takes its middle, as the paper evaluates.

  Args:
    image: the bytes of an image file, or pixels.
    size: cut out of the middle, half a pixel up and left where it must be.
    short_side: to which `resize_short` goes before; 0: no crop, but `resize`,
      as in training and in VTAB (arXiv 1910.04867).
    interpolation: "pillow_bilinear" or "pillow_bicubic", antialiased, to resize
      as timm does; "" for the means over areas, or `resize`, of the paper.

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
      f"from it: give a short_side of at least {max(crop)}."
    )
  pixels = images.Opened(image).pixels()
  if interpolation:
    way = Image.Resampling[interpolation.removeprefix("pillow_").upper()]
    return _by_pillow(pixels, crop, short_side, way)
  if not short_side:
    return resize(pixels, crop)
  return resize_short(pixels, short_side, crop)


def _by_pillow(
  image: np.ndarray, crop: tuple[int, int], short_side: int, way: Any
) -> np.ndarray:
  """Resizes and crops as torchvision's Resize and CenterCrop, of timm."""
  (height, width), (tall, wide) = image.shape[:2], crop
  if short_side:  # The longer side is cut off to whole pixels.
    tall, wide = (short_side * s // min(height, width) for s in (height, width))
  resized = np.asarray(Image.fromarray(image).resize((wide, tall), way))
  top, left = round((tall - crop[0]) / 2), round((wide - crop[1]) / 2)
  return resized[top : top + crop[0], left : left + crop[1]].copy()


def crop_box(
  height: int, width: int, rng: np.random.Generator, area_min: float
) -> jpeg.Box:
  """Draws the (left, top, right, bottom) of a random crop.

  Its aspect ratio is uniform in [3/4, 4/3], its height uniform among those
  that keep its area at least `area_min` of the image's and the crop inside,
  and its place uniform: the law of `tf.image.sample_distorted_bounding_box`,
  of the published runs (torchvision's crops are larger). If 100 draws give no
  crop, as in a long strip, the box is the whole image.
  """
  least, most = area_min * height * width, 1.0 * height * width
  for _ in range(100):
    ratio = 3 / 4 + (4 / 3 - 3 / 4) * rng.random()  # Width / height.
    # The tallest crop whose rounded width still fits into the image.
    widest = math.ceil((width + 0.5) / ratio) - 1
    high = min(round(math.sqrt(most / ratio)), height, widest)
    low = min(round(math.sqrt(least / ratio)), high)
    tall = low + int(rng.integers(high - low + 1))
    # Rounding may have carried the area over a limit: one step back.
    if tall * round(tall * ratio) < least:
      tall += 1
    if tall * round(tall * ratio) > most:
      tall -= 1
    wide = round(tall * ratio)
    inside = 0 < tall <= height and 0 < wide <= width
    if inside and least <= tall * wide <= most:
      top = int(rng.integers(height - tall + 1))
      left = int(rng.integers(width - wide + 1))
      return left, top, left + wide, top + tall
  return 0, 0, width, height


def resize(image: np.ndarray, size: Size) -> np.ndarray:
  """Squashes the image to exactly `size`; a new array.

  Bilinear between the centres of pixels, not antialiased, as `tf.image.resize`
  did for the published runs, unlike Pillow and torchvision. An image of at
  least twice `size` is first reduced by means over 2, 4 or 8 pixels a side:
  photographs of a camera's full size turn to noise in the reference.
  """
  size = _pair(size)
  return cv2.resize(images.reduce(image, size), size[::-1])


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


def resize_short(
  image: np.ndarray, short_side: int, crop: tuple[int, int] | None = None
) -> np.ndarray:
  """Resizes the shorter side, keeps the aspect ratio; only the middle `crop`.

  Each pixel is the mean of the area that it covers in the original, parts of
  pixels included, cut off to a whole number: to the bit what
  `tf.image.resize(method="area")` and a cast give, the paper's evaluation.
  """
  height, width = image.shape[:2]
  # In float32, as big_vision's resize_small.
  ratio = np.float32(short_side) / np.float32(min(height, width))
  whole = round(float(height * ratio)), round(float(width * ratio))
  tall, wide = crop or whole
  top, left = (whole[0] - tall) // 2, (whole[1] - wide) // 2
  if whole == (height, width):
    return image[top : top + tall, left : left + wide].copy()
  result = np.empty((tall, wide, 3), np.uint8)
  columns, weights, across = _covered(width, whole[1], left, wide)
  image = image[:, columns[0, 0] : columns.max() + 1]
  columns -= columns[0, 0]
  step = max(1, _BLOCK // wide)
  for y in range(0, tall, step):
    count = min(step, tall - y)
    rows, row_weights, down = _covered(height, whole[0], top + y, count)
    # Columns first, as TensorFlow does, and both by whole lines of memory.
    lines = cv2.transpose(image[rows[0, 0] : rows.max() + 1])
    lines = cv2.transpose(_weighted_sums(lines, columns, weights))
    sums = _weighted_sums(lines, rows - rows[0, 0], row_weights)
    result[y : y + step] = sums * (np.float32(1) / (down * across))
  return result


def _covered(
  size: int, new_size: int, start: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.float32]:
  """Which of `size` pixels each of `count` new pixels covers, and how much.

  Gives indices of pixels [count, K], the length of each that is covered, and
  that of a new pixel; step by step as TensorFlow's ResizeArea, for the same
  bits: where a mean is a whole number they decide on the cast.
  """
  scale = np.float32(size) / np.float32(new_size)
  new = np.arange(start, start + count).astype(np.float32)
  low, high = new * scale, (new + 1) * scale
  first, end = np.floor(low).astype(int), np.ceil(high).astype(int)
  index = first[:, None] + np.arange((end - first).max())
  old, low, high = index.astype(np.float32), low[:, None], high[:, None]
  whole = np.where(old + 1 > high, high - old, np.float32(1))
  partly = np.where(old + 1 > high, scale, old + 1 - low)
  weight = np.where(old < low, partly, whole)
  weight[index >= end[:, None]] = 0
  return index.clip(max=size - 1), weight, scale


def _weighted_sums(
  image: np.ndarray, index: np.ndarray, weight: np.ndarray
) -> np.ndarray:
  """Sums of lines: [H, W, 3] to float32 [N, W, 3]."""
  result = np.zeros((len(index), *image.shape[1:]), np.float32)
  for k in range(index.shape[1]):
    result += image[index[:, k]] * weight[:, k, None, None]
  return result


def _pair(size: Size) -> tuple[int, int]:
  """Reads a size as (height, width)."""
  pair = (size, size) if isinstance(size, int) else tuple(size)
  if len(pair) != 2 or min(pair) < 1:
    expected = "a positive number or (height, width), such as (224, 224)"
    raise errors.UserError(f"size={size!r} of images must be {expected}.")
  return pair[0], pair[1]
