r"""Evaluates a trained model on a data set.

  python -m mixer evaluate --checkpoint=runs/b16
  python -m mixer evaluate --checkpoint=imagenet1k/Mixer-B_16 \
    --data=imagenet2012 --split=validation
  python -m mixer evaluate --checkpoint=imagenet1k/Mixer-B_16 \
    --data=imagenet2012_real --split=validation
  python -m mixer evaluate --checkpoint=imagenet1k/Mixer-B_16 \
    --data=imagenet_v2/matched-frequency --split=test
  python -m mixer evaluate --checkpoint=imagenet21k/Mixer-B_16 \
    --data=oxford_iiit_pet --split=test --fewshot

Published for imagenet1k/Mixer-B_16: 76.44 % on ImageNet, 82.36 % with the ReaL
labels. A run of ours knows its own data set. Prints top-1, top-5 and loss, and
ReaL accuracy where the data set has its labels; writes results.json,
per_class.csv, confusion.csv (and .npy, .png where classes are few). Classes are
matched by name; a part of the checkpoint's is enough. --examples=FILE.csv (or
.parquet) lists every example: its index, the file that it was made from where
the data set knows that, its label, the prediction and its score. With
--fewshot, ridge regression on frozen features takes the place of the head.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epy

from mixer import errors, flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax
  import numpy as np

  import input_pipeline
  from mixer import config as config_lib
  from mixer import (
    evaluate,
    evaluation_files,
    fewshot,
    outputs,
    progress,
    runtime,
    sharding,
    train_step,
    trained,
    workdir,
  )
  from mixer import tally as tally_lib
  from mixer.datasets import split as split_lib


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  add = parser.add_argument
  add("--data", default="", help="data set, as TFDS names it; a run's own")
  add("--split", default="", help="a run's own, else validation")
  add("--data_dir", default="", help=flags.DATA_DIR)
  add("--batch_size", type=flags.positive, help="over all devices")
  add(
    "--same_classes",
    action="store_true",
    help="outputs are the data set's classes, in order, whatever their names",
  )
  add("-o", "--output", default="", metavar="DIR", help="runs/evaluate/...")
  add(
    "--examples",
    type=_table,
    metavar="FILE",
    help="list every example: file, label, prediction, score; .csv or .parquet",
  )
  few = parser.add_argument_group("few-shot").add_argument
  few("--fewshot", action="store_true", help="ridge regression on features")
  few("--train_split", default="train", help="labelled examples come from it")
  few("--shots", type=_shots, default=(1, 5, 10, 25), help="as in 1,5,10,25")
  few("--seeds", type=flags.positive, default=3, help="draws of each")
  few("--l2", type=float, default=1024.0, help="weight of the ridge")


def _shots(value: str) -> tuple[int, ...]:
  return tuple(flags.positive(part) for part in value.split(","))


def _table(value: str) -> str:
  if pathlib.Path(value).suffix.lower() not in (".csv", ".parquet"):
    raise argparse.ArgumentTypeError(
      f"{value!r} ends in neither .csv nor .parquet"
    )
  return value


_PER_DEVICE = 64


class _Evaluation:
  """What is evaluated, and on what."""

  def __init__(self, args: argparse.Namespace):
    self.args = args
    self.model = flags.load_model(args)
    self.data, self.expression, self.data_dir = _data(args, self.model)
    self.split = self.open(self.expression)
    self.config = _config(self.model, args.batch_size)
    self.mesh = sharding.make_mesh()
    self.params = jax.device_put(
      self.model.params, sharding.replicated(self.mesh)
    )

  def open(self, expression: str) -> split_lib.Split:
    return split_lib.open_split(self.data, expression, self.data_dir)

  def batches(self, split: split_lib.Split) -> Iterator[dict[str, np.ndarray]]:
    return input_pipeline.eval_batches(split, self.config)

  def inference(
    self, columns: np.ndarray | None = None
  ) -> train_step.Inference:
    return train_step.Inference(
      self.model.module,
      self.model.loss,
      len(self.split.class_names),
      self.mesh,
      columns=columns,
    )

  def match(self) -> outputs.Outputs:
    """Finds the outputs that go with the data set's classes."""
    return outputs.match(
      self.model,
      self.split.class_names,
      self.data,
      same=self.args.same_classes,
    )


def _data(
  args: argparse.Namespace, model: trained.Trained
) -> tuple[str, str, str]:
  """Name, split and folder of the data set; a run knows its own."""
  own = model.config.data if model.config else None
  if not args.data and own is None:
    raise UserError(
      f"--checkpoint={args.checkpoint} is no run that knows its data set: name "
      "one with --data, such as --data=imagenet2012 --split=validation."
    )
  data_dir = args.data_dir or (own.data_dir if own else "")
  if own and args.data in ("", own.name):
    return own.name, args.split or own.eval_split, data_dir
  return args.data, args.split or "validation", data_dir


def _config(
  model: trained.Trained, batch_size: int | None
) -> config_lib.Config:
  """What the input pipeline goes by."""
  devices = jax.device_count()
  if batch_size is not None and batch_size % devices:
    raise UserError(
      f"--batch_size={batch_size} can't be divided among {devices} devices; "
      f"use a multiple, such as --batch_size={_PER_DEVICE * devices}."
    )
  config = config_lib.default()
  config.image_size, config.image_width = model.image_size
  config.data.eval_short_side = model.short_side
  config.batch_size = batch_size or _PER_DEVICE * devices
  return config


def _by_head(
  this: _Evaluation, found: outputs.Outputs
) -> tuple[dict[str, Any], tally_lib.Tally]:
  """Metrics of the head's predictions, and what they were."""
  tally = tally_lib.Tally(len(this.split.class_names), this.split.valid_labels)
  batches = evaluate.examples(
    this.inference(found.columns),
    this.params,
    this.batches(this.split),
    this.mesh,
  )
  listing = contextlib.nullcontext()
  if this.args.examples and jax.process_index() == 0:
    listing = evaluation_files.examples(this.args.examples)
  total, done, first = len(this.split), 0, 0
  start = time.perf_counter()
  with listing as write, progress.Progress() as shown:
    for rows in batches:
      tally.add(rows)
      if write:
        write(_examples(this.split, done, rows))
      done += len(rows["label"])
      if not first and done < total:
        # From here on nothing waits for the compiler.
        first, start = done, time.perf_counter()
      shown.show("evaluating", done, total, done)
  seconds = max(time.perf_counter() - start, 1e-9)
  metrics: dict[str, Any] = tally.metrics()
  if found.missing:
    metrics.pop("loss")
  return metrics | {"images_per_second": (total - first) / seconds}, tally


def _examples(
  split: split_lib.Split, first: int, rows: Mapping[str, np.ndarray]
) -> list[tuple[Any, ...]]:
  """Rows of the table of examples, from some place of the split on."""
  places = range(first, first + len(rows["label"]))
  names, found = split.class_names, []
  for place, file, label, best, score in zip(
    places,
    split.file_names(places),
    rows["label"].tolist(),
    rows["classes"][:, 0].tolist(),
    rows["scores"][:, 0],
    strict=True,
  ):
    said = (None, None) if best < 0 else (names[best], float(str(score)))
    found.append((place, file, names[label], *said))
  return found


def _by_features(this: _Evaluation) -> dict[str, Any]:
  """Few-shot accuracies: their mean, and each draw's."""
  args, functions = this.args, this.inference()
  task = fewshot.Task(
    this.open(args.train_split), this.split, args.shots, args.seeds, args.l2
  )

  def extract(split: split_lib.Split) -> np.ndarray:
    return evaluate.features(
      functions, this.params, this.batches(split), this.mesh
    )

  metrics: dict[str, Any] = {"examples": len(this.split)}
  for shots, draws in task.accuracies(extract).items():
    metrics[f"fewshot/{shots}shot"] = float(np.mean(draws))
    metrics[f"fewshot/{shots}shot_draws"] = draws
  return metrics


def main(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend.
  """
  if args.fewshot and args.examples:
    raise UserError(
      "--examples lists what the head predicts, and --fewshot "
      "predicts by features: leave one of them out."
    )
  this = _Evaluation(args)
  model, split = this.model, this.split
  found = outputs.Outputs(None, (), "") if args.fewshot else this.match()
  folder = _folder(this)
  height, width = model.image_size
  count = sum(x.size for x in jax.tree.leaves(model.params))
  crop = "whole images"
  if model.short_side:
    crop = f"out of a short side of {model.short_side}"
  print(
    f"checkpoint    {errors.printable(model.origin)}\n"
    f"model         {count:,} parameters, {model.num_classes:,} outputs, "
    f"{np.dtype(model.module.dtype).name}\n"
    f"data set      {this.data}, {this.expression}: {len(split):,} examples, "
    f"{len(split.class_names):,} classes\n"
    f"images        {height} x {width} px, {crop}"
    + (
      f"\nclasses       {errors.printable(found.sentence)}"
      if found.sentence
      else ""
    ),
    flush=True,
  )
  files: list[pathlib.Path] = []
  if args.fewshot:
    metrics = _by_features(this)
  else:
    metrics, tally = _by_head(this, found)
    names = trained.names_for_people(split.class_names)
    if jax.process_index() == 0:
      files = evaluation_files.write(folder, tally, split.class_names, names)
  print(evaluation_files.describe(metrics, model.loss))
  results = {
    "metrics": metrics,
    "checkpoint": args.checkpoint,
    "origin": model.origin,
    "data": this.data,
    "split": this.expression,
    "num_classes": len(split.class_names),
    "classes_matched": found.sentence or "as they are",
    "classes_without_output": list(found.missing),
    "image_size": [height, width],
    "short_side": model.short_side,
    "dtype": np.dtype(model.module.dtype).name,
    "loss": model.loss,
    "parameters": count,
    "batch_size": this.config.batch_size,
    "files": [f.name for f in files],
    "environment": runtime.environment(),
  }
  if jax.process_index() == 0:
    workdir.write_json(folder / "results.json", results)
  print(f"written to    {folder}")


def _folder(this: _Evaluation) -> pathlib.Path:
  """Where results go; made before the work that they are of."""
  args, size = this.args, "x".join(map(str, this.model.image_size))
  kind = "fewshot" if args.fewshot else "head"
  parts = [args.checkpoint, this.data, this.expression, size, kind]
  slug = re.sub(r"[^\w.-]+", "_", "-".join(parts)).strip("_.")
  folder = pathlib.Path(args.output or pathlib.Path("runs/evaluate", slug))
  folder = folder.expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink()
  except OSError as e:
    raise UserError(
      f"results can't be written to {folder} ({e.strerror}); name another "
      "folder with --output."
    ) from e
  return folder
