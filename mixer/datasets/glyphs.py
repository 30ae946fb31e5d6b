"""The TFDS data set `glyphs`: characters from the fonts matplotlib ships.

It plays ImageNet-21k's part where nothing can be downloaded: some 40,000
images in about a hundred classes, drawn in seconds, to pre-train a small model
on before it is fine-tuned on `digits`. Its `test` images come from font files
that no `train` image has seen.

Image k of a class depends on (seed, class, font, k) and on nothing else; its
bytes may differ between versions of Pillow and FreeType.
"""

import io
import os
import string
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mixer import errors, progress
from mixer.datasets import glyph_render, tfds_info

SEED = 0
TRAIN_PER_CLASS = 360
TEST_PER_CLASS = 40

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


def font_directory() -> str:
  """Returns the folder of matplotlib's TrueType files.

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
  missing = [
    font
    for font in FONTS
    if not os.path.isfile(os.path.join(folder, f"{font}.ttf"))
  ]
  if missing:
    raise errors.UserError(
      f"The data set `glyphs` needs the fonts {', '.join(missing)}, which "
      f"matplotlib {matplotlib.__version__} does not have in {folder}. Some "
      "system packages strip them; `pip install --force-reinstall matplotlib` "
      "brings them back."
    )
  return folder


def fonts_of(name: str, split: str) -> list[str]:
  """Returns the split's fonts that draw the class, in the table's order."""
  return [
    font
    for font, trusted in FONTS.items()
    if (font in TEST_FONTS) == (split == "test")
    and not trusted.isdisjoint(CLASSES[name])
  ]


def source(name: str, split: str, k: int) -> tuple[str, str]:
  """Returns the (font, character) from which a class's image `k` is drawn.

  Fonts take turns, and so do each font's characters of the class: every font
  has the same share of a class, to within one image.
  """
  fonts = fonts_of(name, split)
  turn, which = divmod(k, len(fonts))
  font = fonts[which]
  chars = [char for char in CLASSES[name] if char in FONTS[font]]
  return font, chars[turn % len(chars)]


def draw(folder: str, name: str, split: str, k: int, seed: int = SEED) -> bytes:
  """Draws image `k` of a class.

  Args:
    folder: where the TrueType files lie.
    name: a key of `CLASSES`.
    split: "train" or "test".
    k: number of the image within its class and split.
    seed: another seed draws another set.

  Returns:
    A gray PNG of 32 x 32 pixels, light ink on black.
  """
  font, char = source(name, split, k)
  # Positions in the tables, which the data set's version thus covers.
  rng = np.random.default_rng(
    [seed, list(CLASSES).index(name), list(FONTS).index(font), k]
  )
  image = glyph_render.render(os.path.join(folder, f"{font}.ttf"), char, rng)
  encoded = io.BytesIO()
  image.save(encoded, "PNG")
  return encoded.getvalue()


class Glyphs(tfds.core.GeneratorBasedBuilder):
  """TFDS builder of `glyphs`; prepares as ArrayRecord without TensorFlow."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds_info.LocalInfo(
      builder=self,
      description=(
        "Digits, letters (Latin, Greek, Cyrillic) and punctuation, drawn in "
        "light ink on black from the DejaVu, STIX and Computer Modern fonts "
        "that matplotlib ships, with random rotation, shear, scale, position, "
        "bend, stroke width, blur and contrast. Look-alikes share a class. "
        "The test images come from held-out font files."
      ),
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(glyph_render.SIZE, glyph_render.SIZE, 1),
            encoding_format="png",
          ),
          "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
      ),
      supervised_keys=("image", "label"),
      homepage="https://matplotlib.org/stable/users/explain/text/fonts.html",
      citation=_CITATION,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    del dl_manager  # Nothing is downloaded.
    folder = font_directory()
    return {
      "train": self._generate_examples(folder, "train", TRAIN_PER_CLASS),
      "test": self._generate_examples(folder, "test", TEST_PER_CLASS),
    }

  def _generate_examples(
    self, folder: str, split: str, per_class: int
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    # An open file, not an array: TFDS stores its bytes as they are, and needs
    # no TensorFlow to encode them.
    for label, name in enumerate(progress.track(CLASSES, f"glyphs, {split}")):
      for k in range(per_class):
        encoded = draw(folder, name, split, k)
        yield (
          label * per_class + k,
          {"image": io.BytesIO(encoded), "label": label},
        )


_CITATION = """@article{hunter2007matplotlib,
  title = {Matplotlib: A 2D Graphics Environment},
  author = {Hunter, John D.},
  journal = {Computing in Science \\& Engineering},
  volume = {9},
  number = {3},
  pages = {90--95},
  year = {2007},
}"""
