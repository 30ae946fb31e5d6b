"""Shows what a checkpoint holds, or how two differ.

  python -m mixer inspect CHECKPOINT [--parameters] [--json]
  python -m mixer inspect CHECKPOINT OTHER [--json]

A checkpoint is whatever --checkpoint takes: a workdir (its newest one), one of
its checkpoints, a file of weights, a name. Prints the model, the starts of its
run, the newest metrics, the config and a SHA-256 over all parameters (and over
their average). Verifies all arrays, the optimizer's too, by their saved
digests: the exit code is 1 if one differs. Of two, prints how far apart their
weights are, and every other difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from etils import epy

from mixer import errors
from mixer.errors import UserError

with epy.lazy_imports():
  import numpy as np

  from mixer import checkpoints, metrics, released, runtime, trained, weights
  from mixer import config as config_lib
  from mixer.insight import kernels

_METADATA = ("config", "resolved", "class_names", "environment", "history")
# Keys that the text of one checkpoint leaves out, and that of two.
_LONG = ("modules.", "shapes.", "resolved.", "environment.", "history")
_NOISE = (
  *("path", "modules.", "norm", "sha256", "digests", "not_as_saved", "history"),
  *("file_sha256", "metrics.goodput/", "metrics.data/"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  add = parser.add_argument
  text = "workdir, WORKDIR/checkpoints/STEP, file of weights, or name"
  add("path", metavar="CHECKPOINT", help=text)
  add("other", metavar="OTHER", nargs="?", help="to compare it with")
  text = "list every parameter, and norms by module"
  add("--parameters", action="store_true", help=text)
  add("--json", action="store_true", help="for programs")


def describe(path: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """What is known of a checkpoint or file, as JSON; its weights by name."""
  facts: dict[str, Any] = {}
  if (file := released.resolve(path)) is None:
    count, different = checkpoints.verify(path)
    params, info = checkpoints.load_params(path, averaged=False, verify=False)
    facts |= {"step": info["step"], "metrics": {}}
    facts |= {name: info.get(name) for name in _METADATA}
    for record in metrics.read(checkpoints.locate(path)[0]):
      if record["step"] <= info["step"]:
        facts["metrics"] |= record
    facts |= {"digests": count, "not_as_saved": different}
    if info["averaged"]:
      average, _ = checkpoints.load_params(path, verify=False)
      facts["sha256_ema"] = weights.digest(average)
    file = info["path"]
  else:
    params = released.read(file, path)
    with open(file, "rb") as f:
      facts["file_sha256"] = hashlib.file_digest(f, "sha256").hexdigest()
    if known := trained.read_beside(file):
      facts["class_names"] = known.get("class_ids")
  flat = weights.flatten(params)
  norm = np.linalg.norm
  modules = {
    name: {
      "parameters": x.size,
      "norm": float(norm(x)),
      "largest": float(np.abs(x).max(initial=0)),
    }
    for name, x in _modules(flat).items()
  }
  about = {
    "path": str(file),
    "model": kernels.model_name(params),
    "parameters": sum(x.size for x in flat.values()),
    "norm": float(norm([x["norm"] for x in modules.values()])),
    "finite": not weights.not_finite(params),
    "sha256": weights.digest(params),
    "modules": modules,
    "shapes": {k: list(x.shape) for k, x in flat.items()},
  }
  return about | facts, flat


def _modules(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`stem`, `MixerBlock_3/token_mixing` and so on, each as one vector."""
  leaves: dict[str, list[Any]] = {}
  for name, leaf in flat.items():
    module = "/".join(name.split("/")[:-1][:2])
    leaves.setdefault(module, []).append(np.ravel(leaf).astype(np.float64))
  return {module: np.concatenate(own) for module, own in leaves.items()}


def compare(first: Any, second: Any) -> dict[str, Any]:
  """The differences of two results of `describe`, as JSON.

  `modules`, of parameters that both have: `relative` |b - a| / |a|, the
  `cosine` of a and b, the `largest` change, and the share that `changed`.
  """
  (about, a), (other, b) = first, second
  same = [k for k in a if k in b and a[k].shape == b[k].shape]
  ours, theirs = (_modules({k: x[k] for k in same}) for x in (a, b))
  modules = {}
  for name, x in ours.items():
    y = theirs[name]
    own, own_y, apart = (float(np.linalg.norm(v)) for v in (x, y, y - x))
    modules[name] = {
      "relative": apart / own if own else None,
      "cosine": float(x @ y) / (own * own_y) if own and own_y else None,
      "largest": float(np.abs(y - x).max(initial=0)),
      "changed": float(np.mean(x != y)),
    }
  a, b = config_lib.flatten(about), config_lib.flatten(other)
  pairs = {key: [a.get(key), b.get(key)] for key in a | b}
  return {
    "same_weights": about["sha256"] == other["sha256"],
    "modules": modules,
    "differences": {k: v for k, v in pairs.items() if v[0] != v[1]},
  }


def _print(about: Mapping[str, Any]) -> None:
  """A line for each fact, but for keys of the config with their defaults."""
  default = config_lib.flatten({"config": config_lib.default()})
  for key, value in config_lib.flatten(about).items():
    if not key.startswith(_LONG) and value != default.get(key):
      print(f"{key:<32}{_short(value)}")
  for entry in about.get("history") or []:
    print(f"{'start':<32}{_short(entry)}")


def _list(rows: Mapping[str, Mapping[str, Any]]) -> None:
  """Prints a line for each module or parameter."""
  for name, row in rows.items():
    print(f"{name:<48}{_short(row)}")


def _short(value: Any) -> str:
  if isinstance(value, Mapping):
    flat = config_lib.flatten(value).items()
    return ", ".join(f"{k} {_short(v)}" for k, v in flat if v not in ("", None))
  if isinstance(value, list | tuple):
    more = f", ... ({len(value):,} in all)" if len(value) > 5 else ""
    return ", ".join(map(_short, value[:5])) + more or "(none)"
  if isinstance(value, float | np.floating):
    return f"{value:.6g}"
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:,}"
  return "(none)" if value is None else errors.printable(value)


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  runtime.start("cpu")
  both = [describe(path) for path in (args.path, args.other) if path]
  facts, flat = both[0]
  found = compare(*both) if args.other else facts
  if args.json:
    print(json.dumps(found, indent=2))
  elif args.other:
    print(f"a  {facts['path']}\nb  {both[1][0]['path']}\n")
    if found["same_weights"]:
      print("The weights are the same to the bit.")
    else:
      print("Weights; relative is |b - a| / |a|:")
      _list(found["modules"])
    for key, (a, b) in found["differences"].items():
      if not key.startswith(_NOISE):
        print(f"{key}: {_short(a)} -> {_short(b)}")
  else:
    _print(facts)
    if args.parameters:
      for k, x in flat.items():
        _list({k: {"shape": [*x.shape], "mean": np.mean(x), "std": np.std(x)}})
      _list(facts["modules"])
  for about, _ in both:
    if changed := about.get("not_as_saved"):
      raise UserError(
        f"checkpoint {about['path']} is damaged; not as saved: "
        f"{weights.shorten(changed)}. Take another one, or a copy."
      )
