"""Draws one character of one font, varied like handwriting, on 32 x 32 pixels.

`render` is a pure function of (font file, character, generator). Every
character is fitted to the frame, as the handwritten digits are, so that shape
alone tells the classes apart: neither size nor height above the baseline does.
"""

import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

SIZE = 32
# Ink is drawn and warped on a canvas twice as large, then averaged down: that
# is the antialiasing, and it leaves the warp's own resampling invisible.
_CANVAS = 2 * SIZE
# Pixels an em: capitals come out about as tall as the canvas, so the warp
# neither magnifies much (blurred edges) nor shrinks much (aliasing).
_EM = 80
_MAX_STROKE = 4
_MAX_BLUR = 1.6  # Pixels of the result; the digits' own is about 2.
_BEND = 0.03  # Standard deviation of the grid's points, of the frame's side.
_MARGIN = 2
# Of the bounding box, as much as fattening may ink: beyond, eyes and gaps of
# bold letters close. (Sticks have more to begin with, and nothing to close.)
_MAX_COVER = 0.7


@functools.lru_cache(maxsize=64)
def _font(path: str) -> ImageFont.FreeTypeFont:
  # Basic layout: Raqm, where Pillow has it, may substitute glyphs.
  return ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=4096)
def ink(path: str, char: str, stroke: int = 0) -> Image.Image:
  """Returns the character's ink, cropped to its bounding box.

  Args:
    path: a TrueType file.
    char: the character; the caller vouches that the font has it.
    stroke: pixels, of an em of 80, by which the outline is fattened.

  Returns:
    A gray image, ink 255; 0 x 0 pixels where the glyph is blank.
  """
  image = Image.new("L", (3 * _EM, 3 * _EM))
  ImageDraw.Draw(image).text(
    (_EM, _EM), char, fill=255, font=_font(path), stroke_width=stroke
  )
  return image.crop(image.getbbox() or (0, 0, 0, 0))


def _fattened(path: str, char: str, stroke: int) -> Image.Image:
  """Returns the ink fattened by `stroke`, or by less, to stay legible."""
  if _cover(ink(path, char)) > _MAX_COVER:
    return ink(path, char, stroke)
  while stroke and _cover(ink(path, char, stroke)) > _MAX_COVER:
    stroke -= 1
  return ink(path, char, stroke)


def _cover(glyph: Image.Image) -> float:
  return float(np.asarray(glyph).mean()) / 255


def render(path: str, char: str, rng: np.random.Generator) -> Image.Image:
  """Draws a varied glyph: light ink on black.

  Rotation, shear, aspect, size, position, a smooth bend, stroke width, blur
  and contrast all come from `rng`, and from nothing else.

  Args:
    path: a TrueType file.
    char: the character to draw.
    rng: consumed; give each image its own.

  Returns:
    A gray image of 32 x 32 pixels.
  """
  # Thin is commoner than fat: at 16 pixels fat letters run together.
  stroke = round(_MAX_STROKE * rng.uniform() ** 1.5)
  glyph = _fattened(path, char, stroke)
  # The warp reads nothing beyond the border: let ink fade out before it.
  glyph = ImageOps.expand(glyph, _MARGIN)
  grid = _source_grid(glyph.size, rng)
  half = _CANVAS // 2
  mesh = [
    (
      (half * x, half * y, half * (x + 1), half * (y + 1)),
      # Pillow wants top left, bottom left, bottom right, top right.
      (*grid[y, x], *grid[y + 1, x], *grid[y + 1, x + 1], *grid[y, x + 1]),
    )
    for y in (0, 1)
    for x in (0, 1)
  ]
  canvas = glyph.transform(
    (_CANVAS, _CANVAS), Image.Transform.MESH, mesh, Image.Resampling.BILINEAR
  )
  image = canvas.reduce(_CANVAS // SIZE)
  image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, _MAX_BLUR)))
  # Blur dims thin strokes: bring the brightest pixel to the ink's level.
  gain = rng.uniform(150.0, 255.0) / max(int(np.asarray(image).max()), 1)
  table = np.minimum(np.rint(gain * np.arange(256)), 255)
  return image.point(table.astype(int).tolist())


def _source_grid(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
  """Maps a 3 x 3 grid on the canvas to positions in the glyph.

  Args:
    size: the glyph's (width, height), margins included.
    rng: consumed.

  Returns:
    [3, 3, 2] array, rows, columns, (x, y) in glyph pixels.
  """
  angle = np.deg2rad(rng.uniform(-14.0, 14.0))
  shear = rng.uniform(-0.25, 0.25)
  aspect = np.exp(rng.uniform(-0.2, 0.2))
  cos, sin = np.cos(angle), np.sin(angle)
  forward = (
    np.array([[cos, -sin], [sin, cos]])
    @ np.array([[1.0, shear], [0.0, 1.0]])
    @ np.diag([aspect, 1 / aspect])
  )
  # The tilted bounding box, not the upright one, has to fit the frame.
  extent = np.abs(forward) @ np.array(size, float)
  forward *= rng.uniform(0.75, 1.0) * _CANVAS / extent.max()
  slack = (_CANVAS - np.abs(forward) @ np.array(size, float)) / 2
  shift = rng.uniform(-1.0, 1.0, 2) * np.minimum(slack, 0.12 * _CANVAS)

  ticks = np.linspace(-_CANVAS / 2, _CANVAS / 2, 3)
  grid = np.stack(np.meshgrid(ticks, ticks), -1) - shift
  grid += rng.normal(0.0, _BEND * _CANVAS, grid.shape)
  return grid @ np.linalg.inv(forward).T + np.array(size) / 2
