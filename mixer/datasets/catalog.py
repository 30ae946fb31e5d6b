"""The data sets that `mixer prepare` knows by name, and how to get each.

What TFDS 4.9.10 downloads, and that its builders of these sets need TensorFlow
(to unpack archives, to encode pixels), was read from its code. Any other set
that TFDS knows is prepared the same way, without these hints.
"""

import difflib
import functools
import importlib.util
import shlex
from collections.abc import Sequence
from typing import NamedTuple

# Made of what the installed packages contain, without a network.
SHIPPED = ("digits", "glyphs")
# Prepared from images that the user has; these by TFDS as well.
ALSO_TFDS = (
  *("imagenet2012", "imagenet2012_real", "imagenet_v2"),
  *("mnist", "fashion_mnist", "cifar10", "cifar100"),
  *("oxford_iiit_pet", "oxford_flowers102"),
)
OWN = ("imagenet21k", "imagenet21k_p", "folder", *ALSO_TFDS)

TENSORFLOW = (
  'make setup-tensorflow, or pip install -e ".[tensorflow]" in an environment '
  "of your own"
)
# What TFDS's builders of some sets import beside TensorFlow, and pip's names.
_NEEDS = {"sun397": "cv2", "kitti": "cv2"}
_NEEDS |= {"patch_camelyon": "h5py", "dsprites": "h5py"}
_PIP = {"apache_beam": "apache-beam", "cv2": "opencv-python-headless"}


class Entry(NamedTuple):
  """A data set that `prepare` knows by name, TFDS's or ours."""

  what: str
  downloads: int = 0  # Bytes that TFDS fetches, by its own checksums.
  classes: int = 0  # For plans where it isn't prepared; 0: not known here.
  train: int = 0  # Examples of that split, by the set's own publication.
  by_hand: str = ""  # What --source has to name; "" if TFDS fetches all.
  where: str = ""  # To get that.


_UNPACKED = ", or what was unpacked from it"
_SHARDS = ", or its shards of WebDataset or parquet"
_ILSVRC = "image-net.org/download-images, with an account"
_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
_IDX = "a folder with its four idx files, such as train-images-idx3-ubyte.gz"
_CIFAR = "www.cs.toronto.edu/~kriz/cifar.html"

ENTRIES = {
  "digits": Entry("1,797 handwritten digits, 8 x 8; shipped", 0, 10, 1_400),
  "glyphs": Entry("40,800 characters, 32 x 32; shipped", 0, 102, 36_720),
  "imagenet21k": Entry(  # Sizes of winter 2021, less what we hold out.
    "ImageNet-21k, as released in winter 2021 or fall 2011",
    *(0, 19_167, 13_153_500 - 51_200),
    f"winter21_whole.tar.gz, fall11_whole.tar{_UNPACKED}{_SHARDS}",
    _ILSVRC,
  ),
  "imagenet21k_p": Entry(  # Sizes: arXiv 2104.10972.
    *("ImageNet-21K-P, the processed subset", 0, 10_450, 11_060_223),
    f"imagenet21k_resized.tar.gz{_UNPACKED}{_SHARDS}",
    _ILSVRC,
  ),
  "folder": Entry(
    "images of your own: folders, a table, WebDataset, parquet",
    by_hand="a folder with CLASS/*, or train/CLASS/* and test/CLASS/*; a .csv "
    "or .tsv of files and labels; NAME-0000.tar and so on, or .parquet files",
  ),
  "imagenet2012": Entry(
    "ImageNet-1k: 1,281,167 + 50,000 images, 1,000 classes",
    *(0, 1_000, 1_281_167),
    f"a folder with {' and '.join(_TARS)}{_SHARDS}",
    _ILSVRC,
  ),
  "imagenet2012_real": Entry(
    "ImageNet-1k's validation images with the ReaL labels",
    *(388_478, 0, 0, f"a folder with {_TARS[1]} and real.json"),
    f"{_ILSVRC}, and github.com/google-research/reassessed-imagenet",
  ),
  "imagenet_v2": Entry(
    "ImageNet-V2: 10,000 new test images for ImageNet-1k",
    *(1_264_079_360, 0, 0, f"imagenetv2-matched-frequency.tar.gz{_UNPACKED}"),
    "huggingface.co/datasets/vaishaal/ImageNetV2",
  ),
  "fashion_mnist": Entry(
    "70,000 images of clothes 28 x 28, gray, 10 classes",
    *(30_878_645, 10, 60_000, _IDX),
    "github.com/zalandoresearch/fashion-mnist, or Debian's package "
    "dataset-fashion-mnist, in /usr/share/datasets/fashion-mnist",
  ),
  "mnist": Entry(
    "70,000 handwritten digits 28 x 28, gray, 10 classes",
    *(11_594_722, 10, 60_000, _IDX, "github.com/cvdfoundation/mnist"),
  ),
  "resisc45": Entry(
    "aerial images, 45 classes (VTAB)",
    by_hand="a folder with NWPU-RESISC45/, unpacked from its .rar",
    where="https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs",
  ),
  "diabetic_retinopathy_detection": Entry(
    *("retinas, 5 classes (VTAB)", 1_181_257, 0, 0),
    "a folder with train/, test/, sample/ (unpacked) and trainLabels.csv",
    "https://www.kaggle.com/c/diabetic-retinopathy-detection/data",
  ),
  "cifar10": Entry(
    *("images 32 x 32, 10 classes", 170_052_171, 10, 50_000),
    *("cifar-10-binary.tar.gz", _CIFAR),
  ),
  "cifar100": Entry(
    *("images 32 x 32, 100 classes (VTAB)", 168_513_733, 100, 50_000),
    *("cifar-100-binary.tar.gz", _CIFAR),
  ),
  "oxford_iiit_pet": Entry(
    *("37 breeds (VTAB)", 811_092_049, 37, 3_680),
    "a folder with images.tar.gz and annotations.tar.gz",
    "www.robots.ox.ac.uk/~vgg/data/pets",
  ),
  "oxford_flowers102": Entry(
    *("102 flowers (VTAB)", 344_878_000, 102, 1_020),
    "a folder with 102flowers.tgz, imagelabels.mat and setid.mat",
    "www.robots.ox.ac.uk/~vgg/data/flowers/102",
  ),
  "caltech101": Entry("objects, 102 classes (VTAB)", 137_414_764),
  "dtd": Entry("textures, 47 classes (VTAB)", 625_239_812),
  "sun397": Entry("scenes, 397 classes (VTAB)", 39_095_590_629),
  "svhn_cropped": Entry("house numbers, 10 classes (VTAB)", 1_575_594_780),
  "patch_camelyon": Entry("lymph nodes, 2 classes (VTAB)", 8_028_222_167),
  "eurosat": Entry("satellite images, 10 classes (VTAB)", 94_280_567),
  "clevr": Entry("rendered objects (VTAB: count, distance)", 19_021_600_724),
  "dmlab": Entry("frames of a game, 6 classes (VTAB)", 3_017_022_789),
  "dsprites": Entry("shapes (VTAB: place, orientation)", 28_024_106),
  "smallnorb": Entry("toys (VTAB: azimuth, elevation)", 262_778_180),
  "kitti": Entry("streets (VTAB: distance of a vehicle)", 12_575_610_564),
}
JFT_300M = Entry("Google's own", 0, 18_291, 300_000_000)  # arXiv 2010.11929.


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
  needs = ["tensorflow", *filter(None, [_NEEDS.get(base)])]
  needs = needs if base in ENTRIES else []
  return [m for m in needs if not importlib.util.find_spec(m)]


def requirement(modules: Sequence[str]) -> str:
  """What to install for modules that are missing, for a sentence."""
  how = {m: f"`pip install {_PIP.get(m, m)}`" for m in modules}
  if "tensorflow" in how:
    how["tensorflow"] = f"TensorFlow, for preparing only ({TENSORFLOW})"
  return " and ".join(how.values())


def command(name: str, *flags: str, data_dir: str = "") -> str:
  """A command line of `prepare`; `data_dir` as the user gave it."""
  words = ["python", "-m", "mixer", "prepare", shlex.quote(name), *flags]
  if data_dir:
    words.append(f"--data_dir={shlex.quote(data_dir)}")
  return " ".join(words)


def how_to(name: str, data_dir: str = "") -> str:
  """The command that prepares a set, in a sentence."""
  base = base_name(name)
  entry = ENTRIES.get(base, Entry(""))
  if known(name):
    flags = ["--name=MY_SET"] * (base == "folder")
    flags += ["--source=PATH"] * bool(entry.by_hand)
    where = f", where PATH is {entry.by_hand}" * bool(entry.by_hand)
    where += f" (from {entry.where})" * bool(entry.where)
    run = command(name, *flags, data_dir=data_dir)
    return f"`{run}` prepares it{where}."
  near = difflib.get_close_matches(base, {*ENTRIES, *tfds_names()}, 3, 0.7)
  flags = [f"--name={shlex.quote(base)}", "--source=PATH"]
  return (
    f"Did you mean {' or '.join(near)}? " * bool(near)
    + "Images of your own, in one folder a class, are prepared by "
    + f"`{command('folder', *flags, data_dir=data_dir)}`."
  )
