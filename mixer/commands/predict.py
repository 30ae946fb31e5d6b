r"""Says what is on images, or writes their features.

  python -m mixer predict --checkpoint=runs/my_set photo.jpg
  python -m mixer predict --checkpoint=imagenet1k/Mixer-B_16 DIR '*.png' --top=3
  python -m mixer predict --checkpoint=runs/my_set DIR --format=csv > all.csv
  find . -name '*.jpg' | python -m mixer predict --checkpoint=runs/my_set \
    --files=- --features=features.npy

Images are files, folders, patterns, or what a list names, and are treated as
evaluation treats a data set that is made of them. What comes out are the
classes with the highest scores, probabilities of softmax or sigmoids, as a
table, as JSON Lines or as CSV; or, with --features, what enters the head:
float32 [N, C] in a .npy file with a .csv of `path` and `error` beside it, or a
.parquet file with `path`, `features` and `error`. Everything else goes to
stderr.

A file that can't be read has an `error`, the rest goes on, and the exit code is
1. A file that is written is named FILE.partial until it is whole; Ctrl-C leaves
that, with what was done, and exits with 130.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import csv
import io
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epy

from mixer import cli, errors, files, flags, image_files, progress, stop
from mixer.errors import UserError

with epy.lazy_imports():
  import numpy as np

  from mixer import predictor, trained

_TOP = 5  # Classes of each image.
# Beyond it a file's name pushes its line to the right.
_WIDEST = 60
_SCORES = {
  "softmax": "probabilities (softmax)",
  "sigmoid": "sigmoids, each class for itself",
}
_SUFFIXES = {".json": "json", ".jsonl": "json", ".csv": "csv"}
_COLUMNS = ("path", "rank", "index", "class_id", "name", "score", "error")
_ROW_GROUP = 4_096


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  add = parser.add_argument
  add(
    "images", nargs="*", metavar="IMAGE", help="a file, a folder, or a pattern"
  )
  add(
    "--files",
    default="",
    metavar="LIST",
    help="a file with the path of an image on each line; - for stdin",
  )
  add("--top", type=flags.positive, help=f"how many classes of each; {_TOP}")
  add(
    "--format",
    choices=("table", "json", "csv"),
    default="",
    help="json is an object a line (JSON Lines), csv a line a class; as the "
    "suffix of --output says, else a table",
  )
  add(
    *("-o", "--output"),
    default="",
    metavar="FILE",
    help="write there in place of stdout; FILE.partial until it is whole",
  )
  add(
    "--features",
    default="",
    metavar="FILE",
    help="write pre-logits in place of classes: FILE.npy, with the paths in "
    "FILE.csv, or FILE.parquet",
  )
  add(
    "--batch_size",
    type=flags.positive,
    metavar="IMAGES",
    help="at a time, over all devices; 32 on each",
  )


def main(args: argparse.Namespace) -> int:
  """Does what the command line says; returns the exit code."""
  if args.features and (args.output or args.format or args.top):
    raise UserError(
      "--features writes features alone: leave out --output, --format and "
      "--top, or run twice."
    )
  if not args.images and not args.files:
    raise UserError(
      "no image is named: give files, folders or patterns, or a list of files "
      "by --files."
    )
  paths, empty = image_files.expand(args.images)
  if args.files:
    paths += _listed(args.files)
  for name in empty:
    print(f"error: {name}: there is no image", file=sys.stderr)
  file = os.path.expanduser(args.features or args.output)
  done = failed = 0
  start = time.perf_counter()
  # On a terminal the results show by themselves how far it is.
  quiet = not file and sys.stdout.isatty()
  try:
    # Before the model is loaded: it may be refused.
    with _writer(args, file, paths) as write, progress.Progress() as bar:
      model = predictor.Predictor(trained.of_flags(args), args.batch_size)
      if args.features:
        rows = model.stream_features(paths)
      else:
        rows = model.stream(paths, args.top or _TOP)
      _describe(model.model, len(paths), args)
      start = time.perf_counter()
      for one in rows:
        if one.problem:
          failed += 1
          bar.say(errors.printable(f"error: {one.source}: {one.problem}"))
        write(one)
        done += 1
        if not quiet:
          bar.show("predicting", done, len(paths), done)
  except KeyboardInterrupt as e:
    part = f"{os.path.realpath(file) if os.path.islink(file) else file}.partial"
    kept = f"; they are in {part}" if file and os.path.exists(part) else ""
    name, code = cli.interruption(e)
    stop.say(
      f"{name}: stopped after {done:,} of {len(paths):,} images{kept}",
      sys.stderr,
    )
    return code
  if len(paths) > 1:
    seconds = time.perf_counter() - start
    print(
      f"{done:,} images in {seconds:.1f} s, {done / seconds:,.1f} images/s"
      + (f"; {failed:,} can't be used" if failed else ""),
      file=sys.stderr,
    )
  return stop.FAILED if failed or empty else stop.DONE


def _listed(path: str) -> list[str]:
  """The files that a list names; names are bytes, only lines end."""
  expected = "expected a file with the path of an image on each line, or -"
  try:
    if path == "-":
      data = sys.stdin.buffer.read()
    else:
      data = pathlib.Path(path).expanduser().read_bytes()
  except OSError as e:
    raise UserError(
      f"--files={path} can't be read: {e.strerror}; {expected}."
    ) from e
  lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
  found = [os.fsdecode(x) for line in lines if (x := line.removesuffix(b"\r"))]
  if b"\0" in data or not found:
    raise UserError(f"--files={path} is no list of files; {expected}.")
  return found


def _describe(
  model: trained.Trained, images: int, args: argparse.Namespace
) -> None:
  """Prints what is computed: to stdout only before a table."""
  plain = not (args.features or args.output or args.format in ("json", "csv"))
  height, width = model.image_size
  lines = [
    f"checkpoint    {model.origin}",
    f"images        {images:,}, at {height} x {width} px",
  ]
  if args.features:
    lines.append(
      f"features      {model.module.hidden_dim:,} of each: pre-logits"
    )
  else:
    scores = _SCORES[model.loss]
    lines.append(f"scores        {scores}; {model.num_classes:,} classes")
    if model.unnamed:
      lines.append(f"classes       {model.unnamed}")
  to = sys.stdout if plain else sys.stderr
  print("\n".join(lines) + "\n" * plain, file=to, flush=True)


def _writer(
  args: argparse.Namespace, path: str, paths: Sequence[str]
) -> contextlib.AbstractContextManager[Callable[[Any], None]]:
  """What takes one result after the other, and where they go."""
  suffix = pathlib.Path(path).suffix.lower()
  if path:
    files.make_parent(path)
  if not args.features:
    form = args.format or _SUFFIXES.get(suffix, "table")
    return _text(path, form, min(max(map(len, paths)), _WIDEST))
  if suffix not in (".npy", ".parquet"):
    raise UserError(
      f"features can't be written to {path}: expected a name that ends in .npy "
      "or .parquet."
    )
  return (_npy if suffix == ".npy" else _parquet)(path)


@contextlib.contextmanager
def _text(
  path: str, form: str, width: int
) -> Iterator[Callable[[predictor.Prediction], None]]:
  """Writes predictions, each at once, to a file or, without one, stdout."""
  with contextlib.ExitStack() as stack:
    file: Any = sys.stdout
    write = file.write
    if path:
      file = stack.enter_context(files.atomic_write(path, "w", partial=True))
      write = file.write
    elif form != "table":  # For programs: only a terminal gets it made safe.
      write = file.write_exactly
    head = _csv_line(_COLUMNS) if form == "csv" else ""

    def put(one: predictor.Prediction) -> None:
      nonlocal head
      write(head + _form(form, one, width))
      file.flush()
      head = ""

    yield put


def _form(form: str, one: predictor.Prediction, width: int) -> str:
  """A prediction as text: for people, for `jq`, for spreadsheets."""
  if form == "table":
    return "" if one.problem else "\n".join(one.lines(width)) + "\n"
  # The shortest numbers that are the same float32.
  scores = [float(str(np.float32(score))) for score in one.scores]
  rows = zip(one.indexes, one.class_ids, one.names, scores, strict=True)
  if form == "json":
    record = {
      "path": one.source,
      "error": one.problem or None,
      "predictions": [
        {"index": k, "class_id": i or None, "name": n, "score": s}
        for k, i, n, s in rows
      ],
    }
    return json.dumps(record, ensure_ascii=False) + "\n"
  if one.problem:
    return _csv_line([one.source, "", "", "", "", "", one.problem])
  return "".join(
    _csv_line([one.source, rank, *row, ""]) for rank, row in enumerate(rows, 1)
  )


def _csv_line(fields: Sequence[Any]) -> str:
  out = io.StringIO()
  # Told of another end, the writer leaves some that readers see unquoted.
  csv.writer(out).writerow(fields)
  return out.getvalue().removesuffix("\r\n") + "\n"


@contextlib.contextmanager
def _npy(path: str) -> Iterator[Callable[[predictor.Features], None]]:
  rows = width = 0
  beside = pathlib.Path(path).with_suffix(".csv")
  with (
    files.atomic_write(path, partial=True) as array,
    files.atomic_write(beside, "w", partial=True) as table,
  ):
    if not array.seekable():
      raise UserError(
        f"features can't be written to {path}: it is a pipe; name a file."
      )

    def header() -> None:
      # numpy leaves room in it for the first axis to grow.
      shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, width)}
      np.lib.format.write_array_header_1_0(array, shape)

    def put(one: predictor.Features) -> None:
      nonlocal rows, width
      if not rows:
        width = len(one.values)
        header()
        table.write(_csv_line(["path", "error"]))
      array.write(one.values.astype("<f4").tobytes())
      table.write(_csv_line([one.source, one.problem]))
      rows += 1

    try:
      yield put
    finally:
      if rows:
        array.seek(0)
        header()


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[Callable[[predictor.Features], None]]:
  # Here, as it takes a while that others needn't wait.
  import pyarrow
  from pyarrow import parquet

  writer: Any = None
  waiting: list[predictor.Features] = []
  with files.atomic_write(path, partial=True) as file:

    def write() -> None:
      nonlocal writer
      width = len(waiting[0].values)
      problems = pyarrow.array([bool(one.problem) for one in waiting])
      vectors = pyarrow.FixedSizeListArray.from_arrays(
        np.concatenate([one.values for one in waiting]), width, mask=problems
      )
      # Arrow's strings are UTF-8, names of files needn't be.
      names = [x.source.encode("utf-8", "replace").decode() for x in waiting]
      why = pyarrow.array([x.problem or None for x in waiting], "string")
      rows = pyarrow.table(
        {"path": pyarrow.array(names), "features": vectors, "error": why}
      )
      writer = writer or parquet.ParquetWriter(file, rows.schema)
      writer.write_table(rows)
      waiting.clear()

    def put(one: predictor.Features) -> None:
      waiting.append(one)
      if len(waiting) == _ROW_GROUP:
        write()

    try:
      yield put
    finally:
      if waiting:
        write()
      if writer:
        writer.close()
