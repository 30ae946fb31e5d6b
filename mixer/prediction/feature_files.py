"""Features of many images on disk, written as they come.

  FILE.npy      float32 [N, C], with FILE.csv beside it: `path` and `error` of
                each row
  FILE.parquet  columns `path`, `features` (a fixed-size list of float32) and
                `error`

Each image has its row, so that rows go with the list of images. Where one can't
be used, `error` says why, and its features are NaN, or null in .parquet.
"""

import pathlib
from types import TracebackType
from typing import Any, Self

import numpy as np

from mixer import errors, files, predictor
from mixer.errors import UserError
from mixer.prediction import formats, partial

_ROW_GROUP = 4_096


def open_file(path: str) -> "FeatureFile":
  """Opens one for writing; use it as a context manager.

  Raises:
    UserError: another suffix, a package that is missing, or it can't be
      written there.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix == ".npy":
    return _Npy(path)
  if suffix == ".parquet":
    return _Parquet(path)
  raise UserError(
    f"features can't be written to {path}: expected a name that ends in .npy "
    "or .parquet."
  )


class FeatureFile:
  """A file, or files, of features.

  Left without an exception all are put into their places; else what was
  written stays beside them, whole up to there.

  Attributes:
    files: that are written.
    rows: how many there are so far.
  """

  files: list[partial.Partial]
  rows = 0

  def write(self, one: predictor.Features) -> None:
    """Adds a row.

    Raises:
      UserError: the disk refuses.
    """
    with files.writing(self.files[0].path):
      self._write(one)
    self.rows += 1

  def _write(self, one: predictor.Features) -> None:
    raise NotImplementedError

  def _end(self) -> None:
    """Makes what is written a whole file."""
    raise NotImplementedError

  def __enter__(self) -> Self:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if not self.rows:
      self._abandon()
      return
    with files.writing(self.files[0].path):
      self._end()
    if kind is None:
      for file in self.files:
        file.commit()

  def _abandon(self) -> None:
    for file in self.files:
      file.drop()


class _Npy(FeatureFile):
  def __init__(self, path: str):
    place = pathlib.Path(path)
    self.files = [partial.Partial(place)]
    try:
      self.files.append(partial.Partial(place.with_suffix(".csv")))
    except UserError:
      self._abandon()
      raise
    self._array = self.files[0].open()
    if not self._array.seekable():
      raise UserError(
        f"features can't be written to {path}: it is a pipe; name a file."
      )
    self._table = open(
      self.files[1].part, "w", newline="", encoding="utf-8",
      errors=errors.NAMES,
    )  # fmt: skip
    self._table.write(formats.csv_line(["path", "error"]))
    self._channels = 0

  def _write(self, one: predictor.Features) -> None:
    if not self.rows:
      self._channels = len(one.values)
      self._header(0)
    self._array.write(one.values.astype("<f4").tobytes())
    self._table.write(formats.csv_line([one.source, one.problem]))

  def _header(self, rows: int) -> None:
    # numpy leaves room in it for the first axis to grow.
    np.lib.format.write_array_header_1_0(
      self._array,
      {"descr": "<f4", "fortran_order": False, "shape": (rows, self._channels)},
    )

  def _end(self) -> None:
    self._array.seek(0)
    self._header(self.rows)
    self._array.close()
    self._table.close()

  def _abandon(self) -> None:
    for name in ("_array", "_table"):
      if hasattr(self, name):
        partial.close(getattr(self, name))
    super()._abandon()


class _Parquet(FeatureFile):
  def __init__(self, path: str):
    # Here, as it takes a while that others needn't wait.
    import pyarrow
    import pyarrow.parquet

    self.files = [partial.Partial(path)]
    self._arrow = pyarrow
    self._writer: Any = None
    self._waiting: list[predictor.Features] = []

  def _write(self, one: predictor.Features) -> None:
    if self._writer is None:
      list_ = self._arrow.list_(self._arrow.float32(), len(one.values))
      text = self._arrow.string()
      columns = [("path", text), ("features", list_), ("error", text)]
      self._writer = self._arrow.parquet.ParquetWriter(
        self.files[0].part, self._arrow.schema(columns)
      )
    self._waiting.append(one)
    if len(self._waiting) == _ROW_GROUP:
      self._write_group()

  def _write_group(self) -> None:
    some, self._waiting = self._waiting, []
    problems = np.array([bool(f.problem) for f in some])
    flat = self._arrow.array(np.concatenate([f.values for f in some]))
    vectors = self._arrow.FixedSizeListArray.from_arrays(
      flat, len(some[0].values), mask=self._arrow.array(problems)
    )
    # Arrow's strings are UTF-8, names of files needn't be.
    paths = [f.source.encode("utf-8", "replace").decode() for f in some]
    errors = [f.problem or None for f in some]
    schema = self._writer.schema
    self._writer.write_table(
      self._arrow.table(
        [
          self._arrow.array(paths, schema.field("path").type),
          vectors,
          self._arrow.array(errors, schema.field("error").type),
        ],
        schema=schema,
      )
    )

  def _end(self) -> None:
    if self._waiting:
      self._write_group()
    self._writer.close()
