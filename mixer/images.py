"""What `preprocess` computes with: decoding, crop boxes and resampling.

Every image that comes from outside is read and decoded here, by one decoder
(`jpeg`) and, for what that can't, by another one (Pillow), within bounds of
bytes and pixels. Call `preprocess`; these functions take and return what spares
copies.
"""

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Literal, Protocol

import cv2
import numpy as np
from PIL import Image, ImageFile, ImageOps

from mixer import files, jpeg
from mixer.datasets.sources import file_format
from mixer.errors import UserError, first_line

# The loader's threads work on one image each; OpenCV's own would only get in
# their way. Intel's routines inside it round otherwise than the rest.
cv2.setNumThreads(0)
cv2.ipp.setUseIPP(False)

Box = tuple[int, int, int, int]  # (left, top, right, bottom)

# A file has no more bytes, and an image no more pixels, so that none takes over
# 2 GiB beside its file: 15 bytes a pixel while it is decoded, 3 afterwards.
MAX_BYTES = 1 << 28
MAX_PIXELS = 1 << 27
# A side is no longer: Pillow takes memory for each row, however short.
_MAX_SIDE = 1 << 20
# Of these half as many: their decoders take more memory.
_COSTLY = ("webp", "avif")
# A progressive JPEG may have any number of scans, each as slow as the image.
_MAX_SCANS = 100
# What is decoded, and nothing else: Pillow has formats that start programs
# (EPS), and many that nobody uses. Its names for them.
_FORMATS = {
  "jpeg": "JPEG",
  "png": "PNG",
  "gif": "GIF",
  "webp": "WEBP",
  "bmp": "BMP",
  "tiff": "TIFF",
  "ppm": "PPM",
  "avif": "AVIF",
}
# The format of Pillow's images of them; MPO is a JPEG with more behind it.
_PILLOWS = (*_FORMATS.values(), "MPO")
# TIFF's tags: the bits of a value, and the largest one, of either type.
_BITS, _LARGEST = 258, (341, 281)
_CROP_ATTEMPTS = 100
# Of rows and columns that are resized together.
_TILE = 128, 1024
_Taps = tuple[np.ndarray, np.ndarray, np.float32]

Kind = Literal[
  "", "empty", "unreadable", "not an image", "damaged", "too large",
  "unsupported",
]  # fmt: skip


class ImageError(ValueError):
  """Why an image can't be used, in a sentence without its full stop.

  Attributes:
    kind: of problem.
  """

  def __init__(self, kind: Kind, message: str):
    super().__init__(message)
    self.kind: Kind = kind


class Opened(Protocol):
  """An encoded image of which the size is known.

  Attributes:
    height: pixels.
    width: pixels.
    format: such as "jpeg", by its content.
    grey: its three channels are equal.
    sampling: of a JPEG's colours, as `jpeg.encode` has it; "444" for others.
    flattened: it was transparent, and lies on white ground now.
    dark: it is black, as its values leave the upper half of their bits empty.
  """

  height: int
  width: int
  format: str
  grey: bool
  sampling: str
  flattened: bool
  dark: bool

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
      ImageError: the bytes can't be decoded.
    """
    ...


def read(path: str | os.PathLike[str]) -> bytes:
  """Reads an image's file: a regular one, of `MAX_BYTES` at most.

  Raises:
    ImageError: it is none, or can't be read.
  """
  try:
    return files.read_bytes(path, "an image", MAX_BYTES)
  except (UserError, ValueError) as e:  # The latter: a name with a zero byte.
    # Whoever tells of it names the file.
    why = files.reason(e.__cause__ or e).removeprefix(f"{os.fspath(path)} ")
    why = why.removesuffix(".")
    raise ImageError("unreadable", why) from e


def open_image(encoded: bytes, white: bool = False) -> Opened:
  """Reads the size, and as little else as its format allows.

  Args:
    encoded: the bytes of a file.
    white: put what is transparent on white ground; else the colour stored
      beneath shows, as in the published runs.

  Raises:
    ImageError: the bytes can't be decoded.
  """
  if not encoded:
    raise ImageError("empty", "the image is empty: 0 bytes")
  if len(encoded) > MAX_BYTES:
    raise ImageError(
      "too large", f"{len(encoded):,} bytes, more than {MAX_BYTES:,}"
    )
  format_ = file_format.sniff(encoded)
  head = jpeg.header(encoded)
  several = format_ == "jpeg" and not (head and head.data)
  if several and encoded.count(b"\xff\xda") > _MAX_SCANS:
    raise ImageError("damaged", f"a JPEG of more than {_MAX_SCANS} scans")
  if head is None:
    return _Decoded(encoded, format_, white)
  _check_size(head.height, head.width, format_)
  return _Jpeg(encoded, head)


def _check_size(height: int, width: int, format_: str) -> None:
  most = MAX_PIXELS // 2 if format_ in _COSTLY else MAX_PIXELS
  if height * width > most:
    raise ImageError(
      "too large", f"{width:,} x {height:,} pixels, more than {most:,} in all"
    )
  if max(height, width) > _MAX_SIDE:
    raise ImageError(
      "too large",
      f"{width:,} x {height:,} pixels, more than {_MAX_SIDE:,} on a side",
    )


class _Jpeg:
  """A JPEG that libjpeg-turbo decodes; Pillow has a second try at the rest."""

  format = "jpeg"
  flattened = dark = False

  def __init__(self, encoded: bytes, head: jpeg.Header):
    self._encoded, self._head = encoded, head
    self.height, self.width = head.height, head.width
    self.grey, self.sampling = head.channels == 1, head.sampling

  def pixels(self) -> np.ndarray:
    return self.crop((0, 0, self.width, self.height), (self.height, self.width))

  def crop(self, box: Box, size: tuple[int, int]) -> np.ndarray:
    left, top, right, bottom = box
    n = _reduction(bottom - top, right - left, size)
    try:
      return jpeg.decode(self._encoded, self._head, box, n)
    except jpeg.DamagedError as e:
      raise ImageError("damaged", f"cannot decode the image: {e}") from e
    except ValueError:
      second = _Decoded(self._encoded, self.format)
    if (second.height, second.width) != (self.height, self.width):
      raise ImageError("damaged", "its headers give it several sizes")
    return second.crop(box, size)


class _Decoded:
  """What Pillow decodes, which is what had to be decoded to know its size."""

  sampling = "444"

  def __init__(self, encoded: bytes, format_: str, white: bool = False):
    self.format = format_
    with _pillow(encoded, format_) as image:
      self.grey = image.mode in ("1", "L")
      self._image, self.flattened = to_rgb(image, white)
      self.dark = _bits(image, encoded) > 8 and not self._image.any()
    self.height, self.width = self._image.shape[:2]

  def pixels(self) -> np.ndarray:
    return self._image

  def crop(self, box: Box, size: tuple[int, int]) -> np.ndarray:
    return reduce(self._image, box, size)


def reduce(image: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
  """`Opened.crop` of pixels, uint8 [H, W, 3]."""
  left, top, right, bottom = box
  image = image[top:bottom, left:right]
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
  return resize(reduce(image, box, size), size)


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


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Without Pillow's warnings of odd EXIF data, large images and the like.

  `warnings.catch_warnings` by itself, in several threads, puts filters back in
  the wrong order, and other warnings would stay switched off.
  """
  global _quiet_threads
  with _quiet_lock:
    if not _quiet_threads:
      _caught.enter_context(warnings.catch_warnings())
      warnings.simplefilter("ignore")
    _quiet_threads += 1
  try:
    yield
  finally:
    with _quiet_lock:
      _quiet_threads -= 1
      if not _quiet_threads:
        _caught.close()


_quiet_lock = threading.Lock()
_quiet_threads = 0
_caught = contextlib.ExitStack()


@contextlib.contextmanager
def _pillow(encoded: bytes, format_: str) -> Iterator[Image.Image]:
  """Opens and loads it by Pillow; errors in the block are the image's too."""
  if format_ not in _FORMATS:
    raise _unknown(encoded, format_)
  try:
    with quiet(), pillow_header(encoded, format_) as image:
      _check_size(image.height, image.width, format_)
      image.load()
      yield image
  except ImageError:
    raise
  except Image.DecompressionBombError as e:
    raise ImageError("too large", f"more than {MAX_PIXELS:,} pixels") from e
  except Image.UnidentifiedImageError as e:
    if format_ == "avif":  # Not every Pillow has it.
      raise _unknown(encoded, format_) from e
    raise ImageError(
      "damaged", f"begins like a {format_.upper()}, but has no header"
    ) from e
  except MemoryError as e:  # Also Pillow's word for sizes that make no sense.
    raise ImageError("too large", "no memory for its pixels") from e
  # For damaged bytes Pillow's plugins let through whatever trips them:
  # OSError, SyntaxError, struct.error, IndexError ...
  except Exception as e:
    why = first_line(e)
    raise ImageError("damaged", f"cannot decode the image: {why}") from e


def pillow_header(encoded: bytes, format_: str) -> Image.Image:
  """Opens it by Pillow, whose errors may be any; reads no pixels."""
  return Image.open(io.BytesIO(encoded), formats=[_FORMATS[format_]])


def _unknown(encoded: bytes, format_: str) -> ImageError:
  if format_:
    return ImageError(
      "unsupported",
      f"a {format_.upper()} image, or a damaged one; not read here: convert "
      "it to JPEG or PNG",
    )
  return ImageError(
    "not an image",
    f"not an image in any format that is read here: {len(encoded)} bytes that "
    f"begin with {encoded[:16]!r}",
  )


def of_pillow(image: Image.Image) -> np.ndarray:
  """An image that somebody has opened, on white ground; uint8 [H, W, 3].

  Raises:
    ImageError: it can't be used, or is of a format that isn't decoded here.
  """
  if not image.width * image.height:
    raise ImageError("empty", "it has no pixels")
  # A file may be read, and decoded, only when its pixels are asked for.
  if isinstance(image, ImageFile.ImageFile) and image.format not in _PILLOWS:
    raise ImageError(
      "unsupported",
      f"a {image.format} image, not decoded here; give image.convert('RGB') "
      "if you trust it",
    )
  _check_size(image.height, image.width, (image.format or "").lower())
  try:
    with quiet():
      return to_rgb(ImageOps.exif_transpose(image), white=True)[0]
  except ImageError:
    raise
  except MemoryError as e:
    raise ImageError("too large", "no memory for its pixels") from e
  # As in `_pillow`: an image that is opened may still be damaged.
  except Exception as e:
    raise ImageError("damaged", f"cannot use the image: {first_line(e)}") from e


def to_rgb(image: Image.Image, white: bool = False) -> tuple[np.ndarray, bool]:
  """Converts any of Pillow's modes, see `preprocess.decode`.

  Returns:
    uint8 [H, W, 3]; whether some of it was transparent, and is on white now.

  Raises:
    ImageError: its values have no agreed range.
  """
  if image.mode.startswith("I"):  # "I;16" and its byte orders, or 32-bit "I".
    return np.repeat(_grey(image)[..., None], 3, axis=2), False
  if image.mode == "F":
    raise ImageError(
      "unsupported", "its float values have no agreed range; save it as 8-bit"
    )
  clear = white and image.has_transparency_data and image.mode != "RGBA"
  if clear or image.mode in ("P", "PA"):
    # Straight to RGB, Pillow warns of a palette with transparency.
    image = image.convert("RGBA")
  if white and image.mode == "RGBA":
    alpha = image.getchannel("A")
    if alpha.getextrema() != (255, 255):
      ground = Image.new("RGB", image.size, "white")
      ground.paste(image, mask=alpha)
      return np.asarray(ground), True
  # As it is, if it can be: a copy takes room.
  image = image if image.mode == "RGB" else image.convert("RGB")
  return np.asarray(image), False


def _bits(image: Image.Image, encoded: bytes = b"") -> int:
  """Of a value, as the file declares them; 16 for grey that doesn't, or 8."""
  tags = getattr(image, "tag_v2", {})
  declared = {}
  for tag in (*_LARGEST, _BITS):
    found = tags.get(tag)
    found = found[0] if isinstance(found, tuple) and found else found
    declared[tag] = found if isinstance(found, int) else 0
  largest = max(declared[tag] for tag in _LARGEST)
  if largest > 0:
    return largest.bit_length()
  if image.mode.startswith("I"):
    # In 32 bits there mostly are 16.
    return declared[_BITS] if 8 < declared[_BITS] < 16 else 16
  return encoded[24] if encoded[12:16] == b"IHDR" else declared[_BITS] or 8


def _grey(image: Image.Image) -> np.ndarray:
  """The upper 8 of the bits that its values have, uint8 [H, W]."""
  values, bits = np.asarray(image), _bits(image)
  if values.min() < 0 or values.max() >= 1 << max(bits, 16):
    raise ImageError(
      "unsupported",
      "its 32-bit values have no agreed range; save it as 8-bit",
    )
  return (values >> max(0, bits - 8)).clip(max=255).astype(np.uint8)


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
  # As big_vision's resize_small, in float32.
  ratio = np.float32(short_side) / np.float32(min(height, width))
  return round(float(height * ratio)), round(float(width * ratio))


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
  if whole == image.shape[:2]:
    return image[top : top + height, left : left + width].copy()
  result = np.empty((height, width, 3), np.uint8)
  down, across = _TILE  # In tiles: float32 takes room.
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
  """Which pixels of a row or column a resized one covers, and how much of each.

  In float32, step by step as TensorFlow's ResizeArea, for the same bits: where
  a mean is a whole number they decide whether it loses one as its cast, and
  ours, cuts off the fraction.

  Args:
    size: original number of pixels.
    new_size: to which all of them are resized.
    start: first of the new pixels wanted.
    count: number of new pixels wanted.

  Returns:
    int64 [count, K] indices of original pixels; float32 [count, K] of each the
    length that is covered; and the length of a new pixel.
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
