"""How the training step's time grows, beside how it should.

  python -m benchmarks.curves [--only batch,model,image,devices] [--rounds 3]

Seconds of a training step
  batch     of one model, by the batch
  model     by the model, at one batch
  image     of one model, by the side of the image in pixels: tokens grow by
            its square
  devices   of one model at one batch, divided among 1 to 8 virtual devices of
            this CPU (--xla_force_host_platform_device_count; a process each):
            what partitioning costs where it can gain nothing
and beside each the law: the matmuls' FLOP (mixer/flops.py) at the rate of the
best matmul of large squares, and the bytes that AdamW moves (28 a parameter)
at the rate of a long float32 addition, both measured in the same rounds. For
each further device a copy of the gradient is added up and one of the weights
written: 8 bytes a parameter. It is a floor: LayerNorm, GELU, whatever else is
elementwise, and starting a step are not in it. `over` is the measured time
over the law's; where a curve keeps its `over`, it grows as it should.

Points of a curve are timed in turn, a round after the other. Prints, writes
benchmarks/results/curves_cpu.json, or curves_gpu.json, and draws a picture
beside it. On a CPU: S/32 in float32, batches 1 to 64; elsewhere B/16 in
bfloat16, batches 8 to 512, and no virtual devices.
"""

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax

from benchmarks import curve_plot, passes, peer_server, records, step
from mixer import command_line, flops, runtime, validation
from mixer import config as config_lib
from mixer import step as step_lib


@dataclasses.dataclass(frozen=True)
class Point:
  """What is timed: a model, its batch and image, and on how many devices."""

  model: str
  batch: int
  image: int
  dtype: str
  devices: int = 1

  def config(self) -> config_lib.Config:
    config = step.recipe(self.model, self.batch, self.dtype)
    config.image_size = self.image
    return config


def points(args: argparse.Namespace) -> dict[str, list[Point]]:
  """By curve."""
  model, dtype = args.model, args.dtype
  return {
    "batch": [Point(model, b, 224, dtype) for b in args.batches],
    "model": [Point(m, args.batch, 224, dtype) for m in args.models],
    "image": [Point(model, args.batch, s, dtype) for s in args.images],
    "devices": [Point(model, args.batch, 224, dtype, d) for d in args.devices],
  }


def law(
  point: Point, matmul_flops: float, bytes_per_second: float
) -> dict[str, float]:
  """Seconds of a step that matmuls and the optimizer alone need.

  Args:
    point: what is timed.
    matmul_flops: FLOP/s of the best matmul, of all devices together.
    bytes_per_second: as a long addition moves them.

  Returns:
    `matmuls`, `optimizer`, `partition` and `all`.
  """
  config = point.config()
  model = step_lib.build_model(config, step.CLASSES)
  like = jax.ShapeDtypeStruct((1, point.image, point.image, 3), model.dtype)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), like)
  size = sum(x.size for x in jax.tree.leaves(shapes))
  found = {
    "matmuls": point.batch * flops.training(model, point.image) / matmul_flops,
    "optimizer": passes.ADAM_BYTES * size / bytes_per_second,
    "partition": 8 * size * (point.devices - 1) / bytes_per_second,
  }
  return found | {"all": sum(found.values())}


class _Held:
  """In a process of its own: points that are there to be timed."""

  def __init__(self, some: Sequence[Point]):
    flag = "--xla_force_host_platform_device_count"
    before = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{before} {flag}={some[0].devices}".strip()
    runtime.start()
    jax.config.update("jax_enable_compilation_cache", False)
    configs = [p.config() for p in some]
    self._passes = [
      passes.Passes(c, step.make_batch(c, step.CLASSES), step.CLASSES, ())
      for c in configs
    ]
    self._matmul = passes.matmul(some[0].dtype)
    self._stream = passes.stream()

  def round(self, seconds: float) -> dict[str, Any]:
    """Seconds of each point; FLOP/s and bytes/s of the device."""
    rates = [
      work / peer_server.seconds_each(run, seconds / 2)
      for run, work in (self._matmul, self._stream)
    ]
    took = [
      peer_server.seconds_each(p.runner("train"), seconds) for p in self._passes
    ]
    return {"matmul": rates[0], "stream": rates[1], "seconds": took}


_held: _Held | None = None


def _hold(some: Sequence[Point]) -> dict[str, Any]:
  global _held
  _held = _Held(some)
  return runtime.environment()


def _round(seconds: float) -> dict[str, Any]:
  assert _held
  return _held.round(seconds)


def measure(
  some: Sequence[Point], rounds: int, seconds: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The rows of a curve, and the environment.

  Points on equally many devices share a process; processes wait, idle, while
  another is timed.
  """
  groups = [
    [p for p in some if p.devices == n]
    for n in dict.fromkeys(p.devices for p in some)
  ]
  context = multiprocessing.get_context("spawn")
  pools = [concurrent.futures.ProcessPoolExecutor(1, context) for _ in groups]
  try:
    environments = [
      pool.submit(_hold, group).result()
      for pool, group in zip(pools, groups, strict=True)
    ]
    found = [
      [pool.submit(_round, seconds).result() for pool in pools]
      for _ in range(rounds)
    ]
  finally:
    for pool in pools:
      pool.shutdown()
  # What one device makes is the first process's to tell.
  matmul = max(turn[0]["matmul"] for turn in found)
  stream = max(turn[0]["stream"] for turn in found)
  if environments[0]["platform"] != "cpu":
    matmul *= environments[0]["num_devices"]
  rows = []
  for i, group in enumerate(groups):
    for j, point in enumerate(group):
      times = [turn[i]["seconds"][j] for turn in found]
      expected = law(point, matmul, stream)
      rows.append(
        {
          **dataclasses.asdict(point),
          "seconds": statistics.median(times),
          "spread": [min(times), max(times)],
          "law": expected,
          "over": statistics.median(times) / expected["all"],
          "matmul_flops": matmul,
          "bytes_per_second": stream,
        }
      )
  return rows, environments[0]


def line(row: dict[str, Any], curve: str) -> str:
  """A row of the table that is printed."""
  least, most = row["spread"]
  spread = f"({least * 1e3:,.0f} to {most * 1e3:,.0f})"
  return (
    f"{curve:<9}{row['model']:<6}{row['batch']:>6}{row['image']:>7}"
    f"{row['devices']:>9}{row['seconds'] * 1e3:>10,.1f} {spread:<18}"
    f"{row['law']['all'] * 1e3:>10,.1f}{row['over']:>7.2f}"
  )


_HEAD = (
  f"{'curve':<9}{'model':<6}{'batch':>6}{'image':>7}{'devices':>9}"
  f"{'ms a step':>10} {'(spread)':<18}{'law, ms':>10}{'over':>7}"
)


def body(args: argparse.Namespace) -> None:
  """Measures, prints, writes and draws.

  Raises:
    UserError: no such model, or an image that its patches don't divide.
  """
  _fill(args)
  wanted = {k: v for k, v in points(args).items() if k in args.only and v}
  for point in {p for some in wanted.values() for p in some}:
    validation.validate(point.config(), point.devices)
  print(f"{_HEAD}\n{'-' * len(_HEAD)}")
  curves: dict[str, list[dict[str, Any]]] = {}
  environment: dict[str, Any] = {}
  for name, some in wanted.items():
    curves[name], environment = measure(some, args.rounds, args.seconds)
    told = (line(row, name) for row in curves[name])
    print("\n".join(told), flush=True)
  record = records.start("benchmarks.curves", environment)
  record |= {"rounds": args.rounds, "curves": curves}
  name = f"curves_{environment['platform']}.json"
  path = args.out or records.RESULTS / name
  records.write(path, record)
  curve_plot.draw(record, path.with_suffix(".png"))
  print(f"drawn to {path.with_suffix('.png')}")


def _fill(args: argparse.Namespace) -> None:
  """What isn't given, by the device that is there."""
  on_cpu = step.alone(step.platform) == "cpu"
  defaults: dict[str, Any] = {
    "model": "S/32" if on_cpu else "B/16",
    "dtype": "float32" if on_cpu else "bfloat16",
    "batch": 8 if on_cpu else 128,
    "batches": [1, 2, 4, 8, 16, 32, 64]
    if on_cpu
    else [8, 16, 32, 64, 128, 256, 512],
    "images": [96, 128, 160, 224, 320, 448],
    "devices": [1, 2, 4, 8] if on_cpu else [],
  }
  for key, value in defaults.items():
    if getattr(args, key) is None:
      setattr(args, key, value)


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="How the training step's time grows, beside how it should."
  )
  curves = ["batch", "model", "image", "devices"]
  parser.add_argument("--only", type=step.names, default=curves)
  parser.add_argument("--model", help="of all curves but that of models")
  parser.add_argument(
    "--models", type=step.names, default=["S/32", "S/16", "B/32", "B/16"]
  )
  parser.add_argument("--batch", type=int, help="of all curves but that of it")
  parser.add_argument("--batches", type=step.numbers)
  parser.add_argument("--images", type=step.numbers, help="sides, pixels")
  parser.add_argument("--devices", type=step.numbers, help="virtual ones")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--seconds", type=float, default=1, help="of each")
  parser.add_argument("--out", type=pathlib.Path, help="another .json file")
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
