"""The formulas: against compiled code, closed forms, and laws."""

import dataclasses

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import mixer_b16_i1k, mixer_jft, smoke
from mixer import durations, sharding, train_step
from mixer.planning import compiling, formulas, hardware, plan_report


def predict(config, name="v5e-64", examples=1_281_167, classes=1000, **more):
  target = hardware.parse(name)
  return formulas.predict(config, target, examples, classes, **more)


def compiled(config):
  """The training step for eight virtual devices."""
  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
  trainer = train_step.Trainer(config, durations.plan(config, 1400), 10, mesh)
  batch = compiling.abstract_batch(config, mesh)
  return trainer.train_step.lower(trainer.abstract, batch).compile()


def test_against_the_compiled_step():
  config = smoke.get_config()
  config.sharding.zero1, config.loss.mixup = False, 0.0
  step = compiled(config)
  predicted = predict(config, "v5e-8", 1400, 10)
  memory = step.memory_analysis()
  # The compiler rounds every argument up; counters and biases are tiny.
  assert predicted.arguments == pytest.approx(
    memory.argument_size_in_bytes, rel=0.02
  )
  assert predicted.permuted == 0


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4])
def test_arguments_that_are_split(fsdp):
  config = smoke.get_config()
  config.sharding.min_size, config.sharding.fsdp = 256, fsdp
  memory = compiled(config).memory_analysis()
  assert predict(config, "v5e-8", 1400, 10).arguments == pytest.approx(
    memory.argument_size_in_bytes, rel=0.02
  )


def test_numbers_of_b16_by_hand():
  config = mixer_b16_i1k.get_config()
  config.sharding.zero1 = False
  p = 59_880_472
  found = predict(config)
  assert found.parameters == p
  assert found.weights == 4 * p
  assert found.optimizer == pytest.approx(8 * p, abs=16)
  assert found.batch == 64 * (3 * 224 * 224 + 4)
  assert found.gradients == 4 * p
  assert found.reduced == round(2 * 63 / 64 * 4 * p)
  assert found.permuted == 3 * 224 * 224 + 4
  assert found.flop == pytest.approx(75.38e9 * 4096, rel=1e-3)
  # 12 blocks of 196 tokens, 768 channels, MLPs of 384 and 3072.
  narrow, wide = 196 * 768, 384 * 768 + 196 * 3072
  block = 2 * (2 * narrow + wide)
  assert found.activations == 64 * (12 * block + 6 * 224 * 224 * 3 + 12 * 1000)
  assert found.steps == 93_835
  seconds = found.flop / (64 * 197e12 * 0.7)
  assert found.seconds["matmuls"] == pytest.approx(seconds)
  assert found.seconds["links"] == pytest.approx(
    2 * 63 / 64 * 4 * p / 100e9 / 0.8
  )
  assert found.seconds["input"] == pytest.approx(4096 / (16 * 56 * 1000))
  hours = found.steps * max(found.seconds.values()) / 3600
  assert found.chip_hours == pytest.approx(64 * hours)
  assert found.limit == 2**34 - 2**28


def test_zero1_shrinks_with_the_slice():
  config = mixer_b16_i1k.get_config()
  sizes = [predict(config, f"v5e-{n}").optimizer for n in (8, 64, 256)]
  whole = predict(config, "v5e-1").optimizer
  assert sizes[0] < whole / 7 and sizes[1] < whole / 50
  assert sizes[2] < whole / 20
  config.sharding.zero1 = False
  assert predict(config, "v5e-256").optimizer == whole


def test_what_costs_memory_and_what_saves_it():
  config = mixer_b16_i1k.get_config()
  before = predict(config)
  config.model.remat = "block"
  remat = predict(config)
  assert remat.activations < before.activations / 3
  assert remat.traffic > before.traffic
  config.model.remat, config.optimizer.accumulate = "none", 4
  parts = predict(config)
  assert parts.activations == pytest.approx(before.activations / 4)
  assert parts.gradients == 2 * before.gradients
  config.optimizer.accumulate, config.optimizer.sam_rho = 1, 0.6
  sam = predict(config)
  assert sam.flop == 2 * before.flop
  # Gradients twice, and perturbed weights are gathered as new ones are.
  assert sam.reduced == pytest.approx(2 * before.reduced)
  config.optimizer.sam_rho, config.sharding.reduce_dtype = 0.0, "bfloat16"
  assert predict(config).reduced == pytest.approx(0.75 * before.reduced)


def test_libtpu_sums_on_many_chips():
  config = mixer_b16_i1k.get_config()
  found = {
    n: predict(config, n).reduced for n in ("v5e-8", "v5e-64", "h100-64")
  }
  config.sharding.zero1 = False
  plain = {n: predict(config, n).reduced for n in found}
  ratios = {n: found[n] / plain[n] for n in found}
  assert ratios == pytest.approx({"v5e-8": 1, "v5e-64": 2, "h100-64": 1})


def test_what_compilers_for_gpus_do():
  """They scatter no sums of parts, and recompute for a single GPU only."""
  config = mixer_b16_i1k.get_config()
  gpu, tpu = predict(config, "h100-8"), predict(config, "v5e-8")
  config.optimizer.accumulate = 4
  assert predict(config, "h100-8").reduced == pytest.approx(1.5 * gpu.reduced)
  assert predict(config, "v5e-8").reduced == tpu.reduced
  config.optimizer.accumulate, config.model.remat = 1, "block"
  assert predict(config, "h100-8").activations == gpu.activations
  config.batch_size = 512
  one = predict(config, "h100-1").activations
  assert one < gpu.activations / 4


def test_fsdp_splits_the_weights():
  config = mixer_b16_i1k.get_config()
  before = predict(config, "h100-64")
  config.sharding.fsdp = 8
  after = predict(config, "h100-64")
  assert after.weights < before.weights / 7
  assert after.reduced > before.reduced


@settings(max_examples=5, deadline=None)
@given(
  st.sampled_from(["S/32", "B/16"]),
  st.sampled_from(["v5e-8", "v5e-64", "v6e-16", "v5p-64", "h100-8", "h100-16"]),
  st.sampled_from([1, 2, 4]),
)
def test_laws(variant, name, factor):
  config = mixer_jft.get_config(variant)
  one = predict(config, name, 10**8)
  config.batch_size *= factor
  more = predict(config, name, 10**8)
  assert more.flop == factor * one.flop
  assert more.activations == factor * one.activations
  assert (more.weights, more.optimizer, more.reduced) == (
    one.weights,
    one.optimizer,
    one.reduced,
  )
  assert more.steps == pytest.approx(one.steps / factor, abs=1)
  for plan in (one, more):
    assert plan.step_seconds == max(plan.seconds.values())
    assert 0 < plan.mfu <= formulas.MATMUL_SHARE + 1e-9
    images = plan.host_images * plan.target.num_hosts
    assert images * plan.step_seconds == pytest.approx(plan.batch_size)
    assert plan.fits == (plan.memory <= plan.limit)


def test_cores_of_the_hosts():
  config = mixer_b16_i1k.get_config()
  few = predict(config, cores=1, core_rate=500)
  assert few.bottleneck == "input"
  assert few.step_seconds == pytest.approx(4096 / 16 / 500)
  assert few.host_cores == pytest.approx(1)
  assert few.mfu < predict(config).mfu


def test_a_linear_probe_sums_the_head_alone():
  config = mixer_b16_i1k.get_config()
  config.optimizer.train, config.sharding.zero1 = "head", False
  found = predict(config)
  head = 768 * 1000 + 1000
  assert found.gradients == 4 * head
  assert found.reduced == round(2 * 63 / 64 * 4 * head)


def test_no_device_is_asked_for():
  """There are eight here, and none of the kind."""
  assert jax.device_count() == 8
  assert (
    predict(mixer_b16_i1k.get_config(), "v5e-256").target.num_devices == 256
  )


# In words.


def test_the_report():
  plan = predict(mixer_b16_i1k.get_config())
  found = plan_report.sections(plan, "as given", 1.5)
  lines = {line.name: line for lines in found.values() for line in lines}
  assert lines["cost"].value == pytest.approx(1.5 * plan.chip_hours)
  keys = {line.key for line in lines.values()} - {""}
  assert keys == set(formulas.FORMULAS)
  assert "cost" not in {
    line.name
    for rows in plan_report.sections(plan, "", None).values()
    for line in rows
  }
  text = plan_report.text(found, with_formulas=True)
  assert "59,880,472  [parameters]" in text
  assert all(formula in text for formula in formulas.FORMULAS.values())


@pytest.mark.parametrize(
  ("value", "unit", "text"),
  [
    (0.0123, "s", "12.3 ms"),
    (2.5, "s", "2.50 s"),
    (3 * 2**30, "B", "3.00 GiB"),
    (3 * 2**20, "B", "3.00 MiB"),
    (2.97e20, "FLOP", "2.97e20 FLOP"),
    (0.01, "d", "14.4 minutes"),
    (1.5, "d", "36.0 h"),
    (10.26, "d", "10.3 days"),
    (1234.5, "$", "$1,234"),
    (4096, "images", "4,096 images"),
    (12.34, "cores", "12.3 cores"),
    (2.5e6, "B/s", "2 MB/s"),
  ],
)
def test_numbers_with_units(value, unit, text):
  assert plan_report.number(value, unit) == text


def test_what_mends_too_little_memory():
  config = mixer_b16_i1k.get_config()
  config.batch_size = 8192
  plan = predict(config, "v5e-8")
  assert not plan.fits
  first, second, *_ = plan_report.verdict(plan, config)
  assert first.startswith("Predicted not to fit: ")
  assert second.startswith("--config.model.remat=block would take ")
  assert config.model.remat == "none"
  config.batch_size = 2**17
  plan = predict(config, "v5e-8", 10**8)
  _, second, *_ = plan_report.verdict(plan, config)
  assert "--config.model.remat=block --config.optimizer.accumulate=" in second


def test_when_nothing_mends_it():
  config = mixer_jft.get_config("S/32")
  config.batch_size = 8
  small = hardware.parse("v5e-8")
  chip = dataclasses.replace(small.chip, memory=2**28 + 2**26)
  target = dataclasses.replace(small, chip=chip)
  plan = formulas.predict(config, target, 10**8, 1000)
  assert "sharding.fsdp=N" in plan_report.verdict(plan, config)[1]


@pytest.mark.parametrize("name", ["matmuls", "memory", "links", "input"])
def test_every_bottleneck_has_its_sentence(name):
  plan = predict(mixer_b16_i1k.get_config())
  slow = dataclasses.replace(plan, seconds=plan.seconds | {name: 10.0})
  sentences = plan_report.verdict(slow, mixer_b16_i1k.get_config())
  assert any(s.startswith(f"The bottleneck is {name}: ") for s in sentences)


def test_a_host_without_enough_cores():
  plan = predict(mixer_b16_i1k.get_config())
  slow = dataclasses.replace(plan, host_cores=1000.0)
  sentences = plan_report.verdict(slow, mixer_b16_i1k.get_config())
  assert "Each host would have to have 1000 cores to keep up" in sentences[2]
