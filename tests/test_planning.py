"""`mixer plan`: slices, formulas, compilers, and what is printed."""

import functools
import json
import math
import os
import subprocess
import sys
from importlib import metadata
from unittest import mock

import jax
import pytest

from configs import finetune, mixer_i1k, mixer_jft, smoke
from mixer import cli, hardware, planning
from mixer import config as config_lib
from mixer.commands import plan
from mixer.errors import UserError
from tests.conftest import ROOT


@pytest.fixture
def run(monkeypatch, capsys):
  """Gives the command; returns its exit code and output."""
  for name, value in plan.ENVIRONMENT.items():
    monkeypatch.setenv(name, value)

  def start(*words: str, config: str = "mixer_b16_i21k"):
    try:
      code = cli.main(["plan", f"--config=configs/{config}.py", *words])
    except SystemExit as e:
      code = int(e.code or 0)
    return code, *capsys.readouterr()

  monkeypatch.chdir(ROOT)
  return start


def test_what_is_printed(run, tmp_path):
  data = f"--config.data.data_dir={tmp_path}"
  code, out, _ = run("--hardware=v5e-64", "--price=1.2", data)
  assert code == 0
  for part in (
    "64 chips as 8x8",
    "parameters                        73,850,895",
    "13,102,300  as published",
    "959,641",
    "3.09e14 FLOP",
    "2.35 GiB",
    "9.64 MiB",
    "61.32 ms  40% MFU",
    "at $1.2 a chip and hour",
    "Predicted to fit: ",
    "The bottleneck is ",
  ):
    assert part in out
  assert not any(tmp_path.iterdir())
  words = "--hardware=h100-8", "--examples=1000000", "--classes=1000"
  words += "--config.total=10 epochs", "--config.schedule.warmup=5%"
  code, out, _ = run(*words, "--json")
  found = json.loads(out)
  assert code == 0 and found["numbers"]["updates"] == 2441
  assert found["bottleneck"] == "memory" and found["fits"] is True
  for words, what in (
    ((), "--hardware"),
    (("--hardware=v5e-8", "x"), "no flag"),
    (("--hardware=v5e-8", "--price=-1"), "price"),
    (("--hardware=v5e-7",), "--hardware=v5e-7 is no slice"),
    (("--hardware=v5e-256", "--config.batch_size=96"), "batch_size"),
    (("--hardware=v5e-64", "--config.sharding.fsdp=3"), "divide the 64"),
    (("--hardware=v5e-8", "--config.data.name=mine"), "--examples=N --classes"),
  ):
    code, _, err = run(*words)
    assert code == 1 and err.startswith("error: ") and what in err


def test_sizes_of_data_sets(tmp_path, monkeypatch):
  jft, cifar = mixer_jft.get_config(), finetune.get_config("dataset=cifar10")
  digits = smoke.get_config()
  for config in (jft, cifar, digits):
    config.data.data_dir = str(tmp_path)
  cifar.data.examples_per_class, digits.data.train_split = 25, "train[:98%]"
  for config, given, found in (
    (jft, (None, None), (300_000_000, 18_291, "as published")),
    (jft, (10, 3), (10, 3, "as given")),
    (cifar, (None, None), (250, 10, "as published")),
    (cifar, (None, 3), (250, 3, "as published")),
    (digits, (None, None), (1_372, 10, "as published")),
  ):
    assert plan.data_size(config, *given) == found
  assert not any(tmp_path.iterdir())
  # One that is prepared is asked; here by code.
  (tmp_path / "my_set.py").write_text(
    "def get(split, data_dir):\n"
    "  return [{'image': b'', 'label': 0}] * 7, ['cat', 'dog']\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  digits.data.name, digits.data.examples_per_class = "my_set:get", 0
  assert plan.data_size(digits, None, None) == (7, 2, "as prepared")


# Hardware.


def test_peaks():
  for kind, flops in (  # As JAX names devices.
    ("TPU v3", 61.5e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA L40S", None),
    ("cpu", None),
  ):
    assert hardware.peak(kind) == flops


def test_names_of_slices():
  for name, found in hardware.SLICES.items():
    assert hardware.parse(name) is found and found.host_cores > 0
    assert math.prod(found.grid or (found.num_chips,)) == found.num_chips
    assert found.num_devices % found.num_hosts == 0
  for name, known in (("8xH100", "h100-8"), ("v5litepod-64", "v5e-64")):
    assert hardware.parse(name).name == known
  listed = {"v5e-12": "v5e-1, v5e-4", "h100-12": "h100-2, h100-4, h100-8"}
  for name in ("", "v5e", "v7-8", "v5e-0", "v5e-12", "h100-12"):
    with pytest.raises(UserError) as caught:
      hardware.parse(name)
    assert str(caught.value).startswith(f"--hardware={name} is no slice; take")
    assert listed.get(name, "") in str(caught.value)


def test_slices():
  # Google's tables; DGX for GPUs. Seconds to sum a gigabyte, by hand.
  for name, *counts, seconds in (
    ("v5e-1", 1, 1, 1, 0.0),
    # A line of 2 and one of 4: a link each.
    ("v5e-8", 8, 8, 1, 2 * 7 / 8 / 100),
    # Two rings of 16: two links each.
    ("v5e-256", 256, 256, 64, 2 * 255 / 256 / 200),
    # A cube is wired round in all three directions.
    ("v5p-128", 64, 64, 16, 2 * 63 / 64 / 600),
    ("v3-8", 4, 8, 1, 2 * 3 / 4 / 166),
    ("h100-8", 8, 8, 1, 2 * 7 / 8 / 450),
    ("h100-16", 16, 16, 2, 2 * 7 / 8 / 450 + 2 * (1 / 8) * (1 / 2) / 50),
  ):
    found = hardware.parse(name)
    assert counts == [found.num_chips, found.num_devices, found.num_hosts]
    assert found.all_reduce_seconds(1e9) == pytest.approx(seconds)


# Formulas: against compiled code, closed forms, and laws.


@functools.cache
def predict(name="v5e-64", **keys):
  """The plan of B/16 for ImageNet-1k, with other keys of the config."""
  keys = {key.replace("__", "."): value for key, value in keys.items()}
  config = config_lib.changed(mixer_i1k.get_config(), keys)
  return planning.predict(config, hardware.parse(name), 1_281_167, 1000)


def ratio(number, name="v5e-64", **keys):
  """How some keys change it."""
  return predict(name, **keys)[number] / predict(name)[number]


def test_numbers_of_b16_by_hand():
  found, p = predict(sharding__zero1=False), 59_880_472
  assert found["parameters"] == p
  assert found["weights"] == found["gradients"] == 4 * p
  assert found["optimizer, average"] == pytest.approx(8 * p, abs=16)
  assert found["images"] == 64 * (3 * 224 * 224 + 4)
  assert found["communication"] == round(2 * 63 / 64 * 4 * p)
  flop = found["operations an update"]
  assert flop == pytest.approx(75.38e9 * 4096, rel=1e-3)
  # 12 blocks of 196 tokens, 768 channels, MLPs of 384 and 3072.
  narrow, wide = 196 * 768, 384 * 768 + 196 * 3072
  kept = 12 * 2 * (2 * narrow + wide) + 6 * 224 * 224 * 3 + 12 * 1000
  assert found["activations"] == 64 * kept
  assert found["updates"] == 93_835
  seconds = flop / (64 * 197e12 * 0.7)
  assert found["time of matmuls"] == pytest.approx(seconds)
  links = 2 * 63 / 64 * 4 * p / 100e9 / 0.8
  assert found["time of links"] == pytest.approx(links)
  assert found["time of input"] == pytest.approx(4096 / (16 * 56 * 1000))
  longest = max(found[f"time of {k}"] for k in planning.TIMES)
  assert found["time of an update"] == longest
  assert found["images to decode"] == pytest.approx(4096 / 16 / longest)
  hours = found["updates"] * longest / 3600
  assert found["chip-hours"] == pytest.approx(64 * hours)
  assert hardware.parse("v5e-64").program_memory == 2**34 - 2**28
  # A linear probe sums the head alone.
  found = predict(sharding__zero1=False, optimizer__train="head")
  head = 768 * 1000 + 1000
  assert found["gradients"] == 4 * head
  assert found["communication"] == round(2 * 63 / 64 * 4 * head)


def test_what_changes_the_numbers():
  sent, kept, about = "communication", "activations", pytest.approx
  remat, parts = {"model__remat": "block"}, {"optimizer__accumulate": 4}
  assert ratio(kept, **remat) < 1 / 3 and ratio("memory traffic", **remat) > 1
  assert (
    ratio(kept, **parts) == about(1 / 4) and ratio("gradients", **parts) == 2
  )
  # With SAM gradients are summed twice, and perturbed weights are gathered as
  # new ones are.
  sam = {"optimizer__sam_rho": 0.6}
  assert ratio("operations an update", **sam) == 2
  assert ratio(sent, **sam) == about(2)
  assert ratio(sent, sharding__reduce_dtype="bfloat16") == about(0.75)
  # Compilers for GPUs scatter no sums of parts, and recompute for one only.
  assert ratio(sent, "v5e-8", **parts) == 1
  assert ratio(sent, "h100-8", **parts) == about(1.5)
  assert ratio(kept, "h100-8", **remat) == 1
  assert ratio(kept, "h100-1", **remat) < 1 / 4
  # libtpu sums on many chips what it could scatter.
  whole = {"sharding__zero1": False}
  for name, least, expected in (
    *(("v5e-8", 7, 1), ("v5e-64", 50, 1 / 2), ("h100-64", 50, 1)),
  ):
    assert ratio("optimizer, average", name, **whole) > least
    assert ratio(sent, name, **whole) == about(expected)
  fsdp = {"sharding__fsdp": 8}
  assert ratio("weights", "h100-64", **fsdp) < 1 / 7
  assert ratio(sent, "h100-64", **fsdp) > 1


def test_what_it_comes_to(monkeypatch):
  config, target = mixer_jft.get_config("S/16"), hardware.parse("v5e-8")
  few = planning.predict(config, target, 10**6, 1000, cores=1, core_rate=500)
  assert planning.bottleneck(few) == "input"
  assert few["time of an update"] == pytest.approx(4096 / 500)
  assert few["cores"] == pytest.approx(1)
  config.batch_size = 2**15
  found = planning.predict(config, target, 10**6, 1000)
  first, second, *_ = plan.verdict(found, config, target)
  assert first.startswith("Predicted not to fit: ")
  assert second.startswith("--config.model.remat=block --config.optimizer.accu")
  assert config.model.remat == "none"
  fits = found | {"memory": 0}
  for name in planning.TIMES:
    sentences = plan.verdict(fits | {f"time of {name}": 1e3}, config, target)
    assert sentences[1].startswith(f"The bottleneck is {name}: ")
  config.batch_size, small = 8, property(lambda _: 2**26)
  monkeypatch.setattr(hardware.Slice, "program_memory", small)
  assert "sharding.fsdp=N" in plan.verdict(found, config, target)[1]


# Compilers.


def test_what_a_compiler_says(run, monkeypatch):
  """The one for the eight virtual devices, in place of a slice's."""
  part, version = hardware.Slice, "importlib.metadata.version"
  with monkeypatch.context() as patch:
    patch.setattr(version, lambda _: "1.0")
    for name, what in (("v4-8", "two devices"), ("a100-8", "the H100")):
      code, _, err = run(f"--hardware={name}", "--compile", config="smoke")
      assert code == 1 and what in err
    patch.setattr(part, "describe_devices", lambda _: jax.devices())
    words = "--config.sharding.fsdp=4", "--config.sharding.min_size=256"
    code, out, _ = run("--hardware=v5e-8", "--compile", *words, config="smoke")
    assert code == 0 and "libtpu 1.0:\n  arguments" in out and "It fits." in out
    # Of the formulas' and the compiler's, which rounds every argument up.
    (line,) = (x for x in out.splitlines() if x.startswith("  arguments"))
    assert float(line.split()[-1][:-1]) == pytest.approx(1, abs=0.02)
    for text, end, what in (
      ("RESOURCE_EXHAUSTED: Used 20.1G of 15.75G", 0, "It does not fit: RES"),
      (
        "no such topology\nand so on",
        1,
        "v5e-8 failed: no such topology. `pip",
      ),
    ):
      error = jax.errors.JaxRuntimeError(text)
      patch.setattr(part, "describe_devices", mock.Mock(side_effect=error))
      code, out, err = run("--hardware=v5e-8", "--compile", config="smoke")
      assert code == end and what in out + err
  missing = mock.Mock(side_effect=metadata.PackageNotFoundError("x"))
  monkeypatch.setattr(version, missing)
  for name, extra in (("v5e-8", "tpu"), ("h100-8", "gpu")):
    code, _, err = run(f"--hardware={name}", "--compile", config="smoke")
    assert code == 1 and f'pip install -e ".[{extra}]"' in err


# Recipe -> the slices that its docstring names.
RECIPES = {
  "mixer_i21k:S/32": ("h100-1", "v5e-64"),
  "mixer_i21k:S/16": ("h100-4", "v5e-64"),
  "mixer_b16_i21k": ("h100-8", "v5e-64"),
  "mixer_i21k:L/16": ("h100-8", "v5e-64"),
  "mixer_i1k:B/16,sam": ("h100-8", "v5e-64"),
  "mixer_jft:H/14": ("h100-8",),
  "finetune": ("h100-1", "v5e-8"),
}
# Those that don't fit there as they are; their docstrings say so.
TOO_LARGE = (("mixer_i21k:L/16", "h100-8"), ("mixer_jft:H/14", "h100-8"))


def compiled_plan(where, recipe, *words):
  """What a plan says, of a compiler that has to be installed."""
  package = "libtpu" if hardware.parse(where).grid else "jax-cuda13-plugin"
  if not any(d.name == package for d in metadata.distributions()):
    pytest.skip(f"{package} is not installed")
  words = "plan", "--compile", "--json", f"--hardware={where}", *words
  out = subprocess.check_output(
    [sys.executable, "-m", "mixer", *words, f"--config={recipe}"],
    env=os.environ | {"XLA_FLAGS": ""},
    cwd=ROOT,
  )
  return json.loads(out)


@pytest.mark.slow
def test_a_step_on_a_tpu_accesses_no_more_than_it_did():
  batch = "--config.batch_size=2048"  # 128 images a chip.
  found = compiled_plan("v5e-16", "configs/mixer_b16_i21k.py", batch)
  assert found["compiled"]["traffic"] < 58.5e9
  assert found["compiled"]["temporaries"] < 4.4e9


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "where"), [(n, s) for n, slices in RECIPES.items() for s in slices]
)
def test_recipes_fit_where_they_say(name, where):
  file, _, argument = name.partition(":")
  recipe = f"configs/{file}.py" + f":{argument}" * bool(argument)
  found = compiled_plan(where, recipe)
  compiled, numbers = found["compiled"], found["numbers"]
  assert compiled["fits"] == ((name, where) not in TOO_LARGE), compiled
  if compiled["fits"]:
    temporaries = numbers["activations"] + numbers["gradients"]
    arguments = numbers["memory"] - temporaries
    assert compiled["arguments"] == pytest.approx(arguments, rel=0.02)
