"""The data sets that ship, `digits` and `glyphs`: prepared on first use.

`digits` are scikit-learn's 1,797 handwritten digits, 8 x 8 pixels. `glyphs` are
characters from matplotlib's fonts: 40,800 images of 102 classes, to pre-train a
small model on. Image k of a class depends on (class, font, k) and on nothing
else; its bytes may differ between versions of Pillow and FreeType.
"""

import functools
import hashlib
import io
import pathlib
import platform
import shutil
import string
from collections.abc import Iterator, Mapping, Sequence

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
_Examples = list[tuple[bytes, int]]


# Every class, with the characters it is drawn from if these are others than its
# name. Each character is fitted to the frame, so those that differ in size or
# height alone are one class (0 o O, P p). Of letters that share an outline
# across scripts (Latin A, Greek Alpha, Cyrillic A) only the Latin is drawn; a
# letter of another script that merely looks like one joins its class. Left out
# are characters that one font draws like some class and another font does not
# (gamma, delta, theta, small phi and pi, the small Cyrillic letters, whose
# italics are other letters) and marks that, fitted, are sticks and blobs.
_WORDS = (
  "0/0oO 1 2 3/3\u0417 4 5 6 7 8 9 a/a\u03b1 C/Cc I/Il| K/Kk\u03ba P/Pp\u03c1 "
  "S/Ss U/Uu V/Vv\u03bd W/Ww X/Xx\u03c7 y/y\u0423 Z/Zz A B D E F G H J L M N "
  "Q R T Y b d e f g h i j m n q r t Gamma/\u0393 Delta/\u0394 Theta/\u0398 "
  "Lambda/\u039b Xi/\u039e Pi/\u03a0 Sigma/\u03a3 Phi/\u03a6\u0424 "
  "Psi/\u03a8\u03c8 Omega/\u03a9 beta/\u03b2 epsilon/\u03b5 zeta/\u03b6 "
  "eta/\u03b7 lambda/\u03bb mu/\u03bc xi/\u03be sigma/\u03c3 Be/\u0411 "
  "De/\u0414 Zhe/\u0416 Cyrillic_I/\u0418 Short_I/\u0419 El/\u041b Tse/\u0426 "
  "Che/\u0427 Sha/\u0428 Shcha/\u0429 Hard_Sign/\u042a Yeru/\u042b "
  "Cyrillic_E/\u042d Yu/\u042e Ya/\u042f # $ % & ( ) * + : < = > ? @ [ ] { } "
  "~"
)
CLASSES = {
  name.replace("_", " "): chars or name
  for name, _, chars in (word.partition("/") for word in _WORDS.split())
}

_ALL = frozenset("".join(CLASSES.values()))
_ALPHANUMERIC = frozenset(string.ascii_letters + string.digits)
# Computer Modern keeps TeX's encodings: these are the ASCII characters that
# have their own codes there. (Elsewhere `<` draws an inverted exclamation mark,
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
  *("DejaVuSansMono-Oblique", "DejaVuSerif-BoldItalic", "STIXGeneralBol"),
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
  root = final.parents[1]
  print(f"preparing data set {name} in {root} (once)", flush=True)
  # The lock keeps others of this host out, and other hosts have other names.
  work = final.with_name(f"{stored.UNFINISHED}{platform.node()}_{_VERSION}")
  shutil.rmtree(work, ignore_errors=True)
  try:
    work.mkdir(parents=True)
    if name == "digits":
      # In the order of scikit-learn, where each writer's digits are together:
      # most of `test` is by writers that `train` lacks.
      found = [(_png(i), int(k)) for i, k in zip(*load_digits(), strict=True)]
      parts = {"train": found[:_TRAIN_DIGITS], "test": found[_TRAIN_DIGITS:]}
      write(work, name, "0123456789", 8, parts)
    else:
      write(work, name, [*CLASSES], SIZE, {s: _glyphs(s) for s in PER_CLASS})
    work.rename(final)
  except (OSError, RuntimeError) as e:  # The latter from ArrayRecord.
    # Another host that shares the folder may have been faster.
    if not (final / stored.INFO).exists():
      raise UserError(
        f"data set {name} can't be prepared in {root}: {first_line(e)}. Make "
        "room, or name another place by --config.data.data_dir=DIR."
      ) from e
  finally:
    shutil.rmtree(work, ignore_errors=True)


def write(
  work: pathlib.Path,
  name: str,
  class_names: Sequence[str],
  side: int,
  examples: Mapping[str, _Examples],
) -> None:
  """Writes a data set of gray images: split -> encoded images and labels."""
  splits = {}
  for split, found in examples.items():
    records = [stored.encode({"image": i, "label": [k]}) for i, k in found]
    path = work / f"{name}-{split}.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
      writer.write(record)
    writer.close()
    splits[split] = [len(records)], sum(map(len, records))
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
  """uint8 [1797, 8, 8] images of 0..255, white ink on black; int64 labels."""
  from sklearn import datasets

  pixels, labels = datasets.load_digits(return_X_y=True)
  images = np.round(pixels * (255 / 16)).astype(np.uint8)
  return images.reshape(-1, 8, 8), labels


def _png(pixels: np.ndarray) -> bytes:
  Image.fromarray(pixels).save(encoded := io.BytesIO(), "PNG")
  return encoded.getvalue()


def _glyphs(split: str) -> _Examples:
  """Encoded image and label of all of a split."""
  classes = enumerate(progress.track(CLASSES, f"glyphs, {split}"))
  found = [(image, k) for k, name in classes for image in glyphs(split, name)]
  # The order that TFDS gives to its sets, of which this was one.
  names = (f"{split}{i}".encode() for i in range(len(found)))
  keys = [hashlib.md5(n, usedforsecurity=False).digest() for n in names]
  return [found[i] for i in np.argsort(keys)]


def glyphs(split: str, name: str) -> Iterator[bytes]:
  """The images of a class: gray PNGs of 32 x 32 pixels, light ink on black.

  Fonts take turns, and so do each font's characters of the class: every font
  has the same share of a class, to within one image.
  """
  test = split == "test"
  fonts = [font for font in FONTS if (font in _TEST_FONTS) == test]
  fonts = [f for f in fonts if not FONTS[f].isdisjoint(CLASSES[name])]
  for k in range(PER_CLASS[split]):
    turn, which = divmod(k, len(fonts))
    font = fonts[which]
    chars = [char for char in CLASSES[name] if char in FONTS[font]]
    # Positions in the tables, which the data set's version thus covers.
    places = list(CLASSES).index(name), list(FONTS).index(font)
    rng = np.random.default_rng([0, *places, k])
    yield _png(render(font, chars[turn % len(chars)], rng))


@functools.cache
def _font(name: str) -> ImageFont.FreeTypeFont:
  import matplotlib

  path = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf", f"{name}.ttf")
  # Basic layout: Raqm, where Pillow has it, may substitute glyphs.
  return ImageFont.truetype(path, _EM, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=4096)
def ink(font: str, char: str, stroke: int = 0) -> tuple[Image.Image, float]:
  """A character's ink (255), cropped, and its share; fattened by `stroke`."""
  image = Image.new("L", (3 * _EM, 3 * _EM))
  ImageDraw.Draw(image).text(
    (_EM, _EM), char, fill=255, font=_font(font), stroke_width=stroke
  )
  image = image.crop(image.getbbox())
  return image, float(np.asarray(image).mean()) / 255


def render(font: str, char: str, rng: np.random.Generator) -> np.ndarray:
  """Draws a varied glyph: light ink on black, uint8 [32, 32].

  Rotation, shear, aspect, size, position, a smooth bend, stroke width, blur
  and contrast all come from `rng`, and from nothing else.
  """
  # Thin is commoner than fat: at 16 pixels fat letters run together.
  stroke = round(_MAX_STROKE * rng.uniform() ** 1.5)
  while (
    stroke and ink(font, char)[1] <= _MAX_COVER < ink(font, char, stroke)[1]
  ):
    stroke -= 1
  # The warp reads nothing beyond the border: let ink fade out before it.
  glyph = ImageOps.expand(ink(font, char, stroke)[0], 2)
  grid, half = _source_grid(np.array(glyph.size, float), rng), _CANVAS // 2
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
  pixels = np.asarray(image)
  gain = rng.uniform(150.0, 255.0) / max(int(pixels.max()), 1)
  table = np.minimum(np.rint(gain * np.arange(256)), 255).astype(np.uint8)
  return table[pixels]


def _source_grid(size: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """[3, 3, (x, y)]: where a 3 x 3 grid on the canvas is in the glyph."""
  angle = np.deg2rad(rng.uniform(-14.0, 14.0))
  shear = rng.uniform(-0.25, 0.25)
  aspect = np.exp(rng.uniform(-0.2, 0.2))
  cos, sin = np.cos(angle), np.sin(angle)
  rotation = np.array([[cos, -sin], [sin, cos]])
  sheared = rotation @ np.array([[1.0, shear], [0.0, 1.0]])
  forward = sheared @ np.diag([aspect, 1 / aspect])
  # The tilted bounding box, not the upright one, has to fit the frame.
  forward *= rng.uniform(0.75, 1.0) * _CANVAS / (np.abs(forward) @ size).max()
  slack = (_CANVAS - np.abs(forward) @ size) / 2
  shift = rng.uniform(-1.0, 1.0, 2) * np.minimum(slack, 0.12 * _CANVAS)
  ticks = np.linspace(-_CANVAS / 2, _CANVAS / 2, 3)
  grid = np.stack(np.meshgrid(ticks, ticks), -1) - shift
  grid += rng.normal(0.0, _BEND * _CANVAS, grid.shape)
  return grid @ np.linalg.inv(forward).T + size / 2
