"""Makes a page about a run, or one that compares several.

  python -m mixer report runs/smoke
  python -m mixer report runs/sweep/* -o sweep.html
  python -m mixer report runs/smoke --evaluate --data_dir=/data

Makes the report.html that training leaves in its workdir anew, also while a run
is under way; of several runs in the current folder. What needs the model and
its data is kept in the workdir's report.json: where that is missing, or older
than the newest checkpoint, this evaluates the checkpoint, if its data is
prepared here. --platform=cpu leaves the accelerator to a run.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator
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
  text = "the newest checkpoint; default: if report.json is missing or older"
  add("--evaluate", action=argparse.BooleanOptionalAction, help=text)
  add("--data_dir", default="", help=flags.DATA_DIR)
  flags.add_platform(parser)


def _open(name: str) -> epath.Path:
  """A workdir, by its whole path."""
  path = workdir.path(name)
  path = path if files.is_remote(path) else path.resolve()
  workdir.read_config(path)
  return path


def _due(path: epath.Path, wanted: bool | None) -> int | None:
  """The step of the newest checkpoint, if it is to be evaluated."""
  steps, (kept, _) = checkpoints.committed(path), collect.kept(path)
  if not steps or wanted is False:
    return None
  fresh = kept and kept["step"] >= steps[-1]
  return None if fresh and not wanted else steps[-1]


def _evaluate(path: epath.Path, step: int, data_dir: str) -> dict[str, Any]:
  """The content of `report.json` for a checkpoint."""
  model = trained.load(os.fspath(path / "checkpoints" / str(step)))
  config = model.config
  assert config is not None  # Of a run it has one.
  data, folder = config.data, data_dir or config.data.data_dir
  split = split_lib.open_split(data.name, data.eval_split, folder)
  columns = evaluate.match(model, split.class_names, data.name)
  mesh, count = sharding.make_mesh(), len(split.class_names)
  functions = train_step.Inference(
    model.module, model.loss, count, mesh, columns=columns
  )
  params = jax.device_put(model.params, sharding.replicated(mesh))
  size = _PER_DEVICE * jax.device_count()
  batches = evaluate.batches(split, model.image_size, model.short_side, size)

  def shown() -> Iterator[Any]:
    with progress.Progress() as bar:
      for k, batch in enumerate(batches):
        bar.show(f"evaluating {path.name}", k * size, len(split))
        yield batch

  return predictions.gather(step, functions, params, shown(), split, config)[1]


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  paths = list(dict.fromkeys(map(_open, args.workdirs)))
  target = (paths[0] if len(paths) == 1 else epath.Path()) / collect.PAGE
  if args.output:
    target = workdir.path(args.output)
    files.make_parent(target)
  due = {path: _due(path, args.evaluate) for path in paths}
  # With nothing to evaluate, the accelerator is left to others.
  idle = all(step is None for step in due.values())
  runtime.start("cpu" if idle and not args.platform else args.platform)
  # Of the folders' names, those that all have go without saying.
  folders = zip(*(path.parts[:-1] for path in paths), strict=False)
  common = len([*itertools.takewhile(lambda x: len({*x}) == 1, folders)])
  runs = []
  for path, step in due.items():
    content, notes = None, []
    try:
      if step is not None:
        content = _evaluate(path, step, args.data_dir)
        collect.keep(path, content)
    except (UserError, jax.errors.JaxRuntimeError, MemoryError) as e:
      why = cli.own_flags(errors.first_line(e), args)
      what = "kept" if content else "evaluated"
      notes.append(f"The newest checkpoint is not {what}: {why}.")
    name = "/".join(path.parts[common:])
    run = collect.read(path, name, content)
    run["notes"] += notes
    runs.append(run)
    finals = "".join(f", {label} {text}" for label, text, _ in run["finals"])
    steps = dict(run["facts"])["steps"]
    print(errors.printable(f"{name}: steps {steps}{finals}"))
    for note in run["notes"]:
      print(errors.printable(f"  note: {note}"), flush=True)
  collect.write(target, runs)
  print(f"written to    {target}")
