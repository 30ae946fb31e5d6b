"""Decodes a region of a JPEG, optionally downscaled; encodes JPEGs for that.

libjpeg-turbo decodes whole images, by its fast integer transform, as TensorFlow
did for the published runs. Most of its time goes into the entropy code, which
can only be read from the beginning. With a smaller height in a copy of the
header it stops early, though; and where a file has restart markers (as `mixer
prepare --resize=256` writes), at which the code starts afresh, the pieces that
a box needs make a JPEG of their own.
"""

import math
import re
import struct
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

# Frames that libjpeg-turbo decodes: baseline, extended sequential, progressive,
# Huffman coded. Other frames, and what can't come before a frame: start of
# scan, start and end of an image.
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
_REFUSED = frozenset(range(0xC3, 0xDB)) - {0xC4, 0xC8, 0xCC, *range(0xD0, 0xD8)}
_SCAN, _INTERVAL, _ADOBE = 0xDA, 0xDD, 0xEE
# Profiles, EXIF data, comments: no pixel depends on them; libjpeg may warn.
_OTHERS = frozenset((*range(0xE1, 0xEE), 0xEF, 0xFE))
_SHORT = frozenset((0x01, *range(0xD0, 0xD8)))  # Without a length.
_MARKER = re.compile(rb"\xff[^\0\xff]")
_BREAK = re.compile(rb"\xff([\xd0-\xd9])")  # Restart, end of the image.
# Warnings after which libjpeg goes on to the last pixel, as do Pillow and
# TensorFlow; and those of them after which pixels are missing.
_HARMLESS = ("Corrupt JPEG data", "Invalid SOS parameters")
_MISSING = ("premature end", "bad huffman code")
# Pixels around a box that its own depend on: colours are interpolated across
# the edges of blocks.
_MARGIN = 4
# Bytes that have to be left out for it to be worth looking for the markers.
_WORTH = 12_000
# Samplings of the colours: rows and columns of their units, OpenCV's number.
_SAMPLINGS = {
  "444": (8, 8, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
  "422": (8, 16, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422),
  "420": (16, 16, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420),
  "440": (16, 8, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440),
  "411": (8, 32, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411),
}
Box = tuple[int, int, int, int]  # (left, top, right, bottom)


class DamagedError(ValueError):
  """The file is a JPEG of which pixels are missing; no decoder is to try."""


class Header(NamedTuple):
  """What a JPEG's headers say."""

  height: int
  width: int
  row: int  # Pixels in height of the smallest unit that is coded as one.
  column: int  # Its pixels in width.
  start: bytes  # The segments that pixels depend on, to the first scan's.
  size: int  # Of the two bytes of the height in it; the width follows.
  data: int  # Where the code begins in the file.
  single: bool  # It is that of a single scan.
  restart: int  # Units between restart markers; 0 for no markers.
  channels: int  # 1 for grey, 3 for colours, 4 for inks.
  inverted: bool  # The inks are stored as Adobe does, 0 for all of one.

  @property
  def sampling(self) -> str:
    """Of the colours, as in `encode`; "444" for any that it hasn't."""
    unit = self.row, self.column
    names = [name for name, (*u, _) in _SAMPLINGS.items() if tuple(u) == unit]
    return names[0] if names and self.channels == 3 else "444"

  def resized(self, height: int, width: int) -> bytes:
    """`start` with another size."""
    size = struct.pack(">HH", height, width)
    return self.start[: self.size] + size + self.start[self.size + 4 :]


def header(encoded: bytes) -> Header | None:
  """Reads the headers of a file.

  None where this module can't decode it: no JPEG, one of 12 bits, an
  arithmetic code, or a damaged header.
  """
  start, end = encoded[:2], 2
  if start != b"\xff\xd8":
    return None
  marker, place, size, frame, restart, inverted = 0, 0, 0, 0, 0, False
  while marker != _SCAN:
    found = _MARKER.search(encoded, end, len(encoded) - 9)
    if not found:
      return None
    place, marker, end = found.start(), encoded[found.start() + 1], found.end()
    if marker not in _SHORT:
      end += int.from_bytes(encoded[end : end + 2], "big")
    if marker in _FRAMES:
      frame, size = place, len(start) + 5
    elif marker == _INTERVAL:
      restart = int.from_bytes(encoded[place + 4 : place + 6], "big")
    elif marker == _ADOBE:
      inverted = encoded[place + 4 : place + 9] == b"Adobe"
    elif marker in _REFUSED and not (marker == _SCAN and frame):
      return None
    if marker not in _OTHERS:
      start += encoded[place:end]
  fields = struct.unpack_from(">BHHB", encoded, frame + 4)
  bits, height, width, channels = fields
  factors = encoded[frame + 11 : frame + 10 + 3 * channels : 3]
  usual = bits == 8 and channels in (1, 3, 4) and len(factors) == channels
  if not usual or not height * width:  # 0: the height follows the pixels.
    return None
  row = column = 8  # A single channel's units are its blocks.
  if channels > 1:
    row *= max(1, *(f & 15 for f in factors))
    column *= max(1, *(f >> 4 for f in factors))
  # Other sequential files may have a scan for each channel.
  single = encoded[place + 4] == channels and encoded[frame + 1] != 0xC2
  return Header(
    height, width, row, column, start, size, end, single, restart, channels,
    inverted,
  )  # fmt: skip


def decode(
  encoded: bytes, head: Header, box: Box | None = None, reduction: int = 1
) -> np.ndarray:
  """Decodes a box of an image, by default all, to RGB, uint8 [H, W, 3].

  With a `reduction` of 2, 4 or 8 the box's edges are divided by it, and each
  pixel is a mean but for rounding, by a shorter transform of each block.

  Raises:
    DamagedError: pixels are missing.
    ValueError: libjpeg-turbo can't; the message is its own.
  """
  box = left, top, right, bottom = box or (0, 0, head.width, head.height)
  piece = _piece(encoded, head, box)
  if piece is None:
    # One row of units more, for what depends on both sides of their edge.
    height = min(head.height, (-(-bottom // head.row) + 1) * head.row)
    cut = head.resized(height, head.width), memoryview(encoded)[head.data :]
    piece = b"".join(cut), height, head.width, 0, 0
  encoded, height, width, x, y = piece
  inks = head.channels == 4
  shape = -(-height // reduction), -(-width // reduction), 4 if inks else 3
  image = _whole(encoded, shape, reduction)
  edges = top - y, bottom - y, left - x, right - x
  top, bottom, left, right = ((e + reduction // 2) // reduction for e in edges)
  image = image[top:bottom, left:right]
  if not inks:
    return image
  result = np.empty((*image.shape[:2], 3), np.uint8)
  for y, row in enumerate(image):  # 16 bits take memory.
    light = (row if head.inverted else ~row).astype(np.uint16)
    result[y] = light[:, :3] * light[:, 3:] // 255  # As TensorFlow does.
  return result


def _whole(
  encoded: bytes, shape: tuple[int, int, int], reduction: int
) -> np.ndarray:
  """Decodes all of a JPEG to RGB or, of 4 channels, CMYK."""
  pixels = np.empty(math.prod(shape), np.uint8)
  try:
    # What is warned of here ends the other call before a pixel is written.
    simplejpeg.decode_jpeg_header(encoded)
  except Exception as e:  # A KeyError too, for a sampling without a name.
    raise ValueError(f"its header: {e}") from e
  colors = "CMYK" if shape[2] == 4 else "RGB"
  size = shape[:2] if reduction > 1 else (0, 0)
  try:
    image = simplejpeg.decode_jpeg(
      encoded, colors, True, False, *size, reduction, pixels
    )
  except ValueError as e:
    if any(missing in str(e).lower() for missing in _MISSING):
      raise DamagedError(f"truncated or damaged ({e})") from e
    if not str(e).startswith(_HARMLESS):
      raise
    # Warned of behind the header: this call has written all pixels.
    image = pixels.reshape(shape)
  if image.shape != shape:
    raise ValueError(f"decoded to {image.shape} in place of {shape}")
  return image


def _piece(
  encoded: bytes, head: Header, box: Box
) -> tuple[bytes, int, int, int, int] | None:
  """A JPEG of the pieces between restart markers that a box needs.

  Its bytes, height and width, and the place (x, y) of its corner; None where it
  isn't worth it, or where markers aren't at the same columns of each row.
  """
  left, top, right, bottom = box
  across = -(-head.width // head.column)  # Units in a row.
  if not (head.single and head.restart) or across % head.restart:
    return None
  per_row = across // head.restart
  wide = head.restart * head.column  # Pixels of a piece.
  first = max(0, left - _MARGIN) // wide
  last = min(per_row, -(-(right + _MARGIN) // wide))
  rows = -(-head.height // head.row)
  above = max(0, top - _MARGIN) // head.row
  below = min(rows, -(-(bottom + _MARGIN) // head.row))
  x, y = first * wide, above * head.row
  width = min(head.width, last * wide) - x
  height = min(head.height, below * head.row) - y
  saved = 1 - height * width / (head.height * head.width)
  if saved * (len(encoded) - head.data) < _WORTH:
    return None
  # Restart markers are numbered in turn; the end of the image is the last.
  found, total = _BREAK.split(encoded[head.data :]), rows * per_row
  turns = bytes(range(0xD0, 0xD8)) * (total // 8 + 1)
  pieces, numbers = found[::2], b"".join(found[1::2])
  if len(numbers) < total or numbers[: total - 1] != turns[: total - 1]:
    return None
  parts = [head.resized(height, width)]
  for row in range(above, below):
    for piece in pieces[row * per_row + first : row * per_row + last]:
      parts += piece, bytes((0xFF, 0xD0 + len(parts) // 2 % 8))
  parts[-1] = b"\xff\xd9"
  return b"".join(parts), height, width, x, y


def encode(pixels: np.ndarray, quality: int, sampling: str = "420") -> bytes:
  """Encodes uint8 RGB, or [H, W, 1] grey, with markers that `decode` can use.

  The colours are sampled as "444", "422", "420", "440" or "411".
  """
  options, column = [cv2.IMWRITE_JPEG_QUALITY, quality], 8
  if pixels.shape[2] == 3:
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, column, factor = _SAMPLINGS[sampling]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor]
  across = -(-pixels.shape[1] // column)
  # Markers at the same columns of each row, some 48 pixels apart.
  interval = next(n for n in (3, 2, 4, 5, 6, 7, 8, 1) if across % n == 0)
  options += [cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
  done, encoded = cv2.imencode(".jpg", pixels, options)
  if not done:
    raise ValueError(f"can't encode an image of {pixels.shape}")
  return encoded.tobytes()
