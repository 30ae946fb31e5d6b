"""Whose a workdir is, and what may differ between two starts of a run."""

import json
import os
import shutil

import pytest

from configs import smoke
from mixer import config as config_lib
from mixer import workdir
from mixer.errors import UserError

_SET = {
  "class_names": "ant, bee",
  "examples": {"train": 103, "test": 20},
  "fingerprint": "a1",
}
_RESOLVED = {"total": 60, "train_examples": 103, "data_set": _SET}


def start(resolved=(), **changes):
  """A config and what it comes to, with `optimizer__name=...`."""
  keys = {key.replace("__", "."): value for key, value in changes.items()}
  config = config_lib.changed(smoke.get_config(), keys)
  return config_lib.to_json(config), _RESOLVED | dict(resolved)


@pytest.fixture
def made(tmp_path):
  """The workdir of a run."""
  workdir.write_config(tmp_path, *start())
  return tmp_path


def refusal(folder, new, allow=(), step=20) -> list[str]:
  with pytest.raises(UserError) as caught:
    workdir.check(folder, *new, allow, step)
  return str(caught.value).splitlines()


def test_the_same_start_goes_on(made):
  (made / "checkpoints").mkdir()
  for _ in range(2):
    assert workdir.check(made, *start(), (), 20) == ""
  # Before there is a checkpoint any config may have it.
  assert workdir.check(made, *start(seed=1), (), None) == ""
  content = json.loads((made / "config.json").read_text())
  assert (content["config"], content["resolved"]) == start()


def test_another_config_is_refused_unless_its_keys_are_allowed(made):
  new = start({"num_classes": 3}, seed=1, optimizer__learning_rate=0.5)
  old = smoke.get_config().optimizer.learning_rate
  first, *lines, last = refusal(made, new)
  assert first == f"--workdir={made} was made with another config:"
  assert lines == [f"  optimizer.learning_rate: {old} -> 0.5", "  seed: 0 -> 1"]
  # What it offers is accepted as it stands, and one of two is not enough.
  allow = last.split("--allow_change=")[1].rstrip(".").split(",")
  assert allow == ["optimizer.learning_rate", "seed"]
  assert refusal(made, new, ["seed"])[1:2] == lines[:1]
  said = workdir.check(made, *new, allow, 20)
  assert said.startswith(f"from step 20 on with optimizer.learning_rate: {old}")
  with_typo = refusal(made, start(), ["sed"])
  assert with_typo[0].endswith("did you mean --allow_change=seed?")


def test_free_keys_may_differ_and_what_follows_may_not(made):
  flat = config_lib.flatten(smoke.get_config())
  changes = {}
  for key in config_lib.FREE_KEYS:
    value = flat[key]
    more = [1] if isinstance(value, list | tuple) else 1
    more = "1" if isinstance(value, str) else more
    new = not value if isinstance(value, bool) else value + type(value)(more)
    changes[key.replace(".", "__")] = new
  assert workdir.check(made, *start({"log_every": 11}, **changes), (), 9) == ""
  lines = refusal(made, start({"num_classes": 11}))
  assert lines[1] == "  resolved.num_classes: '(absent)' -> 11"
  assert "--allow_change=resolved.num_classes." in lines[-1]
  new = start({"total": 6}, total="6 steps")
  (line,) = refusal(made, new, ["total"], step=12)
  assert "comes to 6 steps, and the run in" in line and "has done 12" in line


@pytest.mark.parametrize(
  ("change", "line"),
  [
    ({"class_names": "ant, cat"}, "class_names: 'ant, bee' -> 'ant, cat'"),
    ({"examples": {"train": 103}}, "examples.test: 20 -> '(absent)'"),
    ({"fingerprint": "b2"}, "fingerprint: 'a1' -> 'b2'"),
    ({"fingerprint": ""}, None),  # It isn't known.
    ({"fewshot": {"fingerprint": "c"}}, None),  # It follows from the config.
  ],
)
def test_another_data_set_is_refused_unless_it_is_allowed(made, change, line):
  new = start({"data_set": _SET | change, "train_examples": 103})
  if line is None:
    assert workdir.check(made, *new, (), 20) == ""
    return
  first, *lines, last = refusal(made, new, ["total"])
  assert first.endswith("was made with another data set:")
  assert lines == [f"  data_set.{line}"]
  assert last.endswith("add --allow_change=data_set.")
  assert line in workdir.check(made, *new, ["data_set"], 20)


def test_a_foreign_folder_is_refused_and_a_missing_one_made(tmp_path):
  workdir.check(tmp_path / "a" / "b", *start())
  assert list((tmp_path / "a" / "b").iterdir()) == []
  (tmp_path / ".hidden").touch()
  shutil.rmtree(tmp_path / "a")
  workdir.check(tmp_path, *start())
  (tmp_path / "thesis.tex").write_text("all of it")
  assert "holds files (thesis.tex) but no config.json" in str(
    refusal(tmp_path, start())
  )
  assert "can't be written to (Not a directory)" in str(
    refusal(tmp_path / "thesis.tex" / "run", start())
  )


@pytest.mark.parametrize(
  "content", [b"", b"{", b"\xff", b"[]", b"{}", b'{"config": 1, "resolved": 2}']
)
def test_a_damaged_config_is_told(made, content):
  (made / "config.json").write_bytes(content)
  with pytest.raises(workdir.DamagedConfig, match="writes it anew"):
    workdir.read_config(made)
  (made / "config.json").unlink()
  with pytest.raises(UserError, match=r"not a workdir .* has no config.json"):
    workdir.read_config(made)


def test_a_path_is_what_the_user_means(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert os.fspath(workdir.path("~/runs")) == "/home/me/runs"
  assert os.fspath(workdir.path("a:b")) == "a:b"
  for text in ("s3://bucket/x", "gs:/bucket/x", "http://x/y"):
    with pytest.raises(UserError, match="expected a local path or gs://BUCKET"):
      workdir.path(text)
