"""Whether processes run the same thing; with real ones in tests/reliability."""

import copy
import json

import pytest

from configs import smoke
from mixer.cluster import gate


def facts():
  return gate.facts(smoke.get_config(), {"workdir": "/runs/x"})


def test_equal_processes_have_no_difference():
  names = ["process 0 on a", "process 1 on b", "process 2 on c"]
  told = [json.loads(json.dumps(facts())) for _ in names]
  assert gate.differences(told, names) == []


@pytest.mark.parametrize(
  ("group", "key", "value"),
  [
    ("config", "batch_size", 7),
    ("code", "mixer/model.py", "0123"),
    ("versions", "jax", "0.0.1"),
    ("machine", "local_devices", 3),
    ("run", "workdir", "/runs/y"),
  ],
)
def test_a_difference_names_who_and_what(group, key, value):
  told = [facts(), facts(), copy.deepcopy(facts())]
  assert key in told[0][group]
  told[2][group][key] = value
  (line,) = gate.differences(told, ["process 0 on a", "1 on b", "2 on c"])
  assert line == (
    f"2 on c: {group} {key}: {value!r}, where process 0 on a has "
    f"{told[0][group][key]!r}"
  )


def test_a_missing_file_is_a_difference():
  told = [facts(), copy.deepcopy(facts())]
  del told[0]["code"]["train.py"]
  (line,) = gate.differences(told, ["a", "b"])
  assert "code train.py" in line and "where a has '(none)'" in line


def test_how_a_host_reads_its_data_is_its_own_matter():
  config = smoke.get_config()
  before = gate.facts(config, {})
  config.data.threads += 1
  config.data.data_dir = "/elsewhere"
  assert gate.facts(config, {}) == before
  config.seed += 1
  assert gate.facts(config, {}) != before


def test_a_single_process_passes():
  gate.pass_together(smoke.get_config(), {})
