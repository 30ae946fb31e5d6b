"""Saves or restores on one of several processes, for tests of restoring.

python -m tests.restore_process RANK COUNT PORT WORKDIR save STEP...
python -m tests.restore_process RANK COUNT PORT WORKDIR restore STEP
"""

import sys
from collections.abc import Sequence

import jax
import numpy as np

from mixer import checkpoints
from tests import states


def save(folder: str, steps: Sequence[int]) -> None:
  """Tiny states of these steps."""
  with checkpoints.Checkpoints(folder, keep=9) as saved:
    for step in steps:
      saved.save(step, states.tiny(step), {})
    assert saved.latest == steps[-1]


def restore(folder: str, steps: Sequence[int]) -> None:
  """The newest whole one; compares what this process has of it."""
  (wanted,) = steps
  with checkpoints.Checkpoints(folder, keep=9) as saved:
    state, step = saved.restore(states.abstract(states.tiny(0)))
  assert step == wanted, step
  leaves = zip(
    states.names(state),
    jax.tree.leaves(state),
    jax.tree.leaves(states.tiny(step)),
    strict=True,
  )
  for name, ours, expected in leaves:
    shards = zip(
      ours.addressable_shards, expected.addressable_shards, strict=True
    )
    for a, b in shards:
      assert (a.index, a.data.dtype) == (b.index, b.data.dtype), name
      assert np.asarray(a.data).tobytes() == np.asarray(b.data).tobytes(), name


def main() -> None:
  """Runs the command line."""
  rank, count, port, workdir, action, *steps = sys.argv[1:]
  if count != "1":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
      f"127.0.0.1:{port}", int(count), int(rank), initialization_timeout=120
    )
  function = {"save": save, "restore": restore}[action]
  function(workdir, [int(step) for step in steps])


if __name__ == "__main__":
  main()
