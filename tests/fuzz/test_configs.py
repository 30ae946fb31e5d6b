"""Overrides of config keys, as a command line gives them.

Flags are parsed, the config is validated and its durations become steps: a
sentence or a config that goes to JSON and back, in little memory and time.
"""

import faulthandler
import json
import resource

import numpy as np
import pytest

from mixer import cli, durations, errors, validation
from mixer import config as config_lib
from mixer.errors import UserError
from tests import conftest
from tests.fuzz import mutations

_INPUTS = 5_000
_MEMORY, _SECONDS = 2**26, 10
_PARSER = cli.parser("train.py")
_DURATIONS = (*durations.INTERVALS, "total", "schedule.warmup")

_NUMBERS = (
  *("0", "1", "-1", "2", "3", "7", "8", "16", "64", "4096", "1000000007"),
  *(str(2**k + d) for k in (16, 31, 32, 53, 63, 64) for d in (-1, 0, 1)),
  *("1" + "0" * k for k in (3, 6, 9, 12, 18, 40, 400, 5000)),
  *("nan", "-nan", "inf", "-inf", "1e9", "1e38", "1e39", "1e308", "1e999"),
  *("1e-300", "-0.0", "0.1", "0.999999999", "1_000", "0x10", " 5 ", "+5"),
  *("5.", ".5", "5j", "\u0663", "\uff15", "1,5", "True", "None"),
)
_UNITS = ("", " steps", " step", " epochs", " examples", "%", " %", " weeks")
_TEXTS = (
  *("", " ", "\0", "\n", "\x1b[31m", "'", '"', "=", "--", "\u202e", "\udcff"),
  *("B/16", "S/1", "H/9999", "B/0", "B/99999999999", "X/16", "b/16", "sgd"),
  *("sigmoid", "keep", "head", "skip", "eval/accuracy", "digits", "auto"),
  *("../../etc", "gs://", "$(reboot)", "%s%n{0}", "train[:0]"),
  *("a" * 100_000, "1" * 100_000 + " a b", "(" * 5000, "\u00e9" * 999),
)
_TUPLES = (
  *("()", "(1,)", "(1, 5)", "[3, 2]", "(98, 49)", "(2, 5)", "(1e999,)"),
  *("(nan,)", "('a',)", "((1,),)", "({},)", "(None,)", "(-1,)", "(True,)"),
  *("(('head/.*', 10.0),)", "(('(', 1),)", "(('a{99999999999}', 1),)"),
  *("(('" + "(" * 4000 + "', 1),)", "(('head/.*', 1e999),)", "(1,) * 10**9"),
  *("[" * 3000, "(" + "1," * 5000 + ")", "(10**99,)", f"({'9' * 5000},)"),
)


def _override(rng):
  """Mostly of the kind that the key wants, often not of its range."""

  def pick(values):
    return values[rng.integers(len(values))]

  key = pick([*config_lib.KEYS])
  default = config_lib.KEYS[key].default
  value = pick(_TEXTS if isinstance(default, str) else _TUPLES)
  if isinstance(default, bool):
    value = pick(("true", "false", "0", "1", "maybe", ""))
  elif key in _DURATIONS:
    value = pick(_NUMBERS) + pick(_UNITS)
  elif isinstance(default, int | float):
    value = pick(_NUMBERS)
  kind = rng.random()
  if kind < 0.1:
    value = pick((*_NUMBERS, *_TEXTS, *_TUPLES))
  elif kind < 0.2:
    value = _mutated(str(default), rng)
  elif kind < 0.25:
    key = _mutated(key, rng)
  return f"{'--config.' if rng.random() < 0.97 else '--'}{key}={value}"


def _mutated(text, rng):
  raw = mutations.mutated(text.encode(), rng)[:200]
  return raw.decode("utf-8", "surrogateescape")


def _memory():
  """The most that this process has held so far, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_sentence_or_a_config(capsys):
  rng = np.random.default_rng(15)
  accepted = 0
  for i in range(_INPUTS):
    recipe = ("smoke.py", "finetune.py:", "scratch.py:")[i % 3]
    if ":" in recipe and rng.random() < 0.2:
      recipe += _mutated("model=B/16,dataset=birds,size=224x320", rng)
    words = [_override(rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    devices = int(rng.choice((1, 1, 3, 8, 256, 10_000)))
    examples = int(rng.choice((1, 54, 50_000, 10**9)))
    what = f"input {i}: {recipe} {words!r:.500}, {devices} devices"
    words += ["--workdir=w", f"--config={conftest.ROOT}/configs/{recipe}"]
    before = _memory()
    faulthandler.dump_traceback_later(_SECONDS, exit=True, file=2)
    try:
      config = _PARSER.read(words).config
      validation.validate(config, devices)
      plan = durations.plan(config, examples)
    except SystemExit as e:
      assert e.code == 1, what
      message = capsys.readouterr().err
      assert message.startswith("error: "), what
      assert errors.printable(message, keep="\n") == message, what
    except UserError as e:
      message = str(e)
    except BaseException as e:
      raise AssertionError(what) from e
    else:
      accepted += 1
      text = json.dumps(config_lib.to_json(config), allow_nan=False)
      read = config_lib.from_json(json.loads(text), {})
      assert config_lib.differences(config, read) == {}, what
      assert 0 <= plan.warmup < plan.total < 2**31, what
      json.dumps(plan.to_json(), allow_nan=False)
      durations.at_once(plan, 0, config.steps_per_dispatch)
      continue
    finally:
      faulthandler.cancel_dump_traceback_later()
      # Flags that were defined stay: a few KB of each input.
      assert _memory() - before < _MEMORY, what
    assert 10 < len(message) < 2000, f"{what}: {message}"
    assert "Traceback" not in message, what
  assert accepted > _INPUTS / 20
