"""What the tests of several commands share."""

import pytest

from configs import smoke
from mixer import runtime
from tests import trained_files


@pytest.fixture
def untouched(monkeypatch):
  """Lets main() not change the tests' own process."""
  monkeypatch.setattr(runtime, "start", lambda platform: None)
  monkeypatch.setattr(runtime, "quiet_libraries", lambda: None)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory, data_dir):
  """A workdir of the smoke config; its data set is prepared on first use."""
  workdir = tmp_path_factory.mktemp("digits")
  config = smoke.get_config()
  config.data.data_dir = data_dir
  trained_files.save(workdir, config)
  return workdir
