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
# Half as many pixels of these: their decoders take more memory.
_COSTLY = ("webp", "avif")
# A progressive JPEG may have any number of scans, each as slow as the image.
_MAX_SCANS = 100
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
  """An image of known size; a JPEG is decoded only when it is asked for.

  Attributes:
    height: pixels.
    width: pixels.
    format: such as "jpeg", by its content.
    grey: its three channels are equal.
    sampling: of a JPEG's colours, as in `jpeg.encode`; "444" for others.
    flattened: it was transparent and is on white ground now.
    dark: it is black because its values leave the upper half of their bits
      empty.
  """

  def __init__(self, image: bytes | np.ndarray, white: bool = False):
    """Reads the size, and as little else as the format allows.

    Of a file's bytes, or pixels, see `of_array`. With `white` what is
    transparent comes on white ground; else the colour stored beneath shows, as
    in the published runs. Raises ImageError if it can't be decoded.
    """
    self.format, self.sampling = "", "444"
    self.grey = self.flattened = self.dark = False
    self._head = self._pixels = None
    self._encoded = b"" if isinstance(image, np.ndarray) else image
    if isinstance(image, np.ndarray):
      self._pixels = of_array(image)
    elif not image:
      raise ImageError("empty", "the image is empty: 0 bytes")
    elif len(image) > MAX_BYTES:
      raise ImageError(
        "too large", f"{len(image):,} bytes, more than {MAX_BYTES:,}"
      )
    elif head := jpeg.header(image):
      self._head, self.format = head, "jpeg"
      self.height, self.width = head.height, head.width
      self.grey, self.sampling = head.channels == 1, head.sampling
      _check_size(head.height, head.width, self.format)
    self.format = self.format or image_files.sniff(self._encoded)
    several = self.format == "jpeg" and not (self._head and self._head.single)
    if several and self._encoded.count(b"\xff\xda") > _MAX_SCANS:
      raise ImageError("damaged", f"a JPEG of more than {_MAX_SCANS} scans")
    if self._encoded and not self._head:
      with _by_pillow(self._encoded, self.format) as opened:
        self.grey = opened.mode in ("1", "L")
        self._pixels, self.flattened = _to_rgb(opened, white)
        deep = _bits(opened, self._encoded) > 8
        self.dark = deep and not self._pixels.any()
    if self._pixels is not None:
      self.height, self.width = self._pixels.shape[:2]

  def pixels(self) -> np.ndarray:
    """All pixels, uint8 [height, width, 3]; to be read only, see `crop`."""
    return self.crop((0, 0, self.width, self.height), (self.height, self.width))

  def crop(self, box: jpeg.Box, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a box, reduced by 2, 4 or 8 while not below `size`.

    They are uint8 [height, width, 3], to be used before the same thread decodes
    another image. ImageError if the bytes can't be decoded.
    """
    left, top, right, bottom = box
    if self._pixels is None:
      assert self._head
      factor = _factor(bottom - top, right - left, size)
      try:
        return jpeg.decode(self._encoded, self._head, box, factor)
      except jpeg.DamagedError as e:
        raise ImageError("damaged", f"cannot decode the image: {e}") from e
      except ValueError:  # A kind that libjpeg-turbo doesn't decode.
        with _by_pillow(self._encoded, self.format) as image:
          pixels, _ = _to_rgb(image)
      if pixels.shape[:2] != (self.height, self.width):
        raise ImageError("damaged", "its headers give it several sizes")
      self._pixels = pixels
    return reduce(self._pixels[top:bottom, left:right], size)

  def orientation(self) -> int:
    """EXIF's: 1 for upright, 2 to 8 for the other ways."""
    if self.format == "tiff":  # Pillow turns these by itself.
      return 1
    try:
      with _pillow_header(self._encoded, self.format) as image:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # The pixels are whole; odd EXIF data say nothing.
      return 1
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def reduce(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Means over 2, 4 or 8 pixels a side, while the result isn't below `size`."""
  height, width = image.shape[:2]
  n = _factor(height, width, size)
  if n == 1:
    return image
  return cv2.resize(
    image, (width // n, height // n), interpolation=cv2.INTER_AREA
  )


def _factor(height: int, width: int, size: tuple[int, int]) -> int:
  times = min(height // size[0], width // size[1])
  return 1 if times < 2 else min(8, 1 << times.bit_length() - 1)


def _check_size(height: int, width: int, format_: str) -> None:
  most = MAX_PIXELS // 2 if format_ in _COSTLY else MAX_PIXELS
  if height * width > most or max(height, width) > _MAX_SIDE:
    raise ImageError(
      "too large",
      f"{width:,} x {height:,} pixels, more than {most:,} in all or "
      f"{_MAX_SIDE:,} on a side",
    )


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
  """Makes an ImageError of whatever Pillow raises for a damaged image."""
  try:
    yield
  except ImageError:
    raise
  # The latter is also Pillow's word for sizes that make no sense.
  except (Image.DecompressionBombError, MemoryError) as e:
    why = f"more than {MAX_PIXELS:,} pixels, or no memory for them"
    raise ImageError("too large", why) from e
  # OSError, SyntaxError, struct.error, IndexError ...
  except Exception as e:
    unknown = isinstance(e, Image.UnidentifiedImageError)
    why = "its header is damaged" if unknown else first_line(e)
    raise ImageError("damaged", f"cannot decode the image: {why}") from e


@contextlib.contextmanager
def _by_pillow(encoded: bytes, format_: str) -> Iterator[Image.Image]:
  """Opens and loads it by Pillow; errors in the block are the image's too."""
  if format_ not in _DECODED:
    kind = "unsupported" if format_ else "not an image"
    raise ImageError(
      kind,
      f"{format_.upper() or 'not an image'}, in no format that is read here "
      f"(convert it to JPEG or PNG): {len(encoded)} bytes that begin with "
      f"{encoded[:16]!r}",
    )
  with _pillow_errors(), _pillow_header(encoded, format_) as image:
    _check_size(image.height, image.width, format_)
    image.load()
    yield image


def _pillow_header(encoded: bytes, format_: str) -> Image.Image:
  """Opens it by Pillow, whose errors may be any; reads no pixels."""
  return Image.open(io.BytesIO(encoded), formats=[format_.upper()])


def of_array(array: np.ndarray) -> np.ndarray:
  """uint8 [H, W], [H, W, 1] or [H, W, 3] to contiguous [H, W, 3]."""
  channels = array[..., None] if array.ndim == 2 else array
  if (
    array.dtype != np.uint8
    or channels.shape[2:] not in ((1,), (3,))
    or not array.size
  ):
    raise ImageError(
      "unsupported",
      f"an array of {array.dtype}, {list(array.shape)} is no image: expected "
      "uint8, 0 to 255, and [H, W], [H, W, 1] or, of RGB, [H, W, 3]; x in "
      "[0, 1] becomes one by (255 * x).round().astype('uint8')",
    )
  whole = (*array.shape[:2], 3)
  return np.ascontiguousarray(np.broadcast_to(channels, whole))


def of_pillow(image: Image.Image) -> np.ndarray:
  """An image that somebody opened, upright on white ground; uint8 [H, W, 3]."""
  if not image.width * image.height:
    raise ImageError("empty", "it has no pixels")
  # A file may be read, and decoded, only when its pixels are asked for.
  # (MPO is a JPEG with more images behind it.)
  format_ = (image.format or "").lower()
  known = format_ in (*_DECODED, "mpo")
  if isinstance(image, ImageFile.ImageFile) and not known:
    raise ImageError(
      "unsupported",
      f"a {image.format} image, not decoded here; give image.convert('RGB') "
      "if you trust it",
    )
  _check_size(image.height, image.width, format_)
  with _pillow_errors():
    return _to_rgb(ImageOps.exif_transpose(image), white=True)[0]


def _to_rgb(image: Image.Image, white: bool = False) -> tuple[np.ndarray, bool]:
  """Any mode to uint8 [H, W, 3]; also whether it was put on white ground."""
  if image.mode.startswith("I"):  # "I;16" and its byte orders, or 32-bit "I".
    return np.repeat(_grey(image)[..., None], 3, axis=2), False
  if image.mode == "F":
    raise _no_range()
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
  # A copy only where it is needed: it takes memory.
  image = image if image.mode == "RGB" else image.convert("RGB")
  return np.asarray(image), False


def _bits(image: Image.Image, encoded: bytes = b"") -> int:
  """Of a value, as the file declares them; 16 for grey that doesn't, or 8."""

  def declared(tag: int) -> int:
    value = getattr(image, "tag_v2", {}).get(tag)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else 0

  # TIFF's largest value, signed or not, and its bits of a value.
  largest, bits = max(declared(341), declared(281)), declared(258)
  if largest > 0:
    return largest.bit_length()
  if image.mode.startswith("I"):
    # In 32 bits there mostly are 16.
    return bits if 8 < bits < 16 else 16
  return encoded[24] if encoded[12:16] == b"IHDR" else bits or 8


def _grey(image: Image.Image) -> np.ndarray:
  """The upper 8 of the bits that its values have, uint8 [H, W]."""
  values, bits = np.asarray(image), _bits(image)
  if values.min() < 0 or values.max() >= 1 << max(bits, 16):
    raise _no_range()
  return (values >> max(0, bits - 8)).clip(max=255).astype(np.uint8)


def _no_range() -> ImageError:
  return ImageError(
    "unsupported", "its values have no agreed range; save it as 8-bit"
  )
