"""The command lines: help, sentences in place of tracebacks, exit codes."""

import argparse
import os
import re
import signal
import subprocess
import sys

import pytest

from mixer import cli, distributed, flags, resolution, runtime, validation
from mixer import config as config_lib
from mixer.errors import UserError
from tests.conftest import ROOT

SMOKE = f"--config={ROOT / 'configs' / 'smoke.py'}"
COMMANDS = ("train.py", *(f"-m mixer {name}" for name in cli.COMMANDS))
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


@pytest.fixture
def write(tmp_path):
  """Writes a config file; returns its flag."""

  def run(body: str) -> str:
    path = tmp_path / "recipe.py"
    path.write_text(body)
    return f"--config={path}"

  return run


def test_overrides(read):
  args = read(
    *("--config.batch_size=8", SMOKE, "--config.model.variant=B/4"),
    *("--config.optimizer.learning_rate", "2", "--config.data.flip=true"),
    *("--config.total", "3 epochs", "--config.fewshot.shots=(2, 3)"),
    *("--config.model.head_bias=-1", "--allow_change=seed,total"),
  )
  assert args.workdir == "w" and args.allow_change == ["seed", "total"]
  validation.validate(args.config, 8)
  flat = config_lib.flatten(args.config)
  assert (flat["batch_size"], flat["model.variant"]) == (8, "B/4")
  assert (flat["optimizer.learning_rate"], flat["data.flip"]) == (2.0, True)
  assert (flat["total"], flat["fewshot.shots"]) == ("3 epochs", [2, 3])
  assert flat["model.head_bias"] == -1.0
  assert flat["data.name"] == "digits"  # The file's own.


@pytest.mark.parametrize(
  ("key", "meant"),
  [
    ("bach_size", "batch_size"),
    ("modle.variant", "model.variant"),
    ("learning_rate", "optimizer.learning_rate"),
    ("seed.x", "seed"),
    ("batch-size", "batch_size"),
    ("optimizer.lr", "optimizer.learning_rate"),
    ("bs", "batch_size"),
    ("wd", "optimizer.weight_decay"),
    ("optim.warmup_steps", "schedule.warmup"),
    ("num_epochs", "total"),
    ("mixup_alpha", "loss.mixup"),
    ("grad_clip_norm", "optimizer.clip_norm"),
    ("Dropout_rate", "model.dropout"),
    ("zzzz", ""),
  ],
)
def test_an_unknown_key_names_the_nearest(read, key, meant):
  said = f"the config has no key {key!r}; "
  said += f"did you mean {meant!r}? " if meant else ""
  said += "mixer/config.py lists them all."
  assert read(SMOKE, f"--config.{key}=3") == said


def test_a_group_is_no_key(read):
  said = read(SMOKE, "--config.model=B/16")
  assert said.startswith("model is a group of keys; set one of them, as in ")
  assert read(SMOKE, said.rstrip(".").split()[-1]).config


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
  said = read(SMOKE, f"--config.{key}={value}")
  default = config_lib.KEYS[key].default
  kind = type(default).__name__
  assert said.startswith(
    f"argument --config.{key}: {value!r} is not of type {kind}; write it as in "
  )
  example = said.rstrip(".").split("write it as in ")[1]
  config = read(SMOKE, example.replace("'", "")).config
  assert config_lib.flatten(config)[key] == config_lib._lists(default)


_RECIPE = """from mixer import config as config_lib

def get_config():
  c = config_lib.default()
  {}
  return c
"""


@pytest.mark.parametrize(
  ("body", "what"),
  [
    ("def get_config():\n  return {\n", "SyntaxError: '{' was never closed, l"),
    (_RECIPE.format("c.batch_size = 'many'"), "TypeError: Could not override"),
    (
      _RECIPE.format("c.modle.variant = 'S/4'"),
      'AttributeError: \'modle Did you mean "model" instead of "modle"',
    ),
    ("import nosuch\n", "ModuleNotFoundError: No module named 'nosuch'."),
    (_RECIPE.format("raise OSError('a\\n b')"), "OSError: a b."),
    (_RECIPE.format("assert False"), "AssertionError."),
    ("", "AttributeError: module"),
    ("def get_config():\n  return 3\n", "AttributeError: 'int'"),
    ("def get_config():\n  return {}['A']\n", "KeyError: A."),
  ],
)
def test_a_recipe_that_cannot_be_loaded(read, write, body, what):
  argument = write(body)
  said = read("--config.batch_size=4", argument)
  assert said.startswith(f"{argument} can't be loaded: {what}")


@pytest.mark.parametrize(
  ("words", "what"),
  [
    (["--config", "nosuch.py"], "--config=nosuch.py: there is no such file."),
    (["--config="], "--config= is no Python file"),
    (["--config=."], "--config=. is no Python file"),
    ([SMOKE, "--workdri=x"], "there is no flag --workdri; did you mean --work"),
    ([SMOKE, "--work=x"], "there is no flag --work; did you mean --workdir?"),
    ([SMOKE, "--batch_size=8"], "did you mean --config.batch_size=4096?"),
    ([SMOKE, "--epochs=8"], "did you mean --config.total='300 epochs'?"),
    ([SMOKE, "--platform=cuda"], "choose from 'cpu', 'gpu', 'tpu'"),
    ([SMOKE, "--config.seed"], "--config.seed: expected one argument."),
    ([SMOKE, "stray"], "'stray' is no flag; flags start with --."),
    ([], "required: --config."),
    ([SMOKE, "--config.total=--"], "--config.total=--: -- is no value."),
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


def start(command, *words):
  """Runs it; none of what takes long may have been imported."""
  done = subprocess.run(
    [sys.executable, "-X", "importtime", *command.split(), *words],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  err = re.sub(r"(?m)^import time:.*\| *(\S+)\n", r"\1|", done.stderr)
  *imported, done.stderr = err.split("|")
  assert "mixer.cli" in imported
  assert not {*imported} & {*HEAVY}
  return done


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
  done = start(command, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  assert FLAGS[command.removeprefix("-m mixer ")] in done.stdout
  if "--config" in done.stdout:
    for key in config_lib.KEYS:
      assert f"  --config.{key} " in done.stdout
  assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_missing_or_not_there(command, capsys):
  name = command.removeprefix("-m mixer ")
  for words, said in (
    ([], "required: |is missing: |[Nn]ame a |no image is named"),
    (["--nosuch"], "nosuch|required: "),
  ):
    if (name, words) == ("demo", []) or (name == "train.py"):
      continue
    try:
      code = cli.main([name, *words])
    except SystemExit as e:
      code = e.code
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert re.match(rf"error: .*({said})", err)


def test_one_screen_lists_the_commands(capsys):
  assert cli.main([]) == cli.main(["--help"]) == 0
  said = capsys.readouterr().out
  assert said.count("\n") < 2 * 24
  for name in cli.COMMANDS:
    assert re.search(rf"(?m)^  {name} +\w.*\.$", said)
    assert (ROOT / f"mixer/commands/{name}.py").is_file()
  assert cli.main(["predcit"]) == 1
  assert capsys.readouterr().err == (
    "error: there is no command predcit; did you mean `mixer predict`?\n"
  )


def test_choices_are_what_there_is():
  choices = {
    action.dest: action.choices
    for name in ("train.py", "predict")
    for action in cli.parser(name)._actions
  }
  assert choices["resize"] == resolution.METHODS
  assert choices["cluster"] == distributed.CLUSTERS


def test_train_py_itself(tmp_path):
  done = subprocess.run(
    [sys.executable, ROOT / "train.py", SMOKE, "--config.bach_size=3"],
    cwd=tmp_path,
    env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (done.returncode, done.stdout) == (1, "")
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert not list(tmp_path.iterdir())


def test_commands_that_train_want_a_checkout(tmp_path):
  # As `pip install .` leaves it: the package alone.
  (tmp_path / "mixer").symlink_to(ROOT / "mixer")
  code = "import mixer.flags as f; f.__file__ = 'a/b/c'; f.checkout('mixer X')"
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert "UserError: mixer X needs train.py and configs/" in done.stderr


def test_output_that_nobody_reads_is_no_defect():
  code = (
    "import sys\n"
    "from mixer import cli\n"
    "sys.exit(cli.run(lambda _: print('x' * 10**6)))\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and process.stderr
  process.stdout.read(10)
  process.stdout.close()
  assert process.stderr.read() == ""
  process.stderr.close()
  assert process.wait() == 1


def test_work_goes_on_without_stdout():
  code = (
    "import sys\n"
    "from mixer import cli, stop\n"
    "def work(_):\n"
    "  stop.say('lost')\n"
    "  stop.say('done', sys.stderr)\n"
    "sys.exit(cli.run(work))\n"
  )
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "-c", code],
      cwd=ROOT,
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
    )
  assert done.returncode == 1
  assert done.stderr == (
    "done\nerror: stdout can't be written: No space left on device.\n"
  )


def test_advice_has_the_flags_of_the_command(monkeypatch, capsys):
  monkeypatch.setattr(runtime, "quiet_libraries", lambda: None)

  def refuse(_):
    raise UserError("try --config.data.data_dir=DIR --config.seed=1.")

  args = argparse.Namespace(data_dir="")
  for given, said in ((args, "--data_dir"), (None, "--config.data.data_dir")):
    assert cli.run(refuse, given) == 1
    said = f"error: try {said}=DIR --config.seed=1.\n"
    assert capsys.readouterr().err == said


def raising(error):
  def work(_):
    raise error

  return work


@pytest.mark.parametrize(
  ("work", "code", "said"),
  [
    (lambda _: None, 0, ""),
    (lambda _: 6, 6, ""),
    (raising(KeyboardInterrupt()), 130, "Ctrl-C: stopped\n"),
    (lambda _: os.kill(os.getpid(), signal.SIGHUP), 129, "SIGHUP: stopped\n"),
    (raising(UserError("the sentence.")), 1, "error: the sentence.\n"),
  ],
  ids=["nothing", "a code", "Ctrl-C", "SIGHUP", "an error"],
)
def test_how_a_command_ends(capsys, work, code, said):
  assert cli.run(work) == code
  assert capsys.readouterr().err == said


@pytest.mark.parametrize(
  ("value", "size"), [("448", 448), ("224x448", (224, 448))]
)
def test_image_sizes(value, size):
  assert flags.image_size(value) == size
