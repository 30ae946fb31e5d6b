"""The data sets that ship: what they hold, and their preparation."""

import collections
import io
import platform
import socket

import numpy as np
import pytest
import tensorflow_datasets as tfds
from matplotlib import ft2font, get_data_path
from PIL import Image

from mixer.datasets import catalog, shipped, split
from mixer.errors import UserError


def opened(name: str, part: str, root) -> split.Split:
  return split.open_split(name, part, str(root))


def pixels(encoded: bytes) -> np.ndarray:
  image = Image.open(io.BytesIO(encoded))
  assert (image.format, image.mode) == ("PNG", "L")
  return np.asarray(image)


def test_digits_are_scikit_learns_in_order(tmp_path, capsys, monkeypatch):
  from sklearn import datasets

  for name in ("connect", "getaddrinfo"):  # Nothing asks the network.
    monkeypatch.setattr(socket, name, None, raising=False)
  where = tmp_path / "new" / "folder"
  expressions = ("train[:98%]", "train[98%:]", "auto")
  parts = [opened("digits", part, where) for part in expressions]
  line = f"preparing data set digits in {where} (once)\n"
  assert capsys.readouterr().out == line
  assert [len(part) for part in parts] == [1372, 28, 397]
  assert parts[0].class_names == tuple("0123456789")
  records = [record for part in parts for record in part]
  images = np.stack([pixels(record["image"]) for record in records])
  theirs = datasets.load_digits()
  np.testing.assert_array_equal(np.round(images * (16 / 255)), theirs.images)
  assert [record["label"] for record in records] == theirs.target.tolist()
  builder = tfds.builder("digits", data_dir=where)
  assert builder.info.features["label"].names == list("0123456789")
  source = builder.as_data_source("test")
  np.testing.assert_array_equal(source[3]["image"][..., 0], images[1403])


def test_stopped_and_failing_preparations(tmp_path):
  left = tmp_path / "digits" / f"incomplete.{platform.node()}_1.0.0"
  left.mkdir(parents=True)
  (left / "mine").write_text("in the way")
  opened("digits", "train", tmp_path)
  assert [p.name for p in left.parent.iterdir()] == ["1.0.0"]
  # The tests may run as root, who may write anywhere but into a file.
  with pytest.raises(UserError, match=r"can't be prepared in .*data_dir=DIR"):
    opened("digits", "train", tmp_path / ".digits.lock" / "data")


def test_glyphs_of_a_few(monkeypatch, tmp_path):
  monkeypatch.setattr(shipped, "PER_CLASS", {"train": 6, "test": 2})
  train, test = (opened("glyphs", part, tmp_path) for part in ("train", "test"))
  assert (len(train), len(test)) == (6 * len(shipped.CLASSES), 204)
  assert train.class_names == tuple(shipped.CLASSES)
  # Shuffled, so that slices such as `train[:98%]` are fair.
  assert np.any(np.diff(train.labels[:20]) < 0)
  by_class = collections.defaultdict(set)
  for record in train:
    by_class[record["label"]].add(record["image"])
    image = pixels(record["image"])
    assert image.shape == (32, 32) and image.max() >= 140
    # A rim of one pixel is black but for what bends over it.
    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert np.median(rim) < 40
    rows, columns = np.nonzero(image > 60)
    assert max(np.ptp(rows), np.ptp(columns)) >= 14
  # An image depends on its own number alone.
  shipped.ink.cache_clear()
  monkeypatch.setattr(shipped, "PER_CLASS", {"train": 3})
  for label, name in enumerate(shipped.CLASSES):
    assert len(by_class[label]) == 6
    assert {*shipped.glyphs("train", name)} < by_class[label]


@pytest.mark.slow
def test_the_whole_of_glyphs(tmp_path):
  distinct = set()
  for name, size in (
    ("train", catalog.ENTRIES["glyphs"].train),
    ("test", 4_080),
  ):
    part = opened("glyphs", name, tmp_path)
    count = collections.Counter(part.labels.tolist())
    assert len(part) == size and len({*count.values()}) == 1
    distinct |= {record["image"] for record in part}
  assert len(distinct) == 40_800


def test_classes_share_no_character_and_no_font_between_splits(monkeypatch):
  count = collections.Counter("".join(shipped.CLASSES.values()))
  assert {*count.values()} == {1}
  for font, chars in shipped.FONTS.items():
    table = ft2font.FT2Font(f"{get_data_path()}/fonts/ttf/{font}.ttf")
    for char in chars:
      assert table.get_char_index(ord(char)), (font, char)
      assert shipped.ink(font, char)[1] > 0.05
  drawn, black = [], np.zeros((1, 1), np.uint8)
  monkeypatch.setattr(shipped, "render", lambda *a: drawn.append(a) or black)
  for name, chars in shipped.CLASSES.items():
    assert name == name.strip()  # As the file of names needs it.
    fonts = {}
    for part, size in shipped.PER_CLASS.items():
      drawn.clear()
      assert len([*shipped.glyphs(part, name)]) == size
      assert {char for _, char, _ in drawn} == {*chars}, name
      assert all(char in shipped.FONTS[font] for font, char, _ in drawn)
      found = collections.Counter(font for font, *_ in drawn)
      assert max(found.values()) - min(found.values()) <= 1, name
      fonts[part] = {*found}
    assert len(fonts["train"]) >= 12 and len(fonts["test"]) >= 3, name
    assert not fonts["train"] & fonts["test"]
