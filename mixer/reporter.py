"""What a running training reports: losses one step late, NaNs, a profile."""

import contextlib
import math
import pathlib
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from mixer import config as config_lib
from mixer import durations, errors, files, hardware, loader, metrics, stop
from mixer import model as model_lib
from mixer import workdir as workdir_lib
from mixer.errors import UserError

Span = tuple[int, int]  # The first and the last of some updates.
# What a run's wall time goes into. `step` is all that is not something else:
# the loop waits for the devices.
KINDS = {
  "start": "start",
  "compile": "first update, with compilation",
  "data": "waiting for data",
  "step": "updates",
  "evaluation": "evaluation",
  "saving": "saving, as far as updates waited for it",
  "lost": "lost to restarts",
}


class NotFinite(UserError):
  """Loss or gradient became NaN or infinite."""


class Goodput:
  """Seconds of wall time by kind, over all starts of a run, by its records."""

  def __init__(self, began: float, writer: metrics.Writer):
    """Goes on from the records; those dropped were made in vain."""
    before = _newest(writer.records)
    spent = _newest([*writer.records, *writer.dropped])
    lost = sum(spent.values()) - sum(before.values())
    self._seconds = dict.fromkeys(KINDS, 0.0) | before
    self._seconds["lost"] += max(0.0, lost)
    self._open, self._since = ["start"], began

  def begin(self) -> None:
    """The start is over; what is nothing else counts as updates from now."""
    self.seconds()
    self._open[0] = "step"

  @contextlib.contextmanager
  def spend(self, kind: str) -> Iterator[None]:
    """What happens inside counts as of that kind, unless of another inside."""
    self.seconds()
    self._open.append(kind)
    try:
      yield
    finally:
      self.seconds()
      self._open.pop()

  def seconds(self) -> dict[str, float]:
    """By kind, up to now."""
    now = time.monotonic()
    self._seconds[self._open[-1]] += now - self._since
    self._since = now
    return dict(self._seconds)

  def record(self) -> dict[str, float]:
    """The same, named as in metrics.jsonl."""
    return {f"goodput/{k}": round(v, 3) for k, v in self.seconds().items()}

  def table(self) -> str:
    """For people: seconds and shares, the largest first."""
    seconds = sorted(self.seconds().items(), key=lambda item: -item[1])
    total = sum(value for _, value in seconds)
    lines = [f"{'seconds':>12}  share  spent on"]
    for kind, value in seconds:
      if value:
        lines.append(f"{value:12.1f}  {value / total:5.1%}  {KINDS[kind]}")
    return "\n".join([*lines, f"{total:12.1f}         in all"])


def _newest(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The seconds by kind in the last record that has them."""
  for record in reversed(records):
    if "goodput/start" in record:
      return {kind: record[f"goodput/{kind}"] for kind in KINDS}
  return {}


class Reporter:
  """Reads the metrics of an update after the next one has been started.

  So the device always has work. `settle` reads what is left: before the state
  is saved or evaluated, so that neither ever happens to a broken one. `loader`
  is that whose timing is reported.
  """

  def __init__(
    self,
    workdir: epath.Path,
    inputs: Any,
    model: Any,
    start_step: int,
    began: float,
    lines: int = 0,
  ):
    """Opens the files; `lines` of metrics the checkpoint knows of."""
    self.writer = metrics.Writer(workdir, start_step, lines)
    self.goodput = Goodput(began, self.writer)
    self.loader: loader.Loader | None = None
    self.workdir, self._inputs = workdir, inputs
    self._config, self._plan = inputs.config, inputs.plan
    self._live, self._drawn = sys.stdout.isatty(), -math.inf  # The live line.
    self._flop = model_lib.update_flop(model, self._config)  # An image.
    self._start, self._skipped = start_step, 0
    # Where speed was measured last: the step, and seconds of training.
    self._measured, self._speed = (start_step, 0.0), dict[str, float]()
    self._pending: tuple[int, int, Mapping[str, jax.Array]] | None = None
    self.say(self.writer.damage)

  def begin(self) -> None:
    """The start is over."""
    if project := self._config.log.wandb:
      config = config_lib.to_json(self._config)
      self.writer.log_to_wandb(project, config)
    self.goodput.begin()

  def say(self, text: str) -> None:
    """A line that stays, in place of the live one."""
    if text and jax.process_index() == 0:
      stop.say(text if self._drawn < 0 else f"\r\x1b[K{text}")
      self._drawn = -math.inf

  def update(
    self, step: int, values: Mapping[str, jax.Array], count: int = 1
  ) -> None:
    """Takes metrics, scalars or `[count]`, up to `step`; reads those before."""
    self.settle()
    self._pending = (step, count, values)

  def settle(self) -> None:
    """Reads what hasn't been read; NotFinite as `nonfinite` wants it."""
    if self._pending is None:
      return
    (last, count, pending), self._pending = self._pending, None
    found = jax.device_get(pending)
    for i in range(count):
      step, first = last - count + 1 + i, last - count == self._start
      values = {
        f"train/{k}": (v if count == 1 else v[i]).item()
        for k, v in found.items()
      }
      due = durations.is_due(self._plan.log_every, step)
      logged = due or step in (1, self._plan.total)
      if logged or first:
        self._measure(step)
      if first:  # The first updates include compilation.
        self._speed = {}
      if logged:
        record = values | self._speed | self.goodput.record()
        self.writer.write(step, record)
      self._show(step, values | self._speed, logged)
      self._check_finite(step, values)

  def _measure(self, step: int) -> None:
    """Speed of training alone, since it was measured last."""
    spent = self.goodput.seconds()
    training = spent["data"] + spent["step"]
    (before, then), self._measured = self._measured, (step, training)
    seconds = max(training - then, 1e-9)
    rate = self._config.batch_size * max(step - before, 1) / seconds
    self._speed = {
      "train/images_per_second": rate,
      "train/seconds_per_step": self._config.batch_size / rate,
    }
    if self.loader:
      timing = self.loader.timing()
      # Images of this host alone, and the share of the time that it waited.
      self._speed["data/images_per_second"] = timing.images_per_second
      self._speed["data/wait"] = timing.waited / seconds
    if peak := hardware.peak(jax.devices()[0].device_kind):
      mfu = rate * self._flop / peak / jax.device_count()
      self._speed["train/mfu"] = mfu

  def _show(self, step: int, values: dict[str, float], logged: bool) -> None:
    """A live line on a terminal; to a file only what is logged."""
    now, total = time.monotonic(), self._plan.total
    live = self._live and now - self._drawn >= 0.1
    if jax.process_index() or not (logged or live):
      return
    line = f"step {step:{len(str(total))}d}/{total}"
    line += f"  loss {values['train/loss']:.4f}"
    if speed := values.get("train/images_per_second"):
      line += f"  {speed:,.0f} images/s"
      if "train/mfu" in values:
        line += f"  MFU {values['train/mfu']:.1%}"
      if values.get("data/wait", 0) >= 0.05:
        line += f"  waits for data {values['data/wait']:.0%}"
      left = (total - step) * values["train/seconds_per_step"]
      line += f"  {metrics.duration(left)} left"
    if self._live:
      stop.say(f"\r\x1b[K{line}", end="")
      self._drawn = now
    else:
      stop.say(line)

  def _check_finite(self, step: int, values: dict[str, float]) -> None:
    """Raises NotFinite at a broken update; or says so, where it was skipped."""
    names = ("train/loss", "train/grad_norm")
    name = next((n for n in names if not math.isfinite(values[n])), "")
    self._skipped = self._skipped + 1 if values.get("train/skipped") else 0
    if not name:
      return
    what = f"{name} is {values[name]} at step {step}"
    records, o = self._blame(step, what), self._config.optimizer
    limit = self._config.nonfinite_limit
    if 0 < self._skipped <= limit:
      self.say(f"{what}: skipped. {records}")
      return
    skipped = f" The {limit} updates before it were skipped."
    skipped *= self._skipped > 0
    raise NotFinite(
      f"{what}: training stops there.{skipped} All checkpoints are from before "
      f"it. {records}\nIn a new --workdir, with --config.init_from="
      f"{self.workdir} for its weights: lower optimizer.learning_rate "
      f"({o.learning_rate:g}), clip gradients harder by optimizer.clip_norm "
      f"({o.clip_norm:g}; 0: not at all), lengthen schedule.warmup, or try "
      "model.dtype=float32. With the same command: leave such updates out by "
      "--config.nonfinite=skip.",
      lines=True,
    )

  def _blame(self, step: int, what: str) -> str:
    """Writes WORKDIR/nonfinite/STEP.json; returns sentences about it."""
    path = self.workdir / "nonfinite" / f"{step}.json"
    command = (
      f"python -m mixer replay {shlex.quote(str(self.workdir))} --step={step}"
    )
    data, records = self._config.data, self._inputs.train_records(step)
    kept = f"all {len(records)} in {path}"
    if jax.process_index() == 0:
      content = {"step": step, "what": what, "data": data.name}
      content |= {"split": data.train_split, "records": records}
      try:
        with files.writing(path):
          workdir_lib.make(path.parent)
          workdir_lib.write_json(path, content | {"replay": command})
      except UserError as e:
        kept = str(e)
    return (
      f"Its batch had records {', '.join(map(str, records[:6]))}, ... of "
      f"{data.name}, {data.train_split} ({kept}). Look where it breaks: "
      f"{command}"
    )

  def evaluation(self, step: int, values: dict[str, float]) -> None:
    """Writes an evaluation's record and line."""
    self.writer.write(step, values)
    self.writer.flush()
    hidden = {"eval/examples", "eval/imbalance", "eval/macro_f1"}
    if values.get("eval/imbalance", 1.0) <= 1.5:
      hidden.add("eval/balanced_accuracy")
    shown = [f"{k} {v:.4f}" for k, v in values.items() if k not in hidden]
    self.say(f"step {step}: " + "  ".join(shown))

  def scores(self) -> dict[int, float]:
    """As of `metrics.scores`, for the config's `keep_best`."""
    return metrics.scores(self.writer.records, self._config.keep_best)

  def account(self, step: int) -> None:
    """Writes where the time went, as a record; and the table for people."""
    # An error of writing was raised before: that one is to be shown.
    with contextlib.suppress(UserError):
      self.writer.write(step, self.goodput.record())
      self.writer.flush()
    self.say(self.goodput.table())

  def close(self) -> None:
    """Goes below the live line; closes the files."""
    if self._drawn >= 0:
      stop.say("")
    self.writer.close()


class Profile:
  """Traces updates, in whole dispatches, into WORKDIR/profile."""

  def __init__(self, report: Reporter, span: Span | None, done: int):
    """Of the run that `report` is of, which has `done` updates."""
    self._report, self._span = report, span
    self._files: tempfile.TemporaryDirectory[str] | None = None
    if span and span[1] <= done:
      report.say(f"no profile: update {span[1]} is done, as are {done} in all.")
      self._span = None

  def before(self, last: int) -> None:
    """Begins, if the first of them is among the next updates, up to `last`."""
    if self._span and not self._files and last >= self._span[0]:
      self._files = tempfile.TemporaryDirectory(prefix="mixer-")
      jax.profiler.start_trace(self._files.name)

  def after(self, step: int, values: Any) -> None:
    """Ends, if `step`, which gave these metrics, was the last of them."""
    if self._span and step >= self._span[1]:
      jax.block_until_ready(values)
      self.close()

  def close(self) -> None:
    """Ends a trace that has begun; says how to look at it."""
    span, self._span = self._span, None
    if not span or not self._files:
      return
    # One session of all hosts, as the tools want it.
    where = self._report.workdir / "profile"
    folder = where / "plugins" / "profile" / "updates_{}_{}".format(*span)
    several = f"{jax.process_index()}-" * (jax.process_count() > 1)
    try:
      with self._report.goodput.spend("saving"), self._files as traced:
        jax.profiler.stop_trace()
        workdir_lib.make(folder)
        for path in pathlib.Path(traced).rglob("*.xplane.pb"):
          with files.atomic_write(folder / f"{several}{path.name}") as f:
            f.write(path.read_bytes())
    except Exception as e:  # The run goes on.
      return self._report.say(f"no profile: {errors.first_line(e)}.")
    command = f"xprof --logdir={shlex.quote(str(where))}"
    self._report.say(f"profile: `{command}` shows it (pip install xprof).")


def header(inputs: Any, params: Any) -> str:
  """The lines that a run starts with; `params` may be abstract."""
  config, train, test = inputs.config, inputs.train_split, inputs.eval_split
  count = sum(x.size for x in jax.tree.leaves(params))
  size = " x ".join(map(str, dict.fromkeys(config_lib.image_size(config))))
  return (
    f"Mixer {config.model.variant} at {size} px, {len(train.class_names)} "
    f"classes, {count / 1e6:,.2f} M parameters, {config.model.dtype}\n"
    f"{config.data.name}: {len(train):,} images to train on "
    f"({train.expression}), {len(test):,} to evaluate on ({test.expression})\n"
    f"batch {config.batch_size} on {jax.device_count()} x "
    f"{jax.devices()[0].device_kind}"
  )
