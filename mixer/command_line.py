"""Flags and exit codes, with sentences in place of tracebacks."""

import argparse
import contextlib
import re
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import flags

from mixer import config as config_lib
from mixer import files, stop
from mixer import text as text_lib
from mixer.errors import UserError, first_line


def parse(argv: list[str]) -> list[str]:
  """Parses the command line; for `absl.app.run(main, flags_parser=parse)`.

  A config file, and overrides of its keys, are evaluated while flags are
  parsed, so whatever is wrong with them comes up here.

  Args:
    argv: of the process.

  Returns:
    What is left beside flags, the program's name first.
  """
  if _HELP.intersection(argv[1:]):
    sys.exit(run(lambda: print(_help())))
  try:
    rest = flags.FLAGS(argv)
    if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
      # A file that can't be loaded says so only when it is looked into.
      flags.FLAGS["config"].value.keys()
  except Exception as e:
    message = text_lib.printable(_sentence(e, argv))
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
  return rest


_rest: list[str] = []


def parse_early(check: Callable[[list[str]], None]) -> None:
  """Reads the process's flags, before anything heavy is imported.

  What is wrong, and --help, end the process.

  Args:
    check: takes what is left beside flags, and may raise UserError.
  """
  global _rest
  _rest = parse(sys.argv)
  try:
    check(_rest)
  except UserError as e:
    with text_lib.safe_output():
      stop.say(f"error: {e}", sys.stderr)
    sys.exit(stop.FAILED)


def parsed(argv: list[str]) -> list[str]:
  """What `parse_early` has left; for `absl.app.run(main, flags_parser=...)`."""
  return _rest


_HELP = frozenset(("-h", "-?", "-help", "--help", "--helpfull", "--helpshort"))


def _help() -> str:
  """What the program does, its flags, and the keys of the config."""
  lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
  for module, own in flags.FLAGS.flags_by_module_dict().items():
    if not module.startswith("absl."):
      for flag in own:
        lines += _entry(f"--{flag.name}", flag.default, flag.help)
  lines += ["", "Keys of the config, with their defaults:"]
  for key, (value, meaning) in config_lib.KEYS.items():
    lines += _entry(f"--config.{key}", value, meaning)
  return "\n".join(lines)


def _entry(name: str, default: Any, meaning: str) -> list[str]:
  shown = shlex.quote(str(default)) if default not in (None, []) else "..."
  return [
    f"  {name}={shown}",
    *textwrap.wrap(
      meaning, 80, initial_indent=" " * 6, subsequent_indent=" " * 6
    ),
  ]


class Parser(argparse.ArgumentParser):
  """Of a command line, without abbreviations."""

  def __init__(self, prog: str, description: str, **options: Any):
    super().__init__(
      prog=prog, description=description, allow_abbrev=False, **options
    )

  def error(self, message: str) -> NoReturn:
    """Ends with a sentence; a shell's `*` may have put any name into it."""
    super().error(text_lib.printable(message))

  def print_help(self, file: Any = None) -> None:
    """Prints it, unless stdout takes nothing."""
    code = run(lambda: print(self.format_help(), end="", file=file))
    if code:
      self.exit(code)


def run(
  body: Callable[[], None], args: argparse.Namespace | None = None
) -> int:
  """Runs a command; what stops it is told in its own words.

  Args:
    body: the command's work.
    args: its flags, where they aren't those of a config.

  Returns:
    The exit code.
  """
  with text_lib.safe_output() as out:
    try:
      if out.error:
        raise out.error
      code = _run(body, args)
      out.flush()
      if not code and out.error and out.error.errno not in stop.CLOSED:
        raise out.error  # `stop.say` went on, as there was work to do.
      return code
    except OSError as e:
      if e is not out.error:
        raise
      out.give_up()
      if not isinstance(e, BrokenPipeError):  # As of `... | head`.
        stop.say(f"error: stdout can't be written: {e.strerror}.", sys.stderr)
      return stop.FAILED


def _run(body: Callable[[], None], args: argparse.Namespace | None) -> int:
  try:
    with _store():
      body()
  except stop.Preempted as e:
    stop.say(e, sys.stderr)
    return stop.PREEMPTED
  except UserError as e:
    sentence = own_flags(str(e), args)
    stop.say(f"error: {sentence}", sys.stderr)
    from mixer import distributed

    distributed.end_failed(e, sentence)
    if e.at_once:
      stop.exit_at_once(stop.FAILED)
    return stop.FAILED
  except Exception as e:
    from mixer import distributed

    if not distributed.several():
      raise
    traceback.print_exc()
    distributed.end_failed(e, f"{type(e).__name__}: {e}")
  return stop.DONE


# What a key of the config is called where it isn't called by its own name.
_FLAGS = {"eval_split": "split", "init_resize": "resize"}


def own_flags(sentence: str, args: argparse.Namespace | None) -> str:
  """Advice for a run, with the flags that a command has in their place."""

  def own(match: re.Match[str]) -> str:
    name = _FLAGS.get(match[1], match[1])
    return f"--{name}=" if hasattr(args, name) else match[0]

  return re.sub(r"--config\.(?:\w+\.)*(\w+)=", own, sentence)


@contextlib.contextmanager
def _store() -> Iterator[None]:
  """Makes a sentence of what an object store says, wherever it was asked."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    if not files.of_store(e):
      raise
    raise UserError(
      f"Google Cloud Storage can't be used: {first_line(e)}. Is there a "
      "network, is the name of the bucket right, and may you use it (gcloud "
      "auth application-default login)?"
    ) from e


def interruption(error: KeyboardInterrupt) -> tuple[str, int]:
  """The signal that ended a tool, for people, and the exit code of shells."""
  number = signal.Signals[error.args[0]] if error.args else signal.SIGINT
  name = "Ctrl-C" if number == signal.SIGINT else number.name
  return name, 128 + number


def tool(function: Callable[..., int | None], *args: Any) -> int:
  """As `run`, for `python -m mixer NAME`; signals end it with a short line.

  Args:
    function: the command's work; what it returns is the exit code, None 0.
    *args: its arguments.

  Returns:
    The exit code.
  """
  codes: list[int | None] = []

  def body() -> None:
    from mixer import runtime

    runtime.quiet_libraries()
    try:
      with stop.interrupting():
        codes.append(function(*args))
    except KeyboardInterrupt as e:
      name, code = interruption(e)
      stop.say(f"{name}: stopped", sys.stderr)
      codes.append(code)

  flags_ = args[0] if args and isinstance(args[0], argparse.Namespace) else None
  return run(body, flags_) or codes[0] or stop.DONE


def _sentence(error: Exception, argv: list[str]) -> str:
  full = str(error.args[0] if error.args else error).strip()
  text = " ".join(full.split())
  # One word or two, one dash or two: "--config=FILE", "-config FILE".
  line = re.sub(r"(^|\n)(--?config)\n", r"\1\2=", "\n".join(argv))
  overrides = dict(re.findall(r"(?m)^--?config\.([^\s=]+)=?(.*)$", line))
  for key in overrides:
    if key not in _KNOWN:
      return _unknown(key)
  wrong = re.search(r"flag --config\.([\w.]+)=", text)
  if wrong and wrong.group(1) in overrides:
    key = wrong.group(1)
    return (
      f"--config.{key}={overrides[key][:100]} is not of type "
      f"{type(_KNOWN[key]).__name__}; write it as in "
      f"{config_lib.override(key, _KNOWN[key])}."
    )
  files = re.findall(r"(?m)^--?config=(.*)$", line)
  if overrides and (not files or "before a value for --config" in text):
    return "--config=FILE has to come first, before what changes its keys."
  if files and "Error whilst parsing config file" in text:
    return f"--config={files[-1]} can't be loaded: {full.splitlines()[-1]}."
  if files and not isinstance(error, flags.Error):
    return _not_loaded(f"--config={files[-1]}", error, text)
  flag = re.fullmatch(r"Unknown command line flag '([\w.-]+)'", text)
  if flag and "config" in flags.FLAGS and (near := config_lib.near(flag[1])):
    return f"{text}; did you mean {config_lib.override(near, _KNOWN[near])}?"
  text = re.sub(r"\. Did you mean: (.*) \?$", r"; did you mean --\1?", text)
  return text if text.endswith("?") else text.rstrip(".") + "."


_KNOWN = config_lib.flatten(config_lib.default())


def _unknown(key: str) -> str:
  """About an override of a key that isn't there."""
  inside = [k for k in _KNOWN if k.startswith(f"{key}.")]
  if inside:
    example = config_lib.override(inside[0], _KNOWN[inside[0]])
    return f"{key} is a group of keys; set one of them, as in {example}."
  near = config_lib.near(key)
  meant = f"did you mean {near!r}? " if near else ""
  return (
    f"the config has no key {config_lib.shown(key)}; {meant}mixer/config.py "
    "lists them all."
  )


def _not_loaded(flag: str, error: Exception, text: str) -> str:
  """About a file that raised an error."""
  if "No such file" in text:
    return f"{flag}: there is no such file."
  meant = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
  if meant:
    return (
      f"{flag} sets a key {meant.group(2)!r}, which the config hasn't; did you "
      f"mean {meant.group(1)!r}? mixer/config.py lists them all."
    )
  text = text.removeprefix(
    "Configuration is not available because of an earlier failure to load: "
  )
  where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
  if isinstance(error, UserError):
    return text
  what = f"{type(error).__name__}: {text}".rstrip(":. ")
  return f"{flag} can't be loaded: {what}{where}."
