"""What the tests of several commands share."""

import pytest

from configs import smoke
from tests import trained_files


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory, data_dir):
  """A workdir of the smoke config; its data set is prepared on first use."""
  workdir = tmp_path_factory.mktemp("digits")
  config = smoke.get_config()
  config.data.data_dir = data_dir
  trained_files.save(workdir, config)
  return workdir
