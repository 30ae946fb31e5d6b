"""Predicts with a trained model, from Python: see `mixer.load`.

Images are a path, the bytes of a file, a file opened in binary mode, a Pillow
image, a uint8 array [H, W], [H, W, 1] or [H, W, 3] (RGB), or many of those: a
list, a stack [N, H, W, C], or any iterable, which is read a few batches ahead.
They are turned upright as
their EXIF data say, put on white ground where they are transparent, and then
resized and cropped as for evaluation. Of an
animation the first frame is taken (of a Pillow image the one it stands at).
"""

import functools
import itertools
import logging
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from mixer import loader, runtime, sharding, train_step, trained
from mixer.errors import UserError
from mixer.prediction import inputs, results

Prediction = results.Prediction
Features = results.Features
_PER_DEVICE = 32
# So many classes are always computed: another `top` needs no compilation.
_TOPS = (10, 100, 1_000, 10_000)
# Of the images of a large batch, up to which a call goes in small ones.
_FEW = 1 / 4
# Batches made ahead of the one that is computed.
_AHEAD = 2
_Result = TypeVar("_Result", Prediction, Features)


def read(path: str | os.PathLike[str], model: inputs.Takes) -> np.ndarray:
  """An image file as the model takes it.

  It goes the way of a data set that is made from a folder: turned upright,
  where its EXIF data say so, and then as in evaluation.

  Args:
    path: of the file.
    model: that is to take it.

  Returns:
    uint8 [H, W, 3].

  Raises:
    UserError: it can't be read; says which and why.
  """
  try:
    return inputs.fit(os.fspath(path), model)
  except ValueError as e:
    raise _refusal(os.fsdecode(path), str(e)) from e


def load(
  path: str | os.PathLike[str],
  image_size: int | Sequence[int] | None = None,
  resize: str = "",
  dtype: str = "",
  averaged: bool = True,
  batch_size: int | None = None,
) -> "Predictor":
  """`mixer.load`."""
  if batch_size is not None:
    batch_size = _whole("batch_size", batch_size)
  _refuse_fork()
  runtime.start_as_library()
  model = trained.load(os.fspath(path), image_size, resize, dtype, averaged)
  if model.unnamed:
    logging.getLogger("mixer").warning(model.unnamed)
  return Predictor(model, batch_size)


def _whole(name: str, value: Any) -> int:
  """A whole number above 0.

  Raises:
    UserError: it is none.
  """
  try:
    number = operator.index(value)
  except TypeError:
    number = 0
  if number < 1:
    raise UserError(f"{name}={value!r}: expected a whole number above 0.")
  return number


def _refuse_fork() -> None:
  """Refuses what would wait for ever.

  Raises:
    UserError: this process was forked from one with a model on its devices.
  """
  if _is_forked():
    raise UserError(
      "this process was forked from one that had loaded a model, and JAX's "
      "threads don't go along: it would hang. Start processes with "
      "multiprocessing.get_context('spawn'); a loaded model can be handed to "
      "them."
    )


# The process in which a model was first put onto devices.
_started: dict[str, int] = {}


def _again(model: trained.Trained, batch_size: int) -> "Predictor":
  """What is unpickled, in another process."""
  if _is_forked():
    # A pool of processes would wait for ever for one that fails here: what is
    # done with it fails.
    predictor = Predictor.__new__(Predictor)
    predictor.model, predictor.batch_size = model, batch_size
    return predictor
  runtime.start_as_library()
  return Predictor(model, batch_size)


def _is_forked() -> bool:
  return os.getpid() != _started.get("process", os.getpid())


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
    """Puts the weights on the devices.

    Args:
      model: with or without a head.
      batch_size: images at a time, rounded up to a multiple of the devices;
        None for 32 on each.
    """
    _refuse_fork()
    _started["process"] = os.getpid()
    self.model = model
    self._mesh = sharding.make_mesh()
    devices = self._mesh.size
    wished = _PER_DEVICE * devices
    if batch_size is not None:
      wished = _whole("batch_size", batch_size)
    # Each is compiled for once. A single image doesn't pay for many.
    self._few, self.batch_size = devices, -(-wished // devices) * devices
    self._params = jax.device_put(model.params, sharding.replicated(self._mesh))
    self._made: dict[int, train_step.Inference] = {}

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

    def result(source: str, problem: str, rows: Any, k: int) -> Prediction:
      classes = rows["classes"][k, :top].tolist()
      if not problem and classes[0] < 0:
        problem = "the model's logits for it are not numbers (NaN)"
      if problem:
        return Prediction(source, problem=problem)
      return Prediction(
        source,
        tuple(self._names[c] for c in classes),
        tuple(rows["scores"][k, :top].tolist()),
        tuple(classes),
        tuple(self._ids[c] for c in classes),
      )

    return self._results(self._functions(top).top, images, result)

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
    return self._results(self._functions().features, images, _vector)

  def logits(self, images: Any) -> np.ndarray:
    """What comes out of the head: float32 [N, K].

    Args:
      images: one or many, see the module.

    Raises:
      UserError: an image can't be used; or the model has no head.
    """
    self._check_head()
    rows = self._results(self._functions().logits, images, _vector)
    return np.stack([_sound(row).values for row in rows])

  def _results(
    self,
    step: Callable[[Any, train_step.Batch], Any],
    images: Any,
    result: Callable[[str, str, Any, int], _Result],
  ) -> Iterator[_Result]:
    """One for each image; checks what can be before the first is asked for."""
    named = (
      (inputs.source(image, place), image)
      for place, image in enumerate(inputs.each(images))
    )
    few = max(1, int(self.batch_size * _FEW))
    first = list(itertools.islice(named, few + 1))
    if not first:
      raise UserError(
        "there is no image: expected at least one, and the list is empty."
      )
    size = self._few if len(first) <= few else self.batch_size
    every = itertools.chain(first, named)
    batches = loader.Loader(
      iter(lambda: list(itertools.islice(every, size)), []),
      self._make,
      lambda images, rows: (images, rows),
      (size, *self.model.image_size),
      os.cpu_count() or 1,
      _AHEAD,
    )
    return self._rows(step, batches, result)

  def _make(
    self, named: list[tuple[str, Any]], images: np.ndarray
  ) -> list[tuple[str, str]]:
    """Fits some images; gives what to call each, and why it can't be used."""
    found = []
    for (name, image), out in zip(named, images, strict=True):
      problem = ""
      try:
        out[...] = inputs.fit(image, self.model)
      except ValueError as e:
        out[...] = 0
        problem = str(e)
      found.append((name, problem))
    return found

  def _rows(
    self,
    step: Callable[[Any, train_step.Batch], Any],
    batches: Iterator[tuple[np.ndarray, list[tuple[str, str]]]],
    result: Callable[[str, str, Any, int], _Result],
  ) -> Iterator[_Result]:
    # Each batch is read after the next one has been started, so that the
    # device always has work.
    pending = None
    for batch in itertools.chain(batches, (None,)):
      started = None
      if batch is not None:
        images, names = batch
        arrays = {"image": images, "mask": np.ones(len(images), np.bool_)}
        arrays = sharding.put_batch(self._mesh, arrays)
        started = names, step(self._params, arrays)
      if pending is not None:
        rows = jax.device_get(pending[1])
        for k, (name, problem) in enumerate(pending[0]):
          yield result(name, problem, rows, k)
      pending = started

  def _functions(self, top: int = 1) -> train_step.Inference:
    """What gives at least so many classes, and is compiled once."""
    _refuse_fork()
    classes = self.model.num_classes
    computed = min(next((t for t in _TOPS if t >= top), classes), classes)
    if computed not in self._made:
      self._made[computed] = train_step.Inference(
        self.model.module, self.model.loss, classes, self._mesh, top=computed
      )
    return self._made[computed]

  def _check_head(self) -> None:
    if not self.model.num_classes:
      raise UserError(
        f"{self.model.source} has no head, so it predicts no classes; take a "
        "model that was fine-tuned, or its features (--features in "
        "mixer predict)."
      )

  @functools.cached_property
  def _names(self) -> tuple[str, ...]:
    numbers = range(self.model.num_classes)
    return self.model.class_names or tuple(f"output {k}" for k in numbers)

  @functools.cached_property
  def _ids(self) -> tuple[str, ...]:
    return self.model.class_ids or ("",) * self.model.num_classes


def _vector(source: str, problem: str, rows: Any, k: int) -> Features:
  values = np.full_like(rows[0][k], np.nan) if problem else rows[0][k]
  return Features(source, values, problem)


def _sound(one: _Result) -> _Result:
  if one.problem:
    raise _refusal(one.source, one.problem)
  return one


def _refusal(source: str, problem: str) -> UserError:
  return UserError(f"{source} can't be used: {problem}.")
