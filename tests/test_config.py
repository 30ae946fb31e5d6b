"""The config: shipped recipes, durations, and refusals that can be acted on."""

import ast
import importlib
import json
import pathlib
import re
import shlex
from fractions import Fraction
from typing import Any

import ml_collections
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import config_flags

from mixer import config as config_lib
from mixer import durations, validation
from mixer.errors import UserError

_ROOT = pathlib.Path(__file__).parent.parent
_RECIPES = sorted(
  p.stem for p in (_ROOT / "configs").glob("*.py") if p.stem != "__init__"
)
_I21K, _I1K = 13_153_500, 1_281_167
_DURATIONS = (
  "total",
  "schedule.warmup",
  "log_every",
  "eval_every",
  "checkpoint_every",
)


def recipe(name: str):
  return importlib.import_module(f"configs.{name}").get_config()


def set_key(config, key: str, value: Any) -> None:
  """Sets a key whatever its type, as a hand-made config might."""
  *groups, last = key.split(".")
  for group in groups:
    config = config[group]
  if last in config:
    del config[last]  # With it goes its type.
  config[last] = value


def changed(**changes):
  """The default config with `data__name=...` for `data.name`."""
  config = config_lib.default()
  for key, value in changes.items():
    set_key(config, key.replace("__", "."), value)
  return config


def override(config, argument: str):
  """The config after `--config.KEY=VALUE`, as the command line takes it."""
  values = flags.FlagValues()
  config = config.copy_and_resolve_references()
  (word,) = shlex.split(argument)  # A shell makes one word of it.
  argv = ["train.py", word]
  config_flags.DEFINE_config_dict(
    "config", config, flag_values=values, sys_argv=argv
  )
  values(argv)
  return values["config"].value


def suggestions(message: str) -> list[str]:
  """The `--config.KEY=VALUE` in a sentence, as one would copy them."""
  return re.findall(
    r"--config\.[\w.]+=(?:\"[^\"]*\"|'[^']*'|\S+?)(?=[.,;]?(?:\s|$))", message
  )


def refusal(config, num_devices: int = 1) -> str:
  with pytest.raises(UserError) as caught:
    validation.validate(config, num_devices)
  return str(caught.value)


def test_the_default_is_valid():
  validation.validate(config_lib.default(), 1)
  validation.validate(config_lib.default(), 8)


def test_defaults_are_not_shared():
  one = config_lib.default()
  one.data.name = "digits"
  assert config_lib.default().data.name == "imagenet21k"


def test_recipes_are_found():
  assert {"mixer_b16_i21k", "mixer_b16_i1k", "finetune", "smoke"} <= {*_RECIPES}


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("name", _RECIPES)
def test_recipes_are_valid(name, num_devices):
  config = recipe(name)
  validation.validate(config, num_devices)
  plan = durations.plan(config, 10**6)
  assert 0 <= plan.warmup < plan.total
  assert config.batch_size % num_devices == 0


@pytest.mark.parametrize("name", _RECIPES)
def test_recipes_say_how_to_run_them(name):
  doc = importlib.import_module(f"configs.{name}").__doc__
  command = rf"python train\.py --config=configs/{name}\.py(:\S+)? --workdir="
  assert re.search(command, doc or "")


# Appendix B and table 4 of the paper; batch 4096 as in section 3.
_PRETRAINING = {
  "batch_size": 4096,
  "total": "300 epochs",
  "image_size": 224,
  "model.variant": "B/16",
  "model.stochastic_depth": 0.1,
  "model.dropout": 0.0,
  "data.crop": "inception",
  "data.flip": True,
  "data.randaugment_layers": 2,
  "loss.name": "sigmoid",
  "loss.label_smoothing": 0.0,
  "optimizer.name": "adamw",
  "optimizer.learning_rate": 1e-3,
  "optimizer.weight_decay": 0.1,
  "optimizer.b1": 0.9,
  "optimizer.b2": 0.999,
  "optimizer.clip_norm": 1.0,
  "schedule.warmup": "10000 steps",
  "schedule.decay": "linear",
}
_PAPER = {
  "mixer_b16_i21k": _PRETRAINING
  | {
    "data.name": "imagenet21k",
    "data.randaugment_magnitude": 10,
    "loss.mixup": 0.2,
  },
  "mixer_b16_i1k": _PRETRAINING
  | {
    "data.name": "imagenet2012",
    "data.randaugment_magnitude": 15,
    "loss.mixup": 0.5,
    "model.head_bias": -6.9,
  },
  "finetune": {
    "batch_size": 512,
    "image_size": 224,
    "model.variant": "B/16",
    "model.stochastic_depth": 0.0,
    "model.dropout": 0.0,
    "data.randaugment_layers": 0,
    "loss.mixup": 0.0,
    "optimizer.name": "sgd",
    "optimizer.momentum": 0.9,
    "optimizer.weight_decay": 0.0,
    "optimizer.clip_norm": 1.0,
    "schedule.warmup": "500 steps",
    "schedule.decay": "cosine",
  },
}


@pytest.mark.parametrize("name", _PAPER)
def test_recipes_have_the_papers_values(name):
  got = config_lib.flatten(recipe(name))
  assert {k: got[k] for k in _PAPER[name]} == _PAPER[name]


def test_length_of_the_papers_runs():
  # Steps by hand: 300 epochs x examples / 4096.
  assert durations.plan(recipe("mixer_b16_i21k"), _I21K).total == 963_391
  plan = durations.plan(recipe("mixer_b16_i1k"), _I1K)
  assert (plan.total, plan.warmup) == (93_835, 10_000)
  assert plan.eval_every == Fraction(5 * _I1K, 4096)


def plan_of(text: str, key: str = "log_every", examples: int = 10_000):
  config = changed(batch_size=100, total="1000 steps", schedule__warmup="0%")
  set_key(config, key, text)
  validation.validate(config, 1)
  return durations.plan(config, examples)


@pytest.mark.parametrize(
  ("text", "steps"),
  [
    ("500 steps", 500),
    ("1 step", 1),
    ("500", 500),
    ("500steps", 500),
    ("  500   steps ", 500),
    ("1_000 steps", 1000),
    ("10_00_0 examples", 100),
    ("1e6 examples", 10_000),
    ("2.5e3 examples", 25),
    ("1 example", 1),  # Never less than one.
    ("250 examples", Fraction(5, 2)),
    ("", 0),  # Never.
    ("0", 0),
    ("0 epochs", 0),
    ("0.0%", 0),
    ("3 epochs", 300),
    ("1 epoch", 100),
    ("0.5 epochs", 50),
    ("5%", 50),
    ("5 %", 50),
    ("100%", 1000),
    ("0.1%", 1),
  ],
)
def test_durations(text, steps):
  assert plan_of(text).log_every == steps


@pytest.mark.parametrize("key", durations.INTERVALS)
def test_intervals_are_never_or_at_least_one_step(key):
  assert getattr(plan_of("0 steps", key), key) == 0
  assert getattr(plan_of("", key), key) == 0
  assert getattr(plan_of("0.001 steps", key), key) == 1


def test_a_run_can_have_no_warmup():
  assert plan_of("0 steps", "schedule.warmup").warmup == 0


@given(
  number=st.integers(0, 10**6),
  batch=st.integers(1, 10**4),
  examples=st.integers(1, 10**8),
  unit=st.sampled_from(["steps", "epochs", "examples", "%"]),
)
def test_conversion(number, batch, examples, unit):
  config = changed(batch_size=batch, total="12345 steps")
  config.log_every = f"{number} {unit}"
  exact = {
    "steps": Fraction(number),
    "epochs": Fraction(number * examples, batch),
    "examples": Fraction(number, batch),
    "%": Fraction(12345 * number, 100),
  }[unit]
  got = durations.plan(config, examples).log_every
  assert got == (max(exact, 1) if number else 0)


@given(st.integers(0, 10**12))
def test_all_spellings_of_a_number_agree(number):
  config = changed(schedule__warmup="0 steps", total="1 steps")
  for text in (f"{number}", f"{number:_} steps", f"{number}.0 step"):
    config.log_every = text
    assert durations.plan(config, 1).log_every == number


_NO_DURATIONS = [
  "",
  "steps",
  "many steps",
  "-5 steps",
  "5 weeks",
  "5 stepss",
  "5 steps 3",
  "1__0 steps",
  "1_ steps",
  "_1 steps",
  "1_.5 steps",
  "1e999 steps",
  "nan steps",
  "inf",
  "1,000 steps",
  "%",
]


@pytest.mark.parametrize("text", _NO_DURATIONS, ids=repr)
@pytest.mark.parametrize("key", _DURATIONS)
def test_what_is_no_duration_is_refused(key, text):
  if not text and key in durations.INTERVALS:
    return  # Never.
  config = config_lib.default()
  set_key(config, key, text)
  message = refusal(config)
  assert message.startswith(f"{key}={text!r} is not a duration")
  (argument,) = suggestions(message)
  validation.validate(override(config, argument), 1)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text):
  config = changed(schedule__warmup="0 steps", total="7 steps")
  config.log_every = text
  try:
    validation.validate(config, 1)
  except UserError:
    return
  every = durations.plan(config, 100).log_every
  assert every == 0 or every >= 1


@pytest.mark.parametrize("total", ["1e10 steps", "1e99 epochs"])
def test_a_run_of_too_many_steps_is_refused(total):
  with pytest.raises(UserError, match="^total='1e.*comes to too many steps"):
    durations.plan(changed(total=total), 1000)


@pytest.mark.parametrize("text", ["0 steps", "0.4 steps", "0 epochs", "50%"])
def test_a_run_of_no_steps_is_refused(text):
  config = changed(total=text, schedule__warmup="5%")
  validation.validate(config, 1)  # Only the plan can know.
  with pytest.raises(UserError, match=f"^total='{text}'") as caught:
    durations.plan(config, 1000)
  (argument,) = suggestions(str(caught.value))
  assert durations.plan(override(config, argument), 1000).total == 500


@pytest.mark.parametrize("warmup", ["60 steps", "100%", "61 steps", "2 epochs"])
def test_a_warmup_as_long_as_the_run_is_refused(warmup):
  config = changed(total="60 steps", schedule__warmup=warmup, batch_size=10)
  with pytest.raises(UserError, match=r"^schedule\.warmup=") as caught:
    durations.plan(config, 1000)
  (argument,) = suggestions(str(caught.value))
  assert durations.plan(override(config, argument), 1000).warmup == 3
  config.schedule.warmup = "59 steps"
  assert durations.plan(config, 1000).warmup == 59


_NAN, _INF = float("nan"), float("inf")
# Key: values that are refused, values at the border that are not.
_RANGES: dict[str, tuple[tuple, tuple]] = {
  "seed": ((-1, 2**32), (0, 2**32 - 1)),
  "batch_size": ((0, -8, 10**12, 10**400), (8, 2**20)),
  "image_size": ((0, -16, 16_000), (16,)),
  "image_width": ((-16, 8), (0, 16, 256)),
  "model.token_mixing": (("", "grouped"), ("shared", "untied")),
  "model.token_groups": ((0, 1_000_000_007), (1, 768)),
  "data.permute": (("tokens",), ("", "patches", "pixels")),
  "data.permute_seed": ((-1, 2**32), (0, 2**32 - 1)),
  "init_resize": (("tile",), ("", "tiles", "interleaved", "resample")),
  "model.num_blocks": ((-1, 10**9), (0, 100)),
  "model.hidden_dim": ((-1, 10**9), (0, 1)),
  "model.tokens_mlp_dim": ((-1,), (0, 1)),
  "model.channels_mlp_dim": ((-1,), (0, 1)),
  "model.dropout": ((-0.1, 1.0, _NAN), (0.0, 0.99)),
  "model.stochastic_depth": ((-0.1, 1.0, _NAN), (0.0, 0.99)),
  "model.head_bias": ((_NAN, _INF, -1e4), (-10.0, 0.0, 3)),
  "model.dtype": (("float16", "", "BFLOAT16"), ("float32", "bfloat16")),
  "model.variant": (("B16", "X/16", "B/0", "", "B/16 "), ("S/8", "L/14")),
  "data.examples_per_class": ((-1,), (0, 5)),
  "data.subset_seed": ((-1, 2**32), (0, 2**32 - 1)),
  "data.crop": (("center", ""), ("resize", "inception")),
  "data.crop_area_min": ((-0.1, 1.0, _NAN), (0.0, 0.999)),
  "data.randaugment_layers": ((-1,), (0, 3)),
  "data.randaugment_magnitude": ((-1, 31), (0, 30)),
  "data.affine_degrees": ((-1.0, 181.0, _NAN), (0.0, 180.0)),
  "data.affine_scale": ((-0.1, 1.0), (0.0, 0.9)),
  "data.affine_translate": ((-0.1, 1.0), (0.0, 0.9)),
  "data.eval_short_side": ((223, -1), (224, 256, 0)),
  "data.threads": ((0, -1, 2**32), (1,)),
  "data.prefetch_batches": ((0, -1), (1, 8)),
  "loss.name": (("hinge", ""), ("softmax", "sigmoid")),
  "loss.label_smoothing": ((-0.1, 1.0), (0.0, 0.5)),
  "loss.mixup": ((-0.1, _NAN, _INF), (0.0, 0.8)),
  "optimizer.name": (("adam", "AdamW"), ("adamw", "sgd")),
  "optimizer.learning_rate": ((-1e-3, _NAN, _INF), (0.0, 3.0)),
  "optimizer.weight_decay": ((-0.1, _NAN, 1e39), (0.0, 0.3)),
  "optimizer.b1": ((-0.1, 1.0), (0.0, 0.95)),
  "optimizer.b2": ((-0.1, 1.0), (0.0, 0.95)),
  "optimizer.eps": ((-1e-8, _NAN), (0.0, 1e-6)),
  "optimizer.momentum": ((-0.1, 1.0), (0.0, 0.99)),
  "optimizer.clip_norm": ((-1.0, _NAN), (0.0, 5.0)),
  "optimizer.ema_decay": ((-0.1, 1.0), (0.0, 0.9999)),
  "optimizer.accumulate": ((0, -1), (1, 4096)),
  "optimizer.sam_rho": ((-0.1, _NAN, _INF), (0.0, 0.6)),
  "optimizer.train": (("tail", ""), ("all", "head")),
  "schedule.decay": (("step", ""), ("linear", "cosine", "constant")),
  "steps_per_dispatch": ((0, -1), (1, 16)),
  "keep_checkpoints": ((0, -1), (1, 9)),
  "keep_every": (("5 weeks", "often"), ("", "10 epochs", "1000 steps")),
  "keep_best": (("accuracy", "train/loss"), ("", "eval/accuracy", "eval/loss")),
  "sharding.fsdp": ((0, -1), (1,)),
  "sharding.min_size": ((0, -1), (1, 10**9)),
  "sharding.reduce_dtype": (("", "float16"), ("float32", "bfloat16")),
  "model.layout": (("BSC",), ("", "batch_major", "token_major")),
  "model.remat": (("", "all"), ("none", "pre_activations", "block")),
  "nonfinite": (("", "ignore"), ("stop", "skip")),
  "nonfinite_limit": ((0, -1), (1, 100)),
  "hang_seconds": ((-1,), (0, 60)),
  "fewshot.seeds": ((0, -1), (1,)),
  "fewshot.l2": ((-1.0, _NAN), (0.0, 1.0)),
}


def test_every_number_and_choice_has_its_range():
  free = {
    *(k for k, v in config_lib.flatten(config_lib.default()).items()),
  } - {*_RANGES, *_DURATIONS}
  assert free == {
    "init_from",
    "sharding.zero1",
    "data.name",
    "data.data_dir",
    "data.train_split",
    "data.eval_split",
    "data.flip",
    "report",
    "optimizer.lr_factors",
    "fewshot.name",
    "fewshot.train_split",
    "fewshot.eval_split",
    "fewshot.shots",
    # Checked together, below and in test_token_mixing.
    "init_head",
    "model.group_projection",
    "model.pyramid_blocks",
    "model.pyramid_tokens",
    "sweep.learning_rates",
    # Checked by mixer sweep, which alone uses them.
    "sweep.train_split",
    "sweep.eval_split",
  }


@pytest.mark.parametrize("key", _RANGES)
def test_out_of_range_is_refused_with_a_value_that_works(key):
  for value in _RANGES[key][0]:
    config = config_lib.default()
    set_key(config, key, value)
    message = refusal(config)
    shown = config_lib.shown(value)
    assert message.startswith(f"{key}={shown}"), message
    assert len(message) < 500
    offered = suggestions(message)
    assert offered, message
    for argument in offered:
      assert argument.startswith(f"--config.{key}=")
      validation.validate(override(config, argument), 1)


@pytest.mark.parametrize("key", _RANGES)
def test_the_borders_of_a_range_are_valid(key):
  for value in _RANGES[key][1]:
    config = config_lib.default()
    set_key(config, key, value)
    validation.validate(config, 1)


# What is changed, devices, and the keys that offer a way out.
_CONTRADICTIONS: dict[str, tuple[dict[str, Any], int, set[str]]] = {
  "fewer examples than devices": ({"batch_size": 4}, 8, {"batch_size"}),
  "shares that don't divide": (
    {"sharding__fsdp": 3},
    8,
    {"sharding.fsdp"},
  ),
  "half precision of parts": (
    {"sharding__reduce_dtype": "bfloat16", "optimizer__accumulate": 2},
    1,
    {"sharding.reduce_dtype", "optimizer.accumulate"},
  ),
  "uneven batch": ({"batch_size": 100}, 8, {"batch_size"}),
  "patch larger than image": ({"image_size": 8}, 1, {"image_size"}),
  "cut patch": ({"image_size": 225}, 1, {"image_size"}),
  "cut patch across": ({"image_width": 225}, 1, {"image_width"}),
  "cut patch of 14": (
    {"model__variant": "H/14", "image_size": 230},
    1,
    {"image_size"},
  ),
  "crop larger than image": (
    {"image_size": 384},
    1,
    {"data.eval_short_side"},
  ),
  "smoothed sigmoid": (
    {"loss__name": "sigmoid", "loss__label_smoothing": 0.1},
    1,
    {"loss.label_smoothing", "loss.name"},
  ),
  "decay of sgd": (
    {"optimizer__name": "sgd", "optimizer__weight_decay": 0.1},
    1,
    {"optimizer.weight_decay", "optimizer.name"},
  ),
  "no head to keep": ({"init_head": "keep"}, 1, {"init_from", "init_head"}),
  "groups that don't divide": (
    {"model__token_groups": 5},
    1,
    {"model.token_groups"},
  ),
  "parts of less than an example": (
    {"optimizer__accumulate": 1024},
    8,
    {"optimizer.accumulate"},
  ),
  "uneven parts": ({"optimizer__accumulate": 3}, 8, {"optimizer.accumulate"}),
  "factors that are no pairs": (
    {"optimizer__lr_factors": ("head/.*", 10.0)},
    1,
    {"optimizer.lr_factors"},
  ),
  "a factor below zero": (
    {"optimizer__lr_factors": (("head/.*", -1.0),)},
    1,
    {"optimizer.lr_factors"},
  ),
  "a rate that is none": (
    {"sweep__learning_rates": (0.1, float("nan"))},
    1,
    {"sweep.learning_rates"},
  ),
  "a factor that float32 has not": (
    {"optimizer__lr_factors": (("head/.*", 10**400),)},
    1,
    {"optimizer.lr_factors"},
  ),
  "no shots": (
    {"fewshot__name": "digits", "fewshot__shots": ()},
    1,
    {"fewshot.shots"},
  ),
  "zero shots": (
    {"fewshot__name": "digits", "fewshot__shots": (5, 0)},
    1,
    {"fewshot.shots"},
  ),
  "shots in words": (
    {"fewshot__name": "digits", "fewshot__shots": ("five",)},
    1,
    {"fewshot.shots"},
  ),
}


@pytest.mark.parametrize("case", _CONTRADICTIONS)
def test_contradictions_are_refused_with_ways_out(case):
  changes, num_devices, keys = _CONTRADICTIONS[case]
  config = changed(**changes)
  message = refusal(config, num_devices)
  offered = suggestions(message)
  assert {a.split("=")[0].removeprefix("--config.") for a in offered} == keys
  for argument in offered:
    validation.validate(override(config, argument), num_devices)


@given(st.integers(1, 10**6), st.integers(1, 4096))
def test_batches_that_cannot_be_divided(batch, num_devices):
  config = changed(batch_size=batch)
  if batch % num_devices == 0:
    validation.validate(config, num_devices)
    return
  near = [
    int(a.split("=")[1]) for a in suggestions(refusal(config, num_devices))
  ]
  assert all(n > 0 and n % num_devices == 0 for n in near)
  # Nothing nearer was kept back.
  assert min(abs(n - batch) for n in near) <= max(
    num_devices // 2, num_devices - batch
  )


@given(st.integers(1, 512), st.integers(1, 8), st.integers(1, 600))
def test_parts_divide_what_a_device_has(each, num_devices, parts):
  config = changed(batch_size=each * num_devices, optimizer__accumulate=parts)
  if each % parts == 0:
    validation.validate(config, num_devices)
    return
  near = [
    int(a.split("=")[1]) for a in suggestions(refusal(config, num_devices))
  ]
  assert all(each % n == 0 for n in near)
  # The nearest on either side.
  between = range(min(near) + 1, max(near) if len(near) > 1 else parts + 1)
  assert not any(each % n == 0 for n in between)
  assert min(near) < parts


@pytest.mark.parametrize(
  "text",
  [
    "\"(('head/.*', 10.0), ('stem/.*', 0))\"",
    "\"[['head/.*', 10.0], ['stem/.*', 0]]\"",
  ],
)
def test_factors_of_learning_rates(text):
  # From the command line, into config.json, and back.
  config = override(
    config_lib.default(), f"--config.optimizer.lr_factors={text}"
  )
  validation.validate(config, 1)
  pairs = [("head/.*", 10.0), ("stem/.*", 0)]
  assert [tuple(p) for p in config.optimizer.lr_factors] == pairs
  read = ml_collections.ConfigDict(json.loads(_dump(config)))
  validation.validate(read, 1)
  assert config_lib.differences(config, read) == {}
  read.optimizer.lr_factors = ()
  assert {*config_lib.differences(config, read)} == {"optimizer.lr_factors"}


def test_shots_of_no_task_do_not_matter():
  validation.validate(changed(fewshot__shots=()), 1)


@pytest.mark.parametrize("key", ["batchsize", "data.nam", "model.variants.x"])
def test_an_unknown_key_is_refused_with_those_there_are(key):
  config = config_lib.default()
  *groups, last = key.split(".")
  node = config
  for group in groups:
    if group not in node:
      node[group] = ml_collections.ConfigDict()
    node = node[group]
  node[last] = 1
  message = refusal(config)
  unknown = key if len(groups) < 2 else ".".join(groups)
  assert message.startswith(f"{unknown} is not a key of the config (did you m")
  expected = config_lib.default()
  if "." in unknown:
    expected = expected[groups[0]]
  assert all(k in message for k in expected)


@pytest.mark.parametrize("key", config_lib.flatten(config_lib.default()))
def test_a_missing_key_is_refused(key):
  config = config_lib.default()
  *groups, last = key.split(".")
  node = config
  for group in groups:
    node = node[group]
  value = node[last]
  del node[last]
  message = refusal(config)
  assert message == (
    f"the config has no {key}; start it from mixer.config.default(), where it "
    f"is {value!r}."
  )


@pytest.mark.parametrize("group", ["model", "data", "fewshot"])
def test_a_group_that_is_missing_or_no_group_is_refused(group):
  config = config_lib.default()
  set_key(config, group, 3)
  assert refusal(config) == f"{group}=3 should be a group of keys."
  del config[group]
  assert refusal(config).startswith(f"the config has no {group}")


_WRONG = {
  int: (None, "12", 1.5, True, (1,)),
  float: (None, "0.1", True, (0.1,)),
  str: (None, 3, True, ("a",)),
  bool: (None, 1, 0, "True"),
  tuple: (None, 5, "1,5", {1, 5}),
}


@pytest.mark.parametrize("key", config_lib.flatten(config_lib.default()))
def test_an_ill_typed_key_is_refused_with_a_value_that_works(key):
  default = config_lib.default()
  kind = tuple if key == "fewshot.shots" else type(_get(default, key))
  for value in _WRONG[kind]:
    config = config_lib.default()
    set_key(config, key, value)
    message = refusal(config)
    assert message.startswith(f"{key}={value!r} should be of type"), message
    assert kind.__name__ in message
    (argument,) = suggestions(message)
    name, text = argument.split("=", 1)
    assert name == f"--config.{key}"
    # On the command line, where the type of the default rules.
    validation.validate(override(default, argument), 1)
    # And in the file.
    (text,) = shlex.split(text)
    set_key(config, key, text if kind is str else ast.literal_eval(text))
    validation.validate(config, 1)


def _get(config, key: str) -> Any:
  for part in key.split("."):
    config = config[part]
  return config


def test_whole_numbers_and_lists_will_do():
  validation.validate(
    changed(optimizer__learning_rate=1, model__dropout=0, fewshot__shots=[1]),
    1,
  )


def test_a_config_read_back_from_json_is_valid():
  config = config_lib.default()
  read = ml_collections.ConfigDict(json.loads(_dump(config)))
  validation.validate(read, 8)


def _dump(config) -> str:
  return json.dumps(config_lib.to_json(config), allow_nan=False)


@pytest.mark.parametrize("name", _RECIPES)
def test_to_json_keeps_every_value(name):
  config = recipe(name)
  read = json.loads(_dump(config))
  assert config_lib.flatten(read) == config_lib.flatten(config)
  assert config_lib.differences(config, read) == {}
  # ml_collections' own idea of it.
  assert read == json.loads(config.to_json_best_effort())


def test_flatten():
  got = config_lib.flatten(config_lib.default())
  assert got["seed"] == 0
  assert got["model.variant"] == "B/16"
  assert got["fewshot.shots"] == [1, 5, 10, 25]
  assert not any(hasattr(v, "items") for v in got.values())
  assert config_lib.flatten({"a": {"b": {"c": 1}, "d": 2}, "e": (3,)}) == {
    "a.b.c": 1,
    "a.d": 2,
    "e": [3],
  }


def test_differences():
  old, new = changed(model__dropout=0.1), changed(seed=3, model__dropout=0.2)
  assert config_lib.differences(old, new) == {
    "model.dropout": "model.dropout: 0.1 -> 0.2",
    "seed": "seed: 0 -> 3",
  }
  assert config_lib.differences(old, old) == {}
  assert config_lib.differences({"a": {"b": 1}}, {"c": "x"}) == {
    "a.b": "a.b: 1 -> '(absent)'",
    "c": "c: '(absent)' -> 'x'",
  }


_TREES = st.recursive(
  st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3),
  lambda inner: st.dictionaries(
    st.sampled_from("abc"), inner | st.integers(0, 2), max_size=3
  ),
  max_leaves=6,
)


@given(_TREES, _TREES)
def test_differences_are_those_of_the_flat_forms(old, new):
  a, b = config_lib.flatten(old), config_lib.flatten(new)
  there = config_lib.differences(old, new)
  assert {*there} == {k for k, _ in {*a.items()} ^ {*b.items()}}
  assert {*there} == {*config_lib.differences(new, old)}


def test_free_keys_are_keys():
  assert {*config_lib.FREE_KEYS} < {*config_lib.flatten(config_lib.default())}
