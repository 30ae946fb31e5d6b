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

This is the reference as it runs, oddities included, because the accuracies
reported for these magnitudes were reached with them:

- Translate and Cutout count pixels of a 224-pixel image and are not scaled: at
  32 pixels TranslateX at magnitude 10 leaves nothing but grey.
- Solarize's threshold overflows its byte (google-research/big_vision#110), so
  that magnitudes 10 and 20 invert the whole image and 15 its bright half.
- Contrast means to pivot on the mean grey level but on pixel count / 256 it
  does: grey 196 for every 224-pixel image, nearly black at 32 pixels.
- Posterize gets weaker with the magnitude: at 20 it changes nothing.

Source: Cubuk et al., arXiv 1909.13719, with the operations and constants of
`distort_image_with_randaugment` in TensorFlow's TPU models, which big_vision's
Mixer recipe uses. OpenCV, which does the work without holding the GIL, rounds
Sharpness's smoothing where the reference truncates, and its grey levels may
differ by one: at most 1 + factor in a value.
"""

import math
from collections.abc import Callable

import cv2
import numpy as np

_FILL = (128, 128, 128)
_LEVELS = np.arange(256)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Replaces each value by the table's; [256] for all channels or [3, 256]."""
  table = table.astype(np.uint8)
  return cv2.LUT(image, table if table.ndim == 1 else table.T[None])


def _truncate(values: np.ndarray) -> np.ndarray:
  """To whole numbers from 0 to 255, as the reference rounds a blend."""
  # A hair more, lest 0.1 * 10 be 0.
  return np.trunc(values.clip(0, 255) + 1e-6)


def _blend(start: np.ndarray, image: np.ndarray, m: float) -> np.ndarray:
  """Away from `start`, or towards it; truncated: all of it in one rounding."""
  factor = _factor(m)
  return cv2.addWeighted(start, 1 - factor, image, factor, -0.5 + 1e-3)


def _factor(m: float) -> float:
  return m / 10 * 1.8 + 0.1


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


def _signed(rng: np.random.Generator, value: float) -> float:
  return value if rng.random() < 0.5 else -value


def _autocontrast(image: np.ndarray) -> np.ndarray:
  """Stretches each channel so that its values span 0 to 255."""
  table = np.tile(_LEVELS, (3, 1))
  for channel, values in enumerate(cv2.split(image)):
    low, high, *_ = cv2.minMaxLoc(values)
    if high > low:
      # Integer division: the same as the definition's truncated float product
      # but never one below because of a rounding error.
      stretched = (_LEVELS - int(low)) * 255 // int(high - low)
      table[channel] = stretched.clip(0, 255)
  return _look_up(image, table)


def _equalize(image: np.ndarray) -> np.ndarray:
  """Flattens each channel's histogram, as Pillow's `ImageOps.equalize`."""
  table = np.tile(_LEVELS, (3, 1))
  for channel in range(3):
    counts = cv2.calcHist([image], [channel], None, [256], [0, 256])
    count = counts.ravel().astype(np.int64)
    step = (count.sum() - count[count.nonzero()[0][-1]]) // 255
    if step:
      below = np.cumsum(count) - count
      table[channel] = ((below + step // 2) // step).clip(0, 255)
  return _look_up(image, table)


def _posterize(image: np.ndarray, m: float) -> np.ndarray:
  bits = min(max(int(m / 10 * 4), 1), 8)
  return _look_up(image, _LEVELS & 256 - (1 << 8 - bits))


def _solarize(image: np.ndarray, m: float) -> np.ndarray:
  low = int(m / 10 * 256) % 256 > _LEVELS
  return _look_up(image, np.where(low, _LEVELS, 255 - _LEVELS))


def _solarize_add(image: np.ndarray, m: float) -> np.ndarray:
  more = np.minimum(_LEVELS + int(m / 10 * 110), 255)
  return _look_up(image, np.where(_LEVELS < 128, more, _LEVELS))


def _color(image: np.ndarray, m: float) -> np.ndarray:
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  return _blend(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), image, m)


def _contrast(image: np.ndarray, m: float) -> np.ndarray:
  grey = min(image.shape[0] * image.shape[1] // 256, 255)
  return _look_up(image, _truncate(grey + _factor(m) * (_LEVELS - grey)))


def _sharpness(image: np.ndarray, m: float) -> np.ndarray:
  """Away from or towards a 3 x 3 smoothing; border pixels stay."""
  smooth = image.copy()
  if min(image.shape[:2]) > 2:
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
  return _blend(smooth, image, m)


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


# (image, rng, magnitude) -> image; drawn by position. Matrices as `_nearest`
# takes them: shears and shifts are to the left and up, or the other way.
OPERATIONS: dict[
  str, Callable[[np.ndarray, np.random.Generator, float], np.ndarray]
] = {
  "AutoContrast": lambda i, rng, m: _autocontrast(i),
  "Equalize": lambda i, rng, m: _equalize(i),
  "Invert": lambda i, rng, m: cv2.bitwise_not(i),
  "Rotate": lambda i, rng, m: _rotate(i, _signed(rng, m / 10 * 30)),
  "Posterize": lambda i, rng, m: _posterize(i, m),
  "Solarize": lambda i, rng, m: _solarize(i, m),
  "Color": lambda i, rng, m: _color(i, m),
  "Contrast": lambda i, rng, m: _contrast(i, m),
  "Brightness": lambda i, rng, m: _look_up(i, _truncate(_factor(m) * _LEVELS)),
  "Sharpness": lambda i, rng, m: _sharpness(i, m),
  "ShearX": lambda i, rng, m: _nearest(
    i, 1, _signed(rng, m / 10 * 0.3), 0, 0, 1, 0
  ),
  "ShearY": lambda i, rng, m: _nearest(
    i, 1, 0, 0, _signed(rng, m / 10 * 0.3), 1, 0
  ),
  "TranslateX": lambda i, rng, m: _nearest(
    i, 1, 0, _signed(rng, m / 10 * 100), 0, 1, 0
  ),
  "TranslateY": lambda i, rng, m: _nearest(
    i, 1, 0, 0, 0, 1, _signed(rng, m / 10 * 100)
  ),
  "Cutout": lambda i, rng, m: _cutout(i, rng, int(m / 10 * 40)),
  "SolarizeAdd": lambda i, rng, m: _solarize_add(i, m),
}
_OPERATIONS = tuple(OPERATIONS.values())


def apply(
  image: np.ndarray, rng: np.random.Generator, layers: int, magnitude: float
) -> np.ndarray:
  """Applies random operations, one or more, to uint8 [H, W, 3]."""
  for _ in range(layers):
    operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
    image = operation(image, rng, magnitude)
  return image
