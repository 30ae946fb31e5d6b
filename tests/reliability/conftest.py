"""What no test here may disturb."""

import pathlib

import pytest

from mixer import stop
from tests.reliability import several


@pytest.fixture(scope="session")
def undisturbed_run(data_dir, tmp_path_factory):
  """`undisturbed_run(processes)` -> the workdir of a run that nothing hit."""
  found: dict[int, pathlib.Path] = {}

  def make(processes: int = 1) -> pathlib.Path:
    if processes not in found:
      workdir = tmp_path_factory.mktemp("undisturbed") / "run"
      run = several.Run(data_dir, workdir, processes=processes)
      assert run.wait() == [stop.DONE] * processes, run.err
      found[processes] = workdir
    return found[processes]

  return make
