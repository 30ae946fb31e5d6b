"""States for the tests of checkpoints: real ones, and tiny ones."""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from configs import smoke
from mixer import checkpoints, saving, sharding, train_step
from tests import updates


def make_trainer(devices=8, num_classes=10, **optimizer) -> train_step.Trainer:
  """Of the smoke config, on so many devices."""
  config = smoke.get_config()
  config.optimizer.update(optimizer)
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return train_step.Trainer(config, updates.PLAN, num_classes, mesh)


def update(trainer: train_step.Trainer, state, count=1):
  """The state after that many more updates; `state` is given away."""
  for _ in range(count):
    batch = updates.make_batch(int(state.step))
    mesh = trainer.abstract.step.sharding.mesh
    state, _ = trainer.train_step(state, sharding.put_batch(mesh, batch))
  return state


def tiny(step: int, mesh=None) -> train_step.TrainState:
  """A state of a few arrays, other ones for each step; some are sharded."""
  mesh = mesh or sharding.make_mesh()
  rng = np.random.default_rng(step)
  whole, split = sharding.replicated(mesh), sharding.batch(mesh)

  def put(where, *shape):
    value = rng.standard_normal(shape, np.float32)
    return jax.make_array_from_callback(shape, where, lambda at: value[at])

  def weights() -> dict[str, Any]:
    # The large one is summed up on its devices.
    return {"stem": {"kernel": put(whole, 8, 4096), "bias": put(whole, 4)}}

  def number(value: int):
    made = np.int32(value)
    return jax.make_array_from_callback((), whole, lambda at: made)

  moments = {"mu": put(split, 8, 5), "count": number(step)}
  return train_step.TrainState(number(step), weights(), (moments,), weights())


def abstract(state):
  """How a state is laid out on devices."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def copy(tree):
  """On the host, in memory of its own: a device's may be looked at only."""
  return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def assert_same(got, expected):
  """Equal in every bit, and in type, shape and structure."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  named = jax.tree_util.tree_leaves_with_path(expected)
  for (name, a), b in zip(named, jax.tree.leaves(got), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), name
    assert a.tobytes() == b.tobytes(), name


def save_tiny(workdir: pathlib.Path, *steps: int, **options):
  """A workdir with checkpoints of tiny states; the states by step."""
  made = {step: tiny(step) for step in steps}
  with saving.Checkpoints(workdir, **{"keep": 9} | options) as c:
    for step, state in made.items():
      c.save(step, state, {"class_names": ["a", "b"], "step": step})
  return {step: copy(state) for step, state in made.items()}


def listing(workdir: pathlib.Path) -> list[str]:
  """What is in the folder of checkpoints."""
  return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def rewrite(checkpoint: pathlib.Path, change) -> None:
  """Other arrays in place of those that were saved, written as they were."""
  ocp = checkpoints.ocp
  found = ocp.checkpointables_metadata(checkpoint)
  on_host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), found.metadata)
  parts = ocp.load_checkpointables(checkpoint, on_host)
  change(parts)
  shutil.rmtree(checkpoint)
  ocp.save_checkpointables(
    checkpoint, parts, custom_metadata=found.custom_metadata
  )


def flip(path: pathlib.Path, bit: int = 2) -> None:
  """Flips a bit in the middle of a file."""
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1 << bit
  path.write_bytes(bytes(content))


def processes(count, devices, *args, **environment) -> list[str]:
  """Runs `main` on processes of their own; what each has printed."""
  from tests import conftest  # Not in `main`: it gives itself eight devices.

  port = conftest.free_port()
  flags = f"--xla_force_host_platform_device_count={devices}"
  command = [sys.executable, "-m", "tests.states", str(count), str(port), *args]
  running = [
    subprocess.Popen(
      [*command, str(rank)],
      cwd=conftest.ROOT,
      env=os.environ | {"XLA_FLAGS": flags} | environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(count)
  ]
  ends = [p.communicate(timeout=200) for p in running]
  assert [p.returncode for p in running] == [0] * count, ends
  return [out for out, _ in ends]


def main() -> None:
  """python -m tests.states COUNT PORT FOLDER save|restore STEPS RANK."""
  count, port, folder, action, *steps, rank = sys.argv[1:]
  if count != "1":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
      f"127.0.0.1:{port}", int(count), int(rank), initialization_timeout=120
    )
  if action == "save":
    with saving.Checkpoints(folder, keep=9) as c:
      for step in map(int, steps):
        c.save(step, tiny(step), {})
    return
  with saving.Checkpoints(folder, keep=9) as c:
    state, step = c.restore(abstract(tiny(0)))
  assert [str(step)] == steps
  both = jax.tree.leaves(state), jax.tree.leaves(tiny(step))
  for ours, expected in zip(*both, strict=True):
    shards = ours.addressable_shards, expected.addressable_shards
    for a, b in zip(*shards, strict=True):
      assert (a.index, a.data.dtype) == (b.index, b.data.dtype)
      assert np.asarray(a.data).tobytes() == np.asarray(b.data).tobytes()


if __name__ == "__main__":
  main()
