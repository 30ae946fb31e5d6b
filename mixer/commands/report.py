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

  from mixer import (
    checkpoints,
    evaluate,
    files,
    progress,
    runtime,
    sharding,
    train_step,
    trained,
    workdir,
  )
  from mixer import config as config_lib
  from mixer.datasets import split as split_lib
  from mixer.report import collect, predictions


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


def _open(name: str) -> epath.Path:
  """A workdir, by its whole path."""
  path = workdir.path(name)
  path = path if workdir.is_remote(path) else path.resolve()
  workdir.read_config(path)
  return path


def _names(paths: Sequence[epath.Path]) -> list[str]:
  """The last parts of the paths, as many as it takes to tell them apart."""
  count, names = 0, [""] * len(paths)
  while len(set(names)) < len(paths) or not count:
    count += 1
    names = ["/".join(path.parts[-count:]) for path in paths]
  return names


def _target(output: str, paths: Sequence[epath.Path]) -> epath.Path:
  """Where the page goes; looked at before any work."""
  if not output:
    return (paths[0] if len(paths) == 1 else epath.Path()) / collect.PAGE
  target = workdir.path(output)
  if not workdir.is_remote(target):
    if target.is_dir():
      raise UserError(
        f"-o {output} is a folder: name a file, such as "
        f"{target / collect.PAGE}."
      )
    files.make_parent(target)
  return target


def _due(path: epath.Path, wanted: bool | None) -> int | None:
  """The step of the checkpoint to evaluate: as asked for, else if it's due."""
  steps, (kept, _) = checkpoints.committed(path), collect.kept(path)
  missing = bool(steps) and (not kept or kept["step"] < steps[-1])
  wanted = missing if wanted is None else wanted
  return steps[-1] if steps and wanted else None


def _evaluate(path: epath.Path, step: int, data_dir: str) -> dict[str, Any]:
  """What `report.json` is to hold, of one checkpoint."""
  model = trained.load(os.fspath(path / "checkpoints" / str(step)))
  config = model.config
  assert config is not None  # Of a run it has one.
  data, name = config.data, config.data.name
  split = split_lib.open_split(name, data.eval_split, data_dir or data.data_dir)
  found = evaluate.match(model, split.class_names, name)
  mesh = sharding.make_mesh()
  functions = train_step.Inference(
    model.module,
    model.loss,
    len(split.class_names),
    mesh,
    columns=found.columns,
  )
  params = jax.device_put(model.params, sharding.replicated(mesh))
  batch_size = _PER_DEVICE * jax.device_count()
  batches = evaluate.batches(
    split,
    config_lib.image_size(config),
    data.eval_short_side,
    batch_size,
  )
  done = 0
  with progress.Progress() as shown:

    def show() -> None:
      nonlocal done
      shown.show(f"evaluating {path.name}", done, len(split), done)
      done = min(done + batch_size, len(split))

    gathered = predictions.Gathered(
      functions, params, batches, mesh, split, config, show
    )
  return gathered.result(step)


def _read(
  path: epath.Path, name: str, step: int | None, args: argparse.Namespace
) -> dict[str, Any]:
  """A run for the page; evaluates the checkpoint of `step`, if any."""
  fresh, why = None, ""
  if step is not None:
    # The page is worth having all the same.
    try:
      fresh = _evaluate(path, step, args.data_dir)
      collect.keep(path, fresh)
    except (UserError, jax.errors.JaxRuntimeError, MemoryError) as e:
      # What to take in place of a damaged checkpoint is no advice here.
      cause = e.__cause__ if isinstance(e.__cause__, checkpoints.Damaged) else e
      said = errors.first_line(cause)
      if isinstance(cause, UserError):
        said = " ".join(cli.own_flags(str(cause), args).split()).rstrip(".")
      what = "kept" if fresh else "evaluated"
      why = f"Checkpoint {step:,} isn't {what}: {said}."
  return collect.read(path, name, why, fresh)


def _describe(run: Mapping[str, Any]) -> str:
  """What of a run is in the page, and what isn't."""
  steps = dict(run["facts"])["steps"]
  finals = [f"{label} {text}" for label, text, _ in run["finals"]]
  lines = [f"{run['name']}: {', '.join([f'steps {steps}', *finals])}"]
  if found := run["predictions"]:
    lines.append(
      f"  {found['examples']:,} predictions for {found['split']} at step "
      f"{found['step']:,}"
    )
  lines += [f"  note: {note}" for note in run["notes"]]
  return "\n".join(map(errors.printable, lines))


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  # Each once, in the order given.
  opened = list(dict.fromkeys(map(_open, args.workdirs)))
  target = _target(args.output, opened)
  due = [_due(path, args.evaluate) for path in opened]
  # Without anything to compute, an accelerator stays with whom it has.
  idle = all(step is None for step in due)
  runtime.start("cpu" if idle and not args.platform else args.platform)
  found = []
  for path, name, step in zip(opened, _names(opened), due, strict=True):
    found.append(_read(path, name, step, args))
    print(_describe(found[-1]), flush=True)
  collect.write(target, found)
  print(f"written to    {target}")
