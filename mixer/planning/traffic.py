"""Bytes that a compiled kernel moves, and FLOP of its matmuls."""

import math
import re
from collections.abc import Iterator

import numpy as np

from mixer.planning.instructions import (
  Array,
  Computation,
  Instruction,
  Module,
)

# What gives an array another shape or type on its way, inside a kernel.
_VIEWS = ("bitcast", "reshape", "get-tuple-element", "tuple", "copy")
_PARTS = ("slice", "dynamic-slice", "gather")
_LIBRARY = ("__cublas", "__cudnn")


def inner(module: Module, kernel: Instruction) -> Iterator[Instruction]:
  """The instructions that a kernel is made of; itself where it isn't a fusion.

  Without those that only combine elements inside a reduction.
  """
  called = kernel.called("calls")
  if kernel.op not in ("fusion", "async-start") or not called:
    yield kernel
    return
  for instruction in module.computations.get(called, {}).values():
    yield from inner(module, instruction)


def read(module: Module, kernel: Instruction, here: Computation) -> list[int]:
  """Bytes that a kernel reads of each operand.

  Of an operand that a fusion takes only slices of, those; of one that it
  writes a part of in place, nothing. What is read twice counts once.

  Args:
    module: the kernel's.
    kernel: an instruction.
    here: the computation that it is in.
  """
  sizes = [
    sum(x.traffic for x in here[name].arrays) if name in here else 0
    for name in kernel.operands
  ]
  if kernel.op == "fusion":
    body = module.computations.get(kernel.called("calls"), {})
    for number, parameter in _parameters(body).items():
      if number < len(sizes) and sizes[number]:
        sizes[number] = _read(module, body, parameter, sizes[number])
  elif kernel.op in _PARTS and sizes:
    sizes[0] = min(sizes[0], sum(x.size for x in kernel.arrays))
  elif kernel.op == "slice-start":
    sizes[0] = min(sizes[0], kernel.arrays[1].size)
  elif kernel.op == "dynamic-update-slice" and sizes:
    sizes[0] = 0
  return sizes


def written(
  module: Module, kernel: Instruction, here: Computation
) -> tuple[int, ...]:
  """Bytes that a kernel writes of each array of its result.

  A library's workspace isn't counted, of a slice written in place only that.

  Args:
    module: the kernel's.
    kernel: an instruction.
    here: the computation that it is in.
  """
  arrays = kernel.arrays
  if kernel.target.startswith(_LIBRARY) and len(arrays) > 1:
    if arrays[-1].dtype in ("s8", "u8"):
      arrays = arrays[:-1]
  if kernel.op == "copy-start":  # The copy, what it is of, and a handle.
    arrays = arrays[:1]
  if kernel.op == "slice-start":  # What it is of, the slice, and a handle.
    arrays = arrays[1:2]
  sizes = [x.traffic for x in arrays]
  if kernel.op == "dynamic-update-slice":
    return (_update(kernel, here),)
  if kernel.op == "fusion":
    body = module.computations.get(kernel.called("calls"), {})
    for i, result in enumerate(_results(body)):
      if i < len(sizes) and sizes[i]:
        if result.op == "dynamic-update-slice":
          sizes[i] = min(sizes[i], _update(result, body))
  return tuple(sizes)


def _parameters(body: Computation) -> dict[int, Instruction]:
  return {int(x.inside): x for x in body.values() if x.op == "parameter"}


def _results(body: Computation) -> list[Instruction]:
  """What makes each array that a fused computation gives out."""
  root = next((x for x in body.values() if x.is_root), None)
  if root is None:
    return []
  several = root.operands if root.op == "tuple" else (root.name,)
  return [_source(body, body[name]) for name in several]


def _source(body: Computation, x: Instruction) -> Instruction:
  while x.op in ("bitcast", "reshape") and x.operands[0] in body:
    x = body[x.operands[0]]
  return x


def _update(x: Instruction, body: Computation) -> int:
  return sum(a.size for a in body[x.operands[1]].arrays)


def _read(
  module: Module, body: Computation, parameter: Instruction, whole: int
) -> int:
  """Bytes that a fused computation reads of a parameter of so many."""
  total, names = 0, [parameter.name]
  for name in names:  # Grows by what only looks at the parameter otherwise.
    for user in body.values():
      if name not in user.operands:
        continue
      where = [i for i, x in enumerate(user.operands) if x == name]
      if user.is_root and user.op != "fusion" and user.op not in _PARTS:
        if user.op != "dynamic-update-slice" or where != [0]:
          return whole
      elif user.op in _VIEWS:
        names.append(user.name)
      elif user.op in _PARTS and where == [0]:
        total += sum(x.size for x in user.arrays)
      elif user.op == "dynamic-update-slice" and where == [0]:
        continue
      elif user.op == "fusion":
        nested = module.computations.get(user.called("calls"), {})
        inside = _parameters(nested)
        total += sum(_read(module, nested, inside[i], whole) for i in where)
      else:
        return whole
  return min(total, whole)


def flop(module: Module, kernel: Instruction, here: Computation) -> int:
  """FLOP of the matmuls and convolutions in a kernel; 2 a multiplication.

  Args:
    module: the kernel's.
    kernel: an instruction.
    here: the computation that it is in.
  """
  if kernel.op == "fusion":
    body = module.computations.get(kernel.called("calls"), {})
    return sum(flop(module, x, body) for x in body.values())
  operands = [here[x].arrays[0] for x in kernel.operands if x in here]
  if kernel.target.startswith("__cublas"):
    match = re.search(
      r'"lhs_contracting_dimensions":\[([\d",]*)\]', kernel.attributes
    )
    sides = re.findall(r"\d+", match.group(1)) if match else []
    return _matmul(operands[0], kernel.arrays[0], [int(x) for x in sides])
  if kernel.op == "dot":
    sides = kernel.numbers("lhs_contracting_dims")
    return _matmul(operands[0], kernel.arrays[0], sides)
  if kernel.op == "convolution" or kernel.target.startswith("__cudnn$conv"):
    return _convolution(kernel, operands)
  return 0


def _matmul(left: Array, result: Array, contracted: list[int] | tuple) -> int:
  return (
    2 * math.prod(result.sides) * math.prod(left.sides[i] for i in contracted)
  )


def _convolution(x: Instruction, operands: list[Array]) -> int:
  """Of a convolution: multiplications with padding or holes aren't any."""
  match = re.search(r"\bdim_labels=(\w+)_(\w+)->(\w+)", x.attributes)
  if match is None or len(operands) < 2:
    return 0
  left, right, out = operands[0], operands[1], x.arrays[0]
  if "BackwardInput" in x.target:
    left, out = out, left
  elif "BackwardFilter" in x.target:
    right, out = out, right
  window = _window(x.attributes)
  positions = 1
  spatial = [c for c in match.group(2) if c.isdigit()]
  for c in spatial:
    positions *= _positions(
      left.sides[match.group(1).index(c)],
      right.sides[match.group(2).index(c)],
      out.sides[match.group(3).index(c)],
      *(part.get(int(c), usual) for part, usual in window),
    )
  inputs = right.sides[match.group(2).index("i")]
  groups = re.search(r"\bbatch_group_count=(\d+)", x.attributes)
  images = left.sides[match.group(1).index("b")]
  images //= int(groups.group(1)) if groups else 1
  outputs = right.sides[match.group(2).index("o")]
  return 2 * positions * inputs * outputs * images


def _window(text: str) -> list[tuple[dict[int, int], int]]:
  """Stride, padding before, distance of inputs, distance of weights.

  Returns:
    Of each the values by spatial dimension, and that of others.
  """
  match = re.search(r"\bwindow=\{([^}]*)\}", text)
  inside = match.group(1) if match else ""
  found = []
  keys = (("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
  for key, usual in keys:
    value = re.search(rf"\b{key}=([\dx_-]+)", inside)
    parts = value.group(1).split("x") if value else []
    values = {i: int(p.split("_")[0]) for i, p in enumerate(parts)}
    found.append((values, usual))
  return found


def _positions(
  size: int,
  kernel: int,
  out: int,
  stride: int,
  pad: int,
  spread: int,
  dilation: int,
) -> int:
  """How many pairs of an output and a weight meet an input, along a side.

  Args:
    size: of the input.
    kernel: number of weights.
    out: of the output.
    stride: between outputs.
    pad: before the input.
    spread: distance of inputs, between which are holes.
    dilation: distance of weights.
  """
  at = np.arange(out)[:, None] * stride - pad + np.arange(kernel) * dilation
  return int(((at >= 0) & (at % spread == 0) & (at < size * spread)).sum())
