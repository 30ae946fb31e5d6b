"""Files and lines that an evaluation leaves for people."""

import contextlib
import csv
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from mixer import errors, files
from mixer import tally as tally_lib

# Up to so many classes the matrix is written whole, and drawn.
DENSE_CLASSES = 1_000
_EXAMPLE = ("index", "file", "label", "prediction", "score")
# Up to so many, a drawing has room for their names.
_NAMED_CLASSES = 40


def write(
  folder: pathlib.Path,
  tally: tally_lib.Tally,
  class_ids: Sequence[str],
  class_names: Sequence[str],
) -> list[pathlib.Path]:
  """Writes the confusions and the table of the classes.

  Args:
    folder: that is there; its files of the same names are replaced.
    tally: what was counted.
    class_ids: in the order of the labels, as the data set names them.
    class_names: the same, for people.

  Returns:
    The files: `per_class.csv`; `confusion.csv`, the pairs that occur; with few
    classes `confusion.npy`, int64 `[K, K]`, and `confusion.png` too.
  """
  table = []
  for row in tally.classes():
    other = "" if row.confused_with is None else class_ids[row.confused_with]
    name = "" if row.confused_with is None else class_names[row.confused_with]
    table.append(
      (
        class_ids[row.label],
        class_names[row.label],
        row.examples,
        row.correct,
        f"{row.correct / row.examples:.6f}" if row.examples else "",
        other,
        name,
        row.confused,
      )
    )
  header = (
    "class,name,examples,correct,accuracy,"
    "confused_with,confused_with_name,confused"
  )
  written = [_csv(folder / "per_class.csv", header.split(","), table)]
  found = tally.confusion.tocoo()
  order = np.lexsort((found.col, found.row))
  pairs = zip(
    found.row[order].tolist(),
    found.col[order].tolist(),
    found.data[order].tolist(),
    strict=True,
  )
  written.append(
    _csv(
      folder / "confusion.csv",
      ("true", "predicted", "count", "true_name", "predicted_name"),
      (
        (class_ids[t], class_ids[p], n, class_names[t], class_names[p])
        for t, p, n in pairs
      ),
    )
  )
  if len(class_ids) <= DENSE_CLASSES:
    dense = tally.confusion.toarray()
    written += [folder / "confusion.npy", folder / "confusion.png"]
    with files.atomic_write(written[-2]) as f:
      np.save(f, dense)
    with files.atomic_write(written[-1]) as f:
      _draw(f, dense, class_names)
  return written


@contextlib.contextmanager
def examples(
  path: str | pathlib.Path,
) -> Iterator[Callable[[Sequence[Sequence[Any]]], None]]:
  """Opens a table of the examples; it is there whole or not at all.

  Args:
    path: ends in .csv or .parquet.

  Yields:
    A function that adds rows: index, file, label, prediction, score. One
    without a prediction has None for the last two.

  Raises:
    UserError: it can't be written.
  """
  path = pathlib.Path(path).expanduser()
  files.make_parent(path)
  if path.suffix.lower() == ".csv":
    with files.atomic_write(path, "w") as f:
      writer = csv.writer(f, lineterminator="\n")
      writer.writerow(_EXAMPLE)
      yield writer.writerows
    return
  # Here, as it takes a while that others needn't wait.
  import pyarrow
  import pyarrow.parquet

  types = (pyarrow.int64(), *3 * (pyarrow.string(),), pyarrow.float32())
  schema = pyarrow.schema(list(zip(_EXAMPLE, types, strict=True)))

  def add(rows: Sequence[Sequence[Any]]) -> None:
    # Arrow's strings are UTF-8, names of files needn't be.
    rows = [(i, errors.printable(f), *more) for i, f, *more in rows]
    columns = dict(zip(_EXAMPLE, zip(*rows, strict=True), strict=True))
    table.write_table(pyarrow.table(columns, schema=schema))

  with files.atomic_write(path) as f:
    with pyarrow.parquet.ParquetWriter(f, schema) as table:
      yield add


def _csv(path: pathlib.Path, header: Sequence[str], rows: Any) -> pathlib.Path:
  with files.atomic_write(path, "w") as f:
    writer = csv.writer(f, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
  return path


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
    # By the root, as the rare mistakes are what one looks for.
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


def describe(metrics: Mapping[str, Any], loss: str) -> str:
  """The metrics that there are, one a line.

  Args:
    metrics: of `tally.Tally.metrics`; `images_per_second`; few-shot
      accuracies, `fewshot/Nshot` and their `fewshot/Nshot_draws`.
    loss: its name.
  """
  lines = [
    line.format(metrics[name])
    for name, line in (
      ("accuracy", "top-1         {:.2%}"),
      ("accuracy_top5", "top-5         {:.2%}"),
      ("loss", f"loss          {{:.4f}} nats ({loss})"),
      ("real_accuracy", "ReaL          {:.2%}"),
      ("real_examples", "              of {:,} examples with valid labels"),
      ("not_numbers", "NaN           {:,} examples, counted as wrong"),
      ("examples", "examples      {:,}"),
      ("images_per_second", "images/s      {:,.1f}"),
    )
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
