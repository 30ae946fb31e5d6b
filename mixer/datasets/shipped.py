"""The data sets that ship, `digits` and `glyphs`: prepared on first use.

They are made of what installed packages contain, so nothing is downloaded.
`digits` are scikit-learn's 1,797 handwritten digits, 8 x 8 pixels: the small
real task on which the demonstration and the tests fine-tune and evaluate.
"""

import hashlib
import io
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from PIL import Image

from mixer import progress
from mixer.datasets import glyphs, locate, records, stored
from mixer.errors import UserError, first_line

VERSION = "1.0.0"
TRAIN_DIGITS = 1400
Examples = Iterable[tuple[bytes, int]]


def load_digits() -> tuple[np.ndarray, np.ndarray]:
  """The images and labels of `digits` in the order of scikit-learn.

  Returns:
    [1797, 8, 8] uint8 images, white ink on black, 0..16 scaled to 0..255;
    [1797] int64 labels.

  Raises:
    UserError: scikit-learn is not installed.
  """
  try:
    from sklearn import datasets
  except ImportError as e:
    raise UserError(
      "The data set `digits` comes from scikit-learn, which is not installed. "
      "Run `pip install scikit-learn`."
    ) from e
  pixels, labels = datasets.load_digits(return_X_y=True)
  images = np.round(pixels * (255 / 16)).astype(np.uint8)
  return images.reshape(-1, 8, 8), labels


def folder(name: str, root: pathlib.Path) -> pathlib.Path:
  """The folder of a shipped data set, prepared if it wasn't."""
  final = root / name / VERSION
  if not (final / stored.INFO).exists():
    # One process of this machine prepares, others wait.
    with locate.lock(name, root, wait=True):
      if not (final / stored.INFO).exists():
        _prepare(name, final)
  return final


def _prepare(name: str, final: pathlib.Path) -> None:
  print(f"preparing data set {name} in {final.parents[1]} (once)", flush=True)
  # Of runs that were killed; younger ones may be another host's work.
  for old in final.parent.glob(f"{locate.UNFINISHED}*"):
    if time.time() - old.stat().st_mtime > 3600:
      shutil.rmtree(old, ignore_errors=True)
  work = final.with_name(f"{locate.UNFINISHED}{secrets.token_hex(4)}_{VERSION}")
  try:
    work.mkdir(parents=True)
    if name == "digits":
      write(work, name, list("0123456789"), 8, _digits())
    else:
      write(work, name, list(glyphs.CLASSES), glyphs.SIZE, _glyphs())
    work.rename(final)
  except (OSError, RuntimeError) as e:  # The latter from ArrayRecord.
    # Another host that shares the folder may have been faster.
    if not (final / stored.INFO).exists():
      raise UserError(
        f"data set {name} can't be prepared in {final.parents[1]}: "
        f"{first_line(e)}. Remove {final} if that is there, make room, or name "
        "another place by --config.data.data_dir=DIR."
      ) from e
  finally:
    shutil.rmtree(work, ignore_errors=True)


def _digits() -> Iterator[tuple[str, Examples]]:
  # In the order of scikit-learn, where each writer's digits are together: most
  # of `test` is by writers that `train` lacks, and `train[:1200]` and
  # `train[1200:]` divide the writers too.
  images, labels = load_digits()
  encoded = [
    (_png(image), int(k)) for image, k in zip(images, labels, strict=True)
  ]
  yield "train", encoded[:TRAIN_DIGITS]
  yield "test", encoded[TRAIN_DIGITS:]


def _png(pixels: np.ndarray) -> bytes:
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, "PNG")
  return encoded.getvalue()


def _glyphs() -> Iterator[tuple[str, Examples]]:
  for split in glyphs.PER_CLASS:
    classes = progress.track(glyphs.CLASSES, f"glyphs, {split}")
    found = [
      (image, label)
      for label, name in enumerate(classes)
      for image in glyphs.images(split, name)
    ]
    # The order that TFDS gives to its sets, of which this was one.
    keys = [
      hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest()
      for i in range(len(found))
    ]
    yield split, [found[i] for i in np.argsort(keys)]


def write(
  work: pathlib.Path,
  name: str,
  class_names: Sequence[str],
  side: int,
  examples: Iterable[tuple[str, Examples]],
) -> None:
  """Writes a data set of gray images: split -> (encoded image, label)."""
  splits = {}
  for split, found in examples:
    path = work / f"{name}-{split}.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    sizes = []
    for image, label in found:
      record = records.encode({"image": image, "label": [label]})
      writer.write(record)
      sizes.append(len(record))
    writer.close()
    splits[split] = [len(sizes)], sum(sizes)
  kind = "tensorflow_datasets.core.features"
  shape = {"dimensions": [str(side), str(side), "1"]}
  features = {
    "image": {
      "pythonClassName": f"{kind}.image_feature.Image",
      "image": {"dtype": "uint8", "encodingFormat": "png", "shape": shape},
    },
    "label": {
      "pythonClassName": f"{kind}.class_label_feature.ClassLabel",
      "classLabel": {"numClasses": str(len(class_names))},
    },
  }
  info = {
    "name": name,
    "version": VERSION,
    "disableShuffling": True,
  }
  stored.write(work, info, features, {"label": class_names}, splits)
  stored.seal(work)
