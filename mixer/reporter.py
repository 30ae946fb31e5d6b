"""What a running training tells: losses one step late, speed, evaluations."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import jax
from etils import epath

from mixer import config as config_lib
from mixer import durations, goodput, loader, metrics, train_step
from mixer.datasets import split as split_lib
from mixer.errors import UserError
from mixer.planning import hardware


class NotFinite(Exception):
  """A metric became NaN or infinite.

  Attributes:
    step: the update in which it did.
    name: of the metric.
    value: its value.
    skipped: how many updates in a row were skipped for it, with this one.
  """

  def __init__(self, step: int, name: str, value: float, skipped: int = 0):
    super().__init__(f"{name} is {value} at step {step}")
    self.step, self.name, self.value = step, name, value
    self.skipped = skipped


class Stopwatch:
  """Time of training alone, since it was last read."""

  def __init__(self):
    self._start = time.perf_counter()
    self._step = 0
    self._paused = 0.0

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """What happens inside (evaluating, saving) doesn't count."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self._paused += time.perf_counter() - start

  def restart(self, step: int) -> None:
    """Starts anew, `step` updates done."""
    self._start, self._step, self._paused = time.perf_counter(), step, 0.0

  def steps(self, step: int) -> int:
    """Since it was restarted; at least 1."""
    return max(step - self._step, 1)

  def seconds_per_step(self, step: int) -> float:
    """Since it was restarted."""
    passed = time.perf_counter() - self._start - self._paused
    return max(passed, 1e-9) / self.steps(step)


class Reporter:
  """Reads the metrics of an update after the next one has been started.

  So the device always has work. `settle` reads what is left: before the state
  is saved or evaluated, so that neither ever happens to a broken one.

  Attributes:
    writer: of the records.
    terminal: for further lines.
    loader: whose timing is told; None for none.
    goodput: where the time went.
    on_skipped: called with what was not finite, when an update was skipped
      for it.
  """

  def __init__(
    self,
    workdir: epath.Path,
    config: config_lib.Config,
    plan: durations.Plan,
    trainer: train_step.Trainer,
    start_step: int,
    began: float,
    lines: int = 0,
  ):
    self.writer = metrics.Writer(workdir, start_step, lines)
    self.goodput = goodput.Goodput(
      began, self.writer.records, self.writer.dropped
    )
    self.on_skipped: Callable[[NotFinite], None] = lambda _: None
    self._keep_best = config.keep_best
    self._skip_limit = config.nonfinite_limit
    self._skipped = 0
    self.terminal = metrics.Terminal(plan.total)
    if self.writer.damage:
      self.terminal.say(self.writer.damage)
    self.loader: loader.Loader | None = None
    self._plan = plan
    self._batch_size = config.batch_size
    self._flops = train_step.update_flop(trainer.model, config)
    peak = hardware.peak(jax.devices()[0].device_kind)
    self._peak = peak and peak * jax.device_count()
    self._watch = Stopwatch()
    self._start = start_step
    self._pending: tuple[int, int, train_step.Metrics] | None = None
    self._speed: dict[str, float] = {}

  def update(
    self, step: int, values: train_step.Metrics, count: int = 1
  ) -> None:
    """Takes an update's metrics, still being computed; reads those before.

    Args:
      step: updates done.
      values: scalars; of several updates `[count]`.
      count: how many updates they are of; the last is `step`.

    Raises:
      NotFinite: in those before.
    """
    self.settle()
    self._pending = (step, count, values)

  def settle(self) -> None:
    """Reads what hasn't been read.

    Raises:
      NotFinite: loss or gradient.
    """
    if self._pending is None:
      return
    (last, count, pending), self._pending = self._pending, None
    found = jax.device_get(pending)
    before = last - count
    for i in range(count):
      values = {
        f"train/{k}": (v if count == 1 else v[i]).item()
        for k, v in found.items()
      }
      self._tell(before + 1 + i, values, before)

  def _tell(self, step: int, values: dict[str, float], before: int) -> None:
    """Tells of one update, of those after `before` that were sent together."""
    logged = step in (1, self._plan.total) or durations.is_due(
      self._plan.log_every, step
    )
    if before == self._start:
      self._watch.restart(step)  # The first updates include compilation.
      if self.loader:
        self.loader.timing()
    elif logged:
      self._measure(step)
    if logged:
      self.writer.write(step, values | self._speed | self.goodput.record())
    self.terminal.progress(step, values | self._speed, logged=logged)
    self._check_finite(step, values)

  def _check_finite(self, step: int, values: dict[str, float]) -> None:
    """Raises at a broken update; or tells, where it has been skipped."""
    broken = [
      name
      for name in ("train/loss", "train/grad_norm")
      if not math.isfinite(values[name])
    ]
    if not broken:
      self._skipped = 0
      return
    skipped = "train/skipped" in values
    self._skipped += skipped
    error = NotFinite(step, broken[0], values[broken[0]], self._skipped)
    if not skipped or self._skipped > self._skip_limit:
      raise error
    self.on_skipped(error)

  def _measure(self, step: int) -> None:
    steps = self._watch.steps(step)
    seconds = self._watch.seconds_per_step(step)
    self._watch.restart(step)
    rate = self._batch_size / seconds
    self._speed = {
      "train/images_per_second": rate,
      "train/seconds_per_step": seconds,
    }
    if self.loader:
      timing = self.loader.timing()
      # Images of this host alone, and the share of the time that it waited.
      self._speed["data/images_per_second"] = timing.images_per_second
      self._speed["data/wait"] = timing.waited / (seconds * steps)
    if self._peak:
      self._speed["train/mfu"] = rate * self._flops / self._peak

  @contextlib.contextmanager
  def pause(self, kind: str) -> Iterator[None]:
    """What happens inside is no training: goodput has it as of that kind."""
    with self._watch.pause(), self.goodput.spend(kind):
      yield

  def evaluation(self, step: int, values: dict[str, float]) -> None:
    """Writes an evaluation's record and line."""
    self.writer.write(step, values)
    self.writer.flush()
    shown = [f"{k} {v:.4f}" for k, v in values.items() if k != "eval/examples"]
    self.terminal.say(f"step {step}: " + "  ".join(shown))

  def scores(self) -> dict[int, float]:
    """As of `metrics.scores`, for the config's `keep_best`."""
    return metrics.scores(self.writer.records, self._keep_best)

  def is_best(self, step: int) -> bool:
    """Whether no earlier evaluation was as good; never without `keep_best`."""
    found = self.scores()
    now = found.pop(step, math.nan)
    return now > max(found.values(), default=-math.inf)

  def account(self, step: int) -> None:
    """Writes where the time went, as a record; and the table for people."""
    # What can't be written has been told of: that comes first.
    with contextlib.suppress(UserError):
      self.writer.write(step, self.goodput.record())
      self.writer.flush()
    self.terminal.say(self.goodput.table())

  def close(self) -> None:
    """Ends the live line, closes the files."""
    self.terminal.end()
    self.writer.close()


def describe(
  config: config_lib.Config,
  trainer: train_step.Trainer,
  train_split: split_lib.Split,
  eval_split: split_lib.Split,
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
    f"{config.data.name}: {len(train_split):,} images to train on "
    f"({train_split.expression}), {len(eval_split):,} to evaluate on "
    f"({eval_split.expression})\n"
    f"batch {config.batch_size} on {jax.device_count()} x {device.device_kind}"
  )
