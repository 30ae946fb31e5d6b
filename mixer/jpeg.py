"""Decodes of a JPEG what is needed: some rows, at some scale.

libjpeg-turbo, through simplejpeg, decodes whole images. Most of its time goes
into the entropy code, which has no way in but from the beginning; it can stop
early, though: with a smaller height written into a copy of the header it
decodes only so many rows.
"""

import dataclasses
import struct
import threading

import numpy as np
import simplejpeg

# Frames that libjpeg-turbo decodes to RGB: baseline, extended sequential and
# progressive, Huffman coded.
_FRAMES = frozenset((0xC0, 0xC1, 0xC2))
# Other frames, and what can't come before a frame: start of scan, end of image.
_REFUSED = frozenset(
  (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xD9, 0xDA)
)
# Warnings of libjpeg after which it goes on, and so do Pillow and TensorFlow:
# bytes too many, bits that are no code. Not the end of the file in the middle.
_HARMLESS = ("Corrupt JPEG data", "Invalid SOS parameters")
# A thread's buffer for decoded pixels isn't kept beyond this.
_KEPT_BYTES = 1 << 26
_kept = threading.local()


@dataclasses.dataclass(frozen=True)
class Header:
  """What a JPEG's frame header says.

  Attributes:
    height: pixels.
    width: pixels.
    row: pixels in height of the smallest piece that is coded as one.
    offset: of the two bytes of the height.
  """

  height: int
  width: int
  row: int
  offset: int


def header(encoded: bytes) -> Header | None:
  """Reads the frame header.

  Args:
    encoded: the bytes of a file.

  Returns:
    None where this module can't decode it: no JPEG, one of four channels or
    of 12 bits, an arithmetic code, or a damaged header.
  """
  if encoded[:2] != b"\xff\xd8":
    return None
  place, end = 2, len(encoded) - 10
  while place < end and encoded[place] == 0xFF:
    marker = encoded[place + 1]
    if marker == 0xFF:  # Fill bytes may stand before a marker.
      place += 1
      continue
    if marker in _REFUSED:
      return None
    if marker in _FRAMES:
      return _frame(encoded, place)
    place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
  return None


def _frame(encoded: bytes, place: int) -> Header | None:
  precision, height, width, channels = struct.unpack_from(
    ">BHHB", encoded, place + 4
  )
  factors = encoded[place + 11 : place + 10 + 3 * channels : 3]
  if (
    precision != 8
    or channels not in (1, 3)
    or len(factors) != channels
    or not height * width  # A height of 0 is told only after the pixels.
  ):
    return None
  row = 8 * max(1, *(f & 15 for f in factors)) if channels == 3 else 8
  return Header(height, width, row, place + 5)


def decode(
  encoded: bytes,
  head: Header,
  bottom: int | None = None,
  reduction: int = 1,
) -> np.ndarray:
  """Decodes the upper rows of an image to RGB.

  Args:
    encoded: the bytes of a file.
    head: what `header` said of them.
    bottom: rows needed, of the whole image; None for all.
    reduction: 1, 2, 4 or 8: so many pixels become one, by a shorter transform
      of each block, which is a mean of them but for rounding.

  Returns:
    uint8 [height, width, 3] of at least the rows needed, divided by the
    reduction and rounded up. It lies in a buffer that the next call from the
    same thread overwrites.

  Raises:
    ValueError: libjpeg-turbo can't; the message is its own.
  """
  height = head.height
  if bottom is not None:
    # One row of blocks more: colours are interpolated across their edges.
    height = min(height, (-(-bottom // head.row) + 1) * head.row)
  if height < head.height:
    encoded = b"".join(
      (
        encoded[: head.offset],
        height.to_bytes(2, "big"),
        encoded[head.offset + 2 :],
      )
    )
  shape = (-(-height // reduction), -(-head.width // reduction), 3)
  pixels = _buffer(shape[0] * shape[1] * 3)
  try:
    image = simplejpeg.decode_jpeg(
      encoded,
      min_height=shape[0] if reduction > 1 else 0,
      min_width=shape[1] if reduction > 1 else 0,
      min_factor=reduction,
      buffer=pixels,
    )
  except ValueError as error:
    # The buffer is full all the same.
    if not str(error).startswith(_HARMLESS):
      raise
    return pixels.reshape(shape)
  if image.shape != shape:
    raise ValueError(f"decoded to {image.shape} in place of {shape}")
  return image


def _buffer(size: int) -> np.ndarray:
  """Fresh memory would cost a page fault every 4 KB."""
  kept = getattr(_kept, "buffer", None)
  if kept is None or len(kept) < size:
    kept = np.empty(size, np.uint8)
    if size <= _KEPT_BYTES:
      _kept.buffer = kept
  return kept[:size]
