"""One training step, kernel by kernel: what XLA's compiler made of it.

  python -m benchmarks.kernels --variant=B/16 --batch=512 --hardware=h100-1
    [--dtype bfloat16] [--set KEY=VALUE ...] [--compare KEY=VALUE ...] [--hlo F]
  python -m benchmarks.kernels --variant=B/16 --batch=512 --profile

Compiles for a device that needn't be there, with the compiler for it
(requirements-gpu.txt, requirements-tpu.txt), and prints how many kernels
transpose, copy or pad, what the matmuls do beside (epilogues), memory, bytes
and a predicted time for each: a roofline (mixer/planning/roofline.py), not a
measurement. --set changes the config; each --compare adds a column with further
changes, as in

  --set model.dtype=bfloat16 --compare model.layout=batch_major
    --compare model.layout=batch_major model.remat=block

--profile runs the step on the accelerator of this machine, under JAX's
profiler, and prints what each kernel took beside its prediction.
"""

import argparse
import pathlib
import sys
from typing import Any

import jax

from benchmarks import kernel_profile, kernel_report, settings
from benchmarks import step as step_lib
from mixer import command_line, durations, flops, validation
from mixer import config as config_lib
from mixer import model as model_lib
from mixer.errors import UserError
from mixer.planning import compiling, formulas, hardware, kernels

# Of ImageNet-21k, as most recipes have.
CLASSES = 21_843


def flop(config: config_lib.Config) -> int:
  """That the model needs for an update of all images."""
  mixer = model_lib.build(config.model.variant, CLASSES)
  return flops.update(mixer, config) * config.batch_size


def compile_step(
  name: str, config: config_lib.Config, target: hardware.Slice
) -> tuple[kernel_report.Step, str]:
  """Compiles a step.

  Returns:
    What came out, and the module's text: no kernels and "" where a compiler
    refuses it for the device's memory.

  Raises:
    UserError: an invalid config, or no compiler.
  """
  validation.validate(config, target.num_devices)
  plan = durations.plan(config, 1)
  compiled, text = compiling.compile_step(config, plan, CLASSES, target)
  found = kernels.read(text)
  return kernel_report.Step(
    name, target, config.batch_size, flop(config), compiled, found
  ), text


def _head(args: argparse.Namespace, where: str, compiler: str) -> str:
  return (
    f"{args.variant}, batch {args.batch}, {args.dtype}, {where}, {compiler}\n"
    f"Times are predicted, not measured: matmuls at {formulas.MATMUL_SHARE:g} "
    f"of the peak, memory at {formulas.MEMORY_SHARE:g} of its bandwidth, and "
    "the launch of each kernel."
  )


def _compile(args: argparse.Namespace) -> None:
  base = settings.parse(" ".join(args.set))
  groups = [base, *(base | settings.parse(" ".join(x)) for x in args.compare)]
  target = hardware.parse(args.hardware)
  configs = [
    step_lib.changed(args.variant, args.batch, args.dtype, g) for g in groups
  ]
  for config in configs:  # Before the first one is compiled.
    validation.validate(config, target.num_devices)
  compiling.prepare()
  jax.config.update("jax_platforms", "cpu")
  steps = []
  for i, config in enumerate(configs):
    name = " ".join(args.compare[i - 1]) if i else " ".join(args.set) or "base"
    step, text = compile_step(name, config, target)
    if not text:
      raise UserError(
        f"{name} doesn't fit into {target.name}: {step.compiled.reason}; ask "
        "for a smaller --batch."
      )
    steps.append(step)
    if args.hlo and not i:
      args.hlo.write_text(text, "utf-8")
  print(_head(args, target.name, steps[0].compiled.compiler))
  print(kernel_report.table(steps))
  if len(steps) == 1:
    print("\nby kernel, those of all blocks together")
    print(kernel_report.top(steps[0]))


def _profile(args: argparse.Namespace) -> None:
  if args.compare:
    raise UserError("--profile runs one step: leave --compare out.")
  changes = settings.parse(" ".join(args.set))
  config = step_lib.changed(args.variant, args.batch, args.dtype, changes)
  name = " ".join(args.set) or "base"
  found = kernel_profile.profile(config, CLASSES, name, args.steps)
  step = found.step
  print(_head(args, found.device, step.compiled.compiler))
  print(kernel_report.table([step]))
  per_image = found.seconds / args.batch
  print(
    f"\nmeasured: {found.seconds * 1e3:.2f} ms an update, "
    f"{1 / per_image:,.0f} images/s; "
    f"{sum(found.measured.values()) * 1e3:.2f} ms of it in kernels that are "
    f"in the code, {found.unknown * 1e3:.2f} ms in others"
  )
  print(kernel_report.top(step, found.measured))


def body(args: argparse.Namespace) -> None:
  """Does what the flags say.

  Raises:
    UserError: flags that don't fit together, and what `compile_step` raises.
  """
  if args.profile:
    _profile(args)
  else:
    _compile(args)


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="One training step, kernel by kernel."
  )
  parser.add_argument("--variant", default="B/16")
  parser.add_argument("--batch", type=int, default=512)
  parser.add_argument(
    "--dtype", choices=("float32", "bfloat16"), default="bfloat16"
  )
  parser.add_argument("--hardware", default="h100-1", help="of tools.plan")
  pairs: Any = dict(nargs="+", metavar="KEY=VALUE", default=[])
  parser.add_argument("--set", **pairs, help="changes of the config")
  parser.add_argument(
    "--compare", action="append", **pairs, help="another column's changes"
  )
  parser.add_argument(
    "--hlo", type=pathlib.Path, help="write the first module's text there"
  )
  parser.add_argument(
    "--profile", action="store_true", help="run it on this machine"
  )
  parser.add_argument("--steps", type=int, default=10, help="of --profile")
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
