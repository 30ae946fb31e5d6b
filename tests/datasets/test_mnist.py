"""MNIST and Fashion-MNIST from their own files."""

import gzip
import io
import pathlib
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mixer import progress
from mixer.datasets import mnist, split
from mixer.datasets.preparation import build, own_sets
from mixer.datasets.sources import idx_files
from mixer.errors import UserError
from tests.datasets.sources import image_archives

RNG = np.random.default_rng(0)
IMAGES = {
  begin: RNG.integers(0, 256, (size, 28, 28)).astype(np.uint8)
  for begin, size in (("train", 23), ("t10k", 7))
}
LABELS = {
  begin: RNG.integers(0, 10, len(images)).astype(np.uint8)
  for begin, images in IMAGES.items()
}


def idx(values: np.ndarray) -> bytes:
  """As its author describes the format."""
  magic = bytes([0, 0, 8, values.ndim])
  return magic + struct.pack(f">{values.ndim}I", *values.shape) + bytes(values)


def write(root: pathlib.Path, form="{}-{}-idx{}-ubyte.gz") -> pathlib.Path:
  root.mkdir(exist_ok=True)
  for begin in IMAGES:
    for kind, values in (("images", IMAGES), ("labels", LABELS)):
      name = form.format(begin, kind, values[begin].ndim)
      data = idx(values[begin])
      data = gzip.compress(data, 1) if name.endswith(".gz") else data
      (root / name).write_bytes(data)
  return root


def prepare(root: pathlib.Path, name: str, source: pathlib.Path, **kwargs):
  request = own_sets.Request(name, [source], **kwargs)
  with progress.Progress() as shown:
    return own_sets.prepare(request, root, shown)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_what_tfds_makes_of_it_too(tmp_path, name):
  where = write(tmp_path / "in")
  _, report = prepare(tmp_path, name, where, options={"workers": 0})
  assert report.splits == {"train": 23, "test": 7}
  assert report.problems == {}
  assert report.warnings == (
    f"the split train has 23 images, and {name} 60,000",
    f"the split test has 7 images, and {name} 10,000",
  )
  for part, begin in (("train", "train"), ("test", "t10k")):
    opened = split.open_split(name, part, str(tmp_path))
    np.testing.assert_array_equal(opened.labels, LABELS[begin])
    for i, image in enumerate(IMAGES[begin]):
      with Image.open(io.BytesIO(opened[i]["image"])) as found:
        assert found.format == "PNG"
        np.testing.assert_array_equal(np.asarray(found), image)
    assert opened.class_names == mnist.CLASSES[name]
  # TFDS's own builder takes it for its own, and has the same classes.
  theirs = tfds.builder(name, data_dir=str(tmp_path))
  assert theirs.info.features["label"].names == list(mnist.CLASSES[name])
  records = theirs.as_data_source("test")
  np.testing.assert_array_equal(records[3]["image"][..., 0], IMAGES["t10k"][3])
  assert records[3]["label"] == LABELS["t10k"][3]


@pytest.mark.parametrize(
  "form", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}-{}.idx{}-ubyte.gz"]
)
def test_all_forms_of_the_files_are_one(tmp_path, form):
  packed = mnist.open_source([write(tmp_path / "a")], "mnist")
  other = mnist.open_source([write(tmp_path / "b", form)], "mnist")
  assert image_archives.contents(packed) == image_archives.contents(other)
  image_archives.check_start(other)
  assert other.total_bytes == 30 * 28 * 28


def test_unpacked_on_the_way_with_the_name_kept(tmp_path):
  where = write(tmp_path)
  path = where / "t10k-images-idx3-ubyte.gz"
  path.write_bytes(gzip.decompress(path.read_bytes()))
  assert len(image_archives.members(mnist.open_source([where], "mnist"))) == 30


def test_resized_and_held_out_as_other_sets(tmp_path):
  source = mnist.open_source([write(tmp_path / "in")], "mnist")
  builder = mnist.Mnist(
    source=source,
    options=build.Options(short_side=14, workers=0),
    data_dir=str(tmp_path),
  )
  builder.prepare()
  opened = split.open_split("mnist", "test", str(tmp_path))
  assert Image.open(io.BytesIO(opened[0]["image"])).size == (14, 14)


def spoil(path: pathlib.Path, change) -> None:
  path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


@pytest.mark.parametrize(
  ("file", "change", "says"),
  [
    ("t10k-images-idx3", lambda b: b[:-1], "cut short: by its header it has"),
    ("t10k-labels-idx1", lambda b: b + b"x", "longer than it says"),
    ("train-images-idx3", lambda b: b"\0\0\x08\1" + b[4:], "begins with 00 00"),
    ("train-images-idx3", lambda b: b"", "begins with nothing, where 00 00 08"),
    ("train-images-idx3", lambda b: b[:12], "is no idx file of images"),
    ("train-labels-idx1", lambda b: idx(LABELS["t10k"]), "23 images, and the "),
    ("train-labels-idx1", lambda b: idx(LABELS["train"] + 5), "labels beside"),
    (
      "train-images-idx3",
      lambda b: idx(IMAGES["train"].repeat(2, 1)),
      "images of 56 x 28 pixels",
    ),
    (
      "train-images-idx3",
      lambda b: b[:4] + b"\xff" * 12 + b[16:],
      "it has 79,228,162",
    ),
  ],
)
def test_files_that_are_not_right(tmp_path, file, change, says):
  path = write(tmp_path) / f"{file}-ubyte.gz"
  spoil(path, change)
  with pytest.raises(UserError) as caught:
    mnist.open_source([tmp_path], "mnist")
  assert says in str(caught.value) and str(path.parent) in str(caught.value)


def test_a_packed_file_that_is_cut_short(tmp_path):
  path = write(tmp_path) / "train-images-idx3-ubyte.gz"
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(UserError, match=r"gz can't be read: .* Get it again"):
    mnist.open_source([tmp_path], "mnist")


def test_a_packed_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
  write(tmp_path)
  monkeypatch.setattr(idx_files, "_MOST_BYTES", 10_000)
  with pytest.raises(UserError, match="unpacks to more than 10,000 bytes"):
    mnist.open_source([tmp_path], "mnist")


def test_files_that_are_not_there(tmp_path):
  with pytest.raises(UserError, match="nosuch does not exist. Expected is a"):
    mnist.open_source([tmp_path / "nosuch"], "mnist")
  (write(tmp_path) / "t10k-labels-idx1-ubyte.gz").unlink()
  with pytest.raises(UserError, match="has no t10k-labels-idx1-ubyte; it hold"):
    mnist.open_source([tmp_path], "mnist")
  with pytest.raises(UserError, match="is no folder"):
    mnist.open_source([tmp_path / "train-labels-idx1-ubyte.gz"], "mnist")
  with pytest.raises(UserError, match="given 2 times"):
    mnist.open_source([tmp_path, tmp_path], "mnist")


def test_the_files_of_the_other_set(tmp_path):
  where = write(tmp_path)
  labels = np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5, *[0] * 13], np.uint8)
  spoil(where / "train-labels-idx1-ubyte.gz", lambda b: idx(labels))
  with pytest.raises(UserError, match="prepare it as fashion_mnist"):
    mnist.open_source([where], "mnist")
  source = mnist.open_source([where], "fashion_mnist")
  first, _ = next(source.members())
  assert (first.class_name, first.name) == ("Ankle boot", "train/00000.png")


def test_the_classes_are_those_of_tfds(tmp_path):
  for name, make in (
    ("mnist", mnist.Mnist),
    ("fashion_mnist", mnist.FashionMnist),
  ):
    ours = make(data_dir=str(tmp_path))
    theirs = tfds.builder(name, data_dir=str(tmp_path))
    assert (ours.name, ours.version) == (theirs.name, theirs.version)
    for key, feature in theirs.info.features.items():
      assert ours.info.features[key].shape == feature.shape
    assert ours.info.features["label"].names == (
      theirs.info.features["label"].names
    )
    assert idx_files.SIDE == theirs.info.features["image"].shape[0]


def test_flags_for_other_sets(tmp_path):
  where = write(tmp_path / "in")
  with pytest.raises(UserError, match="lists classes, and those of mnist are"):
    prepare(tmp_path, "mnist", where, class_file=where)
  with pytest.raises(UserError, match="mnist reads none that may"):
    prepare(tmp_path, "mnist", where, accept_truncated=True)
  with pytest.raises(UserError, match="comes in one form; name it mnist"):
    prepare(tmp_path, "mnist/small", where)
