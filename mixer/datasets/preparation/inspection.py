"""Looks at one image file: does it decode, and which bytes are to be stored.

Called in worker processes, so it loads neither TFDS nor JAX.
"""

import dataclasses
import io
import warnings
from typing import Literal, Protocol

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

from mixer import images, jpeg
from mixer.datasets.sources import file_format

Kind = Literal[
  "", "empty", "not an image", "damaged", "too large", "unsupported",
  "mislabelled",
]  # fmt: skip

# Of libjpeg's complaints those by which pixels are missing. It has others
# ("extraneous bytes before marker") about files that decode to the last pixel.
_MISSING = ("premature end", "bad huffman code")
# Sides of chroma blocks trade places when an image is turned on its side.
_TURNED = {"422": "440", "440": "422"}
_SUBSAMPLINGS = ("444", "422", "420", "440", "411")
_JPEG_SIDE = 65_500


class Wanted(Protocol):
  """What of `build_options.Options` is asked for here.

  Attributes:
    upright: turn images as their EXIF orientation says.
    short_side: to which longer short sides are reduced; 0 for none.
    quality: of JPEG encoding, where an image is encoded anew.
  """

  @property
  def upright(self) -> bool: ...
  @property
  def short_side(self) -> int: ...
  @property
  def quality(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Options:
  """The least that is `Wanted`."""

  upright: bool = False
  short_side: int = 0
  quality: int = 95


@dataclasses.dataclass(frozen=True)
class Inspected:
  """What was found.

  Attributes:
    data: the bytes to store; those found, unless the image was turned or
      resized.
    problem: why the image can't be used (or, if it is mislabelled, what is
      odd about it); "" if nothing is wrong.
    kind: of the problem. Only a "mislabelled" image can be used.
    height: pixels of what is to be stored; 0 if unknown.
    width: likewise.
    format: of what is to be stored, in Pillow's words in small letters; ""
      if unknown.
    pixels: of `data`, uint8 [H, W, 1] if it is grey, [H, W, 3] else; None
      where only decoding it tells, see `decoded`.
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


class _ProblemError(Exception):
  """Ends an inspection with (kind, sentence)."""


@dataclasses.dataclass(frozen=True)
class _Picture:
  """A decoded image.

  Attributes:
    pixels: uint8 [H, W, 1] if it is grey, [H, W, 3] else.
    format: of its file.
    subsampling: of a JPEG's chroma, as simplejpeg has it.
    exact: `preprocess.decode` gives the same pixels, to the bit.
  """

  pixels: np.ndarray
  format: str
  subsampling: str = "444"
  exact: bool = False


def inspect(data: bytes, name: str, options: Wanted) -> Inspected:
  """Decodes an image wholly, and turns or resizes it where that is wanted.

  A resized image becomes a JPEG: grey if it was, RGB (as `preprocess.decode`
  makes it) if not, with the chroma subsampling of a JPEG as it was and none
  for other formats. It is the mean over areas, as in `preprocess.resize_short`.
  One that is only turned becomes a JPEG if it was one, and else a PNG.

  Args:
    data: the file's bytes.
    name: of which the suffix is compared with the content's format.
    options: what is wanted.

  Returns:
    What was found; nothing is raised for any bytes.
  """
  if not data:
    return Inspected(data, "the file is empty: 0 bytes", "empty")
  format_ = file_format.sniff(data)
  try:
    with warnings.catch_warnings():
      # Pillow's, of odd EXIF data, of large images: they lead to no sentence.
      warnings.simplefilter("ignore")
      picture = _jpeg(data) if format_ == "jpeg" else _pillow(data, format_)
      turn = 1
      # Pillow turns TIFFs by itself, also where they are trained on.
      if options.upright and picture.format != "tiff":
        turn = _orientation(data)
  except _ProblemError as e:
    kind, sentence = e.args
    return Inspected(data, sentence, kind, format=format_)
  says = file_format.named(name) or picture.format
  wrong = says != picture.format
  found = _stored(data, picture, turn, options)
  if wrong:
    found = dataclasses.replace(
      found,
      kind="mislabelled",
      problem=f"a {picture.format.upper()} by its content, a {says.upper()} "
      "by its name",
    )
  return found


def decoded(found: Inspected) -> np.ndarray:
  """The pixels of what is to be stored, as training and evaluation see them.

  The same as `preprocess.decode(found.data)`, without decoding once more what
  the inspection has decoded.

  Args:
    found: without a problem, or mislabelled.

  Returns:
    uint8 [H, W, 3], to be read only, and used before the same thread decodes
    another image.

  Raises:
    ValueError: a sentence that says why the bytes can't be decoded.
  """
  if found.pixels is None:
    return images.open_image(found.data).pixels()
  if found.pixels.shape[2] == 1:
    return cv2.cvtColor(found.pixels, cv2.COLOR_GRAY2RGB)
  return found.pixels


def _stored(
  data: bytes, picture: _Picture, turn: int, options: Wanted
) -> Inspected:
  """The bytes to store, without a problem."""
  pixels, sampling = picture.pixels, picture.subsampling
  height, width = pixels.shape[:2]
  shrink = 0 < options.short_side < min(height, width)
  if not shrink and turn == 1:
    return Inspected(
      data,
      height=height,
      width=width,
      format=picture.format,
      pixels=pixels if picture.exact else None,
    )
  if shrink:
    height, width = images.short_size(height, width, options.short_side)
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    pixels = pixels.reshape(height, width, -1)  # cv2 drops an axis of one.
  if turn != 1:
    pixels = _turned(pixels, turn)
    if turn >= 5:
      sampling = _TURNED.get(sampling, sampling)
  height, width = pixels.shape[:2]
  grey = pixels.shape[2] == 1
  if (shrink or picture.format == "jpeg") and max(height, width) <= _JPEG_SIDE:
    if sampling not in _SUBSAMPLINGS:
      sampling = "444"
    encoded = jpeg.encode(
      np.ascontiguousarray(pixels), options.quality, sampling
    )
    return Inspected(encoded, height=height, width=width, format="jpeg")
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "PNG")
  return Inspected(file.getvalue(), height=height, width=width, format="png")


def _jpeg(data: bytes) -> _Picture:
  try:
    height, width, space, sampling = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return _pillow(data, "jpeg")  # Whose words for it are clearer.
  _check_size(int(height), int(width))
  if space in ("CMYK", "YCCK"):
    return _pillow(data, "jpeg")
  grey = space == "Gray"
  try:
    # Strict: any complaint of libjpeg's raises.
    pixels = simplejpeg.decode_jpeg(
      data, "GRAY" if grey else "RGB", strict=True
    )
  except ValueError as e:
    says = str(e)
    if any(missing in says.lower() for missing in _MISSING):
      raise _ProblemError("damaged", f"cut short or damaged: {says}") from e
    pixels = _pillow(data, "jpeg").pixels
    pixels = pixels[..., :1] if grey else pixels
    exact = False  # `images.open_image` lets some complaints pass.
  else:
    # What it leaves to Pillow, Pillow may decode otherwise.
    exact = jpeg.header(data) is not None
  return _Picture(pixels, "jpeg", "444" if grey else sampling, exact)


def _pillow(data: bytes, format_: str) -> _Picture:
  """Decodes what simplejpeg doesn't."""
  exact = jpeg.header(data) is None  # Else it is simplejpeg's first.
  try:
    # Reads the header alone.
    with Image.open(io.BytesIO(data)) as image:
      mode, known = image.mode, (image.format or "").lower()
      _check_size(image.height, image.width)
      # Pillow has its own names for kinds of JPEG and of PPM.
      format_ = format_ or known
      if mode in ("1", "L"):
        pixels = np.asarray(image.convert("L"))[..., None]
        return _Picture(pixels, format_, exact=exact)
  except _ProblemError:
    raise
  except Image.DecompressionBombError as e:
    raise _ProblemError(
      "too large", f"more than {images.MAX_PIXELS:,} pixels"
    ) from e
  except Image.UnidentifiedImageError as e:
    raise _ProblemError(*_unidentified(data, format_)) from e
  except MemoryError:
    raise
  # For damaged bytes Pillow's plugins let through whatever trips them.
  except Exception as e:
    raise _ProblemError("damaged", f"cannot decode the image: {e}") from e
  try:
    pixels = np.asarray(images.open_rgb(data))
    return _Picture(pixels, format_, exact=exact)
  except ValueError as e:
    kind: Kind = "unsupported" if mode in ("I", "F") else "damaged"
    raise _ProblemError(kind, str(e)) from e


def _unidentified(data: bytes, format_: str) -> tuple[Kind, str]:
  if format_ in ("heic", "avif", "jpeg2000"):
    return (
      "unsupported",
      f"a {format_.upper()} image, or a damaged one; not read here: convert "
      "it to JPEG or PNG",
    )
  if format_:
    return "damaged", f"begins like a {format_.upper()}, but has no header"
  return (
    "not an image",
    f"not an image in any format that Pillow reads: {len(data)} bytes that "
    f"begin with {data[:16]!r}",
  )


def _check_size(height: int, width: int) -> None:
  if height * width > images.MAX_PIXELS:
    raise _ProblemError(
      "too large",
      f"{width:,} x {height:,} pixels, more than {images.MAX_PIXELS:,} in all",
    )


def _orientation(data: bytes) -> int:
  """EXIF's: 1 for upright, 2 to 8 for the other ways."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      turn = image.getexif().get(ExifTags.Base.Orientation, 1)
  # The pixels are whole; odd EXIF data say nothing, and may raise anything.
  except Exception:
    return 1
  return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
  """Undoes an EXIF orientation, 2 to 8."""
  if turn >= 5:  # Rows and columns have traded places.
    pixels = pixels.swapaxes(0, 1)
  if turn in (3, 4, 7, 8):
    pixels = pixels[::-1]
  if turn in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  return pixels
