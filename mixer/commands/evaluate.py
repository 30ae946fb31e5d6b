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
import csv
import pathlib
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epy

from mixer import errors, flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax
  import numpy as np

  from mixer import (
    evaluate,
    files,
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


def _table(value: str) -> pathlib.Path:
  path = pathlib.Path(value).expanduser()
  if path.suffix.lower() not in (".csv", ".parquet"):
    raise argparse.ArgumentTypeError(
      f"{value!r} ends in neither .csv nor .parquet"
    )
  return path


_PER_DEVICE = 64
# Up to so many classes the confusion matrix is written whole, and drawn; and
# the drawing has room for their names.
_DENSE_CLASSES, _NAMED_CLASSES = 1_000, 40


def main(args: argparse.Namespace) -> None:
  """Evaluates as the command line says."""
  if args.fewshot and args.examples:
    raise UserError("leave out --examples: --fewshot doesn't use the head.")
  model = trained.of_flags(args)
  own = model.config.data if model.config else None
  data, data_dir = args.data, args.data_dir
  if own:
    data, data_dir = data or own.name, data_dir or own.data_dir
  if not data:
    raise UserError(
      f"--checkpoint={args.checkpoint} is no run that knows its data set: name "
      "one with --data, such as --data=imagenet2012 --split=validation."
    )
  usual = own.eval_split if own and data == own.name else "validation"
  expression = args.split or usual
  split = split_lib.open_split(data, expression, data_dir)
  classes, devices = split.class_names, jax.device_count()
  batch_size = args.batch_size or _PER_DEVICE * devices
  if batch_size % devices:
    raise UserError(
      f"--batch_size={batch_size} can't be divided among {devices} devices; "
      f"use a multiple, such as --batch_size={_PER_DEVICE * devices}."
    )
  matching = evaluate.Matching()
  if not args.fewshot:
    matching = evaluate.match(model, classes, data, same=args.same_classes)
  height, width = model.image_size
  kind = "fewshot" if args.fewshot else "head"
  parts = (args.checkpoint, data, expression, f"{height}x{width}", kind)
  slug = re.sub(r"[^\w.-]+", "_", "-".join(parts)).strip("_.")
  folder = pathlib.Path(args.output or f"runs/evaluate/{slug}").expanduser()
  # Before the work that they are of.
  for path in filter(None, (folder / "results.json", args.examples)):
    files.make_parent(path)
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
    f"{len(classes):,} classes\n"
    f"images        {height} x {width} px, {crop}"
  )
  if matching.sentence:
    print(f"classes       {errors.printable(matching.sentence)}")

  mesh = sharding.make_mesh()
  params = jax.device_put(model.params, sharding.replicated(mesh))
  functions = train_step.Inference(
    model.module, model.loss, len(classes), mesh, columns=matching.columns
  )

  def batches(some: split_lib.Split) -> evaluate.Batches:
    return evaluate.batches(
      some, model.image_size, model.short_side, batch_size
    )

  written: list[pathlib.Path] = []
  listing: list[Sequence[Any]] = []
  if args.fewshot:
    train = split_lib.open_split(data, args.train_split, data_dir)
    task = evaluate.Fewshot(train, split, args.shots, args.seeds, args.l2)
    metrics: dict[str, Any] = {"examples": len(split)}
    for shots, draws in task.accuracies(
      lambda some: evaluate.features(functions, params, batches(some), mesh)
    ).items():
      metrics[f"fewshot/{shots}shot"] = float(np.mean(draws))
      metrics[f"fewshot/{shots}shot_draws"] = draws
  else:
    rows = evaluate.examples(functions, params, batches(split), mesh)
    counts, speed, listing = _count(split, rows, bool(args.examples))
    metrics = counts.metrics() | {"images_per_second": speed}
    if matching.missing:
      metrics.pop("loss")
    written = _write_confusions(folder, counts, classes)
  print(_describe(metrics, model.loss))
  results = {
    "metrics": metrics,
    "checkpoint": args.checkpoint,
    "origin": model.origin,
    "data": data,
    "split": expression,
    "num_classes": len(classes),
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
  if args.examples:
    _write_examples(args.examples, listing)
  print(f"written to    {folder}")


def _count(
  split: split_lib.Split, batches: Iterable[dict[str, np.ndarray]], list_: bool
) -> tuple[evaluate.ConfusionCounts, float, list[Sequence[Any]]]:
  """Counts all examples; also images a second, and rows for `--examples`."""
  names = split.class_names
  counts = evaluate.ConfusionCounts(len(names), split.valid_labels)
  total, done, first = len(split), 0, 0
  listing: list[Sequence[Any]] = []
  start = time.perf_counter()
  with progress.Progress() as shown:
    for rows in batches:
      counts.add(rows)
      places = range(done, done + len(rows["label"]))
      read = split.read(places) if list_ else ()
      for place, record in zip(places, read, strict=False):
        k, best = place - done, rows["classes"][place - done, 0]
        found: tuple[Any, ...] = (None, None)
        if best != evaluate.NO_CLASS:
          found = names[best], float(str(rows["scores"][k, 0]))
        file, label = record.get("file_name", ""), names[rows["label"][k]]
        listing.append((place, file, label, *found))
      done = places.stop
      if not first and done < total:
        # From here on nothing waits for the compiler.
        first, start = done, time.perf_counter()
      shown.show("evaluating", done, total, done)
  seconds = max(time.perf_counter() - start, 1e-9)
  return counts, (total - first) / seconds, listing


def _csv(
  path: pathlib.Path, columns: str, rows: Iterable[Sequence[Any]]
) -> None:
  with files.atomic_write(path, "w") as f:
    writer = csv.writer(f, lineterminator="\n")
    writer.writerows([columns.split(), *rows])


def _write_examples(path: pathlib.Path, rows: Sequence[Sequence[Any]]) -> None:
  """Writes the table of examples."""
  columns = "index file label prediction score"
  if path.suffix.lower() == ".csv":
    return _csv(path, columns, rows)
  # Here, as it takes a while that others needn't wait.
  import pyarrow
  import pyarrow.parquet

  types = (pyarrow.int64(), *3 * (pyarrow.string(),), pyarrow.float32())
  index, file, *others = zip(*rows, strict=True)
  # Arrow's strings are UTF-8, names of files needn't be.
  named = [index, [*map(errors.printable, file)], *map(list, others)]
  arrays = map(pyarrow.array, named, types)
  table = pyarrow.table(list(arrays), names=columns.split())
  with files.atomic_write(path) as f:
    pyarrow.parquet.write_table(table, f)


def _write_confusions(
  folder: pathlib.Path, counts: evaluate.ConfusionCounts, ids: tuple[str, ...]
) -> list[pathlib.Path]:
  """Writes per_class.csv, confusion.csv and, with few classes, .npy and .png.

  `ids` are the classes as the data set names them.
  """
  names = trained.names_for_people(ids)
  written = [folder / "per_class.csv", folder / "confusion.csv"]
  rows = []
  for k, examples, correct, other, confused in counts.classes():
    share = f"{correct / examples:.6f}" if examples else ""
    which = ("", "") if other is None else (ids[other], names[other])
    rows.append((ids[k], names[k], examples, correct, share, *which, confused))
  columns = "class name examples correct accuracy confused_with"
  _csv(written[0], f"{columns} confused_with_name confused", rows)
  matrix = counts.confusion.tocoo()
  parts = (part.tolist() for part in (matrix.row, matrix.col, matrix.data))
  _csv(
    written[1],
    "true predicted count true_name predicted_name",
    (
      (ids[k], ids[p], n, names[k], names[p])
      for k, p, n in sorted(zip(*parts, strict=True))
    ),
  )
  if len(ids) <= _DENSE_CLASSES:
    written += [folder / "confusion.npy", folder / "confusion.png"]
    with files.atomic_write(written[-2]) as f:
      np.save(f, matrix.toarray())
    _draw(written[-1], matrix.toarray(), names)
  return written


def _draw(path: pathlib.Path, matrix: np.ndarray, names: Sequence[str]) -> None:
  """A heat map: of each true class, the share that went to each other."""
  from matplotlib import colors, figure, rc_context

  shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  named = len(names) <= _NAMED_CLASSES
  side = max(5.0, 0.3 * len(names)) if named else 9.0
  # A name may hold a $, and characters that the font lacks.
  with rc_context({"text.parse_math": False}), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
    drawing = figure.Figure(figsize=(side + 1, side), layout="constrained")
    axes = drawing.subplots()
    # By the root, as rare mistakes are what one looks for.
    norm = colors.PowerNorm(0.5, vmin=0, vmax=1)
    drawn = axes.imshow(shares, cmap="magma_r", norm=norm)
    axes.set(xlabel="predicted", ylabel="true")
    if named:
      places, shown = np.arange(len(names)), [*map(errors.printable, names)]
      axes.set_xticks(places, shown, rotation=90)
      axes.set_yticks(places, shown)
    drawing.colorbar(drawn, ax=axes, label="share of the true class")
    with files.atomic_write(path) as f:
      drawing.savefig(f, dpi=120, format="png")


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


def _describe(metrics: dict[str, Any], loss: str) -> str:
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
