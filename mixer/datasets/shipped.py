"""The data sets that ship, `digits` and `glyphs`: prepared on first use.

They are made of what installed packages contain, so nothing is downloaded.
`digits` are scikit-learn's 1,797 handwritten digits, 8 x 8 pixels: the small
real task on which the demonstration and the tests fine-tune and evaluate.

`glyphs` are characters from the fonts that matplotlib ships. They play
ImageNet-21k's part: some 40,000 images in about a hundred classes, to pre-train
a small model on. Image k of a class depends on (class, font, k) and on nothing
else; its bytes may differ between versions of Pillow and FreeType. Every
character is fitted to the frame, as the handwritten digits are, so that shape
alone tells the classes apart: neither size nor height above the baseline does.
"""

import functools
import hashlib
import io
import pathlib
import platform
import shutil
import string
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from mixer import progress
from mixer.datasets import stored
from mixer.errors import UserError, first_line

_VERSION = "1.0.0"
_TRAIN_DIGITS = 1400
SIZE = 32  # Of glyphs.
PER_CLASS = {"train": 360, "test": 40}
_Examples = Iterable[tuple[bytes, int]]


def _named(names: str, *codes: int) -> dict[str, str]:
  return dict(zip(names.split(), map(chr, codes), strict=True))


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
  **_named("Gamma Delta Theta Lambda", 0x393, 0x394, 0x398, 0x39B),
  **_named("Xi Pi Sigma", 0x39E, 0x3A0, 0x3A3),
  "Phi": "\u03a6\u0424",  # and Ef
  "Psi": "\u03a8\u03c8",
  **_named("Omega beta epsilon zeta", 0x3A9, 0x3B2, 0x3B5, 0x3B6),
  **_named("eta lambda mu xi sigma", 0x3B7, 0x3BB, 0x3BC, 0x3BE, 0x3C3),
  **_named("Be De Zhe", 0x411, 0x414, 0x416),
  "Cyrillic I": "\u0418",
  "Short I": "\u0419",
  **_named("El Tse Che Sha Shcha", 0x41B, 0x426, 0x427, 0x428, 0x429),
  "Hard Sign": "\u042a",
  "Yeru": "\u042b",
  "Cyrillic E": "\u042d",
  **_named("Yu Ya", 0x42E, 0x42F),
  **{mark: mark for mark in "#$%&()*+:<=>?@[]{}~"},
}

_ALL = frozenset("".join(CLASSES.values()))
_ALPHANUMERIC = frozenset(string.ascii_letters + string.digits)
# Computer Modern keeps TeX's encodings: below are the ASCII characters that
# stand at their own codes. (Elsewhere `<` draws an inverted exclamation mark,
# `{` a dash, the dollar of cmti10 is a pound, and so on; nothing is blank.)
_TEXT = _ALPHANUMERIC | frozenset("#$%&()*+:=?@[]")
_SANS = ("", "-Bold", "-BoldOblique", "-Oblique")
_SERIF = ("", "-Bold", "-BoldItalic", "-Italic")
# Each font file with the characters it can be trusted to draw. Not here:
# LastResort (a box for everything), the display, size and non-Unicode cuts
# (few characters), cmex10 and cmsy10 (symbols at the codes of letters).
FONTS: dict[str, frozenset[str]] = {
  **{f"DejaVuSans{cut}": _ALL for cut in _SANS},
  # The zero has a stroke inside, which no handwritten zero here has.
  **{f"DejaVuSansMono{cut}": _ALL - {"0"} for cut in _SANS},
  **{f"DejaVuSerif{cut}": _ALL for cut in _SERIF},
  **{f"STIXGeneral{cut}": _ALL for cut in ("", "Bol", "BolIta", "Italic")},
  "cmb10": _TEXT,
  "cmmi10": _ALPHANUMERIC - {"1"},  # Old-style: a small capital I.
  "cmr10": _TEXT,
  "cmss10": _TEXT,
  "cmti10": _TEXT - {"$"},
  "cmtt10": _TEXT | frozenset("<>{}|~"),
}
# One of each design, so that `test` asks for what the cuts have in common.
_TEST_FONTS = (
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
# Of the bounding box, as much as fattening may ink: beyond, eyes and gaps of
# bold letters close. (Sticks have more to begin with, and nothing to close.)
_MAX_COVER = 0.7


def folder(name: str, root: pathlib.Path) -> pathlib.Path:
  """The folder of a shipped data set, prepared if it wasn't."""
  final = root / name / _VERSION
  if not (final / stored.INFO).exists():
    # One process of this machine prepares, others wait.
    with stored.lock(name, root, wait=True):
      if not (final / stored.INFO).exists():
        _prepare(name, final)
  return final


def _prepare(name: str, final: pathlib.Path) -> None:
  print(f"preparing data set {name} in {final.parents[1]} (once)", flush=True)
  # The lock keeps others of this host out, and other hosts have other names.
  work = final.with_name(f"{stored.UNFINISHED}{platform.node()}_{_VERSION}")
  shutil.rmtree(work, ignore_errors=True)
  try:
    work.mkdir(parents=True)
    if name == "digits":
      # In the order of scikit-learn, where each writer's digits are together:
      # most of `test` is by writers that `train` lacks.
      images, labels = load_digits()
      found = [(_png(i), int(k)) for i, k in zip(images, labels, strict=True)]
      parts = ("train", found[:_TRAIN_DIGITS]), ("test", found[_TRAIN_DIGITS:])
      write(work, name, "0123456789", 8, parts)
    else:
      write(work, name, [*CLASSES], SIZE, ((s, _glyphs(s)) for s in PER_CLASS))
    work.rename(final)
  except (OSError, RuntimeError) as e:  # The latter from ArrayRecord.
    # Another host that shares the folder may have been faster.
    if not (final / stored.INFO).exists():
      raise UserError(
        f"data set {name} can't be prepared in {final.parents[1]}: "
        f"{first_line(e)}. Remove {final} if that is there, make room, or name "
        "another place by --config.data.data_dir=DIR."
      ) from e
  finally:
    shutil.rmtree(work, ignore_errors=True)


def write(
  work: pathlib.Path,
  name: str,
  class_names: Sequence[str],
  side: int,
  examples: Iterable[tuple[str, _Examples]],
) -> None:
  """Writes a data set of gray images: split -> (encoded image, label)."""
  splits = {}
  for split, found in examples:
    path = work / f"{name}-{split}.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    sizes = []
    for image, label in found:
      record = stored.encode({"image": image, "label": [label]})
      writer.write(record)
      sizes.append(len(record))
    writer.close()
    splits[split] = [len(sizes)], sum(sizes)
  kind = "tensorflow_datasets.core.features"
  shape = {"dimensions": [str(side), str(side), "1"]}
  features = {
    "image": {
      "pythonClassName": f"{kind}.image_feature.Image",
      "image": {"dtype": "uint8", "encodingFormat": "png", "shape": shape},
    },
    "label": {
      "pythonClassName": f"{kind}.class_label_feature.ClassLabel",
      "classLabel": {"numClasses": str(len(class_names))},
    },
  }
  info = {"name": name, "version": _VERSION, "disableShuffling": True}
  stored.write(work, info, features, {"label": class_names}, splits)
  stored.seal(work)


def load_digits() -> tuple[np.ndarray, np.ndarray]:
  """The images and labels of `digits` in the order of scikit-learn.

  Returns:
    [1797, 8, 8] uint8 images, white ink on black, 0..16 scaled to 0..255;
    [1797] int64 labels.
  """
  try:
    from sklearn import datasets
  except ImportError as e:
    raise UserError(
      "The data set `digits` comes from scikit-learn, which is not installed. "
      "Run `pip install scikit-learn`."
    ) from e
  pixels, labels = datasets.load_digits(return_X_y=True)
  images = np.round(pixels * (255 / 16)).astype(np.uint8)
  return images.reshape(-1, 8, 8), labels


def _png(pixels: np.ndarray) -> bytes:
  Image.fromarray(pixels).save(encoded := io.BytesIO(), "PNG")
  return encoded.getvalue()


def _glyphs(split: str) -> _Examples:
  """Encoded image and label of all of a split."""
  classes = progress.track(CLASSES, f"glyphs, {split}")
  found = [
    (image, label)
    for label, name in enumerate(classes)
    for image in glyphs(split, name)
  ]
  # The order that TFDS gives to its sets, of which this was one.
  keys = [
    hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest()
    for i in range(len(found))
  ]
  return [found[i] for i in np.argsort(keys)]


def font_directory() -> pathlib.Path:
  """The folder of matplotlib's TrueType files; UserError without those."""
  missing = [*FONTS]
  try:
    import matplotlib

    found = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    missing = [font for font in FONTS if not (found / f"{font}.ttf").exists()]
    if not missing:
      return found
  except ImportError:
    pass
  raise UserError(
    "The data set `glyphs` is drawn from the fonts that matplotlib ships, and "
    f"there is no matplotlib with {', '.join(missing[:3])}. Run `pip install "
    "--force-reinstall matplotlib`; some system packages strip its fonts."
  )


def glyphs(split: str, name: str) -> Iterator[bytes]:
  """The images of a class: gray PNGs of 32 x 32 pixels, light ink on black.

  Fonts take turns, and so do each font's characters of the class: every font
  has the same share of a class, to within one image.
  """
  where = font_directory()
  fonts = [
    font
    for font, trusted in FONTS.items()
    if (font in _TEST_FONTS) == (split == "test")
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
    yield _png(
      render(str(where / f"{font}.ttf"), chars[turn % len(chars)], rng)
    )


@functools.lru_cache(maxsize=64)
def _font(path: str) -> ImageFont.FreeTypeFont:
  # Basic layout: Raqm, where Pillow has it, may substitute glyphs.
  return ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=4096)
def ink(path: str, char: str, stroke: int = 0) -> tuple[Image.Image, float]:
  """A character's ink (255), cropped, and its share; fattened by `stroke`."""
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
  return ImageOps.expand(ink(path, char, stroke)[0], 2)


def render(path: str, char: str, rng: np.random.Generator) -> np.ndarray:
  """Draws a varied glyph: light ink on black, uint8 [32, 32].

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
  return table[pixels]


def _source_grid(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
  """[3, 3, (x, y)]: where a 3 x 3 grid on the canvas is in the glyph."""
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
