"""From encoded bytes to one uint8 image of the size that the model wants.

Everything here runs on the host, one image at a time, and returns uint8
[H, W, 3]; scaling to [-1, 1] and mixup happen on the device. Randomness comes
from the `numpy.random.Generator` that is passed in, so an image is a pure
function of its bytes, the options and the generator's state. `train` and
`evaluation` are the two chains that the input pipeline calls; the functions
before them are their parts, on arrays.

Sizes are an int for a square or (height, width).
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from mixer import errors, images
from mixer import randaugment as randaugment_lib

Size = int | Sequence[int]
RandAugment = randaugment_lib.RandAugment


@dataclasses.dataclass(frozen=True)
class Affine:
  """A light random rotation, scaling and shift.

  Attributes:
    degrees: rotation, uniform in [-degrees, degrees].
    scale: enlargement, uniform in [1 - scale, 1 + scale].
    translate: shift along each axis, uniform in [-translate, translate], as a
      fraction of that side.
  """

  degrees: float = 10.0
  scale: float = 0.1
  translate: float = 0.1

  def __post_init__(self):
    if not 0 <= self.scale < 1:
      raise errors.UserError(
        f"Affine(scale={self.scale}) must be at least 0 and less than 1: 0.1 "
        "scales by 0.9 to 1.1."
      )


@dataclasses.dataclass(frozen=True)
class TrainOptions:
  """What `train` does to an image, in this order.

  Attributes:
    size: (height, width) of the result, or an int.
    crop: "inception" for a random crop, "resize" to squash the whole image.
    crop_area: smallest and largest crop, as a fraction of the image's area.
    crop_aspect: smallest and largest width / height of a crop.
    flip: whether half of the images are mirrored, left to right.
    affine: random rotation, scaling and shift, or None.
    randaugment: its layers and magnitude, or None.
  """

  size: Size = (224, 224)
  crop: Literal["inception", "resize"] = "inception"
  crop_area: tuple[float, float] = (0.05, 1.0)
  crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
  flip: bool = True
  affine: Affine | None = None
  randaugment: RandAugment | None = None

  def __post_init__(self):
    _pair(self.size)
    if self.crop not in ("inception", "resize"):
      raise errors.UserError(
        f"Unknown crop {self.crop!r}: use 'inception' for a random crop or "
        "'resize' to squash the whole image."
      )
    if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
      raise errors.UserError(
        f"crop_area={self.crop_area} must be two fractions of the image's "
        "area, the smaller one first, such as (0.05, 1.0)."
      )
    if not 0 < self.crop_aspect[0] <= self.crop_aspect[1]:
      raise errors.UserError(
        f"crop_aspect={self.crop_aspect} must be two positive ratios of width "
        "to height, the smaller one first, such as (3/4, 4/3)."
      )

  @property
  def pair(self) -> tuple[int, int]:
    """(height, width) of the result."""
    return _pair(self.size)


@dataclasses.dataclass(frozen=True)
class EvalOptions:
  """What `evaluation` does to an image.

  Attributes:
    size: (height, width) of the central crop, or an int.
    short_side: to which the shorter side is resized first; 0: no crop, the
      whole image is squeezed to `size`.
  """

  size: Size = (224, 224)
  short_side: int = 256

  def __post_init__(self):
    if self.short_side and self.short_side < max(_pair(self.size)):
      raise errors.UserError(
        f"short_side={self.short_side} is smaller than the crop "
        f"size={self.size} taken from it: give a short_side of at least "
        f"{max(_pair(self.size))} (the paper has 256 for a crop of 224)."
      )

  @property
  def pair(self) -> tuple[int, int]:
    """(height, width) of the result."""
    return _pair(self.size)


def decode(encoded: bytes) -> np.ndarray:
  """Decodes a JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or AVIF image, to RGB.

  Grey and palette images are expanded; CMYK is converted as the product of
  ink and black; of values of more than 8 bits the upper 8 are kept;
  transparency is dropped, showing the colour stored beneath; of an animation
  the first frame is taken. All this, JPEG's fast integer transform, and
  ignoring the orientation that a camera noted in EXIF, is what TensorFlow's
  decoders do in the reference: ImageNet's labels and published accuracies go
  with images that are not turned.

  Args:
    encoded: the bytes of an image file.

  Returns:
    uint8 [H, W, 3].

  Raises:
    ValueError: the bytes are damaged, cut short, no image of those formats, an
      image of more than 134,217,728 pixels (67,108,864 of WebP and AVIF), or
      one of a kind that has no 8-bit meaning; the message is a sentence that
      says which.
  """
  return images.open_image(encoded).pixels().copy()


def inception_crop(
  image: np.ndarray,
  rng: np.random.Generator,
  size: Size,
  area: tuple[float, float] = (0.05, 1.0),
  aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
  """Cuts out a random rectangle and resizes it.

  The rectangle's aspect ratio is uniform in `aspect`, its height uniform among
  those that keep it within `area` and within the image, and its place uniform:
  the law of `tf.image.sample_distorted_bounding_box`, on which the published
  runs were trained. (torchvision's draws the area uniformly instead: crops of
  a 500 x 375 image cover 0.42 of it on average, against 0.34 here.) If 100
  draws give no rectangle, which takes a strip some 27 times as long as it is
  wide, the whole image is squashed.

  Args:
    image: uint8 [H, W, 3].
    rng: where the randomness comes from.
    size: of the result.
    area: least and largest area, as a fraction of the image's.
    aspect: least and largest width / height.

  Returns:
    uint8 [height, width, 3], resized as `resize` does.
  """
  height, width = image.shape[:2]
  left, top, right, bottom = images.crop_box(height, width, rng, area, aspect)
  return resize(image[top:bottom, left:right], size)


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Mirrors half of the images, left to right; uint8 [H, W, 3] to the same."""
  return cv2.flip(image, 1) if _heads(rng) else image


def resize(image: np.ndarray, size: Size) -> np.ndarray:
  """Squashes the image to exactly `size`.

  Bilinear between the centres of pixels, the filter not widened: as
  `tf.image.resize` did for the published runs, unlike Pillow and torchvision.
  Only an image of at least twice `size` is reduced by 2, 4 or 8 before, by
  taking means, so that what is skipped over stays less than one pixel; in the
  reference photographs of a camera's full size turn to noise.

  Args:
    image: uint8 [H, W, 3].
    size: of the result.

  Returns:
    uint8 [height, width, 3].
  """
  return images.reduce_and_resize(image, _pair(size))


def affine(
  image: np.ndarray,
  rng: np.random.Generator,
  degrees: float,
  scale: float,
  translate: float,
) -> np.ndarray:
  """Rotates, scales and shifts about the middle, bilinear, filling with black.

  Args:
    image: uint8 [H, W, 3].
    rng: where the randomness comes from.
    degrees: largest rotation, either way.
    scale: largest departure of the enlargement from 1, either way.
    translate: largest shift, either way, as a fraction of the side.

  Returns:
    uint8 [H, W, 3].
  """
  pil = Image.fromarray(image)
  return np.array(images.affine(pil, rng, degrees, scale, translate))


def resize_short(image: np.ndarray, short_side: int) -> np.ndarray:
  """Resizes the shorter side to `short_side` and keeps the aspect ratio.

  Each pixel is the mean of the area that it covers in the original, parts of
  pixels included, cut off to a whole number: to the bit what
  `tf.image.resize(method="area")` and a cast give, the paper's evaluation
  (Pillow's box filter counts a pixel wholly or not at all). What is enlarged
  twice or more becomes a mosaic of squares by that, there too.

  Args:
    image: uint8 [H, W, 3].
    short_side: pixels.

  Returns:
    uint8 [height, width, 3], the shorter of which is `short_side`.
  """
  height, width = images.short_size(image.shape[0], image.shape[1], short_side)
  return images.resize_part(image, (height, width), (0, 0), (height, width))


def central_crop(image: np.ndarray, size: Size) -> np.ndarray:
  """Cuts `size` out of the middle; half a pixel up and left if it must be.

  Args:
    image: uint8 [H, W, 3].
    size: of the result.

  Returns:
    uint8 [height, width, 3].

  Raises:
    ValueError: the image is smaller than that.
  """
  height, width = _pair(size)
  top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  if top < 0 or left < 0:
    raise ValueError(
      f"cannot cut {height} x {width} pixels out of an image of "
      f"{image.shape[0]} x {image.shape[1]}"
    )
  return np.ascontiguousarray(image[top : top + height, left : left + width])


def train(
  encoded: bytes,
  rng: np.random.Generator,
  options: TrainOptions,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Decodes, crops, flips and augments one image for training.

  Args:
    encoded: the bytes of an image file.
    rng: where all the randomness comes from.
    options: what to do, in the order in which they list it.
    out: where to write the image, uint8 [height, width, 3], contiguous; None
      for a fresh array.

  Returns:
    uint8 [height, width, 3], writable.

  Raises:
    ValueError: the bytes don't decode, see `decode`.
  """
  opened = images.open_image(encoded)
  size = options.pair
  box = (0, 0, opened.width, opened.height)
  if options.crop == "inception":
    box = images.crop_box(
      opened.height, opened.width, rng, options.crop_area, options.crop_aspect
    )
  image = out = images.resize(opened.crop(box, size), size, out)
  if options.flip and _heads(rng):
    cv2.flip(image, 1, image)
  if options.affine is not None:
    a = options.affine
    image = affine(image, rng, a.degrees, a.scale, a.translate)
  if options.randaugment is not None:
    r = options.randaugment
    image = randaugment_lib.apply(image, rng, r.layers, r.magnitude)
  if image is not out:
    out[...] = image
  return out


def evaluation(
  encoded: bytes, size: Size = 224, short_side: int = 256
) -> np.ndarray:
  """Decodes an image and takes its middle, as the paper evaluates.

  The same as `decode`, `resize_short` and `central_crop`, without computing
  what would be cut off.

  Args:
    encoded: the bytes of an image file.
    size: of the crop.
    short_side: to which the shorter side is resized before; 0: no crop, the
      whole image is squeezed to `size` by `resize`, bilinearly as in training
      and as VTAB does (arXiv 1910.04867).

  Returns:
    uint8 [height, width, 3], writable.

  Raises:
    ValueError: the bytes don't decode, see `decode`.
    UserError: the crop is larger than what it is taken from.
  """
  # Before the decoding, which takes its time.
  EvalOptions(size, short_side)
  pixels = images.open_image(encoded).pixels()
  return evaluation_of_pixels(pixels, size, short_side)


def evaluation_of_pixels(
  image: np.ndarray, size: Size = 224, short_side: int = 256
) -> np.ndarray:
  """What `evaluation` does behind the decoding.

  Args:
    image: uint8 [H, W, 3]; it is left as it is.
    size: as for `evaluation`.
    short_side: likewise.

  Returns:
    uint8 [height, width, 3], writable, that shares no memory with `image`.

  Raises:
    UserError: the crop is larger than what it is taken from.
  """
  crop = EvalOptions(size, short_side).pair
  if not short_side:
    return images.reduce_and_resize(image, crop)
  whole = images.short_size(image.shape[0], image.shape[1], short_side)
  start = (whole[0] - crop[0]) // 2, (whole[1] - crop[1]) // 2
  return images.resize_part(image, whole, start, crop)


def _pair(size: Size) -> tuple[int, int]:
  """Reads a size as (height, width)."""
  pair = (size, size) if isinstance(size, int) else tuple(size)
  if len(pair) != 2 or min(pair) < 1:
    raise errors.UserError(
      f"An image's size must be a positive number or (height, width), such as "
      f"224 or (224, 224), but is {size!r}."
    )
  return pair[0], pair[1]


def _heads(rng: np.random.Generator) -> bool:
  return rng.random() < 0.5
