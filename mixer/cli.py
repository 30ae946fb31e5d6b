"""The command `mixer`: its subcommands, and how any of them ends.

A subcommand is a module of `mixer.commands` with a docstring, which is its
help, `add_flags(parser)` and `main(args)`, which returns the exit code.
"""

import argparse
import difflib
import importlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from mixer import errors, files, flags, stop
from mixer.errors import UserError

COMMANDS = {
  "prepare": "Prepares a data set for training.",
  "sweep": "Chooses a learning rate on held-out data, then trains.",
  "evaluate": "Evaluates a trained model on a data set.",
  "predict": "Classifies images, or writes their features.",
  "export": "Writes a trained model to a file that other programs take.",
  "inspect": "Shows what a checkpoint holds, or how two differ.",
  "report": "Makes a page about a run, or one that compares several.",
  "visualize": "Looks inside a trained Mixer: figures of weights and features.",
  "replay": "Makes one update of a run again, and says where it breaks.",
  "plan": "Predicts memory, communication, time and cost of a run.",
  "demo": "Pre-trains and fine-tunes a small model, on data that is shipped.",
}
_HELP = """MLP-Mixer (arXiv 2105.01601) in JAX: mixer COMMAND ...

{}

`mixer COMMAND --help` lists a command's flags. In a checkout, training is
`python train.py --config=configs/smoke.py --workdir=DIR`."""
# What a key of the config is called where a flag has another name.
_FLAGS = {"eval_split": "split", "init_resize": "resize"}
_Work = Callable[[argparse.Namespace], int | None]


def main(words: Sequence[str] | None = None) -> int:
  """Runs the process's command line, or `words`; returns the exit code."""
  name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
  if name in ("-h", "--help", "help"):
    lines = [f"  {name:<11}{what}" for name, what in COMMANDS.items()]
    print(_HELP.format("\n".join(lines)))
    return stop.DONE
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    what = f"did you mean `mixer {near[0]}`?" if near else "`mixer` lists them."
    wrong = f"error: there is no command {errors.printable(name)}; {what}"
    stop.say(wrong, sys.stderr)
    return stop.FAILED
  return run(_module(name).main, parser(name).read(rest))


def _module(name: str) -> Any:
  return importlib.import_module(f"mixer.commands.{name}")


def parser(name: str, description: str | None = None) -> flags.Parser:
  """The parser of the flags of a command, or of train.py with its docstring."""
  if name == "train.py":
    found = flags.Parser("python train.py", description)
    flags.add_run(found)
    text = "trace updates FIRST to LAST into WORKDIR/profile, for xprof"
    kind: Any = {"type": flags.span, "metavar": "FIRST:LAST"}
    found.add_argument("--profile", help=text, **kind)
  else:
    found = flags.Parser(f"mixer {name}", _module(name).__doc__)
    _module(name).add_flags(found)
  return found


def train(args: argparse.Namespace, work: Callable[..., object]) -> None:
  """Starts JAX and, with several processes, meets the others; then works.

  `args` has the flags of `flags.add_run`; `work` takes the config, the workdir
  and the keys that may change.
  """
  from mixer import distributed
  from mixer import workdir as workdir_lib

  distributed.start(args)
  try:
    work(args.config, workdir_lib.path(args.workdir), args.allow_change)
  except stop.Preempted:
    distributed.end()  # All stop: the first may not leave before the last.
    raise
  distributed.end()


def run(work: _Work, args: argparse.Namespace | None = None) -> int:
  """Does `work(args)`, which returns an exit code or None; returns the code.

  What stops it is printed as a sentence.
  """
  with errors.safe_output() as out:
    try:
      code = _run(work, args or argparse.Namespace())
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


def _run(work: _Work, args: argparse.Namespace) -> int:
  try:
    if vars(args):
      from mixer import runtime

      runtime.quiet_libraries()
    with stop.interrupting():
      return work(args) or stop.DONE
  except stop.Preempted as e:
    stop.say(e, sys.stderr)
    return stop.PREEMPTED
  except KeyboardInterrupt as e:
    name, code = interruption(e)
    stop.say(f"{name}: stopped", sys.stderr)
    return code
  except Exception as e:
    from mixer import distributed

    message = ""
    if isinstance(e, UserError):
      message = own_flags(str(e), args)
    elif files.of_store(e):
      message = (
        f"Google Cloud Storage can't be used: {errors.first_line(e)}. Is there "
        "a network, is the name right, and may you use the bucket (gcloud auth "
        "application-default login)?"
      )
    elif not distributed.several():
      raise
    error = f"error: {message}" if message else traceback.format_exc()
    stop.say(error, sys.stderr)
    distributed.end_failed(e, message or f"{type(e).__name__}: {e}")
    if isinstance(e, UserError) and e.at_once:
      stop.exit_at_once(stop.FAILED)
    return stop.FAILED


def interruption(error: KeyboardInterrupt) -> tuple[str, int]:
  """The signal that ended a command, for people, and the exit code."""
  number = signal.Signals[error.args[0]] if error.args else signal.SIGINT
  name = "Ctrl-C" if number == signal.SIGINT else number.name
  return name, 128 + number


def own_flags(message: str, args: argparse.Namespace) -> str:
  """Advice for a run, with the flags that this command has in their place."""

  def own(match: re.Match[str]) -> str:
    name = _FLAGS.get(match[1], match[1])
    return f"--{name}=" if hasattr(args, name) else match[0]

  if hasattr(args, "config"):
    return message
  return re.sub(r"--config\.(?:\w+\.)*(\w+)=", own, message)
