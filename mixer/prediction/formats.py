"""Predictions as text: for people, for `jq`, for spreadsheets."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer import predictor

NAMES = ("table", "json", "csv")
_COLUMNS = ("path", "rank", "index", "class_id", "name", "score", "error")


def header(name: str) -> str:
  """What stands above all, with the line's end; "" for nothing."""
  return ",".join(_COLUMNS) + "\n" if name == "csv" else ""


def text(name: str, said: predictor.Prediction, width: int = 0) -> str:
  """A prediction in a format, with the line's end.

  Args:
    name: "table": a line a class; nothing about an image with a problem.
      "json": a line an image (JSON Lines), an object with `path`,
      `predictions` (a list of objects with `index`, `class_id`, `name`,
      `score`) and `error`, a string or null. "csv": a line a class with the
      columns of `header`, `rank` from 1; an image with a problem has one line,
      in which only `path` and `error` are set.
    said: about the image.
    width: of a table's first column.
  """
  if name == "json":
    return _json(said)
  if name == "csv":
    return _csv(said)
  return "" if said.problem else "\n".join(said.lines(width)) + "\n"


def _json(said: predictor.Prediction) -> str:
  rows = zip(said.indexes, said.class_ids, said.names, said.scores, strict=True)
  record = {
    "path": said.source,
    "error": said.problem or None,
    "predictions": [
      {"index": k, "class_id": i or None, "name": n, "score": _short(s)}
      for k, i, n, s in rows
    ],
  }
  return json.dumps(record, ensure_ascii=False) + "\n"


def _csv(said: predictor.Prediction) -> str:
  if said.problem:
    return csv_line([said.source, "", "", "", "", "", said.problem])
  rows = zip(said.indexes, said.class_ids, said.names, said.scores, strict=True)
  return "".join(
    csv_line([said.source, rank, k, i, n, _short(s), ""])
    for rank, (k, i, n, s) in enumerate(rows, 1)
  )


def csv_line(fields: Sequence[Any]) -> str:
  """A line of a CSV file, with its end."""
  out = io.StringIO()
  # Told of another end, the writer leaves some that readers see unquoted.
  csv.writer(out).writerow(fields)
  return out.getvalue().removesuffix("\r\n") + "\n"


def _short(score: float) -> float:
  """The shortest number that is the same float32."""
  return float(str(np.float32(score)))
