"""An exported model against the one that it was made from, image by image."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import predictor, preprocess, sharding, train_step, trained
from mixer.errors import UserError

# Images in one batch.
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class Outputs:
  """What a model says about images.

  Attributes:
    features: pre-logits, float32 `[N, C]`.
    logits: float32 `[N, K]`; None without a head.
  """

  features: np.ndarray
  logits: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Difference:
  """Of one output, over all images.

  Attributes:
    name: of the output.
    absolute: the largest difference between two numbers.
    relative: the same, as a share of the largest magnitude in mixer's own.
  """

  name: str
  absolute: float
  relative: float


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Of an exported model with its origin.

  Attributes:
    against: what ran it, as "onnxruntime 1.32.0".
    differences: of features and logits.
    agree: images with the same top class; None without a head.
    images: how many there were.
    bound: on every relative difference.
  """

  against: str
  differences: tuple[Difference, ...]
  agree: int | None
  images: int
  bound: float

  @property
  def sound(self) -> bool:
    """Whether all is within the bound; NaN isn't."""
    return all(d.relative <= self.bound for d in self.differences)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of an export.

  Attributes:
    comparison: None where a package to compare with is missing.
    missing: which, and how to get it; "" if none is.
    loading: lines of Python that load the model, from the final place.
    notes: sentences that the user should read.
  """

  comparison: Comparison | None
  missing: str
  loading: str
  notes: tuple[str, ...] = ()


def random_images(size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
  """Six images: noise, smooth ones, flat black and white; of several shapes.

  Args:
    size: (height, width) that the model takes.
    seed: the same one gives the same images.

  Returns:
    uint8 `[H, W, 3]` each: like files, to be made what the model takes.
  """
  rng = np.random.default_rng(seed)
  height, width = size

  def noise(side: tuple[int, int]) -> np.ndarray:
    return rng.integers(0, 256, (*side, 3), np.uint8)

  def smooth(side: tuple[int, int]) -> np.ndarray:
    return preprocess.resize(noise((4, 4)), side)

  black, white = (np.full((*size, 3), value, np.uint8) for value in (0, 255))
  banner, tall = (height, 3 * width), (2 * height, width)
  return [
    noise(size),
    black,
    white,
    smooth(banner),
    smooth(tall),
    noise((height + 1, 2 * width)),
  ]


def batches(images: Sequence[Any], takes: predictor.Takes) -> list[np.ndarray]:
  """The first image alone, then more at once: two sizes of batch at least.

  Args:
    images: paths, or whatever else is an image.
    takes: how large they are to be, and how they become so: what the model
      says, or what is read back from its export.

  Returns:
    uint8 `[B, H, W, 3]` each.

  Raises:
    UserError: an image can't be used; says which and why.
  """
  fitted = [
    predictor.read(i, takes) if isinstance(i, str) else predictor.fit(i, takes)
    for i in images
  ]
  rest = fitted[1:] or (fitted[0], fitted[0])
  starts = range(0, len(rest), _BATCH)
  cut = [np.stack(rest[start : start + _BATCH]) for start in starts]
  return [fitted[0][None], *cut]


def outputs(
  model: trained.Trained, batches: Sequence[np.ndarray], dtype: str = ""
) -> Outputs:
  """What `train_step.Inference` computes, on one device.

  Args:
    model: any.
    batches: uint8 `[B, H, W, 3]` each.
    dtype: "float32" for that, with matmuls as exact as the device has them;
      "" for what the model has, as evaluation computes it: the same bits.
  """
  if dtype:  # One size of batch less to compile for.
    batches = [np.concatenate(batches[:2]), *batches[2:]]
  module = model.module.clone(dtype=jnp.dtype(dtype)) if dtype else model.module
  mesh = sharding.make_mesh(jax.devices()[:1])
  functions = train_step.Inference(module, model.loss, model.num_classes, mesh)
  params = jax.device_put(model.params, sharding.replicated(mesh))

  def run(function) -> np.ndarray:
    masked = [{"image": b, "mask": np.ones(len(b), bool)} for b in batches]
    return np.concatenate([np.asarray(function(params, b)[0]) for b in masked])

  with jax.default_matmul_precision("highest" if dtype else None):
    features = run(functions.features)
    logits = run(functions.logits) if model.num_classes else None
  return Outputs(features, logits)


def compare(
  ours: Outputs, theirs: Outputs, against: str, bound: float
) -> Comparison:
  """Compares mixer's own outputs with those of what was exported."""
  pairs = [("features", ours.features, theirs.features)]
  agree = None
  if ours.logits is not None and theirs.logits is not None:
    pairs.append(("logits", ours.logits, theirs.logits))
    same = ours.logits.argmax(axis=-1) == theirs.logits.argmax(axis=-1)
    agree = int(same.sum())
  return Comparison(
    against=against,
    differences=tuple(_difference(*pair) for pair in pairs),
    agree=agree,
    images=len(ours.features),
    bound=bound,
  )


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
  """See `Difference`."""
  return _difference("", ours, theirs).relative


def _difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
  if ours.shape != theirs.shape:
    raise UserError(
      f"what was exported gives {name} of the shape {theirs.shape}, not "
      f"{ours.shape}; it was removed."
    )
  absolute = float(np.abs(ours.astype(np.float64) - theirs).max())
  largest = float(np.abs(ours).max())
  # A new head computes zeros.
  share = absolute / largest if largest else (np.inf if absolute else 0.0)
  return Difference(name, absolute, share)


def bfloat16_note(
  model: trained.Trained, batches: Sequence[np.ndarray], ours: Outputs
) -> tuple[str, ...]:
  """What a float32 export of a bfloat16 model has to say; else nothing."""
  if jnp.dtype(model.module.dtype) != jnp.bfloat16:
    return ()
  theirs = outputs(model, batches)
  pair = (ours.features, theirs.features)
  if ours.logits is not None and theirs.logits is not None:
    pair = (ours.logits, theirs.logits)
  return (
    "The model computes in bfloat16; what was exported computes in float32, "
    "and is compared with the model computing so. In bfloat16 mixer's own "
    f"{'logits' if ours.logits is not None else 'features'} are "
    f"{relative(*pair):.1e} (relative) from that.",
  )


def table(comparison: Comparison, sizes: Sequence[int]) -> str:
  """The comparison, for people.

  Args:
    comparison: of `compare`.
    sizes: of the batches.
  """
  said = ", ".join(map(str, sizes[:-1])) + f" and {sizes[-1]}"
  lines = [
    f"compared on {comparison.images} images, in batches of {said}: mixer and "
    f"{comparison.against}",
    f"{'':10}{'absolute':>12}{'relative':>12}{'bound':>12}",
  ]
  bound = f"{comparison.bound:.0e}" if comparison.bound else "equal bits"
  for d in comparison.differences:
    numbers = f"{d.absolute:12.1e}{d.relative:12.1e}{bound:>12}"
    lines.append(f"{d.name:10}{numbers}")
  if comparison.agree is not None:
    lines.append(f"{'top-1':10}{comparison.agree} of {comparison.images} agree")
  return "\n".join(lines)


def check(comparison: Comparison, model: trained.Trained) -> None:
  """Refuses an export that computes something else.

  Raises:
    UserError: a difference beyond the bound.
  """
  if comparison.sound:
    return
  wrong = [
    f"{d.name} differ by {d.relative:.1e}"
    for d in comparison.differences
    if not d.relative <= comparison.bound
  ]
  raise UserError(
    f"what was exported of {model.source} computes something else in "
    f"{comparison.against}: {', '.join(wrong)}, relative to their largest "
    f"magnitude, where {comparison.bound:.0e} is allowed. Nothing was kept. "
    "Take another version of that package, or report it."
  )
