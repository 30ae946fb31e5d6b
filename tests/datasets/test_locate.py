"""Finding data sets, and preparations, by name."""

import dataclasses
import fcntl
import json

import pytest

from mixer.datasets import locate, prepared, stored
from mixer.datasets.preparation import convert
from mixer.errors import UserError
from tests.datasets.preparation import tfrecords


def refusal(name, root, data_dir="") -> str:
  with pytest.raises(UserError) as caught:
    locate.find(name, root, data_dir)
  return str(caught.value)


def test_where_data_sets_lie(monkeypatch):
  monkeypatch.setenv("HOME", "/home/someone")
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  resolve = locate.resolve_data_dir
  assert str(resolve("")) == "/home/someone/tensorflow_datasets"
  assert str(resolve("~/data")) == "/home/someone/data"
  monkeypatch.setenv("TFDS_DATA_DIR", "/sets")
  assert str(resolve("")) == "/sets"
  assert str(resolve("/other")) == "/other"
  with pytest.raises(
    UserError, match="^gs://b/x is no folder, where data sets"
  ):
    resolve("gs://b/x")  # Else a folder here would be called "gs:".


def test_a_lock_keeps_others_out(tmp_path):
  root = tmp_path / "data"
  assert not locate.is_locked("others", root)
  with locate.lock("others", root):
    assert locate.is_locked("others", root)
    with (
      pytest.raises(UserError, match="by another process on this machine"),
      locate.lock("others/config:1.0.0", root),
    ):
      pass
    with locate.lock("digits", root):
      pass
  assert not locate.is_locked("others", root)


def test_a_lock_that_cannot_be(tmp_path):
  (tmp_path / "data").write_text("a file")
  with (
    pytest.raises(UserError, match="can't be prepared in .*--data_dir=DIR"),
    locate.lock("others", tmp_path / "data"),
  ):
    pass


@pytest.fixture
def two_configs(tmp_path):
  for config in ("one", "two"):
    convert.convert(
      tfrecords.make(tmp_path / "old", config=config), tmp_path / "data"
    )
  return tmp_path / "data"


def test_several_configs_are_listed(two_configs):
  assert locate.configs(two_configs / "others") == ("one", "two")
  text = refusal("others", two_configs)
  assert text.startswith(f"data set others in {two_configs} is prepared in")
  assert text.endswith("name one of them: others/one, others/two.")
  # As told.
  for name in ("others/one", "others/two:2.1.0"):
    source, _, _ = prepared.open_source(name, "train", str(two_configs))
    assert len(source) == 12


@pytest.mark.parametrize("name", ["others", "others:2.1.0", "others:2.*.*"])
def test_the_only_config_is_meant(two_configs, name):
  (two_configs / "others" / "one").rename(two_configs / "others" / ".gone")
  folder = locate.find(name, two_configs)
  assert folder == two_configs / "others" / "two" / "2.1.0"
  assert "is not prepared" in refusal("others:1.0.0", two_configs)


def test_versions_are_found_in_places_of_all_kinds(tmp_path):
  folder = tfrecords.make(tmp_path)
  other = tfrecords.make(tmp_path, config="special")
  newer = folder.with_name("10.0.0")
  newer.mkdir()
  info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
  (newer / "dataset_info.json").write_text(
    json.dumps(info | {"version": "10.0.0"})
  )
  find = locate.versions
  assert find(tmp_path, "others:2.1.0") == [folder, other]
  assert find(tmp_path, "others") == [folder, other, newer]
  assert find(tmp_path, "others/special") == [other]
  assert find(tmp_path / "others", "others/special") == [other]
  assert find(tmp_path / "others" / "special", "others") == [other]
  assert find(newer, "others") == [newer]
  assert find(tmp_path, "else") == find(tmp_path / "nosuch", "others") == []


def test_a_version_of_another_set(tmp_path):
  folder = tfrecords.make(tmp_path)
  with pytest.raises(UserError, match="holds the data set others, not mine; "):
    locate.versions(folder, "mine")


@pytest.mark.parametrize(
  "work", ["others/incomplete.ABC_1.0.0", "others/c/.preparing-1.0.0"]
)
def test_a_stopped_preparation_is_told(tmp_path, work):
  (tmp_path / work).mkdir(parents=True)
  text = refusal("others", tmp_path, str(tmp_path))
  assert f"a preparation was begun and stopped ({tmp_path / work})" in text
  assert f"--data_dir={tmp_path}`" in text


def test_a_preparation_at_work_is_told(tmp_path):
  path = tmp_path / "others" / "c" / ".preparing-1.0.0.lock"
  path.parent.mkdir(parents=True)
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    text = refusal("others", tmp_path)
  assert "yet: another process on this machine is at it. Wait for it." in text
  assert "is not prepared in" in refusal("others", tmp_path)


def test_a_format_without_index(tmp_path):
  folder = tfrecords.make(tmp_path)
  found = stored.read(folder)
  text = str(locate.not_by_index(found, "others", str(tmp_path)))
  assert f"`python -m mixer prepare others --data_dir={tmp_path}`" in text
  found = dataclasses.replace(found, formats=("riegeli",))
  text = str(locate.not_by_index(found, "others", ""))
  assert "stored as riegeli" in text and "--data_dir=DIR`" in text
