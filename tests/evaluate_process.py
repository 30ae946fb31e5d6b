"""Evaluates on one of several processes; `tests.test_evaluate` starts them.

python -m tests.evaluate_process RANK COUNT PORT DATA_DIR OUT
"""

import sys
from typing import Any

import jax
import numpy as np

import input_pipeline
from configs import smoke
from mixer import evaluate, sharding, tally, train_step
from mixer import model as model_lib
from mixer.datasets import split as split_lib

# The last of the batches leaves the second of two hosts without examples; the
# other split gives it none at all.
BATCH_SIZE = 32
EXPRESSIONS = ("test[:100]", "test[:5]")
# Columns of the head, for labels of other classes than the head's.
COLUMNS = np.array([9, 8, 7, 6, 5, 4, 3, 2, -1, 0], np.int32)


def everything(data_dir: str) -> dict[str, np.ndarray]:
  """All that evaluation computes, of both splits, named."""
  config = smoke.get_config()
  config.batch_size = BATCH_SIZE
  module = model_lib.from_config(config, 10)
  images = np.zeros((1, 16, 16, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  rng = np.random.default_rng(0)
  params: Any = jax.tree.map(
    lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes
  )
  mesh = sharding.make_mesh()
  plain = train_step.Inference(module, "softmax", 10, mesh)
  chosen = train_step.Inference(module, "softmax", 10, mesh, columns=COLUMNS)
  found: dict[str, Any] = {}
  for expression in EXPRESSIONS:
    split = split_lib.open_split("digits", expression, data_dir)

    def batches(split: split_lib.Split = split) -> Any:
      return input_pipeline.eval_batches(split, config)

    values = evaluate.evaluate(plain, params, batches(), mesh)
    counted = tally.Tally(10)
    rows = []
    for row in evaluate.examples(plain, params, batches(), mesh):
      counted.add(row)
      rows.append(row)
    by_name = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    rows = evaluate.examples(chosen, params, batches(), mesh)
    by_name["chosen"] = np.concatenate([r["classes"] for r in rows])
    by_name["confusion"] = counted.confusion.toarray()
    by_name["features"] = evaluate.features(plain, params, batches(), mesh)
    for name, value in (values | counted.metrics() | by_name).items():
      found[f"{expression}/{name}"] = np.asarray(value)
  return found


def main() -> None:
  """Runs the command line."""
  rank, count, port, data_dir, out = sys.argv[1:]
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    f"127.0.0.1:{port}", int(count), int(rank), initialization_timeout=120
  )
  assert jax.process_count() == int(count)
  np.savez(out, allow_pickle=False, **everything(data_dir))


if __name__ == "__main__":
  main()
