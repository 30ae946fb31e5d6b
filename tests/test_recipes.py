"""The large recipes: how they differ, what they build, what they promise."""

import importlib
import re
import shlex
from typing import Any

import pytest

from mixer import cli, durations, hardware, validation
from mixer import config as config_lib
from mixer import model as model_lib
from tests.conftest import ROOT

BASE = "mixer_b16_i21k"
# What recipes change in the first one, of all keys: table 4 of the paper, and
# the head of another data set.
_I1K = {
  "model.head_bias": -6.9,
  "data.name": "imagenet2012",
  "data.randaugment_magnitude": 15,
  "loss.mixup": 0.5,
}
_SAM = {
  "data.randaugment_layers": 0,
  "loss.mixup": 0.0,
  "optimizer.learning_rate": 3e-3,
  "optimizer.weight_decay": 0.3,
  "optimizer.sam_rho": 0.6,
}
_JFT = {
  "model.stochastic_depth": 0.0,
  "data.name": "jft_300m",
  "data.randaugment_layers": 0,
  "loss.mixup": 0.0,
  "optimizer.weight_decay": 0.03,
  "eval_every": "5%",
}
_CHANGES = {
  "mixer_b16_i21k": {},
  "mixer_i21k:S/32": {},
  "mixer_i21k:S/16": {},
  "mixer_i21k:B/32": {},
  "mixer_i21k:L/16": {"data.randaugment_magnitude": 20, "loss.mixup": 0.5},
  "mixer_i1k:B/16": _I1K,
  "mixer_i1k:L/16": _I1K,
  "mixer_i1k:B/16,sam": _I1K | _SAM,
}
for _size, _epochs, _rate in (
  *(("S/32", 5, 3e-3), ("S/16", 5, 3e-3), ("B/32", 7, 3e-3), ("B/16", 7, 3e-3)),
  *(("L/32", 7, 1e-3), ("L/16", 14, 1e-3), ("H/14", 14, 1e-3)),
):
  _CHANGES[f"mixer_jft:{_size}"] = _JFT | {
    "total": f"{_epochs * 300_000_000:_} examples",
    "optimizer.learning_rate": _rate,
  }
# Of the training split, and classes; winter 2021's release for ImageNet-21k.
_SETS = {
  "imagenet21k": (13_153_500 - 2 * 25_600, 19_167),
  "imagenet2012": (1_281_167, 1000),
  "jft_300m": (300_000_000, 18_291),
}
_PRICES = {"H100": 3.00, "TPU v5e": 1.20}  # Dollars an hour, assumed.


def recipe(name: str):
  file, _, argument = name.partition(":")
  module = importlib.import_module(f"configs.{file}")
  return module.get_config(*([argument] if argument else []))


def docstring(name: str) -> str:
  module = importlib.import_module(f"configs.{name.partition(':')[0]}")
  return module.__doc__ or ""


def test_the_first_recipe_and_that_all_are_here():
  default = config_lib.flatten(config_lib.default())
  got = config_lib.flatten(recipe(BASE))
  assert {k: v for k, v in got.items() if v != default[k]} == {
    "model.stochastic_depth": 0.1,
    "model.head_bias": -10.0,
    "data.randaugment_layers": 2,
    "loss.name": "sigmoid",
    "loss.mixup": 0.2,
    "optimizer.weight_decay": 0.1,
    "eval_every": "5 epochs",
    "checkpoint_every": "1000 steps",
  }
  files = {p.stem for p in (ROOT / "configs").glob("mixer_*.py")}
  assert files == {name.partition(":")[0] for name in _CHANGES}
  docs = (ROOT / "docs" / "recipes.md").read_text()
  rows = re.findall(r"(?m)^\| `configs/(\w+)\.py(:[\w/,]+)?`", docs)
  assert {"".join(row) for row in rows} == {*_CHANGES}
  # The paper's models: all that are published, but for S/8.
  jft = {n.partition(":")[2] for n in _CHANGES if "jft" in n}
  assert jft == {*model_lib.VARIANTS} - {"S/8"}


@pytest.mark.parametrize("name", _CHANGES)
def test_what_the_others_change(name):
  base = config_lib.flatten(recipe(BASE))
  got = config_lib.flatten(recipe(name))
  variant = name.partition(":")[2].partition(",")[0] or "B/16"
  wanted = _CHANGES[name] | {"model.variant": variant}
  assert got == base | wanted
  for devices in (1, 8, 64, 256):
    validation.validate(recipe(name), devices)
  # One recipe's changes must not reach the next.
  assert config_lib.flatten(recipe(BASE)) == base


def parse(*words) -> Any:
  return cli.parser("train.py").read(["--workdir=w", *words]).config


@pytest.mark.parametrize(
  ("recipe", "message"),
  [
    ("mixer_jft.py:S/8", "'S/8' behind configs/mixer_jft.py: is none of S/32,"),
    ("mixer_i1k.py:sam", "is none of B/16, L/16, B/16,sam; as in"),
    ("demo.py:x", "is none of glyphs, digits; as in"),
    ("experiments.py:patches,x", "'patches,x' behind configs/experiments.py:"),
    (
      "scratch.py:size=0",
      "'size=0' behind configs/scratch.py: should be model=",
    ),
    ("finetune.py:data=x", "should be model=, dataset= or size="),
    ("finetune.py:model=", "as in configs/finetune.py:model=imagenet21k/Mixer"),
  ],
)
def test_other_words_behind_the_colon(capsys, recipe, message):
  with pytest.raises(SystemExit):
    parse(f"--config={ROOT}/configs/{recipe}")
  assert message in capsys.readouterr().err


# What docstrings and docs/recipes.md predict, by the formula of the latter.


def predicted(name: str) -> list[str]:
  """Cells of the table in docs/recipes.md: images ... images/s."""
  config = recipe(name)
  examples, classes = _SETS[config.data.name]
  number, unit = config.total.split()
  images = int(number) * (examples if unit == "epochs" else 1)
  variant = config.model.variant
  model = model_lib.build(variant, classes)
  flop = images * model_lib.training_flop(model, 224)
  if config.optimizer.sam_rho:
    flop *= 2  # Two gradients make an update.
  share = 0.4 if variant in ("B/16", "L/16", "H/14") else 0.2
  cells = [scientific(images), scientific(flop), f"{100 * share:.0f} %"]
  hours = [flop / (hardware.peak(d) or 0) / share / 3600 for d in _PRICES]
  for value, price in zip(hours, _PRICES.values(), strict=True):
    cells += [f"{value:,.0f}", f"${two_digits(value * price)}"]
  return [*cells, two_digits(images / hours[0] / 3600)]


def scientific(value: float) -> str:
  return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def two_digits(value: float) -> str:
  return f"{float(f'{value:.2g}'):,.0f}"


@pytest.mark.parametrize("name", _CHANGES)
def test_docstrings_and_the_table_of_the_docs_predict_by_the_formula(name):
  docs = (ROOT / "docs" / "recipes.md").read_text()
  file, colon, words = name.partition(":")
  (row,) = re.findall(
    rf"(?m)^\| `configs/{file}\.py{colon}{words}` (.*)$", docs
  )
  cells = [c.strip() for c in row.strip("|").split("|")]
  assert cells[:8] == predicted(name)
  _, flop, share, h100, h100_cost, v5e, v5e_cost = cells[:7]
  text = docstring(name)
  if words:  # A row of a table.
    (text,) = re.findall(rf"(?m)^ +{words} +\d.*%.*$", text)
  else:
    assert h100_cost in text and v5e_cost in text
    hours = [int(h.replace(",", "")) for h in (h100, v5e)]
    assert f"{hours[0] / 8:.0f} hours on the host above" in text
    assert f"{hours[1] / 64:.0f} on 64 v5e" in text
  for cell in (flop, share, h100, v5e):
    assert re.search(rf"(?<!\S){cell.replace(',', '')}(?!\S)", text), cell
  (accuracy,) = re.findall(r"\d\d(?:\.\d+)? %", cells[8])
  assert accuracy in text
  assert ("predicted" in cells[8]) == (f"about {accuracy}" in text)


def test_the_smaller_batch_of_the_docs():
  text = (ROOT / "docs" / "recipes.md").read_text()
  *_, command = re.findall(r"python train\.py ((?:.*\\\n)*.*)", text)
  words = shlex.split(command.replace("\\\n", " "))
  words.remove("--workdir=DIR")
  words[0] = words[0].replace("configs/", f"{ROOT}/configs/")
  config = parse(*words)
  validation.validate(config, 8)
  small = durations.plan(config, _SETS["imagenet21k"][0])
  large = durations.plan(recipe(BASE), _SETS["imagenet21k"][0])
  assert (large.total, large.warmup) == (959_641, 10_000)  # By hand.
  assert small.warmup * config.batch_size == large.warmup * 4096
  assert abs(small.total - 4 * large.total) <= 4
  assert config.optimizer.learning_rate == 1e-3 * (1024 / 4096) ** 0.5
