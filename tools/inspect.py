"""Shows what a checkpoint holds.

  python -m tools.inspect WORKDIR [--json]

Prints the step, a table of all parameters, their norm, the config, the versions
that made it, the newest metrics, and one SHA-256 over all parameters (and one
over their average where the run kept one). Compares all arrays, the optimizer's
too, with the digests that were saved beside them: where one differs, the exit
code is 1.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from mixer import checkpoints, command_line, metrics, runtime, weights
from mixer.errors import UserError
from mixer.storage import saved


def digest(params: Any) -> str:
  """SHA-256 over all parameters, in a stated order.

  For each leaf, ordered by its '/'-joined name: the name, its dtype and its
  shape as `name dtype (shape)` in UTF-8, a zero byte, then its values in C
  order, little-endian.
  """
  sha = hashlib.sha256()
  leaves = {
    jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  for name, leaf in sorted(leaves.items()):
    leaf = np.asarray(leaf, leaf.dtype.newbyteorder("<"), order="C")
    sha.update(f"{name} {leaf.dtype.name} {leaf.shape}".encode() + b"\0")
    sha.update(leaf.tobytes())
  return sha.hexdigest()


def describe(path: str) -> dict[str, Any]:
  """Everything that is printed, as JSON values.

  Args:
    path: a workdir, for its newest checkpoint, or `WORKDIR/checkpoints/N`.

  Raises:
    UserError: no checkpoint there, or none that can be read.
  """
  count, different = saved.verify(path)
  params, info = checkpoints.load_params(path, averaged=False, verify=False)
  average = {}
  if info["averaged"]:
    average_params, _ = checkpoints.load_params(path, verify=False)
    average = {"sha256_ema": digest(average_params)}
  workdir, step = checkpoints.locate(path)
  leaves = jax.tree.leaves(params)
  squares = sum(float(np.sum(np.square(x, dtype=np.float64))) for x in leaves)
  newest = {}
  for record in metrics.read(workdir):
    if record["step"] <= step:
      newest |= record
  return {
    "path": info["path"],
    "step": step,
    "parameters": sum(x.size for x in leaves),
    "norm": squares**0.5,
    "finite": all(bool(np.isfinite(x).all()) for x in leaves),
    "sha256": digest(params),
    "digests": count,
    "not_as_saved": different,
    "shapes": {k: list(v) for k, v in weights.shapes(params).items()},
    "metrics": newest,
    "config": info.get("config"),
    "resolved": info.get("resolved"),
    "class_names": info.get("class_names"),
    "origin": info.get("origin"),
    "environment": info.get("environment"),
    "_params": params,
  } | average


def _print(about: dict[str, Any]) -> None:
  print(f"checkpoint  {about['path']}")
  print(f"step        {about['step']}")
  print(f"origin      {about['origin']}")
  versions = (about["environment"] or {}).get("versions", {})
  print("versions    " + ", ".join(f"{k} {v}" for k, v in versions.items()))
  print(parameter_overview.get_parameter_overview(about["_params"]))
  finite = "" if about["finite"] else "  NOT ALL FINITE"
  print(f"norm        {about['norm']:.6f}{finite}")
  for name, value in about["metrics"].items():
    if name != "step":
      print(f"{name:<28}{value}")
  print(f"sha256      {about['sha256']}")
  if "sha256_ema" in about:
    print(f"sha256_ema  {about['sha256_ema']}")
  print(f"digests     {_compared(about)}")


def _compared(about: dict[str, Any]) -> str:
  """What the comparison with the digests has found."""
  if not about["digests"]:
    return "none: this checkpoint is from before there were any"
  of = f"{about['digests']} arrays"
  if about["not_as_saved"]:
    return f"{of}, NOT AS SAVED: {weights.shorten(about['not_as_saved'])}"
  return f"{of}, all as saved"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.inspect",
    description="Shows what a checkpoint holds.",
  )
  parser.add_argument("path", help="workdir, or WORKDIR/checkpoints/STEP")
  parser.add_argument("--json", action="store_true", help="for programs")
  args = parser.parse_args(argv)

  def body() -> None:
    runtime.quiet_libraries()
    runtime.start("cpu")
    about = describe(args.path)
    if args.json:
      about.pop("_params")
      print(json.dumps(about, indent=2))
    else:
      _print(about)
    if about["not_as_saved"]:
      raise UserError(
        f"checkpoint {about['path']} is damaged: {_compared(about)}. Take "
        "another one, or a copy."
      )

  return command_line.run(body)


if __name__ == "__main__":
  sys.exit(main())
