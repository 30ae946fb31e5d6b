"""The config: its table of keys, refusals that can be acted on, durations."""

import ast
import itertools
import json
import math
import re
import shlex
from fractions import Fraction
from typing import Any

import ml_collections
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer import cli, durations, validation
from mixer import config as config_lib
from mixer.errors import UserError
from tests.conftest import ROOT

KEYS = config_lib.KEYS
PARSER = cli.parser("train.py")


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
  (word,) = shlex.split(argument)  # A shell makes one word of it.
  recipe = f"--config={ROOT}/configs/smoke.py"
  args = PARSER.read(["--workdir=w", recipe, word])
  key = word.removeprefix("--config.").partition("=")[0]
  copy = config.copy_and_resolve_references()
  set_key(copy, key, args.config[key])
  return copy


def suggestions(message: str) -> list[str]:
  """The `--config.KEY=VALUE` in a sentence, as one would copy them."""
  return re.findall(
    r"--config\.[\w.]+=(?:\"[^\"]*\"|'[^']*'|\S*?)(?=[.,;]?(?:\s|$))", message
  )


def refusal(config, num_devices: int = 1) -> str:
  with pytest.raises(UserError) as caught:
    validation.validate(config, num_devices)
  return str(caught.value)


def test_the_default_is_valid_and_not_shared():
  one = config_lib.default()
  validation.validate(one, 1)
  validation.validate(one, 8)
  one.data.name = "digits"
  assert config_lib.default().data.name == "imagenet21k"
  for key in KEYS.values():
    assert bool(key.below) == (type(key.default) in (int, float))
    assert key.meaning


_WRONG = {
  int: (None, "12", 1.5, True, [1], 10**400),
  float: (None, "0.1", True, [0.1], math.nan, math.inf),
  str: (None, 3, True, ["a"]),
  bool: (None, 1, 0, "True"),
  tuple: (None, 5, "1,5", {1}),
  dict: (None, 5, "a", [1]),
}


@pytest.mark.parametrize("name", KEYS)
def test_what_a_key_takes_and_refuses_with_what_works(name):
  key = KEYS[name]
  kind = type(key.default)
  wrong = [*_WRONG[kind], *["nosuch"] * bool(key.choices)]
  if key.below:
    wrong += [kind(key.least - 1), kind(key.below)]
  config, offered = changed(init_from="w"), []
  for value in wrong:
    set_key(config, name, value)
    message = refusal(config)
    assert message.startswith(f"{name}={config_lib.shown(value)} ")
    assert len(message) < 300
    offered = suggestions(message)
    assert len(offered) == (len(key.choices) if value == "nosuch" else 1)
  right = [*key.choices, key.default]
  if key.below and name not in ("batch_size", "image_size", "image_width"):
    right.append(kind(key.least))
  for argument in offered:  # On the command line, and in the file.
    validation.validate(override(changed(init_from="w"), argument), 1)
    (text,) = shlex.split(argument.partition("=")[2]) or [""]
    right.append(text if kind is str else ast.literal_eval(text))
  for value in right:
    set_key(config, name, value)
    validation.validate(config, 1)
  *groups, last = name.split(".")
  del (config[groups[0]] if groups else config)[last]
  assert refusal(config).startswith(f"the config has no {name}; start it from")


def test_keys_that_are_not_there():
  config = config_lib.default()
  config.data.nam = "x"
  assert refusal(config).startswith("the config has no key 'data.nam'; did you")
  config = changed(model=3)
  assert refusal(config).startswith("the config has no key 'model'; did you me")


# What is changed, devices, and the keys that offer a way out.
_CONTRADICTIONS: list[tuple[dict[str, Any], int, str]] = [
  ({"batch_size": 4}, 8, "batch_size"),
  ({"batch_size": 100}, 8, "batch_size"),
  ({"sharding__fsdp": 3}, 8, "sharding.fsdp"),
  (
    {"sharding__reduce_dtype": "bfloat16", "optimizer__accumulate": 2},
    1,
    "sharding.reduce_dtype optimizer.accumulate",
  ),
  ({"optimizer__accumulate": 1024}, 8, "optimizer.accumulate"),
  ({"image_size": 8}, 1, "image_size"),
  ({"image_width": 225}, 1, "image_width"),
  ({"model__variant": "H/14", "image_size": 230}, 1, "image_size"),
  ({"model__variant": "B16"}, 1, "model.variant"),
  ({"image_size": 384}, 1, "data.eval_short_side"),
  (
    {"loss__name": "sigmoid", "loss__label_smoothing": 0.1},
    1,
    "loss.label_smoothing loss.name",
  ),
  (
    {"optimizer__name": "sgd", "optimizer__weight_decay": 0.1},
    1,
    "optimizer.weight_decay optimizer.name",
  ),
  ({"init_head": "keep"}, 1, "init_from init_head"),
  ({"model__token_groups": 5}, 1, "model.token_groups"),
  ({"optimizer__lr_factors": ("a", 10.0)}, 1, "optimizer.lr_factors"),
  ({"optimizer__lr_factors": (("a", -1.0),)}, 1, "optimizer.lr_factors"),
  ({"optimizer__lr_factors": (("(", 1.0),)}, 1, "optimizer.lr_factors"),
  ({"sweep__learning_rates": (0.1, math.nan)}, 1, "sweep.learning_rates"),
  ({"sweep__learning_rates": ("a",)}, 1, "sweep.learning_rates"),
  ({"fewshot__name": "digits", "fewshot__shots": ()}, 1, "fewshot.shots"),
  ({"fewshot__shots": (5, 0)}, 1, "fewshot.shots"),
  *(
    (
      {"model__pyramid_blocks": blocks, "model__pyramid_tokens": tokens},
      1,
      "model.pyramid_blocks model.pyramid_tokens",
    )
    for blocks, tokens in (
      *(((2,), (98, 49)), ((5, 2), (98, 49)), ((2, 12), (98, 49))),
      *(((2, 5), (98, 98)), ((2,), (196,)), ((2.0,), (98,))),
    )
  ),
]


@pytest.mark.parametrize(("changes", "num_devices", "keys"), _CONTRADICTIONS)
def test_contradictions_are_refused_with_ways_out(changes, num_devices, keys):
  config = changed(**changes)
  offered = suggestions(refusal(config, num_devices))
  named = {a.split("=")[0].removeprefix("--config.") for a in offered}
  assert named == {*keys.split()}
  together = "pyramid" in keys
  for argument in offered:
    result = override(config, argument)
    config = result if together else config
    if not together or argument == offered[-1]:
      validation.validate(result, num_devices)


@given(st.integers(1, 512), st.integers(1, 8), st.integers(1, 600))
def test_the_nearest_that_divide_are_offered(each, num_devices, parts):
  config = changed(batch_size=each * num_devices, optimizer__accumulate=parts)
  offered = []
  try:
    validation.validate(config, num_devices)
  except UserError as e:
    offered = [int(a.split("=")[1]) for a in suggestions(str(e))]
  divisors = [n for n in range(1, each + 1) if each % n == 0]
  below = [n for n in divisors if n < parts][-1:]
  above = [n for n in divisors if n > parts][:1]
  assert offered == (below + above if each % parts else [])


def _dump(config) -> str:
  return json.dumps(config_lib.to_json(config), allow_nan=False)


def test_json_and_back():
  config = changed(optimizer__learning_rate=1, model__dropout=0)
  config.optimizer.lr_factors = (("head/.*", 10.0), ("stem/.*", 0))
  validation.validate(config, 1)  # Whole numbers will do.
  read = config_lib.from_json(json.loads(_dump(config)) | {"gone": 1}, {})
  validation.validate(read, 8)
  assert config_lib.differences(config, read) == {}
  assert read.optimizer.lr_factors == config.optimizer.lr_factors
  # ml_collections' own idea of it.
  assert json.loads(_dump(config)) == json.loads(config.to_json_best_effort())
  raw = ml_collections.ConfigDict(json.loads(_dump(config)))
  validation.validate(raw, 8)
  younger = {"model": {"variant": "S/8"}}
  read = config_lib.from_json(younger, {"tokens_mlp_dim": 7})
  assert (read.model.variant, read.model.tokens_mlp_dim) == ("S/8", 7)
  assert read.batch_size == 4096


def test_differences():
  old, new = changed(model__dropout=0.1), changed(seed=3, model__dropout=0.2)
  del new.report
  assert [*config_lib.differences(old, new).values()] == [
    "model.dropout: 0.1 -> 0.2",
    "report: True -> '(absent)'",
    "seed: 0 -> 3",
  ]


# Durations.


@pytest.mark.parametrize(
  ("text", "steps"),
  [
    ("500", 500),
    ("  500   steps ", 500),
    ("1_000 step", 1000),
    ("1e6 examples", 10_000),
    ("1 example", 1),  # Never less than one.
    ("250 examples", Fraction(5, 2)),
    ("", 0),  # Never.
    ("0.0%", 0),
    ("3 epochs", 300),
    ("0.5 epoch", 50),
    ("5 %", 50),
  ],
)
def test_durations(text, steps):
  config = changed(batch_size=100, total="1000 steps", schedule__warmup="0%")
  for key in durations.INTERVALS:
    set_key(config, key, text)
  validation.validate(config, 1)
  plan = durations.plan(config, 10_000)
  assert {getattr(plan, key) for key in durations.INTERVALS} == {steps}


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


@pytest.mark.parametrize(
  "text",
  [
    *("", "steps", "-5 steps", "5 weeks", "5 stepss", "5 steps 3", "1__0"),
    *("_1 steps", "1e999 steps", "nan steps", "inf", "1,000 steps", "%"),
  ],
)
def test_what_is_no_duration_is_refused(text):
  for key in ("total", "schedule.warmup", *durations.INTERVALS):
    if not text and key in durations.INTERVALS:
      continue  # Never.
    config = config_lib.default()
    set_key(config, key, text)
    message = refusal(config)
    assert message.startswith(f"{key}={text!r} is not a duration")
    (argument,) = suggestions(message)
    validation.validate(override(config, argument), 1)
  # The whole run is no share of itself.
  assert refusal(changed(total="50%")).startswith("total='50%' is not a dur")


@pytest.mark.parametrize(
  ("total", "warmup", "key"),
  [
    ("1e10 steps", "5%", "total"),
    ("0.4 steps", "5%", "total"),
    ("60 steps", "60 steps", "schedule.warmup"),
    ("60 steps", "2 epochs", "schedule.warmup"),
  ],
)
def test_plans_that_cannot_be(total, warmup, key):
  config = changed(total=total, schedule__warmup=warmup, batch_size=10)
  validation.validate(config, 1)  # Only the plan can know.
  with pytest.raises(UserError, match=f"^{key}=") as caught:
    durations.plan(config, 1000)
  (argument,) = suggestions(str(caught.value))
  plan = durations.plan(override(config, argument), 1000)
  assert plan.warmup < plan.total


INTERVALS = st.just(0) | st.integers(1, 40) | st.fractions(1, 40)
PLANS = st.builds(
  durations.Plan,
  total=st.integers(1, 60),
  warmup=st.just(0),
  log_every=INTERVALS,
  eval_every=INTERVALS,
  checkpoint_every=INTERVALS,
)


def ends(plan, start, most):
  """The steps at which something can happen between dispatches."""
  step, found = start, [start]
  while step < plan.total:
    step += durations.at_once(plan, step, most)
    found.append(step)
  return found


@given(PLANS, st.integers(1, 12), st.data())
def test_nothing_that_is_due_is_passed(plan, most, data):
  found = ends(plan, 0, most)
  assert found[-1] == plan.total
  for every in (plan.log_every, plan.eval_every, plan.checkpoint_every):
    due = (s for s in range(plan.total + 1) if durations.is_due(every, s))
    assert {*due} <= {*found}
  assert all(b - a in (1, most) for a, b in itertools.pairwise(found))
  # A run that was interrupted goes on alike.
  stop = data.draw(st.sampled_from(found))
  assert ends(plan, stop, most) == found[found.index(stop) :]


@given(INTERVALS, st.integers(1, 500))
def test_what_is_due(every, last):
  found = [s for s in range(last + 1) if durations.is_due(every, s)]
  nearest = (math.floor(k * every + Fraction(1, 2)) for k in range(1, 501))
  assert found == [s for s in nearest if every and s <= last]


def test_half_of_an_odd_run():
  config = changed(batch_size=1, total="5 steps", eval_every="50%")
  config.schedule.warmup = config.log_every = config.checkpoint_every = "0"
  config.keep_every = "1.25 steps"
  plan = durations.plan(config, 7)
  assert [s for s in range(6) if durations.is_due(plan.eval_every, s)] == [3, 5]
  assert json.dumps(plan.to_json()) == (
    '{"total": 5, "warmup": 0, "log_every": 0, "eval_every": 2.5, '
    '"checkpoint_every": 0, "keep_every": 1.25}'
  )
