"""The data sets that `mixer prepare` knows by name, and how to get each.

What TFDS 4.9.10 downloads, and whether its builder needs TensorFlow, was read
from its code: unpacking an archive, opening one, and encoding pixels all go
through TensorFlow there, so every one of its builders below needs it. Any other
set that TFDS knows goes the same way, without these hints.
"""

import difflib
import functools
import importlib.util
import shlex
from collections.abc import Sequence
from typing import NamedTuple

# Made of what the installed packages contain, without a network.
SHIPPED = ("digits", "glyphs")

# Prepared from images that the user has; all but three by TFDS as well.
ALSO_TFDS = (
  *("imagenet2012", "imagenet2012_real", "imagenet_v2"),
  *("mnist", "fashion_mnist"),
)
OWN = ("imagenet21k", "imagenet21k_p", "folder", *ALSO_TFDS)

TENSORFLOW = (
  'make setup-tensorflow, or pip install -e ".[tensorflow]" in an environment '
  "of your own"
)

# Modules that TFDS's builders import -> what pip calls them, and which do.
_IMPORTS = {
  "apache_beam": ("apache-beam", ()),
  "bs4": ("beautifulsoup4", ()),
  "cv2": ("opencv-python-headless", ("sun397", "kitti")),
  "h5py": ("h5py", ("patch_camelyon", "dsprites")),
}


class Entry(NamedTuple):
  """A data set that `prepare` knows by name, TFDS's or ours."""

  what: str
  by_hand: str = ""  # What --source has to name; "" if TFDS fetches all.
  where: str = ""  # That can be had.
  files: tuple[str, ...] = ()  # That the folder of --source must have.
  downloads: int = 0  # Bytes that TFDS fetches, by its own checksums.


_ILSVRC = "image-net.org/download-images, with an account"

ENTRIES = {
  "digits": Entry("1,797 handwritten digits, 8 x 8; shipped"),
  "glyphs": Entry("40,800 rendered characters, 32 x 32; shipped"),
  "imagenet21k": Entry(
    "ImageNet-21k, as released in winter 2021 or fall 2011",
    "winter21_whole.tar.gz, fall11_whole.tar, or what was unpacked from it",
    _ILSVRC,
  ),
  "imagenet21k_p": Entry(
    "ImageNet-21K-P, the processed subset",
    "imagenet21k_resized.tar.gz, or what was unpacked from it",
    _ILSVRC,
  ),
  "folder": Entry(
    "images of your own, in one folder a class",
    "a folder with CLASS/*, or train/CLASS/* and test/CLASS/*",
  ),
  "imagenet2012": Entry(
    "ImageNet-1k: 1,281,167 + 50,000 images, 1,000 classes",
    "a folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar",
    _ILSVRC,
    ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
  ),
  "imagenet2012_real": Entry(
    "ImageNet-1k's validation images with the ReaL labels",
    "a folder with ILSVRC2012_img_val.tar and real.json",
    f"{_ILSVRC}, and github.com/google-research/reassessed-imagenet",
    ("ILSVRC2012_img_val.tar",),
    388_478,
  ),
  "imagenet_v2": Entry(
    "ImageNet-V2: 10,000 new test images for ImageNet-1k",
    "imagenetv2-matched-frequency.tar.gz, or what was unpacked from it",
    "huggingface.co/datasets/vaishaal/ImageNetV2",
    downloads=1_264_079_360,
  ),
  "fashion_mnist": Entry(
    "70,000 images of clothes 28 x 28, gray, 10 classes",
    "a folder with its four idx files, such as train-images-idx3-ubyte.gz",
    "github.com/zalandoresearch/fashion-mnist, or Debian's package "
    "dataset-fashion-mnist, in /usr/share/datasets/fashion-mnist",
    downloads=30_878_645,
  ),
  "mnist": Entry(
    "70,000 handwritten digits 28 x 28, gray, 10 classes",
    "a folder with its four idx files, such as train-images-idx3-ubyte.gz",
    "github.com/cvdfoundation/mnist",
    downloads=11_594_722,
  ),
  "resisc45": Entry(
    "aerial images, 45 classes (VTAB)",
    "a folder with NWPU-RESISC45/, unpacked from its .rar",
    "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs",
    ("NWPU-RESISC45",),
  ),
  "diabetic_retinopathy_detection": Entry(
    "retinas, 5 classes (VTAB)",
    "a folder with train/, test/, sample/ (unpacked) and trainLabels.csv",
    "https://www.kaggle.com/c/diabetic-retinopathy-detection/data",
    ("train", "test", "sample", "trainLabels.csv"),
    1_181_257,
  ),
}
# Those that TFDS downloads: what they are, and how many bytes.
_DOWNLOADED = {
  "cifar10": ("60,000 images 32 x 32, 10 classes", 170_052_171),
  "cifar100": ("60,000 images 32 x 32, 100 classes (VTAB)", 168_513_733),
  "oxford_iiit_pet": ("Oxford pets, 37 breeds (VTAB)", 811_092_049),
  "oxford_flowers102": ("Oxford flowers, 102 classes (VTAB)", 344_878_000),
  "caltech101": ("objects, 102 classes (VTAB)", 137_414_764),
  "dtd": ("textures, 47 classes (VTAB)", 625_239_812),
  "sun397": ("scenes, 397 classes (VTAB)", 39_095_590_629),
  "svhn_cropped": ("house numbers 32 x 32, 10 classes (VTAB)", 1_575_594_780),
  "patch_camelyon": (
    "lymph node sections 96 x 96, 2 classes (VTAB)",
    8_028_222_167,
  ),
  "eurosat": ("satellite images 64 x 64, 10 classes (VTAB)", 94_280_567),
  "clevr": ("rendered objects, for VTAB's count, distance", 19_021_600_724),
  "dmlab": ("frames of a game, 6 classes (VTAB)", 3_017_022_789),
  "dsprites": ("shapes 64 x 64, for VTAB's place, orientation", 28_024_106),
  "smallnorb": ("toys 96 x 96, for VTAB's azimuth, elevation", 262_778_180),
  "kitti": ("streets, for VTAB's distance of a vehicle", 12_575_610_564),
}
ENTRIES |= {
  name: Entry(what, downloads=size)
  for name, (what, size) in _DOWNLOADED.items()
}

# name -> (classes, examples of each split), for plans made where a set isn't
# prepared. ImageNet-21k: the release of winter 2021, with the splits of our
# builder; 21K-P: its authors' counts (arXiv 2104.10972); JFT-300M: arXiv
# 2010.11929; the others: their own pages, as TFDS has them.
SIZES = {
  "imagenet21k": (
    19_167,
    {"train": 13_153_500 - 51_200, "validation": 25_600, "test": 25_600},
  ),
  "imagenet21k_p": (10_450, {"train": 11_060_223, "validation": 522_500}),
  "imagenet2012": (1_000, {"train": 1_281_167, "validation": 50_000}),
  "jft_300m": (18_291, {"train": 300_000_000}),
  "cifar10": (10, {"train": 50_000, "test": 10_000}),
  "cifar100": (100, {"train": 50_000, "test": 10_000}),
  "oxford_iiit_pet": (37, {"train": 3_680, "test": 3_669}),
  "oxford_flowers102": (
    102,
    {"train": 1_020, "validation": 1_020, "test": 6_149},
  ),
  "mnist": (10, {"train": 60_000, "test": 10_000}),
  "fashion_mnist": (10, {"train": 60_000, "test": 10_000}),
  "digits": (10, {"train": 1_400, "test": 397}),
  "glyphs": (102, {"train": 36_720, "test": 4_080}),
}


def split_name(name: str) -> tuple[str, str, str]:
  """Base, config and version of "NAME/CONFIG:VERSION"; "" where not given."""
  rest, _, version = name.partition(":")
  base, _, config = rest.partition("/")
  return base, config, version


def base_name(name: str) -> str:
  """Of "NAME/CONFIG:VERSION"."""
  return split_name(name)[0]


@functools.cache
def tfds_names() -> frozenset[str]:
  """Every set that the installed TFDS has a builder for; asks no network."""
  import tensorflow_datasets as tfds

  return frozenset(tfds.list_builders(with_community_datasets=False))


def known(name: str) -> bool:
  """Whether there is a builder, ours or TFDS's."""
  return base_name(name) in ENTRIES or base_name(name) in tfds_names()


def missing(base: str) -> list[str]:
  """Modules that TFDS's builder of a set needs and that aren't installed."""
  needs = [m for m, (_, names) in _IMPORTS.items() if base in names]
  needs = ["tensorflow", *needs] if base in ENTRIES else []
  return [m for m in needs if not importlib.util.find_spec(m)]


def requirement(modules: Sequence[str]) -> str:
  """What to install for modules that are missing, for a sentence."""
  pip = [_IMPORTS.get(m, (m,))[0] for m in modules]
  needs = [f"`pip install {' '.join(p for p in pip if p != 'tensorflow')}`"]
  if "tensorflow" in pip:
    needs = [
      f"TensorFlow, for preparing only ({TENSORFLOW})",
      *needs[: len(pip) - 1],
    ]
  return " and ".join(needs)


def command(name: str, *flags: str, data_dir: str = "") -> str:
  """A command line of `prepare`; `data_dir` as the user gave it."""
  words = ["python", "-m", "mixer", "prepare", shlex.quote(name), *flags]
  if data_dir:
    words.append(f"--data_dir={shlex.quote(data_dir)}")
  return " ".join(words)


def how_to(name: str, data_dir: str = "") -> str:
  """The sentences about how a set that isn't prepared can be had."""
  base = base_name(name)
  entry = ENTRIES.get(base)
  if entry and entry.by_hand:
    flags = ["--name=MY_SET"] * (base == "folder") + ["--source=PATH"]
    where = f" (from {entry.where})" if entry.where else ""
    return (
      f"`{command(name, *flags, data_dir=data_dir)}` prepares it, where PATH "
      f"is {entry.by_hand}{where}."
    )
  if known(name):
    by = "" if entry else ", by TFDS's own builder"
    return f"`{command(name, data_dir=data_dir)}` prepares it{by}."
  near = difflib.get_close_matches(base, {*ENTRIES, *tfds_names()}, 3, 0.7)
  flags = [f"--name={shlex.quote(base)}", "--source=PATH"]
  return (
    "TFDS has no builder of that name. "
    + f"Did you mean {' or '.join(near)}? " * bool(near)
    + "If it is of your own images, in one folder a class: "
    + f"`{command('folder', *flags, data_dir=data_dir)}`."
  )
