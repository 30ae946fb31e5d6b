"""One process of `benchmarks.scaling weak`; prints its row as JSON.

python -m benchmarks.scaling_worker PORT PROCESSES ID CHANGES
"""

import json
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import scaling
from mixer import durations, sharding
from mixer import step as step_lib
from mixer.planning import compiling, footprint, hlo

_IMAGES = 16  # A device.
_CLASSES = 10


def main() -> None:
  port, processes, process = (int(a) for a in sys.argv[1:4])
  changes = json.loads(sys.argv[4])
  if processes > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", processes, process)
  n = jax.device_count()
  config = scaling.recipe(
    "demo_pretrain",
    {"batch_size": _IMAGES * n, "sharding.min_size": 4096} | changes,
  )
  mesh = sharding.make_mesh(fsdp=config.sharding.fsdp)
  plan = durations.plan(config, 36_720)
  trainer = step_lib.Trainer(config, plan, _CLASSES, mesh)
  compiled = trainer.train_step.lower(
    trainer.abstract, compiling.abstract_batch(config, mesh)
  ).compile()
  found = hlo.collectives(compiled.as_text() or "", n)
  here = _IMAGES * jax.local_device_count()
  rng = np.random.default_rng(process)
  local = {
    "image": rng.integers(0, 256, (here, 16, 16, 3), np.uint8),
    "label": rng.integers(0, _CLASSES, here, np.int32),
  }
  batch = sharding.put_batch(mesh, local)
  state, seconds = trainer.init(), []
  for _ in range(6):
    start = time.perf_counter()
    state, _ = compiled(state, batch)
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - start)
  memory: Any = compiled.memory_analysis()
  size = sum(x.size for x in jax.tree.leaves(trainer.abstract.params))
  row = {
    "processes": processes,
    "devices": n,
    "changes": changes,
    "parameters": size,
    "arguments": memory.argument_size_in_bytes,
    "state": footprint.bytes_here(trainer.abstract),
    "sent": sum(c.sent for c in found),
    "predicted_sent": footprint.reduced(config, n, size, size, "cpu"),
    "collectives": {c.kind: [c.count, c.size] for c in found},
    "seconds": statistics.median(seconds[1:]),
  }
  if process == 0:
    print(json.dumps(row))


if __name__ == "__main__":
  main()
