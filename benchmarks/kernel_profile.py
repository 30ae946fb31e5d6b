"""Times of the kernels of a step, from a trace of JAX's profiler."""

import dataclasses
import pathlib
import re
import tempfile
import time

import jax
from jax.profiler import ProfileData

from benchmarks import kernel_report
from benchmarks import step as step_lib
from mixer import config as config_lib
from mixer import durations, flops, runtime, sharding, validation
from mixer import step as trainer_lib
from mixer.errors import UserError
from mixer.planning import compiling, hardware, kernels


@dataclasses.dataclass(frozen=True)
class Profile:
  """A step that has run.

  Attributes:
    step: what the compiler made of it.
    device: its name.
    seconds: of an update, without the profiler.
    measured: seconds an update of each kernel, by its name.
    unknown: seconds an update of what ran besides.
  """

  step: kernel_report.Step
  device: str
  seconds: float
  measured: dict[str, float]
  unknown: float


def chip(device_kind: str) -> hardware.Slice:
  """One device of a kind, with its data sheet.

  Raises:
    UserError: none is known.
  """
  for known in hardware.CHIPS:
    if re.search(known.kind, device_kind):
      return hardware.parse(f"{known.name}-1")
  raise UserError(
    f"--profile knows no data sheet of this machine's device, {device_kind}; "
    "there are " + ", ".join(c.name for c in hardware.CHIPS) + ". Leave "
    "--profile out to compile for one of them by --hardware."
  )


def times(trace: pathlib.Path, module: str) -> dict[str, float]:
  """Seconds that each instruction of a module took, all its runs together.

  Args:
    trace: a folder of `jax.profiler.trace`.
    module: what the module's name starts with, "jit_train_step".

  Returns:
    By the instruction's name. On GPUs of what lies in the streams alone, so
    that nothing counts twice.
  """
  found: dict[str, float] = {}
  for path in sorted(trace.rglob("*.xplane.pb")):
    for plane in ProfileData.from_file(str(path)).planes:
      lines = list(plane.lines)
      streams = [x for x in lines if (x.name or "").startswith("Stream")]
      for line in streams or lines:
        for event in line.events:
          stats = dict(event.stats)
          name = str(stats.get("hlo_op", ""))
          if name and str(stats.get("hlo_module", "")).startswith(module):
            found[name] = found.get(name, 0.0) + event.duration_ns * 1e-9
  return found


def profile(
  config: config_lib.Config, num_classes: int, name: str, steps: int
) -> Profile:
  """Runs a training step on this machine.

  Args:
    config: valid for one device.
    num_classes: K.
    name: of the column.
    steps: that are traced.

  Raises:
    UserError: a device without data sheet.
  """
  runtime.start()
  device = jax.devices()[0]
  target = chip(device.device_kind)
  validation.validate(config, 1)
  mesh = sharding.make_mesh([device])
  trainer = trainer_lib.Trainer(
    config, durations.plan(config, 1), num_classes, mesh
  )
  made = step_lib.make_batch(config, num_classes)
  whole = sharding.put_batch(mesh, made)
  batch = {k: whole[k] for k in ("image", "label")}
  state = trainer.init()
  # Graphs of kernels hide the kernels from the profiler.
  options: dict[str, str | bool] = {}
  if target.platform == "gpu":
    options = {"xla_gpu_enable_command_buffer": ""}
  start = time.perf_counter()
  lowered = trainer.train_step.lower(state, batch)
  compiled = lowered.compile(compiler_options=options)
  compile_seconds = time.perf_counter() - start
  for _ in range(3):
    state, _ = compiled(state, batch)
  jax.block_until_ready(state)
  start = time.perf_counter()
  for _ in range(steps):
    state, _ = compiled(state, batch)
  jax.block_until_ready(state)
  seconds = (time.perf_counter() - start) / steps
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        state, _ = compiled(state, batch)
      jax.block_until_ready(state)
    measured = times(pathlib.Path(folder), "jit_train_step")
  text, memory = compiled.as_text() or "", compiled.memory_analysis()
  found = kernels.read(text)
  names = {k.name for k in found}
  said = compiling.Compiled(
    f"jax {jax.__version__}", True, seconds=compile_seconds
  )
  if memory is not None:
    said = dataclasses.replace(
      said,
      arguments=memory.argument_size_in_bytes,
      temporaries=memory.temp_size_in_bytes,
      peak=memory.peak_memory_in_bytes,
    )
  step = kernel_report.Step(
    name,
    target,
    config.batch_size,
    flops.update(trainer.model, config) * config.batch_size,
    said,
    found,
  )
  return Profile(
    step,
    device.device_kind,
    seconds,
    {k: v / steps for k, v in measured.items() if k in names},
    sum(v for k, v in measured.items() if k not in names) / steps,
  )
