"""What the documents tell readers to do works."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mixer.datasets import split as split_lib
from tests import conftest

DOCS = [conftest.ROOT / "README.md", *conftest.ROOT.glob("docs/*.md")]


def test_the_builder_in_the_data_page_makes_a_data_set(tmp_path):
  rng = np.random.default_rng(0)
  for name, count in (("n00000002", 3), ("n00000001", 5)):
    (tmp_path / "source" / name).mkdir(parents=True)
    for i in range(count):
      pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(tmp_path / "source" / name / f"{i}.JPEG")
  text = (conftest.ROOT / "docs" / "data.md").read_text()
  (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  for old, new in (
    ("/data/imagenet21k", str(tmp_path / "source")),
    ("~/tensorflow_datasets", str(tmp_path / "data")),
    ("25_600", "2"),
  ):
    assert old in code
    code = code.replace(old, new)
  (tmp_path / "build.py").write_text(code)
  subprocess.run(
    [sys.executable, "build.py"], cwd=tmp_path, check=True, capture_output=True
  )
  data_dir = str(tmp_path / "data")
  train = split_lib.open_split("imagenet21k", "train", data_dir)
  held_out = split_lib.open_split("imagenet21k", "validation", data_dir)
  assert train.class_names == ("n00000001", "n00000002")
  assert (len(train), len(held_out)) == (6, 2)
  counts = np.bincount(train.labels) + np.bincount(held_out.labels, minlength=2)
  np.testing.assert_array_equal(counts, [5, 3])
  assert train[0]["image"][:2] == b"\xff\xd8"  # As it was: a JPEG.


@pytest.mark.parametrize("page", DOCS, ids=lambda p: p.name)
def test_files_that_pages_name_are_there(page: pathlib.Path):
  text = page.read_text()
  links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
  paths = re.findall(
    r"`((?:configs|docs|mixer|tests)/[\w/.]+\.(?:py|md))", text
  )
  for link in links:
    assert (page.parent / link).exists(), link
  for path in paths:
    assert (conftest.ROOT / path).exists(), path
  makefile = (conftest.ROOT / "Makefile").read_text()
  for target in re.findall(r"\bmake ([a-z]+)\b(?!-)", text):
    assert f"\n{target}:" in makefile, target


def test_the_models_in_the_readme_are_those_of_the_code():
  from mixer import flops, model

  text = (conftest.ROOT / "README.md").read_text()
  rows = {
    cells[0]: cells[1:]
    for line in text.splitlines()
    if line.startswith("|")
    and (cells := [c.strip() for c in line.strip("|").split("|")])
  }
  names = rows[""]
  assert sorted(names) == sorted(model.VARIANTS)
  for i, name in enumerate(names):
    module = model.build(name, 1000)
    assert rows["blocks"][i] == str(module.num_blocks)
    assert rows["channels C"][i] == str(module.hidden_dim)
    assert rows["token MLP D_S"][i] == str(module.tokens_mlp_dim)
    assert rows["channel MLP D_C"][i] == str(module.channels_mlp_dim)
    tokens = (224 // module.patch_size) ** 2
    assert rows["tokens at 224 px"][i] == str(tokens)
    training = flops.training(module, 224) / 1e9
    assert rows["training GFLOP an image"][i] == f"{training:.1f}"
