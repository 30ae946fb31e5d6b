r"""Says what is on images, or writes their features.

  python -m mixer predict --checkpoint=runs/my_set photo.jpg
  python -m mixer predict --checkpoint=imagenet1k/Mixer-B_16 DIR '*.png' --top=3
  python -m mixer predict --checkpoint=runs/my_set DIR --format=csv > all.csv
  find . -name '*.jpg' | python -m mixer predict --checkpoint=runs/my_set \
    --files=- --features=features.npy

Images are files, folders, patterns, or what a list names, and are treated as
evaluation treats a data set that is made of them. What comes out are the
classes with the highest scores, as a table, JSON Lines or CSV; or, with
--features, what enters the head: float32 [N, C] in a .npy file with a .csv of
`path` and `error` beside it, or a .parquet file. Everything else goes to
stderr. A file that can't be read has an `error`, the rest goes on, and the exit
code is 1. A file that is written is named FILE.partial until it is whole;
Ctrl-C leaves that, with what was done, and exits with 130.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import functools
import io
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
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
_SUFFIXES = {".json": "json", ".jsonl": "json", ".csv": "csv"}
_COLUMNS = ("path", "rank", "index", "class_id", "name", "score", "error")
_ROW_GROUP = 4_096


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  add = parser.add_argument
  text = "a file, a folder, or a pattern"
  add("images", nargs="*", metavar="IMAGE", help=text)
  text = "a file with the path of an image on each line; - for stdin"
  add("--files", default="", metavar="LIST", help=text)
  add("--top", type=flags.positive, help=f"how many classes of each; {_TOP}")
  text = "a class a line, or an image; default: as --output ends, else table"
  add("--format", choices=("table", "json", "csv"), default="", help=text)
  text = "write there in place of stdout; FILE.partial until it is whole"
  add("-o", "--output", default="", metavar="FILE", help=text)
  text = "write pre-logits: FILE.npy, with paths in FILE.csv, or FILE.parquet"
  add("--features", default="", metavar="FILE", help=text)
  text = "at a time, over all devices; 32 on each"
  add("--batch_size", type=flags.positive, metavar="IMAGES", help=text)


def main(args: argparse.Namespace) -> int:
  """Does what the command line says; returns the exit code."""
  path = os.path.expanduser(args.features or args.output)
  suffix = pathlib.Path(path).suffix.lower()
  form = args.format or _SUFFIXES.get(suffix, "table")
  if args.features:
    form, more = suffix[1:], args.output or args.format or args.top
    if more or form not in ("npy", "parquet"):
      raise UserError(
        "--features writes features alone, to FILE.npy or FILE.parquet: leave "
        "out --output, --format and --top, or run twice."
      )
  paths, empty = image_files.expand(args.images)
  paths += _listed(args.files) if args.files else []
  if not paths:
    raise UserError(
      "no image is named: give files, folders or patterns, or a list of files "
      "by --files."
    )
  for name in empty:
    print(f"error: {name}: there is no image", file=sys.stderr)
  if path:  # Before the model is loaded: it may be refused.
    files.make_parent(path)
  model = predictor.Predictor(trained.of_flags(args), args.batch_size)
  if args.features:
    rows: Iterator[Any] = model.stream_features(paths)
  else:
    rows = model.stream(paths, args.top or _TOP)
  to_screen = form == "table" and not path
  _describe(model.model, form, sys.stdout if to_screen else sys.stderr)
  done = failed = 0

  def watched() -> Iterator[Any]:
    nonlocal done, failed
    with progress.Progress() as bar:
      for one in rows:
        if one.problem:
          failed += 1
          bar.say(errors.printable(f"error: {one.source}: {one.problem}"))
        yield one
        done += 1
        # On a terminal the results show by themselves how far it is.
        if path or not sys.stdout.isatty():
          bar.show("predicting", done, len(paths), done)

  try:
    if args.features:
      (_npy if form == "npy" else _parquet)(path, watched())
    else:
      _text(path, form, watched(), min(max(map(len, paths)), _WIDEST))
  except KeyboardInterrupt as e:
    name, code = cli.interruption(e)
    message = f"{name}: stopped after {done:,} of {len(paths):,} images"
    if path and done:
      message += f"; they are in {os.path.realpath(path)}.partial"
    stop.say(message, sys.stderr)
    return code
  return stop.FAILED if failed or empty else stop.DONE


def _listed(path: str) -> list[str]:
  """The files that a list names; names are bytes, only lines end."""
  try:
    path = os.path.expanduser(path)
    with sys.stdin.buffer if path == "-" else open(path, "rb") as f:
      lines = f.read().removeprefix(codecs.BOM_UTF8).split(b"\n")
    names = (line.removesuffix(b"\r") for line in lines)
    found = [os.fsdecode(name) for name in names if name]
    if not found or "\0" in "".join(found):
      raise OSError("it names none")
    return found
  except OSError as e:
    expected = "expected a file with the path of an image on each line, or -"
    raise UserError(f"--files={path}: {expected}; {files.reason(e)}.") from e


def _describe(model: trained.Trained, form: str, to: Any) -> None:
  """Prints what is computed: to stdout only before a table."""
  height, width = model.image_size
  what = f"features      {model.module.hidden_dim:,} of each: pre-logits"
  if form not in ("npy", "parquet"):
    what = f"scores        {model.loss} of {model.num_classes:,} classes"
    what += f"\nclasses       {model.unnamed}" * bool(model.unnamed)
  images = f"images        at {height} x {width} px"
  end = "\n\n" if to is sys.stdout else "\n"
  print(
    f"checkpoint    {model.origin}", images, what, sep="\n", end=end, file=to
  )


def _text(path: str, form: str, rows: Iterator[Any], width: int) -> None:
  if path:
    with files.atomic_write(path, "w", partial=True) as file:
      return _write(file.write, form, rows, width)
  write: Any = functools.partial(print, end="", flush=True)
  if form != "table":  # For programs: only a terminal gets it made safe.
    write = getattr(sys.stdout, "write_exactly", write)
  _write(write, form, rows, width)


def _write(write: Any, form: str, rows: Iterator[Any], width: int) -> None:
  """Writes predictions, each at once."""
  if form == "csv":
    write(_csv_line(_COLUMNS))
  for one in rows:
    # The shortest numbers that are the same float32.
    scores = [float(str(np.float32(score))) for score in one.scores]
    top = zip(one.indexes, one.class_ids, one.names, scores, strict=True)
    if form == "json":
      found = [
        {"index": k, "class_id": i or None, "name": name, "score": score}
        for k, i, name, score in top
      ]
      record = {"path": one.source, "error": one.problem or None}
      record |= {"predictions": found}
      write(json.dumps(record, ensure_ascii=False) + "\n")
    elif form == "csv":
      lines = [[one.source, k, *row, ""] for k, row in enumerate(top, 1)]
      none = [one.source, "", "", "", "", "", one.problem]
      write("".join(map(_csv_line, lines or [none])))
    elif not one.problem:
      write("\n".join(one.lines(width)) + "\n")


def _csv_line(fields: Sequence[Any]) -> str:
  out = io.StringIO()
  # Told of another end, the writer leaves some that readers see unquoted.
  csv.writer(out).writerow(fields)
  return out.getvalue().removesuffix("\r\n") + "\n"


def _npy(path: str, rows: Iterator[predictor.Features]) -> None:
  beside = pathlib.Path(path).with_suffix(".csv")
  count = width = 0
  with (
    files.atomic_write(path, partial=True) as array,
    files.atomic_write(beside, "w", partial=True) as table,
  ):

    def header() -> None:
      # numpy leaves room in it for the first axis to grow.
      shape = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
      array.seek(0)
      np.lib.format.write_array_header_1_0(array, shape)

    try:
      for one in rows:
        if not count:
          width = len(one.values)
          header()
          table.write(_csv_line(["path", "error"]))
        array.write(one.values.astype("<f4").tobytes())
        table.write(_csv_line([one.source, one.problem]))
        count += 1
    finally:
      if count:
        header()


def _parquet(path: str, rows: Iterator[predictor.Features]) -> None:
  import pyarrow  # Here, as it takes a while that others needn't wait.
  from pyarrow import parquet

  writer: Any = None
  waiting: list[predictor.Features] = []
  with files.atomic_write(path, partial=True) as file:

    def write() -> None:
      nonlocal writer
      kind = pyarrow.list_(pyarrow.float32(), len(waiting[0].values))
      values = [None if x.problem else x.values for x in waiting]
      # Arrow's strings are UTF-8, names of files needn't be.
      names = [x.source.encode("utf-8", "replace").decode() for x in waiting]
      why = pyarrow.array([x.problem or None for x in waiting], "string")
      table = pyarrow.table(
        {"path": names, "features": pyarrow.array(values, kind), "error": why}
      )
      writer = writer or parquet.ParquetWriter(file, table.schema)
      writer.write_table(table)
      waiting.clear()

    try:
      for one in rows:
        waiting.append(one)
        if len(waiting) == _ROW_GROUP:
          write()
    finally:
      if waiting:
        write()
      if writer:
        writer.close()
