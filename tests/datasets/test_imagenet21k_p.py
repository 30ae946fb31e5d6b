"""Tests of `mixer.datasets.imagenet21k_p`."""

import pytest

from mixer.datasets import imagenet21k_p, wordnet
from mixer.datasets.preparation import build
from mixer.errors import UserError
from tests.datasets import prepared
from tests.datasets.sources import image_archives


@pytest.mark.parametrize("release", imagenet21k_p.RELEASES)
def test_prepares(tmp_path, release):
  classes = wordnet.classes(f"{release}_p")
  files = {
    f"imagenet21k_{split}/{classes[c]}/{k}.JPEG": image_archives.image(c + k)
    for split, numbers in (("train", (1, 2, 3)), ("val", (4,)))
    for c in (0, 7, 10_000)
    for k in numbers
  }
  path = tmp_path / "imagenet21k_resized.tar"
  path.write_bytes(image_archives.tar(files))
  builder = imagenet21k_p.Imagenet21kP(
    source=imagenet21k_p.open_source([path], release),
    config=release,
    options=build.Options(workers=0),
    data_dir=str(tmp_path / "data"),
  )
  report = builder.prepare()
  assert report.splits == {"train": 9, "validation": 3}
  name = f"imagenet21k_p/{release}"
  source, names, _ = prepared.open_source(
    name, "validation", str(tmp_path / "data")
  )
  assert names == classes
  assert sorted(source[i]["label"] for i in range(3)) == [0, 7, 10_000]


def test_class_of_the_other_release(tmp_path):
  other = set(wordnet.classes("fall11_p")) - set(wordnet.classes("winter21_p"))
  wnid = min(other)
  root = image_archives.write(
    tmp_path, {f"train/{wnid}/1.JPEG": b"1", f"val/{wnid}/2.JPEG": b"1"}
  )
  source = imagenet21k_p.open_source([root])
  assert [m.error for m in image_archives.members(source)] == [
    f"its class {wnid} is not among the 10,450 of the data set"
  ] * 2


def test_description(tmp_path):
  builder = imagenet21k_p.Imagenet21kP(data_dir=str(tmp_path))
  assert builder.name == "imagenet21k_p"
  assert list(builder.builder_configs) == ["winter21", "fall11"]
  info = builder.info
  assert info.description and info.homepage and "ridnik2021" in info.citation
  with pytest.raises(UserError, match="--source"):
    builder.prepare()
