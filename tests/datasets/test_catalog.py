"""The table of data sets, held against TFDS's own."""

import inspect
import shlex

import pytest
from tensorflow_datasets.core import registered

from mixer import cli
from mixer.datasets import catalog, vtab
from mixer.datasets.prepare import sets

OF_TFDS = [
  name
  for name in catalog.ENTRIES
  if name in catalog.ALSO_TFDS or name not in {*catalog.SHIPPED, *catalog.OWN}
]


def test_what_is_listed():
  of_vtab = {catalog.base_name(t.data_set) for t in vtab.TASKS.values()}
  others = {"cifar10", *catalog.ALSO_TFDS}
  assert set(OF_TFDS) == of_vtab | others
  assert {*sets.SETS} == {*catalog.OWN}
  assert {*catalog.ALSO_TFDS} <= catalog.tfds_names()


@pytest.mark.parametrize("name", OF_TFDS)
def test_an_entry_is_as_tfds_has_it(name, monkeypatch):
  entry = catalog.ENTRIES[name]
  make = registered.imported_builder_cls(name)
  by_hand = make.MANUAL_DOWNLOAD_INSTRUCTIONS is not None
  # Of those that are ours as well we need the files.
  assert bool(entry.by_hand) == (by_hand or name in catalog.ALSO_TFDS)
  builder = make(data_dir="/nosuch", file_format="array_record")
  has = builder.info.features.keys()
  assert {"label", "original_label"} & has or vtab.tasks_of(name)
  # The code that downloads, unpacks or encodes needs TensorFlow; this fails
  # when a newer TFDS does without.
  code = inspect.getsource(inspect.getmodule(make))
  needs = {m for m in ("cv2", "h5py") if f"lazy_imports.{m}" in code}
  needs -= {"cv2"} if name.startswith("diabetic") else set()  # By config.
  monkeypatch.setattr(catalog.importlib.util, "find_spec", lambda _: None)
  assert set(catalog.missing(name)) == needs | {"tensorflow"}
  part = {  # Of several configs.
    "imagenet_v2": "matched-frequency",
    "eurosat": "EuroSAT.zip",
    "caltech101": "data.caltech.edu",
    "imagenet2012_real": "real.json",
  }.get(name, "")
  sizes = [
    int(info.size)
    for url, info in (make.url_infos or {}).items()
    if part in url and "ILSVRC" not in url
  ]
  assert entry.downloads == sum(sizes)


def test_the_commands_parse():
  for name in (*catalog.ENTRIES, "imagenet21k/fall11", "kmnist", "of mine"):
    command = catalog.how_to(name, "/with space").split("`")[1]
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "mixer", "prepare"]
    args = cli.parser("prepare").read(words[4:])
    assert args.data_dir == "/with space"
    assert args.set == (name if catalog.known(name) else "folder")
    assert (args.set == "folder") == bool(args.name)
  text = catalog.requirement(["tensorflow", "cv2"])
  assert "make setup-tensorflow" in text and '".[tensorflow]"' in text
  assert text.endswith(" and `pip install opencv-python-headless`")
