"""The large recipes: how they differ, what they build, what they promise."""

import importlib
import re
import shlex
from typing import Any

import pytest

from configs import mixer_b16_i21k
from mixer import cli, durations, hardware, validation
from mixer import config as config_lib
from mixer import model as model_lib
from tests import conftest

# What the first recipe sets, of all keys there are.
_BASE = {
  "model.stochastic_depth": 0.1,
  "model.head_bias": -10.0,
  "data.randaugment_layers": 2,
  "loss.name": "sigmoid",
  "loss.mixup": 0.2,
  "optimizer.weight_decay": 0.1,
  "eval_every": "5 epochs",
  "checkpoint_every": "1000 steps",
}
# What the other recipes change in it: table 4 of the paper, and the head of
# another data set.
_I1K = {
  "model.head_bias": -6.9,
  "data.name": "imagenet2012",
  "data.randaugment_magnitude": 15,
  "loss.mixup": 0.5,
}
_JFT = {
  "model.stochastic_depth": 0.0,
  "data.name": "jft_300m",
  "data.randaugment_layers": 0,
  "loss.mixup": 0.0,
  "optimizer.weight_decay": 0.03,
  "eval_every": "5%",
}
_EPOCHS = {
  5: "1_500_000_000 examples",
  7: "2_100_000_000 examples",
  14: "4_200_000_000 examples",
}
_JFT_HIGH = _JFT | {"optimizer.learning_rate": 3e-3}
_CHANGES = {
  "mixer_b16_i21k": {},
  "mixer_i21k:S/32": {"model.variant": "S/32"},
  "mixer_i21k:S/16": {"model.variant": "S/16"},
  "mixer_i21k:B/32": {"model.variant": "B/32"},
  "mixer_l16_i21k": {
    "model.variant": "L/16",
    "data.randaugment_magnitude": 20,
    "loss.mixup": 0.5,
  },
  "mixer_b16_i1k": _I1K,
  "mixer_l16_i1k": _I1K | {"model.variant": "L/16"},
  # Inception preprocessing alone: magnitude without layers does nothing.
  "mixer_b16_i1k_sam": _I1K
  | {
    "data.randaugment_layers": 0,
    "loss.mixup": 0.0,
    "optimizer.learning_rate": 3e-3,
    "optimizer.weight_decay": 0.3,
    "optimizer.sam_rho": 0.6,
  },
  "mixer_jft:S/32": _JFT_HIGH | {"model.variant": "S/32", "total": _EPOCHS[5]},
  "mixer_jft:S/16": _JFT_HIGH | {"model.variant": "S/16", "total": _EPOCHS[5]},
  "mixer_jft:B/32": _JFT_HIGH | {"model.variant": "B/32", "total": _EPOCHS[7]},
  "mixer_jft:B/16": _JFT_HIGH | {"total": _EPOCHS[7]},
  "mixer_jft:L/32": _JFT | {"model.variant": "L/32", "total": _EPOCHS[7]},
  "mixer_jft:L/16": _JFT | {"model.variant": "L/16", "total": _EPOCHS[14]},
  "mixer_jft:H/14": _JFT | {"model.variant": "H/14", "total": _EPOCHS[14]},
}
# Of the training split, and classes; winter 2021's release for ImageNet-21k.
_SETS = {
  "imagenet21k": (13_153_500 - 2 * 25_600, 19_167),
  "imagenet2012": (1_281_167, 1000),
  "jft_300m": (300_000_000, 18_291),
}


def recipe(name: str):
  file, _, argument = name.partition(":")
  module = importlib.import_module(f"configs.{file}")
  return module.get_config(*([argument] if argument else []))


def docstring(name: str) -> str:
  module = importlib.import_module(f"configs.{name.partition(':')[0]}")
  return module.__doc__ or ""


def test_all_large_recipes_are_here():
  files = {p.stem for p in (conftest.ROOT / "configs").glob("mixer_*.py")}
  assert files == {name.partition(":")[0] for name in _CHANGES}
  # The paper's models: all that are published, but for S/8.
  jft = {n.partition(":")[2] for n in _CHANGES if "jft" in n}
  assert jft == {*model_lib.VARIANTS} - {"S/8"}


def test_what_the_first_recipe_sets():
  default = config_lib.flatten(config_lib.default())
  got = config_lib.flatten(mixer_b16_i21k.get_config())
  assert {k: v for k, v in got.items() if v != default[k]} == _BASE


@pytest.mark.parametrize("name", _CHANGES)
def test_what_the_others_change(name):
  base = config_lib.flatten(mixer_b16_i21k.get_config())
  got = config_lib.flatten(recipe(name))
  assert {k: v for k, v in got.items() if v != base[k]} == _CHANGES[name]
  for devices in (1, 8, 64, 256):
    validation.validate(recipe(name), devices)
  # One recipe's changes must not reach the next.
  assert config_lib.flatten(mixer_b16_i21k.get_config()) == base


@pytest.mark.parametrize(
  ("name", "steps"),
  [  # Epochs x examples / 4096, by hand.
    ("mixer_b16_i21k", 959_641),
    ("mixer_l16_i1k", 93_835),
    ("mixer_jft:S/16", 366_211),
    ("mixer_jft:B/32", 512_695),
    ("mixer_jft:H/14", 1_025_391),
  ],
)
def test_lengths_of_runs(name, steps):
  config = recipe(name)
  plan = durations.plan(config, _SETS[config.data.name][0])
  assert (plan.total, plan.warmup) == (steps, 10_000)


def parse(*words) -> Any:
  return cli.parser("train.py").read(["--workdir=w", *words]).config


@pytest.mark.parametrize(
  ("recipe", "said"),
  [
    ("mixer_jft.py:S/8", "'S/8' behind configs/mixer_jft.py: is none of S/32,"),
    ("mixer_i21k.py:L/16", "'L/16' behind configs/mixer_i21k.py: is none of S"),
    ("demo.py:x", "'x' behind configs/demo.py: is none of glyphs, digits; as"),
    ("fashion_mnist.py:x", "is none of glyphs, gpu; as in"),
    ("experiments.py:patches,x", "'patches,x' behind configs/experiments.py:"),
  ],
)
def test_other_words_behind_the_colon(capsys, recipe, said):
  with pytest.raises(SystemExit):
    parse(f"--config={conftest.ROOT}/configs/{recipe}")
  assert said in capsys.readouterr().err


# What docstrings and docs/recipes.md predict, by the formula of the latter.

_PRICES = {"H100": 3.00, "TPU v5e": 1.20}  # Dollars an hour, assumed.


def share(variant: str) -> float:
  """Of the peak that is assumed to be reached."""
  return 0.4 if variant in ("B/16", "L/16", "H/14") else 0.2


def images(name: str) -> int:
  """That a run trains on."""
  config = recipe(name)
  number, unit = config.total.split()
  each = {"epochs": _SETS[config.data.name][0], "examples": 1}
  return int(number) * each[unit]


def prediction(name: str) -> tuple[float, dict[str, float]]:
  """(FLOP, hours by device)."""
  config = recipe(name)
  variant = config.model.variant
  model = model_lib.build(variant, _SETS[config.data.name][1])
  total = images(name) * model_lib.training_flop(model, 224)
  if config.optimizer.sam_rho:
    total *= 2  # Two gradients make an update.
  hours = {
    device: total / (hardware.peak(device) or 0) / share(variant) / 3600
    for device in _PRICES
  }
  return total, hours


def scientific(value: float) -> str:
  return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def dollars(value: float) -> str:
  return f"${float(f'{value:.2g}'):,.0f}"


@pytest.mark.parametrize("name", _CHANGES)
def test_docstrings_predict_by_the_formula(name):
  text = docstring(name)
  _, _, variant = name.partition(":")
  total, hours = prediction(name)
  if variant:  # A row of a table.
    (text,) = re.findall(rf"(?m)^ +{variant} +\d.*%.*$", text)
  percent = f"{100 * share(recipe(name).model.variant):.0f} %"
  for expected in (scientific(total), percent):
    assert expected in text
  for device, value in hours.items():
    assert re.search(rf"\b{value:.0f}\b", text), device
    if not variant:
      assert dollars(value * _PRICES[device]) in text
  if not variant:
    (gpus,) = re.findall(r"one host with (\d) H100", " ".join(text.split()))
    on_host, on_tpus = hours["H100"] / int(gpus), hours["TPU v5e"] / 64
    for value, where in (
      (on_host, "hours on the host above"),
      (on_tpus, "on 64 v5e"),
    ):
      assert f"{value:.{int(value < 10)}f} {where}" in text


def test_the_table_of_the_docs():
  text = (conftest.ROOT / "docs" / "recipes.md").read_text()
  rows = {}
  for line in text.splitlines():
    cells = [c.strip() for c in line.strip("|").split("|")]
    match = re.fullmatch(r"`configs/(\w+)\.py(?::(./..))?`", cells[0])
    if match:
      rows[":".join(filter(None, match.groups()))] = cells[1:]
  assert {*rows} == {*_CHANGES}
  for name, cells in rows.items():
    total, hours = prediction(name)
    h100, v5e = hours["H100"], hours["TPU v5e"]
    variant = recipe(name).model.variant
    assert cells[:7] == [
      scientific(images(name)),
      scientific(total),
      f"{100 * share(variant):.0f} %",
      f"{h100:,.0f}",
      dollars(h100 * _PRICES["H100"]),
      f"{v5e:,.0f}",
      dollars(v5e * _PRICES["TPU v5e"]),
    ]
    # Images a second that an H100 asks its host for.
    assert cells[7] == f"{float(f'{images(name) / h100 / 3600:.2g}'):,.0f}"
    # Docs and docstring promise the same accuracy.
    (accuracy,) = re.findall(r"\d\d(?:\.\d+)? %", cells[8])
    assert accuracy in docstring(name)
    assert ("predicted" in cells[8]) == ("about " + accuracy in docstring(name))


def test_the_smaller_batch_of_the_docs():
  text = (conftest.ROOT / "docs" / "recipes.md").read_text()
  *_, command = re.findall(r"python train\.py ((?:.*\\\n)*.*)", text)
  words = shlex.split(command.replace("\\\n", " "))
  words.remove("--workdir=DIR")
  words[0] = words[0].replace("configs/", f"{conftest.ROOT}/configs/")
  config = parse(*words)
  validation.validate(config, 8)
  small = durations.plan(config, _SETS["imagenet21k"][0])
  large = durations.plan(recipe("mixer_b16_i21k"), _SETS["imagenet21k"][0])
  assert small.warmup * config.batch_size == large.warmup * 4096
  assert abs(small.total - 4 * large.total) <= 4
  assert config.optimizer.learning_rate == 1e-3 * (1024 / 4096) ** 0.5
