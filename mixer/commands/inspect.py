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

# First of all, so that a wrong flag and --help are answered at once.
from mixer.commands import arguments

if __name__ == "__main__":
  arguments.inspect().parse_args()

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from clu import parameter_overview

from mixer import (
  command_line,
  comparison,
  description,
  runtime,
  text,
  weights,
)
from mixer import config as config_lib
from mixer.errors import UserError


def _say(line: str) -> None:
  print(text.printable(line))


def _print(found: description.Described, parameters: bool) -> None:
  about = found.facts
  _say(f"checkpoint  {about['path']}")
  classes = about.get("class_names") or ()
  head = f", {len(classes):,} classes: {_some(classes)}" if classes else ""
  count = f"{about['parameters']:,} parameters"
  _say(f"model       {about['model']}; {count}{head}")
  if "layout" in about:
    _say(f"file        {about['bytes']:,} bytes, {about['layout']}")
    _say(f"            sha256 {about['file_sha256']}")
  else:
    total = (about["resolved"] or {}).get("total")
    _say(f"step        {about['step']}" + (f" of {total}" if total else ""))
    for label, line in _labelled("made", description.made(about)):
      _say(f"{label:<12}{line}")
  finite = "" if about["finite"] else "  NOT ALL FINITE"
  _say(f"norm        {about['norm']:.6f}{finite}")
  for name, value in about.get("metrics", {}).items():
    if name != "step":
      _say(f"{name:<28}{_short(value)}")
  if about.get("config"):
    flat = config_lib.flatten(about["config"])
    default = config_lib.flatten(config_lib.default())
    for label, line in _labelled(
      "config", [f"{k}: {v!r}" for k, v in flat.items() if v != default.get(k)]
    ):
      _say(f"{label:<12}{line}")
    _say(f"{'':<12}(all else has its default; --json has everything)")
  _say(f"sha256      {about['sha256']}")
  if "sha256_ema" in about:
    _say(f"sha256_ema  {about['sha256_ema']}")
  if "digests" in about:
    _say(f"digests     {_compared(about)}")
  if parameters:
    print(parameter_overview.get_parameter_overview(found.params))
    _table(
      ("module", "parameters", "norm", "largest"),
      [
        (
          name,
          f"{m['parameters']:,}",
          f"{m['norm']:.4g}",
          f"{m['largest']:.3g}",
        )
        for name, m in about["modules"].items()
      ],
    )


def _labelled(label: str, lines: Sequence[str]) -> list[tuple[str, str]]:
  """The label for the first line, none for the others."""
  return [(label if i == 0 else "", line) for i, line in enumerate(lines)]


def _some(names: Sequence[str]) -> str:
  """The first few of many names."""
  return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
  """Prints columns, the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  for row in (head, *rows):
    cells = [f"{row[0]:<{widths[0]}}"]
    cells += [f"{c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True)]
    _say("  ".join(cells))


def _compared(about: Mapping[str, Any]) -> str:
  """What the comparison with the digests has found."""
  if not about["digests"]:
    return "none: this checkpoint is from before there were any"
  of = f"{about['digests']} arrays"
  if about["not_as_saved"]:
    return f"{of}, NOT AS SAVED: {weights.shorten(about['not_as_saved'])}"
  return f"{of}, all as saved"


_GROUPS = ("facts", "config", "metrics", "environment")
# That differs of any two runs, and says little: in JSON alone.
_NOISE = ("goodput/", "data/")


def _print_both(a: str, b: str, found: Mapping[str, Any]) -> None:
  _say(f"a  {a}")
  _say(f"b  {b}")
  print()
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
  for group in _GROUPS:
    for name, (first, second) in found[group].items():
      if name.startswith(_NOISE):
        continue
      key = name if group == "facts" else f"{group} {name}"
      _say(f"{key}: {_short(first)} -> {_short(second)}")


def _short(value: Any) -> str:
  if isinstance(value, list | tuple) and len(value) > 5:
    return f"{len(value):,}: {_some([str(v) for v in value])}"
  if isinstance(value, float):
    return f"{value:.6g}"
  return "(none)" if value is None else str(value)


def _refuse_damaged(about: Mapping[str, Any]) -> None:
  if about.get("not_as_saved"):
    raise UserError(
      f"checkpoint {about['path']} is damaged: {_compared(about)}. Take "
      "another one, or a copy."
    )


def run(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend, or a damaged checkpoint.
  """
  runtime.start("cpu")
  found = description.describe(args.path)
  both = [found]
  if args.other is not None:
    both.append(description.describe(args.other))
    different = comparison.compare(*both)
    if args.json:
      print(json.dumps(different, indent=2))
    else:
      a, b = (x.facts["path"] for x in both)
      _print_both(a, b, different)
  elif args.json:
    print(json.dumps(found.facts, indent=2))
  else:
    _print(found, args.parameters)
  for each in both:
    _refuse_damaged(each.facts)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  return command_line.tool(run, arguments.inspect().parse_args(argv))


if __name__ == "__main__":
  sys.exit(main())
