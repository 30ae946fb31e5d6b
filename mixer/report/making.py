"""Makes a run's report: what it takes the model for, and the page."""

import dataclasses
from collections.abc import Callable
from typing import Any

from etils import epath
from jax.sharding import Mesh

from mixer import config as config_lib
from mixer import errors, evaluate, train_step, trained
from mixer.datasets import split as split_lib
from mixer.report import files, page, predictions, runs, thumbnails, weights


@dataclasses.dataclass(frozen=True)
class Gathered:
  """What the model says; the same on every host.

  Attributes:
    split: that was evaluated.
    config: of the run.
    predictions: for it.
    params: the weights that are shown.
    metrics: of the split.
  """

  split: split_lib.Split
  config: config_lib.Config
  predictions: predictions.Collector
  params: dict[str, Any]
  metrics: dict[str, float]


def gather(
  model: train_step.Inference,
  params: Any,
  batches: evaluate.Batches,
  mesh: Mesh,
  split: split_lib.Split,
  config: config_lib.Config,
  interrupt: Callable[[], None] = lambda: None,
) -> Gathered:
  """Evaluates a split, with what a report shows of it. All hosts call it.

  Args:
    model: its functions.
    params: to be evaluated.
    batches: this host's, of `evaluate.batches`.
    mesh: of all devices.
    split: that they are of.
    config: of the run.
    interrupt: called before each batch; may raise.
  """
  names = trained.names_for_people(split.class_names)
  found = predictions.Collector(names, len(split))
  for rows in evaluate.examples(model, params, batches, mesh, interrupt):
    found.add(rows)
  metrics = found.counts.metrics()
  return Gathered(split, config, found, weights.gather(params, mesh), metrics)


def result(gathered: Gathered, step: int) -> dict[str, Any]:
  """What is kept of it. For one host.

  Args:
    gathered: of `gather`.
    step: updates that the weights have seen.

  Returns:
    JSON, for `files.keep`: `step`, `predictions`, `weights`, `notes`.

  Raises:
    UserError: an example can't be read.
  """
  split, config = gathered.split, gathered.config
  places = gathered.predictions.places()
  names = map(errors.printable, split.file_names(places))
  images = thumbnails.read(
    split,
    places,
    config_lib.image_size(config),
    config.data.eval_short_side,
  )
  figures, notes = weights.figures(gathered.params, config)
  return {
    "step": step,
    "predictions": gathered.predictions.result(
      images,
      split.expression,
      step,
      config.loss.name,
      dict(zip(places, names, strict=True)),
    ),
    "weights": figures,
    "notes": [*gathered.predictions.notes(), *notes],
  }


def finish(workdir: epath.Path, step: int, gathered: Gathered | None) -> str:
  """Writes `report.json` and `report.html` at a run's end. For one host.

  Args:
    workdir: of the run; its metrics are complete.
    step: updates done.
    gathered: of `gather`; None leaves `report.json` as it is.

  Returns:
    A sentence for people; whatever went wrong, it is only told.
  """
  target = workdir / files.PAGE
  try:
    if gathered is not None:
      files.keep(workdir, result(gathered, step))
    found = runs.read(workdir, workdir.name or str(workdir))
    files.write(target, page.text([found]))
  except Exception as e:  # A run that is finished stays so.
    return f"there is no report of this run: {errors.first_line(e)}."
  return f"report: {target}"
