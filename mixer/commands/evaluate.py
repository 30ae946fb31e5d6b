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
import csv
import pathlib
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from etils import epy

from mixer import errors, flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax
  import numpy as np

  from mixer import (
    class_matching,
    evaluate,
    fewshot,
    files,
    loader,
    progress,
    runtime,
    sharding,
    train_step,
    trained,
    workdir,
  )
  from mixer.datasets import split as split_lib


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  add = parser.add_argument
  add(
    "--data",
    default="",
    help="data set, as TFDS names it, or module:function; a run's own",
  )
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
# Of the table of examples.
_COLUMNS = ("index", "file", "label", "prediction", "score")
# Up to so many classes the confusion matrix is written whole, and drawn; and
# the drawing has room for their names.
_DENSE_CLASSES, _NAMED_CLASSES = 1_000, 40


def main(args: argparse.Namespace) -> None:
  """Evaluates as the command line says."""
  if args.fewshot and args.examples:
    raise UserError(
      "--examples lists what the head predicts, and --fewshot "
      "predicts by features: leave one of them out."
    )
  model = trained.of_flags(args)
  data, expression, data_dir = _data(args, model)
  split = split_lib.open_split(data, expression, data_dir)
  devices = jax.device_count()
  batch_size = args.batch_size or _PER_DEVICE * devices
  if batch_size % devices:
    raise UserError(
      f"--batch_size={batch_size} can't be divided among {devices} devices; "
      f"use a multiple, such as --batch_size={_PER_DEVICE * devices}."
    )
  matching = class_matching.Matching()
  if not args.fewshot:
    matching = class_matching.match(
      model, split.class_names, data, same=args.same_classes
    )
  height, width = model.image_size
  kind = "fewshot" if args.fewshot else "head"
  folder = _folder(
    args.output, args.checkpoint, data, expression, f"{height}x{width}", kind
  )
  count = sum(x.size for x in jax.tree.leaves(model.params))
  dtype = np.dtype(model.module.dtype).name
  crop = "whole images"
  if model.short_side:
    crop = f"out of a short side of {model.short_side}"
  print(
    f"checkpoint    {errors.printable(model.origin)}\n"
    f"model         {count:,} parameters, {model.num_classes:,} outputs, "
    f"{dtype}\n"
    f"data set      {data}, {expression}: {len(split):,} examples, "
    f"{len(split.class_names):,} classes\n"
    f"images        {height} x {width} px, {crop}"
  )
  if matching.sentence:
    print(f"classes       {errors.printable(matching.sentence)}")

  mesh = sharding.make_mesh()
  params = jax.device_put(model.params, sharding.replicated(mesh))
  functions = train_step.Inference(
    model.module,
    model.loss,
    len(split.class_names),
    mesh,
    columns=matching.columns,
  )

  def batches(some: split_lib.Split) -> loader.Loader[loader.Batch]:
    return evaluate.batches(
      some, model.image_size, model.short_side, batch_size
    )

  written: list[pathlib.Path] = []
  if args.fewshot:
    train = split_lib.open_split(data, args.train_split, data_dir)
    task = fewshot.Task(train, split, args.shots, args.seeds, args.l2)
    metrics: dict[str, Any] = {"examples": len(split)}
    for shots, draws in task.accuracies(
      lambda some: evaluate.features(functions, params, batches(some), mesh)
    ).items():
      metrics[f"fewshot/{shots}shot"] = float(np.mean(draws))
      metrics[f"fewshot/{shots}shot_draws"] = draws
  else:
    rows = evaluate.examples(functions, params, batches(split), mesh)
    listing = contextlib.nullcontext()
    if args.examples:
      listing = _open_table(args.examples)
    with listing as write:
      counts, speed = _count(split, rows, write)
    metrics = counts.metrics() | {"images_per_second": speed}
    if matching.missing:
      metrics.pop("loss")
    names = trained.names_for_people(split.class_names)
    written = _write_confusions(folder, counts, split.class_names, names)
  print(_describe(metrics, model.loss))
  results = {
    "metrics": metrics,
    "checkpoint": args.checkpoint,
    "origin": model.origin,
    "data": data,
    "split": expression,
    "num_classes": len(split.class_names),
    "classes_matched": matching.sentence or "as they are",
    "classes_without_output": list(matching.missing),
    "image_size": [height, width],
    "short_side": model.short_side,
    "dtype": dtype,
    "loss": model.loss,
    "parameters": count,
    "batch_size": batch_size,
    "files": [f.name for f in written],
    "environment": runtime.environment(),
  }
  workdir.write_json(folder / "results.json", results)
  print(f"written to    {folder}")


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


def _folder(output: str, *parts: str) -> pathlib.Path:
  """Where results go; made before the work that they are of."""
  slug = re.sub(r"[^\w.-]+", "_", "-".join(parts)).strip("_.")
  folder = pathlib.Path(output or f"runs/evaluate/{slug}").expanduser()
  results = folder / "results.json"
  with files.writing(results, "Name another folder with --output."):
    folder.mkdir(parents=True, exist_ok=True)
    with open(results, "a"):
      pass
  results.unlink()
  return folder


def _count(
  split: split_lib.Split,
  batches: Iterator[dict[str, np.ndarray]],
  write: Callable[[Any], None] | None,
) -> tuple[evaluate.ConfusionCounts, float]:
  """Counts all examples; also images a second. `write` takes table rows."""
  counts = evaluate.ConfusionCounts(len(split.class_names), split.valid_labels)
  total, done, first = len(split), 0, 0
  start = time.perf_counter()
  with progress.Progress() as shown:
    for rows in batches:
      counts.add(rows)
      if write:
        write(_examples(split, done, rows))
      done += len(rows["label"])
      if not first and done < total:
        # From here on nothing waits for the compiler.
        first, start = done, time.perf_counter()
      shown.show("evaluating", done, total, done)
  seconds = max(time.perf_counter() - start, 1e-9)
  return counts, (total - first) / seconds


def _examples(
  split: split_lib.Split, first: int, rows: Mapping[str, np.ndarray]
) -> Iterator[tuple[Any, ...]]:
  """Rows of the table of examples, from a place of the split on."""
  places = range(first, first + len(rows["label"]))
  names = split.class_names
  for place, file, label, best, score in zip(
    places,
    [r.get("file_name", "") for r in split.read(places)],
    rows["label"].tolist(),
    rows["classes"][:, 0].tolist(),
    rows["scores"][:, 0],
    strict=True,
  ):
    known = best != evaluate.NO_CLASS
    predicted = (names[best], float(str(score))) if known else (None, None)
    yield place, file, names[label], *predicted


@contextlib.contextmanager
def _csv(
  path: pathlib.Path, columns: Sequence[str]
) -> Iterator[Callable[[Any], None]]:
  """Opens a table; yields what adds rows."""
  with files.atomic_write(path, "w") as f:
    writer = csv.writer(f, lineterminator="\n")
    writer.writerow(columns)
    yield writer.writerows


@contextlib.contextmanager
def _open_table(path: str) -> Iterator[Callable[[Any], None]]:
  """Opens a .csv or .parquet table of examples; yields what adds rows."""
  where = pathlib.Path(path).expanduser()
  files.make_parent(where)
  if where.suffix.lower() == ".csv":
    with _csv(where, _COLUMNS) as write:
      yield write
    return
  # Here, as it takes a while that others needn't wait.
  import pyarrow
  import pyarrow.parquet

  types = (pyarrow.int64(), *3 * (pyarrow.string(),), pyarrow.float32())
  schema = pyarrow.schema(list(zip(_COLUMNS, types, strict=True)))

  def add(rows: Iterator[Sequence[Any]]) -> None:
    # Arrow's strings are UTF-8, names of files needn't be.
    safe = [(i, errors.printable(file), *more) for i, file, *more in rows]
    columns = dict(zip(_COLUMNS, zip(*safe, strict=True), strict=True))
    table.write_table(pyarrow.table(columns, schema=schema))

  with files.atomic_write(where) as f:
    with pyarrow.parquet.ParquetWriter(f, schema) as table:
      yield add


def _write_confusions(
  folder: pathlib.Path,
  counts: evaluate.ConfusionCounts,
  ids: Sequence[str],
  names: Sequence[str],
) -> list[pathlib.Path]:
  """Writes per_class.csv, confusion.csv and, with few classes, .npy and .png.

  `ids` are the classes as the data set names them, `names` are for people.
  """

  def named(k: int | None) -> tuple[str, str]:
    return ("", "") if k is None else (ids[k], names[k])

  written = [folder / "per_class.csv", folder / "confusion.csv"]
  columns = "class name examples correct accuracy confused_with"
  columns += " confused_with_name confused"
  with _csv(written[0], columns.split()) as add:
    for row in counts.classes():
      share = f"{row.correct / row.examples:.6f}" if row.examples else ""
      numbers = row.examples, row.correct, share
      other = named(row.confused_with)
      add([(*named(row.label), *numbers, *other, row.confused)])
  matrix = counts.confusion.tocoo()
  parts = (part.tolist() for part in (matrix.row, matrix.col, matrix.data))
  columns = "true predicted count true_name predicted_name"
  with _csv(written[1], columns.split()) as add:
    for k, p, n in sorted(zip(*parts, strict=True)):
      add([(ids[k], ids[p], n, names[k], names[p])])
  if len(ids) <= _DENSE_CLASSES:
    written += [folder / "confusion.npy", folder / "confusion.png"]
    with files.atomic_write(written[-2]) as f:
      np.save(f, matrix.toarray())
    with files.atomic_write(written[-1]) as f:
      _draw(f, matrix.toarray(), names)
  return written


def _draw(file: IO[bytes], matrix: np.ndarray, names: Sequence[str]) -> None:
  """A heat map: of each true class, the share that went to each other."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import colors
  from matplotlib import pyplot as plt

  shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  named = len(names) <= _NAMED_CLASSES
  side = max(5.0, 0.3 * len(names)) if named else 9.0
  with (
    # A name may hold a $, and characters that the font lacks.
    matplotlib.rc_context({"text.parse_math": False}),
    warnings.catch_warnings(),
  ):
    warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
    figure, axes = plt.subplots(figsize=(side + 1, side), layout="constrained")
    # By the root, as rare mistakes are what one looks for.
    norm = colors.PowerNorm(0.5, vmin=0, vmax=1)
    drawn = axes.imshow(
      shares, cmap="magma_r", norm=norm, interpolation="nearest"
    )
    axes.set(xlabel="predicted", ylabel="true")
    if named:
      places, shown = np.arange(len(names)), [*map(errors.printable, names)]
      axes.set_xticks(places, shown, rotation=90)
      axes.set_yticks(places, shown)
    figure.colorbar(drawn, ax=axes, label="share of the true class")
    figure.savefig(file, dpi=120, format="png")
    plt.close(figure)


_LINES = {
  "accuracy": "top-1         {:.2%}",
  "accuracy_top5": "top-5         {:.2%}",
  "loss": "loss          {:.4f} nats ({loss})",
  "real_accuracy": "ReaL          {:.2%}",
  "real_examples": "              of {:,} examples with valid labels",
  "not_numbers": "NaN           {:,} examples, counted as wrong",
  "examples": "examples      {:,}",
  "images_per_second": "images/s      {:,.1f}",
}


def _describe(metrics: Mapping[str, Any], loss: str) -> str:
  """The metrics that there are, one a line; `loss` is its name."""
  lines = [
    line.format(metrics[name], loss=loss)
    for name, line in _LINES.items()
    if name in metrics
  ]
  for name, value in metrics.items():
    if name.endswith("shot"):
      draws = metrics[f"{name}_draws"]
      lines.append(
        f"{name.removeprefix('fewshot/'):<14}{value:.2%} ({min(draws):.2%} to "
        f"{max(draws):.2%} over {len(draws)} draws)"
      )
  return "\n".join(lines)
