"""Predicts with a trained model, from Python: see `mixer.load`.

Images are a path, the bytes of a file, a file opened in binary mode, a Pillow
image, a uint8 array [H, W], [H, W, 1] or [H, W, 3] (RGB), or many of those: a
list, a stack [N, H, W, C], or any iterable, which is read a few batches ahead.
They are treated as evaluation treats a data set that is made from files:
upright by EXIF, on white ground where transparent, resized and cropped. Of an
animation the first frame is taken (of a Pillow image the current one).
"""

import dataclasses
import functools
import itertools
import logging
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from mixer import (
  errors,
  inspection,
  loader,
  notebook,
  preprocess,
  runtime,
  sharding,
  train_step,
  trained,
)
from mixer.errors import UserError

_PER_DEVICE = 32
# Batches made ahead of the one that is computed.
_AHEAD = 2
# The process in which JAX runs, once a model is loaded.
_processes: list[int] = []


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The classes with the highest scores, the highest first.

  Attributes:
    source: the image's path; or its place among the images, as "images[3]".
    names: of the classes, for people.
    scores: probabilities of softmax, or sigmoids, each for itself, where the
      model was trained with those.
    indexes: of the model's outputs, from 0.
    class_ids: of the classes as the data set names them, such as WordNet ids;
      "" where nobody knows.
    problem: why there are none, a sentence without its full stop; "" if there
      are. Only `Predictor.stream` gives such; `predict` raises.
    pixels: what the model saw, uint8 [H, W, 3], which notebooks show; kept of
      the first 100 images.
  """

  source: str
  names: tuple[str, ...] = ()
  scores: tuple[float, ...] = ()
  indexes: tuple[int, ...] = ()
  class_ids: tuple[str, ...] = ()
  problem: str = ""
  pixels: np.ndarray | None = dataclasses.field(
    default=None, repr=False, compare=False
  )

  def lines(self, width: int = 0) -> list[str]:
    """A line for each class; the source takes `width` characters or more."""
    start = f"{errors.printable(self.source):<{width}}"
    rows = [
      f"{score:6.3f}  {errors.printable(name)}"
      for name, score in zip(self.names, self.scores, strict=True)
    ] or [errors.printable(self.problem)]
    return [f"{start}  {rows[0]}"] + [
      f"{'':{len(start)}}  {x}" for x in rows[1:]
    ]

  def __str__(self) -> str:
    return "\n".join(self.lines())

  def _repr_html_(self) -> str:
    return Predictions([self])._repr_html_()


class Predictions(list[Prediction]):
  """A list that notebooks show as a table."""

  def _repr_html_(self) -> str:
    rows = [
      (
        "" if one.pixels is None else one.pixels,
        one.source,
        "\n".join(one.names) or one.problem,
        "\n".join(f"{score:.3f}" for score in one.scores),
      )
      for one in self[: notebook.ROWS]
    ]
    if more := len(self) - len(rows):
      rows.append(("", f"and {more:,} more", "", ""))
    return notebook.table(rows, ("", "image", "class", "score"))


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """What the head would see of an image; see `Prediction`."""

  source: str
  problem: str
  values: np.ndarray  # float32 [C]; NaN where there is a problem.


def load(path: str, batch_size: int | None = None, **how: Any) -> "Predictor":
  """`mixer.load`; `how` is of `trained.load`."""
  _refuse_fork()
  runtime.start_as_library()
  model = trained.load(path, **how)
  if not model.config and model.origin != model.source:
    logging.getLogger("mixer").warning("loaded %s", model.origin)
  if model.unnamed:
    logging.getLogger("mixer").warning(model.unnamed)
  return Predictor(model, batch_size)


def fit(image: Any, model: Any) -> np.ndarray:
  """One image as a `Trained` model takes it, uint8 [H, W, 3]; or ValueError."""
  pixels = inspection.pixels(image)
  how = model.image_size, model.short_side, model.interpolation
  return preprocess.evaluation(pixels, *how)


class Predictor:
  """A trained model on all devices of this process.

  What it computes is compiled for two sizes of batches, each when it is first
  needed: a small one for calls of few images, and a large one. It can be
  pickled, for processes that are spawned; one that is forked is refused.

  Attributes:
    model: with all that is known of it: `class_names`, `image_size`, `params`.
    batch_size: images at a time, in calls of many.
  """

  def __init__(self, model: trained.Trained, batch_size: int | None = None):
    """Uses all devices; `batch_size` is as in `mixer.load`."""
    _processes.append(os.getpid())
    self.model, self._mesh = model, sharding.make_mesh()
    devices = self._mesh.size
    if batch_size is None:
      batch_size = _PER_DEVICE * devices
    wished = _whole("batch_size", batch_size)
    self.batch_size = -(-wished // devices) * devices
    self._steps = functools.cache(self._compiled)

  def __reduce__(self) -> tuple[Any, ...]:
    return _again, (self.model, self.batch_size)

  def __repr__(self) -> str:
    return f"<Predictor of {errors.printable(self.model.origin)}>"

  def _repr_html_(self) -> str:
    module, (height, width) = self.model.module, self.model.image_size
    count = sum(x.size for x in jax.tree.leaves(self.model.params))
    names = self.model.class_names or ()
    some = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
    return notebook.table(
      {
        "model": f"Mixer of {module.num_blocks} blocks, {module.hidden_dim:,} "
        f"channels, {count:,} parameters",
        "images": f"{height} x {width} px, in patches of {module.patch_size}",
        "classes": f"{module.num_classes:,}" + f": {some}" * bool(some),
        "origin": self.model.origin,
      }.items()
    )

  def predict(self, images: Any, top: int = 5) -> Predictions:
    """The classes that the model sees on images.

    Args:
      images: one or many, see the module.
      top: how many classes of each, at most.

    Raises:
      UserError: an image can't be used; or the model has no head.
    """
    return Predictions(map(_sound, self.stream(images, top)))

  def stream(self, images: Any, top: int = 5) -> Iterator[Prediction]:
    """As `predict`, one after the other as they come, however many.

    An image that can't be used has a `problem`, and the rest goes on. Results
    come a batch at a time: four of them are read before the first comes.

    Raises:
      UserError: no image at all, or the model has no head.
    """
    count = min(_whole("top", top), self._num_classes())
    names, ids = self.model.class_names, self.model.class_ids

    def result(source: str, problem: str, pixels: Any, row: Any) -> Prediction:
      classes = row["classes"][:count].tolist()
      if not problem and classes[0] < 0:
        problem = "the model's logits for it are not numbers (NaN)"
      if problem:
        return Prediction(source, problem=problem)
      return Prediction(
        source,
        tuple(names[c] if names else f"output {c}" for c in classes),
        tuple(row["scores"][:count].tolist()),
        tuple(classes),
        tuple(ids[c] if ids else "" for c in classes),
        pixels=pixels,
      )

    # As many as the next power of ten, so that another `top` rarely compiles.
    step = self._steps(10 ** len(str(count - 1))).examples
    return self._results(step, images, result)

  def features(self, images: Any) -> np.ndarray:
    """What the head sees of images: pre-logits, float32 [N, C].

    Args:
      images: one or many, see the module.

    Raises:
      UserError: an image can't be used.
    """
    return np.stack([_sound(f).values for f in self.stream_features(images)])

  def stream_features(self, images: Any) -> Iterator[Features]:
    """As `features`, one after the other; see `stream` about problems."""
    return self._results(self._steps(1).features, images, _vector)

  def logits(self, images: Any) -> np.ndarray:
    """What comes out of the head: float32 [N, K].

    Args:
      images: one or many, see the module.

    Raises:
      UserError: an image can't be used; or the model has no head.
    """
    self._num_classes()
    found = self._results(self._steps(1).logits, images, _vector)
    return np.stack([_sound(one).values for one in found])

  def _num_classes(self) -> int:
    if self.model.num_classes:
      return self.model.num_classes
    raise UserError(
      f"{self.model.source} has no head, so it predicts no classes: take its "
      "features (predict --features=FILE), or a model that was fine-tuned."
    )

  def _compiled(self, top: int) -> train_step.Inference:
    how = self.model.module, self.model.loss, self.model.num_classes
    return train_step.Inference(*how, self._mesh, top=top)

  @functools.cached_property
  def _params(self) -> Any:  # Only when needed: in a forked process it hangs.
    everywhere = sharding.replicated(self._mesh)
    return jax.device_put(self.model.params, everywhere)

  def _results(
    self, step: Any, images: Any, result: Callable[[str, str, Any, Any], Any]
  ) -> Iterator[Any]:
    """`result` of what `_fit` and `step` give, for each image."""
    _refuse_fork()
    numbered = enumerate(_each(images))
    few = max(1, self.batch_size // 4)
    first = list(itertools.islice(numbered, few + 1))
    if not first:
      raise UserError("there is no image: expected at least one.")
    # A few images don't pay for a large batch.
    size = self._mesh.size if len(first) <= few else self.batch_size
    every = itertools.chain(first, numbered)

    def make(some: Any, images: np.ndarray) -> list[tuple[str, str, Any]]:
      rows = zip(*zip(*some, strict=True), images, strict=True)
      return [_fit(self.model, *row) for row in rows]

    def start(images: np.ndarray, sources: Any) -> tuple[Any, Any]:
      batch = {"image": images, "mask": np.ones(len(images), np.bool_)}
      batch = sharding.put_batch(self._mesh, batch)
      return sources, step(self._params, batch)

    some = iter(lambda: list(itertools.islice(every, size)), [])
    shape, threads = (size, *self.model.image_size), os.cpu_count() or 1
    started = loader.Loader(some, make, start, shape, threads, _AHEAD)
    return _read(started, result)


def _fit(
  model: Any, place: int, image: Any, out: np.ndarray
) -> tuple[str, str, np.ndarray | None]:
  """Fits an image into `out`; its source, why it can't be used, its pixels."""
  is_path = isinstance(image, str | os.PathLike)
  name = image if is_path else getattr(image, "name", None)
  known = isinstance(name, str | os.PathLike)
  source = os.fsdecode(name) if known else f"images[{place}]"
  try:
    out[...] = fit(image, model)
  except ValueError as e:
    out[...] = 0
    return source, str(e), None
  return source, "", out.copy() if place < notebook.ROWS else None


def _read(started: Iterator[tuple[Any, Any]], result: Any) -> Iterator[Any]:
  """Reads each batch after the next was started: the device always has work."""
  pending = next(started, None)
  while pending is not None:
    later = next(started, None)
    rows = jax.device_get(pending[1])
    for k, source in enumerate(pending[0]):
      yield result(*source, jax.tree.map(operator.itemgetter(k), rows))
    pending = later


def _vector(source: str, problem: str, pixels: Any, row: Any) -> Features:
  values = np.full_like(row[0], np.nan) if problem else row[0]
  return Features(source, problem, values)


def _again(model: trained.Trained, batch_size: int) -> Predictor:
  """What is unpickled, in another process."""
  runtime.start_as_library()
  return Predictor(model, batch_size)


def _refuse_fork() -> None:
  if _processes and os.getpid() != _processes[0]:  # JAX would wait for ever.
    raise UserError(
      "this process was forked from one that had loaded a model, and JAX's "
      "threads don't go along: it would hang. Start processes with "
      "multiprocessing.get_context('spawn') and hand them the model."
    )


def _whole(name: str, value: Any) -> int:
  if isinstance(value, int | np.integer) and value > 0:
    return int(value)
  raise UserError(f"{name}={value!r}: expected a whole number above 0.")


def _sound(one: Any) -> Any:
  if one.problem:
    raise UserError(f"{one.source} can't be used: {one.problem}.")
  return one


def _each(images: Any) -> Iterator[Any]:
  """One image after the other: of one, of a stack, or of many."""
  one = str, os.PathLike, Image.Image, *inspection.BYTES
  if isinstance(images, one) or hasattr(images, "read"):
    return iter((images,))
  if hasattr(images, "__array__"):
    array = np.asarray(images)  # 1-D: of paths, as a column of a table.
    return iter(array if array.ndim in (1, 4) else (array,))
  if isinstance(images, Iterable) and not isinstance(images, Mapping):
    return iter(images)
  raise UserError(
    f"{type(images).__name__} is no image, nor many: expected "
    f"{inspection.EXPECTED}; or a list of those."
  )
