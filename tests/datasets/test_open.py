"""Opening prepared data sets: by name, whole or not, and parts of them."""

import collections
import json
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given
from hypothesis import strategies as st

from mixer.datasets import locate, split, stored
from mixer.errors import UserError
from tests.conftest import ROOT
from tests.datasets import tfds_writer

EXAMPLES = [
  {
    "image": tfds_writer.png(np.full((32, 32, 3), 5 * i, np.uint8)),
    "label": i % 10,
  }
  for i in range(16)
]
SIZES = {"train": (7, 5), "test": (4,)}
NAMES = (
  *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"),
  *("ship", "truck"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
  """A data_dir with a set as TFDS writes it."""
  root = tmp_path_factory.mktemp("tfds")
  examples = [e | {"id": ""} for e in EXAMPLES]
  folder = tfds_writer.write(root, "cifar10", examples, SIZES)
  # TFDS's builder reads the names out of what it downloads.
  (folder / "label.labels.txt").write_text("\n".join([*NAMES, ""]))
  return root


@pytest.fixture
def older(written, tmp_path) -> pathlib.Path:
  """The folder of a copy of it, which has no manifest."""
  shutil.copytree(written, tmp_path, dirs_exist_ok=True)
  return tmp_path / "cifar10" / "3.0.2"


@pytest.fixture
def sealed(older) -> pathlib.Path:
  """The same, as our own preparation leaves it."""
  stored.seal(older)
  return older


def read(folder: pathlib.Path, part: str = "train") -> split.Split:
  return split.open_split("cifar10", part, str(folder.parents[1]))


def refusal(name: str, part: str, root) -> str:
  with pytest.raises(UserError) as caught:
    found = split.open_split(name, part, str(root))
    found.read(range(len(found)))
  message = str(caught.value)
  assert message.endswith(".") and "\n" not in message
  return message


def refused(folder: pathlib.Path, part: str = "train") -> str:
  return refusal("cifar10", part, folder.parents[1])


def edit(path: pathlib.Path, old: str, new: str) -> None:
  text = path.read_text("utf-8")
  assert old in text
  path.write_text(text.replace(old, new), "utf-8")


@pytest.mark.parametrize(
  ("part", "expected"),
  [
    ("train", range(12)),
    ("test", range(4)),
    ("auto", range(4)),
    ("train[5:-2]", range(5, 10)),
    ("train[75%:]+test[:1]", [9, 10, 11, 0]),
    ("train[1shard]", range(7, 12)),
  ],
)
def test_what_tfds_wrote_is_read(sealed, part, expected):
  found = read(sealed, part)
  assert found.class_names == NAMES
  records = found.read(range(len(found)))
  for i, (record, k) in enumerate(zip(records, expected, strict=True)):
    assert record == EXAMPLES[k] | {"index": i}
  assert found.identity["examples"] == {"train": 12, "test": 4}
  assert found.identity["class_names"].startswith(
    "10 names, airplane to truck ("
  )
  assert len(found.identity["fingerprint"]) == 32


def test_it_is_read_without_tfds(older):
  program = (
    "import sys\nfrom mixer.datasets import split\n"
    "part = split.open_split('cifar10', 'train', sys.argv[1])\n"
    "part.read(range(12))\n"
    "sys.exit(bool({'tensorflow_datasets', 'jax'} & {*sys.modules}))"
  )
  words = [sys.executable, "-c", program, str(older.parents[1])]
  subprocess.run(words, cwd=ROOT, check=True)


@pytest.mark.parametrize(
  ("name", "old", "new"),
  [
    ("label.labels.txt", "cat", "dog"),
    ("dataset_info.json", '"cifar10"', '"cifar10" '),
    ("features.json", "numClasses", "numclasses"),
    ("manifest.json", '"sha256": "', '"sha256": "0'),
  ],
)
def test_a_changed_small_file_is_named(sealed, name, old, new):
  edit(sealed / name, old, new)
  message = refused(sealed)
  assert f"cifar10 in {sealed} is not as it was prepared: {name}" in message
  assert "Put it back from a copy, or prepare the data set anew; " in message
  (sealed / name).unlink()
  if name != stored.MANIFEST:
    message = refused(sealed)
    assert name in message or "is not prepared in" in message


def test_damaged_shards_are_named_with_a_manifest_or_without(older):
  one, two = sorted(older.glob("*train*"))
  content = two.read_bytes()
  for sealing in (False, True):
    if sealing:
      stored.seal(older)
    said = (
      "has changed, is gone or is new"
      if sealing
      else "should have 5 records, and"
    )
    for damaged in (None, b"", content[: len(content) // 2]):
      two.unlink()
      if damaged is not None:
        two.write_bytes(damaged)
      assert f"{two.name} {said}" in refused(older)
      read(older, "test")
      two.write_bytes(content)
    two.write_bytes(one.read_bytes())
    one.write_bytes(content)
    assert one.name in refused(older)
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    read(older)


def test_counts_that_do_not_fit_the_files_are_refused(older):
  # 1 of 12 images was trained on, without a word.
  edit(older / "dataset_info.json", '"7"', '"1"')
  assert "should have 1 records, and it has 7 records" in refused(older)


def test_class_names_without_a_manifest(older, capsys):
  path = older / "label.labels.txt"
  edit(path, "cat\n", "")
  assert "has 9 different names, and features.json has 10" in refused(older)
  edit(path, "dog\n", "dog\ndog\n")
  assert "has 9 different names" in refused(older)
  path.unlink()
  for part in SIZES:
    assert read(older, part).class_names == tuple("0123456789")
  out = capsys.readouterr().err
  assert out.count("\n") == 1 and "called by their numbers" in out


def test_data_choose_neither_code_nor_files(older, tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  marker = tmp_path / "ran"
  (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
  path = older / "features.json"
  text = path.read_text("utf-8")
  kind = "tensorflow_datasets.core.features.class_label_feature.ClassLabel"
  edit(path, kind, "evil.Feature")
  assert "is no class but 'evil.Feature'" in refused(older)
  assert "evil" not in sys.modules and not marker.exists()
  path.write_text(text, "utf-8")
  edit(older / "dataset_info.json", "{DATASET}-", "../../{DATASET}-")
  assert "dataset_info.json is damaged: '../../{DATASET}-" in refused(older)


@pytest.mark.parametrize(
  "content",
  [b"", b"\xff\xfe", b"[]", b"{}", b'{"splits": 3}', b'{"splits": [[]]}'],
  ids=repr,
)
@pytest.mark.parametrize("name", [stored.INFO, stored.FEATURES])
def test_a_malformed_file_is_named(older, name, content):
  (older / name).write_bytes(content)
  assert name in refused(older) or "`image` and `label`" in refused(older)


def test_features_as_tfds_wrote_them_until_4_3(older):
  kind = "tensorflow_datasets.core.features"
  label = f"{kind}.class_label_feature.ClassLabel"
  content = {
    "type": f"{kind}.features_dict.FeaturesDict",
    "content": {
      "image": {"type": f"{kind}.image_feature.Image", "content": {}},
      "label": {"type": label, "content": {"num_classes": 10}},
    },
  }
  (older / "features.json").write_text(json.dumps(content))
  assert read(older).class_names == NAMES


def test_a_record_that_is_none_is_told(older):
  (path,) = older.glob("*test*")
  path.unlink()
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in (b"", b"\xff", b"not an example", b"\x0a\x00"):
    writer.write(record)
  writer.close()
  for i in range(4):
    with pytest.raises(UserError, match=f"record {i} is no example"):
      read(older, "test").read([i])


@pytest.mark.parametrize(
  "part", ["validation", "Train", "", "train[", "train[:13]", "train[:200%]"]
)
def test_a_wrong_split_names_those_there_are(older, part):
  message = refused(older, part)
  assert message.startswith(
    f"data set cifar10 has no split {part!r}; it has train (12 examples), test "
    '(4 examples), or parts of these as in "train[:98%]"'
  )
  assert part != "train[:13]" or "beyond its 12 examples)." in message
  assert "is empty" in refused(older, "train[12:]")


def test_what_is_not_for_classification(older):
  edit(older / "features.json", '"label"', '"target"')
  assert "has no features `image` and `label`; name one" in refused(older)


def test_another_format_says_how_to_convert(older):
  edit(older / "dataset_info.json", '"array_record"', '"tfrecord"')
  message = refused(older)
  assert "is stored as tfrecord, which can't be read by index" in message
  command = shlex.split(message.split("`")[1])
  assert command[3:] == ["prepare", "cifar10", f"--data_dir={older.parents[1]}"]
  edit(older / "dataset_info.json", '"tfrecord"', '"riegeli"')
  assert "prepare cifar10 --data_dir=DIR`" in refused(older)


def test_names_with_versions_and_configs(older):
  root = older.parents[1]
  newer = older.with_name("10.0.0")
  shutil.copytree(older, newer)
  for name, folder in (
    ("cifar10", newer),
    ("cifar10:10.0.0", newer),
    ("cifar10:3.*.*", older),
  ):
    assert locate.find(name, root) == folder
  assert "is not prepared in" in refusal("cifar10:1.0.0", "train", root)
  for config in ("one", "two"):
    shutil.copytree(older, root / "cifar10" / config / "3.0.2")
    edit(
      root / "cifar10" / config / "3.0.2" / "dataset_info.json",
      '"name": "cifar10"',
      f'"configName": "{config}", "name": "cifar10"',
    )
  assert locate.find("cifar10", root) == newer
  assert locate.versions(root, "cifar10/two") == [root / "cifar10/two/3.0.2"]
  assert older in locate.versions(root / "cifar10", "cifar10:3.0.2")
  assert locate.versions(older, "cifar10") == [older]
  with pytest.raises(UserError, match="holds the data set cifar10, not mine; "):
    locate.versions(older, "mine")
  shutil.rmtree(older)
  shutil.rmtree(newer)
  message = refusal("cifar10", "train", root)
  assert message.endswith("name one of them: cifar10/one, cifar10/two.")
  assert len(split.open_split("cifar10/two:3.0.2", "test", str(root))) == 4
  shutil.rmtree(root / "cifar10" / "one")
  assert locate.find("cifar10", root) == root / "cifar10" / "two" / "3.0.2"
  assert "Did you mean cifar10/two" in refusal("cifar10_two", "train", root)
  assert "Prepared there: cifar10/two. " in refusal("dtd", "train", root)


@pytest.mark.parametrize(
  ("name", "way"),
  [
    ("imagenet2012", "prepare imagenet2012 --source=PATH --data_dir="),
    ("imagenet2012:5.1.0", "a folder with ILSVRC2012_img_train.tar and"),
    ("imagenet21k/fall11", "prepare imagenet21k/fall11 --source=PATH "),
    ("cifar10", "`python -m mixer prepare cifar10 --data_dir="),
    ("kmnist", "prepare kmnist --data_dir="),
    ("nosuch/config", "prepare folder --name=nosuch --source=PATH"),
    ("cifar_10", "Did you mean cifar10 or"),
    ("No Name!", "--name='No Name!' --source=PATH"),
  ],
)
def test_what_is_not_prepared_says_how_to(tmp_path, name, way):
  root = tmp_path / "nosuch"
  message = refusal(name, "train", root)
  assert message.startswith(f"data set {name} is not prepared in {root}. ")
  assert way in message
  assert "name the place by --config.data.data_dir=DIR" in message
  assert "Without any preparation: digits, glyphs." in message
  assert not root.exists()  # Nothing is made for it.


def test_half_prepared_sets_are_told(older):
  root = older.parents[1]
  (older / "dataset_info.json").unlink()
  assert f"(there is no {older}/dataset_info.json)" in refused(older)
  for work in ("others/incomplete.ABC_1.0.0", "others/c/.preparing-1.0.0"):
    (root / work).mkdir(parents=True)
    message = refusal("others", "train", root)
    assert f"was begun and has not ended ({root / work})" in message
    shutil.rmtree(root / "others")


def test_where_data_sets_are(monkeypatch):
  monkeypatch.setenv("HOME", "/home/someone")
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  resolve = locate.resolve_data_dir
  assert str(resolve("")) == "/home/someone/tensorflow_datasets"
  monkeypatch.setenv("TFDS_DATA_DIR", "/sets")
  assert [str(resolve(p)) for p in ("", "/other")] == ["/sets", "/other"]
  with pytest.raises(UserError, match="^gs://b/x is no folder, where data"):
    resolve("gs://b/x")  # Else a folder here would be called "gs:".


def test_a_lock_keeps_others_out(tmp_path):
  root = tmp_path / "data"
  with locate.lock("others", root):
    with (
      pytest.raises(UserError, match="by another process on this machine"),
      locate.lock("others/config:1.0.0", root),
    ):
      pass
    with locate.lock("digits", root):
      pass
  with (
    pytest.raises(UserError, match="can't be prepared in .*--data_dir=DIR"),
    locate.lock("others", root / ".others.lock"),
  ):
    pass


class Source(list):
  def __getitems__(self, indices):
    return [dict(self[i]) for i in indices]


def make(labels, **attributes) -> split.Split:
  """A split with those labels; the image of record i is b"i"."""
  source = Source(
    {"image": str(i).encode(), "label": int(label)}
    for i, label in enumerate(labels)
  )
  names = ("ant", "bee", "cat")
  return split.Split("zoo", "train", source, names, **attributes)


def places(part: split.Split) -> list[int]:
  """Which records of the source it has, as its records say themselves."""
  return [int(record["image"]) for record in part]


def test_records_of_a_part():
  part = make([2, 0, 1, 1], indices=np.array([3, 0]))
  assert part[0] == {"image": b"3", "label": 1, "index": 3}
  assert [r["index"] for r in part] == part.records.tolist() == [3, 0]
  assert part.labels.tolist() == [1, 2]
  assert part.file_names([0, 1]) == ["", ""] and part.valid_labels is None
  error = part.decode_error(5, ValueError("not an image"))
  assert str(error).startswith(
    "data set zoo, split train, record 5 can't be decoded: not an image. "
  )


@pytest.mark.parametrize("label", [-1, 3, 255])
def test_a_label_out_of_range_is_refused(label):
  part = make([0, label], indices=np.array([1]))
  for use in (lambda: part[0], lambda: part.per_class(1, 0)):
    with pytest.raises(UserError, match=f"record 1 has label {label}, outside"):
      use()


@given(
  st.lists(st.integers(0, 2), min_size=3, max_size=60),
  st.integers(0, 2**32 - 1),
  st.data(),
)
def test_per_class_draws_as_many_of_each(labels, seed, data):
  most = min(labels.count(k) for k in range(3))
  large = data.draw(st.integers(0, most))
  small = data.draw(st.integers(0, large))
  whole = make(labels)
  part = whole.per_class(large, seed)
  found = places(part)
  assert found == part.records.tolist() == sorted({*found})
  assert [labels[i] for i in found] == part.labels.tolist()
  counts = collections.Counter(part.labels.tolist())
  assert counts == {k: large for k in range(3) if large}
  # A smaller draw is part of a larger one; and of a part.
  fewer = places(whole.per_class(small, seed))
  assert {*fewer} <= {*found}
  assert {*places(part.per_class(small, seed + 1))} <= {*found}
  with pytest.raises(
    UserError, match=rf"{most + 1} are asked for; ask for few"
  ):
    whole.per_class(most + 1, seed)


def test_every_record_has_the_same_chance():
  whole = make(np.arange(30) % 3)
  draws = [places(whole.per_class(2, seed)) for seed in range(400)]
  assert draws[7] == places(make(np.arange(30) % 3).per_class(2, 7))
  drawn = collections.Counter(i for draw in draws for i in draw)
  # 80 times each is expected, with a standard deviation of 8.
  assert all(40 < drawn[i] < 120 for i in range(30))
  # Not the same places within each class.
  assert any(len({i // 3 for i in draw}) > 4 for draw in draws)
