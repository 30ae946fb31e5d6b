"""Everything that a checkpoint, or a file of weights, tells of itself."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer import (
  checkpoints,
  metrics,
  model,
  model_metadata,
  npz,
  released,
  weights,
)
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Described:
  """What there is under a path.

  Attributes:
    facts: JSON values, by name.
    params: nested dict of numpy arrays; not the average of them.
  """

  facts: dict[str, Any]
  params: Any


def describe(path: str) -> Described:
  """Reads a checkpoint of ours, or released weights.

  Args:
    path: a workdir, for its newest checkpoint, `WORKDIR/checkpoints/N`, an
      .npz file, or the name of a released one.

  Raises:
    UserError: nothing of the kind, or none that can be read.
  """
  if released.kind(path) == "checkpoint":
    return _checkpoint(path)
  return _file(path)


def _checkpoint(path: str) -> Described:
  count, different = checkpoints.verify(path)
  params, info = checkpoints.load_params(path, averaged=False, verify=False)
  average = {}
  if info["averaged"]:
    average_params, _ = checkpoints.load_params(path, verify=False)
    average = {"sha256_ema": digest(average_params)}
  workdir, step = checkpoints.locate(path)
  newest = {}
  for record in metrics.read(workdir):
    if record["step"] <= step:
      newest |= record
  facts = {"path": info["path"], "step": step} | _of_weights(params)
  facts |= average
  facts |= {"digests": count, "not_as_saved": different, "metrics": newest}
  own = ("config", "resolved", "class_names", "origin", "environment")
  facts |= {name: info.get(name) for name in (*own, "history")}
  return Described(facts, params)


def _file(path: str) -> Described:
  params = released.load(path)
  file = released.resolve(path)
  older = npz.is_older(npz.read(file, values=False))
  facts = {
    "path": str(file),
    "bytes": file.stat().st_size,
    "file_sha256": _of_file(file),
    "layout": "older names" if older else "current names",
  }
  facts |= _of_weights(params)
  head = params.get("head", {}).get("bias", ())
  if known := model_metadata.read_beside(file, len(head)):
    facts["class_names"] = known.class_ids
  return Described(facts, params)


def _of_weights(params: Any) -> dict[str, Any]:
  flat = {k: np.asarray(v) for k, v in weights.flatten(params).items()}
  return {
    "model": model_of(params),
    "parameters": sum(x.size for x in flat.values()),
    "norm": _norm(flat.values()),
    "finite": not weights.not_finite(params),
    "sha256": digest(params),
    "modules": modules(params),
    "shapes": {k: list(v) for k, v in weights.shapes(params).items()},
  }


def model_of(params: Any) -> str:
  """The model that weights are of, for people: "B/16", or its widths.

  The width of the token MLP is not part of a name, as it grows with the
  resolution.
  """
  try:
    shape = weights.shape_of(params)
  except UserError:
    return "another than the paper's"
  own = dataclasses.asdict(shape)
  for name in model.VARIANTS:
    spec = dataclasses.asdict(model.parse_variant(name))
    spec.pop("tokens_mlp_dim")
    if spec.items() <= own.items():
      return f"{name}, {shape.num_tokens} tokens"
  return (
    f"{shape.num_blocks} blocks, C {shape.hidden_dim}, T "
    f"{shape.tokens_mlp_dim}, F {shape.channels_mlp_dim}, patches of "
    f"{shape.patch_size} px, {shape.num_tokens} tokens"
  )


def modules(params: Any) -> dict[str, dict[str, float]]:
  """For each module its `parameters`, `norm` and `largest` absolute value."""
  groups: dict[str, list[np.ndarray]] = {}
  for name, leaf in weights.flatten(params).items():
    groups.setdefault(module_of(name), []).append(np.asarray(leaf))
  return {
    name: {
      "parameters": sum(x.size for x in leaves),
      "norm": _norm(leaves),
      "largest": max(float(np.max(np.abs(x), initial=0)) for x in leaves),
    }
    for name, leaves in groups.items()
  }


def module_of(name: str) -> str:
  """`MixerBlock_3/token_mixing` of a parameter in it; `stem`, `head`."""
  groups = name.split("/")[:-1]
  return "/".join(groups[:2])


def _norm(leaves: Any) -> float:
  return sum(float(np.sum(np.square(x, dtype=np.float64))) for x in leaves) ** (
    0.5
  )


def digest(params: Any) -> str:
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


def _of_file(path: pathlib.Path) -> str:
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def made(metadata: Mapping[str, Any]) -> list[str]:
  """Lines for people: what a checkpoint's metadata tell of its making."""
  lines = []
  entries = metadata.get("history") or []
  for entry in entries:
    steps, about = entry["steps"], entry["environment"]
    at = ""
    if steps:
      shown = ", ".join(f"{s:,}" for s in steps[:8])
      more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
      at = f"started at step {shown}{more}: "
    lines.append(at + (entry["origin"] if entry is entries[0] else "went on"))
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
  code = [f"source {about['source']}"] if about.get("source") else []
  code += [f"commit {about['commit']}"] if about.get("commit") else []
  if code:
    lines.append(", ".join(code))
  versions = about.get("versions") or {}
  if versions:
    lines.append(", ".join(f"{k} {v}" for k, v in versions.items()))
  return lines
