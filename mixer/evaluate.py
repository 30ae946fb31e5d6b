"""Exact metrics, predictions and features over a whole split.

Every function works on one process and on many: each host brings its own part
of the batches and gets the whole result.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mixer import loader, preprocess, sharding, train_step
from mixer.datasets import split as split_lib

Batches = Iterable[dict[str, np.ndarray]]


def batches(
  split: split_lib.Split,
  image_size: tuple[int, int],
  short_side: int,
  batch_size: int,
  threads: int = 16,
  prefetch: int = 2,
  process_index: int | None = None,
  process_count: int | None = None,
) -> loader.Loader[loader.Batch]:
  """This host's parts of batches that hold every example exactly once.

  The last batch is filled up with black images whose `mask` is False, so that
  all hosts see equally many batches of equal size.

  Args:
    split: to be evaluated.
    image_size: (height, width), see `preprocess.evaluation`.
    short_side: likewise.
    batch_size: B, of all P hosts together.
    threads: that decode.
    prefetch: batches made ahead.
    process_index: p, this host; None: as JAX says.
    process_count: P; None: as JAX says.

  Returns:
    An iterator over `image` uint8 `[B / P, H, W, 3]`, `label` int32, `mask`
    bool `[B / P]`. Its `next` raises UserError if a record can't be decoded.
  """
  p = jax.process_index() if process_index is None else process_index
  count = jax.process_count() if process_count is None else process_count
  length = batch_size // count
  places = range(len(split))

  def make(some: range, images: np.ndarray) -> list[int]:
    records = split.read(some)
    for record, out in zip(records, images, strict=True):
      try:
        out[...] = preprocess.evaluation(
          record["image"], image_size, short_side
        )
      except ValueError as e:
        raise split.decode_error(record["index"], e) from e
    return [record["label"] for record in records]

  def finish(images: np.ndarray, labels: list[int]) -> loader.Batch:
    label = np.zeros(length, np.int32)
    label[: len(labels)] = labels
    mask = np.arange(length) < len(labels)
    return {"image": images, "label": label, "mask": mask}

  return loader.Loader(
    (
      places[first + p * length : first + (p + 1) * length]
      for first in range(0, len(split), batch_size)
    ),
    make,
    finish,
    (length, *image_size),
    threads,
    prefetch,
  )


def _one_late(
  step: Callable[[Any, train_step.Batch], Any],
  params: Any,
  batches: Batches,
  mesh: Mesh,
  interrupt: Callable[[], None],
) -> Iterator[Any]:
  """Results of every batch, on the host.

  Each is read after the next one has been started, so that the device always
  has work, and never holds more than two batches.
  """
  pending = None
  for batch in batches:
    interrupt()
    result = step(params, sharding.put_batch(mesh, batch))
    if pending is not None:
      yield jax.device_get(pending)
    pending = result
  if pending is not None:
    yield jax.device_get(pending)


def evaluate(
  model: train_step.Inference,
  params: Any,
  batches: Batches,
  mesh: Mesh,
  interrupt: Callable[[], None] = lambda: None,
  take: Callable[[dict[str, np.ndarray]], None] | None = None,
) -> dict[str, float]:
  """Counts every example of a split exactly once.

  Args:
    model: its functions.
    params: to be evaluated.
    batches: this host's, of the function of this name.
    mesh: of all devices.
    interrupt: called before each batch; may raise.
    take: is given what `examples` yields, of the same pass.

  Returns:
    `accuracy` and `accuracy_top5` in [0, 1], the mean `loss` in nats, and the
    `examples` counted.
  """
  sums = {"count": 0, "correct": 0, "correct_top5": 0, "loss_sum": 0.0}

  def both(params: Any, batch: train_step.Batch) -> dict[str, jax.Array]:
    # Not compiled together: the sums keep their last bits.
    return model.examples(params, batch) | model.counts(params, batch)

  step = model.counts if take is None else both
  for result in _one_late(step, params, batches, mesh, interrupt):
    for name in sums:
      sums[name] += result.pop(name).item()
    if take is not None:
      take(_real(result))
  count = sums["count"]
  return {
    "accuracy": sums["correct"] / count,
    "accuracy_top5": sums["correct_top5"] / count,
    "loss": sums["loss_sum"] / count,
    "examples": count,
  }


def examples(
  model: train_step.Inference,
  params: Any,
  batches: Batches,
  mesh: Mesh,
  interrupt: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, np.ndarray]]:
  """What is predicted for every example of a split, a batch at a time.

  Args: as for `evaluate`; batches without `label` do as well.

  Yields:
    Arrays over the N real examples of a batch, in the split's order:
    `classes` int32 and `scores` float32 `[N, top]`, see `train_step.Inference`;
    and, if the batches have labels, `label` int32 and `loss` float32 `[N]`.
  """
  for result in _one_late(model.examples, params, batches, mesh, interrupt):
    yield _real(result)


def _real(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without what fills the last batch up."""
  mask = result.pop("mask")
  return {name: value[mask] for name, value in result.items()}


def features(
  model: train_step.Inference,
  params: Any,
  batches: Batches,
  mesh: Mesh,
  interrupt: Callable[[], None] = lambda: None,
) -> np.ndarray:
  """Pre-logits float32 `[N, C]` of a split, in its order, on every host.

  Args: as for `evaluate`.
  """
  return np.concatenate(
    [
      rows[mask]
      for rows, mask in _one_late(
        model.features, params, batches, mesh, interrupt
      )
    ]
  )
