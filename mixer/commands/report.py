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
import itertools
import os
from typing import Any

from etils import epy

from mixer import cli, errors, files, flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax
  from etils import epath

  from mixer import (
    checkpoints,
    evaluate,
    progress,
    runtime,
    sharding,
    train_step,
    trained,
    workdir,
  )
  from mixer.datasets import split as split_lib
  from mixer.report import collect, predictions

_PER_DEVICE = 64


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  add = parser.add_argument
  add("workdirs", nargs="+", metavar="WORKDIR", help="of train.py")
  text = "the page; WORKDIR/report.html, or report.html here for several runs"
  add("-o", "--output", default="", metavar="FILE", help=text)
  text = "the newest checkpoint, or don't; if none, or an older one, has been"
  add("--evaluate", action=argparse.BooleanOptionalAction, help=text)
  add("--data_dir", default="", help=flags.DATA_DIR)
  flags.add_platform(parser)


def _open(name: str) -> epath.Path:
  """A workdir, by its whole path."""
  path = workdir.path(name)
  path = path if workdir.is_remote(path) else path.resolve()
  workdir.read_config(path)
  return path


def _target(output: str, paths: list[epath.Path]) -> epath.Path:
  """Where the page goes; looked at before any work."""
  if not output:
    return (paths[0] if len(paths) == 1 else epath.Path()) / collect.PAGE
  target = workdir.path(output)
  if target.is_dir():
    raise UserError(
      f"-o {output} is a folder: name a file, such as {target / collect.PAGE}."
    )
  if not workdir.is_remote(target):
    files.make_parent(target)
  return target


def _due(path: epath.Path, wanted: bool | None) -> int | None:
  """The step of the checkpoint to evaluate: as asked for, else if it's due."""
  steps, (kept, _) = checkpoints.committed(path), collect.kept(path)
  if not steps or wanted is False:
    return None
  fresh = kept and kept["step"] >= steps[-1]
  return None if fresh and not wanted else steps[-1]


def _evaluate(path: epath.Path, step: int, data_dir: str) -> dict[str, Any]:
  """What `report.json` is to hold, of one checkpoint."""
  model = trained.load(os.fspath(path / "checkpoints" / str(step)))
  config = model.config
  assert config is not None  # Of a run it has one.
  data, name = config.data, config.data.name
  split = split_lib.open_split(name, data.eval_split, data_dir or data.data_dir)
  columns = evaluate.match(model, split.class_names, name).columns
  mesh, count = sharding.make_mesh(), len(split.class_names)
  functions = train_step.Inference(
    model.module, model.loss, count, mesh, columns=columns
  )
  params = jax.device_put(model.params, sharding.replicated(mesh))
  batch_size = _PER_DEVICE * jax.device_count()
  batches = evaluate.batches(
    split, model.image_size, data.eval_short_side, batch_size
  )
  done = itertools.count(0, batch_size)
  with progress.Progress() as shown:

    def show() -> None:
      shown.show(f"evaluating {path.name}", next(done), len(split))

    return predictions.gather(
      step, functions, params, batches, mesh, split, config, show
    )[1]


def _read(
  path: epath.Path, name: str, step: int | None, args: argparse.Namespace
) -> dict[str, Any]:
  """A run for the page; evaluates the checkpoint of `step`, if any."""
  fresh, notes = None, []
  if step is not None:
    # The page is worth having all the same.
    try:
      fresh = _evaluate(path, step, args.data_dir)
      collect.keep(path, fresh)
    except (UserError, jax.errors.JaxRuntimeError, MemoryError) as e:
      what = "kept" if fresh else "evaluated"
      said = cli.own_flags(errors.first_line(e), args)
      notes.append(f"Checkpoint {step:,} isn't {what}: {said}.")
  found = collect.read(path, name, fresh)
  return found | {"notes": found["notes"] + notes}


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  # Each once, in the order given.
  paths = list(dict.fromkeys(map(_open, args.workdirs)))
  target = _target(args.output, paths)
  due = [_due(path, args.evaluate) for path in paths]
  # Without anything to compute, an accelerator stays with whom it has.
  idle = all(step is None for step in due)
  runtime.start("cpu" if idle and not args.platform else args.platform)
  # The folder that all are in goes without saying.
  parts = zip(*(path.parts[:-1] for path in paths), strict=False)
  common = len([*itertools.takewhile(lambda p: len({*p}) == 1, parts)])
  runs = []
  for path, step in zip(paths, due, strict=True):
    name = "/".join(path.parts[common:])
    runs.append(run := _read(path, name, step, args))
    finals = "".join(f", {label} {said}" for label, said, _ in run["finals"])
    print(
      errors.printable(f"{name}: steps {dict(run['facts'])['steps']}{finals}")
    )
    if found := run["predictions"]:
      print(f"  {found['examples']:,} predictions at step {found['step']:,}")
    for note in run["notes"]:
      print(errors.printable(f"  note: {note}"), flush=True)
  collect.write(target, runs)
  print(f"written to    {target}")
