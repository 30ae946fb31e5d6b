r"""Makes a page about a run, or one that compares several.

  python -m mixer report runs/smoke
  python -m mixer report runs/sweep/* -o sweep.html
  python -m mixer report runs/smoke --evaluate --data_dir=/data

Training leaves such a page, report.html, in its workdir; this makes it anew,
also while a run is under way, or one for several runs in the current folder:
curves, confusions, the worst mistakes, weights, config, in one file that loads
nothing. What needs the model and its data is kept in the workdir's report.json.
Where that is missing, or older than the newest checkpoint, this evaluates the
checkpoint, if its data is prepared here. --no-evaluate and --platform=cpu leave
the accelerator to a run.
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


def _due(path: epath.Path, wanted: bool | None) -> int | None:
  """The step of the checkpoint to evaluate: as asked for, else if it's due."""
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
  data, name = config.data, config.data.name
  split = split_lib.open_split(name, data.eval_split, data_dir or data.data_dir)
  columns = evaluate.match(model, split.class_names, name)
  mesh, count = sharding.make_mesh(), len(split.class_names)
  functions = train_step.Inference(
    model.module, model.loss, count, mesh, columns=columns
  )
  params = jax.device_put(model.params, sharding.replicated(mesh))
  size = _PER_DEVICE * jax.device_count()
  batches = evaluate.batches(split, model.image_size, model.short_side, size)
  done = itertools.count(0, size)
  with progress.Progress() as shown:
    stage, total = f"evaluating {path.name}", len(split)
    _, content = predictions.gather(
      *(step, functions, params, batches, mesh, split, config),
      lambda: shown.show(stage, next(done), total),
    )
  return content


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  paths = list(dict.fromkeys(map(_open, args.workdirs)))
  target = (paths[0] if len(paths) == 1 else epath.Path()) / collect.PAGE
  if args.output:
    target = workdir.path(args.output)
    files.make_parent(target)
  due = {path: _due(path, args.evaluate) for path in paths}
  # Without anything to compute, an accelerator stays free.
  idle = all(step is None for step in due.values())
  runtime.start("cpu" if idle and not args.platform else args.platform)
  # Of the folders' names, those that all have go without saying.
  folders = zip(*(path.parts[:-1] for path in paths), strict=False)
  common = len([*itertools.takewhile(lambda x: len({*x}) == 1, folders)])
  runs = []
  for path, step in due.items():
    content, notes = None, []
    if step is not None:
      try:
        content = _evaluate(path, step, args.data_dir)
        collect.keep(path, content)
      except (UserError, jax.errors.JaxRuntimeError, MemoryError) as e:
        what = "kept" if content else "evaluated"
        why = cli.own_flags(errors.first_line(e), args)
        notes.append(f"Checkpoint {step:,} is not {what}: {why}.")
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
