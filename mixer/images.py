"""Decodes images, within bounds of bytes and pixels.

Every image from outside is decoded here: JPEGs by `jpeg`, everything else and
what that refuses by Pillow.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Literal

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from mixer import files, image_files, jpeg
from mixer.errors import UserError, first_line

# The threads of a loader work on one image each; OpenCV's own threads would
# get in their way. Intel's routines in OpenCV round differently.
cv2.setNumThreads(0)
cv2.ipp.setUseIPP(False)
# Of odd EXIF data and the like. (`catch_warnings` is not for threads.)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

# So that no image takes more than 2 GiB beside its file: 15 bytes a pixel
# while it is decoded, 3 afterwards. Pillow also takes memory for each row.
MAX_BYTES = 1 << 28
MAX_PIXELS = 1 << 27
_MAX_SIDE = 1 << 20
_MAX_SCANS = 100  # Of a progressive JPEG, each as slow as the image.
# Half as many pixels of these: their decoders take more memory.
_COSTLY = ("webp", "avif")
# Nothing else is decoded: Pillow has formats that start programs (EPS), and
# many that nobody uses. Its names for these are the same in capitals.
_DECODED = ("jpeg", "png", "gif", "webp", "bmp", "tiff", "ppm", "avif")

Kind = Literal[
  "", "empty", "unreadable", "not an image", "damaged", "too large",
  "unsupported",
]  # fmt: skip


class ImageError(ValueError):
  """Why an image can't be used, without a full stop; and of what kind it is."""

  def __init__(self, kind: Kind, message: str):
    super().__init__(message)
    self.kind: Kind = kind


def read(path: str | os.PathLike[str]) -> bytes:
  """Reads an image file; ImageError, which doesn't name it, if it can't be."""
  try:
    return files.read_bytes(path, "an image", MAX_BYTES)
  except (UserError, ValueError) as e:  # The latter: a name with a zero byte.
    why = files.reason(e.__cause__ or e).removeprefix(f"{os.fspath(path)} ")
    raise ImageError("unreadable", why.removesuffix(".")) from e


class Opened:
  """An image of known size; a JPEG is decoded on demand. Raises ImageError.

  With `white` what is transparent comes on white ground; else the colour stored
  beneath shows, as in the published runs.
  """

  def __init__(self, image: bytes | np.ndarray, white: bool = False):
    """Takes a file's bytes, or pixels as `of_array`."""
    self.height, self.width = 0, 0
    self.format = ""  # By the content of a file.
    self.sampling = "444"  # Of a JPEG's colours, as in `jpeg.encode`.
    self.grey = False  # Its three channels are equal.
    self.flattened = False  # It was transparent and is on white ground now.
    self.dark = False  # The upper 8 of the bits of all its values are 0.
    self._encoded, self._head = b"", None
    if isinstance(image, np.ndarray):
      self._pixels: np.ndarray | None = of_array(image)
    else:
      self._encoded, self._pixels = image, self._open(image, white)
    if self._pixels is not None:
      self.height, self.width = self._pixels.shape[:2]

  def _open(self, encoded: bytes, white: bool) -> np.ndarray | None:
    """Reads a JPEG's header, or else decodes the image."""
    if not encoded:
      raise ImageError("empty", "the image is empty: 0 bytes")
    if len(encoded) > MAX_BYTES:
      size = f"{len(encoded):,} bytes, more than {MAX_BYTES:,}"
      raise ImageError("too large", size)
    self._head = head = jpeg.header(encoded)
    self.format = "jpeg" if head else image_files.sniff(encoded)
    several = self.format == "jpeg" and not (head and head.single)
    if several and encoded.count(b"\xff\xda") > _MAX_SCANS:
      raise ImageError("damaged", f"a JPEG of more than {_MAX_SCANS} scans")
    if head:
      self.height, self.width = head.height, head.width
      self.grey, self.sampling = head.channels == 1, head.sampling
      _check_size(head.height, head.width, self.format)
      return None
    with _pillow_errors():
      opened = _by_pillow(encoded, self.format)
      self.grey = opened.mode in ("1", "L")
      pixels, self.flattened = _to_rgb(opened, white)
      self.dark = _bits(opened, encoded) > 8 and not pixels.any()
      return pixels

  def pixels(self) -> np.ndarray:
    """All pixels, uint8 [height, width, 3]; to be read only."""
    return self.crop((0, 0, self.width, self.height), (self.height, self.width))

  def crop(self, box: jpeg.Box, size: tuple[int, int]) -> np.ndarray:
    """uint8 pixels of a box, reduced by 2, 4 or 8 while not below `size`."""
    left, top, right, bottom = box
    if self._pixels is None:
      assert self._head
      factor = _factor(bottom - top, right - left, size)
      try:
        return jpeg.decode(self._encoded, self._head, box, factor)
      except jpeg.DamagedError as e:
        raise ImageError("damaged", f"cannot decode the image: {e}") from e
      except ValueError:  # A kind that libjpeg-turbo doesn't decode.
        with _pillow_errors():
          pixels, _ = _to_rgb(_by_pillow(self._encoded, self.format))
      if pixels.shape[:2] != (self.height, self.width):
        raise ImageError("damaged", "its headers give it several sizes")
      self._pixels = pixels
    return reduce(self._pixels[top:bottom, left:right], size)

  def orientation(self) -> int:
    """EXIF's: 1 for upright, 2 to 8 for the other ways."""
    if self.format == "tiff":  # Pillow turns these by itself.
      return 1
    try:
      exif = _pillow_header(self._encoded, self.format).getexif()
      turn = exif.get(ExifTags.Base.Orientation, 1)
    except Exception:  # The pixels are whole; odd EXIF data say nothing.
      return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def reduce(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Means over 2, 4 or 8 pixels a side, while the result isn't below `size`."""
  height, width = image.shape[:2]
  n = _factor(height, width, size)
  if n == 1:
    return image
  area = cv2.INTER_AREA
  return cv2.resize(image, (width // n, height // n), interpolation=area)


def _factor(height: int, width: int, size: tuple[int, int]) -> int:
  times = min(height // size[0], width // size[1])
  return 1 if times < 2 else min(8, 1 << times.bit_length() - 1)


def of_array(array: np.ndarray) -> np.ndarray:
  """uint8 [H, W], [H, W, 1] or [H, W, 3] to contiguous [H, W, 3]."""
  channels = array[..., None] if array.ndim == 2 else array
  known = array.dtype == np.uint8 and channels.shape[2:] in ((1,), (3,))
  if not known or not array.size:
    kind = f"an array of {array.dtype}, {list(array.shape)}"
    expected = "uint8, 0 to 255, and [H, W], [H, W, 1] or, of RGB, [H, W, 3]"
    raise ImageError("unsupported", f"{kind} is no image: expected {expected}")
  if channels.shape[2] == 1:
    channels = np.broadcast_to(channels, (*array.shape[:2], 3))
  return np.ascontiguousarray(channels)


def of_pillow(image: Image.Image) -> np.ndarray:
  """An image that somebody opened, upright on white ground; uint8 [H, W, 3]."""
  if not image.width * image.height:
    raise ImageError("empty", "it has no pixels")
  # What was opened is decoded now. (MPO is a JPEG and more images behind it.)
  format_ = (image.format or "").lower().replace("mpo", "jpeg")
  if isinstance(image, ImageFile.ImageFile) and format_ not in _DECODED:
    why = "not decoded here; give image.convert('RGB') if you trust it"
    raise ImageError("unsupported", f"a {image.format} image, {why}")
  _check_size(image.height, image.width, format_)
  with _pillow_errors():
    return _to_rgb(ImageOps.exif_transpose(image), white=True)[0]


def _check_size(height: int, width: int, format_: str) -> None:
  most = MAX_PIXELS // 2 if format_ in _COSTLY else MAX_PIXELS
  if height * width > most or max(height, width) > _MAX_SIDE:
    limit = f"more than {most:,} in all or {_MAX_SIDE:,} on a side"
    raise ImageError("too large", f"{width:,} x {height:,} pixels, {limit}")


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
  """Turns whatever Pillow raises for a damaged image into an ImageError."""
  try:
    yield
  except ImageError:
    raise
  except Exception as e:  # OSError, SyntaxError, struct.error, IndexError ...
    # MemoryError is also Pillow's word for sizes that make no sense.
    large = isinstance(e, Image.DecompressionBombError | MemoryError)
    unknown = isinstance(e, Image.UnidentifiedImageError)
    why = "its header is damaged" if unknown else first_line(e)
    why = f"cannot decode the image: {why}"
    raise ImageError("too large" if large else "damaged", why) from e


def _by_pillow(encoded: bytes, format_: str) -> Image.Image:
  if format_ not in _DECODED:
    kind: Kind = "unsupported" if format_ else "not an image"
    what = f"{len(encoded)} bytes that begin with {encoded[:16]!r}"
    why = f"{format_.upper() or kind}, expected JPEG, PNG or the like: {what}"
    raise ImageError(kind, why)
  image = _pillow_header(encoded, format_)
  _check_size(image.height, image.width, format_)
  image.load()
  return image


def _pillow_header(encoded: bytes, format_: str) -> Image.Image:
  return Image.open(io.BytesIO(encoded), formats=[format_.upper()])


def _to_rgb(image: Image.Image, white: bool = False) -> tuple[np.ndarray, bool]:
  """Any mode to uint8 [H, W, 3]; also whether it was put on white ground."""
  if image.mode[0] in "IF":  # "I;16" and its byte orders, or 32-bit "I".
    values, bits = np.asarray(image), _bits(image)
    largest = 1 << max(bits, 16)
    if image.mode == "F" or values.min() < 0 or values.max() >= largest:
      why = "its values have no agreed range; save it as 8-bit"
      raise ImageError("unsupported", why)
    grey = (values >> max(0, bits - 8)).clip(max=255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), False
  clear = white and image.has_transparency_data and image.mode != "RGBA"
  # Straight to RGB, Pillow warns of a palette with transparency.
  if clear or image.mode in ("P", "PA"):
    image = image.convert("RGBA")
  if white and image.mode == "RGBA":
    alpha = image.getchannel("A")
    if alpha.getextrema() != (255, 255):
      ground = Image.new("RGB", image.size, "white")
      ground.paste(image, mask=alpha)
      return np.asarray(ground), True
  # A copy only where it is needed: it takes memory.
  return np.asarray(
    image.convert("RGB") if image.mode != "RGB" else image
  ), False


def _bits(image: Image.Image, encoded: bytes = b"") -> int:
  """Of a value, as the file declares them; 16 for grey that doesn't, or 8."""
  tags = getattr(image, "tag_v2", {})
  # TIFF's largest value, unsigned or signed, and its bits of a value.
  *largest, bits = (int(np.ravel(tags.get(k, 0))[0]) for k in (281, 341, 258))
  if max(largest) > 0:
    return max(largest).bit_length()
  if image.mode.startswith("I"):  # In 32 bits there mostly are 16.
    return bits if 8 < bits < 16 else 16
  return encoded[24] if encoded[12:16] == b"IHDR" else bits or 8
