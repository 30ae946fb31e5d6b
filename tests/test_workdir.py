"""What may differ between two starts of a run, and damaged files of one."""

import os

import numpy as np
import pytest

from configs import smoke
from mixer import config as config_lib
from mixer import metrics, workdir
from mixer.errors import UserError
from tests.fuzz import mutations

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


def test_another_config_is_refused_unless_its_keys_are_allowed(made):
  (made / "checkpoints").mkdir()
  assert workdir.check(made, *start(), (), 20) == ""
  # Before there is a checkpoint any config may have it.
  assert workdir.check(made, *start(seed=1), (), None) == ""
  new = start({"num_classes": 3}, seed=1, optimizer__learning_rate=0.5)
  old = smoke.get_config().optimizer.learning_rate
  first, *lines, last = refusal(made, new)
  assert first == f"--workdir={made} was made with another config:"
  assert lines == [f"  optimizer.learning_rate: {old} -> 0.5", "  seed: 0 -> 1"]
  # What it offers is accepted as it stands, and one of two is not enough.
  allow = last.split("--allow_change=")[1].rstrip(".").split(",")
  assert allow == ["optimizer.learning_rate", "seed"]
  assert refusal(made, new, ["seed"])[1:2] == lines[:1]
  text = workdir.check(made, *new, allow, 20)
  assert text.startswith(f"from step 20 on with optimizer.learning_rate: {old}")
  with_typo = refusal(made, start(), ["sed"])
  assert with_typo[0].endswith("did you mean --allow_change=seed?")


def test_free_keys_may_differ_and_what_follows_may_not(made):
  flat, changes = config_lib.flatten(smoke.get_config()), {}
  for key in config_lib.FREE_KEYS:
    value = flat[key]
    # Other values of the same types.
    new = {str: "1x", bool: not value, list: [0.5]}.get(type(value))
    new = value + 1 if new is None else new
    changes[key.replace(".", "__")] = new
  assert workdir.check(made, *start({"log_every": 11}, **changes), (), 9) == ""
  # As a version wrote it that lacked some keys.
  old, resolved = start()
  del old["log"], old["loss"]["class_weights"]
  workdir.write_config(made, old, resolved)
  assert workdir.check(made, *start(), (), 9) == ""
  (line,) = refusal(made, start(loss__class_weights="balanced"))[1:-1]
  assert line == "  loss.class_weights: '' -> 'balanced'"
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
  new = start({"data_set": _SET | change})
  if line is None:
    assert workdir.check(made, *new, (), 20) == ""
    return
  first, *lines, last = refusal(made, new, ["total"])
  assert first.endswith("was made with another data set:")
  assert lines == [f"  data_set.{line}"]
  assert last.endswith("add --allow_change=data_set.")
  assert line in workdir.check(made, *new, ["data_set"], 20)


def test_a_foreign_folder_is_refused(tmp_path):
  assert workdir.check(tmp_path, *start()) == ""
  (tmp_path / "thesis.tex").write_text("all of it")
  why = "holds files (thesis.tex) but no config.json"
  assert why in refusal(tmp_path, start())[0]
  with pytest.raises(UserError, match=r"can't be written: Not a directory"):
    workdir.make(tmp_path / "thesis.tex" / "run")


def test_a_path_is_what_the_user_means(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert os.fspath(workdir.path("~/runs")) == "/home/me/runs"
  assert os.fspath(workdir.path("a:b")) == "a:b"
  for text in ("s3://bucket/x", "gs:/bucket/x", "http://x/y"):
    with pytest.raises(UserError, match="expected a local path or gs://BUCKET"):
      workdir.path(text)


def damaged(path, count=1_000):
  """Numbers of inputs, of which each is in the file."""
  seed, rng = path.read_bytes(), np.random.default_rng(15)
  for i in range(count):
    path.write_bytes(mutations.mutated(seed, rng))
    yield i


def test_a_damaged_config_is_told(made):
  config, resolved = start()
  for content in (b"", b"{", b"\xff", b"[]", b'{"config": 1, "resolved": 2}'):
    (made / "config.json").write_bytes(content)
    with pytest.raises(workdir.DamagedConfig, match="writes it anew"):
      workdir.read_config(made)
  workdir.write_config(made, config, resolved)
  told = 0
  for i in damaged(made / "config.json"):
    try:
      found = workdir.read_config(made)
      assert found == {"config": config, "resolved": resolved}, i
    except UserError as e:
      told += 1
      assert str(made / "config.json") in str(e), i
  assert told > 150
  (made / "config.json").unlink()
  with pytest.raises(UserError, match=r"not a workdir .* has no config.json"):
    workdir.read_config(made)


@pytest.mark.slow
def test_damaged_metrics_are_told(tmp_path):
  rng, told = np.random.default_rng(0), 0
  writer = metrics.Writer(tmp_path, 0)
  for step in range(1, 31):
    values = {"train/loss": float(rng.exponential()), "data/wait": np.nan}
    writer.write(step, values)
  writer.close()
  for i in damaged(tmp_path / metrics.FILE, 300):
    for least in (0, 30):
      found = metrics.examine(tmp_path, least)
      assert all(r == writer.records[n] for n, r in found.records.items()), i
      if not found.damage:
        assert [*found.records] == [*range(len(found.records))], i
        assert len(found.records) == 30 or not least, i
    told += len(found.records) < 30
    if i % 50 == 0:  # As a run that goes on does.
      again = metrics.Writer(tmp_path, 30, 30)
      again.close()
      assert again.records == list(found.records.values()), i
      assert metrics.examine(tmp_path, 30).records == found.records, i
      for kept in tmp_path.glob(f"{metrics.FILE}.damaged.*"):
        kept.unlink()
  assert told > 150
