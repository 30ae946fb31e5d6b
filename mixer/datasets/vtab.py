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
from typing import Any, Literal

import numpy as np
from PIL import Image

from mixer.errors import UserError

PREFIX = "vtab/"
# What can be asked for: 800 examples to train and 200 to choose by, all 1,000
# for the run that counts, and what that is measured on.
SPLITS = ("train800", "val200", "train", "test")

# The numbers of a record's features; nested ones as "objects/size", in a row.
Numbers = Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Task:
  """One of the tasks."""

  group: Literal["natural", "specialized", "structured"]
  data_set: str  # TFDS's name, with the config.
  num_classes: int
  # The split that `val200` is taken from, and how much of it comes before, in
  # per cent rounded down to whole examples.
  validation: tuple[str, int] = ("validation", 0)
  test: str = "test"  # A TFDS split expression.
  features: tuple[str, ...] = ("label",)  # That the label is made of.
  label: Callable[[Numbers], int] | None = None  # How; None if the set has it.
  names: tuple[str, ...] = ()  # Of the classes; () if the set has them.
  scale: int = 1  # By which pixels are multiplied.

  def expression(self, split: str, sizes: Mapping[str, int]) -> str:
    """The TFDS split expression of one of `SPLITS`, for splits of such sizes.

    "train800val200" is the authors' name of "train".
    """
    held, before = self.validation
    start = before * sizes.get(held, 0) // 100
    least = {self.test.split("[")[0]: 1, "train": 800}
    least[held] = max(start + 200, least.get(held, 0))
    # All of the first 800 come before those to choose by, or are others.
    if 0 < start < 800 or any(sizes.get(k, 0) < n for k, n in least.items()):
      raise UserError(
        f"{self.data_set} has too few examples for VTAB-1k: {dict(sizes)}; "
        "prepare the whole set."
      )
    train, val = "train[:800]", f"{held}[{start}:{start + 200}]"
    found = {"train800": train, "val200": val, "train": f"{train}+{val}"}
    found |= {"train800val200": found["train"], "test": self.test}
    if split not in found:
      raise UserError(
        f"the tasks of VTAB-1k have the splits {', '.join(SPLITS)}, and no "
        f"{split!r}; name one of these."
      )
    return found[split]

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
    close = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.75)
    raise UserError(
      f"VTAB-1k has no task {name!r}"
      + (f"; did you mean {' or '.join(close)}?" if close else ".")
      + f" Its tasks are {', '.join(TASKS)}."
    )
  return TASKS[name]


def tasks_of(data_set: str) -> tuple[str, ...]:
  """The tasks made of a TFDS data set; without a config, of any."""
  return tuple(
    name
    for name, task in TASKS.items()
    if data_set in (task.data_set, task.data_set.split("/")[0])
  )


# In the units of CLEVR's depth, and in meters.
_CLEVR_EDGES = (8.0, 8.5, 9.0, 9.5, 10.0)
_KITTI_EDGES = (8.0, 20.0, 999.0)


def _clevr_distance(numbers: Numbers) -> int:
  depths = numbers["objects/pixel_coords"][2::3]  # (x, y, depth) of each.
  # A scene without objects has no class, which reading it reports.
  return _bin(min(depths), _CLEVR_EDGES) if depths else -1


def _kitti_distance(numbers: Numbers) -> int:
  # Of cars, vans and trucks; (x, y, z) in meters from the camera.
  kinds, depths = numbers["objects/type"], numbers["objects/location"][2::3]
  near = [z for kind, z in zip(kinds, depths, strict=True) if kind < 3]
  return _bin(min(near, default=1000.0), _KITTI_EDGES)


def _bin(value: float, edges: Sequence[float]) -> int:
  """Counts the edges below a value; on an edge it is in the nearer bin."""
  return sum(edge < value for edge in edges)


def _dsprites(feature: str, what: str, count: int) -> Task:
  starts = [-(-k * count // 16) for k in range(17)]
  return Task(
    "structured",
    "dsprites",
    16,
    ("train", 80),
    "train[90%:]",
    (feature,),
    lambda numbers: int(numbers[feature][0]) * 16 // count,
    tuple(f"{what} {a} to {b - 1}" for a, b in itertools.pairwise(starts)),
    scale=255,  # Its pixels are 0 and 1.
  )


def _smallnorb(feature: str, degrees: range) -> Task:
  return Task(
    "structured",
    "smallnorb",
    len(degrees),
    ("test", 0),
    "test[50%:]",
    (feature,),
    lambda numbers: int(numbers[feature][0]),
    tuple(f"{d} degrees" for d in degrees),
  )


TASKS = {
  PREFIX + name: task
  for name, task in {
    "caltech101": Task("natural", "caltech101", 102, ("train", 90)),
    "cifar100": Task("natural", "cifar100", 100, ("train", 90)),
    "dtd": Task("natural", "dtd", 47),
    "flowers": Task("natural", "oxford_flowers102", 102),
    "pets": Task("natural", "oxford_iiit_pet", 37, ("train", 80)),
    "sun397": Task("natural", "sun397/tfds", 397),
    "svhn": Task("natural", "svhn_cropped", 10, ("train", 90)),
    "patch_camelyon": Task("specialized", "patch_camelyon", 2),
    "eurosat": Task(
      "specialized", "eurosat/rgb", 10, ("train", 60), "train[80%:]"
    ),
    "resisc45": Task(
      "specialized", "resisc45", 45, ("train", 60), "train[80%:]"
    ),
    "retinopathy": Task(
      "specialized", "diabetic_retinopathy_detection/btgraham-300", 5
    ),
    "clevr_count": Task(
      "structured",
      "clevr",
      8,
      ("train", 90),
      "validation",
      ("objects/size",),
      lambda numbers: len(numbers["objects/size"]) - 3,  # 3 to 10 objects.
      tuple(f"{n} objects" for n in range(3, 11)),
    ),
    "clevr_distance": Task(
      "structured",
      "clevr",
      6,
      ("train", 90),
      "validation",
      ("objects/pixel_coords",),
      _clevr_distance,
      ("up to 8", "up to 8.5", "up to 9", "up to 9.5", "up to 10", "farther"),
    ),
    "dmlab": Task("structured", "dmlab", 6),
    "dsprites_orientation": _dsprites("label_orientation", "orientation", 40),
    "dsprites_position": _dsprites("label_x_position", "x", 32),
    "kitti_distance": Task(
      "structured",
      "kitti",
      4,
      features=("objects/type", "objects/location"),
      label=_kitti_distance,
      names=("up to 8 m", "up to 20 m", "farther", "no vehicle"),
    ),
    "smallnorb_azimuth": _smallnorb("label_azimuth", range(0, 360, 20)),
    "smallnorb_elevation": _smallnorb("label_elevation", range(30, 75, 5)),
  }.items()
}
