"""Shows what a checkpoint holds, or how two differ.

  python -m mixer inspect CHECKPOINT [--parameters] [--json]
  python -m mixer inspect CHECKPOINT OTHER [--json]

A checkpoint is a workdir (its newest one), WORKDIR/checkpoints/STEP, an .npz
file or the name of a released one. Prints what model it is, where it comes from
(starts, machines, versions, the code's hash), the newest metrics, the config,
and one SHA-256 over all parameters (and one over their average where the run
kept one); with --parameters also each parameter, and norms by module. Compares
all arrays, the optimizer's too, with the digests that were saved beside them:
where one differs, the exit code is 1. Of two, prints how far apart their
weights are, module by module, and what differs in config, metrics and
provenance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from etils import epy

from mixer import errors
from mixer.errors import UserError

with epy.lazy_imports():
  import numpy as np

  from mixer import (
    checkpoints,
    metrics,
    npz,
    released,
    runtime,
    weights,
  )
  from mixer import config as config_lib
  from mixer import metadata as metadata_lib
  from mixer.insight import kernels

_METADATA = (
  *("config", "resolved", "class_names", "origin", "environment", "history"),
)
# That differs of any two runs, and says little: in JSON alone.
_NOISE = ("goodput/", "data/")

Described: TypeAlias = "tuple[dict[str, Any], weights.Params]"


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  parser.add_argument(
    "path",
    metavar="CHECKPOINT",
    help="workdir, WORKDIR/checkpoints/STEP, .npz file, or released name",
  )
  parser.add_argument(
    "other", metavar="OTHER", nargs="?", help="to compare it with"
  )
  parser.add_argument(
    "--parameters",
    action="store_true",
    help="list every parameter, and norms by module",
  )
  parser.add_argument("--json", action="store_true", help="for programs")


def describe(path: str) -> Described:
  """What a checkpoint or a file of weights says, as JSON; and its weights."""
  if released.kind(path) == "checkpoint":
    return _checkpoint(path)
  params, file = released.load(path), released.resolve(path)
  with open(file, "rb") as f:
    sha256 = hashlib.file_digest(f, "sha256").hexdigest()
  older = npz.is_older(npz.read(file, values=False))
  facts = {
    "path": str(file),
    "bytes": file.stat().st_size,
    "file_sha256": sha256,
    "layout": "older names" if older else "current names",
  }
  num_classes = len(params.get("head", {}).get("bias", ()))
  if known := metadata_lib.read_beside(file, num_classes):
    facts["class_names"] = known.class_ids
  return facts | _of_weights(params), params


def _checkpoint(path: str) -> Described:
  count, different = checkpoints.verify(path)
  params, info = checkpoints.load_params(path, averaged=False, verify=False)
  workdir, step = checkpoints.locate(path)
  newest: dict[str, Any] = {}
  for record in metrics.read(workdir):
    newest |= record if record["step"] <= step else {}
  facts = {"path": info["path"], "step": step} | _of_weights(params)
  if info["averaged"]:
    average, _ = checkpoints.load_params(path, verify=False)
    facts["sha256_ema"] = digest(average)
  facts |= {"digests": count, "not_as_saved": different, "metrics": newest}
  return facts | {name: info.get(name) for name in _METADATA}, params


def _of_weights(params: weights.Params) -> dict[str, Any]:
  flat = weights.flatten(params)
  modules = {
    module: {
      "parameters": sum(x.size for x in leaves.values()),
      "norm": _norm(leaves.values()),
      "largest": max(np.abs(x).max(initial=0).item() for x in leaves.values()),
    }
    for module, leaves in _modules(flat).items()
  }
  return {
    "model": kernels.model_name(params),
    "parameters": sum(x.size for x in flat.values()),
    "norm": _norm(flat.values()),
    "finite": not weights.not_finite(params),
    "sha256": digest(params),
    "modules": modules,
    "shapes": {k: list(x.shape) for k, x in flat.items()},
  }


def digest(params: weights.Params) -> str:
  """SHA-256 over all parameters, in a stated order.

  For each leaf, ordered by its '/'-joined name: the name, its dtype and its
  shape as `name dtype (shape)` in UTF-8, a zero byte, then its values in C
  order, little-endian.
  """
  sha = hashlib.sha256()
  for name, leaf in sorted(weights.flatten(params).items()):
    leaf = np.asarray(leaf)
    leaf = np.asarray(leaf, leaf.dtype.newbyteorder("<"), order="C")
    sha.update(f"{name} {leaf.dtype.name} {leaf.shape}".encode() + b"\0")
    sha.update(leaf.tobytes())
  return sha.hexdigest()


def _modules(flat: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
  """Leaves by module: `MixerBlock_3/token_mixing`, `stem`, `head`."""
  found: dict[str, dict[str, np.ndarray]] = {}
  for name, leaf in flat.items():
    module = "/".join(name.split("/")[:-1][:2])
    found.setdefault(module, {})[name] = np.asarray(leaf)
  return found


def _norm(leaves: Iterable[np.ndarray]) -> float:
  squares = (np.sum(np.square(x, dtype=np.float64)) for x in leaves)
  return float(sum(squares)) ** 0.5


def compare(first: Described, second: Described) -> dict[str, Any]:
  """What differs of two, as JSON.

  `same_weights`, to the bit; `shapes`, lines on parameters that differ in them;
  `modules`, for each that both have: `relative` |b - a| / |a|, the `cosine` of
  a and b, the `largest` change of a weight, and the share that `changed`; and
  pairs of what differs, by name.
  """
  (a, params), (b, others) = first, second
  flat, other = weights.flatten(params), weights.flatten(others)
  both = {k for k in flat.keys() & other if flat[k].shape == other[k].shape}
  plain = ("model", "step", "parameters", "origin", "class_names")

  def pairs(read: Any) -> dict[str, list[Any]]:
    x, y = read(a) or {}, read(b) or {}
    keys = dict.fromkeys([*x, *y])
    return {k: [x.get(k), y.get(k)] for k in keys if x.get(k) != y.get(k)}

  return {
    "same_weights": a["sha256"] == b["sha256"],
    "shapes": weights.mismatches(
      weights.shapes(params), weights.shapes(others)
    ),
    "modules": {
      module: _distance([(x, np.asarray(other[k])) for k, x in leaves.items()])
      for module, leaves in _modules(
        {k: x for k, x in flat.items() if k in both}
      ).items()
    },
    "facts": pairs(lambda facts: {k: facts.get(k) for k in plain}),
    "config": pairs(
      lambda facts: config_lib.flatten(facts.get("config") or {})
    ),
    "metrics": pairs(lambda facts: facts.get("metrics")),
    "environment": pairs(_environment),
  }


def _environment(facts: Mapping[str, Any]) -> dict[str, Any]:
  found = facts.get("environment") or {}
  return {**found, **found.get("versions", {}), "versions": None}


def _distance(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
  """Of all arrays of a module as one vector."""
  a, b = (
    np.concatenate([x.ravel() for x in side])
    for side in zip(*pairs, strict=True)
  )
  a, b = a.astype(np.float64), b.astype(np.float64)
  own, other, apart = (float(np.linalg.norm(x)) for x in (a, b, b - a))
  return {
    "relative": apart / own if own else None,
    "cosine": float(a @ b) / (own * other) if own and other else None,
    "largest": float(np.abs(b - a).max(initial=0)),
    "changed": float(np.mean(a != b)),
  }


def _print(about: Mapping[str, Any], params: Any, parameters: bool) -> None:
  classes = about.get("class_names") or ()
  head = f"; classes {_short(classes)}" if classes else ""
  rows = [
    ("checkpoint", about["path"]),
    ("model", f"{about['model']}; {about['parameters']:,} parameters{head}"),
  ]
  if "layout" in about:
    rows += [
      ("file", f"{about['bytes']:,} bytes, {about['layout']}"),
      ("", f"sha256 {about['file_sha256']}"),
    ]
  else:
    total = (about["resolved"] or {}).get("total")
    rows += [("step", f"{about['step']}" + (f" of {total}" if total else ""))]
    rows += [("made", line) for line in _made(about)]
  finite = "" if about["finite"] else "  NOT ALL FINITE"
  rows.append(("norm", f"{about['norm']:.6f}{finite}"))
  recorded = about.get("metrics", {})
  rows += [
    ("metrics", f"{name:<26}{_short(value)}")
    for name, value in recorded.items()
    if name != "step"
  ]
  if about.get("config"):
    default = config_lib.flatten(config_lib.default())
    flat = config_lib.flatten(about["config"])
    rows += [
      ("config", f"{k}: {v!r}") for k, v in flat.items() if v != default.get(k)
    ]
    rows.append(("config", "(all else has its default; --json has everything)"))
  rows.append(("sha256", about["sha256"]))
  if "sha256_ema" in about:
    rows.append(("sha256_ema", about["sha256_ema"]))
  if "digests" in about:
    rows.append(("digests", _verified(about)))
  before = ""
  for label, line in rows:
    _say(f"{'' if label == before else label:<12}{line}")
    before = label
  if parameters:
    _table(
      ("parameter", "shape", "mean", "std"),
      [
        (name, str(x.shape), f"{np.mean(x):.3g}", f"{np.std(x):.3g}")
        for name, x in weights.flatten(params).items()
      ],
    )
    _table(
      ("module", "parameters", "norm", "largest"),
      [
        (k, f"{m['parameters']:,}", f"{m['norm']:.4g}", f"{m['largest']:.3g}")
        for k, m in about["modules"].items()
      ],
    )


def _made(metadata: Mapping[str, Any]) -> list[str]:
  """Lines for people: the starts of a run, machines and code."""
  lines = []
  for i, entry in enumerate(metadata.get("history") or []):
    steps, about = entry["steps"], entry["environment"]
    at = ""
    if steps:
      shown = ", ".join(f"{s:,}" for s in steps[:8])
      more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
      at = f"started at step {shown}{more}: "
    lines.append(at + ("went on" if i else entry["origin"]))
    lines += [f"  {line}" for line in _machine(about)]
  return lines


def _machine(about: Mapping[str, Any]) -> list[str]:
  lines = []
  if "device_kind" in about:
    processes = about.get("num_processes", 1)
    of = f" of {processes} processes" if processes > 1 else ""
    lines.append(
      f"on {about['num_devices']} x {about['device_kind']}{of}, first host "
      f"{about.get('host') or 'unknown'}"
    )
  code = {k: about[k] for k in ("source", "commit") if about.get(k)}
  for parts in (code, about.get("versions") or {}):
    if parts:
      lines.append(", ".join(f"{k} {v}" for k, v in parts.items()))
  return lines


def _print_both(a: str, b: str, found: Mapping[str, Any]) -> None:
  _say(f"a  {a}\nb  {b}\n")
  if found["same_weights"]:
    print("The weights are the same to the bit.")
  elif found["modules"]:
    print("Weights, |b - a| / |a| and so on by module:")
    _table(
      ("module", "relative", "cosine", "largest", "changed"),
      [
        (
          name,
          "-" if m["relative"] is None else f"{m['relative']:.3g}",
          "-" if m["cosine"] is None else f"{m['cosine']:.4f}",
          f"{m['largest']:.3g}",
          f"{m['changed']:.1%}",
        )
        for name, m in found["modules"].items()
      ],
    )
  for line in found["shapes"]:
    _say(f"in a, not so in b: {line}")
  for group in ("facts", "config", "metrics", "environment"):
    for name, (first, second) in found[group].items():
      if not name.startswith(_NOISE):
        key = name if group == "facts" else f"{group} {name}"
        _say(f"{key}: {_short(first)} -> {_short(second)}")


def _say(line: str) -> None:
  print(errors.printable(line, keep="\n"))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  """Prints columns, the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  for first, *rest in (head, *rows):
    cells = [f"{c:>{w}}" for c, w in zip(rest, widths[1:], strict=True)]
    _say("  ".join([f"{first:<{widths[0]}}", *cells]))


def _short(value: Any) -> str:
  if isinstance(value, list | tuple):
    more = f", ... ({len(value):,} in all)" if len(value) > 5 else ""
    return ", ".join(map(str, value[:5])) + more
  if isinstance(value, float):
    return f"{value:.6g}"
  return "(none)" if value is None else str(value)


def _verified(about: Mapping[str, Any]) -> str:
  """What the comparison with the digests has found."""
  if not about["digests"]:
    return "none: this checkpoint is from before there were any"
  of = f"{about['digests']} arrays"
  if about["not_as_saved"]:
    return f"{of}, NOT AS SAVED: {weights.shorten(about['not_as_saved'])}"
  return f"{of}, all as saved"


def main(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend, or a damaged checkpoint.
  """
  runtime.start("cpu")
  found = [describe(path) for path in (args.path, args.other) if path]
  facts, params = found[0]
  if len(found) == 2:
    different = compare(*found)
    if args.json:
      print(json.dumps(different, indent=2))
    else:
      _print_both(facts["path"], found[1][0]["path"], different)
  elif args.json:
    print(json.dumps(facts, indent=2))
  else:
    _print(facts, params, args.parameters)
  for about, _ in found:
    if about.get("not_as_saved"):
      raise UserError(
        f"checkpoint {about['path']} is damaged: {_verified(about)}. Take "
        "another one, or a copy."
      )
