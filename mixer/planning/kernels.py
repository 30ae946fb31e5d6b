"""Which kernels XLA has made of a function, and what each has to do.

Reads the text of a compiled module. `roofline` says how long that would take.
"""

import dataclasses
import re
from collections.abc import Iterator

from mixer.planning import hlo, traffic
from mixer.planning.instructions import Computation, Instruction, Module

KINDS = (
  "matmul",
  "convolution",
  "pallas",
  "triton",
  "collective",
  "sort",
  "scatter",
  "reduce",
  "transpose",
  "pad",
  "loop",
  "copy",
  "custom call",
)
PARTS = (
  "stem",
  "LayerNorm",
  "token mixing",
  "channel mixing",
  "block",
  "head",
  "loss",
  "optimizer",
)
PASSES = ("forward", "recomputed", "backward", "update")
_NO_KERNEL = (
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
  *("after-all", "opt-barrier", "partition-id", "replica-id", "domain"),
  "add-dependency",
)
_ENDS = ("-done", "-update")
_NO_CALL = ("ConcatBitcast", "AllocateBuffer")
_MOVES = ("transpose", "pad", "copy")
# In the path that JAX gives an operation; the first that is found.
_NAMES = (
  ("LayerNorm", r"LayerNorm|layer_norm|\bnorm\b"),
  ("token mixing", r"\btoken_mixing\b"),
  ("channel mixing", r"\bchannel_mixing\b"),
  ("stem", r"\bstem\b"),
  ("head", r"\bhead\b"),
  ("block", r"\bMixerBlock_\d+|\bblocks?\b"),
  ("head", r"\bjvp\(MlpMixer\)"),  # The mean over tokens.
  ("loss", r"\bjvp\("),
)


@dataclasses.dataclass(frozen=True)
class Kernel:
  """What runs at once on the device.

  Attributes:
    name: the instruction's, by which profilers know it.
    op: XLA's, "fusion".
    kind: of `KINDS`.
    shapes: of what goes in and comes out, to be read.
    dtype: of the first operand of its matmul, else of its result.
    op_name: JAX's name, of it or of what it works on; "" where none is known.
    times: that it runs.
    flop: of its matmuls, once.
    read: bytes, once.
    written: bytes, once.
    epilogue: what cuBLAS does beside the matmul, "BIAS"; "DEFAULT" where
      nothing, "" where it isn't cuBLAS's. "+C" where a further operand is
      added.
    moves: of transpose, pad, copy, those that it does.
    beside: whether it runs while other kernels do, as TPUs fetch what comes
      next.
  """

  name: str
  op: str
  kind: str
  shapes: str
  dtype: str
  op_name: str
  times: int
  flop: int
  read: int
  written: int
  epilogue: str = ""
  moves: tuple[str, ...] = ()
  beside: bool = False

  @property
  def size(self) -> int:
    """Bytes read and written, once."""
    return self.read + self.written

  @property
  def part(self) -> str:
    """Of `PARTS`."""
    for part, pattern in _NAMES:
      if re.search(pattern, self.op_name):
        return part
    return "optimizer"

  @property
  def when(self) -> str:
    """Of `PASSES`."""
    if "jvp(" not in self.op_name and "rematted" not in self.op_name:
      return "update"
    if "rematted" in self.op_name:
      return "recomputed"
    return "backward" if "transpose(" in self.op_name else "forward"


def read(text: str) -> list[Kernel]:
  """The kernels of a module in the order of their first execution.

  A kernel in a loop stands once, with how often it runs, where that can be
  read from the code; of branches each is counted.

  Args:
    text: of a compiled module, `compiled.as_text()`.

  Raises:
    ValueError: an element type that isn't known.
  """
  module = Module(text)
  return list(_walk(module, "", 1))


def _walk(module: Module, name: str, times: int) -> Iterator[Kernel]:
  here = module.computations.get(name, {})
  for x in here.values():
    if x.op == "while":
      inner = times * module.trips(x)
      yield from _walk(module, x.called("body"), inner)
      yield from _walk(module, x.called("condition"), inner)
    elif x.op == "conditional":
      for branch in _branches(x):
        yield from _walk(module, branch, times)
    elif x.op == "call":
      yield from _walk(module, x.called("to_apply"), times)
    elif x.op == "async-start":
      for kernel in _walk(module, x.called("calls"), times):
        yield dataclasses.replace(kernel, beside=True)
    elif x.op in _NO_KERNEL or x.target in _NO_CALL:
      continue
    elif not x.op.endswith(_ENDS):
      yield _kernel(module, x, here, times)


def _branches(x: Instruction) -> list[str]:
  match = re.search(r"\bbranch_computations=\{([^}]*)\}", x.attributes)
  if match:
    return [name.strip(" %") for name in match.group(1).split(",")]
  return [x.called("true_computation"), x.called("false_computation")]


def _kernel(
  module: Module, x: Instruction, here: Computation, times: int
) -> Kernel:
  inside = list(traffic.inner(module, x))
  operands = [a for n in x.operands if n in here for a in here[n].arrays]
  kind = _kind(x, inside)
  results = traffic.written(module, x, here)
  large = [str(a) for a in operands if a.sides]
  dtype = x.arrays[0].dtype if x.arrays else ""
  if kind in ("matmul", "convolution"):
    dtype = _matmul_dtype(module, x, operands[0].dtype if operands else dtype)
  return Kernel(
    name=x.name,
    op=x.op,
    kind=kind,
    shapes=f"{' '.join(large)} -> "
    f"{' '.join(str(a) for a in x.arrays[: len(results)])}",
    dtype=dtype,
    op_name=_op_name(x, inside, here),
    times=times,
    flop=traffic.flop(module, x, here),
    read=sum(traffic.read(module, x, here)),
    written=sum(results),
    epilogue=_epilogue(x),
    moves=tuple(m for m in _MOVES if any(i.op == m for i in inside)),
    beside=x.op.endswith("-start"),
  )


def _kind(x: Instruction, inside: list[Instruction]) -> str:
  ops = {i.op for i in inside}
  targets = " ".join(i.target for i in inside)
  if "__cublas" in targets or "dot" in ops:
    return "matmul"
  if "__cudnn$conv" in targets or "convolution" in ops:
    # To TPUs a matmul is a convolution without a window.
    windows = any("window={size" in i.attributes for i in inside)
    return "convolution" if windows or "__cudnn" in targets else "matmul"
  if re.search(r"tpu_custom_call|mosaic", targets):
    return "pallas"
  if re.search(r"triton", targets):
    return "triton"
  if any(op.removesuffix("-start") in hlo.KINDS for op in ops):
    return "collective"
  if x.op in ("copy", "copy-start", "slice-start"):
    return "copy"
  for kind in ("sort", "scatter", "reduce", "transpose", "pad"):
    if kind in ops or (kind == "reduce" and "reduce-window" in ops):
      return kind
  busy = ops - {"parameter", "constant", "bitcast", "tuple"}
  if busy <= {"copy", "slice", "dynamic-slice", "dynamic-update-slice"}:
    return "copy"
  return "custom call" if x.op == "custom-call" else "loop"


def _matmul_dtype(module: Module, x: Instruction, dtype: str) -> str:
  """Of what a matmul multiplies, which its fusion may first convert."""
  body = module.computations.get(x.called("calls"), {})
  for i in body.values():
    if i.op == "fusion":
      dtype = _matmul_dtype(module, i, dtype)
    if i.op in ("dot", "convolution") and i.operands[0] in body:
      return body[i.operands[0]].arrays[0].dtype
  return dtype


def _epilogue(x: Instruction) -> str:
  if not x.target.startswith("__cublas"):
    return ""
  match = re.search(r'"epilogue":"(\w+)"', x.attributes)
  beta = re.search(r'"beta":([\d.e+-]+)', x.attributes)
  added = "+C" if beta and float(beta.group(1)) else ""
  return (match.group(1) if match else "DEFAULT") + added


def _op_name(
  x: Instruction, inside: list[Instruction], here: Computation
) -> str:
  """A kernel's, else of most that is in it, else of what it works on."""
  seen = 0
  while not x.op_name or "(" not in x.op_name:
    names = [i.op_name for i in inside if "(" in i.op_name]
    if names:
      return max(names, key=names.count)
    if not x.operands or x.operands[0] not in here or seen > 8:
      return ""
    x, inside, seen = here[x.operands[0]], [], seen + 1
  return x.op_name
