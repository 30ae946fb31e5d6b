"""What results show in notebooks: HTML tables with small pictures."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mixer import errors

ROWS = 100  # That a table shows.
# Images of at most _EXACT pixels a side become PNGs, others JPEGs.
_EXACT, _LARGEST, _QUALITY = 64, 192, 85


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = ()) -> str:
  """A table; pixels become pictures, and all else escaped text."""
  lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
  names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
  return f"<table>{f'<tr>{names}</tr>' * bool(head)}{lines}</table>"


def _cell(value: Any) -> str:
  if isinstance(value, np.ndarray):
    text = f'<img src="{thumbnail(value)}" style="min-width: 48px">'
  else:
    lines = map(errors.printable, str(value).split("\n"))
    text = "<br>".join(map(html.escape, lines))
  return f'<td style="text-align: left">{text}</td>'


def thumbnail(image: np.ndarray) -> str:
  """A data URI of an image, uint8 `[H, W, 3]`, at most 192 px a side."""
  pil = Image.fromarray(image)
  if max(pil.size) <= _EXACT:
    return uri(pil, "png", optimize=True)
  pil.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
  return uri(pil, "jpeg", quality=_QUALITY)


def uri(image: Image.Image, kind: str, **options: Any) -> str:
  """A data URI of a whole image."""
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
  return f"data:image/{kind};base64,{encoded}"
