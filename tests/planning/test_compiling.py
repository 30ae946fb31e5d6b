"""Compilers without their hardware, where they are installed.

Every recipe for the slices that its docstring names: slow, and left out where
the compiler isn't there (requirements-tpu.txt, requirements-gpu.txt).
"""

import importlib
import inspect
import json
import os
import re
import subprocess
import sys

import pytest

from configs import smoke
from mixer import durations
from mixer.datasets import catalog
from mixer.errors import UserError
from mixer.planning import compiling, formulas, hardware
from tests.conftest import ROOT

# Recipe -> what its docstring names.
RECIPES = {
  "mixer_s32_i21k": ("h100-1", "v5e-64"),
  "mixer_s16_i21k": ("h100-4", "v5e-64"),
  "mixer_b32_i21k": ("h100-4", "v5e-64"),
  "mixer_b16_i21k": ("h100-8", "v5e-64"),
  "mixer_l16_i21k": ("h100-8", "v5e-64"),
  "mixer_b16_i1k": ("h100-8", "v5e-64"),
  "mixer_l16_i1k": ("h100-8", "v5e-64"),
  "mixer_b16_i1k_sam": ("h100-8", "v5e-64"),
  "mixer_jft:S/32": ("h100-1",),
  "mixer_jft:S/16": ("h100-4",),
  "mixer_jft:B/32": ("h100-4",),
  "mixer_jft:B/16": ("h100-8",),
  "mixer_jft:L/32": ("h100-8",),
  "mixer_jft:L/16": ("h100-8",),
  "mixer_jft:H/14": ("h100-8",),
  "experiment_permutation_b16": ("h100-8",),
  "experiment_token_mixing_s32": ("h100-1",),
  "finetune": ("h100-1", "v5e-8"),
}
# Those that don't fit there as they are; their docstrings say so.
TOO_LARGE = (
  ("mixer_l16_i21k", "h100-8"),
  ("mixer_l16_i1k", "h100-8"),
  ("mixer_jft:L/16", "h100-8"),
  ("mixer_jft:H/14", "h100-8"),
)
PAIRS = [(n, s) for n, slices in RECIPES.items() for s in slices]


def test_every_large_recipe_is_compiled_for_what_its_docstring_names():
  files = {p.stem for p in (ROOT / "configs").glob("mixer_*.py")}
  assert {n.partition(":")[0] for n in RECIPES} >= files
  for name, slices in RECIPES.items():
    module = importlib.import_module(f"configs.{name.partition(':')[0]}")
    text = " ".join(inspect.getdoc(module).split())
    if gpus := re.findall(r"one host with (\d) H100 GPU", text):
      if ":" not in name:  # That with sizes names several.
        assert f"h100-{gpus[0]}" in slices
    if chips := re.findall(r"on (\d+) v5e\.", text):
      assert f"v5e-{chips[0]}" in slices


def recipe(name):
  file, _, argument = name.partition(":")
  module = importlib.import_module(f"configs.{file}")
  return module.get_config(*([argument] if argument else []))


def compile_elsewhere(name, target):
  """`mixer plan --compile`, in a process of its own."""
  file, colon, argument = name.partition(":")
  done = subprocess.run(
    [
      *(sys.executable, "-m", "mixer", "plan", "--compile", "--json"),
      *(f"--config=configs/{file}.py{colon}{argument}", f"--hardware={target}"),
    ],
    cwd=ROOT,
    env=dict(os.environ) | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout)["compiled"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "where"), PAIRS)
def test_recipes_fit_where_they_say(name, where):
  target = hardware.parse(where)
  if sentence := compiling.missing(target):
    pytest.skip(sentence)
  found = compile_elsewhere(name, where)
  assert found["fits"] == ((name, where) not in TOO_LARGE), found
  if not found["fits"]:
    return
  config = recipe(name)
  size = catalog.size(config.data.name, config.data.train_split)
  predicted = formulas.predict(config, target, *size)
  assert found["arguments"] == pytest.approx(predicted.arguments, rel=0.02)


@pytest.mark.parametrize("name", ["v4-8", "a100-8", "h200-8"])
def test_chips_that_no_compiler_describes(name):
  with pytest.raises(UserError, match=f"no compiling for {name[:2]}"):
    compiling.devices(hardware.parse(name))


@pytest.mark.parametrize(
  ("name", "extra"), [("v5e-8", "tpu"), ("h100-8", "gpu")]
)
def test_a_compiler_that_is_missing(monkeypatch, name, extra):
  monkeypatch.setattr(
    compiling.importlib.util, "find_spec", lambda *unused: None
  )
  with pytest.raises(UserError) as caught:
    compiling.devices(hardware.parse(name))
  assert f'pip install -e ".[{extra}]"' in str(caught.value)


def test_a_compiler_that_fails(monkeypatch):
  def fail(**unused):
    raise RuntimeError("no such topology\nand so on")

  monkeypatch.setattr(compiling, "missing", lambda unused: "")
  monkeypatch.setattr(compiling.topologies, "get_topology_desc", fail)
  with pytest.raises(UserError, match="v5e-8 can't be started: no such topo"):
    compiling.devices(hardware.parse("v5e-8"))


def local(monkeypatch):
  """The eight virtual devices, in place of a slice's."""
  import jax

  monkeypatch.setattr(compiling, "devices", lambda unused: jax.devices())
  monkeypatch.setattr(compiling, "_compiler", lambda unused: "CPU")


def test_what_is_said_of_a_compiled_step(monkeypatch):
  local(monkeypatch)
  config = smoke.get_config()
  config.sharding.zero1 = False
  plan = durations.plan(config, 1400)
  target = hardware.parse("v5e-8")
  found = compiling.compile_step(config, plan, 10, target)
  assert found.fits and found.reason == ""
  assert found.arguments > 0 and found.temporaries > 0
  assert found.peak >= found.arguments
  assert found.traffic and found.traffic > found.arguments


@pytest.mark.slow
def test_a_device_that_is_too_small(monkeypatch):
  local(monkeypatch)
  config = smoke.get_config()
  plan = durations.plan(config, 1400)
  monkeypatch.setattr(compiling.formulas, "limit", lambda unused: 1000)
  found = compiling.compile_step(config, plan, 10, hardware.parse("v5e-8"))
  assert not found.fits
  assert found.reason.startswith("Used 0.00G of 0.00G")


@pytest.mark.parametrize(
  ("message", "said"),
  [
    (
      "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory "
      "in memory space hbm. Used 20.10G of 15.75G hbm. Exceeded hbm capacity",
      "Used 20.10G of 15.75G hbm",
    ),
    (
      "RESOURCE_EXHAUSTED: out of space\nmore",
      "RESOURCE_EXHAUSTED: out of space",
    ),
    ("", "out of memory"),
  ],
)
def test_how_much_is_missing(message, said):
  assert compiling.out_of_memory(message) == said


def test_the_environment_of_the_user_stays(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "tpu")
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
  for name in ("ALLOW_MULTIPLE_LIBTPU_LOAD", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"):
    monkeypatch.setenv(name, "0")
  monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
  compiling.prepare()
  assert os.environ["JAX_PLATFORMS"] == "tpu"
  assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
