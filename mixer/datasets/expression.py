"""TFDS split expressions, as "train[:98%]" or "train[:800]+validation"."""

import re
from collections.abc import Mapping, Sequence

_PART = re.compile(r"([\w-]+)(?:\[([\w%:.-]+)\])?")
_BOUND = re.compile(r"(?:(-?[\d_.]+)(%|shard)?)?")

# A split, and from which of its examples up to which.
Part = tuple[str, int, int]


def parts(
  expression: str, splits: Mapping[str, Sequence[int]]
) -> tuple[Part, ...]:
  """What an expression takes, in its order; as TFDS reads it.

  Args:
    expression: names of splits, with slices in examples, per cent or shards.
    splits: name -> examples of each shard.

  Raises:
    ValueError: no such split or slice; says why, without a full stop.
  """
  found = []
  for text in re.split(r"\s*\+\s*", expression):
    match = _PART.fullmatch(text)
    if not match:
      raise ValueError("a split is written as a name, or a name and a [slice]")
    name, bounds = match.groups()
    if name == "all" and name not in splits:
      if bounds is not None:
        raise ValueError('"all" takes no slice')
      found += [(k, 0, sum(v)) for k, v in splits.items()]
    elif name not in splits:
      raise ValueError(f"there is no {name!r}")
    else:
      found.append((name, *_slice(bounds, splits[name])))
  return tuple(found)


def _slice(bounds: str | None, lengths: Sequence[int]) -> tuple[int, int]:
  size = sum(lengths)
  if bounds is None:
    return 0, size
  matches = [_BOUND.fullmatch(b) for b in bounds.split(":")]
  if (
    len(matches) > 2 or not all(matches) or not any(m and m[0] for m in matches)
  ):
    raise ValueError(f"[{bounds}] is no slice")
  values = [m[1] for m in matches if m]
  unit = next((m[2] for m in matches if m and m[2]), "")
  if len(values) == 1 and unit != "shard":
    raise ValueError(f"[{bounds}] names no end, as [{bounds}:] does")

  def place(text: str | None, default: int) -> int:
    if text is None:
      return default
    return round(float(text) * size / 100.0) if unit == "%" else int(text)

  try:
    start = place(values[0], 0)
    stop = start + 1 if len(values) == 1 else place(values[1], size)
  except ValueError as e:
    raise ValueError(f"[{bounds}] has numbers that are none") from e
  if unit == "%" and max(abs(float(v or 0)) for v in values) > 100:
    raise ValueError(f"[{bounds}] is more than 100 %")
  if unit == "shard":
    count = len(lengths)
    start = sum(lengths[:start]) if values[0] else 0
    if len(values) == 1 or values[1]:
      stop = sum(lengths[: stop if stop > 0 else count + stop])
  if max(abs(start), abs(stop)) > size:
    raise ValueError(f"[{bounds}] is beyond its {size:,} examples")
  return start + size * (start < 0), stop + size * (stop < 0)
