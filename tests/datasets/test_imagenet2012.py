"""ImageNet-1k, its ReaL labels and ImageNet-V2, from their own files."""

import dataclasses
import gzip
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from mixer import progress
from mixer.datasets import (
  imagenet2012,
  imagenet2012_real,
  imagenet_v2,
  split,
  wordnet,
)
from mixer.datasets.preparation import own_sets
from mixer.errors import UserError
from tests.datasets.sources import image_archives

CLASSES = wordnet.classes("imagenet1k")
TRAIN = {
  f"{wnid}/{wnid}_{k}.JPEG": image_archives.image(10 * c + k)
  for c, wnid in enumerate((CLASSES[5], CLASSES[0], CLASSES[999]))
  for k in range(3)
}
# Not in the order of their numbers, as in the real one.
NUMBERS = (3, 50_000, 1, 2, 41)


def name_of(number: int) -> str:
  return f"ILSVRC2012_val_{number:08}.JPEG"


VAL = {name_of(n): image_archives.image(1000 + n) for n in NUMBERS}


def train_tar() -> bytes:
  return image_archives.tar(image_archives.class_tars(TRAIN))


def write(root: pathlib.Path) -> pathlib.Path:
  return image_archives.write(
    root,
    {
      "ILSVRC2012_img_train.tar": train_tar(),
      "ILSVRC2012_img_val.tar": image_archives.tar(VAL),
    },
  )


def prepare(root: pathlib.Path, name: str, *sources: pathlib.Path, **options):
  options = {"workers": 0} | options
  request = own_sets.Request(name, sources, options=options)
  with progress.Progress() as shown:
    return own_sets.prepare(request, root, shown)


def tfds_labels() -> list[str]:
  """As TFDS deals out its list: in the order of the names."""
  path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
  names = sorted(name_of(n) for n in range(1, 50_001))
  labels = dict(zip(names, path.read_text().split(), strict=True))
  return [labels[name_of(n)] for n in range(1, 50_001)]


def test_the_labels_are_those_of_tfds():
  assert list(imagenet2012.validation_labels()) == tfds_labels()
  theirs = tfds.builder("imagenet2012", data_dir="/nosuch")
  assert theirs.info.features["label"].names == list(CLASSES)


def test_a_package_without_labels_is_refused(monkeypatch):
  monkeypatch.setattr(imagenet2012, "_LABELS", "nosuch.txt")
  with pytest.raises(UserError, match=r"has no nosuch.txt. Install another"):
    imagenet2012.validation_labels()


def test_imagenet_from_its_tars(tmp_path):
  _, report = prepare(tmp_path, "imagenet2012", write(tmp_path / "in"))
  assert report.splits == {"train": 9, "validation": 5}
  assert report.problems == {}
  train = split.open_split("imagenet2012", "train", str(tmp_path))
  assert train.class_names == CLASSES
  # Shuffled, as slices of it are taken.
  order = [list(TRAIN.values()).index(train[i]["image"]) for i in range(9)]
  assert sorted(order) == list(range(9)) != order
  wnids = [name.split("/")[0] for name in TRAIN]
  assert [CLASSES[k] for k in train.labels] == [wnids[i] for i in order]
  val = split.open_split("imagenet2012", "validation", str(tmp_path))
  labels = tfds_labels()
  assert [CLASSES[k] for k in val.labels] == [labels[n - 1] for n in NUMBERS]
  assert val.valid_labels is None
  # TFDS's own builder takes it for its own.
  theirs = tfds.builder("imagenet2012", data_dir=str(tmp_path))
  records = theirs.as_data_source("validation")
  assert records[1]["file_name"] == name_of(50_000).encode()
  assert records[1]["label"] == val.labels[1]


def test_a_part_of_the_training_images_is_held_out(tmp_path):
  source = write(tmp_path / "in")
  _, report = prepare(tmp_path, "imagenet2012", source, hold_out={"minival": 2})
  assert report.splits == {"train": 7, "minival": 2, "validation": 5}
  with pytest.raises(UserError, match="the source has one of its own"):
    other = tmp_path / "b"
    prepare(other, "imagenet2012", source, hold_out={"validation": 2})


def test_tars_by_name_and_alone(tmp_path):
  root = write(tmp_path)
  (root / "val.bin").write_bytes(gzip.compress(image_archives.tar(VAL)))
  whole = imagenet2012.open_source([root])
  train = root / "ILSVRC2012_img_train.tar"
  named = imagenet2012.open_source([root / "val.bin", train])
  assert image_archives.contents(whole) == image_archives.contents(named)
  image_archives.check_start(whole)
  assert list(whole.class_names()) == list(CLASSES)
  val = imagenet2012.open_source([root / "val.bin"])
  assert val.warnings == ["there is no tar of the train images"]
  assert {m.split for m in image_archives.members(val)} == {"validation"}
  (root / "ILSVRC2012_img_test_v10102019.tar").write_bytes(b"left alone")
  assert image_archives.contents(imagenet2012.open_source([root]))


def test_imagenet_in_folders(tmp_path):
  for name, data in TRAIN.items():
    wnid, base = name.split("/")
    image_archives.write(tmp_path, {f"train/{wnid}/{base}": data})
    image_archives.write(tmp_path, {f"val/{wnid}/{base}": data[::-1]})
  source = imagenet2012.open_source([tmp_path])
  assert source.class_names() == CLASSES
  # Those without a split become `train`, as from the tar, and by its names.
  members = image_archives.members(source)
  assert {m.name for m in members if not m.split} == set(TRAIN)
  assert {m.split for m in members} == {"", "validation"}


@pytest.mark.parametrize(
  ("files", "says"),
  [
    ({}, "holds no tar, but nothing. Expected is a folder with ILSVRC2012"),
    ({"a.tar": {"cat.jpg": b"x"}}, "begins with cat.jpg, as neither the tra"),
    ({"a.tar": {}}, "holds no file"),
    ({"a.tar": VAL, "b.tar": VAL}, "both hold the validation images"),
  ],
)
def test_other_things_than_imagenet(tmp_path, files, says):
  for name, inside in files.items():
    (tmp_path / name).write_bytes(image_archives.tar(inside))
  with pytest.raises(UserError, match=says):
    imagenet2012.open_source([tmp_path])


def test_damaged_tars(tmp_path):
  path = tmp_path / "ILSVRC2012_img_val.tar"
  path.write_bytes(b"x" * 2000)
  with pytest.raises(UserError, match="is no tar, or a damaged one"):
    imagenet2012.open_source([path])
  with pytest.raises(UserError, match="does not exist"):
    imagenet2012.open_source([tmp_path / "nosuch"])
  whole = image_archives.tar(VAL)
  path.write_bytes(whole[: whole.index(VAL[name_of(2)]) + 9])
  source = imagenet2012.open_source([path])
  with pytest.raises(UserError, match="--accept_truncated"):
    image_archives.members(source)
  source = imagenet2012.open_source([path], accept_truncated=True)
  assert len(image_archives.members(source)) == 3


def test_a_name_that_is_no_number(tmp_path):
  path = tmp_path / "val.tar"
  odd = {"ILSVRC2012_val_00050001.JPEG": b"x", "cat.JPEG": b"y"}
  path.write_bytes(image_archives.tar({**VAL, **odd}))
  members = image_archives.members(imagenet2012.open_source([path]))
  assert [m.name for m in members if m.error] == list(odd)
  assert "its name is none of ILSVRC2012_val_00000001" in members[-1].error


def real_json(path: pathlib.Path) -> list[list[int]]:
  labels = [[] if n % 3 == 0 else [n % 7, n % 1000] for n in range(50_000)]
  path.write_text(json.dumps(labels))
  return labels


def test_the_real_labels(tmp_path):
  root = write(tmp_path / "in")
  labels = real_json(root / "real.json")
  _, report = prepare(
    tmp_path, "imagenet2012_real", root / "ILSVRC2012_img_val.tar",
    root / "real.json",
  )  # fmt: skip
  assert report.splits == {"validation": 5}
  found = split.open_split("imagenet2012_real", "validation", str(tmp_path))
  expected = [labels[n - 1] for n in NUMBERS]
  assert found.valid_labels == tuple(map(frozenset, expected))
  assert frozenset() in found.valid_labels
  assert [CLASSES[k] for k in found.labels] == [
    tfds_labels()[n - 1] for n in NUMBERS
  ]
  assert found.class_names == CLASSES
  for record, number in zip(found.read(range(5)), NUMBERS, strict=True):
    assert record["image"] == VAL[name_of(number)]
  # A part of it, as `per_class` makes one.
  part = dataclasses.replace(found, indices=np.array([3, 0]))
  assert part.valid_labels == (found.valid_labels[3], found.valid_labels[0])
  # As TFDS reads it, in its own features.
  theirs = tfds.builder("imagenet2012_real", data_dir=str(tmp_path))
  for record, right in zip(
    theirs.as_data_source("validation"), expected, strict=True
  ):
    assert list(record["real_label"]) == right
  ours = imagenet2012_real.Imagenet2012Real(data_dir=str(tmp_path))
  assert set(ours.info.features) == set(theirs.info.features)
  image_archives.check_start(imagenet2012_real.open_source([root]))


def test_a_valid_label_that_is_no_class():
  class Source(list):
    def __getitems__(self, indices):
      return [self[i] for i in indices]

  record = {"image": b"", "label": 0, "valid_labels": frozenset({1, 9})}
  found = split.Split("s", "test", Source([record]), ("a", "b"))
  with pytest.raises(UserError, match="record 0 has label 9, outside the 2"):
    assert found.valid_labels


@pytest.mark.parametrize(
  ("content", "says"),
  [
    ("[[1], ", "can't be read as JSON"),
    ("{}", "holds no list, and a list of 50,000"),
    ("[[1]]", "holds 1 entries, and a list of 50,000"),
    (json.dumps([[1]] * 49_999 + [[1000]]), "entry 49999 of .* is .1000., and"),
    (json.dumps([[True]] * 50_000), "entry 0 of "),
    (json.dumps([3] * 50_000), "entry 0 of .* is 3, and a list of classes"),
  ],
)
def test_real_labels_that_are_none(tmp_path, content, says):
  root = write(tmp_path)
  (root / "real.json").write_text(content)
  with pytest.raises(UserError, match=says):
    imagenet2012_real.open_source([root])


def test_real_labels_without_one_of_the_files(tmp_path):
  root = write(tmp_path)
  with pytest.raises(UserError, match=r"names no file of labels, a \.json"):
    imagenet2012_real.open_source([root])
  real_json(root / "real.json")
  (root / "ILSVRC2012_img_val.tar").unlink()
  with pytest.raises(UserError, match="names no tar with images called ILSVRC"):
    imagenet2012_real.open_source([root])


V2 = {
  f"{k}/{n}.jpeg": image_archives.image(k + n)
  for k in (2, 10, 999)
  for n in (0, 7)
}
TOP = "imagenetv2-matched-frequency-format-val"


@pytest.mark.parametrize("form", ["tar.gz", "tar", "folder", "folder in one"])
def test_imagenet_v2(tmp_path, form):
  files = {f"{TOP}/{name}": data for name, data in V2.items()}
  if form.startswith("tar"):
    path = tmp_path / f"imagenetv2-matched-frequency.{form}"
    tar = image_archives.tar(files)
    path.write_bytes(gzip.compress(tar) if form == "tar.gz" else tar)
  else:
    root = image_archives.write(tmp_path / "in", files)
    path = root if form == "folder in one" else root / TOP
  name, report = prepare(tmp_path / "data", "imagenet_v2", path)
  assert name == "imagenet_v2/matched-frequency"
  assert report.splits == {"test": 6}
  found = split.open_split("imagenet_v2", "test", str(tmp_path / "data"))
  assert found.class_names == CLASSES
  expected = {data: int(name.split("/")[0]) for name, data in V2.items()}
  for record in found.read(range(6)):
    assert record["label"] == expected[record["image"]]
  theirs = tfds.builder("imagenet_v2", data_dir=str(tmp_path / "data"))
  names = {r["file_name"].decode() for r in theirs.as_data_source("test")}
  assert names == set(V2)


@pytest.mark.parametrize("form", ["tar", "folder"])
def test_another_variant(tmp_path, form):
  top = "imagenetv2-top-images-format-val"
  files = {f"{top}/{name}": data for name, data in V2.items()}
  path = image_archives.write(tmp_path / "in", files) / top
  if form == "tar":
    path = tmp_path / "x.tar"
    path.write_bytes(image_archives.tar(files))
  with pytest.raises(UserError, match="prepare it as imagenet_v2/topimages"):
    imagenet_v2.open_source([path], "threshold-0.7")
  assert (
    len(image_archives.members(imagenet_v2.open_source([path], "topimages")))
    == 6
  )


def test_other_things_than_imagenet_v2(tmp_path):
  with pytest.raises(UserError, match="given 2 times"):
    imagenet_v2.open_source([tmp_path, tmp_path], "topimages")
  with pytest.raises(UserError, match="holds no tar, but nothing"):
    imagenet_v2.open_source([tmp_path], "topimages")
  path = tmp_path / "x.tar"
  odd = {"1000/a.jpeg": b"x", "cat/b.jpeg": b"y", "0/c.jpeg": b"z"}
  path.write_bytes(image_archives.tar(odd))
  members = image_archives.members(imagenet_v2.open_source([path], "topimages"))
  error = "lies in no folder called 0 to 999"
  assert [m.error for m in members] == [error, error, ""]
  root = image_archives.write(tmp_path / "in", odd)
  found = image_archives.members(imagenet_v2.open_source([root], "topimages"))
  assert {m.name: m.error for m in found} == {m.name: m.error for m in members}


@pytest.mark.parametrize(
  "make",
  [
    imagenet2012.Imagenet2012,
    imagenet2012_real.Imagenet2012Real,
    imagenet_v2.ImagenetV2,
  ],
)
def test_builders_are_those_of_tfds(make, tmp_path):
  ours = make(data_dir=str(tmp_path))
  theirs = registered.imported_builder_cls(ours.name)(data_dir=str(tmp_path))
  assert ours.data_dir == theirs.data_dir
  assert list(ours.builder_configs) == list(theirs.builder_configs)
  assert set(ours.info.features) == set(theirs.info.features)
  for key in ("label", "original_label"):
    if key in theirs.info.features:
      names = ours.info.features[key].names
      assert names == theirs.info.features[key].names
  assert type(theirs) is not make
