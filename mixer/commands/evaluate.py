r"""Evaluates a trained model on a data set.

  python -m mixer evaluate --checkpoint=runs/b16
  python -m mixer evaluate --checkpoint=imagenet1k/Mixer-B_16 \
    --data=imagenet2012 --split=validation
  python -m mixer evaluate --checkpoint=imagenet1k/Mixer-B_16 \
    --data=imagenet2012_real --split=validation
  python -m mixer evaluate --checkpoint=imagenet21k/Mixer-B_16 \
    --data=oxford_iiit_pet --split=test --fewshot

Published for imagenet1k/Mixer-B_16: 76.44 % on ImageNet, 82.36 % with the ReaL
labels. A run of ours knows its own data set. Prints top-1, top-5, balanced
accuracy (the mean over classes), macro F1, loss and ReaL accuracy; writes
results.json, per_class.csv, confusion.csv (and .npy, .png where classes are
few), with --examples=FILE.csv (or .parquet) every example. With --fewshot,
ridge regression on frozen features takes the place of the head.
"""

from __future__ import annotations

import argparse
import collections
import csv
import itertools
import pathlib
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
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

_PER_DEVICE = 64
_ROWS = 1 << 14  # Of a Parquet file, written together.
# Up to so many classes the confusion matrix is written whole, and drawn; and
# the drawing has room for their names.
_DENSE_CLASSES, _NAMED_CLASSES = 1_000, 40
_LINES = {
  "accuracy": "top-1         {:.2%}",
  "accuracy_top5": "top-5         {:.2%}",
  "balanced_accuracy": "balanced      {:.2%}",
  "macro_f1": "macro F1      {:.2%}",
  "loss": "loss          {:.4f} nats ({loss})",
  "real_accuracy": "ReaL          {:.2%}",
  "real_examples": "              of {:,} examples with valid labels",
  "not_numbers": "NaN           {:,} examples, counted as wrong",
  "examples": "examples      {:,}",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  add = parser.add_argument
  text = "data set, as TFDS names it, or module:function; a run's own"
  add("--data", default="", help=text)
  add("--split", default="", help="a run's own, else validation")
  add("--data_dir", default="", help=flags.DATA_DIR)
  add("--batch_size", type=flags.positive, help="over all devices")
  text = "outputs are the data set's classes, in order, whatever their names"
  add("--same_classes", action="store_true", help=text)
  add("-o", "--output", default="", metavar="DIR", help="runs/evaluate/...")
  text = "list every example: file, label, prediction, score; .csv or .parquet"
  add("--examples", type=pathlib.Path, metavar="FILE", help=text)
  few = parser.add_argument_group("few-shot").add_argument
  few("--fewshot", action="store_true", help="ridge regression on features")
  few("--train_split", default="train", help="labelled examples come from it")
  few("--shots", type=_shots, default=(1, 5, 10, 25), help="as in 1,5,10,25")
  few("--seeds", type=flags.positive, default=3, help="draws of each")
  few("--l2", type=float, default=1024.0, help="weight of the ridge")


def _shots(value: str) -> tuple[int, ...]:
  return tuple(flags.positive(part) for part in value.split(","))


def main(args: argparse.Namespace) -> None:
  """Evaluates as the command line says."""
  if args.fewshot and args.examples:
    raise UserError("leave out --examples: --fewshot doesn't use the head.")
  model = trained.of_flags(args)
  own = model.config.data if model.config else None
  data = args.data or (own.name if own else "")
  data_dir = args.data_dir or (own.data_dir if own else "")
  if not data:
    raise UserError(
      f"--checkpoint={args.checkpoint} is no run that knows its data set: name "
      "one with --data, such as --data=imagenet2012 --split=validation."
    )
  usual = own.eval_split if own and data == own.name else "validation"
  split = split_lib.open_split(data, args.split or usual, data_dir)
  classes, devices = split.class_names, jax.device_count()
  wished = args.batch_size or _PER_DEVICE * devices
  batch_size = -(-wished // devices) * devices
  columns, lacking, matched = None, "", "as they are"
  if not args.fewshot:
    columns = evaluate.match(model, classes, data, same=args.same_classes)
  if columns is not None:
    lacking = ", ".join(classes[k] for k in np.flatnonzero(columns < 0))
    matched = f"{len(classes):,} of the {model.num_classes:,} outputs"
    if lacking:
      matched += f"; no output, so wrong and without loss: {lacking}"
  height, width = model.image_size
  kind = "fewshot" if args.fewshot else "head"
  words = (args.checkpoint, data, split.expression, f"{height}x{width}", kind)
  slug = re.sub(r"[^\w.-]+", "_", "-".join(words)).strip("_.")
  folder = pathlib.Path(args.output or f"runs/evaluate/{slug}").expanduser()
  # Before the work that they are of.
  for path in filter(None, (folder / "results.json", args.examples)):
    files.make_parent(path)
  short = model.short_side or "any size"
  print(
    f"checkpoint    {model.origin}\n"
    f"data set      {data}, {split.expression}: {len(split):,} examples, "
    f"{len(classes):,} classes\n"
    f"images        {height} x {width} px, out of a short side of {short}\n"
    f"classes       {matched}"
  )

  mesh = sharding.make_mesh()
  params = jax.device_put(model.params, sharding.replicated(mesh))
  functions = train_step.Inference(
    model.module, model.loss, len(classes), mesh, columns=columns
  )

  def batches(some: split_lib.Split) -> evaluate.Batches:
    how: Any = {"interpolation": model.interpolation}
    size, short_side = model.image_size, model.short_side
    return evaluate.batches(some, size, short_side, batch_size, **how)

  metrics: dict[str, Any] = {"examples": len(split)}
  if args.fewshot:
    train = split_lib.open_split(data, args.train_split, data_dir)
    task = evaluate.Fewshot(train, split, args.shots, args.seeds, args.l2)
    for shots, draws in task.accuracies(
      lambda some: evaluate.features(functions, params, batches(some))
    ).items():
      name, mean = f"fewshot/{shots}shot", float(np.mean(draws))
      metrics |= {name: mean, f"{name}_draws": draws}
      spread = f"{min(draws):.2%} to {max(draws):.2%} over {len(draws)} draws"
      print(f"{f'{shots}shot':<14}{mean:.2%} ({spread})")
  else:
    counts = evaluate.ConfusionCounts(len(classes), split.valid_labels)
    found = evaluate.examples(functions, params, batches(split))
    rows = _rows(split, found, counts, bool(args.examples))
    if args.examples:
      _write_examples(args.examples, rows)
    collections.deque(rows, 0)  # Exhausts them.
    metrics = counts.metrics()
    if lacking:
      del metrics["loss"]
    _write_confusions(folder, counts, classes)
  for name, line in _LINES.items():
    if name in metrics:
      print(line.format(metrics[name], loss=model.loss))
  results = {
    "metrics": metrics,
    "checkpoint": args.checkpoint,
    "origin": model.origin,
    "data": data,
    "split": split.expression,
    "num_classes": len(classes),
    "classes_matched": matched,
    "image_size": [height, width],
    "short_side": model.short_side,
    "interpolation": model.interpolation,
    "dtype": np.dtype(model.module.dtype).name,
    "loss": model.loss,
    "batch_size": batch_size,
    "environment": runtime.environment(),
  }
  workdir.write_json(folder / "results.json", results)
  print(f"written to    {folder}")


def _rows(
  split: split_lib.Split,
  batches: Iterable[dict[str, np.ndarray]],
  counts: evaluate.ConfusionCounts,
  listed: bool,
) -> Iterator[tuple[Any, ...]]:
  """Counts all examples; gives the row of each for `--examples` if `listed`."""
  names, done = split.class_names, 0
  with progress.Progress() as bar:
    for part in batches:
      counts.add(part)
      places = range(done, done + len(part["label"]))
      done = places.stop
      for k, record in enumerate(split.read(places) if listed else ()):
        best, found = part["classes"][k, 0], (None, None)
        if best != evaluate.NO_CLASS:
          found = names[best], part["scores"][k, 0]
        label = names[part["label"][k]]
        yield (places[k], record.get("file_name", ""), label, *found)
      bar.show("evaluating", done, len(split), done)


def _write_examples(
  path: pathlib.Path, rows: Iterator[tuple[Any, ...]]
) -> None:
  """Writes the table of examples as they come."""
  columns = "index file label prediction score"
  if path.suffix.lower() != ".parquet":
    return _csv(path, columns, rows)
  # Here, as it takes a while that others needn't wait.
  import pyarrow
  import pyarrow.parquet

  text = pyarrow.string()
  types = pyarrow.int64(), text, text, text, pyarrow.float32()
  schema = pyarrow.schema(list(zip(columns.split(), types, strict=True)))
  with (
    files.atomic_write(path) as f,
    pyarrow.parquet.ParquetWriter(f, schema) as writer,
  ):
    while some := [*itertools.islice(rows, _ROWS)]:
      index, file, *others = zip(*some, strict=True)
      # Arrow's strings are UTF-8, names of files needn't be.
      values = index, map(errors.printable, file), *others
      arrays = [
        pyarrow.array(list(v), t) for v, t in zip(values, types, strict=True)
      ]
      writer.write(pyarrow.record_batch(arrays, schema=schema))


def _csv(
  path: pathlib.Path, columns: str, rows: Iterable[Sequence[Any]]
) -> None:
  with files.atomic_write(path, "w") as f:
    writer = csv.writer(f, lineterminator="\n")
    writer.writerow(columns.split())
    writer.writerows(rows)


def _write_confusions(
  folder: pathlib.Path, counts: evaluate.ConfusionCounts, ids: tuple[str, ...]
) -> None:
  """Writes per_class.csv, confusion.csv and, with few classes, .npy and .png.

  `ids` are the classes as the data set names them.
  """
  names, matrix = trained.names_for_people(ids), counts.confusion.tocoo()
  columns = counts.examples, counts.confusion.diagonal(), *counts.confused()
  rows = []
  for k, row in enumerate(zip(*columns, strict=True)):
    examples, correct, other, times = row
    share = f"{correct / examples:.6f}" if examples else ""
    which = (ids[other], names[other]) if times else ("", "")
    rows.append((ids[k], names[k], examples, correct, share, *which, times))
  heads = "class name examples correct accuracy confused_with"
  _csv(folder / "per_class.csv", f"{heads} confused_with_name confused", rows)
  cells = sorted(zip(matrix.row, matrix.col, matrix.data, strict=True))
  _csv(
    folder / "confusion.csv",
    "true predicted count true_name predicted_name",
    ((ids[k], ids[p], n, names[k], names[p]) for k, p, n in cells),
  )
  if len(ids) <= _DENSE_CLASSES:
    with files.atomic_write(folder / "confusion.npy") as f:
      np.save(f, matrix.toarray())
    _draw(folder / "confusion.png", matrix.toarray(), names)


def _draw(path: pathlib.Path, matrix: np.ndarray, names: Sequence[str]) -> None:
  """A heat map: of each true class, the share that went to each other."""
  from matplotlib import colors, figure, rc_context

  shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  shown = (
    [*map(errors.printable, names)] if len(names) <= _NAMED_CLASSES else []
  )
  side = max(5.0, 0.3 * len(shown)) if shown else 9.0
  # A name may hold a $, and characters that the font lacks.
  with rc_context({"text.parse_math": False}), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
    drawing = figure.Figure(figsize=(side + 1, side), layout="constrained")
    axes = drawing.subplots()
    # By the root, as rare mistakes are what one looks for.
    norm = colors.PowerNorm(0.5, vmin=0, vmax=1)
    drawn = axes.imshow(shares, cmap="magma_r", norm=norm)
    axes.set(xlabel="predicted", ylabel="true")
    if shown:
      axes.set_xticks(range(len(shown)), shown, rotation=90)
      axes.set_yticks(range(len(shown)), shown)
    drawing.colorbar(drawn, ax=axes, label="share of the true class")
    with files.atomic_write(path) as f:
      drawing.savefig(f, dpi=120, format="png")
