"""What a prepared set's small files say, and whether it is still true."""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
from array_record.python import array_record_module

from mixer.datasets import locate, prepared, stored
from mixer.datasets.preparation import convert
from mixer.errors import UserError
from tests.conftest import ROOT
from tests.datasets.preparation import tfrecords


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """A set of 12 and 4 records, as the converter leaves it."""
  folder = convert.convert(tfrecords.make(tmp_path / "old"), tmp_path / "data")
  shutil.rmtree(tmp_path / "old")
  return folder


def read(folder: pathlib.Path, split: str = "train"):
  return prepared.open_source("others", split, str(folder.parent.parent))


def refusal(folder: pathlib.Path, split: str = "train") -> str:
  with pytest.raises(UserError) as caught:
    source, _, _ = read(folder, split)
    source.__getitems__(range(len(source)))
  assert str(caught.value).endswith(".")
  return str(caught.value)


def edit(path: pathlib.Path, old: str, new: str) -> None:
  text = path.read_text("utf-8")
  assert old in text
  path.write_text(text.replace(old, new), "utf-8")


def older(folder: pathlib.Path) -> pathlib.Path:
  """As the set was before there were manifests, or as TFDS leaves it."""
  (folder / stored.MANIFEST).unlink()
  return folder


def test_a_sealed_set_is_as_it_was(folder):
  source, names, identity = read(folder)
  assert len(source) == 12 and names == tfrecords.CLASSES
  assert identity["examples"] == {"train": 12, "test": 4}
  assert identity["class_names"].startswith("10 names, 0 to 9 (")
  assert len(identity["fingerprint"]) == 32


@pytest.mark.parametrize(
  ("name", "old", "new"),
  [
    ("label.labels.txt", "3\n", "three\n"),
    ("label.labels.txt", "3\n4\n", "4\n3\n"),
    ("dataset_info.json", '"shardLengths": ["7"', '"shardLengths": ["1"'),
    ("features.json", '"numClasses": "10"', '"numClasses": "11"'),
    ("manifest.json", '"bytes": 20', '"bytes": 21'),
  ],
)
def test_a_changed_small_file_is_told(folder, name, old, new):
  if name == "dataset_info.json":
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8"))))
    stored.seal(folder)
  edit(folder / name, old, new)
  message = refusal(folder)
  assert f"others in {folder} is not as it was prepared: {name}" in message
  assert "Put it back from a copy, or prepare the data set anew; " in message
  # As it says, to whoever has changed it on purpose.
  if name == "label.labels.txt":
    assert read(older(folder))[1] != tfrecords.CLASSES


@pytest.mark.parametrize("name", ["label.labels.txt", "features.json"])
def test_a_missing_small_file_is_told(folder, name):
  (folder / name).unlink()
  message = refusal(folder)
  assert name in message or "is not prepared" in message


def test_names_that_were_not_there_are_told(folder):
  (folder / "other.labels.txt").write_text("0\n")
  assert "other.labels.txt was not there then" in refusal(folder)


def test_shards_that_were_exchanged_are_told(folder):
  one, two = sorted(folder.glob("*train*"))
  spare = folder.parent / "spare"
  one.rename(spare)
  two.rename(one)
  spare.rename(two)
  assert f"{one.name} has changed or is gone, and so have 1" in refusal(folder)
  assert f"{one.name} should have 7 records, and it" in refusal(older(folder))
  read(folder, "test")


@pytest.mark.parametrize("what", ["gone", "cut", "empty"])
def test_a_damaged_shard_is_told(folder, what):
  path = folder / "others-train.array_record-00001-of-00002"
  content = path.read_bytes()
  path.unlink()
  if what != "gone":
    path.write_bytes(content[: {"cut": 65536, "empty": 0}[what]])
  assert f"{path.name} has changed or is gone. Put" in refusal(folder)
  assert f"{path.name} should have 5 records, and " in refusal(older(folder))


def test_fewer_examples_than_the_files_have_are_told(folder):
  # 1 of 12 images was trained on, without a word.
  edit(older(folder) / "dataset_info.json", '"7"', '"1"')
  message = refusal(folder)
  assert "00000-of-00002 should have 1 records, and it has 7 rec" in message
  edit(folder / "dataset_info.json", '"5"', '"50"')
  edit(folder / "dataset_info.json", '"1"', '"7"')
  assert "should have 50 records, and it has 5 records" in refusal(folder)


def test_names_of_an_older_set_have_to_be_as_many(folder, capsys):
  path = older(folder) / "label.labels.txt"
  edit(path, "3\n", "")
  assert "has 9 different names, and features.json has 10" in refusal(folder)
  edit(path, "4\n", "4\n4\n")
  assert "has 9 different names" in refusal(folder)
  path.unlink()
  assert read(folder)[1] == tuple("0123456789")
  assert read(folder, "test")[1] == tuple("0123456789")
  out = capsys.readouterr().err
  assert out.startswith("warning: ") and out.count("\n") == 1
  assert "no label.labels.txt, so its 10 classes are called by their num" in out


def test_an_own_set_of_an_older_version_knows_its_names(folder):
  path = older(folder) / "preparation.json"
  own = hashlib.sha256("\n".join(tfrecords.CLASSES).encode()).hexdigest()
  path.write_text(json.dumps({"identity": {"classes": own}}))
  assert read(folder)[1] == tfrecords.CLASSES
  path.write_text(json.dumps({"identity": {"classes": "0" * 64}}))
  assert "has other names than were prepared" in refusal(folder)
  (folder / "label.labels.txt").unlink()
  assert "label.labels.txt is gone" in refusal(folder)


def test_data_never_choose_code(folder, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  marker = tmp_path / "ran"
  (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
  path = older(folder) / "features.json"
  content = json.loads(path.read_text("utf-8"))
  for feature in content["featuresDict"]["features"].values():
    feature["pythonClassName"] = "evil.Feature"
  path.write_text(json.dumps(content))
  edit(folder / "dataset_info.json", '"name"', '"moduleName": "evil", "name"')
  message = refusal(folder)
  assert "'label' of the data set in" in message and "evil.Feature" in message
  assert "evil" not in sys.modules and not marker.exists()


@pytest.mark.parametrize(
  "template",
  ["/etc/{SPLIT}", "../{SPLIT}", "a/../../{SPLIT}", "{SPLIT.name}{X}", "{0}"],
)
def test_data_name_no_files_elsewhere(folder, template):
  edit(
    older(folder) / "dataset_info.json",
    "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    template,
  )
  message = refusal(folder)
  assert "others-" not in message.split("dataset_info.json")[-1]


@pytest.mark.parametrize(
  "content",
  [b"", b"\xff\xfe", b"[]", b"{}", b'{"splits": 3}', b'{"splits": [[]]}'],
  ids=repr,
)
@pytest.mark.parametrize("name", [stored.INFO, stored.FEATURES])
def test_a_malformed_file_is_named(folder, name, content):
  (older(folder) / name).write_bytes(content)
  assert name in refusal(folder) or "`image` and `label`" in refusal(folder)


def test_a_set_in_the_format_of_older_tfds(folder):
  kind = "tensorflow_datasets.core.features"
  content = {
    "type": f"{kind}.features_dict.FeaturesDict",
    "content": {
      "image": {
        "type": f"{kind}.image_feature.Image",
        "content": {"shape": [8, 8, 1], "dtype": "uint8"},
      },
      "label": {
        "type": f"{kind}.class_label_feature.ClassLabel",
        "content": {"num_classes": 10},
      },
    },
  }
  (older(folder) / "features.json").write_text(json.dumps(content))
  assert read(folder)[1] == tfrecords.CLASSES


def test_a_record_that_is_none_is_told(folder):
  path = older(folder) / "others-test.array_record-00000-of-00001"
  path.unlink()
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in (b"", b"\xff", b"not an example", b"\x0a\x00"):
    writer.write(record)
  writer.close()
  source, _, _ = read(folder, "test")
  for i in range(4):
    with pytest.raises(ValueError, match=f"record {i} is no example"):
      source[i]


def test_opening_leaves_nothing_behind(folder, tmp_path, monkeypatch):
  temporary = tmp_path / "tmp"
  temporary.mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(temporary))
  read(folder)
  prepared.open_source("digits", "test", str(tmp_path / "new"))
  assert not list(temporary.iterdir())


def test_opening_does_without_tfds(folder):
  program = (
    "import sys\nfrom mixer.datasets import split\n"
    "part = split.open_split('others', 'train', sys.argv[1])\n"
    "part.read(range(12))\n"
    "sys.exit('tensorflow_datasets' in sys.modules)"
  )
  words = [sys.executable, "-c", program, str(folder.parent.parent)]
  subprocess.run(words, cwd=ROOT, check=True)


def test_a_misspelt_name_offers_what_is_there(folder):
  root = folder.parent.parent
  convert.convert(tfrecords.make(folder.parent / "o", "more", "special"), root)
  (root / "photos" / "birds" / "1.0.0").mkdir(parents=True)
  assert locate.prepared_sets(root) == ["more/special", "others"]
  with pytest.raises(UserError) as caught:
    prepared.open_source("other", "train", str(root))
  assert "Did you mean others, which is there? " in str(caught.value)
  with pytest.raises(
    UserError, match=r"Prepared there: more/special, others\. "
  ):
    prepared.open_source("cifar10", "train", str(root))


def test_a_wrong_split_is_said_once(folder):
  message = refusal(folder, "validation")
  assert message == (
    "data set others has no split 'validation'; it has train (12 examples), "
    'test (4 examples), or parts of these as in "train[:98%]".'
  )
  message = refusal(folder, "train[:13]")
  assert message.endswith("([:13] is beyond its 12 examples).")
