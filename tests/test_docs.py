"""What the documents say is so; tests/test_documents.py has their commands."""

import pathlib
import re

import pytest

from tests import conftest

DOCS = [conftest.ROOT / "README.md", *conftest.ROOT.glob("docs/*.md")]


def test_the_code_in_the_data_page_runs(capsys):
  text = (conftest.ROOT / "docs" / "data.md").read_text()
  (code,) = re.findall(r"```python\n(from mixer.*?)```", text, re.DOTALL)
  found = {}
  exec(code, found)
  assert found["columns"].shape == (10450,)
  assert "dog" in capsys.readouterr().out


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


def test_the_models_in_the_readme_are_those_of_the_code():
  from mixer import model

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
    training = model.training_flop(module, 224) / 1e9
    assert rows["training GFLOP an image"][i] == f"{training:.1f}"
