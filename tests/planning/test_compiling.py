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

from benchmarks import scaling, scaling_tables
from configs import smoke
from mixer import durations
from mixer.errors import UserError
from mixer.planning import compiling, hardware, hlo
from tests.conftest import ROOT

PAIRS = [(n, s) for n, slices in scaling.RECIPES.items() for s in slices]


def test_every_large_recipe_is_compiled_for_what_its_docstring_names():
  files = {p.stem for p in (ROOT / "configs").glob("mixer_*.py")}
  assert {n.partition(":")[0] for n in scaling.RECIPES} >= files
  for name, slices in scaling.RECIPES.items():
    module = importlib.import_module(f"configs.{name.partition(':')[0]}")
    text = " ".join(inspect.getdoc(module).split())
    if gpus := re.findall(r"one host with (\d) H100 GPU", text):
      if ":" not in name:  # That with sizes names several.
        assert f"h100-{gpus[0]}" in slices
    if chips := re.findall(r"on (\d+) v5e\.", text):
      assert f"v5e-{chips[0]}" in slices


def compile_elsewhere(name, target):
  """In a process of its own, which computes nothing."""
  code = (
    "import json, sys, jax\n"
    "from benchmarks import scaling\n"
    "from mixer.planning import compiling, hardware\n"
    "compiling.prepare()\n"
    "jax.config.update('jax_platforms', 'cpu')\n"
    "target = hardware.parse(sys.argv[2])\n"
    "print(json.dumps(scaling.compile_row(sys.argv[1], target, {})))\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, name, target],
    cwd=ROOT,
    env=dict(os.environ) | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "where"), PAIRS)
def test_recipes_fit_where_they_say(name, where):
  target = hardware.parse(where)
  if sentence := compiling.missing(target):
    pytest.skip(sentence)
  found = compile_elsewhere(name, where)
  assert found["fits"] == ((name, where) not in scaling.TOO_LARGE), found
  if not found["fits"]:
    return
  predicted = scaling.predict(scaling.recipe(name, {}), target)
  assert found["arguments"] == pytest.approx(predicted["arguments"], rel=0.02)
  # Gradients are summed once and new weights gathered once; the optimizer's
  # state is never gathered, which would send three times as much.
  sent = sum(c["sent"] for c in found["collectives"])
  formula = predicted["reduced"] + predicted["permuted"]
  assert sent == pytest.approx(formula, rel=0.15, abs=1000)


@pytest.mark.slow
def test_docs_have_the_tables_of_the_results():
  results = json.loads(scaling.RESULTS.read_text())
  mark, text = scaling_tables.MARK, scaling.DOCS.read_text()
  assert text.split(mark)[1].strip() == scaling_tables.tables(results).strip()


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
  found, text = compiling.compile_step(config, plan, 10, target)
  assert found.fits and found.reason == ""
  assert found.collectives == tuple(hlo.collectives(text, 8))
  assert {c.kind for c in found.collectives} >= {"all-reduce"}
  assert found.arguments > 0 and found.temporaries > 0
  assert found.peak >= found.arguments
  assert found.traffic and found.traffic > found.arguments


@pytest.mark.slow
def test_a_device_that_is_too_small(monkeypatch):
  local(monkeypatch)
  config = smoke.get_config()
  plan = durations.plan(config, 1400)
  monkeypatch.setattr(compiling.formulas, "limit", lambda unused: 1000)
  found, _ = compiling.compile_step(config, plan, 10, hardware.parse("v5e-8"))
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
