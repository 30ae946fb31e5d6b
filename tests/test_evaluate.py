import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
from mixer import durations, evaluate, model, sharding, train_step
from tests import evaluate_process
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """A trainer of the smoke config and weights that are not special."""
  from configs import smoke

  config = smoke.get_config()
  config.data.data_dir = str(tmp_path_factory.mktemp("evaluate"))
  _, split = input_pipeline.open_splits(config)
  mesh = sharding.make_mesh()
  plan = durations.plan(config, 1400)
  trainer = train_step.Trainer(config, plan, 10, mesh)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + 0.3 * jnp.asarray(rng.standard_normal(x.shape), jnp.float32),
    trainer.init().params,
  )
  return config, split, mesh, trainer, params


def independent(config, split, trainer, params):
  """Logits of the whole split, one example after the other, and labels."""
  from mixer import preprocess

  images, labels = [], []
  for i in range(len(split)):
    record = split[i]
    images.append(preprocess.evaluation(record["image"], 16, 16))
    labels.append(record["label"])
  scaled = model.scale(jnp.asarray(np.stack(images)), jnp.dtype("float32"))
  logits = model.apply(trainer.model, params, scaled)
  return np.asarray(logits, np.float64), np.array(labels)


@pytest.mark.parametrize("batch_size", [8, 32, 200, 400])
def test_equals_numpy_at_any_batch_size(parts, batch_size):
  config, split, mesh, trainer, params = parts
  config = config.copy_and_resolve_references()
  config.batch_size = batch_size
  batches = input_pipeline.eval_batches(split, config)
  got = evaluate.evaluate(trainer.inference, params, batches, mesh)
  logits, labels = independent(config, split, trainer, params)
  order = np.argsort(-logits, axis=-1, kind="stable")
  assert got["examples"] == 397
  assert got["accuracy"] == np.mean(order[:, 0] == labels)
  top5 = (order[:, :5] == labels[:, None]).any(axis=-1)
  assert got["accuracy_top5"] == np.mean(top5)
  shifted = logits - logits.max(axis=-1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
  loss = -log_p[np.arange(397), labels].mean()
  np.testing.assert_allclose(got["loss"], loss, rtol=1e-5)


def test_features_come_in_order_and_without_padding(parts):
  config, split, mesh, trainer, params = parts
  batches = input_pipeline.eval_batches(split, config)
  got = evaluate.features(trainer.inference, params, batches, mesh)
  assert got.shape == (397, 32)
  logits, _ = independent(config, split, trainer, params)
  again = got @ np.asarray(params["head"]["kernel"]) + np.asarray(
    params["head"]["bias"]
  )
  np.testing.assert_allclose(again, logits, atol=1e-3)


def run_counts(trainer, mesh, params, labels, mask=None):
  n = len(labels)
  batch = {
    "image": np.zeros((n, 16, 16, 3), np.uint8),
    "label": np.asarray(labels, np.int32),
    "mask": np.ones(n, bool) if mask is None else np.asarray(mask),
  }
  metrics = trainer.inference.counts(params, sharding.put_batch(mesh, batch))
  return {k: v.item() for k, v in jax.device_get(metrics).items()}


def test_ties_go_to_the_lower_class(parts):
  _, _, mesh, trainer, params = parts
  tied = dict(params) | {"head": jax.tree.map(jnp.zeros_like, params["head"])}
  got = run_counts(trainer, mesh, tied, [0, 1, 4, 5, 9, 0, 1, 2])
  assert got["correct"] == 2
  assert got["correct_top5"] == 6
  assert got["count"] == 8


def test_nan_is_never_right(parts):
  _, _, mesh, trainer, params = parts
  broken = jax.tree.map(lambda x: x * np.float32("nan"), params)
  got = run_counts(trainer, mesh, broken, range(8))
  assert got["correct"] == got["correct_top5"] == 0


def test_masked_examples_do_not_count(parts):
  _, _, mesh, trainer, params = parts
  tied = dict(params) | {"head": jax.tree.map(jnp.zeros_like, params["head"])}
  mask = [True, False, True, True, False, False, False, False]
  got = run_counts(trainer, mesh, tied, [0] * 8, mask)
  assert got["count"] == got["correct"] == 3
  np.testing.assert_allclose(got["loss_sum"], 3 * np.log(10), rtol=1e-6)


def test_interrupt_is_heard_before_each_batch(parts):
  config, split, mesh, trainer, params = parts
  calls = []

  def interrupt():
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt

  batches = input_pipeline.eval_batches(split, config)
  with pytest.raises(KeyboardInterrupt):
    evaluate.evaluate(trainer.inference, params, batches, mesh, interrupt)


def test_examples_are_those_of_numpy(parts):
  config, split, mesh, trainer, params = parts
  batches = input_pipeline.eval_batches(split, config)
  rows = list(evaluate.examples(trainer.inference, params, batches, mesh))
  assert [len(r["label"]) for r in rows] == [32] * 12 + [13]
  got = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
  logits, labels = independent(config, split, trainer, params)
  np.testing.assert_array_equal(got["label"], labels)
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  order = np.argsort(-logits, axis=-1, kind="stable")[:, :5]
  np.testing.assert_array_equal(got["classes"], order)
  chosen = np.take_along_axis(p, order, axis=-1)
  np.testing.assert_allclose(got["scores"], chosen, rtol=1e-4, atol=1e-7)
  loss = -np.log(p[np.arange(397), labels])
  np.testing.assert_allclose(got["loss"], loss, rtol=1e-4, atol=1e-5)


def test_examples_without_labels(parts):
  config, split, mesh, trainer, params = parts
  labelled = list(input_pipeline.eval_batches(split, config))[-2:]
  bare = [{k: b[k] for k in ("image", "mask")} for b in labelled]
  with_labels, without = (
    list(evaluate.examples(trainer.inference, params, batches, mesh))
    for batches in (labelled, bare)
  )
  for a, b in zip(with_labels, without, strict=True):
    assert b.keys() == {"classes", "scores"}
    np.testing.assert_array_equal(a["classes"], b["classes"])


@pytest.mark.slow
def test_two_processes_find_what_one_finds(data_dir, tmp_path):
  expected = evaluate_process.everything(data_dir)
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  outs = [tmp_path / f"{rank}.npz" for rank in range(2)]
  flags = "--xla_force_host_platform_device_count=2"
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "tests.evaluate_process"),
        *(str(rank), "2", str(port), data_dir, str(out)),
      ],
      cwd=ROOT,
      env=dict(os.environ) | {"XLA_FLAGS": flags},
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank, out in enumerate(outs)
  ]
  try:
    for process in processes:
      _, err = process.communicate(timeout=300)
      assert process.returncode == 0, err
  finally:
    for process in processes:
      process.kill()
  found = [dict(np.load(out)) for out in outs]
  assert found[0].keys() == found[1].keys() == expected.keys()
  exact = 0
  for name, value in expected.items():
    one, other = found[0][name], found[1][name]
    np.testing.assert_array_equal(one, other, err_msg=name)
    is_count = name.split("/")[1] not in ("scores", "loss", "features")
    exact += is_count
    if is_count:
      np.testing.assert_array_equal(one, value, err_msg=name)
    else:
      np.testing.assert_allclose(one, value, rtol=1e-4, atol=1e-6, err_msg=name)
  # Accuracies, examples, classes, labels, columns, matrix; of both splits.
  assert exact == 14
