"""The text of a module that XLA has compiled, as instructions with shapes."""

import dataclasses
import functools
import math
import re

from mixer.planning import hlo

_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_LINE = re.compile(
  r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = "
  r"(?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w-]*)\("
)


@dataclasses.dataclass(frozen=True)
class Array:
  """The type of an array.

  Attributes:
    dtype: as XLA writes it, "bf16".
    sides: its shape.
    space: memory that it lies in: 0 is the device's large one; others are on
      the chip (TPUs), or the host's.
    stored: its shape as stored, where it is padded to whole tiles (TPUs).
  """

  dtype: str
  sides: tuple[int, ...]
  space: int = 0
  stored: tuple[int, ...] = ()

  @property
  def size(self) -> int:
    """Bytes, with those of padding."""
    sides = self.stored or self.sides
    return math.ceil(hlo.element_bytes(self.dtype) * math.prod(sides))

  @property
  def traffic(self) -> int:
    """Bytes that reading or writing it moves to or from the large memory."""
    return 0 if self.space else self.size

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.sides))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: of its result.
    op: "fusion", "dot", "custom-call".
    arrays: of the result, those of a tuple side by side.
    operands: names.
    attributes: the text behind the operands.
    inside: the text in place of the operands, as of a parameter's number.
    is_root: whether it is the computation's result.
  """

  name: str
  op: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  attributes: str
  inside: str
  is_root: bool

  @property
  def op_name(self) -> str:
    """What JAX calls it: a path of transformations, modules, a primitive."""
    match = re.search(r'\bop_name="([^"]*)"', self.attributes)
    return match.group(1) if match else ""

  @property
  def target(self) -> str:
    """What a custom call calls, else ""."""
    match = re.search(r'\bcustom_call_target="([^"]*)"', self.attributes)
    return match.group(1) if match else ""

  def called(self, key: str) -> str:
    """The computation that an attribute names, else ""."""
    match = re.search(rf"\b{key}=%?([\w.-]+)", self.attributes)
    return match.group(1) if match else ""

  def numbers(self, key: str) -> tuple[int, ...]:
    """An attribute such as `lhs_contracting_dims={1}`; () where it lacks."""
    match = re.search(rf"\b{key}=\{{([\d,]*)\}}", self.attributes)
    return _integers(match.group(1)) if match else ()


Computation = dict[str, Instruction]


class Module:
  """A module by computation.

  Attributes:
    computations: name -> its instructions by name, in the order of the text,
      which is that of execution in a scheduled module. "" is the one that is
      executed.
  """

  def __init__(self, text: str):
    """Reads `compiled.as_text()`.

    Raises:
      ValueError: an element type that isn't known.
    """
    self._bodies = hlo.computations(text)
    self.computations: dict[str, Computation] = {
      name: {
        found.name: found
        for line in lines
        if (found := _instruction(line)) is not None
      }
      for name, lines in self._bodies.items()
    }

  def trips(self, loop: Instruction) -> int:
    """How often a `while` runs; 1 where that can't be read."""
    line = f" %{loop.name} = () while(), {loop.attributes}"
    return hlo.trips(line, self._bodies)


def _integers(text: str) -> tuple[int, ...]:
  return tuple(int(x) for x in text.split(",") if x)


@functools.lru_cache(maxsize=4096)
def arrays(text: str) -> tuple[Array, ...]:
  """Those in the text of a type."""
  found = []
  for dtype, sides, layout in _ARRAY.findall(text):
    space = re.search(r"S\((\d+)\)", layout)
    number = int(space.group(1)) if space else 0
    whole = _integers(sides.replace("<=", ""))
    found.append(Array(dtype, whole, number, _stored(whole, layout)))
  return tuple(found)


def _stored(sides: tuple[int, ...], layout: str) -> tuple[int, ...]:
  """Sides from the outermost to the innermost, the last ones in whole tiles.

  Args:
    sides: as of the array.
    layout: of it, such as "0,1:T(8,128)(2,1)": from the innermost dimension to
      the outermost, and tiles, of which the first is the one that pads.
  """
  match = re.match(r"([\d,]*):T\(([\d,]+)\)", layout)
  if match is None or not sides:
    return ()
  stored = [sides[i] for i in reversed(_integers(match.group(1)))]
  tile = _integers(match.group(2))[-len(stored) :]
  for i, side in enumerate(reversed(tile), 1):
    stored[-i] = -(-stored[-i] // side) * side
  return tuple(stored)


def _instruction(line: str) -> Instruction | None:
  match = _LINE.match(line)
  if match is None:
    return None
  inside, attributes = _split(line[match.end() :])
  return Instruction(
    match.group("name"),
    match.group("op"),
    arrays(match.group("type")),
    tuple(re.findall(r"%([\w.-]+)", inside)),
    attributes,
    inside,
    match.group("root") is not None,
  )


def _split(text: str) -> tuple[str, str]:
  """What stands before the parenthesis that closes, and what behind it."""
  depth = 1
  for match in re.finditer(r"[()]", text):
    depth += 1 if match.group() == "(" else -1
    if not depth:
      return text[: match.start()], text[match.end() :].lstrip(", ")
  return text, ""
