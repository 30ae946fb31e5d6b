import csv
import os
import pathlib

import numpy as np
import pytest
from pyarrow import parquet

from mixer import errors, predictor
from mixer.prediction import feature_files


def rows(count, channels=5):
  """Those whose number ends in 3 have a problem."""
  rng = np.random.default_rng(0)
  for k in range(count):
    values = rng.normal(size=channels).astype(np.float32)
    if k % 10 == 3:
      values = np.full(channels, np.nan, np.float32)
      yield predictor.Features(f"{k}, ä.jpg", values, "it is cut off")
    else:
      yield predictor.Features(f"{k}, ä.jpg", values)


def write(path, count):
  with feature_files.open_file(str(path)) as file:
    for one in rows(count):
      file.write(one)


def table(path):
  with open(path, newline="", encoding="utf-8") as f:
    return [(row["path"], row["error"]) for row in csv.DictReader(f)]


@pytest.mark.parametrize("count", [1, 25])
def test_npy(tmp_path, count):
  write(tmp_path / "f.npy", count)
  array = np.load(tmp_path / "f.npy", mmap_mode="r")
  want = np.stack([r.values for r in rows(count)])
  assert array.dtype == np.float32
  np.testing.assert_array_equal(array, want)
  assert table(tmp_path / "f.csv") == [
    (r.source, r.problem) for r in rows(count)
  ]
  assert sorted(os.listdir(tmp_path)) == ["f.csv", "f.npy"]


def test_parquet(tmp_path, monkeypatch):
  monkeypatch.setattr(feature_files, "_ROW_GROUP", 10)
  write(tmp_path / "f.parquet", 25)
  assert parquet.ParquetFile(tmp_path / "f.parquet").num_row_groups == 3
  found = parquet.read_table(tmp_path / "f.parquet")
  assert found.schema.names == ["path", "features", "error"]
  assert str(found.schema.field("features").type).startswith("fixed_size_list")
  want = list(rows(25))
  for row, one in zip(found.to_pylist(), want, strict=True):
    assert row["path"] == one.source
    assert row["error"] == (one.problem or None)
    if one.problem:
      assert row["features"] is None
    else:
      np.testing.assert_array_equal(np.float32(row["features"]), one.values)
  assert os.listdir(tmp_path) == ["f.parquet"]


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
def test_what_was_written_stays_usable(tmp_path, name):
  with (
    pytest.raises(KeyboardInterrupt),
    feature_files.open_file(str(tmp_path / name)) as file,
  ):
    for one in rows(7):
      file.write(one)
    raise KeyboardInterrupt
  part = tmp_path / f"{name}.partial"
  if name == "f.npy":
    assert np.load(part).shape == (7, 5)
    assert len(table(tmp_path / "f.csv.partial")) == 7
  else:
    assert parquet.read_table(part).num_rows == 7
  assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["f.npy", "f.parquet"])
def test_nothing_written_leaves_nothing(tmp_path, name):
  (tmp_path / name).write_text("older")
  with (
    pytest.raises(ZeroDivisionError),
    feature_files.open_file(str(tmp_path / name)),
  ):
    raise ZeroDivisionError
  assert os.listdir(tmp_path) == [name]
  assert (tmp_path / name).read_text() == "older"


def test_refusals(tmp_path):
  with pytest.raises(errors.UserError, match="ends in .npy or .parquet"):
    feature_files.open_file(str(tmp_path / "f.txt"))
  (tmp_path / "g.csv").mkdir()
  with pytest.raises(errors.UserError, match="g.csv can't .* is a folder"):
    feature_files.open_file(str(tmp_path / "g.npy"))
  assert os.listdir(tmp_path) == ["g.csv"]


def test_a_disk_that_is_full(tmp_path, monkeypatch):
  def refuse(*args, **kwargs):
    raise OSError(28, "No space left on device")

  with (
    pytest.raises(errors.UserError, match="f.npy can't be written: No space"),
    feature_files.open_file(str(tmp_path / "f.npy")) as file,
  ):
    for one in rows(3):
      file.write(one)
    monkeypatch.setattr(pathlib.Path, "replace", refuse)
  assert not (tmp_path / "f.npy").exists()
