"""The kept table of what compilers say, and one step kernel by kernel."""

import argparse
import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest

from benchmarks import (
  compiled,
  compiled_tables,
  kernel_profile,
  kernel_report,
  kernels,
  settings,
)
from benchmarks import step as step_lib
from mixer import command_line, flops
from mixer import config as config_lib
from mixer import model as model_lib
from mixer.errors import UserError
from mixer.planning import compiling, hardware, roofline
from mixer.planning import kernels as kernels_lib

ROOT = pathlib.Path(__file__).parents[2]
H100 = hardware.parse("h100-1")
BASE = {"model.layout": "token_major", "model.dtype": "bfloat16"}


def test_rows_are_the_published_sizes_and_no_two_alike():
  rows = compiled.rows()
  keys = [row.key for row in rows]
  assert len(set(keys)) == len(keys)
  plain = {
    (r.variant, r.where, r.changes["model.layout"])
    for r in rows
    if len(r.changes) == 2 and r.changes["model.dtype"] == "bfloat16"
  }
  published = set(model_lib.VARIANTS) - {"S/8"}
  assert plain == {
    (v, w, layout)
    for v in published
    for w in ("h100-1", "v5e-1", "v6e-1")
    for layout in compiled.LAYOUTS
  }
  for row in rows:
    assert hardware.parse(row.where).num_devices == 1


def test_every_row_is_a_config():
  known = config_lib.flatten(config_lib.default())
  for row in compiled.rows():
    changes = {k: v for k, v in row.changes.items() if k in known}
    config = step_lib.changed(row.variant, row.batch, "bfloat16", changes)
    flat = config_lib.flatten(config)
    assert {k: flat[k] for k in changes} == changes


@functools.cache
def text():
  """Of a matmul of 30 with itself, summed: 54,000 FLOP."""
  x = jax.ShapeDtypeStruct((30, 30), jnp.float32)
  function = jax.jit(lambda x: jnp.sum(jnp.tanh(x @ x)))
  return function.lower(x).compile().as_text() or ""


def local(monkeypatch):
  """That in place of each step, of 3 GB; or no compilation at all."""

  def compile_step(*unused):
    gb = 10**9
    return compiling.Compiled("CPU", True, "", gb, 2 * gb, 3 * gb), text()

  monkeypatch.setattr(compiling, "compile_step", compile_step)
  monkeypatch.setattr(compiling, "missing", lambda unused: "")
  monkeypatch.setattr(compiling, "prepare", lambda: None)
  monkeypatch.setattr(kernels, "CLASSES", 10)


def small(monkeypatch, tmp_path):
  """A table of one row, in a file of its own."""
  local(monkeypatch)
  row = compiled.Row(
    "S/112", "h100-1", 2, {"model.dtype": "float32", "model.remat": "none"}
  )
  monkeypatch.setattr(compiled, "rows", lambda: [row])
  monkeypatch.setattr(compiled, "RESULTS", tmp_path / "compiled.json")
  return row


def test_a_row_is_made_once(monkeypatch, tmp_path, capsys):
  row = small(monkeypatch, tmp_path)
  assert compiled.compile_all("", "", False) == 0
  (key, made), *others = json.loads(compiled.RESULTS.read_text()).items()
  assert not others and key == row.key
  assert made["variant"] == "S/112" and made["compiler"] == "CPU"
  assert made["peak"] == 3 * 10**9 and made["traffic"] is None
  found = kernels_lib.read(text())
  assert made["kernels"] == len(found)
  assert made["moved"] == sum(k.size for k in found)
  assert sum(made["epilogues"].values()) == 1
  # FLOP that the model needs over time is MFU, whatever was compiled.
  flop = 2 * flops.training(model_lib.build("S/112", 10), 224)
  rate = flop / made["predicted_seconds"]
  assert made["predicted_mfu"] == pytest.approx(rate / H100.chip.flops)
  capsys.readouterr()
  compiled.compile_all("", "", False)
  assert "all are there (--again)" in capsys.readouterr().out


def test_what_a_row_lacks_is_told(monkeypatch, tmp_path, capsys):
  row = small(monkeypatch, tmp_path)
  other = dataclasses.replace(row, changes={"model.wings": 2})
  monkeypatch.setattr(compiled, "rows", lambda: [other, other])
  assert compiled.compile_all("", "", False) == 0
  said = capsys.readouterr().err
  assert said == (
    "Rows with model.wings are left out: the config has no such key.\n"
  )
  assert not compiled.RESULTS.exists()


def test_a_row_that_fails_stops_no_other(monkeypatch, tmp_path, capsys):
  row = small(monkeypatch, tmp_path)
  wrong = dataclasses.replace(
    row, changes=row.changes | {"model.remat": "some"}
  )
  monkeypatch.setattr(compiled, "rows", lambda: [wrong, row])
  assert compiled.compile_all("", "", False) == 1
  assert "model.remat" in capsys.readouterr().err
  assert list(compiled.load()) == [row.key]


def test_a_wrong_pattern_is_a_sentence(capsys):
  args = argparse.Namespace(only="(", on="", again=False)
  assert command_line.tool(compiled.body, args) == 1
  assert "--only=( is no regular expression" in capsys.readouterr().err


def row(where="h100-1", fits=True, **changes):
  """As `compile_row` gives it, with numbers of which each is another."""
  found = {
    "variant": "B/16",
    "hardware": where,
    "batch": 512,
    "changes": BASE | {f"model.{k}": v for k, v in changes.items()},
    "fits": fits,
    "reason": "" if fits else "Used 90G of 55G",
    "arguments": 10**9,
    "temporaries": 31 * 10**9,
    "peak": 32 * 10**9,
    "traffic": None if where == "h100-1" else 60 * 10**9,
    "seconds": 17.0,
  }
  if not fits:
    return found
  found |= {
    **{"kernels": 1018, "transposes": 8, "copies": 13, "pads": 52},
    **{"copied": 3 * 10**9, "moved": 209 * 10**9},
    "epilogues": {"DEFAULT": 123, "BIAS": 25},
  }
  if where == "h100-1":
    found |= {"predicted_seconds": 0.1024, "predicted_mfu": 0.375}
  return found


def cells(line):
  return [x.strip() for x in line.strip("|").split("|")]


def test_the_gpu_table():
  lines = compiled_tables.compiled_gpu(
    [row(), row("v5e-1"), row(remat="block"), row(layout="batch_major")]
  ).splitlines()
  assert len(lines) == 4
  assert cells(lines[2]) == [
    *("B/16", "512", "[S, B, C]", "bfloat16", "1,018", "8", "13", "52"),
    *("123 DEFAULT, 25 BIAS", "209.0", "31.00", "32.00"),
    *("102.4 (5,000 images/s)", "38%"),
  ]
  assert cells(lines[3])[2] == "[B, S, C]"


def test_the_tpu_table():
  lines = compiled_tables.compiled_tpu([row(), row("v6e-1")]).splitlines()
  assert [cells(x) for x in lines[2:]] == [
    [
      *("B/16", "v6e", "512", "[S, B, C]", "bfloat16", "60.00", "209.00"),
      *("31.00", "32.00", "13, 3.00 GB", "52", "17 s"),
    ]
  ]


def test_the_remat_table():
  """Beside the policies their size without one; no other row."""
  lines = compiled_tables.remat(
    [
      *(row(), row(remat="block"), row(layout="batch_major")),
      *(row(dtype="float32"), row(token_mlp="pallas"), row("v5e-1")),
    ]
  ).splitlines()
  assert [cells(x)[3] for x in lines[2:]] == ["none", "block"]


@pytest.mark.parametrize("name", compiled_tables.TABLES)
def test_tables_have_as_many_cells_as_heads(name):
  rows = [
    row(where, fits, **changes)
    for where in ("h100-1", "v5e-1")
    for fits in (True, False)
    for changes in ({}, {"remat": "block"}, {"token_mlp": "pallas"})
  ]
  lines = compiled_tables.TABLES[name](rows).splitlines()
  assert len(lines) > 3
  assert {x.count("|") for x in lines} == {lines[0].count("|")}


def test_changes_are_typed_as_they_are_meant():
  pairs = [
    "sharding.zero1=False",
    "model.remat=block",
    "optimizer.accumulate=2",
  ]
  assert settings.parse(" ".join(pairs)) == {
    "sharding.zero1": False,
    "model.remat": "block",
    "optimizer.accumulate": 2,
  }
  with pytest.raises(UserError, match="'sharding.zero1' is no KEY=VALUE"):
    settings.parse("sharding.zero1")


@pytest.mark.parametrize(
  ("key", "value", "said"),
  [
    ("model.layuot", "x", "did you mean 'model.layout'"),
    ("sharding.zero1", "perhaps", "sharding.zero1=perhaps is not of type bool"),
  ],
)
def test_wrong_changes_are_sentences(key, value, said):
  with pytest.raises(UserError, match=said):
    step_lib.changed("S/32", 8, "bfloat16", {key: value})


def test_columns_side_by_side(monkeypatch, capsys):
  local(monkeypatch)
  args = argparse.Namespace(
    **{"variant": "S/112", "batch": 2, "dtype": "float32", "profile": False},
    **{"hardware": "h100-1", "set": ["sharding.zero1=False"], "hlo": None},
    compare=[["model.remat=block"]],
  )
  kernels.body(args)
  out = capsys.readouterr().out
  assert "predicted, not measured" in out
  assert "[1] sharding.zero1=False\n[2] model.remat=block\n" in out
  rows = {x[:26].strip(): x[26:].split() for x in out.splitlines()}
  seconds = roofline.total(kernels_lib.read(text()), H100).seconds
  rate = f"{2 / seconds:,.0f}"
  assert rows["images/s"] == [rate, rate]
  assert rows["peak, GB"] == ["3.00", "3.00"]
  # One column has the kernels, too.
  args.compare = []
  kernels.body(args)
  out = capsys.readouterr().out
  assert "[1]" not in out and "f32[30,30] f32[30,30] -> f32[30,30]" in out


def test_rows_of_one_column_alone_keep_their_place():
  said = compiling.Compiled("none", True)
  found = [
    kernels_lib.Kernel(
      *("k", "custom-call", "matmul", "", "bf16", "", 1, 10, 0, 0, epilogue)
    )
    for epilogue in ("BIAS", "GELU")
  ]
  steps = [
    kernel_report.Step(str(i), H100, 8, 10, said, [k])
    for i, k in enumerate(found)
  ]
  lines = [x.split() for x in kernel_report.table(steps).splitlines()]
  start = lines.index(["matmuls", "1", "1"])
  assert lines[start + 1 : start + 3] == [
    ["GELU", "-", "1"],
    ["BIAS", "1", "-"],
  ]


@pytest.mark.slow
def test_a_step_of_one_device_is_read(monkeypatch):
  """All FLOP of the model, and each block's, are found in the code."""
  monkeypatch.setattr(compiling, "devices", lambda unused: jax.devices()[:1])
  monkeypatch.setattr(compiling, "_compiler", lambda unused: "CPU")
  monkeypatch.setattr(compiling, "_GPU_OPTIONS", {})
  changes = {"model.layout": "token_major", "model.dtype": "float32"}
  config = step_lib.changed("S/112", 2, "float32", changes)
  step, _ = kernels.compile_step("x", config, H100)
  # XLA leaves products of a row or two to elementwise kernels.
  assert step.total.flop == pytest.approx(step.flop, rel=0.1)
  parts = {(k.part, k.when) for k in step.kernels if k.flop}
  for part in ("token mixing", "channel mixing"):
    assert {(part, "forward"), (part, "backward")} <= parts


def test_the_longest_kernels_first():
  def kernel(name, op_name, flop):
    return kernels_lib.Kernel(
      *(name, "custom-call", "matmul", "a -> b", "bf16", op_name, 1),
      *(flop, 0, 0, "BIAS"),
    )

  path = "jit(train_step)/transpose(jvp(MlpMixer))/MixerBlock_{}/add"
  found = [
    kernel("a", path.format(0), 10**12),
    kernel("b", path.format(1), 10**12),
    kernel("c", "jit(train_step)/add", 15 * 10**11),
  ]
  said = compiling.Compiled("none", True)
  step = kernel_report.Step("x", H100, 8, 10**12, said, found)
  lines = kernel_report.top(step).splitlines()
  assert "matmul BIAS: backward block/add" in lines[1]
  assert float(lines[1].split()[0]) == pytest.approx(
    2e3 * roofline.seconds(found[0], H100), abs=0.01
  )
  # What was measured has the last word.
  lines = kernel_report.top(
    step, {"a": 1e-3, "b": 2e-3, "c": 9e-3}
  ).splitlines()
  assert "update add" in lines[1] and lines[1].split()[1] == "9.00"
  assert lines[3].split()[1] == "3.00"


# Of JAX's own reader of traces, at its first use. As an error it would end the
# process, as it is raised inside of C++.
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__")
def test_times_of_a_trace(tmp_path):
  """The kernels of the module alone, and all the time that they took."""

  def train_step(x):
    return jnp.tanh(x @ x)

  def other(x):
    return jnp.sin(x)

  x = jnp.ones((300, 300))
  step, aside = (jax.jit(f).lower(x).compile() for f in (train_step, other))
  jax.block_until_ready((step(x), aside(x)))
  with jax.profiler.trace(str(tmp_path)):
    for _ in range(3):
      jax.block_until_ready((step(x), aside(x)))
  found = kernel_profile.times(tmp_path, "jit_train_step")
  names = {k.name for k in kernels_lib.read(step.as_text() or "")}
  assert set(found) == names
  assert all(0 < seconds < 10 for seconds in found.values())


def test_a_device_by_its_data_sheet():
  assert kernel_profile.chip("NVIDIA H100 80GB HBM3").name == "h100-1"
  with pytest.raises(UserError, match="no data sheet of this machine's"):
    kernel_profile.chip("cpu")
