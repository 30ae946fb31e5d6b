"""The table of data sets, held against TFDS's own."""

import inspect
import shlex

import pytest
from tensorflow_datasets.core import registered

from mixer import cli
from mixer.datasets import catalog, vtab
from mixer.datasets.prepare import builders
from mixer.errors import UserError

OF_TFDS = [
  name
  for name in catalog.ENTRIES
  if name in catalog.ALSO_TFDS or name not in {*catalog.SHIPPED, *catalog.OWN}
]


def test_what_is_listed():
  vtab = (
    "caltech101 cifar100 dtd oxford_flowers102 oxford_iiit_pet sun397 "
    "svhn_cropped patch_camelyon eurosat resisc45 "
    "diabetic_retinopathy_detection clevr dmlab dsprites smallnorb kitti"
  )
  others = (
    "imagenet2012 imagenet_v2 imagenet2012_real cifar10 mnist fashion_mnist"
  )
  assert set(OF_TFDS) == {*vtab.split(), *others.split()}


@pytest.mark.parametrize("name", OF_TFDS)
def test_an_entry_tells_what_tfds_does(name):
  entry = catalog.ENTRIES[name]
  make = registered.imported_builder_cls(name)
  by_hand = make.MANUAL_DOWNLOAD_INSTRUCTIONS is not None
  # Of those that are ours as well we need the files.
  assert bool(entry.by_hand) == (by_hand or name in catalog.ALSO_TFDS)
  builder = make(data_dir="/nosuch", file_format="array_record")
  has = builder.info.features.keys()
  assert ("label" in has or "original_label" in has) == entry.labelled
  assert entry.labelled or vtab.tasks_of(name)
  # The code that downloads, unpacks or encodes needs TensorFlow; this fails
  # when a newer TFDS does without.
  code = inspect.getsource(inspect.getmodule(make))
  needs = {m for m in ("cv2", "h5py") if f"lazy_imports.{m}" in code}
  needs -= {"cv2"} if name.startswith("diabetic") else set()  # By config.
  assert set(entry.needs) == needs | {"tensorflow"}
  for file in entry.files:
    assert file in code


@pytest.mark.parametrize(
  ("name", "urls"),
  [
    ("imagenet_v2", ["matched-frequency"]),
    ("eurosat", ["EuroSAT.zip"]),
    ("caltech101", ["data.caltech.edu"]),
    ("imagenet2012_real", ["real.json"]),
    *(
      (name, [""])
      for name in OF_TFDS
      if name
      not in ("imagenet_v2", "eurosat", "caltech101", "imagenet2012_real")
    ),
  ],
)
def test_the_bytes_to_download_are_those_of_tfds(name, urls):
  entry = catalog.ENTRIES[name]
  infos = registered.imported_builder_cls(name).url_infos or {}
  assert entry.downloads == sum(
    int(info.size)
    for url, info in infos.items()
    if any(part in url for part in urls) and "ILSVRC" not in url
  )


@pytest.mark.parametrize("name", [*catalog.SHIPPED, *catalog.OWN])
def test_our_builders_are_there(name):
  if name in catalog.OWN:
    assert name in builders.BUILDERS
  # Those that TFDS can prepare as well need TensorFlow there.
  ours_alone = name not in catalog.ALSO_TFDS
  assert (catalog.ENTRIES[name].needs == ()) == ours_alone
  assert "It needs" not in catalog.how_to(name)
  assert ours_alone or name in catalog.tfds_names()


@pytest.mark.parametrize(
  ("name", "meant"),
  [("cifar_10", "cifar10"), ("imagenet", "imagenet"), ("kiti", "kitti")],
)
def test_near_names(name, meant):
  assert catalog.near(name)[0].startswith(meant)


def test_a_name_like_none():
  assert catalog.near("zzzzzzzz") == []
  assert not catalog.known("zzzzzzzz")
  text = catalog.how_to("zzzzzzzz")
  assert text.startswith("TFDS has no builder of that name. If it is of your")
  assert "mixer prepare folder --name=zzzzzzzz --source=PATH`" in text


def test_known_names():
  for name in ("cifar10", "imagenet_v2/topimages", "kmnist:3.0.1", "digits"):
    assert catalog.known(name)
  assert "kmnist" not in catalog.ENTRIES


@pytest.mark.parametrize(
  "name",
  [*catalog.ENTRIES, "imagenet21k/fall11", "kmnist", "of mine"],
)
@pytest.mark.parametrize("data_dir", ["", "/with space"])
def test_the_commands_parse(name, data_dir):
  command = catalog.how_to(name, data_dir).split("`")[1]
  words = shlex.split(command)
  assert words[:4] == ["python", "-m", "mixer", "prepare"]
  args = cli.parser("prepare").read(words[4:])
  assert args.data_dir == data_dir
  assert args.set == (name if catalog.known(name) else "folder")
  assert (args.set == "folder") == bool(args.name)


def test_what_is_to_be_installed():
  text = catalog.requirement(["tensorflow", "cv2"])
  assert "make setup-tensorflow" in text and '".[tensorflow]"' in text
  assert text.endswith("and also `pip install opencv-python-headless`")
  assert catalog.missing(["json", "no_such_module"]) == ["no_such_module"]


def test_sizes_of_splits():
  assert {*catalog.SIZES} - {"jft_300m"} <= {*catalog.ENTRIES}
  assert catalog.size("digits", "train[:98%]") == (1372, 10)
  assert catalog.size("imagenet2012", "validation+train[-50:]") == (
    50_050,
    1000,
  )
  assert catalog.size("mine", "train") is None
  with pytest.raises(UserError, match=r"no 'tests'\); .*--examples=N"):
    catalog.size("cifar10", "tests")
