"""The data set `glyphs`: characters from the fonts that matplotlib ships.

It plays ImageNet-21k's part where nothing can be downloaded: some 40,000
images in about a hundred classes, drawn in seconds, to pre-train a small model
on before it is fine-tuned on `digits`. Its `test` images come from font files
that no `train` image has seen.

Image k of a class depends on (class, font, k) and on nothing else; its bytes
may differ between versions of Pillow and FreeType. Every character is fitted to
the frame, as the handwritten digits are, so that shape alone tells the classes
apart: neither size nor height above the baseline does.
"""

import functools
import io
import os
import string
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from mixer import errors

SIZE = 32
PER_CLASS = {"train": 360, "test": 40}

# Every class, with the characters it is drawn from. Each character is fitted
# to the frame, so those that differ in size or height alone are one class
# (0 o O, P p). Of letters that share an outline across scripts (Latin A, Greek
# Alpha, Cyrillic A) only the Latin is drawn; a letter of another script that
# merely looks like one joins its class, escaped lest it be misread here. Left
# out are characters that one font draws like some class and another font does
# not (gamma, delta, theta, small phi and pi, the small Cyrillic letters, whose
# italics are other letters) and marks that, fitted, are sticks and blobs.
CLASSES: dict[str, str] = {
  "0": "0oO",
  "1": "1",
  "2": "2",
  "3": "3\u0417",  # Ze
  **{digit: digit for digit in "456789"},
  "a": "a\u03b1",  # alpha, which is an italic a
  "C": "Cc",
  "I": "Il|",
  "K": "Kk\u03ba",  # kappa
  "P": "Pp\u03c1",  # rho
  "S": "Ss",
  "U": "Uu",
  "V": "Vv\u03bd",  # nu
  "W": "Ww",
  "X": "Xx\u03c7",  # chi
  "y": "y\u0423",  # Cyrillic U
  "Z": "Zz",
  **{letter: letter for letter in "ABDEFGHJLMNQRTYbdefghijmnqrt"},
  "Gamma": "\u0393",
  "Delta": "\u0394",
  "Theta": "\u0398",
  "Lambda": "\u039b",
  "Xi": "\u039e",
  "Pi": "\u03a0",
  "Sigma": "\u03a3",
  "Phi": "\u03a6\u0424",  # and Ef
  "Psi": "\u03a8\u03c8",
  "Omega": "\u03a9",
  "beta": "\u03b2",
  "epsilon": "\u03b5",
  "zeta": "\u03b6",
  "eta": "\u03b7",
  "lambda": "\u03bb",
  "mu": "\u03bc",
  "xi": "\u03be",
  "sigma": "\u03c3",
  "Be": "\u0411",
  "De": "\u0414",
  "Zhe": "\u0416",
  "Cyrillic I": "\u0418",
  "Short I": "\u0419",
  "El": "\u041b",
  "Tse": "\u0426",
  "Che": "\u0427",
  "Sha": "\u0428",
  "Shcha": "\u0429",
  "Hard Sign": "\u042a",
  "Yeru": "\u042b",
  "Cyrillic E": "\u042d",
  "Yu": "\u042e",
  "Ya": "\u042f",
  **{mark: mark for mark in "#$%&()*+:<=>?@[]{}~"},
}

_ALL = frozenset("".join(CLASSES.values()))
_ALPHANUMERIC = frozenset(string.ascii_letters + string.digits)
# Computer Modern keeps TeX's encodings: below are the ASCII characters that
# stand at their own codes. (Elsewhere `<` draws an inverted exclamation mark,
# `{` a dash, the dollar of cmti10 is a pound, and so on; nothing is blank.)
_TEXT = _ALPHANUMERIC | frozenset("#$%&()*+:=?@[]")
_TYPEWRITER = _TEXT | frozenset("<>{}|~")

# Each font file with the characters it can be trusted to draw. Not here:
# LastResort (a box for everything), the display, size and non-Unicode cuts
# (few characters), cmex10 and cmsy10 (symbols at the codes of letters).
FONTS: dict[str, frozenset[str]] = {
  "DejaVuSans": _ALL,
  "DejaVuSans-Bold": _ALL,
  "DejaVuSans-BoldOblique": _ALL,
  "DejaVuSans-Oblique": _ALL,
  # The zero has a stroke inside, which no handwritten zero here has.
  "DejaVuSansMono": _ALL - {"0"},
  "DejaVuSansMono-Bold": _ALL - {"0"},
  "DejaVuSansMono-BoldOblique": _ALL - {"0"},
  "DejaVuSansMono-Oblique": _ALL - {"0"},
  "DejaVuSerif": _ALL,
  "DejaVuSerif-Bold": _ALL,
  "DejaVuSerif-BoldItalic": _ALL,
  "DejaVuSerif-Italic": _ALL,
  "STIXGeneral": _ALL,
  "STIXGeneralBol": _ALL,
  "STIXGeneralBolIta": _ALL,
  "STIXGeneralItalic": _ALL,
  "cmb10": _TEXT,
  # Old-style figures: its one is a small capital I.
  "cmmi10": _ALPHANUMERIC - {"1"},
  "cmr10": _TEXT,
  "cmss10": _TEXT,
  "cmti10": _TEXT - {"$"},
  "cmtt10": _TYPEWRITER,
}
# One of each design, so that `test` asks for what the cuts have in common.
TEST_FONTS = (
  "DejaVuSansMono-Oblique",
  "DejaVuSerif-BoldItalic",
  "STIXGeneralBol",
  "cmss10",
)


# Ink is drawn and warped on a canvas twice as large, then averaged down: that
# is the antialiasing, and it hides the warp's own resampling.
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
_TICKS = np.linspace(-_CANVAS / 2, _CANVAS / 2, 3)


def font_directory() -> str:
  """The folder of matplotlib's TrueType files.

  Raises:
    UserError: matplotlib is absent, or its fonts are not those we know.
  """
  try:
    import matplotlib
  except ImportError as e:
    raise errors.UserError(
      "The data set `glyphs` is drawn from the fonts that matplotlib ships, "
      "and matplotlib is not installed. Run `pip install matplotlib`."
    ) from e
  folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
  files = {*os.listdir(folder)} if os.path.isdir(folder) else set()
  missing = [font for font in FONTS if f"{font}.ttf" not in files]
  if missing:
    raise errors.UserError(
      f"The data set `glyphs` needs the fonts {', '.join(missing)}, which "
      f"matplotlib {matplotlib.__version__} does not have in {folder}. Some "
      "system packages strip them; `pip install --force-reinstall matplotlib` "
      "brings them back."
    )
  return folder


def images(split: str, name: str) -> Iterator[bytes]:
  """The images of a class: gray PNGs of 32 x 32 pixels, light ink on black.

  Fonts take turns, and so do each font's characters of the class: every font
  has the same share of a class, to within one image.
  """
  folder = font_directory()
  fonts = [
    font
    for font, trusted in FONTS.items()
    if (font in TEST_FONTS) == (split == "test")
    and not trusted.isdisjoint(CLASSES[name])
  ]
  for k in range(PER_CLASS[split]):
    turn, which = divmod(k, len(fonts))
    font = fonts[which]
    chars = [char for char in CLASSES[name] if char in FONTS[font]]
    # Positions in the tables, which the data set's version thus covers.
    rng = np.random.default_rng(
      [0, list(CLASSES).index(name), list(FONTS).index(font), k]
    )
    path = os.path.join(folder, f"{font}.ttf")
    encoded = io.BytesIO()
    render(path, chars[turn % len(chars)], rng).save(encoded, "PNG")
    yield encoded.getvalue()


@functools.lru_cache(maxsize=64)
def _font(path: str) -> ImageFont.FreeTypeFont:
  # Basic layout: Raqm, where Pillow has it, may substitute glyphs.
  return ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=4096)
def ink(path: str, char: str, stroke: int = 0) -> tuple[Image.Image, float]:
  """The ink of a character, cropped to it, and the share that it covers.

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
  image = image.crop(image.getbbox() or (0, 0, 0, 0))
  return image, float(np.asarray(image).mean()) / 255 if image.width else 0.0


@functools.lru_cache(maxsize=4096)
def _fattened(path: str, char: str, stroke: int) -> Image.Image:
  """The ink with a margin, fattened by `stroke`, or by less to stay legible."""
  if ink(path, char)[1] <= _MAX_COVER:
    while stroke and ink(path, char, stroke)[1] > _MAX_COVER:
      stroke -= 1
  # The warp reads nothing beyond the border: let ink fade out before it.
  return ImageOps.expand(ink(path, char, stroke)[0], _MARGIN)


def render(path: str, char: str, rng: np.random.Generator) -> Image.Image:
  """Draws a varied glyph: light ink on black, a gray image of 32 x 32 pixels.

  Rotation, shear, aspect, size, position, a smooth bend, stroke width, blur
  and contrast all come from `rng`, and from nothing else.
  """
  # Thin is commoner than fat: at 16 pixels fat letters run together.
  stroke = round(_MAX_STROKE * rng.uniform() ** 1.5)
  glyph = _fattened(path, char, stroke)
  grid = _source_grid(glyph.size, rng).tolist()
  half = _CANVAS // 2
  mesh = [
    (
      (half * x, half * y, half * (x + 1), half * (y + 1)),
      # Pillow wants top left, bottom left, bottom right, top right.
      (
        *(*grid[y][x], *grid[y + 1][x]),
        *(*grid[y + 1][x + 1], *grid[y][x + 1]),
      ),
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
  pixels = np.asarray(image)
  gain = rng.uniform(150.0, 255.0) / max(int(pixels.max()), 1)
  table = np.minimum(np.rint(gain * np.arange(256)), 255).astype(np.uint8)
  return Image.fromarray(table[pixels])


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
  grid = np.stack(np.meshgrid(_TICKS, _TICKS), -1) - shift
  grid += rng.normal(0.0, _BEND * _CANVAS, grid.shape)
  return grid @ np.linalg.inv(forward).T + np.array(size) / 2
