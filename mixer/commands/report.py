r"""Makes a page about a run, or one that compares several.

  python -m mixer report runs/smoke
  python -m mixer report runs/sweep/* -o sweep.html
  python -m mixer report runs/smoke --evaluate --data_dir=/data

Training leaves such a page, report.html, in its workdir; this makes it anew,
also while a run is under way, and for several runs at once: curves, confusions,
the worst mistakes, weights, config, versions, in one file that loads nothing.
Of one workdir it goes there, of several to report.html in the current folder.
What needs the model and its data is kept in the workdir, as report.json. Where
that is missing, or older than the newest checkpoint, this evaluates the
checkpoint, if its data is prepared here; a run that has the accelerator to
itself is left alone with --platform=cpu or --no-evaluate.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epy

from mixer import cli, errors, flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax
  from etils import epath

  import input_pipeline
  from mixer import (
    checkpoints,
    class_matching,
    progress,
    runtime,
    sharding,
    train_step,
    trained,
    workdir,
  )
  from mixer import files as files_lib
  from mixer.datasets import split as split_lib
  from mixer.report import files, making, page, runs


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  add = parser.add_argument
  add("workdirs", nargs="+", metavar="WORKDIR", help="of train.py")
  add(
    "-o",
    "--output",
    default="",
    metavar="FILE",
    help="the page; WORKDIR/report.html, or report.html here for several runs",
  )
  add(
    "--evaluate",
    action=argparse.BooleanOptionalAction,
    help="evaluate the newest checkpoint, or don't; if none, or an older one, "
    "has been",
  )
  add("--data_dir", default="", help=flags.DATA_DIR)
  flags.add_platform(parser)


_PER_DEVICE = 64


def _open(text: str) -> epath.Path:
  """A workdir, by its whole path.

  Raises:
    UserError: it is none.
  """
  path = workdir.path(text)
  if not workdir.is_remote(path):
    if not path.is_dir():
      raise UserError(
        f"there is no folder {text}: name workdirs of train.py, such as "
        "runs/smoke."
      )
    path = path.resolve()
  workdir.read_config(path)
  return path


def _names(paths: Sequence[epath.Path]) -> list[str]:
  """The last parts of the paths, as many as it takes to tell them apart."""
  longest = max(len(path.parts) for path in paths)
  names: list[str] = []
  for count in range(1, longest + 1):
    names = ["/".join(path.parts[-count:]) for path in paths]
    if len(set(names)) == len(paths):
      break
  return names


def _target(
  args: argparse.Namespace, paths: Sequence[epath.Path]
) -> epath.Path:
  """Where the page goes; looked at before any work.

  Raises:
    UserError: it can't go there.
  """
  if not args.output:
    folder = paths[0] if len(paths) == 1 else epath.Path()
    return folder / files.PAGE
  target = workdir.path(args.output)
  if workdir.is_remote(target):
    return target
  if target.is_dir():
    raise UserError(
      f"-o {args.output} is a folder: name a file, such as "
      f"{target / files.PAGE}."
    )
  files_lib.make_parent(target)
  return target


def _due(path: epath.Path, wanted: bool | None) -> tuple[int | None, str]:
  """The step of the checkpoint that is to be evaluated, and why none is.

  Args:
    path: the workdir.
    wanted: as the flag says; None: where it is missing or old.
  """
  kept, _ = files.kept(path)
  if wanted is False:
    return None, "" if kept else "No predictions, as of --no-evaluate."
  try:
    _, step = checkpoints.locate(path)
  except (UserError, *workdir.failures(path)):
    return None, "" if kept else "No predictions: there is no checkpoint yet."
  if wanted or kept is None or kept["step"] < step:
    return step, ""
  return None, ""


def _evaluate(path: epath.Path, step: int, data_dir: str) -> dict[str, Any]:
  """What `report.json` is to hold, of one checkpoint.

  Raises:
    UserError: the checkpoint can't be used, or the data isn't here.
  """
  model = trained.load(os.fspath(path / "checkpoints" / str(step)))
  config = model.config
  assert config is not None  # Of a run it has one.
  data_dir = data_dir or config.data.data_dir
  name, expression = config.data.name, config.data.eval_split
  split = split_lib.open_split(name, expression, data_dir)
  found = class_matching.match(model, split.class_names, name)
  config.batch_size = _PER_DEVICE * jax.device_count()
  mesh = sharding.make_mesh()
  functions = train_step.Inference(
    model.module,
    model.loss,
    len(split.class_names),
    mesh,
    columns=found.columns,
  )
  params = jax.device_put(model.params, sharding.replicated(mesh))
  batches = input_pipeline.eval_batches(split, config)
  done = 0
  with progress.Progress() as shown:

    def show() -> None:
      nonlocal done
      shown.show(f"evaluating {path.name}", done, len(split), done)
      done = min(done + config.batch_size, len(split))

    gathered = making.gather(
      functions, params, batches, mesh, split, config, show
    )
  return making.result(gathered, step)


def _read(
  path: epath.Path,
  name: str,
  step: int | None,
  why: str,
  args: argparse.Namespace,
) -> dict[str, Any]:
  """A run for the page; evaluates the checkpoint of `step`, if any."""
  fresh = None
  if step is not None:
    try:
      fresh = _evaluate(path, step, args.data_dir)
    except UserError as e:
      # The page is worth having all the same. What to take in place of a
      # damaged checkpoint is no advice here.
      cause = e.__cause__ if isinstance(e.__cause__, checkpoints.Damaged) else e
      why = f"Checkpoint {step:,} isn't evaluated: {_sentence(cause, args)}"
    except (jax.errors.JaxRuntimeError, MemoryError) as e:
      why = f"Checkpoint {step:,} isn't evaluated: {_sentence(e, args)}"
  if fresh is not None:
    try:
      files.keep(path, fresh)
    except UserError as e:
      why = f"What was evaluated isn't kept: {_sentence(e, args)}"
  return runs.read(path, name, why, fresh)


def _sentence(error: BaseException, args: argparse.Namespace) -> str:
  """What an error says, on one line; of ours all, of others the beginning."""
  if isinstance(error, UserError):
    text = cli.own_flags(str(error), args)
    return " ".join(text.split()).rstrip(".") + "."
  return f"{errors.first_line(error)}."


def _describe(run: Mapping[str, Any]) -> str:
  """What of a run is in the page, and what isn't."""
  facts = dict(run["facts"])
  parts = [f"steps {facts['steps']}"]
  parts += [f"{k} {facts[k]}" for k in ("accuracy",) if k in facts]
  inside = [f"{len(run['metrics']):,} records of metrics"]
  predictions, weights = run["predictions"], run["weights"]
  if predictions:
    inside.append(
      f"{predictions['examples']:,} predictions for {predictions['split']} at "
      f"step {predictions['step']:,}"
    )
  if weights:
    count = len(weights["tokens"]) + (weights["stem"] is not None)
    inside.append(f"{count} figures of weights")
  lines = [f"{run['name']}: {', '.join(parts)}", f"  {', '.join(inside)}"]
  lines += [f"  note: {note}" for note in run["notes"]]
  return "\n".join(map(errors.printable, lines))


def main(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend.
  """
  # Each once, in the order given.
  opened = list(dict.fromkeys(_open(text) for text in args.workdirs))
  target = _target(args, opened)
  due = [_due(path, args.evaluate) for path in opened]
  # Without anything to compute, an accelerator stays with whom it has.
  idle = all(step is None for step, _ in due)
  runtime.start("cpu" if idle and not args.platform else args.platform)
  found = []
  names = _names(opened)
  for path, name, (step, why) in zip(opened, names, due, strict=True):
    found.append(_read(path, name, step, why, args))
    print(_describe(found[-1]), flush=True)
  files.write(target, page.text(found))
  print(f"written to    {target}")
