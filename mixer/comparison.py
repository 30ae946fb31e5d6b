"""How two checkpoints differ."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer import config as config_lib
from mixer import description, weights


def compare(
  first: description.Described, second: description.Described
) -> dict[str, Any]:
  """What differs, as JSON values.

  Args:
    first: what the second one is held against.
    second: of any model.

  Returns:
    `same_weights`, whether all arrays are the same to the bit; `shapes`, lines
    on parameters that only one has or that are of other shapes; `modules`, for
    each module that both have in the same shape `relative` |b - a| / |a|,
    `cosine` of the angle between a and b, `largest` |b - a| of an element and
    `changed`, the share of elements that differ; `facts`, pairs of what is told
    of the models; `config`, `environment` and `metrics`, pairs by name, those
    that differ alone.
  """
  a, b = (
    {k: np.asarray(v) for k, v in weights.flatten(x.params).items()}
    for x in (first, second)
  )
  shapes = weights.mismatches(weights.shapes(a), weights.shapes(b))
  groups: dict[str, list[str]] = {}
  for name in a:
    if name in b and a[name].shape == b[name].shape:
      groups.setdefault(description.module_of(name), []).append(name)
  modules = {
    module: _distance([(a[n], b[n]) for n in names])
    for module, names in groups.items()
  }
  told = first.facts, second.facts
  plain = ("model", "step", "parameters", "origin", "class_names")
  return {
    "same_weights": first.facts["sha256"] == second.facts["sha256"],
    "shapes": shapes,
    "modules": modules,
    "facts": _pairs(*({k: x.get(k) for k in plain} for x in told)),
    "class_names": _pairs(
      *({"class_names": x.get("class_names")} for x in told)
    ),
    "config": _pairs(
      *(config_lib.flatten(x.get("config") or {}) for x in told)
    ),
    "environment": _pairs(*(_environment(x) for x in told)),
    "metrics": _pairs(*(x.get("metrics") or {} for x in told)),
  }


def _environment(facts: Mapping[str, Any]) -> dict[str, Any]:
  about = dict(facts.get("environment") or {})
  return about | dict(about.pop("versions", None) or {})


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
  """`[in a, in b]` of what differs; None where one has no such thing."""
  return {
    key: [a.get(key), b.get(key)]
    for key in dict.fromkeys([*a, *b])
    if a.get(key) != b.get(key)
  }


def _distance(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
  """Of all arrays of a module as one vector; see `compare`."""
  squares = np.zeros(3)
  between, largest, changed, count = 0.0, 0.0, 0, 0
  for a, b in pairs:
    x, y = (v.astype(np.float64).ravel() for v in (a, b))
    difference = y - x
    squares += x @ x, y @ y, difference @ difference
    between += float(x @ y)
    largest = max(largest, float(np.max(np.abs(difference), initial=0)))
    changed += int(np.count_nonzero(difference))
    count += x.size
  own, other, apart = np.sqrt(squares)
  return {
    "relative": float(apart / own) if own else None,
    "cosine": between / float(own * other) if own and other else None,
    "largest": largest,
    "changed": changed / count,
  }
