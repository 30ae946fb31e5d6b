"""The data sets that ship: what they hold, and their preparation."""

import collections
import io
import pathlib
import platform
import socket
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from matplotlib import ft2font
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
  parts = [
    opened("digits", part, where) for part in ("train[:98%]", "train[98%:]")
  ]
  parts.append(opened("digits", "auto", where))
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


def test_what_stopped_preparations_left(tmp_path):
  parent = tmp_path / "digits"
  for name in (f"incomplete.{platform.node()}_1.0.0", "1.0.0"):
    (parent / name).mkdir(parents=True)
    (parent / name / "mine").write_text("in the way")
  with pytest.raises(UserError, match=r"Remove .*digits/1\.0\.0 if that"):
    opened("digits", "train", tmp_path)
  (parent / "1.0.0" / "mine").unlink()
  opened("digits", "train", tmp_path)
  assert [p.name for p in parent.iterdir()] == ["1.0.0"]
  # The tests may run as root, who may write anywhere but into a file.
  with pytest.raises(UserError, match=r"can't be prepared in .*data_dir=DIR"):
    opened("digits", "train", tmp_path / ".digits.lock" / "data")


def test_what_is_not_installed_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "sklearn", None)
  with pytest.raises(UserError, match="pip install scikit-learn"):
    opened("digits", "train", tmp_path)
  with monkeypatch.context() as patch:
    patch.setitem(shipped.FONTS, "Nosuch", frozenset("A"))
    with pytest.raises(UserError, match="with Nosuch"):
      opened("glyphs", "train", tmp_path)
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(UserError, match="no matplotlib"):
    opened("glyphs", "train", tmp_path)


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
  for name, size in catalog.SIZES["glyphs"][1].items():
    part = opened("glyphs", name, tmp_path)
    count = collections.Counter(part.labels.tolist())
    assert len(part) == size and len({*count.values()}) == 1
    distinct |= {record["image"] for record in part}
  assert len(distinct) == 40_800


def test_classes_share_no_character_and_no_font_between_splits(monkeypatch):
  count = collections.Counter("".join(shipped.CLASSES.values()))
  assert {*count.values()} == {1}
  drawn = []
  monkeypatch.setattr(
    shipped,
    "render",
    lambda *args: drawn.append(args) or np.zeros((1, 1), np.uint8),
  )
  for name, chars in shipped.CLASSES.items():
    assert name == name.strip()  # As the file of names needs it.
    fonts = {}
    for part, size in shipped.PER_CLASS.items():
      drawn.clear()
      assert len([*shipped.glyphs(part, name)]) == size
      assert {char for _, char, _ in drawn} == {*chars}, name
      found = collections.Counter(pathlib.Path(p).stem for p, *_ in drawn)
      assert all(c in shipped.FONTS[pathlib.Path(p).stem] for p, c, _ in drawn)
      assert max(found.values()) - min(found.values()) <= 1, name
      fonts[part] = {*found}
    assert len(fonts["train"]) >= 12 and len(fonts["test"]) >= 3, name
    assert not fonts["train"] & fonts["test"]


def test_every_font_draws_its_characters():
  for font, chars in shipped.FONTS.items():
    path = str(shipped.font_directory() / f"{font}.ttf")
    table = ft2font.FT2Font(path)
    # U+10FFFF is a noncharacter: what is drawn for it is drawn for want of one.
    box = shipped.ink(path, chr(0x10FFFF))
    for char in chars:
      assert table.get_char_index(ord(char)), (font, char)
      assert shipped.ink(path, char) != box, (font, char)
