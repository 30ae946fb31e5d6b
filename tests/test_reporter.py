"""What a running training tells, and when it looks."""

import math
import time
import types
from typing import Any

import jax
import numpy as np
import pytest

from configs import smoke
from mixer import durations, metrics, reporter
from mixer import model as model_lib
from mixer.planning import hardware

_METRICS = ("loss", "learning_rate", "grad_norm", "param_norm")


class Clock:
  """In place of `time.perf_counter`."""

  def __init__(self):
    self.now = 100.0

  def __call__(self) -> float:
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(reporter.time, "perf_counter", clock)
  return clock


class Late:
  """A metric on a device: notes when it is read."""

  def __init__(self, value: float, read: list[int], step: int):
    self._value, self._read, self._step = value, read, step

  def item(self) -> float:
    if self._step not in self._read:
      self._read.append(self._step)
    return self._value


class Run:
  """A reporter with steps that have no device behind them."""

  def __init__(self, workdir, start_step=0, **changes):
    config = smoke.get_config()
    with config.unlocked():
      for key, value in changes.items():
        config[key] = value
    self.config, self.workdir = config, workdir
    model = model_lib.from_config(config, 10)
    self.model, self.read = model, []
    trainer: Any = types.SimpleNamespace(model=model)
    plan = durations.plan(config, 1400)
    self.report = reporter.Reporter(
      workdir, config, plan, trainer, start_step, time.monotonic()
    )

  def update(self, step: int, **values: float) -> None:
    values = dict.fromkeys(_METRICS, 1.0) | values
    late: Any = {k: Late(v, self.read, step) for k, v in values.items()}
    self.report.update(step, late)

  def records(self) -> dict[int, dict]:
    """Without what `goodput` adds, which has tests of its own."""
    return {
      r["step"]: {k: v for k, v in r.items() if not k.startswith("goodput/")}
      for r in metrics.read(self.workdir)
    }


@pytest.fixture
def run(tmp_path, clock):
  """`run(**changes)` -> a `Run`; closed at the end."""
  runs = []

  def make(start_step=0, **changes) -> Run:
    runs.append(Run(tmp_path, start_step, **changes))
    return runs[-1]

  yield make
  for each in runs:
    each.report.close()


def test_metrics_are_read_one_update_late(run):
  r = run()
  r.update(1)
  assert r.read == []
  r.update(2)
  assert r.read == [1]
  r.update(3)
  assert r.read == [1, 2]
  r.report.settle()
  assert r.read == [1, 2, 3]
  r.report.settle()
  assert r.read == [1, 2, 3]
  r.update(4)
  assert r.read == [1, 2, 3]


def test_real_metrics_are_read_too(run):
  r = run()
  values = {k: jax.numpy.float32(i + 0.5) for i, k in enumerate(_METRICS)}
  r.report.update(1, values)
  r.report.settle()
  assert r.records()[1] == {
    "step": 1,
    "train/loss": 0.5,
    "train/learning_rate": 1.5,
    "train/grad_norm": 2.5,
    "train/param_norm": 3.5,
  }


def test_of_several_updates_each_is_told(run):
  r = run(total="25 steps", log_every="10 steps")
  for last in (5, 10, 15, 20, 25):
    loss = np.arange(last - 4, last + 1, dtype=np.float32)
    values = {k: np.ones(5, np.float32) for k in _METRICS} | {"loss": loss}
    r.report.update(last, values, 5)
  assert [*r.records()] == [1, 10, 20]
  r.report.settle()
  found = {s: v["train/loss"] for s, v in r.records().items()}
  assert found == {1: 1.0, 10: 10.0, 20: 20.0, 25: 25.0}
  broken = {k: np.ones(5, np.float32) for k in _METRICS}
  broken["loss"][2] = np.nan
  r.report.update(30, broken, 5)
  with pytest.raises(reporter.NotFinite, match="28"):
    r.report.settle()


def test_the_first_the_last_and_every_nth_are_logged(run):
  r = run(total="25 steps", log_every="10 steps")
  for step in range(1, 26):
    r.update(step, loss=float(step))
  r.report.settle()
  assert {s: v["train/loss"] for s, v in r.records().items()} == {
    1: 1.0,
    10: 10.0,
    20: 20.0,
    25: 25.0,
  }


def test_a_run_that_goes_on_logs_as_if_it_had_not_stopped(run):
  r = run(total="25 steps", log_every="10 steps")
  for step in range(1, 14):
    r.update(step)
  r.report.settle()
  r.report.close()
  r = run(start_step=8, total="25 steps", log_every="10 steps")
  assert [*r.records()] == [1]
  for step in range(9, 26):
    r.update(step)
  r.report.settle()
  assert [*r.records()] == [1, 10, 20, 25]


def test_speed(run, clock):
  r = run(total="30 steps", log_every="10 steps", batch_size=64)
  for step in range(1, 31):
    # Compiling, then 0.25, then 0.125 seconds a step.
    clock.now += 60 if step == 2 else 0.25 if step <= 11 else 0.125
    r.update(step)
  clock.now += 0.125
  r.report.settle()
  got = r.records()
  assert not any("second" in k for k in got[1])  # It includes compilation.
  # Update N is read when update N + 1 is given: 9 steps from 1 to 10.
  assert got[10]["train/seconds_per_step"] == pytest.approx(0.25)
  assert got[10]["train/images_per_second"] == pytest.approx(64 / 0.25)
  assert got[20]["train/seconds_per_step"] == pytest.approx(0.125)
  assert got[30]["train/images_per_second"] == pytest.approx(64 / 0.125)


def test_pauses_do_not_count_as_training(run, clock):
  r = run(log_every="10 steps", batch_size=64)
  for step in range(1, 12):
    clock.now += 0.25
    if step in (5, 8):
      with r.report.pause("saving"):
        clock.now += 1000
    r.update(step)
  assert r.records()[10]["train/seconds_per_step"] == pytest.approx(0.25)


def test_a_pause_that_fails_does_not_count_either(run, clock):
  r = run(log_every="10 steps")
  for step in range(1, 12):
    clock.now += 0.25
    if step == 5:
      with pytest.raises(ValueError), r.report.pause("saving"):
        clock.now += 1000
        raise ValueError
    r.update(step)
  assert r.records()[10]["train/seconds_per_step"] == pytest.approx(0.25)


def test_a_pause_counts_for_its_own_interval_alone(run, clock):
  r = run(total="30 steps", log_every="10 steps")
  for step in range(1, 22):
    clock.now += 0.25
    if step == 5:
      with r.report.pause("saving"):
        clock.now += 1000
    r.update(step)
  assert r.records()[20]["train/seconds_per_step"] == pytest.approx(0.25)


def test_a_clock_that_stands_still_divides_by_nothing(run):
  r = run(log_every="10 steps")
  for step in range(1, 12):
    r.update(step)
  assert 0 < r.records()[10]["train/images_per_second"] < math.inf


def test_mfu_needs_a_known_peak(run, clock):
  r = run(log_every="10 steps")  # On a CPU.
  for step in range(1, 12):
    clock.now += 0.25
    r.update(step)
  assert "train/images_per_second" in r.records()[10]
  assert "train/mfu" not in r.records()[10]


def test_mfu(run, clock, monkeypatch):
  device = types.SimpleNamespace(device_kind="NVIDIA A100-SXM4-80GB")
  monkeypatch.setattr(jax, "devices", lambda: [device])
  monkeypatch.setattr(jax, "device_count", lambda: 4)
  r = run(log_every="10 steps", batch_size=64)
  for step in range(1, 12):
    clock.now += 0.25
    r.update(step)
  done = 64 / 0.25 * model_lib.training_flop(r.model, r.config.image_size)
  assert r.records()[10]["train/mfu"] == pytest.approx(done / (4 * 312e12))


@pytest.mark.parametrize(
  ("kind", "peak"),
  [
    ("cpu", None),
    ("NVIDIA GeForce RTX 4090", None),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("Tesla V100-SXM2-16GB", 125e12),
    ("NVIDIA L4", 121e12),
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
  ],
)
def test_peaks(kind, peak):
  assert hardware.peak(kind) == peak


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_not_finite_names_the_step(run, name, value):
  r = run()
  for step in range(1, 7):
    r.update(step)
  r.update(7, **{name: value})
  with pytest.raises(reporter.NotFinite) as caught:
    r.update(8)
  error = caught.value
  assert (error.step, error.name) == (7, f"train/{name}")
  assert str(error) == f"train/{name} is {value} at step 7"
  # What followed from it is forgotten: nothing more is to be read.
  r.report.settle()
  assert r.read == [1, 2, 3, 4, 5, 6, 7]


def test_not_finite_comes_up_before_a_save(run):
  r = run()
  r.update(1, loss=math.nan)
  with pytest.raises(reporter.NotFinite, match="at step 1"):
    r.report.settle()
  # The record tells of it, in JSON's terms.
  assert r.records()[1]["train/loss"] is None


def test_other_metrics_may_be_infinite(run):
  r = run()
  r.update(1, param_norm=math.inf)
  r.report.settle()
  assert r.records()[1]["train/param_norm"] is None


def test_an_evaluation_is_a_record_and_a_line(run, capsys):
  r = run()
  values = {"eval/accuracy": 0.25, "eval/loss": 1.5, "eval/examples": 397}
  r.report.evaluation(30, values)
  assert metrics.read(r.workdir) == [{"step": 30} | values]
  assert capsys.readouterr().out == (
    "step 30: eval/accuracy 0.2500  eval/loss 1.5000\n"
  )


def test_where_the_time_went_is_written_and_told(run, capsys):
  r = run(log_every="1 steps")
  r.report.goodput.begin()
  r.update(1)
  with r.report.pause("evaluation"):
    pass
  r.report.settle()
  r.report.account(1)
  found = metrics.read(r.workdir)
  assert [set(x) >= {"goodput/step", "goodput/lost"} for x in found] == [
    True
  ] * 2
  assert "in all" in capsys.readouterr().out


def test_skipped_updates_are_told_up_to_the_limit(run):
  r = run(log_every="1 steps", nonfinite_limit=2)
  told = []
  r.report.on_skipped = told.append
  nan = {"loss": math.nan, "skipped": 1.0}
  sound = {"loss": 1.0, "skipped": 0.0}
  for step, values in enumerate([nan, nan, sound, nan, nan, sound], 1):
    r.update(step, **values)
  r.report.settle()
  assert [e.step for e in told] == [1, 2, 4, 5]
  assert [e.skipped for e in told] == [1, 2, 1, 2]
  for step in (7, 8, 9):
    r.update(step, **nan)
  with pytest.raises(reporter.NotFinite) as caught:
    r.report.settle()
  assert (caught.value.step, caught.value.skipped) == (9, 3)


def test_scores_rank_losses_from_the_lowest(run):
  for keep_best, expected, best in (
    ("eval/accuracy", {3: 0.5, 6: 0.6, 9: 0.6}, [3, 6]),
    ("eval/loss", {3: -2.0, 6: -1.5}, [3, 6]),
    ("", {}, []),
  ):
    r = run(keep_best=keep_best)
    found = []
    for step, accuracy, loss in (
      (3, 0.5, 2.0),
      (6, 0.6, 1.5),
      (9, 0.6, math.nan),
    ):
      values = {"eval/accuracy": accuracy, "eval/loss": loss}
      r.report.evaluation(step, values)
      found += [step] * r.report.is_best(step)
    assert r.report.scores() == expected
    assert found == best
