"""What `benchmarks.kernels` prints of the kernels of a step."""

import collections
import dataclasses
import re
from collections.abc import Callable, Sequence

from mixer.planning import compiling, hardware, kernels, roofline

_TOP = 25
_WIDTH = 16


@dataclasses.dataclass(frozen=True)
class Step:
  """A compiled training step.

  Attributes:
    name: of its column.
    target: what it is compiled for.
    batch: images of all devices together.
    flop: that the model needs for an update, of all devices together.
    compiled: what the compiler says.
    kernels: of one device.
  """

  name: str
  target: hardware.Slice
  batch: int
  flop: int
  compiled: compiling.Compiled
  kernels: list[kernels.Kernel]

  @property
  def total(self) -> roofline.Sum:
    """Of the kernels."""
    return roofline.total(self.kernels, self.target)

  @property
  def mfu(self) -> float:
    """Predicted: the model's FLOP over what the devices could do."""
    could = self.target.num_devices * self.target.chip.flops
    return self.flop / could / self.total.seconds


def counts(found: Sequence[kernels.Kernel]) -> dict[str, int]:
  """How many kernels run that transpose, copy or pad, and of some kinds."""
  result = {
    f"{move}s" if move != "copy" else "copies": sum(
      k.times for k in found if move in k.moves
    )
    for move in ("transpose", "copy", "pad")
  }
  result["fusions"] = sum(k.times for k in found if k.op == "fusion")
  return result


def epilogues(found: Sequence[kernels.Kernel]) -> dict[str, int]:
  """Matmuls by what cuBLAS does beside them, the most frequent first."""
  names: collections.Counter[str] = collections.Counter()
  for k in found:
    if k.kind == "matmul":
      names[k.epilogue or "none"] += k.times
  return dict(names.most_common())


def totals(step: Step) -> dict[str, str]:
  """Name -> value, to be read."""
  found, total, memory = step.kernels, step.total, step.compiled
  return {
    "predicted ms": f"{total.seconds * 1e3:.2f}",
    "images/s": f"{step.batch / total.seconds:,.0f}",
    "MFU": f"{step.mfu:.1%}",
    "kernels": f"{total.count:,}",
    **{name: f"{n:,}" for name, n in counts(found).items()},
    "matmuls": f"{sum(epilogues(found).values()):,}",
    **{f"  {name}": f"{n:,}" for name, n in epilogues(found).items()},
    "TFLOP": f"{total.flop / 1e12:.2f}",
    "GB moved": f"{total.size / 1e9:.1f}",
    "arguments, GB": f"{memory.arguments / 1e9:.2f}",
    "temporaries, GB": f"{memory.temporaries / 1e9:.2f}",
    "peak, GB": f"{memory.peak / 1e9:.2f}" + " (too much)" * (not memory.fits),
    "compile, s": f"{memory.seconds:.0f}",
  }


def label(kernel: kernels.Kernel) -> str:
  """Where a kernel comes from, whichever block it is in."""
  path = kernel.op_name.split(";")[0].replace("jit(train_step)/", "")
  path = re.sub(r"^transpose\(|jvp\(MlpMixer\)+/?|MlpMixer\.\w+/", "", path)
  path = re.sub(r"MixerBlock_\d+/?", "block/", path)
  return f"{kernel.when} {path}".strip()


def _union(rows: Sequence[dict[str, str]]) -> list[str]:
  """The keys of all; what only later ones have stands behind its neighbour."""
  names: list[str] = []
  for row in rows:
    at = 0
    for name in row:
      if name not in names:
        names.insert(at, name)
      at = names.index(name) + 1
  return names


def table(steps: Sequence[Step]) -> str:
  """Totals, kinds and parts; a column for each step."""
  rows = [totals(s) for s in steps]
  several = len(steps) > 1
  lines = [f"[{i}] {s.name}" for i, s in enumerate(steps, 1) if several]
  heads = [f"[{i}]" if several else "" for i in range(1, len(steps) + 1)]
  lines.append((" " * 26 + "".join(f"{h:>{_WIDTH}}" for h in heads)).rstrip())
  for name in _union(rows):
    cells = [row.get(name, "-") for row in rows]
    lines.append(f"{name:<26}" + "".join(f"{c:>{_WIDTH}}" for c in cells))

  def grouped(title: str, key: Callable[[kernels.Kernel], str]) -> None:
    sums = [roofline.grouped(s.kernels, s.target, key) for s in steps]
    names = {
      name: max(found[name].seconds for found in sums if name in found)
      for found in sums
      for name in found
    }
    lines.extend(["", f"{title}, predicted ms (kernels)"])
    for name in sorted(names, key=lambda n: -names[n]):
      cells = [
        f"{found[name].seconds * 1e3:.2f} ({found[name].count:,})"
        if name in found
        else "-"
        for found in sums
      ]
      lines.append(f"{name:<26}" + "".join(f"{c:>{_WIDTH}}" for c in cells))

  grouped("by kind", lambda k: k.kind)
  grouped("by part", lambda k: f"{k.part}, {k.when}")
  return "\n".join(lines)


def top(step: Step, measured: dict[str, float] | None = None) -> str:
  """The kernels that take longest, alike ones of all blocks together.

  Args:
    step: the step.
    measured: seconds an update by kernel, where they have been measured: the
      order is theirs then.
  """

  def key(k: kernels.Kernel) -> str:
    what = f"{k.kind} {k.epilogue}".strip()
    moved = [m for m in k.moves if m != k.kind]
    if moved:
      what += f" ({', '.join(moved)})"
    return f"{label(k)}\n{what}\n{k.shapes}"

  found = roofline.grouped(step.kernels, step.target, key)
  times: dict[str, float] = {}
  for k in step.kernels if measured else ():
    seconds = (measured or {}).get(k.name, 0.0)
    times[key(k)] = times.get(key(k), 0.0) + seconds
  if measured:
    found = dict(sorted(found.items(), key=lambda x: -times[x[0]]))
  head = " measured ms" * bool(measured)
  lines = [f"predicted ms{head}  kernels   TFLOP      GB"]
  for name, x in list(found.items())[:_TOP]:
    where, what, shapes = name.split("\n")
    time = f"{times[name] * 1e3:>12.2f}" if measured else ""
    lines.append(
      f"{x.seconds * 1e3:>12.2f}{time}{x.count:>9,}{x.flop / 1e12:>8.2f}"
      f"{x.size / 1e9:>8.2f}  {what}: {where or '?'}"
    )
    lines.append(f"{'':>37}{' ' * 12 * bool(measured)}  {shapes}")
  rest = list(found.items())[_TOP:]
  if rest:
    seconds = sum(x.seconds for _, x in rest)
    lines.append(f"{seconds * 1e3:>12.2f}  in {len(rest)} more kinds of them")
  return "\n".join(lines)
