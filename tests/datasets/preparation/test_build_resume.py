"""However a preparation is stopped: the next one ends it, byte for byte."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from tensorflow_datasets.core import read_only_builder, registered

from mixer.datasets.preparation import build, build_files
from tests.conftest import ROOT
from tests.datasets.preparation import build_fakes
from tests.datasets.preparation.build_fakes import MEMBERS, OPTIONS, Fake, Fakes

SMALL = MEMBERS[270:330]  # With all that is wrong in there.
SMALL_OPTIONS = {
  "hold_out": {"test": 3, "validation": 4},
  "drop_duplicates": True,
  "chunk_images": 16,
}


def prepare(root, source, **options) -> pathlib.Path:
  options = {"workers": 0} | SMALL_OPTIONS | options
  builder = Fakes(
    source=source, options=build.Options(**options), data_dir=str(root)
  )
  return pathlib.Path(builder.prepare().data_dir)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, str]:
  """Digests of the files of a small set."""
  folder = prepare(tmp_path_factory.mktemp("unbroken"), Fake(SMALL))
  found = build_fakes.digests(folder)
  assert len(found) == 13, found.keys()
  return found


@pytest.mark.parametrize("drop_duplicates", [False, True])
def test_drawn_by_class(tmp_path, drop_duplicates):
  """Where an image went decides where equal ones go, and is remembered."""
  members = [
    *(build_fakes.member(k, data=build_fakes.png(k % 23)) for k in range(60)),
    build_fakes.member(60, data=b"bad"),
  ]
  options = {"hold_out": {"test": 0.2, "validation": 0.1}} | {
    "drop_duplicates": drop_duplicates
  }
  one = prepare(tmp_path / "one", Fake(members, by_class=True), **options)
  for stop_at in (17, 33, 61):
    with pytest.raises(KeyboardInterrupt):
      last = build_fakes.member(99)
      source = Fake([*members, last], stop_at=stop_at, by_class=True)
      source.class_sizes = Fake(members, by_class=True).class_sizes
      prepare(tmp_path / "other", source, **options)
  source = Fake(members, by_class=True)
  other = prepare(tmp_path / "other", source, **options)
  assert source.read == 61 - 48  # Three chunks of 16 were committed.
  assert build_fakes.digests(other) == build_fakes.digests(one)


def nothing_there(root) -> None:
  with pytest.raises(registered.DatasetNotFoundError):
    read_only_builder.builder_from_files("fakes", data_dir=str(root))


def left_over(root) -> set[str]:
  return {path.name for path in (root / "fakes").iterdir()}


@pytest.mark.parametrize("stop_at", [0, 1, 16, 17, 40, 59])
def test_stopped_while_reading(tmp_path, unbroken, stop_at):
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, Fake(SMALL, stop_at=stop_at))
  nothing_there(tmp_path)
  source = Fake(SMALL)
  assert build_fakes.digests(prepare(tmp_path, source)) == unbroken
  # At once: a task isn't handed on before it is full.
  assert source.read == len(SMALL) - stop_at // 16 * 16
  assert left_over(tmp_path) == {"1.0.0", ".preparing-1.0.0.lock"}


def test_stopped_again_and_again(tmp_path, unbroken):
  for stop_at in (5, 20, 33, 20, 50):
    with pytest.raises(KeyboardInterrupt):
      prepare(tmp_path, Fake(SMALL, stop_at=max(stop_at, 48)))
  assert build_fakes.digests(prepare(tmp_path, Fake(SMALL))) == unbroken


def test_stopped_before_and_after_anything_is_on_the_disk(
  tmp_path, unbroken, monkeypatch
):
  """Stops at each call that waits for the disk or renames, one after another.

  What a kill there leaves is what these calls have done: nothing is mended on
  the way out but for shards, which are closed.
  """
  count = 0
  stop = 0

  class Killed(BaseException):
    pass

  def stopping(function):
    def call(*args):
      nonlocal count
      count += 1
      if count == stop:
        raise Killed
      function(*args)
      count += 1
      if count == stop:
        raise Killed

    return call

  monkeypatch.setattr(build_files, "sync", stopping(build_files.sync))
  monkeypatch.setattr(os, "rename", stopping(os.rename))
  monkeypatch.setattr(os, "replace", stopping(os.replace))
  while True:
    stop += 1
    count = 0
    root = tmp_path / str(stop)
    try:
      prepare(root, Fake(SMALL))
    except Killed:
      pass
    else:
      break
    assert (root / "fakes/1.0.0").exists() == (
      (root / "fakes/1.0.0/dataset_info.json").exists()
    )
    count = -10_000
    assert build_fakes.digests(prepare(root, Fake(SMALL))) == unbroken
    prepare(root, Fake(SMALL))
    assert left_over(root) == {"1.0.0", ".preparing-1.0.0.lock"}
  assert stop > 100


def test_workers_make_the_same(tmp_path, unbroken):
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, Fake(SMALL, stop_at=35), workers=2)
  folder = prepare(tmp_path, Fake(SMALL), workers=2)
  assert build_fakes.digests(folder) == unbroken


def start(root, workers: int) -> subprocess.Popen:
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "tests.datasets.preparation.build_fakes",
      str(root),
      str(workers),
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def session(leader: int) -> set[int]:
  """The processes that a process has started, zombies aside."""
  found = set()
  for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
      fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
      continue
    if int(fields[3]) == leader and fields[0] != "Z":
      found.add(int(stat.parent.name))
  return found


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
  whole = prepare(tmp_path / "whole", Fake(MEMBERS), **OPTIONS)
  rng = random.Random(0)
  root = tmp_path / "killed"
  kills = 0
  for workers in (0, 2, 0, 1, 0, 0, 2, 0):
    process = start(root, workers)
    assert process.stdout is not None
    # The library's start takes longer than all the rest: first a line of it.
    line = process.stdout.readline()
    assert line.startswith("reading"), line + process.stdout.read()
    time.sleep(rng.uniform(0.0, 0.4))
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
      kills += 1
      nothing_there(root)
    with process:  # Waits, and closes its output.
      process.stdout.read()
    deadline = time.monotonic() + 10
    while session(process.pid) and time.monotonic() < deadline:
      time.sleep(0.05)
    assert not session(process.pid), "workers live on"
    if (root / "fakes/1.0.0").exists():
      break
  assert kills >= 5
  final = prepare(root, Fake(MEMBERS), **OPTIONS)
  assert build_fakes.digests(final) == build_fakes.digests(whole)
  assert left_over(root) == {"1.0.0", ".preparing-1.0.0.lock"}
