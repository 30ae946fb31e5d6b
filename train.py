"""Trains an MLP-Mixer: pre-training, fine-tuning, evaluation.

  python train.py --config=configs/smoke.py --workdir=runs/smoke

The same command line on an existing workdir goes on where that run stopped.
Exit codes: 0 done; 42 stopped by SIGTERM, Ctrl-C or a closed terminal, and
saved; 1 anything else, with a sentence on stderr where it is something that a
user can mend.
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
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

import input_pipeline
from mixer import checkpoints as checkpoints_lib
from mixer import config as config_lib
from mixer import (
  durations,
  evaluate,
  initial,
  nonfinite,
  provenance,
  reporter,
  runtime,
  sharding,
  train_step,
)
from mixer import workdir as workdir_lib
from mixer.cluster import gate, hosts
from mixer.errors import UserError
from mixer.report import files as report_files
from mixer.report import making as report_page
from mixer.storage import lock
from mixer.storage import saved as saved_lib


def train(
  config: config_lib.Config,
  workdir: epath.PathLike,
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
    stop.Preempted: stopped by a signal; the state is saved.
  """
  began = stop.began()
  path = workdir_lib.path(workdir)
  with stop.Watch(hosts.board()) as watch:
    inputs = input_pipeline.open_inputs(config)
    config, plan = inputs.config, inputs.plan
    class_names = inputs.train_split.class_names
    if mended := hosts.on_first("config", lambda: saved_lib.mend_config(path)):
      _say(mended)
    origin = initial.prepare(config, path, class_names)
    resolved: dict[str, Any] = plan.to_json() | {
      "train_examples": len(inputs.train_split),
      "eval_examples": len(inputs.eval_split),
      "num_classes": len(class_names),
      "data_set": inputs.identity,
    }
    resolved |= origin.resolved
    config_json = config_lib.to_json(config)

    def claim() -> list[str]:
      step = max(checkpoints_lib.committed(path), default=None)
      return workdir_lib.claim(
        path, config_json, resolved, allow_change, step=step
      )

    with lock.Lock(path) as owner:
      watch.leaving.append(owner.release)
      if owner.sentence:
        _say(owner.sentence)
      for sentence in hosts.on_first("claim", claim):
        _say(sentence)
      same = {"workdir": str(path), "resolved": resolved}
      gate.pass_together(config, config_lib.flatten(same))
      watch.check()

      config = origin.config(config)
      inputs = dataclasses.replace(inputs, config=config)
      mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
      trainer = train_step.Trainer(config, plan, len(class_names), mesh)
      with checkpoints_lib.Checkpoints(
        path,
        config.keep_checkpoints,
        keep_every=plan.keep_every,
        best=lambda: report.scores(),
        tell=_say,
      ) as saved:
        if saved.latest is None:
          state, step = origin.place(trainer.init()), 0
          sentence = origin.sentence
        else:
          state, step = saved.restore(trainer.abstract)
          sentence = f"going on after step {step} of {plan.total}"
        lines = (saved.metadata or {}).get("metrics_lines", 0)
        report = reporter.Reporter(
          path, config, plan, trainer, step, began, lines
        )
        splits = (inputs.train_split, inputs.eval_split)
        report.terminal.say(
          f"{reporter.describe(config, trainer, *splits)}\n{path}: {sentence}"
        )
        metadata = {
          "config": config_json,
          "resolved": resolved,
          "class_names": list(class_names),
        }
        metadata |= provenance.describe_start(saved.metadata, step, sentence)
        _Run(
          inputs=inputs,
          path=path,
          mesh=mesh,
          trainer=trainer,
          saved=saved,
          report=report,
          watch=watch,
          owner=owner,
          hangs=runtime.Hangs(config.hang_seconds),
          metadata=metadata,
          state=state,
          step=step,
          start=step,
          on_disk=saved.latest,
        ).to_the_end()
    return report.writer.last("eval/accuracy")


@dataclasses.dataclass
class _Run:
  """A run between its start and its end; `step` updates are done.

  The state of update `start` is where this process began, that of `on_disk`
  the newest that has been saved.
  """

  inputs: input_pipeline.Inputs
  path: epath.Path
  mesh: Mesh
  trainer: train_step.Trainer
  saved: checkpoints_lib.Checkpoints
  report: reporter.Reporter
  watch: stop.Watch
  owner: lock.Lock
  hangs: runtime.Hangs
  metadata: dict[str, Any]
  state: train_step.TrainState
  step: int
  start: int
  on_disk: int | None
  shown: report_page.Gathered | None = None

  def to_the_end(self) -> None:
    """Trains; however that ends, says where the time went."""
    report = self.report
    report.on_skipped = self._tell_skipped
    report.goodput.begin()
    ours = True
    try:
      self._train()
      report.terminal.say(f"{self.path}: done")
    except lock.LostError:
      ours = False  # Nothing may be written any more.
      raise
    except checkpoints_lib.SaveError:
      raise
    except (stop.Preempted, UserError) as e:
      # Whatever it was, no update that is done is lost; but one process can't
      # save without the others, who know nothing of its error.
      if self.step > self.start:
        if isinstance(e, stop.Preempted) or not hosts.several():
          self._save()
          self._wait()
      raise
    except reporter.NotFinite as e:
      raise nonfinite.stopped(
        e, self._blame(e), self.saved.latest, self.inputs.config
      ) from e
    finally:
      self.hangs.end()
      if ours and self.step > self.start:
        report.account(self.step)
      report.close()
    # After the last record; a run that is finished stays so if this fails.
    if self.shown is not None and jax.process_index() == 0:
      _say(report_page.finish(self.path, self.step, self.shown))

  def _train(self) -> None:
    report, total = self.report, self.inputs.plan.total
    # Stopped between save and evaluation; as the one says that writes.
    if hosts.broadcast("evaluation", self._evaluation_missing()):
      self._evaluate()
    batches = input_pipeline.train_batches(
      self.inputs.train_split, self.inputs.config, self.step
    )
    report.loader = batches
    compiled: set[int] = set()
    while self.step < total:
      self._pulse()
      most = self.inputs.config.steps_per_dispatch
      count = durations.at_once(self.inputs.plan, self.step, most)
      with report.goodput.spend("data"):
        local = [next(batches) for _ in range(count)]
      first = count not in compiled
      compiled.add(count)
      with report.goodput.spend("compile" if first else "step"):
        self.state, values = self._update(local)
      self.step += count
      self.watch.working()
      report.update(self.step, values, count)
      if self._is_due(self.inputs.plan.checkpoint_every):
        self._save()
      if self._evaluation_missing():
        self._evaluate()
        best = report.is_best(self.step)
        if self.inputs.config.keep_best and hosts.broadcast("best", best):
          self._save()
    self._wait()
    # Else it was made as the final evaluation was.
    if self.shown is None and self.inputs.config.report:
      page = self.path / report_files.PAGE
      if hosts.broadcast("report", not page.exists()):
        with report.pause("evaluation"):
          self.shown = self._show()

  def _update(
    self, local: Sequence[dict[str, np.ndarray]]
  ) -> tuple[train_step.TrainState, train_step.Metrics]:
    """One update for each batch."""
    if len(local) == 1:
      batch = sharding.put_batch(self.mesh, local[0])
      return self.trainer.train_step(self.state, batch)
    batches = sharding.put_batches(self.mesh, local)
    return self.trainer.train_steps(self.state, batches)

  def _pulse(self) -> None:
    """Between any two things that all processes do together."""
    self.watch.check()
    self.owner.check()
    self.hangs.heard()

  def _save(self) -> None:
    self.report.settle()
    if self.on_disk != self.step:
      with self.report.pause("saving"):
        # So that the records are never behind the newest checkpoint.
        self.report.writer.flush()
        lines = {"metrics_lines": self.report.writer.lines}
        self.saved.save(self.step, self.state, self.metadata | lines)
      self.on_disk = self.step

  def _wait(self) -> None:
    with self.report.pause("saving"):
      self.saved.wait()

  def _is_due(self, every: durations.Interval) -> bool:
    """Whether now is a time for it, or the end."""
    at_end = self.step == self.inputs.plan.total
    return at_end or durations.is_due(every, self.step)

  def _show(self) -> report_page.Gathered:
    """What the report shows of the model; the metrics, as of `evaluate`."""
    inputs = self.inputs
    return report_page.gather(
      self.trainer.inference,
      self.state.eval_params,
      input_pipeline.eval_batches(inputs.eval_split, inputs.config),
      self.mesh,
      inputs.eval_split,
      inputs.config,
      self._pulse,
    )

  def _evaluation_missing(self) -> bool:
    missing = not self.report.writer.has(self.step, "eval/accuracy")
    return missing and self._is_due(self.inputs.plan.eval_every)

  def _evaluate(self) -> None:
    self.report.settle()
    with self.report.pause("evaluation"):
      values = self._evaluated()
    self.report.evaluation(self.step, values)

  def _evaluated(self) -> dict[str, float]:
    """Everything that the config wants evaluated, named as in metrics.jsonl."""
    config, mesh, pulse = self.inputs.config, self.mesh, self._pulse
    model, params = self.trainer.inference, self.state.eval_params
    if config.report and self.step == self.inputs.plan.total:
      self.shown = self._show()
      values = self.shown.metrics
    else:
      batches = input_pipeline.eval_batches(self.inputs.eval_split, config)
      values = evaluate.evaluate(model, params, batches, mesh, pulse)
    named = {f"eval/{k}": v for k, v in values.items()}
    if self.inputs.fewshot_task is not None:

      def extract(split: input_pipeline.Split) -> np.ndarray:
        batches = input_pipeline.eval_batches(split, config)
        return evaluate.features(model, params, batches, mesh, pulse)

      for shots, draws in self.inputs.fewshot_task.accuracies(extract).items():
        named[f"fewshot/{shots}shot"] = float(np.mean(draws))
    return named

  def _blame(self, error: reporter.NotFinite) -> str:
    records = input_pipeline.train_records(
      self.inputs.train_split, self.inputs.config, error.step
    )
    return nonfinite.describe(self.path, error, self.inputs.config, records)

  def _tell_skipped(self, error: reporter.NotFinite) -> None:
    self.report.terminal.say(f"{error}: skipped. {self._blame(error)}")


def _say(sentence: str) -> None:
  if jax.process_index() == 0:
    stop.say(sentence)


def main(args: argparse.Namespace) -> int:
  """Trains as the command line says; returns the exit code."""
  return cli.run(lambda args: cli.train(args, train), args)


if __name__ == "__main__":
  sys.exit(main(_ARGS))  # pyright: ignore[reportPossiblyUnboundVariable]
