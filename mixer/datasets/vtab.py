"""The 19 tasks of VTAB-1k (Zhai et al. 2019, arXiv 1910.04867), as data.

Each is a TFDS data set, a way to a label, and 1,000 examples to train on. Sets,
labels and splits are those of github.com/google-research/task_adaptation
(data/*.py, scripts/run_all_tasks.sh). Which examples the first 800 are depends
on the order in which TFDS stores a set: on its version, not on us.
"""

import dataclasses
import difflib
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mixer.errors import UserError

PREFIX = "vtab/"
# 800 examples to train on and 200 to choose by, all 1,000 for the run that
# counts, and those that its number is measured on.
SPLITS = ("train800", "val200", "train", "test")

# The numbers of a record's features; nested ones as "objects/size", in a row.
Numbers = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Task:
  """One of the tasks."""

  data_set: str  # TFDS's name, with the config.
  # The split of `val200`, and how much of it comes before, in per cent.
  validation: tuple[str, int] = ("validation", 0)
  test: str = "test"  # A TFDS split expression.
  features: tuple[str, ...] = ("label",)  # From which the label is computed.
  label: Callable[[Numbers], int] | None = None  # How; None if the set has it.
  names: tuple[str, ...] = ()  # Of the classes; () if the set has them.
  scale: int = 1  # By which pixels are multiplied.

  def expression(self, split: str, sizes: Mapping[str, int]) -> str:
    """The TFDS split expression of one of `SPLITS`; `sizes` of the set's."""
    held, before = self.validation
    start = before * sizes.get(held, 0) // 100
    train, val = "train[:800]", f"{held}[{start}:{start + 200}]"
    if split not in SPLITS:
      raise UserError(
        f"the tasks of VTAB-1k have no split {split!r}; take one of {SPLITS}."
      )
    found = train, val, f"{train}+{val}", self.test
    return found[SPLITS.index(split)]

  def record(self, feature: Any) -> dict[str, Any]:
    """The record of a task with `label`, of a `tf.train.Example`'s features."""
    assert self.label is not None
    image = feature["image"].bytes_list.value[0]
    if self.scale != 1:
      with Image.open(io.BytesIO(image)) as opened:
        scaled = Image.fromarray(np.asarray(opened) * np.uint8(self.scale))
      scaled.save(encoded := io.BytesIO(), "PPM")  # Nothing to compress.
      image = encoded.getvalue()
    numbers = {
      name: feature[name].int64_list.value or feature[name].float_list.value
      for name in self.features
    }
    return {"image": image, "label": self.label(numbers)}


def find(name: str) -> Task:
  """The task that is called "vtab/..."."""
  if name not in TASKS:
    near = difflib.get_close_matches(name, TASKS, n=3)
    raise UserError(
      f"VTAB-1k has no task {name!r}; take {' or '.join(near or TASKS)}."
    )
  return TASKS[name]


def tasks_of(data_set: str) -> tuple[str, ...]:
  """The tasks made of a TFDS data set; without a config, of any."""
  names = {k: (t.data_set, t.data_set.split("/")[0]) for k, t in TASKS.items()}
  return tuple(task for task, known in names.items() if data_set in known)


# Of CLEVR's depths.
_EDGES = (8, 8.5, 9, 9.5, 10)


def _bin(value: float, *edges: float) -> int:
  """Counts the edges below a value; on an edge it is in the nearer bin."""
  return sum(edge < value for edge in edges)


def _clevr_distance(numbers: Numbers) -> int:
  depths = numbers["objects/pixel_coords"][2::3]  # (x, y, depth) of each.
  # A scene without objects has no class, which reading it reports.
  return _bin(min(depths), *_EDGES) if depths else -1


def _kitti_distance(numbers: Numbers) -> int:
  # Of cars, vans and trucks; (x, y, z) in meters from the camera.
  kinds, depths = numbers["objects/type"], numbers["objects/location"][2::3]
  near = [z for kind, z in zip(kinds, depths, strict=True) if kind < 3]
  return _bin(min(near, default=1000.0), 8.0, 20.0, 999.0)


def _dsprites(feature: str, what: str, count: int) -> Task:
  starts = [-(-k * count // 16) for k in range(17)]
  return Task(
    *("dsprites", ("train", 80), "train[90%:]", (feature,)),
    lambda numbers: int(numbers[feature][0]) * 16 // count,
    tuple(f"{what} {a} to {b - 1}" for a, b in itertools.pairwise(starts)),
    scale=255,  # Its pixels are 0 and 1.
  )


def _smallnorb(feature: str, degrees: range) -> Task:
  return Task(
    *("smallnorb", ("test", 0), "test[50%:]", (feature,)),
    lambda numbers: int(numbers[feature][0]),
    tuple(f"{d} degrees" for d in degrees),
  )


_CLEVR = ("clevr", ("train", 90), "validation")
TASKS = {
  # Natural images.
  "vtab/caltech101": Task("caltech101", ("train", 90)),
  "vtab/cifar100": Task("cifar100", ("train", 90)),
  "vtab/dtd": Task("dtd"),
  "vtab/flowers": Task("oxford_flowers102"),
  "vtab/pets": Task("oxford_iiit_pet", ("train", 80)),
  "vtab/sun397": Task("sun397/tfds"),
  "vtab/svhn": Task("svhn_cropped", ("train", 90)),
  # Specialized ones.
  "vtab/patch_camelyon": Task("patch_camelyon"),
  "vtab/eurosat": Task("eurosat/rgb", ("train", 60), "train[80%:]"),
  "vtab/resisc45": Task("resisc45", ("train", 60), "train[80%:]"),
  "vtab/retinopathy": Task("diabetic_retinopathy_detection/btgraham-300"),
  # Structured ones.
  "vtab/clevr_count": Task(
    *_CLEVR,
    ("objects/size",),
    lambda numbers: len(numbers["objects/size"]) - 3,  # 3 to 10 objects.
    tuple(f"{n} objects" for n in range(3, 11)),
  ),
  "vtab/clevr_distance": Task(
    *_CLEVR,
    ("objects/pixel_coords",),
    _clevr_distance,
    (*(f"up to {edge}" for edge in _EDGES), "farther"),
  ),
  "vtab/dmlab": Task("dmlab"),
  "vtab/dsprites_orientation": _dsprites(
    "label_orientation", "orientation", 40
  ),
  "vtab/dsprites_position": _dsprites("label_x_position", "x", 32),
  "vtab/kitti_distance": Task(
    "kitti",
    features=("objects/type", "objects/location"),
    label=_kitti_distance,
    names=("up to 8 m", "up to 20 m", "farther", "no vehicle"),
  ),
  "vtab/smallnorb_azimuth": _smallnorb("label_azimuth", range(0, 360, 20)),
  "vtab/smallnorb_elevation": _smallnorb("label_elevation", range(30, 75, 5)),
}
