"""Tests of the `glyphs` data set."""

import collections
import functools
import io
import os
import socket
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from matplotlib import ft2font
from PIL import Image
from tensorflow_datasets.core.utils import tqdm_utils

from mixer import errors
from mixer.datasets import glyph_render, glyphs

_SPLITS = {"train": glyphs.TRAIN_PER_CLASS, "test": glyphs.TEST_PER_CLASS}
_PAIRS = [(font, char) for font in glyphs.FONTS for char in glyphs.FONTS[font]]


def _path(font):
  return os.path.join(glyphs.font_directory(), f"{font}.ttf")


@functools.cache
def _fitted(font, char):
  """The glyph's ink in [0, 1], fattened a little, fitted to 24 x 24 pixels."""
  ink = glyph_render.ink(_path(font), char, 2)
  scale = 24 / max(ink.size)
  size = [max(1, round(side * scale)) for side in ink.size]
  canvas = Image.new("L", (24, 24))
  corner = ((24 - size[0]) // 2, (24 - size[1]) // 2)
  canvas.paste(ink.resize(size, Image.Resampling.BOX), corner)
  return np.asarray(canvas, np.float32) / 255


def _likeness(font, char):
  """How far the glyph's ink agrees with its best likeness in another font."""
  ours = _fitted(font, char)
  return max(
    np.minimum(ours, theirs).sum() / np.maximum(ours, theirs).sum()
    for theirs in (
      _fitted(other, char)
      for other, trusted in glyphs.FONTS.items()
      if other != font and char in trusted
    )
  )


def _decode(encoded):
  return np.asarray(Image.open(io.BytesIO(encoded)))


def _prepare(data_dir):
  """Prepares the set; asserts that neither network nor TensorFlow is used."""
  attempts = []
  tensorflow = "tensorflow" in sys.modules
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(socket.socket, "connect", lambda *a: attempts.append(a))
    patch.setattr(socket, "getaddrinfo", lambda *a, **k: attempts.append(a))
    patch.setattr(tqdm_utils, "_active", False)
    builder: Any = glyphs.Glyphs(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare()
  assert not attempts
  assert ("tensorflow" in sys.modules) == tensorflow
  return builder


def test_no_character_has_two_classes():
  count = collections.Counter("".join(glyphs.CLASSES.values()))
  assert not [char for char, times in count.items() if times > 1]
  assert 95 <= len(glyphs.CLASSES) <= 110


def test_class_names_survive_the_file_that_tfds_writes():
  assert all(
    name == name.strip() and name and "\n" not in name
    for name in glyphs.CLASSES
  )


def test_fonts_cover_every_class_in_both_splits():
  for name in glyphs.CLASSES:
    train = glyphs.fonts_of(name, "train")
    test = glyphs.fonts_of(name, "test")
    assert len(train) >= 12 and len(test) >= 3, name
    assert not set(train) & set(test), name
  assert set(glyphs.TEST_FONTS) < set(glyphs.FONTS)


@pytest.mark.parametrize("split", _SPLITS)
def test_fonts_and_characters_share_a_class_evenly(split):
  for name, chars in glyphs.CLASSES.items():
    drawn = [glyphs.source(name, split, k) for k in range(_SPLITS[split])]
    fonts = collections.Counter(font for font, _ in drawn)
    assert set(fonts) == set(glyphs.fonts_of(name, split))
    assert max(fonts.values()) - min(fonts.values()) <= 1, name
    assert {char for _, char in drawn} == set(chars), name
    assert all(char in glyphs.FONTS[font] for font, char in drawn)


@pytest.mark.parametrize("font", glyphs.FONTS)
def test_no_glyph_is_blank_or_a_box(font):
  table = ft2font.FT2Font(_path(font))
  # U+10FFFF is a noncharacter: what is drawn for it is drawn for want of one.
  assert not table.get_char_index(0x10FFFF)
  box = glyph_render.ink(_path(font), chr(0x10FFFF))
  for char in glyphs.FONTS[font]:
    ink = glyph_render.ink(_path(font), char)
    assert table.get_char_index(ord(char)), (font, char)
    assert ink.width and ink.height, (font, char)
    assert ink != box, (font, char)


def test_every_glyph_resembles_its_character_elsewhere():
  # A glyph at the wrong code is neither blank nor a box. The oddest that is
  # right scores 0.41 (the per cent sign of cmtt10).
  odd = [pair for pair in _PAIRS if _likeness(*pair) < 0.38]
  assert not odd


@pytest.mark.parametrize("pair", ["cmr10 <", "cmss10 {", "cmti10 $"])
def test_likeness_tells_remapped_glyphs(pair):
  font, char = pair.split()
  assert char not in glyphs.FONTS[font]
  assert _likeness(font, char) < 0.35


def test_ink_is_light_on_black_and_fills_the_frame():
  folder = glyphs.font_directory()
  for name in glyphs.CLASSES:
    for k in range(6):
      image = _decode(glyphs.draw(folder, name, "train", k))
      assert image.shape == (32, 32) and image.dtype == np.uint8
      assert image.max() >= 140, (name, k)
      # A rim of one pixel is black but for what bends over it.
      rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
      assert np.median(rim) < 40, (name, k)
      rows, columns = np.nonzero(image > 60)
      assert max(np.ptp(rows), np.ptp(columns)) >= 14, (name, k)


def test_an_image_depends_on_its_own_number_alone():
  folder = glyphs.font_directory()
  forward = [glyphs.draw(folder, "A", "train", k) for k in range(40)]
  assert len(set(forward)) == 40
  glyph_render.ink.cache_clear()
  backward = [glyphs.draw(folder, "A", "train", k) for k in range(39, -1, -1)]
  assert backward[::-1] == forward
  assert glyphs.draw(folder, "A", "train", 3, seed=1) != forward[3]


def test_prepares_without_network_or_tensorflow(tmp_path, monkeypatch):
  monkeypatch.setattr(glyphs, "TRAIN_PER_CLASS", 3)
  monkeypatch.setattr(glyphs, "TEST_PER_CLASS", 1)
  builder = _prepare(tmp_path)
  source = builder.as_data_source(
    split="train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  classes = list(glyphs.CLASSES)
  assert len(source) == 3 * len(classes)
  assert isinstance(source[0]["image"], bytes)
  # TFDS shuffles by key, so that slices such as `train[:98%]` are fair.
  stored = collections.defaultdict(set)
  for i in range(len(source)):
    stored[int(source[i]["label"])].add(source[i]["image"])
  folder = glyphs.font_directory()
  for label, name in enumerate(classes):
    assert stored[label] == {
      glyphs.draw(folder, name, "train", k) for k in range(3)
    }
  assert np.any(np.diff([int(source[i]["label"]) for i in range(20)]) < 0)


def test_metadata(tmp_path):
  info: Any = glyphs.Glyphs(data_dir=tmp_path).info
  assert info.name == "glyphs"
  assert info.supervised_keys == ("image", "label")
  assert info.features["image"].shape == (32, 32, 1)
  assert info.features["label"].names == list(glyphs.CLASSES)
  assert info.description and info.homepage and info.citation


def test_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "matplotlib", None)
  with pytest.raises(errors.UserError, match="pip install matplotlib"):
    glyphs.font_directory()


def test_names_the_fonts_that_are_missing(monkeypatch):
  monkeypatch.setitem(glyphs.FONTS, "Nosuch", frozenset("A"))
  with pytest.raises(errors.UserError, match="Nosuch"):
    glyphs.font_directory()


@pytest.mark.slow
def test_the_whole_set(tmp_path):
  builder = _prepare(tmp_path)
  for split, per_class in _SPLITS.items():
    source = builder.as_data_source(
      split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    count = collections.Counter(
      int(source[i]["label"]) for i in range(len(source))
    )
    assert set(count.values()) == {per_class}
    assert len(count) == len(glyphs.CLASSES)
    distinct = {source[i]["image"] for i in range(len(source))}
    assert len(distinct) == len(source)
