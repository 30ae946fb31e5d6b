"""Predicts with a trained model, from Python: see `mixer.load`.

Images are a path, the bytes of a file, a file opened in binary mode, a Pillow
image, a uint8 array [H, W], [H, W, 1] or [H, W, 3] (RGB), or many of those: a
list, a stack [N, H, W, C], or any iterable, which is read a few batches ahead.
They are treated as evaluation treats a data set that is made from files: turned
upright as their EXIF data say, put on white ground where they are transparent,
resized and cropped. Of an animation the first frame is taken (of a Pillow image
the one it stands at).
"""

import dataclasses
import functools
import itertools
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from PIL import Image

from mixer import (
  errors,
  inspection,
  loader,
  metadata,
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
  """

  source: str
  names: tuple[str, ...] = ()
  scores: tuple[float, ...] = ()
  indexes: tuple[int, ...] = ()
  class_ids: tuple[str, ...] = ()
  problem: str = ""

  def lines(self, width: int = 0) -> list[str]:
    """A line for each class; the source takes `width` characters or more."""
    source = errors.printable(self.source)
    width = max(width, len(source))
    if self.problem:
      return [f"{source:<{width}}  {errors.printable(self.problem)}"]
    return [
      f"{'' if rank else source:<{width}}  {score:6.3f}  "
      + errors.printable(name)
      for rank, (score, name) in enumerate(
        zip(self.scores, self.names, strict=True)
      )
    ]

  def __str__(self) -> str:
    return "\n".join(self.lines())


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
  """What the head would see of an image.

  Attributes:
    source: as in `Prediction`.
    values: pre-logits float32 [C]; NaN where there is a problem.
    problem: as in `Prediction`.
  """

  source: str
  values: np.ndarray
  problem: str = ""


_Result = TypeVar("_Result", Prediction, Features)


def load(
  path: str | os.PathLike[str],
  image_size: int | Sequence[int] | None = None,
  resize: str = "",
  dtype: str = "",
  averaged: bool = True,
  batch_size: int | None = None,
) -> "Predictor":
  """`mixer.load`."""
  _refuse_fork()
  runtime.start_as_library()
  model = trained.load(os.fspath(path), image_size, resize, dtype, averaged)
  if model.unnamed:
    logging.getLogger("mixer").warning(model.unnamed)
  return Predictor(model, batch_size)


def fit(image: Any, takes: trained.Trained | metadata.Metadata) -> np.ndarray:
  """One image as a model takes it, uint8 [H, W, 3]; ValueError if it can't."""
  pixels = inspection.pixels(image)
  return preprocess.evaluation(pixels, takes.image_size, takes.short_side)


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
    self.model = model
    self._mesh = sharding.make_mesh()
    devices = self._mesh.size
    wished = _PER_DEVICE * devices
    if batch_size is not None:
      wished = _whole("batch_size", batch_size)
    self.batch_size = -(-wished // devices) * devices
    self._made: dict[int, train_step.Inference] = {}

  @functools.cached_property
  def _params(self) -> Any:  # Only when needed: in a forked process it hangs.
    everywhere = sharding.replicated(self._mesh)
    return jax.device_put(self.model.params, everywhere)

  def __repr__(self) -> str:
    height, width = self.model.image_size
    return (
      f"<Predictor of {self.model.origin}: images of {height} x {width} px, "
      f"{self.model.num_classes:,} classes>"
    )

  def __reduce__(self) -> tuple[Any, ...]:
    return _again, (self.model, self.batch_size)

  def predict(self, images: Any, top: int = 5) -> list[Prediction]:
    """The classes that the model sees on images.

    Args:
      images: one or many, see the module.
      top: how many classes of each, at most.

    Raises:
      UserError: an image can't be used; or the model has no head.
    """
    return [_sound(p) for p in self.stream(images, top)]

  def stream(self, images: Any, top: int = 5) -> Iterator[Prediction]:
    """As `predict`, one after the other as they come, however many.

    An image that can't be used has a `problem`, and the rest goes on. Results
    come a batch at a time: four of them are read before the first comes.

    Raises:
      UserError: no image at all, or the model has no head.
    """
    self._check_head()
    top = _whole("top", top)
    numbers = range(self.model.num_classes)
    names = self.model.class_names or [f"output {k}" for k in numbers]
    ids = self.model.class_ids or [""] * len(numbers)

    def result(source: str, problem: str, row: Any) -> Prediction:
      classes = row["classes"][:top].tolist()
      if not problem and classes[0] < 0:
        problem = "the model's logits for it are not numbers (NaN)"
      if problem:
        return Prediction(source, problem=problem)
      return Prediction(
        source,
        tuple(names[c] for c in classes),
        tuple(row["scores"][:top].tolist()),
        tuple(classes),
        tuple(ids[c] for c in classes),
      )

    rows = self._rows(self._functions(top).examples, images)
    return (result(*row) for row in rows)

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
    return self._vectors(self._functions().features, images)

  def logits(self, images: Any) -> np.ndarray:
    """What comes out of the head: float32 [N, K].

    Args:
      images: one or many, see the module.

    Raises:
      UserError: an image can't be used; or the model has no head.
    """
    self._check_head()
    rows = self._vectors(self._functions().logits, images)
    return np.stack([_sound(row).values for row in rows])

  def _vectors(self, step: Any, images: Any) -> Iterator[Features]:
    def result(source: str, problem: str, row: Any) -> Features:
      values = np.full_like(row[0], np.nan) if problem else row[0]
      return Features(source, values, problem)

    rows = self._rows(step, images)
    return (result(*row) for row in rows)

  def _rows(self, step: Any, images: Any) -> Iterator[tuple[str, str, Any]]:
    """(source, problem, what `step` gives) of each image.

    That there is an image is checked before the first is asked for.
    """
    numbered = enumerate(_each(images))
    few = max(1, self.batch_size // 4)
    first = list(itertools.islice(numbered, few + 1))
    if not first:
      raise UserError(
        "there is no image: expected at least one, and the list is empty."
      )
    # A few images don't pay for a large batch.
    size = self._mesh.size if len(first) <= few else self.batch_size
    every = itertools.chain(first, numbered)
    batches = loader.Loader(
      iter(lambda: list(itertools.islice(every, size)), []),
      self._make,
      lambda images, named: (images, named),
      (size, *self.model.image_size),
      os.cpu_count() or 1,
      _AHEAD,
    )
    return self._computed(step, batches)

  def _make(
    self, numbered: Sequence[tuple[int, Any]], images: np.ndarray
  ) -> list[tuple[str, str]]:
    """Fits some images; what to call each, and why it can't be used."""
    found = []
    for (place, image), out in zip(numbered, images, strict=True):
      name = getattr(image, "name", "") if hasattr(image, "read") else ""
      if isinstance(image, (str, os.PathLike)):
        name = image
      known = name and isinstance(name, (str, bytes, os.PathLike))
      source = os.fsdecode(name) if known else f"images[{place}]"
      problem = ""
      try:
        out[...] = fit(image, self.model)
      except ValueError as e:
        out[...], problem = 0, str(e)
      found.append((source, problem))
    return found

  def _computed(
    self, step: Any, batches: Iterator[tuple[np.ndarray, list[tuple[str, str]]]]
  ) -> Iterator[tuple[str, str, Any]]:
    # Each batch is read after the next one has been started, so that the
    # device always has work.
    pending: Any = None
    for batch in itertools.chain(batches, (None,)):
      started = None
      if batch is not None:
        images, named = batch
        arrays = {"image": images, "mask": np.ones(len(images), np.bool_)}
        arrays = sharding.put_batch(self._mesh, arrays)
        started = named, step(self._params, arrays)
      if pending is not None:
        rows = jax.device_get(pending[1])
        for k, named in enumerate(pending[0]):
          yield *named, jax.tree.map(operator.itemgetter(k), rows)
      pending = started

  def _functions(self, top: int = 1) -> train_step.Inference:
    """What gives at least `top` classes; another `top` rarely compiles."""
    _refuse_fork()
    classes = self.model.num_classes
    computed = min(classes, 10 ** len(str(top - 1)))
    if computed not in self._made:
      self._made[computed] = train_step.Inference(
        self.model.module, self.model.loss, classes, self._mesh, top=computed
      )
    return self._made[computed]

  def _check_head(self) -> None:
    if not self.model.num_classes:
      raise UserError(
        f"{self.model.source} has no head, so it predicts no classes; take a "
        "model that was fine-tuned, or its features (--features of `mixer "
        "predict`)."
      )


def _again(model: trained.Trained, batch_size: int) -> Predictor:
  """What is unpickled, in another process."""
  runtime.start_as_library()
  return Predictor(model, batch_size)


def _refuse_fork() -> None:
  """Refuses what would wait for ever."""
  if _processes and os.getpid() != _processes[0]:
    raise UserError(
      "this process was forked from one that had loaded a model, and JAX's "
      "threads don't go along: it would hang. Start processes with "
      "multiprocessing.get_context('spawn'); a loaded model can be handed to "
      "them."
    )


def _whole(name: str, value: Any) -> int:
  try:
    number = operator.index(value)
  except TypeError:
    number = 0
  if number < 1:
    raise UserError(f"{name}={value!r}: expected a whole number above 0.")
  return number


def _sound(one: _Result) -> _Result:
  if one.problem:
    raise UserError(f"{one.source} can't be used: {one.problem}.")
  return one


def _each(images: Any) -> Iterator[Any]:
  """One image after the other: of one, of a stack, or of many."""
  one = str, os.PathLike, Image.Image, *inspection.BYTES
  if isinstance(images, one) or hasattr(images, "read"):
    return iter((images,))
  if hasattr(images, "__array__"):
    array = np.asarray(images)
    if array.ndim == 1 and array.dtype.kind in "OU":  # A column of a table.
      return iter(array.tolist())
    return iter(array if array.ndim == 4 else (array,))
  if isinstance(images, Iterable) and not isinstance(images, Mapping):
    return iter(images)
  raise UserError(
    f"{type(images).__name__} is no image, nor many: expected "
    f"{inspection.EXPECTED}; or a list of those."
  )
