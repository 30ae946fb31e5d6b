"""`python -m mixer plan`, as a user gives it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from configs import finetune, mixer_b16_i21k, mixer_jft, smoke
from mixer import cli, config
from mixer.commands import plan
from mixer.errors import UserError
from mixer.planning import compiling, plan_report
from tests.conftest import ROOT


def start(*args):
  return subprocess.run(
    [sys.executable, "-m", "mixer", "plan", *args],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )


def test_the_table(tmp_path):
  done = start(
    "--config=configs/mixer_b16_i21k.py",
    "--hardware=v5e-64",
    "--price=1.2",
    f"--config.data.data_dir={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  for part in (
    "64 chips as 8x8",
    "73,850,895  [parameters]",
    "13,102,300  as published",
    "959,641",
    "at $1.2 a chip and hour",
    "Predicted to fit: ",
    "The bottleneck is ",
  ):
    assert part in done.stdout
  assert "--price" not in done.stdout
  assert not any(tmp_path.iterdir())


def test_json_with_formulas(tmp_path):
  done = start(
    "--config=configs/mixer_b16_i21k.py",
    "--hardware=h100-8",
    "--examples=1000000",
    "--classes=1000",
    "--json",
    "--formulas",
    "--config.total=10 epochs",
    "--config.schedule.warmup=5%",
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  run = {line["name"]: line for line in found["sections"]["run"]}
  assert run["updates"]["value"] == 2441
  assert run["training examples"]["note"] == "as given"
  assert found["bottleneck"] in ("matmuls", "memory", "links", "input")
  assert found["fits"] in (True, False) and found["compiled"] is None
  assert found["formulas"]["parameters"].startswith("P = ")


@pytest.mark.parametrize(
  ("args", "what"),
  [
    ((), "required: --hardware"),
    (("--config=configs/smoke.py",), "required: --hardware"),
    (("--config=configs/smoke.py", "--hardware=v5e-8", "x"), "'x' is no flag"),
    (
      ("--config=configs/smoke.py", "--hardware=v5e-8", "--price=-1"),
      "price",
    ),
  ],
)
def test_wrong_command_lines(args, what):
  done = start(*args)
  assert done.returncode == 1
  assert done.stderr.startswith("error: ") and what in done.stderr
  assert "Traceback" not in done.stderr


def describe(c, **request):
  return plan.describe(c, plan.Request(**request))


def test_what_does_not_divide():
  with pytest.raises(UserError, match="--config.batch_size=64 or"):
    describe(smoke.get_config(), hardware="v5e-64")
  with pytest.raises(UserError, match="--hardware=v5e-7: there is no slice"):
    describe(smoke.get_config(), hardware="v5e-7")
  c = mixer_b16_i21k.get_config()
  c.sharding.fsdp = 3
  with pytest.raises(UserError, match="fsdp=3 doesn't divide the 64"):
    describe(c, hardware="v5e-64")


def test_sizes_of_data_sets(tmp_path):
  c = mixer_jft.get_config()
  c.data.data_dir = str(tmp_path)
  assert plan.data_size(c, plan.Request("v5e-8"))[:2] == (300_000_000, 18_291)
  c.data.name = "mine"
  with pytest.raises(UserError, match="--examples=N --classes=K"):
    plan.data_size(c, plan.Request("v5e-8"))
  with pytest.raises(UserError, match="--examples=N --classes=K"):
    plan.data_size(c, plan.Request("v5e-8", examples=10))
  given = plan.Request("v5e-8", examples=10, classes=3)
  assert plan.data_size(c, given) == (10, 3, "as given")
  c = finetune.get_config("dataset=cifar10")
  c.data.data_dir = str(tmp_path)
  c.data.examples_per_class = 25
  assert plan.data_size(c, plan.Request("v5e-8"))[0] == 250
  found = plan.data_size(c, plan.Request("v5e-8", classes=3))
  assert found == (250, 3, "as published, or as given")


def test_a_prepared_set_is_asked(tmp_path):
  for k in range(12):
    path = tmp_path / "source" / ("cat", "dog", "cow")[k % 3] / f"{k}.png"
    path.parent.mkdir(exist_ok=True, parents=True)
    pixels = np.full((8, 8, 3), 20 * k, np.uint8)
    Image.fromarray(pixels).save(path)
  data = tmp_path / "data"
  done = cli.main(
    [
      "prepare",
      "folder",
      "--name=cifar10",  # Other than the set that is published.
      f"--source={tmp_path / 'source'}",
      f"--data_dir={data}",
    ]
  )
  assert done == 0
  c = config.default()
  c.data.name, c.data.data_dir = "cifar10", str(data)
  c.data.eval_split = c.data.train_split = "train"
  examples, classes, source = plan.data_size(c, plan.Request("v5e-8"))
  assert (classes, source) == (3, "as prepared") and 1 < examples <= 12


def test_what_a_compiler_says(monkeypatch):
  """With one that is not there, in its place what it could say."""
  said = compiling.Compiled(
    "libtpu 0.0",
    True,
    arguments=3 * 2**30,
    temporaries=2**30,
    peak=4 * 2**30,
    traffic=50 * 2**30,
    seconds=61.0,
  )
  monkeypatch.setattr(compiling, "missing", lambda unused: "")
  monkeypatch.setattr(compiling, "compile_step", lambda *unused: said)
  request = plan.Request("v5e-64", compile=True)
  found = plan.describe(mixer_b16_i21k.get_config(), request)
  assert found["compiled"] is said
  text = plan_report.compiled_text(said, found["plan"])
  assert "libtpu 0.0, in 61 s" in text and "It fits." in text
  ratio = found["plan"].memory / said.peak
  (line,) = [x for x in text.splitlines() if x.startswith("  peak ")]
  assert line.split()[1:3] == ["4.00", "GiB"]
  assert line.endswith(f"{ratio:.2f}")


def test_a_compiler_that_runs_out_of_memory():
  found = describe(mixer_b16_i21k.get_config(), hardware="v5e-64")
  said = compiling.Compiled("libtpu 0.0", False, "Used 20G of 16G hbm")
  text = plan_report.compiled_text(said, found["plan"])
  assert text == "libtpu 0.0: it doesn't fit: Used 20G of 16G hbm.\n"
