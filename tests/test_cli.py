"""The command lines: help, sentences in place of tracebacks, exit codes."""

import argparse
import os
import re
import signal
import subprocess
import sys

import pytest

from mixer import cli, flags, resolution, runtime
from mixer import config as config_lib
from mixer.errors import UserError
from tests.conftest import ROOT

SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"
END = " `python train.py --help` lists all flags."


@pytest.fixture
def read(capsys):
  """`read(*words)` -> the flags of train.py, or the sentence."""

  def run(*words):
    try:
      result = cli.parser("train.py").read(["--workdir=w", *words])
    except SystemExit as e:
      assert e.code == 1
      out, err = capsys.readouterr()
      assert out == "" and err.count("\n") == 1
      assert err.startswith("error: ") and err.endswith(f"{END}\n")
      return err.removeprefix("error: ").removesuffix(f"{END}\n")
    assert capsys.readouterr() == ("", "")
    return result

  return run


def test_overrides(read):
  args = read(
    *("--config.batch_size=8", SMOKE, "--config.model.variant=B/4"),
    *("--config.optimizer.learning_rate=2", "--config.data.flip=true"),
    *("--config.total=3 epochs", "--config.fewshot.shots=(2, 3)"),
    *("--config.model.head_bias=-1", "--allow_change=seed,total"),
    *("--config.report=0", "--config.sweep.learning_rates=0.1"),
    "--config.optimizer.args={'nesterov': True}",
  )
  assert args.workdir == "w" and args.allow_change == ["seed", "total"]
  flat = config_lib.flatten(args.config)
  for key, value in {
    "batch_size": 8,
    "model.variant": "B/4",
    "optimizer.learning_rate": 2.0,
    "data.flip": True,
    "report": False,
    "total": "3 epochs",
    "fewshot.shots": [2, 3],
    "sweep.learning_rates": [0.1],
    "model.head_bias": -1.0,
    "data.name": "digits",  # The file's own.
    "optimizer.args": {"nesterov": True},
  }.items():
    assert flat[key] == value


@pytest.mark.parametrize(
  ("key", "meant"),
  [
    ("bach_size", "batch_size"),
    ("modle.variant", "model.variant"),
    ("learning_rate", "optimizer.learning_rate"),
    ("seed.x", "seed"),
    ("batch-size", "batch_size"),
    ("optimizer.lr", "optimizer.learning_rate"),
    ("optim.warmup_steps", "schedule.warmup"),
    ("num_epochs", "total"),
    ("mixup_alpha", "loss.mixup"),
    ("Dropout_rate", "model.dropout"),
    ("zzzz", ""),
  ],
)
def test_an_unknown_key_names_the_nearest(read, key, meant):
  message = f"the config has no key {key!r}; "
  message += f"did you mean {meant!r}? " if meant else ""
  message += "mixer/config.py has all."
  assert read(SMOKE, f"--config.{key}=3") == message


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("batch_size", "1e3"),
    ("batch_size", "two words: and a colon"),
    ("model.dropout", "high"),
    ("data.flip", "maybe"),
    ("loss.mixup", ""),
    ("fewshot.shots", "(1,"),
  ],
)
def test_an_ill_typed_override_names_key_value_and_type(read, key, value):
  message = read(SMOKE, f"--config.{key}={value}")
  default = config_lib.KEYS[key].default
  kind = type(default).__name__
  assert message.startswith(
    f"--config.{key}={value} is not of type {kind}; write it as in "
  )
  example = message.rstrip(".").split("write it as in ")[1]
  config = read(SMOKE, example.replace("'", "")).config
  want = [*default] if kind == "tuple" else default
  assert config_lib.flatten(config)[key] == want


_RECIPE = """from mixer import config as config_lib

def get_config():
  c = config_lib.default()
  {}
  return c
"""


@pytest.mark.parametrize(
  ("body", "what"),
  [
    ("def get_config():\n  return {\n", "SyntaxError: '{' was never closed"),
    (_RECIPE.format("c.batch_size = 'many'"), "TypeError: Could not override"),
    (_RECIPE.format("c.modle.variant = 'S/4'"), "AttributeError: .*modle"),
    ("import nosuch\n", "ModuleNotFoundError: No module named 'nosuch'"),
    ("", "KeyError: 'get_config'"),
    ("def get_config():\n  return 3\n", "AttributeError: 'int'"),
    (None, "FileNotFoundError: .*No such file"),
  ],
)
def test_a_recipe_that_cannot_be_loaded(read, tmp_path, body, what):
  path = tmp_path / "recipe.py"
  if body is not None:
    path.write_text(body)
  message = read("--config.batch_size=4", f"--config={path}")
  assert re.match(rf"--config={path} can't be loaded: {what}.*\.$", message)


@pytest.mark.parametrize(
  ("words", "what"),
  [
    (["--config="], "--config= can't be loaded: "),
    ([SMOKE, "--workdri=x"], "there is no flag --workdri; did you mean --work"),
    ([SMOKE, "--work=x"], "there is no flag --work; did you mean --workdir?"),
    ([SMOKE, "--batch_size=8"], "did you mean --config.batch_size?"),
    ([SMOKE, "--config.model=B/16"], "no key 'model'; did you mean 'model."),
    ([SMOKE, "--platform=cuda"], "choose from 'cpu', 'gpu', 'tpu'"),
    (
      [SMOKE, "--config.seed"],
      "--config.seed is not of type int; write it as in",
    ),
    ([SMOKE, "stray"], "there is no flag stray."),
    ([], "required: --config."),
    ([SMOKE, "--workdir="], "--workdir: it is empty: name a folder."),
  ],
)
def test_what_is_wrong_with_flags(read, words, what):
  assert what in read(*words)


# Each takes a tenth of a second or more to import.
HEAVY = ("etils.epath", "flax", "jax", "numpy", "optax", "orbax.checkpoint")
# One of a command's own flags.
FLAGS = {
  "train.py": "--allow_change",
  "demo": "--workdir",
  "evaluate": "--fewshot",
  "export": "--platforms",
  "inspect": "OTHER",
  "plan": "--core_rate",
  "predict": "--features",
  "prepare": "--hold_out",
  "replay": "--step",
  "report": "--evaluate",
  "sweep": "--allow_change",
  "visualize": "--smooth",
}
_ALL_HELP = f"""
import sys
from mixer import cli
for name in {[*FLAGS]}:
  try:
    cli.parser(name).read(["--help"])
  except SystemExit as e:
    assert not e.code
  print("END")
  assert not {{*sys.modules}} & {{*{HEAVY}}}, name
"""


def test_help_of_all_commands_comes_at_once():
  assert FLAGS.keys() == {"train.py", *cli.COMMANDS}
  command = [sys.executable, "-c", _ALL_HELP]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, "")
  assert max(map(len, done.stdout.splitlines())) <= 80
  for flag, text in zip(
    FLAGS.values(), done.stdout.split("END\n"), strict=False
  ):
    assert flag in text
    if "--config" in text:
      for key in config_lib.KEYS:
        assert f"  --config.{key}=" in text


@pytest.mark.parametrize("name", [n for n in cli.COMMANDS if n != "demo"])
def test_what_is_missing_or_not_there(name, capsys):
  for words, message in (
    ([], "required: |is missing: |[Nn]ame a |no image is named"),
    (["--nosuch"], "nosuch|required: "),
  ):
    try:
      code = cli.main([name, *words])
    except SystemExit as e:
      code = e.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.match(rf"error: .*({message})", err)


def test_one_screen_lists_the_commands(capsys):
  assert cli.main([]) == cli.main(["--help"]) == 0
  text = capsys.readouterr().out
  assert text.count("\n") < 2 * 24
  for name in cli.COMMANDS:
    assert re.search(rf"(?m)^  {name} +\w.*\.$", text)
    assert (ROOT / f"mixer/commands/{name}.py").is_file()
  assert cli.main(["predcit"]) == 1
  assert capsys.readouterr().err == (
    "error: there is no command predcit; did you mean `mixer predict`?\n"
  )


def test_choices_and_sizes():
  choices = {a.dest: a.choices for a in cli.parser("predict")._actions}
  assert choices["resize"] == tuple(resolution.METHODS)
  assert flags.image_size("448") == 448
  assert flags.image_size("224x448") == (224, 448)
  with pytest.raises(argparse.ArgumentTypeError, match="is no size"):
    flags.image_size("3x")


def test_train_py_itself(tmp_path):
  for flag in ("--config.bach_size=3", "--help"):
    done = subprocess.run(
      [sys.executable, "-X", "importtime", ROOT / "train.py", SMOKE, flag],
      cwd=tmp_path,
      env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
      timeout=120,
    )
    imported = re.findall(r"(?m)^import time:.*\| *(\S+)$", done.stderr)
    assert not {*imported} & {*HEAVY}
    assert bool(done.returncode) == ("error: " in done.stderr)
    assert ("--allow_change" in done.stdout) == (flag == "--help")
  assert not list(tmp_path.iterdir())


def test_commands_that_train_want_a_checkout(tmp_path, monkeypatch):
  monkeypatch.setattr(flags, "__file__", "a/b/c")
  monkeypatch.chdir(tmp_path)  # As `pip install .` leaves it.
  with pytest.raises(UserError, match=r"mixer X needs train.py and configs/"):
    flags.checkout("mixer X")


_WRITES = """
import sys
from mixer import cli, stop
def work(_):
  stop.say("x" * 10**6)
  stop.say("done", sys.stderr)
sys.exit(cli.run(work))
"""


@pytest.mark.parametrize(
  ("code", "where", "message"),
  [
    (_WRITES.replace("stop.say(", "print(", 1), "| head -c 10", ""),
    (
      _WRITES,
      ">/dev/full",
      "done\nerror: stdout can't be written: No space left on device.\n",
    ),
  ],
)
def test_output_that_nobody_takes(code, where, message):
  script = f'"$0" -c "$1" {where}; exit ${{PIPESTATUS[0]}}'
  done = subprocess.run(
    ["bash", "-c", script, sys.executable, code],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (1, message)


def test_advice_has_the_flags_of_the_command(monkeypatch, capsys):
  monkeypatch.setattr(runtime, "quiet_libraries", lambda: None)
  error = UserError("try --config.data.data_dir=DIR --config.seed=1.")
  args = argparse.Namespace(data_dir="")
  for given, flag in ((args, "--data_dir"), (None, "--config.data.data_dir")):
    assert cli.run(raising(error), given) == 1
    message = f"error: try {flag}=DIR --config.seed=1.\n"
    assert capsys.readouterr().err == message


def raising(error):
  def work(_):
    raise error

  return work


@pytest.mark.parametrize(
  ("work", "code", "message"),
  [
    (lambda _: None, 0, ""),
    (lambda _: 6, 6, ""),
    (raising(KeyboardInterrupt()), 130, "Ctrl-C: stopped\n"),
    (lambda _: os.kill(os.getpid(), signal.SIGHUP), 129, "SIGHUP: stopped\n"),
    (raising(UserError("the sentence.")), 1, "error: the sentence.\n"),
  ],
  ids=["nothing", "a code", "Ctrl-C", "SIGHUP", "an error"],
)
def test_how_a_command_ends(capsys, work, code, message):
  assert cli.run(work) == code
  assert capsys.readouterr().err == message
