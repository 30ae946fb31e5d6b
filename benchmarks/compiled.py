"""What XLA's compilers make of the training step, kept as a table.

  python -m benchmarks.compiled [--only REGEX] [--on REGEX] [--again]

Compiles every published size for one H100, one v5e and one v6e chip, in both
layouts, precisions, rematerialisation policies, as a loop over blocks and with
fused token mixing: without any such device, but with the compiler for it
(requirements-gpu.txt or requirements-tpu.txt; what this environment lacks is
left out). Each row takes half a minute to two, so rows are written one by one
to benchmarks/results/compiled.json and not made again: --again does that.
--only picks rows by their key, such as "B/16 h100-1 128 model.layout", --on by
the hardware alone. `python -m benchmarks.tables` writes docs/performance.md.

A row has what the compiler says of memory (bytes), and counts of
`mixer.planning.kernels`; for GPUs a predicted time, which no device has
confirmed.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import re
import sys
from typing import Any

import jax

from benchmarks import kernel_report, kernels
from benchmarks import step as step_lib
from mixer import command_line
from mixer import config as config_lib
from mixer.errors import UserError
from mixer.planning import compiling, hardware

RESULTS = pathlib.Path(__file__).parent / "results" / "compiled.json"
VARIANTS = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16", "H/14")
LAYOUTS = ("batch_major", "token_major")
# Images of one device, by size of the model.
BATCHES = {
  "h100-1": {"S": 512, "B": 512, "L": 128, "H": 64},
  "v5e-1": {"S": 128, "B": 128, "L": 32, "H": 16},
  "v6e-1": {"S": 128, "B": 128, "L": 32, "H": 16},
}
# Further rows, all of the layout that needs no transposes.
_MORE: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
  (("B/16", "L/16", "H/14"), {"model.remat": "pre_activations"}),
  (("B/16", "L/16", "H/14"), {"model.remat": "block"}),
  (("S/16", "B/32", "B/16", "L/16"), {"model.token_mlp": "pallas"}),
)


@dataclasses.dataclass(frozen=True)
class Row:
  """What is compiled.

  Attributes:
    variant: of the model.
    where: hardware.
    batch: images.
    changes: values by key of the config.
  """

  variant: str
  where: str
  batch: int
  changes: dict[str, Any]

  @property
  def key(self) -> str:
    """By which the results have it."""
    changes = (f"{k}={v}" for k, v in self.changes.items())
    return " ".join([self.variant, self.where, str(self.batch), *changes])


def rows() -> list[Row]:
  """All of the table, in its order."""
  found = []
  for where, batches in BATCHES.items():
    for variant in VARIANTS:

      def add(
        changes: dict[str, Any],
        layout: str = "token_major",
        dtype: str = "bfloat16",
        variant: str = variant,
        where: str = where,
        batch: int = batches[variant[0]],
      ) -> None:
        base = {"model.layout": layout, "model.dtype": dtype}
        found.append(Row(variant, where, batch, base | changes))

      for dtype in ("bfloat16", "float32"):
        if dtype == "bfloat16" or variant in ("S/16", "B/16"):
          for layout in LAYOUTS:
            add({}, layout, dtype)
      for variants, changes in _MORE:
        if variant in variants:
          # The fused kernels are for [B, S, C].
          fused = changes.get("model.token_mlp") == "pallas"
          add(changes, LAYOUTS[0] if fused else LAYOUTS[1])
  return found


def compile_row(row: Row, target: hardware.Slice) -> dict[str, Any]:
  """What a compiler says, as JSON values.

  Raises:
    UserError: a key or value that the config hasn't; no compiler.
  """
  dtype = row.changes["model.dtype"]
  config = step_lib.changed(row.variant, row.batch, dtype, row.changes)
  step, _ = kernels.compile_step(row.key, config, target)
  said = dataclasses.asdict(step.compiled)
  del said["collectives"], said["copies"]
  found = {
    "variant": row.variant,
    "hardware": row.where,
    "batch": row.batch,
    "changes": row.changes,
    "date": datetime.date.today().isoformat(),
    **said,
  }
  if not step.kernels:
    return found
  total = step.total
  found |= {
    "kernels": total.count,
    **kernel_report.counts(step.kernels),
    "copied": sum(k.times * k.size for k in step.kernels if k.kind == "copy"),
    "epilogues": kernel_report.epilogues(step.kernels),
    "moved": total.size,
  }
  if target.platform == "gpu":
    found |= {"predicted_seconds": total.seconds, "predicted_mfu": step.mfu}
  return found


def _missing(row: Row) -> str:
  """The key of a row that the config hasn't, else ""."""
  known = config_lib.flatten(config_lib.default())
  return next((key for key in row.changes if key not in known), "")


def compile_all(only: str, on: str, again: bool) -> int:
  """Makes the rows that are missing and can be made here.

  Returns:
    How many failed.
  """
  compiling.prepare()
  jax.config.update("jax_platforms", "cpu")
  wanted = [
    row
    for row in rows()
    if re.search(only, row.key)
    and re.search(on, row.where)
    and (again or row.key not in load())
  ]
  if not wanted:
    print("Nothing to do: no row of that name, or all are there (--again).")
  failed, told = 0, set()
  for row in wanted:
    target = hardware.parse(row.where)
    sentence = ""
    if lack := compiling.missing(target):
      sentence = f"Rows of {row.where} are left out: {lack}"
    elif key := _missing(row):
      sentence = f"Rows with {key} are left out: the config has no such key."
    if sentence:
      if sentence not in told:
        print(sentence, file=sys.stderr, flush=True)
      told.add(sentence)
      continue
    try:
      made = compile_row(row, target)
    except (UserError, jax.errors.JaxRuntimeError, NotImplementedError) as e:
      failed += 1
      print(f"{row.key}: {str(e).splitlines()[0]}", file=sys.stderr, flush=True)
      continue
    # Another process may have written rows meanwhile.
    save(load() | {row.key: made})
    print(line(row.key, made), flush=True)
  return failed


def line(key: str, row: dict[str, Any]) -> str:
  """A row, in short."""
  if not row["fits"]:
    return f"{key}: {row['reason']}, {row['seconds']:.0f} s"
  return (
    f"{key}: {row['kernels']} kernels, {row['transposes']} transposes, "
    f"{row['copies']} copies, {row['pads']} pads, "
    f"{row['temporaries'] / 1e9:.2f} GB of temporaries, "
    f"{row['seconds']:.0f} s to compile"
  )


def load() -> dict[str, dict[str, Any]]:
  """The rows that there are, by key."""
  return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def save(found: dict[str, dict[str, Any]]) -> None:
  """Writes rows, in the order of the table; those it no longer has are lost."""
  ordered = {r.key: found[r.key] for r in rows() if r.key in found}
  RESULTS.parent.mkdir(exist_ok=True)
  RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")


def body(args: argparse.Namespace) -> int:
  """Compiles; 1 where a row failed.

  Raises:
    UserError: a regular expression that isn't one.
  """
  for flag in ("only", "on"):
    try:
      re.compile(getattr(args, flag))
    except re.error as e:
      raise UserError(
        f"--{flag}={getattr(args, flag)} is no regular expression: {e}."
      ) from e
  return int(compile_all(args.only, args.on, args.again) > 0)


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="What compilers make of the training step."
  )
  parser.add_argument("--only", default="", help="rows, by their key")
  parser.add_argument("--on", default="", help="rows, by the hardware")
  parser.add_argument("--again", action="store_true")
  return command_line.tool(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
