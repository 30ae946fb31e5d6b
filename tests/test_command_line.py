"""The command line: one sentence, exit code 1, no traceback."""

import argparse
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from mixer import command_line, runtime, validation
from mixer import config as config_lib
from mixer.errors import UserError

# ml_collections 1.1 loads config files that way.
pytestmark = pytest.mark.filterwarnings(
  r"ignore:the load_module\(\) method is deprecated:DeprecationWarning"
)

_ROOT = pathlib.Path(__file__).parent.parent
_SMOKE = f"--config={_ROOT / 'configs' / 'smoke.py'}"


@pytest.fixture
def parse(monkeypatch, capsys):
  """`parse(*arguments)` -> (what is left and the flags, or None; stderr)."""

  def run(*arguments):
    # Flags like train.py's, afresh: absl keeps one global set.
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    argv = ["train.py", *arguments]
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    config_flags.DEFINE_config_file(
      "config", None, flag_values=values, sys_argv=argv
    )
    flags.DEFINE_enum(
      "platform", "", ["", "cpu", "gpu", "tpu"], "", flag_values=values
    )
    sys.modules.pop("config_config", None)  # The last file that was loaded.
    try:
      result = command_line.parse(argv), values
    except SystemExit as e:
      assert e.code == 1
      result = None
    captured = capsys.readouterr()
    assert not captured.out
    return result, captured.err

  return run


@pytest.fixture
def refused(parse):
  """`refused(*arguments)` -> the sentence."""

  def run(*arguments) -> str:
    result, err = parse(*arguments)
    assert result is None
    message = one_sentence(err)
    assert message[-1] in ".?"
    return message

  return run


def one_sentence(err: str) -> str:
  """Takes what is on stderr apart: a single line, marked, and ended."""
  assert err.startswith("error: ") and err.endswith("\n")
  assert err.count("\n") == 1, err
  assert "Traceback" not in err
  return err.removeprefix("error: ").rstrip()


@pytest.fixture
def write(tmp_path):
  """Writes a config file; returns its flag."""

  def run(body: str) -> str:
    path = tmp_path / "recipe.py"
    path.write_text(body)
    return f"--config={path}"

  return run


_RECIPE = """from mixer import config as config_lib

def get_config():
  c = config_lib.default()
  {}
  return c
"""


def test_what_is_right_passes(parse):
  result, err = parse(
    _SMOKE,
    "--workdir=/somewhere",
    "--config.batch_size=8",
    "--config.model.variant=B/4",
    "--config.optimizer.learning_rate=2",
    "--config.data.flip=true",
    "--config.total=3 epochs",
    "--config.fewshot.shots=(2, 3)",
    "rest",
  )
  assert not err
  assert result is not None
  rest, values = result
  assert rest == ["train.py", "rest"]
  assert values["workdir"].value == "/somewhere"
  config = values["config"].value
  validation.validate(config, 8)
  flat = config_lib.flatten(config)
  assert (flat["batch_size"], flat["model.variant"]) == (8, "B/4")
  assert (flat["optimizer.learning_rate"], flat["data.flip"]) == (2.0, True)
  assert (flat["total"], flat["fewshot.shots"]) == ("3 epochs", [2, 3])
  assert flat["data.name"] == "digits"  # The file's own.


def test_without_a_config_it_is_for_main_to_say(parse):
  result, err = parse("--workdir=/somewhere")
  assert result is not None and not err


@pytest.mark.parametrize(
  ("key", "meant"),
  [
    ("bach_size", "batch_size"),
    ("model.variantt", "model.variant"),
    ("modle.variant", "model.variant"),
    ("learning_rate", "optimizer.learning_rate"),
    ("seed.x", "seed"),
    ("data.nme.x", "data.name"),
    ("batch-size", "batch_size"),
    ("optimizer.lr", "optimizer.learning_rate"),
    ("lr", "optimizer.learning_rate"),
    ("bs", "batch_size"),
    ("wd", "optimizer.weight_decay"),
    ("optim.warmup_steps", "schedule.warmup"),
    ("model.size", "image_size"),
    ("num_epochs", "total"),
    ("data.num_threads", "data.threads"),
    ("mixup_alpha", "loss.mixup"),
    ("grad_clip_norm", "optimizer.clip_norm"),
    ("Dropout_rate", "model.dropout"),
    ("depth", "model.stochastic_depth"),
  ],
)
def test_an_unknown_key_names_the_nearest(refused, key, meant):
  assert refused(_SMOKE, f"--config.{key}=3") == (
    f"the config has no key {key!r}; did you mean {meant!r}? "
    "mixer/config.py lists them all."
  )


@pytest.mark.parametrize("key", ["zzzz", "model.qqqqqqqq"])
def test_an_unknown_key_unlike_any(refused, key):
  assert refused(_SMOKE, f"--config.{key}=3") == (
    f"the config has no key {key!r}; mixer/config.py lists them all."
  )


def test_a_group_is_no_key(refused, parse):
  message = refused(_SMOKE, "--config.model=B/16")
  assert message.startswith("model is a group of keys; set one of them, as in ")
  result, _ = parse(_SMOKE, message.rstrip(".").split()[-1])
  assert result is not None


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("batch_size", "abc"),
    ("batch_size", "2.5"),
    ("batch_size", "1e3"),
    ("batch_size", "two words: and a colon"),
    ("model.dropout", "high"),
    ("data.flip", "maybe"),
    ("loss.mixup", ""),
    ("fewshot.shots", "(1,"),
  ],
)
def test_an_ill_typed_override_names_key_value_and_type(
  parse, refused, key, value
):
  message = refused(_SMOKE, f"--config.{key}={value}")
  default = config_lib.flatten(config_lib.default())[key]
  assert message.startswith(
    f"--config.{key}={value} is not of type {type(default).__name__}; write "
  )
  example = message.rstrip(".").split("write it as in ")[1]
  result, _ = parse(_SMOKE, example.replace("'", ""))
  assert result is not None
  got = config_lib.flatten(result[1]["config"].value)[key]
  assert got == default


@pytest.mark.parametrize(
  "argument", ["--config=nosuch.py", "--config nosuch.py", "-config=nosuch.py"]
)
@pytest.mark.parametrize("more", [(), ("--config.batch_size=4",)])
def test_a_missing_file(refused, argument, more):
  message = refused(*argument.split(), *more)
  assert message == "--config=nosuch.py: there is no such file."


# What a file says, and what comes of it.
_BROKEN = {
  "syntax": (
    "def get_config():\n  return {\n",
    "SyntaxError: '{' was never closed, line 2.",
  ),
  "type": (
    _RECIPE.format("c.batch_size = 'many'"),
    "TypeError: Could not override field 'batch_size'",
  ),
  "import": (
    "import nosuch_module\n",
    "ModuleNotFoundError: No module named 'nosuch_module'.",
  ),
  "error": (
    _RECIPE.format("raise RuntimeError('first\\n second')"),
    "RuntimeError: first second.",
  ),
  "assertion": (_RECIPE.format("assert False"), "AssertionError."),
  "empty": ("", "AttributeError: module"),
  "number": ("def get_config():\n  return 3\n", "AttributeError: 'int'"),
  "key of its own": (
    "import os\ndef get_config():\n  return os.environ['NO_SUCH_NAME']\n",
    "KeyError: NO_SUCH_NAME.",
  ),
}


@pytest.mark.parametrize("case", _BROKEN)
def test_a_file_that_cannot_be_loaded(refused, write, case):
  body, what = _BROKEN[case]
  argument = write(body)
  message = refused(argument)
  assert message.startswith(f"{argument} can't be loaded: {what}")


@pytest.mark.parametrize("case", ["syntax", "type", "import", "error"])
def test_a_file_that_cannot_be_loaded_and_overrides(refused, write, case):
  body, what = _BROKEN[case]
  message = refused(write(body), "--config.batch_size=4")
  assert what in message


def test_a_file_that_sets_an_unknown_key(refused, write):
  argument = write(_RECIPE.format("c.modle.variant = 'S/4'"))
  message = refused(argument)
  assert message.startswith(f"{argument} sets a key 'modle'")
  assert "did you mean 'model'?" in message


@pytest.mark.parametrize("argument", ["--config=", "--config=."])
def test_no_file_at_all(refused, argument):
  assert refused(argument).startswith(f"{argument} can't be loaded: ")


@pytest.mark.parametrize("argument", ["--workdri=x", "--config.seed"])
def test_flags_that_are_wrong(refused, argument):
  message = refused(_SMOKE, argument)
  assert argument.lstrip("-").split("=")[0] in message


def test_an_unknown_flag_names_the_nearest(refused):
  assert refused("--workdri=x") == (
    "Unknown command line flag 'workdri'; did you mean --workdir?"
  )


@pytest.mark.parametrize(
  ("flag", "meant"),
  [
    ("batch_size", "batch_size=4096"),
    ("lr", "optimizer.learning_rate=0.001"),
    ("epochs", "total='300 epochs'"),
  ],
)
def test_a_key_without_config_names_it(refused, flag, meant):
  assert refused(_SMOKE, f"--{flag}=8") == (
    f"Unknown command line flag '{flag}'; did you mean --config.{meant}?"
  )


def test_an_unknown_value_names_those_there_are(refused):
  message = refused(_SMOKE, "--platform=cuda")
  assert "platform=cuda" in message and "cpu|gpu|tpu" in message


@pytest.mark.parametrize("arguments", [(), (_SMOKE,)])
def test_overrides_come_after_the_file(refused, arguments):
  assert refused("--config.batch_size=8", *arguments) == (
    "--config=FILE has to come first, before what changes its keys."
  )


@pytest.mark.parametrize(
  ("arguments", "what"),
  [
    ((_SMOKE, "--config.bach_size=3"), "did you mean 'batch_size'?"),
    ((_SMOKE,), "--workdir=runs/smoke"),
    ((_SMOKE, "--workdir=w", "stray"), "'stray' is no flag"),
  ],
  ids=["while parsing", "without workdir", "no flag"],
)
def test_train_py_itself(tmp_path, arguments, what):
  done = subprocess.run(
    [sys.executable, _ROOT / "train.py", *arguments],
    cwd=tmp_path,
    env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(_ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 1
  assert done.stdout == ""
  assert what in one_sentence(done.stderr)
  assert not list(tmp_path.iterdir())


def test_output_that_nobody_reads_is_no_defect():
  code = (
    "import sys\n"
    "from mixer import command_line\n"
    "sys.exit(command_line.run(lambda: print('x' * 10**6)))\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=pathlib.Path(__file__).parent.parent,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.read(10)
  process.stdout.close()
  assert process.stderr.read() == ""
  process.stderr.close()
  assert process.wait() == 1


def test_advice_has_the_flags_of_the_command(capsys):
  def refuse():
    raise UserError("try --config.data.data_dir=DIR --config.seed=1.")

  args = argparse.Namespace(data_dir="")
  for given, said in ((args, "--data_dir"), (None, "--config.data.data_dir")):
    assert command_line.run(refuse, given) == 1
    said = f"error: try {said}=DIR --config.seed=1.\n"
    assert capsys.readouterr().err == said


def test_work_goes_on_without_stdout():
  code = (
    "import sys\n"
    "from mixer import command_line, stop\n"
    "def work():\n"
    "  stop.say('lost')\n"
    "  stop.say('done', sys.stderr)\n"
    "sys.exit(command_line.run(work))\n"
  )
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "-c", code],
      cwd=pathlib.Path(__file__).parent.parent,
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
    )
  assert done.returncode == 1
  assert done.stderr == (
    "done\nerror: stdout can't be written: No space left on device.\n"
  )


def interrupted(*_):
  raise KeyboardInterrupt


def hung_up(*_):
  os.kill(os.getpid(), signal.SIGHUP)


def failing(*_):
  raise UserError("the sentence.")


@pytest.mark.parametrize(
  ("function", "code", "said"),
  [
    (lambda a, b: None, 0, ""),
    (lambda a, b: a * b, 6, ""),
    (interrupted, 130, "Ctrl-C: stopped\n"),
    (hung_up, 129, "SIGHUP: stopped\n"),
    (failing, 1, "error: the sentence.\n"),
  ],
  ids=["nothing", "a code", "Ctrl-C", "SIGHUP", "an error"],
)
def test_a_tool_ends_with_a_code(monkeypatch, capsys, function, code, said):
  monkeypatch.setattr(runtime, "quiet_libraries", lambda: None)
  assert command_line.tool(function, 2, 3) == code
  assert capsys.readouterr().err == said
