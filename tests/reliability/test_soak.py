"""Two hundred preemptions of one run leave nothing behind, change nothing."""

import json
import os
import subprocess
import sys

import pytest

from tests import conftest, test_train


def soak(workdir, data_dir, stops, updates, total):
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "tests.reliability.soak",
      str(workdir),
      data_dir,
      str(stops),
      str(updates),
      str(total),
    ],
    cwd=conftest.ROOT,
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=3000,
  )
  assert done.returncode == 0, done.stderr
  return [
    json.loads(line.removeprefix("soak "))
    for line in done.stdout.splitlines()
    if line.startswith("soak ")
  ]


@pytest.mark.slow
def test_two_hundred_preemptions(data_dir, tmp_path):
  starts, updates = 200, 3
  total = starts * updates + 10
  rows = soak(tmp_path / "run", data_dir, starts, updates, total)
  assert [r["ended"] for r in rows] == ["preempted"] * starts + ["done"]
  # In one go: as many updates, no stop.
  soak(tmp_path / "expected", data_dir, 0, 0, total)
  print(rows[20], rows[-1])
  for name in ("descriptors", "threads"):
    assert max(r[name] for r in rows[20:]) <= rows[20][name] + 2, name
  # TensorBoard has a file for each start; all else stays as many.
  files = [r["files"] - r["start"] for r in rows[20:-1]]
  assert max(files) - min(files) <= 4
  # What Orbax reads of a checkpoint's metadata stays in the process, some 1.4
  # MB a start; a real one starts once. Nothing else adds up.
  growth = (rows[-2]["resident"] - rows[20]["resident"]) / (starts - 20)
  assert growth < 2.5e6
  test_train.assert_same_run(tmp_path / "run", tmp_path / "expected")
