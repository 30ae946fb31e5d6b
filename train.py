"""Trains an MLP-Mixer: pre-training, fine-tuning, evaluation.

  python train.py --config=configs/smoke.py --workdir=runs/smoke

The same command line on an existing workdir goes on where that run stopped.
Exit codes: 0 done; 42 stopped by SIGTERM, Ctrl-C or a closed terminal, and
saved; 75 another process was lost, or training hung; 1 anything else, with a
sentence on stderr where it is something that a user can mend.
"""

# First of all, so that a signal is heard while the rest is imported; then the
# flags, so that what is wrong with them, and --help, is answered at once.
import sys

from mixer import stop

if __name__ == "__main__":
  stop.listen()

from mixer import cli

if __name__ == "__main__":
  _ARGS = cli.parser("train.py", __doc__).read(sys.argv[1:])

import argparse
import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

import input_pipeline
from mixer import (
  checkpoints,
  distributed,
  durations,
  evaluate,
  initial,
  lock,
  reporter,
  runtime,
  saving,
  sharding,
  train_step,
)
from mixer import config as config_lib
from mixer import workdir as workdir_lib
from mixer.errors import UserError
from mixer.report import collect, predictions


def train(
  config: config_lib.Config,
  workdir: epath.PathLike,
  allow_change: Collection[str] = (),
  profile: reporter.Span | None = None,
) -> dict[str, float]:
  """Trains, or goes on training, until the config's `total`.

  Args:
    config: see `mixer.config.default`.
    workdir: of the run: config, checkpoints, metrics.
    allow_change: config keys that may differ from an earlier start.
    profile: the first and the last update to trace, or None.

  Returns:
    The last evaluation, named as in metrics.jsonl.

  Raises:
    UserError: something that the user can mend.
    stop.Preempted: stopped by a signal that `stop.listen` hears; it is saved.
  """
  began, path = stop.began(), workdir_lib.path(workdir)
  board = distributed.Board() if distributed.several() else None
  with stop.Watch(board) as watch:
    # What is trained on, and from which weights.
    inputs = input_pipeline.open_inputs(config)
    if profile and profile[1] > inputs.plan.total:
      raise UserError(
        f"--profile={profile[0]}:{profile[1]}: the run has only updates 1 to "
        f"{inputs.plan.total}."
      )
    mend = functools.partial(checkpoints.mend_config, path)
    distributed.say(distributed.on_first("config", mend))
    class_names = inputs.train_split.class_names
    origin = initial.find(inputs.config, path, class_names)
    asked = config_lib.to_json(inputs.config)
    resolved = {
      **inputs.plan.to_json(),
      **origin.resolved,
      "train_examples": len(inputs.train_split),
      "eval_examples": len(inputs.eval_split),
      "num_classes": len(class_names),
      workdir_lib.DATA_SET: inputs.identity,
    }

    # Whose workdir it is, whether this run may go on in it, and whether all
    # processes run the same.
    with lock.Lock(path) as owner:
      watch.leaving.append(owner.release)
      watch.checks.append(owner.check)

      def check() -> str:
        step = max(checkpoints.committed(path), default=None)
        return workdir_lib.check(path, asked, resolved, allow_change, step)

      distributed.say(distributed.on_first("workdir", check))
      same = {"workdir": str(path), "resolved": resolved}
      distributed.check_same(inputs.config, same)
      watch.check()

      # The model and its state, then updates to the end.
      config = origin.config(inputs.config)
      inputs = dataclasses.replace(inputs, config=config)
      with saving.Checkpoints(
        path,
        config.keep_checkpoints,
        keep_every=inputs.plan.keep_every,
        scores=lambda: run.report.scores(),
      ) as saved:
        run = _Run(path, inputs, origin, saved, watch, began, profile)
        run.metadata |= {"config": asked, "resolved": resolved}
        if jax.process_index() == 0:
          workdir_lib.write_config(path, asked, resolved)
        watch.limit_silence(config.hang_seconds)
        run.to_the_end()
    found = run.report.writer.last("eval/accuracy")
    return {k: v for k, v in found.items() if k != "step"}


class _Run:
  """A run; `step` updates are done, the state of `on_disk` is saved."""

  def __init__(
    self,
    path: epath.Path,
    inputs: input_pipeline.Inputs,
    origin: initial.Origin,
    saved: saving.Checkpoints,
    watch: stop.Watch,
    began: float,
    profile: reporter.Span | None,
  ):
    """Makes the model, restores or makes its state, opens the metrics."""
    config, plan = inputs.config, inputs.plan
    names = list(inputs.train_split.class_names)
    self.path, self.inputs, self.saved, self.watch = path, inputs, saved, watch
    self.mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
    self.trainer = train_step.Trainer(config, plan, len(names), self.mesh)
    if saved.latest is None:
      self.state, self.step = origin.place(self.trainer.init()), 0
      message = origin.message
    else:
      self.state, self.step = saved.restore(self.trainer.abstract)
      message = f"going on after step {self.step} of {plan.total}"
    self.start, self.on_disk = self.step, saved.latest
    before = saved.metadata or {}
    self.metadata = runtime.history(before, self.step, message)
    self.metadata["class_names"] = names
    lines = before.get("metrics_lines", 0)
    self.report = reporter.Reporter(
      path, inputs, self.trainer.model, self.step, began, lines
    )
    self.shown: dict[str, Any] | None = None  # What report.html shows.
    self.report.say(reporter.header(inputs, self.trainer.abstract.params))
    self.report.say(f"{path}: {message}")
    self.profile = reporter.Profile(self.report, profile, self.step)

  def to_the_end(self) -> None:
    """Trains; however that ends, reports where the time went."""
    ours, report = True, self.report
    try:
      report.begin()
      self.train()
      report.say(f"{self.path}: done")
    except (saving.SaveError, reporter.NotFinite):
      raise
    except lock.LostError:
      ours = False  # Nothing may be written any more.
      raise
    except (stop.Preempted, UserError) as e:
      # Whatever it was, no update that is done is lost; but one process can't
      # save without the others, which know nothing of its error.
      alone = not distributed.several()
      if self.step > self.start and (alone or isinstance(e, stop.Preempted)):
        self.save()
        self.wait()
      raise
    finally:
      if ours:
        self.profile.close()
      if ours and self.step > self.start:
        report.account(self.step)
      report.close()
    # After the last record; a run that is finished stays so if this fails.
    if self.shown is not None and jax.process_index() == 0:
      stop.say(collect.finish(self.path, self.shown))

  def train(self) -> None:
    """Updates, saves and evaluates until the end."""
    report, config, plan = self.report, self.inputs.config, self.inputs.plan
    # Stopped between save and evaluation; the first process has the records.
    if distributed.broadcast("evaluation", self.evaluation_missing()):
      self.evaluate()
    batches = input_pipeline.train_batches(
      self.inputs.train_split, config, self.step
    )
    report.loader, compiled = batches, set[int]()
    while self.step < plan.total:
      self.watch.check()
      count = durations.at_once(plan, self.step, config.steps_per_dispatch)
      self.profile.before(self.step + count)
      with report.goodput.spend("data"):
        local = [next(batches) for _ in range(count)]
      with (
        report.goodput.spend("step" if count in compiled else "compile"),
        jax.profiler.StepTraceAnnotation("train", step_num=self.step + 1),
      ):
        if count == 1:
          batch = sharding.put_batch(self.mesh, local[0])
          self.state, values = self.trainer.train_step(self.state, batch)
        else:
          several = sharding.put_batches(self.mesh, local)
          self.state, values = self.trainer.train_steps(self.state, several)
      compiled.add(count)
      self.step += count
      self.watch.working = True
      self.profile.after(self.step, values)
      report.update(self.step, values, count)
      if self.is_due(plan.checkpoint_every):
        self.save()
      if self.evaluation_missing():
        self.evaluate()
        best = checkpoints.best(report.scores()) == self.step
        if distributed.broadcast("best", best):
          self.save()
    self.wait()
    # Else it was made with the final evaluation.
    if self.shown is None and config.report:
      missing = not (self.path / collect.PAGE).exists()
      if distributed.broadcast("report", missing):
        with report.goodput.spend("evaluation"):
          self.show()

  def is_due(self, every: durations.Interval) -> bool:
    """Whether now is a time for it, or the end."""
    at_end = self.step == self.inputs.plan.total
    return at_end or durations.is_due(every, self.step)

  def save(self) -> None:
    """Starts saving this step, unless that is done."""
    self.report.settle()
    if self.on_disk != self.step:
      with self.report.goodput.spend("saving"):
        # So that the records are never behind the newest checkpoint.
        self.report.writer.flush()
        lines = {"metrics_lines": self.report.writer.lines}
        self.saved.save(self.step, self.state, self.metadata | lines)
      self.on_disk = self.step

  def wait(self) -> None:
    """Returns when it is saved."""
    with self.report.goodput.spend("saving"):
      self.saved.wait()

  def evaluation_missing(self) -> bool:
    """Whether an evaluation is due that has no record."""
    done = self.report.writer.last("eval/accuracy").get("step")
    return done != self.step and self.is_due(self.inputs.plan.eval_every)

  def eval_batches(
    self, split: input_pipeline.Split
  ) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a split; looks for signals before each is computed."""
    for batch in input_pipeline.eval_batches(split, self.inputs.config):
      self.watch.check()
      yield batch

  def evaluate(self) -> None:
    """Evaluates, and few-shot if the config wants it; writes the record."""
    self.report.settle()
    config, task = self.inputs.config, self.inputs.fewshot_task
    model, params = self.trainer.inference, self.state.eval_params

    def over(function: Any, split: input_pipeline.Split) -> Any:
      return function(model, params, self.eval_batches(split))

    with self.report.goodput.spend("evaluation"):
      if config.report and self.step == self.inputs.plan.total:
        values = self.show()
      else:
        values = over(evaluate.evaluate, self.inputs.eval_split)
      named = {f"eval/{k}": v for k, v in values.items()}
      if task is not None:
        found = task.accuracies(functools.partial(over, evaluate.features))
        for shots, draws in found.items():
          named[f"fewshot/{shots}shot"] = float(np.mean(draws))
    self.report.evaluation(self.step, named)

  def show(self) -> dict[str, float]:
    """Evaluates, with what the report shows of the model."""
    split, config = self.inputs.eval_split, self.inputs.config
    values, self.shown = predictions.gather(
      self.step,
      self.trainer.inference,
      self.state.eval_params,
      self.eval_batches(split),
      split,
      config,
    )
    return values


def main(args: argparse.Namespace) -> int:
  """Trains as the command line says; returns the exit code."""
  work = functools.partial(train, profile=args.profile)
  return cli.run(lambda args: cli.train(args, work), args)


if __name__ == "__main__":
  sys.exit(main(_ARGS))  # pyright: ignore[reportPossiblyUnboundVariable]
