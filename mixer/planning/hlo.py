"""Reads XLA's compiled code: what devices tell each other, what is copied."""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "s16": 2,
  "u16": 2,
  "f16": 2,
  "bf16": 2,
  "s32": 4,
  "u32": 4,
  "f32": 4,
  "s64": 8,
  "u64": 8,
  "f64": 8,
}
KINDS = (
  "all-reduce",
  "reduce-scatter",
  "all-gather",
  "all-to-all",
  "collective-permute",
)
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(
  r"^\s+(?:ROOT )?%?[\w.-]+ = (?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w-]*)\("
)
_CALLED = re.compile(
  r"\b(?:calls|body|to_apply|called_computations|branch_computations|"
  r"true_computation|false_computation)=(?:\{([^}]*)\}|%?([\w.-]+))"
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of message between devices, all of a step.

  Attributes:
    kind: of `KINDS`.
    count: instructions that a step executes.
    size: bytes that they act on: of the array that is summed, of the whole
      that is scattered or gathered, of what one device passes on.
    sent: bytes that each device sends for it, in rings.
  """

  kind: str
  count: int
  size: int
  sent: int


@dataclasses.dataclass(frozen=True)
class _Message:
  kind: str
  size: int
  group: int
  times: int

  @property
  def sent(self) -> float:
    n = self.group
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
    return self.size * share.get(self.kind, (n - 1) / n)


def array_bytes(text: str) -> list[int]:
  """Bytes of every array in the text of a type.

  Raises:
    ValueError: an element type that isn't known here.
  """
  found = []
  for name, dims in _ARRAY.findall(text):
    if name not in _BYTES:
      raise ValueError(f"unknown element type {name} in {text[:80]}")
    sides = [int(d) for d in dims.split(",") if d]
    found.append(_BYTES[name] * math.prod(sides))
  return found


def element_bytes(name: str) -> float:
  """Bytes of an element of a type that XLA calls so; fractions below 8 bits.

  Raises:
    ValueError: it isn't known here.
  """
  if name in _BYTES:
    return _BYTES[name]
  if name in ("token", "opaque"):
    return 0
  if match := re.match(r"[su](\d)$|f(\d)e", name):
    return int(match.group(1) or match.group(2)) / 8
  raise ValueError(f"unknown element type {name}")


def collectives(text: str, num_devices: int) -> list[Collective]:
  """What each device sends in one execution.

  An instruction in a loop counts as often as the loop runs, where that can be
  read from the code, else once.

  Args:
    text: of a compiled module, `compiled.as_text()`.
    num_devices: that it is for.

  Returns:
    One for each kind there is, in the order of `KINDS`.
  """
  messages = [
    m for m in _messages(text, num_devices) if m.group > 1 and m.times
  ]
  found = []
  for kind in KINDS:
    here = [m for m in messages if m.kind == kind]
    if here:
      found.append(
        Collective(
          kind,
          sum(m.times for m in here),
          sum(m.size * m.times for m in here),
          round(sum(m.sent * m.times for m in here)),
        )
      )
  return found


def count(text: str, op: str) -> tuple[int, int]:
  """(how many instructions of a name there are, bytes of their results)."""
  sizes = [
    sum(array_bytes(m.group("type")))
    for line in text.splitlines()
    if (m := _INSTRUCTION.match(line)) and m.group("op") == op
  ]
  return len(sizes), sum(sizes)


def _messages(text: str, num_devices: int) -> Iterator[_Message]:
  bodies = computations(text)
  times = _executions(bodies)
  for name, lines in bodies.items():
    # libtpu's sum of which each device keeps a part: an all-reduce and a slice,
    # fused into what is in truth a reduce-scatter.
    scattered = "all-reduce-scatter" in name
    for line in lines:
      match = _INSTRUCTION.match(line)
      op = match.group("op") if match else ""
      kind = op.removesuffix("-start")
      if match is None or kind not in KINDS:
        continue
      group = _group(line, num_devices)
      size = _size(kind, op.endswith("-start"), match.group("type"), group)
      if scattered and kind == "all-reduce":
        kind = "reduce-scatter"
      yield _Message(kind, size, group, times.get(name, 0))


def _size(kind: str, is_start: bool, type_text: str, group: int) -> int:
  # Scalars beside the arrays are handles of what is under way.
  sizes = array_bytes(re.sub(r"\bu32\[\]", "", type_text))
  if kind == "reduce-scatter":
    total = sum(sizes)
    return total // (group + 1) * group if is_start else total * group
  if is_start and kind == "all-gather":  # Operands, then results.
    return sum(sizes) // (group + 1) * group
  if is_start and kind == "collective-permute":
    return sum(sizes) // 2
  return sum(sizes)


def _group(line: str, num_devices: int) -> int:
  """How many devices take part in each group of an instruction."""
  if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", line):
    return int(match.group(2))
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return match.group(1).count(",") + 1
  if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
    axes = dict(re.findall(r"'(\w+)'=(\d+)", match.group(1)))
    # An axis, or a part of one: 'name':(size before it)size.
    used = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", match.group(2))
    return math.prod(int(part or axes[name]) for name, part in used)
  if match := re.search(r"source_target_pairs=\{(\{[^=]*\})\}", line):
    return match.group(1).count("{") if "{" in match.group(1) else 1
  return num_devices


def computations(text: str) -> dict[str, list[str]]:
  """Name -> lines; the one that is executed has the name ""."""
  found: dict[str, list[str]] = {}
  here: list[str] = []
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      here = found.setdefault(
        "" if line.startswith("ENTRY") else match.group(1), []
      )
    elif line.startswith(" "):
      here.append(line)
  return found


def _executions(bodies: dict[str, list[str]]) -> dict[str, int]:
  """How often each computation runs; of branches, each once."""
  times: dict[str, int] = {}

  def visit(name: str, factor: int) -> None:
    times[name] = times.get(name, 0) + factor
    for line in bodies.get(name, ()):
      if " = " not in line:
        continue
      inner = factor * (trips(line, bodies) if " while(" in line else 1)
      for several, one in _CALLED.findall(line):
        for called in (several or one).split(","):
          visit(called.strip(" %"), inner)

  visit("", 1)
  return times


def trips(line: str, bodies: dict[str, list[str]]) -> int:
  """How often a loop runs; 1 where that can't be read.

  Args:
    line: the `while` instruction.
    bodies: of `computations`.
  """
  if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
    return int(match.group(1))
  # Else a counter, an element of what the loop carries, that rises by a
  # constant from 0 while it is less than another.
  named = dict(re.findall(r"\b(condition|body)=%?([\w.-]+)", line))
  condition = _definitions(bodies.get(named["condition"], []))
  body = _definitions(bodies.get(named["body"], []))
  compared = condition.get("ROOT", "")
  names = re.findall(r"%([\w.-]+)", compared)
  if not compared.startswith("compare(") or "direction=LT" not in compared:
    return 1
  index = _element(condition.get(names[0], ""))
  limit = _constant(condition.get(names[1], ""))
  results = re.findall(r"%([\w.-]+)", body.get("ROOT", "").split("), ")[0])
  if index is None or limit is None or index >= len(results):
    return 1
  added = body.get(results[index], "")
  for a, b in re.findall(r"^add\(%([\w.-]+), %([\w.-]+)\)", added):
    step = _constant(body.get(b, "")) or _constant(body.get(a, ""))
    if step:
      return -(-limit // step)
  return 1


def _definitions(lines: list[str]) -> dict[str, str]:
  """Name -> "op(operands), attributes"; "ROOT" -> that of the result."""
  found = {}
  for line in lines:
    match = _INSTRUCTION.match(line)
    if match:
      what = line[match.start("op") :]
      found[line.split(" = ")[0].split("%")[-1].strip()] = what
      if line.lstrip().startswith("ROOT"):
        found["ROOT"] = what
  return found


def _element(definition: str) -> int | None:
  match = re.match(r"get-tuple-element\(.*\), index=(\d+)", definition)
  return int(match.group(1)) if match else None


def _constant(definition: str) -> int | None:
  match = re.match(r"constant\((\d+)\)", definition)
  return int(match.group(1)) if match else None
