r"""Predicts memory, communication, time and cost of a run before it is paid.

  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64
  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64 \
    --price=1.2 --formulas
  python -m mixer plan --config=configs/mixer_b16_i21k.py --hardware=v5e-64 \
    --compile

Slices are named as Google's accelerator types are (v5e-64, v6e-8, v5p-64, where
v3, v4 and v5p count TensorCores, two a chip), GPUs as in h100-8. Any key of the
config can be changed as for train.py.

--compile also asks the real compiler, for TPUs (jax[tpu]) or an H100
(jax[cuda13]), on any machine, without the device, for memory and traffic. That
takes a minute or more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from etils import epy

from mixer import flags
from mixer.errors import UserError

with epy.lazy_imports():
  import jax

  import input_pipeline
  from mixer import config as config_lib
  from mixer import durations, validation
  from mixer.datasets import catalog, locate
  from mixer.planning import compiling, formulas, hardware, plan_report


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  add = parser.add_argument
  add("--hardware", required=True, help="slice, such as v5e-64 or h100-8")
  add("--examples", type=flags.positive, help="of the training split")
  add("--classes", type=flags.positive, help="of the data set")
  real = flags.number(float, 0, 1e9)
  add("--price", type=real, help="dollars a chip and hour")
  add("--cores", type=real, help="of each host")
  add("--core_rate", type=real, help="images/s that one core decodes")
  add("--compile", action="store_true", help="ask the real compiler too")
  add("--json", action="store_true", help="for programs")
  add("--formulas", action="store_true", help="print the formulas too")
  flags.add_config(parser, "--hardware=SLICE")


@dataclasses.dataclass(frozen=True)
class Request:
  """What the command line asks for."""

  hardware: str
  examples: int | None = None
  classes: int | None = None
  price: float | None = None
  cores: float | None = None
  core_rate: float | None = None
  compile: bool = False


def data_size(
  config: config_lib.Config, request: Request
) -> tuple[int, int, str]:
  """(examples, classes, where these numbers are from).

  Raises:
    UserError: nobody knows.
  """
  d = config.data
  if request.examples and request.classes:
    return request.examples, request.classes, "as given"
  name = catalog.base_name(d.name)
  # Opening a shipped set would prepare it.
  if name in catalog.SHIPPED or not locate.versions(
    locate.resolve_data_dir(d.data_dir), d.name
  ):
    found, source = catalog.size(name, d.train_split), "as published"
  else:
    split = input_pipeline.open_splits(config)[0]
    found, source = (len(split), len(split.class_names)), "as prepared"
  if found is None:
    raise UserError(
      f"how large {d.name} is, isn't known: it is neither prepared in "
      f"{locate.resolve_data_dir(d.data_dir)} nor a known set. Say it by "
      "--examples=N --classes=K."
    )
  examples, classes = found
  if d.examples_per_class and source != "as prepared":
    examples = min(examples, d.examples_per_class * classes)
  if request.examples or request.classes:
    source += ", or as given"
  return request.examples or examples, request.classes or classes, source


def describe(config: config_lib.Config, request: Request) -> dict[str, Any]:
  """Everything that is printed.

  Returns:
    `plan`, a `formulas.Plan`; `sections` of lines; `verdict`, sentences;
    `compiled`, a `compiling.Compiled` or None.

  Raises:
    UserError: something that the user can mend.
  """
  target = hardware.parse(request.hardware)
  if request.compile and (sentence := compiling.missing(target)):
    raise UserError(sentence)
  validation.validate(config, target.num_devices)
  examples, classes, source = data_size(config, request)
  plan = formulas.predict(
    config,
    target,
    examples,
    classes,
    cores=request.cores,
    core_rate=request.core_rate,
  )
  found: dict[str, Any] = {
    "plan": plan,
    "sections": plan_report.sections(plan, source, request.price),
    "verdict": plan_report.verdict(plan, config),
    "compiled": None,
  }
  if request.compile:
    steps = durations.plan(config, examples)
    found["compiled"] = compiling.compile_step(config, steps, classes, target)
  return found


def _text(found: dict[str, Any], request: Request, with_formulas: bool) -> str:
  lines = [plan_report.text(found["sections"], with_formulas=with_formulas)]
  if found["compiled"]:
    lines.append(plan_report.compiled_text(found["compiled"], found["plan"]))
  lines += found["verdict"]
  if request.price is None:
    lines.append("For the cost, say what a chip and hour costs: --price=1.20.")
  return "\n".join(lines)


def _json(found: dict[str, Any], with_formulas: bool) -> str:
  plan, compiled = found["plan"], found["compiled"]
  values = {
    "sections": {
      title: [dataclasses.asdict(line) for line in lines]
      for title, lines in found["sections"].items()
    },
    "fits": plan.fits,
    "bottleneck": plan.bottleneck,
    "verdict": found["verdict"],
    "compiled": dataclasses.asdict(compiled) if compiled else None,
  }
  if with_formulas:
    values["formulas"] = formulas.FORMULAS
  return json.dumps(values, indent=2)


def main(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend.
  """
  compiling.prepare()
  jax.config.update("jax_platforms", "cpu")
  given: dict[str, Any] = {
    f.name: getattr(args, f.name) for f in dataclasses.fields(Request)
  }
  request = Request(**given)
  found = describe(args.config, request)
  if args.json:
    print(_json(found, args.formulas))
  else:
    print(_text(found, request, args.formulas))
