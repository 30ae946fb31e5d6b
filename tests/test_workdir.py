"""Whose a workdir is, and what may change in it."""

import json
import os
import pathlib
import sys

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from configs import smoke
from mixer import config as config_lib
from mixer import workdir
from mixer.errors import UserError

_RESOLVED = {"total": 60, "log_every": 10, "num_classes": 10}


def config_json(**changes):
  """The smoke config as JSON, with `data__name=...` for `data.name`."""
  keys = {key.replace("__", "."): value for key, value in changes.items()}
  config = config_lib.changed(smoke.get_config(), keys)
  return config_lib.to_json(config)


def written(path):
  found = json.loads((path / "config.json").read_text())
  assert len(found.pop("sha256")) == 64
  return found


def refusal(path, *args) -> str:
  """Claims in vain: says why, and checks that nothing has changed."""
  before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
  with pytest.raises(UserError) as caught:
    workdir.claim(path, *args)
  after = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
  assert after == before
  return str(caught.value)


def test_a_missing_folder_is_made(tmp_path):
  path = tmp_path / "runs" / "one"
  workdir.claim(path, config_json(), _RESOLVED)
  assert [p.name for p in path.iterdir()] == ["config.json"]
  assert written(path) == {"config": config_json(), "resolved": _RESOLVED}
  assert workdir.read_config(path) == written(path)


@pytest.mark.parametrize("hidden", [False, True])
def test_an_empty_folder_is_taken(tmp_path, hidden):
  if hidden:
    (tmp_path / ".DS_Store").touch()
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  assert written(tmp_path)["config"]["data"]["name"] == "digits"


def test_a_foreign_folder_is_refused(tmp_path):
  (tmp_path / "thesis.tex").write_text("all of it")
  message = refusal(tmp_path, config_json(), _RESOLVED)
  assert str(tmp_path) in message and "thesis.tex" in message
  assert "name another folder or an empty one" in message


def test_the_same_config_goes_on(tmp_path):
  for _ in range(3):
    workdir.claim(tmp_path, config_json(), _RESOLVED)
  (tmp_path / "checkpoints").mkdir()
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  names = sorted(p.name for p in tmp_path.iterdir())
  assert names == ["checkpoints", "config.json"]


def test_drift_is_refused_with_the_difference(tmp_path):
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  new = config_json(seed=1, optimizer__learning_rate=0.5)
  old = smoke.get_config().optimizer.learning_rate
  message = refusal(tmp_path, new, _RESOLVED)
  assert message.splitlines()[1:3] == [
    f"  optimizer.learning_rate: {old} -> 0.5",
    "  seed: 0 -> 1",
  ]
  # What it offers is accepted as it stands.
  allow = message.split("--allow_change=")[1].rstrip(".").split(",")
  assert allow == ["optimizer.learning_rate", "seed"]
  workdir.claim(tmp_path, new, _RESOLVED, allow)
  assert written(tmp_path)["config"] == new
  # From then on the new config is the workdir's.
  workdir.claim(tmp_path, new, _RESOLVED)
  assert "seed: 1 -> 0" in refusal(tmp_path, config_json(), _RESOLVED)


def test_one_of_two_allowed_is_not_enough(tmp_path):
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  new = config_json(seed=1, batch_size=64)
  message = refusal(tmp_path, new, _RESOLVED, ["seed"])
  assert "batch_size: 32 -> 64" in message and "seed: 0" not in message
  # All that have changed, so that it can be copied.
  assert "--allow_change=batch_size,seed." in message


def test_free_keys_may_differ(tmp_path):
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  flat = config_lib.flatten(smoke.get_config())
  new = config_json(
    **{
      key.replace(".", "__"): not flat[key]
      if isinstance(flat[key], bool)
      else f"{flat[key]}1"
      if isinstance(flat[key], str)
      else flat[key] + ([1] if isinstance(flat[key], list) else 1)
      for key in config_lib.FREE_KEYS
    }
  )
  assert config_lib.differences(config_json(), new).keys() == {
    *config_lib.FREE_KEYS
  }
  resolved = _RESOLVED | {"log_every": 11}
  workdir.claim(tmp_path, new, resolved)
  assert written(tmp_path) == {"config": new, "resolved": resolved}


def test_what_follows_from_the_config_may_not_differ(tmp_path):
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  resolved = _RESOLVED | {"num_classes": 11}
  message = refusal(tmp_path, config_json(), resolved)
  assert "resolved.num_classes: 10 -> 11" in message
  allow = message.split("--allow_change=")[1].rstrip(".").split(",")
  workdir.claim(tmp_path, config_json(), resolved, allow)
  assert written(tmp_path)["resolved"] == resolved


def test_what_follows_from_an_allowed_change_is_allowed(tmp_path):
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  new, resolved = config_json(total="80 steps"), _RESOLVED | {"total": 80}
  message = refusal(tmp_path, new, resolved)
  assert "total: '60 steps' -> '80 steps'" in message
  workdir.claim(tmp_path, new, resolved, ["total"])
  assert written(tmp_path) == {"config": new, "resolved": resolved}


def test_allowing_a_key_that_is_none_is_refused(tmp_path):
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  message = refusal(tmp_path, config_json(), _RESOLVED, ["sede"])
  assert message == (
    "--allow_change=sede: that is no key of the config; did you mean "
    "--allow_change=seed?"
  )
  message = refusal(tmp_path, config_json(), _RESOLVED, ["lr"])
  assert "--allow_change=optimizer.learning_rate?" in message


def test_a_key_that_is_younger_had_its_default(tmp_path):
  old = config_json()
  del old["sweep"], old["image_width"]
  del old["optimizer"]["sam_rho"]
  workdir.claim(tmp_path, old, _RESOLVED)
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  changed = config_json(optimizer__sam_rho=0.1)
  assert "sam_rho: 0.0 -> 0.1" in refusal(tmp_path, changed, _RESOLVED)


def test_a_key_that_is_gone_or_new_can_be_allowed(tmp_path):
  old, new = config_json(), config_json()
  del new["fewshot"]
  new["lookahead"] = 5
  workdir.claim(tmp_path, old, _RESOLVED)
  message = refusal(tmp_path, new, _RESOLVED)
  assert "lookahead: '(absent)' -> 5" in message
  assert "fewshot.seeds: 3 -> '(absent)'" in message
  allow = message.split("--allow_change=")[1].rstrip(".").split(",")
  workdir.claim(tmp_path, new, _RESOLVED, allow)
  assert written(tmp_path)["config"] == new


# The tests may run as root, who may write anywhere but into a file.
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_what_cannot_be_written_is_refused(tmp_path, below):
  (tmp_path / "file").write_text("in the way")
  path = tmp_path / "file" / below
  with pytest.raises(UserError) as caught:
    workdir.claim(path, config_json(), _RESOLVED)
  assert f"--workdir={path} can't be written to (" in str(caught.value)
  assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
  "content",
  [
    "",
    "{",
    '{"config": {}}',
    "[]",
    "3",
    "null",
    '{"config": 3, "resolved": {}}',
    '{"config": {}, "resolved": null}',
    '{"config": ["a"], "resolved": {}}',
    b"\xff\xfe\x00",
  ],
  ids=repr,
)
def test_a_damaged_config_is_refused(tmp_path, content):
  path = tmp_path / "config.json"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  message = refusal(tmp_path, config_json(), _RESOLVED)
  assert message.startswith(f"{path} ")
  assert "start again in an empty --workdir" in message


def test_a_changed_config_is_refused_and_an_older_one_read(tmp_path):
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  path = tmp_path / "config.json"
  text = path.read_text()
  path.write_text(text.replace('"seed": 0', '"seed": 1'))
  assert "is damaged" in refusal(tmp_path, config_json(), _RESOLVED)
  older = json.loads(text)
  del older["sha256"]
  path.write_text(json.dumps(older))
  assert workdir.read_config(tmp_path) == older
  path.write_text(json.dumps(older | {"resolved": {"total": "60"}}))
  message = refusal(tmp_path, config_json(), _RESOLVED)
  assert "resolved.total is no number" in message


def test_reading_what_is_no_workdir(tmp_path):
  with pytest.raises(UserError, match=r"it has no config\.json"):
    workdir.read_config(tmp_path)
  (tmp_path / "config.json").mkdir()
  with pytest.raises(UserError, match=r"is a folder|is no regular file"):
    workdir.read_config(tmp_path)


_JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=10,
)


@given(_JSON)
def test_write_json_can_be_read_back(tmp_path_factory, content):
  path = tmp_path_factory.getbasetemp() / "some.json"
  workdir.write_json(path, content)
  assert json.loads(path.read_text()) == content
  assert path.read_text().endswith("\n")


def test_write_json_is_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "some.json"
  workdir.write_json(path, {"old": 1})
  with pytest.raises(TypeError):
    workdir.write_json(path, {"new": list(range(9)) + [object()]})
  assert json.loads(path.read_text()) == {"old": 1}

  def killed(fd):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "fsync", killed)
  with pytest.raises(KeyboardInterrupt):
    workdir.write_json(path, {"new": 2})
  assert json.loads(path.read_text()) == {"old": 1}


def test_write_json_reaches_the_disk_before_it_counts(tmp_path, monkeypatch):
  calls = []
  fsync, replace = os.fsync, os.replace
  monkeypatch.setattr(os, "fsync", lambda f: (calls.append("sync"), fsync(f)))
  monkeypatch.setattr(
    os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))
  )
  workdir.write_json(tmp_path / "some.json", {})
  assert calls == ["sync", "replace", "sync"]


def test_a_folder_without_progress_takes_another_config(tmp_path):
  workdir.claim(tmp_path, config_json(), _RESOLVED)
  new = config_json(init_from="elsewhere")
  workdir.claim(tmp_path, new, _RESOLVED, step=None)
  assert written(tmp_path)["config"] == new


def test_a_path_is_what_the_user_means(monkeypatch):
  monkeypatch.setenv("HOME", "/home/somebody")
  assert str(workdir.path("~/runs/one")) == "/home/somebody/runs/one"
  assert str(workdir.path("runs/a b")) == "runs/a b"
  assert str(workdir.path(pathlib.Path("/runs"))) == "/runs"
  assert str(workdir.path(epath.Path("/runs"))) == "/runs"
  assert workdir.path("/c:/odd").name == "odd"  # No scheme: a folder's name.


@pytest.mark.parametrize(
  "text", ["s3://bucket/run", "gs:/bucket/run", "gs://", "gs:///run", "file:/x"]
)
def test_a_path_that_leads_nowhere_is_refused(text):
  with pytest.raises(UserError, match="expected a local path or gs://BUCKET"):
    workdir.path(text)


def test_any_kind_of_path_will_do(tmp_path):
  for kind in (str, pathlib.Path, epath.Path):
    where = kind(tmp_path / kind.__name__)
    workdir.claim(where, config_json(), _RESOLVED)
    workdir.claim(where, config_json(), _RESOLVED)
    assert workdir.read_config(where)["resolved"] == _RESOLVED


def test_a_full_disk_is_told_before_the_first_save(tmp_path, monkeypatch):
  def full(*unused):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(type(epath.Path(tmp_path)), "write_text", full)
  with pytest.raises(UserError, match="can't be written to .No space left"):
    workdir.claim(tmp_path, config_json(), _RESOLVED)


def test_tensorflow_is_not_what_reads_buckets():
  # epath would import it as soon as it is installed.
  assert os.environ["EPATH_USE_TF"] == "false"
  assert "tensorflow" not in sys.modules
