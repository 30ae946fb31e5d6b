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
Mixer recipe uses. Pillow rounds Sharpness's smoothing where the reference
truncates, and its grey levels may differ by one: at most 1 + factor in a value.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from mixer import errors

FILL = (128, 128, 128)
_LEVELS = np.arange(256)


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """How much to augment.

  Attributes:
    layers: operations applied to each image, one after the other; 0 or more.
    magnitude: strength shared by all operations; 0 to 30, the recipes use 10,
      15 and 20.

  Raises:
    UserError: a value is out of range.
  """

  layers: int = 2
  magnitude: float = 10

  def __post_init__(self):
    if self.layers < 0 or not 0 <= self.magnitude <= 30:
      raise errors.UserError(
        f"RandAugment(layers={self.layers}, magnitude={self.magnitude}) is out "
        "of range: layers must be 0 or more and magnitude 0 to 30; the paper's "
        "recipes use 2 layers and magnitude 10, 15 or 20."
      )


def autocontrast(image: Image.Image) -> Image.Image:
  """Stretches each channel so that its values span 0 to 255."""
  table = np.tile(_LEVELS, 3)
  extrema: Any = image.getextrema()
  for channel, (low, high) in enumerate(extrema):
    if high > low:
      # Integer division: the same as the definition's truncated float product
      # but never one below because of a rounding error.
      stretched = (_LEVELS - low) * 255 // (high - low)
      table[channel * 256 : channel * 256 + 256] = stretched.clip(0, 255)
  return image.point(table.tolist())


def equalize(image: Image.Image) -> Image.Image:
  """Flattens each channel's histogram, as Pillow's `ImageOps.equalize`."""
  counts = np.array(image.histogram()).reshape(3, 256)
  table = np.tile(_LEVELS, (3, 1))
  for channel in range(3):
    count = counts[channel]
    step = (count.sum() - count[count.nonzero()[0][-1]]) // 255
    if step:
      below = np.cumsum(count) - count
      table[channel] = ((below + step // 2) // step).clip(0, 255)
  return image.point(table.ravel().tolist())


def invert(image: Image.Image) -> Image.Image:
  """Replaces each value v by 255 - v."""
  return ImageChops.invert(image)


def posterize(image: Image.Image, bits: int) -> Image.Image:
  """Keeps the `bits` highest bits of each value, at least 1 and at most 8."""
  kept = 256 - (1 << (8 - min(max(bits, 1), 8)))
  return image.point((_LEVELS & kept).tolist() * 3)


def solarize(image: Image.Image, threshold: int) -> Image.Image:
  """Inverts the values that are at least `threshold`."""
  table = np.where(_LEVELS < threshold, _LEVELS, 255 - _LEVELS)
  return image.point(table.tolist() * 3)


def solarize_add(image: Image.Image, addition: int) -> Image.Image:
  """Adds `addition` to the values below 128, up to 255."""
  table = np.where(_LEVELS < 128, np.minimum(_LEVELS + addition, 255), _LEVELS)
  return image.point(table.tolist() * 3)


def color(image: Image.Image, factor: float) -> Image.Image:
  """Moves away from (above 1) or towards (below 1) the grey image."""
  return Image.blend(image.convert("L").convert("RGB"), image, factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
  """Moves away from or towards grey, H * W / 256 of it (196 at 224 pixels)."""
  grey = min(image.width * image.height // 256, 255)
  flat = Image.new("RGB", image.size, (grey, grey, grey))
  return Image.blend(flat, image, factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
  """Moves away from or towards black."""
  return Image.blend(Image.new("RGB", image.size), image, factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
  """Moves away from or towards a 3 x 3 smoothing; border pixels stay."""
  return Image.blend(image.filter(ImageFilter.SMOOTH), image, factor)


def rotate(image: Image.Image, degrees: float) -> Image.Image:
  """Rotates about the middle; positive is counterclockwise."""
  width, height = image.size
  cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
  x, y = (width - 1) / 2, (height - 1) / 2
  return _nearest(
    image, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
  )


def shear_x(image: Image.Image, level: float) -> Image.Image:
  """Shifts row y left by level * y pixels."""
  return _nearest(image, (1, level, 0, 0, 1, 0))


def shear_y(image: Image.Image, level: float) -> Image.Image:
  """Shifts column x up by level * x pixels."""
  return _nearest(image, (1, 0, 0, level, 1, 0))


def translate_x(image: Image.Image, pixels: float) -> Image.Image:
  """Shifts left by `pixels`."""
  return _nearest(image, (1, 0, pixels, 0, 1, 0))


def translate_y(image: Image.Image, pixels: float) -> Image.Image:
  """Shifts up by `pixels`."""
  return _nearest(image, (1, 0, 0, 0, 1, pixels))


def cutout(image: Image.Image, x: int, y: int, pad: int) -> Image.Image:
  """Greys the 2 pad x 2 pad square around (x, y), as far as it is inside."""
  if not pad:
    return image
  image = image.copy()
  image.paste(FILL, (x - pad, y - pad, x + pad, y + pad))
  return image


def _nearest(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
  """Output pixel (x, y) <- input pixel nearest to matrix @ (x, y, 1).

  Args:
    image: RGB image.
    matrix: a, b, c, d, e, f in pixel indices: (a x + b y + c, d x + e y + f).
  """
  a, b, c, d, e, f = matrix
  # Pillow evaluates the matrix at pixel centres, (x + 0.5, y + 0.5), and
  # rounds down: move the origin by half a pixel to mean the same.
  c += 0.5 - 0.5 * (a + b)
  f += 0.5 - 0.5 * (d + e)
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    (a, b, c, d, e, f),
    Image.Resampling.NEAREST,
    fillcolor=FILL,
  )


def _sign(rng: np.random.Generator) -> int:
  return 1 if rng.random() < 0.5 else -1


def _enhancement(magnitude: float) -> float:
  return magnitude / 10 * 1.8 + 0.1


def _random_cutout(image, rng, m):
  x, y = int(rng.integers(image.width)), int(rng.integers(image.height))
  return cutout(image, x, y, int(m / 10 * 40))


Operation = Callable[[Image.Image, np.random.Generator, float], Image.Image]

# (image, rng, magnitude) -> image; drawn by position.
OPERATIONS: dict[str, Operation] = {
  "AutoContrast": lambda i, rng, m: autocontrast(i),
  "Equalize": lambda i, rng, m: equalize(i),
  "Invert": lambda i, rng, m: invert(i),
  "Rotate": lambda i, rng, m: rotate(i, _sign(rng) * m / 10 * 30),
  "Posterize": lambda i, rng, m: posterize(i, int(m / 10 * 4)),
  "Solarize": lambda i, rng, m: solarize(i, int(m / 10 * 256) % 256),
  "Color": lambda i, rng, m: color(i, _enhancement(m)),
  "Contrast": lambda i, rng, m: contrast(i, _enhancement(m)),
  "Brightness": lambda i, rng, m: brightness(i, _enhancement(m)),
  "Sharpness": lambda i, rng, m: sharpness(i, _enhancement(m)),
  "ShearX": lambda i, rng, m: shear_x(i, _sign(rng) * m / 10 * 0.3),
  "ShearY": lambda i, rng, m: shear_y(i, _sign(rng) * m / 10 * 0.3),
  "TranslateX": lambda i, rng, m: translate_x(i, _sign(rng) * m / 10 * 100),
  "TranslateY": lambda i, rng, m: translate_y(i, _sign(rng) * m / 10 * 100),
  "Cutout": _random_cutout,
  "SolarizeAdd": lambda i, rng, m: solarize_add(i, int(m / 10 * 110)),
}
_OPERATIONS = tuple(OPERATIONS.values())


def apply_to_pil(
  image: Image.Image, rng: np.random.Generator, layers: int, magnitude: float
) -> Image.Image:
  """`apply` for an RGB Pillow image; the given image is left unchanged."""
  for _ in range(layers):
    operation = _OPERATIONS[rng.integers(len(_OPERATIONS))]
    image = operation(image, rng, magnitude)
  return image


def apply(
  image: np.ndarray, rng: np.random.Generator, layers: int, magnitude: float
) -> np.ndarray:
  """Augments one image; the same `rng` state gives the same bytes.

  Args:
    image: uint8 [H, W, 3].
    rng: where all the randomness comes from.
    layers: number of operations applied.
    magnitude: their strength, see the module's table.

  Returns:
    uint8 [H, W, 3], a new array.
  """
  return np.array(apply_to_pil(Image.fromarray(image), rng, layers, magnitude))
