"""Trains an MLP-Mixer: pre-training, fine-tuning, evaluation.

  python train.py --config=configs/smoke.py --workdir=/tmp/smoke

The same command line on an existing workdir goes on where that run stopped.
Exit codes: 0 done; 42 stopped by SIGTERM or Ctrl-C, and saved; 1 anything
else, with a sentence on stderr where it is something that a user can mend.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags

import input_pipeline
from mixer import checkpoints as checkpoints_lib
from mixer import (
  command_line,
  durations,
  evaluate,
  fewshot,
  finetune,
  reporter,
  runtime,
  sharding,
  validation,
)
from mixer import config as config_lib
from mixer import step as step_lib
from mixer import workdir as workdir_lib
from mixer.errors import UserError


def train(
  config: config_lib.Config,
  workdir: str | pathlib.Path,
  allow_change: Iterable[str] = (),
) -> dict[str, float]:
  """Trains, or goes on training, until the config's `total`.

  Args:
    config: see `mixer.config.default`.
    workdir: where the run lives: config, checkpoints, metrics.
    allow_change: config keys that may differ from an earlier start.

  Returns:
    The last evaluation, named as in metrics.jsonl.

  Raises:
    UserError: something that the user can mend.
    runtime.Preempted: stopped by a signal; the state is saved.
  """
  with runtime.StopSignal() as stop:
    # What can be refused is refused before anything is allocated.
    validation.validate(config, jax.device_count())
    train_split, eval_split = input_pipeline.open_splits(config)
    fewshot_task = input_pipeline.open_fewshot(config)
    plan = durations.plan(config, len(train_split))
    class_names = train_split.class_names
    path = pathlib.Path(workdir).expanduser()
    origin = finetune.prepare(config, path, class_names)
    resolved = dataclasses.asdict(plan) | {
      "train_examples": len(train_split),
      "eval_examples": len(eval_split),
      "num_classes": len(class_names),
    }
    resolved |= origin.resolved
    config_json = config_lib.to_json(config)
    workdir_lib.claim(
      path,
      config_json,
      resolved,
      allow_change,
      has_progress=bool(checkpoints_lib.committed(path)),
    )

    mesh = sharding.make_mesh()
    config = origin.config(config)
    trainer = step_lib.Trainer(config, plan, len(class_names), mesh)
    with checkpoints_lib.Checkpoints(path, config.keep_checkpoints) as saved:
      start = saved.latest
      if start is None:
        state, step = origin.place(trainer.init()), 0
        sentence = origin.sentence
      else:
        state, step = saved.restore(trainer.abstract), start
        sentence = f"going on after step {step} of {plan.total}"
      report = reporter.Reporter(path, config, plan, trainer, step)
      report.terminal.say(_describe(config, trainer, path, sentence))
      metadata = {
        "config": config_json,
        "resolved": resolved,
        "class_names": list(class_names),
        "environment": runtime.environment(),
        "origin": sentence,
      }

      def save() -> None:
        report.settle()
        if saved.latest != step:
          with report.pause():
            saved.save(step, state, metadata)

      def evaluation() -> None:
        report.settle()
        with report.pause():
          values = _evaluate(
            config, trainer, state, mesh, eval_split, fewshot_task, stop.check
          )
        report.evaluation(step, values)

      def missing_evaluation() -> bool:
        due = step == plan.total or (step and step % plan.eval_every == 0)
        return bool(due) and not report.writer.has(step, "eval/accuracy")

      try:
        try:
          if missing_evaluation():  # Stopped between save and evaluation.
            evaluation()
          batches = input_pipeline.train_batches(train_split, config, step)
          report.loader = batches
          while step < plan.total:
            stop.check()
            batch = sharding.put_batch(mesh, next(batches))
            state, values = trainer.train_step(state, batch)
            step += 1
            report.update(step, values)
            if step % plan.checkpoint_every == 0 or step == plan.total:
              save()
            if missing_evaluation():
              evaluation()
          report.terminal.say(f"{path}: done")
        except checkpoints_lib.SaveError:
          raise
        except (runtime.Preempted, UserError):
          save()  # Whatever it was, no update that is done is lost.
          raise
      except reporter.NotFinite as e:
        raise _diverged(e, saved) from e
      finally:
        report.close()
    return report.writer.last("eval/accuracy")


def _evaluate(
  config: config_lib.Config,
  trainer: step_lib.Trainer,
  state: step_lib.TrainState,
  mesh: Mesh,
  split: input_pipeline.Split,
  task: fewshot.Task | None,
  interrupt: Callable[[], None],
) -> dict[str, float]:
  """Everything that the config wants evaluated, named as in metrics.jsonl."""
  model, params = trainer.inference, state.eval_params
  batches = input_pipeline.eval_batches(split, config)
  values = evaluate.evaluate(model, params, batches, mesh, interrupt)
  named = {f"eval/{k}": v for k, v in values.items()}
  if task is not None:

    def extract(split: input_pipeline.Split) -> np.ndarray:
      batches = input_pipeline.eval_batches(split, config)
      return evaluate.features(model, params, batches, mesh, interrupt)

    for shots, draws in task.accuracies(extract).items():
      named[f"fewshot/{shots}shot"] = float(np.mean(draws))
  return named


def _describe(
  config: config_lib.Config,
  trainer: step_lib.Trainer,
  path: pathlib.Path,
  origin: str,
) -> str:
  """The lines that a run starts with."""
  count = sum(x.size for x in jax.tree.leaves(trainer.abstract.params))
  device = jax.devices()[0]
  height, width = config_lib.image_size(config)
  size = height if height == width else f"{height} x {width}"
  return (
    f"Mixer {config.model.variant} at {size} px, "
    f"{trainer.num_classes} classes, {count / 1e6:,.2f} M parameters, "
    f"{config.model.dtype}\n"
    f"{config.data.name}: batch {config.batch_size} on {jax.device_count()} x "
    f"{device.device_kind}\n"
    f"{path}: {origin}"
  )


def _diverged(
  error: reporter.NotFinite, saved: checkpoints_lib.Checkpoints
) -> UserError:
  newest = saved.latest
  kept = (
    f"The newest checkpoint, of step {newest}, is from before."
    if newest is not None
    else "There is no checkpoint from before."
  )
  return UserError(
    f"{error}: training stops there. {kept} Lower optimizer.learning_rate or "
    "optimizer.clip_norm, lengthen schedule.warmup, or try "
    "model.dtype=float32, in a new --workdir (--config.init_from takes the "
    "weights of that checkpoint)."
  )


_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where the run lives: made if missing, gone on with if not."
)
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "The recipe; --config.KEY=VALUE overrides a key."
)
_PLATFORM = flags.DEFINE_enum(
  "platform", "", ["", "cpu", "gpu", "tpu"], "Refuse to run on another."
)
_ALLOW_CHANGE = flags.DEFINE_list(
  "allow_change", [], "Config keys that may differ from the first start."
)


def command(
  argv: Sequence[str],
  module: str,
  work: Callable[[config_lib.Config, pathlib.Path], object],
) -> int:
  """Runs a command line with the flags of this file.

  Args:
    argv: what is left of it beside flags.
    module: what is run, as `python MODULE`.
    work: takes the config and the workdir.

  Returns:
    The exit code.
  """

  def body() -> None:
    if len(argv) > 1:
      raise UserError(f"{argv[1]!r} is no flag; flags start with --.")
    if not _WORKDIR.value or _CONFIG.value is None:
      raise UserError(
        f"name a recipe and a folder: python {module} "
        "--config=configs/smoke.py --workdir=/tmp/smoke"
      )
    runtime.quiet_libraries()
    runtime.start(_PLATFORM.value)
    work(_CONFIG.value, pathlib.Path(_WORKDIR.value).expanduser())

  return command_line.run(body)


def main(argv: Sequence[str]) -> int:
  """Runs the command line; returns the exit code."""

  def work(config: config_lib.Config, workdir: pathlib.Path) -> None:
    train(config, workdir, _ALLOW_CHANGE.value)

  return command(argv, "train.py", work)


if __name__ == "__main__":
  app.run(main, flags_parser=command_line.parse)
