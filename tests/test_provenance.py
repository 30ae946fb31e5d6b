"""Where a checkpoint says that it comes from."""

import hashlib
import subprocess

import pytest

from mixer import provenance
from tests import conftest


def test_the_code_is_what_training_runs():
  hashes = provenance.code()
  assert {
    "train.py",
    "input_pipeline.py",
    "mixer/train_step.py",
  } <= hashes.keys()
  assert "mixer/datasets/split.py" in hashes
  assert not any(name.startswith(("tests", "tools")) for name in hashes)
  content = (conftest.ROOT / "train.py").read_bytes()
  assert hashlib.sha256(content).hexdigest().startswith(hashes["train.py"])


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """Source files of another place."""
  (tmp_path / "mixer").mkdir()
  for name in ("train.py", "input_pipeline.py", "mixer/model.py"):
    (tmp_path / name).write_text(name)
  monkeypatch.setattr(provenance, "_ROOT", tmp_path)
  for function in (provenance.code, provenance.source, provenance.commit):
    function.cache_clear()
  yield tmp_path
  for function in (provenance.code, provenance.source, provenance.commit):
    function.cache_clear()


def test_one_hash_tells_of_every_file(checkout):
  before = provenance.source()
  (checkout / "mixer" / "model.py").write_text("another")
  for function in (provenance.code, provenance.source):
    function.cache_clear()
  assert provenance.source() != before


def test_the_commit(checkout):
  assert provenance.commit() == ""  # Also within another project's checkout.
  provenance.commit.cache_clear()

  def git(*words):
    return subprocess.run(
      ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
      cwd=checkout,
      check=True,
      capture_output=True,
      text=True,
    ).stdout.strip()

  git("init", "-q")
  assert provenance.commit() == ""  # None yet.
  provenance.commit.cache_clear()
  git("commit", "-q", "--allow-empty", "-m", "first")
  assert len(provenance.commit()) == 12
  assert git("rev-parse", "HEAD").startswith(provenance.commit())


@pytest.fixture
def machine(monkeypatch):
  """What the next start runs on; to be changed."""
  about = {"device_kind": "cpu", "num_devices": 1, "versions": {"jax": "1"}}
  monkeypatch.setattr(provenance, "environment", lambda: dict(about))
  return about


def test_starts_on_the_same_machine_are_one_entry(machine):
  kept = provenance.describe_start(None, 0, "from random weights")
  for step in (10, 20):
    kept = provenance.describe_start(kept, step, "going on")
  assert kept["history"] == [
    {
      "steps": [0, 10, 20],
      "origin": "from random weights",
      "environment": machine,
    }
  ]
  assert kept["origin"] == "from random weights"


def test_another_machine_is_another_entry(machine):
  first = dict(machine)
  kept = provenance.describe_start(None, 0, "from random weights")
  machine["num_devices"] = 8
  kept = provenance.describe_start(kept, 10, "going on")
  kept = provenance.describe_start(kept, 20, "going on")
  machine |= first
  kept = provenance.describe_start(kept, 30, "going on")
  assert [e["steps"] for e in kept["history"]] == [[0], [10, 20], [30]]
  assert kept["origin"] == "from random weights"
  assert kept["environment"] == first
  assert provenance.describe(kept) == [
    "started at step 0: from random weights",
    "  on 1 x cpu, first host unknown",
    "  jax 1",
    "started at step 10, 20: went on",
    "  on 8 x cpu, first host unknown",
    "  jax 1",
    "started at step 30: went on",
    "  on 1 x cpu, first host unknown",
    "  jax 1",
  ]


def test_a_checkpoint_from_before_there_was_a_history(machine):
  old = {"origin": "going on after step 3", "environment": {"host": "a"}}
  assert provenance.describe(old)[0] == "going on after step 3"
  kept = provenance.describe_start(old, 7, "going on")
  assert [e["steps"] for e in kept["history"]] == [[], [7]]
  assert kept["origin"] == "going on after step 3"
  assert provenance.describe({}) == ["unknown"]


def test_many_starts_are_still_a_line(machine):
  kept = None
  for step in range(20):
    kept = provenance.describe_start(kept, step, "from random weights")
  (line, *_) = provenance.describe(kept)
  assert line.startswith("started at step 0, 1, 2, 3, 4, 5, 6, 7 and 12 more:")


def test_the_real_environment():
  found = provenance.environment()
  assert found["source"] == provenance.source() and len(found["source"]) == 16
  assert found["versions"]["jax"]
