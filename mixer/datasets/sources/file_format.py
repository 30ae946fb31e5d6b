"""The format of an image file: by its content, and by its name."""

import os
import re

# How files begin, and their formats' names.
_BEGIN = (
  (rb"\xff\xd8\xff", "jpeg"),
  (rb"\x89PNG\r\n\x1a\n", "png"),
  (rb"GIF8[79]a", "gif"),
  (rb"RIFF....WEBP", "webp"),
  # With the size of one of its second headers.
  (rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0", "bmp"),
  (rb"II[*+]\0|MM\0[*+]", "tiff"),
  (rb"P[1-6][\s#]", "ppm"),
  # Of a more general kind, and that one after it.
  (rb"....ftyp(avi[fs]|m[is]f1.{4}(....){0,9}avi[fs])", "avif"),
  (rb"....ftyp(hei[cxms]|hev[cx]|mif1|msf1)", "heic"),
  (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "jpeg2000"),
  (rb"\0\0\x01\0", "ico"),
)
_MAGIC = tuple((re.compile(magic, re.DOTALL), name) for magic, name in _BEGIN)
_SUFFIXES = {
  **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg"),
  **dict.fromkeys((".tif", ".tiff"), "tiff"),
  **dict.fromkeys((".bmp", ".dib"), "bmp"),
  **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "ppm"),
  **dict.fromkeys((".heic", ".heif"), "heic"),
  **dict.fromkeys((".jp2", ".j2k"), "jpeg2000"),
  ".png": "png",
  ".gif": "gif",
  ".webp": "webp",
  ".avif": "avif",
  ".ico": "ico",
}


def sniff(data: bytes) -> str:
  """The format that a file's first bytes tell, "" for an unknown one."""
  for magic, name in _MAGIC:
    if magic.match(data):
      return name
  return ""


def named(name: str) -> str:
  """The format that a file's name tells, "" for none."""
  return _SUFFIXES.get(os.path.splitext(name)[1].lower(), "")
