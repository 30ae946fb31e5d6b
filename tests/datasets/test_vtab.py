"""The tasks of VTAB-1k: labels, splits, and from end to end."""

import functools
import io
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mixer import images
from mixer.datasets import split, vtab
from mixer.errors import UserError
from tests.datasets import tfds_writer

# By hand from task_adaptation/data/*.py and the numbers in their tests: name,
# data set, classes, sizes of the real set, val200, test.
_TABLE = """
caltech101 caltech101 102 train=3060 test=6084 train[2754:2954] test
cifar100 cifar100 100 train=50000 test=10000 train[45000:45200] test
dtd dtd 47 train=1880 validation=1880 test=1880 validation[:200] test
flowers oxford_flowers102 102 train=1020 validation=1020 test=6149 \
  validation[:200] test
pets oxford_iiit_pet 37 train=3680 test=3669 train[2944:3144] test
sun397 sun397/tfds 397 train=76128 validation=10875 test=21750 \
  validation[:200] test
svhn svhn_cropped 10 train=73257 test=26032 extra=531131 train[65931:66131] test
patch_camelyon patch_camelyon 2 train=262144 validation=32768 test=32768 \
  validation[:200] test
eurosat eurosat/rgb 10 train=27000 train[16200:16400] train[21600:]
resisc45 resisc45 45 train=31500 train[18900:19100] train[25200:]
retinopathy diabetic_retinopathy_detection/btgraham-300 5 train=35126 \
  validation=10906 test=42670 sample=10 validation[:200] test
clevr_count clevr 8 train=70000 validation=15000 test=15000 \
  train[63000:63200] validation
clevr_distance clevr 6 train=70000 validation=15000 test=15000 \
  train[63000:63200] validation
dmlab dmlab 6 train=65550 validation=22628 test=22735 validation[:200] test
dsprites_orientation dsprites 16 train=737280 train[589824:590024] \
  train[663552:]
dsprites_position dsprites 16 train=737280 train[589824:590024] train[663552:]
kitti_distance kitti 4 train=6347 validation=423 test=711 validation[:200] test
smallnorb_azimuth smallnorb 18 train=24300 test=24300 test[:200] test[12150:]
smallnorb_elevation smallnorb 9 train=24300 test=24300 test[:200] test[12150:]
"""
AUTHORS = {
  name: (
    data_set,
    int(classes),
    {k: int(v) for k, _, v in (word.partition("=") for word in sizes)},
    val200,
    test,
  )
  for name, data_set, classes, *sizes, val200, test in (
    line.split() for line in _TABLE.strip().splitlines()
  )
}


def places(expression: str, sizes: dict[str, int]) -> list[tuple[str, int]]:
  """(split, number) of each example of a split expression."""
  shards = {name: [size] for name, size in sizes.items()}
  found = split.parts("x", expression, shards)
  return [(name, i) for name, a, b in found for i in range(a, b)]


@pytest.mark.parametrize("name", AUTHORS)
def test_a_task_is_the_authors(name):
  data_set, _, sizes, val200, test = AUTHORS[name]
  task = vtab.find(f"vtab/{name}")
  assert task.data_set == data_set
  ours = {s: places(task.expression(s, sizes), sizes) for s in vtab.SPLITS}
  assert ours["train800"] == [("train", i) for i in range(800)]
  assert ours["val200"] == places(val200, sizes)
  assert ours["train"] == ours["train800"] + ours["val200"]
  assert ours["test"] == places(test, sizes)
  assert len(set(ours["train"])) == 1000
  assert not set(ours["train"]) & set(ours["test"])


# From end to end: sets of this size, of examples that come again and again.
SIZES = {"train": 2000, "validation": 230, "test": 410}
CYCLE = 7
# Depths in scenes, on the edges of bins and beside them.
CLEVR = (7.9, 8, 8.5, 9, 9.5, 10, 10.1)
KITTI = (3, 20.5, 20, 8.5, 8, 7)


@functools.cache
def example(data_set: str, i: int) -> dict:
  """What TFDS's builder would hand out."""
  rng = np.random.default_rng(i)
  features = tfds.builder(data_set, data_dir="/nosuch").info.features
  found = {}
  for key, feature in features.items():
    match feature:
      case tfds.features.Image():
        height, width, channels = (n or 5 for n in feature.shape)
        top = 2 if data_set == "dsprites" else 256
        pixels = rng.integers(0, top, (height, width, channels), np.uint8)
        pixels = np.repeat(pixels[:1], height, 0)  # Small when packed.
        pixels = pixels[..., 0] if channels == 1 else pixels
        found[key] = tfds_writer.png(pixels)
      case tfds.features.ClassLabel():
        found[key] = int(rng.integers(feature.num_classes))
      case tfds.features.BBoxFeature():
        found[key] = tfds.features.BBox(0.1, 0.1, 0.9, 0.9)
      case tfds.features.Text():
        found[key] = f"example {i}"
      case tfds.features.Sequence():
        found[key] = []
      case _:
        found[key] = float(rng.random())
  if data_set == "clevr":
    found["objects"] = [
      {
        "3d_coords": rng.random(3).astype(np.float32),
        "color": 3,
        "material": 1,
        "pixel_coords": np.float32([50, 60, CLEVR[i] + k]),
        "rotation": 0.5,
        "shape": 2,
        "size": k % 2,
      }
      for k in range(3 + i)
    ]
  if data_set == "kitti":
    found["objects"] = [
      {
        "alpha": 0.1,
        "bbox": tfds.features.BBox(0.1, 0.1, 0.9, 0.9),
        "dimensions": np.float32([1, 2, 3]),
        "location": np.float32([1, 2, KITTI[k]]),
        "occluded": 1,
        "rotation_y": 0.3,
        "truncated": 0.0,
        "type": (7, 1, 2, 4, 0, 5)[k],
      }
      for k in range(i)
    ]
  return found


def expected_label(name: str, found: dict) -> int:
  """In other words than `vtab`."""
  match name.removeprefix("vtab/"):
    case "clevr_count":
      return len(found["objects"]) - 3
    case "clevr_distance":
      depth = min(o["pixel_coords"][2] for o in found["objects"])
      return int(np.digitize(depth, [8, 8.5, 9, 9.5, 10], right=True))
    case "kitti_distance":
      near = [o["location"][2] for o in found["objects"] if o["type"] < 3]
      return int(np.digitize(min(near), [8, 20], right=True)) if near else 3
    case "dsprites_orientation":
      return int(found["label_orientation"] / 2.5)
    case "dsprites_position":
      return found["label_x_position"] // 2
    case "smallnorb_azimuth":
      return found["label_azimuth"]
    case "smallnorb_elevation":
      return found["label_elevation"]
    case _:
      return found["label"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A data_dir with all of the sets."""
  path = tmp_path_factory.mktemp("vtab")
  sizes = {name: (size,) for name, size in SIZES.items()}
  for name in sorted({task.data_set for task in vtab.TASKS.values()}):
    found = [example(name, i) for i in range(CYCLE)]
    tfds_writer.write(path, name, found, sizes)
  return path


@pytest.mark.parametrize("name", [f"vtab/{name}" for name in AUTHORS])
def test_from_end_to_end(root, name):
  task = vtab.find(name)
  found = [example(task.data_set, i) for i in range(CYCLE)]
  expected = [expected_label(name, e) for e in found]
  for part in vtab.SPLITS:
    opened = split.open_split(name, part, str(root))
    wanted = places(task.expression(part, SIZES), SIZES)
    np.testing.assert_array_equal(
      opened.labels, [expected[i % CYCLE] for _, i in wanted]
    )
    assert len(opened.class_names) == AUTHORS[name.removeprefix("vtab/")][1]
    assert opened.valid_labels is None
  (_, place), *_ = wanted
  with Image.open(io.BytesIO(found[place % CYCLE]["image"])) as image:
    pixels = np.asarray(image.convert("RGB")).astype(int) * task.scale
  shown = images.Opened(opened[0]["image"]).pixels()
  np.testing.assert_array_equal(shown, pixels)
  if task.data_set == "dsprites":
    assert set(np.unique(shown)) == {0, 255}


def refusal(name: str, part: str, where) -> str:
  with pytest.raises(UserError) as caught:
    split.open_split(name, part, str(where)).read([0])
  return str(caught.value)


def test_what_is_refused(root, tmp_path):
  assert {*vtab.TASKS} == {f"vtab/{name}" for name in AUTHORS}
  message = refusal("vtab/retinopathy", "train", tmp_path)
  name = "diabetic_retinopathy_detection/btgraham-300"
  run = f"`python -m mixer prepare {name} --source=PATH --data_dir={tmp_path}`"
  assert run in message
  message = refusal("vtab/dsprites_location", "train", root)
  assert "'vtab/dsprites_location'; take vtab/dsprites_position" in message
  message = refusal("vtab/pets", "train[:90%]", root)
  assert "no split 'train[:90%]'; take one of ('train800'" in message
  message = refusal("clevr", "train", root)
  assert "name vtab/clevr_count or vtab/clevr_distance or a set" in message
  shutil.copytree(root / "clevr", tmp_path / "clevr")
  (path,) = (tmp_path / "clevr").glob("*/features.json")
  path.write_text(path.read_text().replace('"objects"', '"things"'))
  message = refusal("vtab/clevr_count", "train", tmp_path)
  assert "has no features `image` and `objects`" in message


def test_a_scene_without_objects_has_no_class(tmp_path):
  empty = example("clevr", 0) | {"objects": []}
  sizes = {name: (size,) for name, size in SIZES.items()}
  tfds_writer.write(tmp_path, "clevr", [empty], sizes)
  for task in ("count", "distance"):
    message = refusal(f"vtab/clevr_{task}", "train", tmp_path)
    assert re.search(r"record 0 has label -\d, outside the", message)
