"""RandAugment as the Mixer recipes use it: 16 operations on uint8 images.

`apply` draws `layers` operations uniformly, with replacement, and always
applies them, all at one magnitude. Magnitude 10 is the top of the scale that
AutoAugment was designed for; the recipes go on to 15 and 20 and every formula
below extrapolates:

| operation                         | argument        | 10  | 15   | 20  |
|-----------------------------------|-----------------|-----|------|-----|
| Rotate (degrees, either way)      | m/10 * 30       | 30  | 45   | 60  |
| ShearX, ShearY (either way)       | m/10 * 0.3      | 0.3 | 0.45 | 0.6 |
| TranslateX, TranslateY (pixels)   | m/10 * 100      | 100 | 150  | 200 |
| Color, Contrast, Brightness,      | m/10 * 1.8 + .1 | 1.9 | 2.8  | 3.7 |
|   Sharpness (enhancement factor)  |                 |     |      |     |
| Posterize (bits kept, 1 to 8)     | int(m/10 * 4)   | 4   | 6    | 8   |
| Solarize (threshold, modulo 256)  | int(m/10 * 256) | 0   | 128  | 0   |
| SolarizeAdd (added below 128)     | int(m/10 * 110) | 110 | 165  | 220 |
| Cutout (half the side, pixels)    | int(m/10 * 40)  | 40  | 60   | 80  |

AutoContrast, Equalize and Invert take no argument. What a geometric operation
or Cutout uncovers becomes grey 128; geometric operations sample the nearest
pixel, and shears keep the top left corner in place.

This is the reference as it runs, oddities included (arXiv 1909.13719, by the
`distort_image_with_randaugment` of TensorFlow's TPU models and big_vision's
Mixer recipe): Translate, Cutout and Contrast count pixels of a 224-pixel image
at any size, unless `scaled`; Solarize's threshold overflows its byte
(google-research/big_vision#110); Contrast pivots on pixel count / 256, not on
the mean grey level; Posterize gets weaker with the magnitude. OpenCV rounds
Sharpness's smoothing and grey levels where the reference truncates: at most 1 +
factor in a value.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

_FILL = (128, 128, 128)
_LEVELS = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
_Operation = Callable[
  [np.ndarray, np.random.Generator, float, float], np.ndarray
]


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Replaces each value by that of the table [256], or of its channel's."""
  return cv2.LUT(image, table.astype(np.uint8))


def _by_histogram(
  image: np.ndarray, make: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """Looks up each channel in a table [256] made of its histogram [256]."""
  tables = []
  for channel in range(3):
    counts = cv2.calcHist([image], [channel], None, [256], [0, 256])
    tables.append(make(counts.ravel().astype(np.int64)))
  return _look_up(image, np.stack(tables, axis=-1)[None])


def _stretched(counts: np.ndarray) -> np.ndarray:
  """AutoContrast's table: values span 0 to 255."""
  low, high = counts.nonzero()[0][[0, -1]]
  # Integers: a truncated float product is one below where it is rounded down.
  stretched = (_LEVELS - low) * 255 // max(high - low, 1)
  return stretched.clip(0, 255) if high > low else _LEVELS


def _equalized(counts: np.ndarray) -> np.ndarray:
  """The table of Pillow's `ImageOps.equalize`: a flat histogram."""
  step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
  below = np.cumsum(counts) - counts
  return ((below + step // 2) // step).clip(0, 255) if step else _LEVELS


def _posterized(m: float) -> np.ndarray:
  bits = min(max(int(m / 10 * 4), 1), 8)
  return _LEVELS & 256 - (1 << 8 - bits)


def _solarized(m: float) -> np.ndarray:
  low = int(m / 10 * 256) % 256 > _LEVELS
  return np.where(low, _LEVELS, 255 - _LEVELS)


def _brightened(m: float) -> np.ndarray:
  more = np.minimum(_LEVELS + int(m / 10 * 110), 255)
  return np.where(_LEVELS < 128, more, _LEVELS)


def _factor(m: float) -> float:
  return m / 10 * 1.8 + 0.1


def _away_from(pixels: float, m: float) -> np.ndarray:
  """The table of Contrast and, of no pixels, Brightness."""
  grey = min(int(pixels / 256), 255)
  values = (grey + _factor(m) * (_LEVELS - grey)).clip(0, 255)
  return np.trunc(values + 1e-6)  # A hair more, lest 0.1 * 10 be 0.


def _blend(start: np.ndarray, image: np.ndarray, m: float) -> np.ndarray:
  """Away from `start`, or towards it; truncated: all of it in one rounding."""
  factor = _factor(m)
  return cv2.addWeighted(start, 1 - factor, image, factor, -0.5 + 1e-3)


def _grey(image: np.ndarray) -> np.ndarray:
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def _smoothed(image: np.ndarray) -> np.ndarray:
  """Weighted means over 3 x 3 pixels; the border stays."""
  smooth = image.copy()
  if min(image.shape[:2]) > 2:
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
  return smooth


def _nearest(image: np.ndarray, *matrix: float) -> np.ndarray:
  """Output (x, y) <- input pixel nearest to (a x + b y + c, d x + e y + f)."""
  return cv2.warpAffine(
    image,
    np.array(matrix, np.float64).reshape(2, 3),
    image.shape[1::-1],
    flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP,
    borderMode=cv2.BORDER_CONSTANT,
    borderValue=_FILL,
  )


def _rotate(image: np.ndarray, degrees: float) -> np.ndarray:
  """Rotates about the middle; positive is counterclockwise."""
  height, width = image.shape[:2]
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  x, y = (width - 1) / 2, (height - 1) / 2
  return _nearest(
    image, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y
  )


def _cutout(
  image: np.ndarray, rng: np.random.Generator, pad: int
) -> np.ndarray:
  """Greys the 2 pad x 2 pad square around a random pixel, where inside."""
  x, y = int(rng.integers(image.shape[1])), int(rng.integers(image.shape[0]))
  image = image.copy()
  image[max(0, y - pad) : y + pad, max(0, x - pad) : x + pad] = _FILL
  return image


def _either(rng: np.random.Generator, m: float, at_10: float) -> float:
  value = m / 10 * at_10
  return value if rng.random() < 0.5 else -value


# (image, rng, magnitude, scale of pixels) -> image; drawn by position. Matrices
# as `_nearest` takes them: shears and shifts are left and up, or the other way.
OPERATIONS: dict[str, _Operation] = {
  "AutoContrast": lambda x, rng, m, s: _by_histogram(x, _stretched),
  "Equalize": lambda x, rng, m, s: _by_histogram(x, _equalized),
  "Invert": lambda x, rng, m, s: cv2.bitwise_not(x),
  "Rotate": lambda x, rng, m, s: _rotate(x, _either(rng, m, 30)),
  "Posterize": lambda x, rng, m, s: _look_up(x, _posterized(m)),
  "Solarize": lambda x, rng, m, s: _look_up(x, _solarized(m)),
  "Color": lambda x, rng, m, s: _blend(_grey(x), x, m),
  "Contrast": lambda x, rng, m, s: _look_up(
    x, _away_from(x[..., 0].size / s**2, m)
  ),
  "Brightness": lambda x, rng, m, s: _look_up(x, _away_from(0, m)),
  "Sharpness": lambda x, rng, m, s: _blend(_smoothed(x), x, m),
  "ShearX": lambda x, rng, m, s: _nearest(
    x, 1, _either(rng, m, 0.3), 0, 0, 1, 0
  ),
  "ShearY": lambda x, rng, m, s: _nearest(
    x, 1, 0, 0, _either(rng, m, 0.3), 1, 0
  ),
  "TranslateX": lambda x, rng, m, s: _nearest(
    x, 1, 0, _either(rng, m, 100 * s), 0, 1, 0
  ),
  "TranslateY": lambda x, rng, m, s: _nearest(
    x, 1, 0, 0, 0, 1, _either(rng, m, 100 * s)
  ),
  "Cutout": lambda x, rng, m, s: _cutout(x, rng, int(m / 10 * 40 * s)),
  "SolarizeAdd": lambda x, rng, m, s: _look_up(x, _brightened(m)),
}
_OPERATIONS = tuple(OPERATIONS.values())


def apply(
  image: np.ndarray,
  rng: np.random.Generator,
  layers: int,
  magnitude: float,
  scaled: bool = False,
) -> np.ndarray:
  """Applies random operations, one or more, to uint8 [H, W, 3].

  If `scaled`, what counts pixels takes the same share of any size.
  """
  scale = min(image.shape[:2]) / 224 if scaled else 1.0
  for _ in range(layers):
    operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
    image = operation(image, rng, magnitude, scale)
  return image
