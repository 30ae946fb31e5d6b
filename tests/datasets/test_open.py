"""Opening prepared data sets: by name, whole or not, and parts of them."""

import collections
import pathlib
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given
from hypothesis import strategies as st
from tensorflow_datasets.core import splits

from mixer.datasets import split, stored
from mixer.errors import UserError
from tests.conftest import ROOT
from tests.datasets import tfds_writer

GREYS = [np.full((32, 32, 3), 5 * i, np.uint8) for i in range(16)]
EXAMPLES = [
  {"image": tfds_writer.png(grey), "label": i % 10}
  for i, grey in enumerate(GREYS)
]
NAMES = (
  *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"),
  *("ship", "truck"),
)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
  """A data_dir with a set as TFDS writes it."""
  root = tmp_path_factory.mktemp("tfds")
  examples = [e | {"id": ""} for e in EXAMPLES]
  sizes = {"train": (7, 5), "test": (4,)}
  folder = tfds_writer.write(root, "cifar10", examples, sizes)
  # TFDS's builder reads the names out of what it downloads.
  (folder / "label.labels.txt").write_text("\n".join([*NAMES, ""]))
  return root


@pytest.fixture
def older(written, tmp_path) -> pathlib.Path:
  """The folder of a copy of it, which has no manifest."""
  shutil.copytree(written, tmp_path, dirs_exist_ok=True)
  return tmp_path / "cifar10" / "3.0.2"


@pytest.fixture(params=[False, True], ids=["unsealed", "sealed"])
def either(older, request) -> pathlib.Path:
  """The same, or as our own preparation leaves it."""
  if request.param:
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


def test_what_tfds_wrote_is_read(either):
  for part, expected in (
    ("train", range(12)),
    ("auto", range(4)),
    ("train[75%:]+test[:1]", [9, 10, 11, 0]),
    ("train[1shard:]", range(7, 12)),
  ):
    found = read(either, part)
    records = found.read(range(len(found)))
    for i, (record, k) in enumerate(zip(records, expected, strict=True)):
      assert record == EXAMPLES[k] | {"index": i}
    assert found.class_names == NAMES
    identity = found.identity
    assert identity["examples"] == {"train": 12, "test": 4}
    assert identity["class_names"].startswith("10 names, airplane to truck (")
    sealed = (either / stored.MANIFEST).exists()
    assert len(identity["fingerprint"]) == 32 * sealed


def test_it_is_read_without_tfds(older):
  program = (
    "import sys\nfrom mixer.datasets import split\n"
    "part = split.open_split('cifar10', 'train', sys.argv[1])\n"
    "part.read(range(12))\n"
    "assert not {'tensorflow_datasets', 'jax'} & {*sys.modules}\n"
    "import tensorflow_datasets as tfds\n"
    "tfds.builder('mnist', data_dir='/nosuch')"
  )
  words = [sys.executable, "-c", program, str(older.parents[1])]
  subprocess.run(words, cwd=ROOT, check=True)


def test_changed_files_of_a_sealed_set_are_named(older):
  stored.seal(older)
  for name, old, new in (
    ("label.labels.txt", "cat", "dog"),
    ("dataset_info.json", '"cifar10"', '"cifar10" '),
    ("features.json", "numClasses", "numclasses"),
    ("manifest.json", '"sha256": "', '"sha256": "0'),
  ):
    content = (older / name).read_bytes()
    edit(older / name, old, new)
    message = refused(older)
    assert f"{older} is not as it was prepared: {name} has changed" in message
    assert message.endswith(f"on purpose, remove {stored.MANIFEST} there.")
    if name != stored.MANIFEST:
      (older / name).unlink()
      assert name in (message := refused(older)) or "not prepared" in message
    (older / name).write_bytes(content)
  assert len(read(older)) == 12


def test_damaged_shards_are_named(either):
  one, two = sorted(either.glob("*train*"))
  content = two.read_bytes()
  for damaged in (b"", content[: len(content) // 2], one.read_bytes()):
    two.write_bytes(damaged)
    assert f"{two.name} has changed, is gone or new" in refused(either)
  two.unlink()
  assert two.name in refused(either)
  read(either, "test")


def test_what_small_files_say_is_not_believed(older):
  info, features = older / stored.INFO, older / stored.FEATURES
  whole = {path: path.read_bytes() for path in (info, features)}
  for path, old, new, what in (
    (info, '"7"', '"1"', "train.array_record-00000-of-00002 has changed"),
    (info, '"train"', '"../train"', "has no split 'train'"),
    (info, '"train"', '"train\\u0000"', "has no split 'train'"),
    (info, '"array_record"', '"riegeli"', "is stored as riegeli, which can't"),
    (features, "numClasses", "numclasses", "'label' of the data set in"),
    (features, '"label"', '"target"', "no features `image` and `label`; name"),
  ):
    edit(path, old, new)
    assert what in refused(older)
    path.write_bytes(whole[path])
  for path in (info, features):
    for content in (b"", b"\xff", b"[]", b'{"splits": 3}', b'{"splits":[[]]}'):
      path.write_bytes(content)
      assert path.name in refused(older)
    path.write_bytes(whole[path])
  edit(info, '"array_record"', '"tfrecord"')
  command = shlex.split(refused(older).split("`")[1])
  assert command[3:] == ["prepare", "cifar10", f"--data_dir={older.parents[1]}"]


def test_class_names_and_records_without_a_manifest(older):
  path = older / "label.labels.txt"
  edit(path, "cat\n", "dog\n")
  assert "label.labels.txt has not 10 names" in refused(older)
  path.unlink()
  assert read(older).class_names == tuple("0123456789")
  (path,) = older.glob("*test*")
  path.unlink()
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for record in (b"", b"\xff", b"not an example", b"\x0a\x00"):
    writer.write(record)
  writer.close()
  for i in range(4):
    with pytest.raises(UserError, match=f"record {i} is no example"):
      read(older, "test").read([i])


def test_names_with_versions_and_configs(older):
  root = older.parents[1]
  newer = older.with_name("10.0.0")
  shutil.copytree(older, newer)
  for name, folder in (
    ("cifar10", newer),
    ("cifar10:10.0.0", newer),
    ("cifar10:3.*.*", older),
  ):
    assert split.find(name, root) == folder
  assert "is not prepared in" in refusal("cifar10:1.0.0", "train", root)
  for config in ("one", "two"):
    shutil.copytree(older, root / "cifar10" / config / "3.0.2")
  assert split.find("cifar10", root) == newer
  assert stored.versions(root, "cifar10/two") == [root / "cifar10/two/3.0.2"]
  assert older in stored.versions(root / "cifar10", "cifar10:3.0.2")
  assert stored.versions(older, "cifar10") == [older]
  shutil.rmtree(older)
  shutil.rmtree(newer)
  message = refusal("cifar10", "train", root)
  assert message.endswith("name one of them: cifar10/one, cifar10/two.")
  assert len(split.open_split("cifar10/two:3.0.2", "test", str(root))) == 4
  shutil.rmtree(root / "cifar10" / "one")
  assert split.find("cifar10", root) == root / "cifar10" / "two" / "3.0.2"


def test_what_is_not_prepared_says_how_to(tmp_path):
  root = tmp_path / "nosuch"
  for name, way in (
    ("imagenet2012:5.1.0", "prepare imagenet2012:5.1.0 --source=PATH --data_"),
    ("imagenet2012", "a folder with ILSVRC2012_img_train.tar and"),
    ("cifar10", "prepare cifar10 --source=PATH --data_dir="),
    ("kmnist", "prepare kmnist --data_dir="),
    ("nosuch/config", "prepare folder --name=nosuch --source=PATH"),
    ("cifar_10", "Did you mean cifar10 or"),
    ("No Name!", "--name='No Name!' --source=PATH"),
  ):
    message = refusal(name, "train", root)
    assert message.startswith(f"data set {name} is not prepared in {root}. ")
    assert way in message
    assert "name the place by --config.data.data_dir=DIR" in message
  assert not root.exists()  # Nothing is made for it.


def test_where_data_sets_are(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", "/home/someone")
  monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
  resolve = stored.resolve_data_dir
  assert str(resolve("")) == "/home/someone/tensorflow_datasets"
  monkeypatch.setenv("TFDS_DATA_DIR", "/sets")
  assert [str(resolve(p)) for p in ("", "/other")] == ["/sets", "/other"]
  with pytest.raises(UserError, match="can't be in gs://b/x, but in a folder"):
    resolve("gs://b/x")  # Else a folder here would be called "gs:".
  with stored.lock("others", tmp_path), stored.lock("digits", tmp_path):
    for name, where, what in (
      (
        "others/config:1.0.0",
        tmp_path,
        "another process on this machine does it",
      ),
      ("others", tmp_path / ".others.lock", "be prepared in .*--data_dir="),
    ):
      with pytest.raises(UserError, match=what), stored.lock(name, where):
        pass


# Split expressions, held against TFDS's own reading of them.

_BOUND = st.one_of(
  st.just(""),
  st.integers(-60, 60).map(str),
  st.integers(-110, 110).map("{}%".format),
  st.floats(-101, 101).map("{:.2f}%".format),
  st.integers(-5, 5).map("{}shard".format),
  st.sampled_from(["x", "1.5", "--1", "5 %", "1_0", "_", "1e1"]),
)
_SLICE = st.one_of(
  st.just(""), st.tuples(_BOUND, _BOUND).map("[{0[0]}:{0[1]}]".format)
)
_NAME = st.sampled_from(["train", "te-st", "Train", ""])
_SHARDS = st.lists(st.integers(1, 20), min_size=1, max_size=4)


def by_tfds(text, lengths):
  """What is taken, by name of split and number of example."""
  infos = {
    name: types.SimpleNamespace(num_examples=sum(counts), shard_lengths=counts)
    for name, counts in lengths.items()
  }
  return [
    (one.splitname, i)
    for one in splits.AbstractSplit.from_spec(text).to_absolute(infos)
    for i in range(sum(lengths[one.splitname]))[one.from_ : one.to]
  ]


@given(
  st.lists(st.tuples(_NAME, _SLICE), min_size=1, max_size=3), _SHARDS, _SHARDS
)
def test_a_split_takes_what_tfds_takes(parts, train, test):
  text = " + ".join(name + bounds for name, bounds in parts)
  text = text.replace("[:]", "[0:]")  # TFDS refuses that.
  lengths = {"train": train, "te-st": test}
  try:
    expected = by_tfds(text, lengths)
  except (ValueError, KeyError, TypeError):
    expected = []
  if expected:
    found = split.parts("zoo", text, lengths)
    assert expected == [(k, i) for k, a, b in found for i in range(a, b)]
    return
  with pytest.raises(UserError) as caught:
    split.parts("zoo", text, lengths)
  assert f"data set zoo has no split {text!r}, or it is" in str(caught.value)
  assert f"te-st ({sum(test)} examples), or parts of" in str(caught.value)


# Parts of splits.


class Source(list):
  def __getitems__(self, indices):
    return [dict(self[i]) for i in indices]


def make(labels, **attributes) -> split.Split:
  """A split with those labels; the image of record i is b"i"."""
  found = enumerate(map(int, labels))
  source = Source({"image": b"%d" % i, "label": k} for i, k in found)
  names = ("ant", "bee", "cat")
  return split.Split("zoo", "train", source, names, **attributes)


def places(part: split.Split) -> list[int]:
  """Which records of the source it has, as its records say themselves."""
  return [int(record["image"]) for record in part]


def test_records_of_a_part():
  part = make([2, 0, 1, 1], indices=np.array([3, 0]))
  assert part[0] == {"image": b"3", "label": 1, "index": 3}
  assert [r["index"] for r in part] == part.records.tolist() == [3, 0]
  assert part.labels.tolist() == [1, 2] and part.valid_labels is None
  error = str(part.decode_error(5, ValueError("not an image")))
  assert error.startswith(
    "data set zoo, split train, record 5 can't be decoded"
  )
  for label in (-1, 3):
    with pytest.raises(UserError, match=f"record 1 has label {label}, outside"):
      _ = make([0, label], indices=np.array([1]))[0]


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
  assert {*places(whole.per_class(small, seed))} <= {*found}
  assert {*places(part.per_class(small, seed + 1))} <= {*found}
  with pytest.raises(UserError, match=f"{most + 1} are asked for; ask for few"):
    whole.per_class(most + 1, seed)
