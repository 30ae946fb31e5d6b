"""Collects what the page shows of a run from its workdir; writes the page.

`WORKDIR/report.json` keeps predictions and figures of the weights of one step.
"""

import html
import importlib.resources
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mixer import __version__, checkpoints, errors, files, metrics, reporter
from mixer import config as config_lib
from mixer import workdir as workdir_lib
from mixer.errors import UserError
from mixer.insight import kernels

PAGE, KEPT = "report.html", "report.json"
_FORMAT = 2
_KEYS = ("format", "step", "predictions", "weights", "notes")
_RECORDS = 20_000  # Of a metric; a browser draws them without a pause.
# Metrics at the top of the page: label, format, which one is the best.
_FINALS = {
  "eval/accuracy": ("Accuracy", "{:.2%}", max),
  "eval/accuracy_top5": ("Top-5 accuracy", "{:.2%}", max),
  "eval/balanced_accuracy": ("Balanced accuracy", "{:.2%}", max),
  "eval/macro_f1": ("Macro F1", "{:.2%}", max),
  "eval/loss": ("Evaluation loss", "{:.4g}", min),
  "train/loss": ("Training loss", "{:.4g}", None),
  "train/images_per_second": ("Images per second", "{:,.0f}", None),
  "train/mfu": ("MFU", "{:.2%}", None),
}


def finish(workdir: epath.Path, content: dict[str, Any]) -> str:
  """Keeps `predictions.gather`'s content and writes the page at a run's end.

  Returns a sentence for people, also about a failure: the run stays finished.
  """
  try:
    keep(workdir, content)
    write(workdir / PAGE, [read(workdir, workdir.name or str(workdir))])
  except Exception as e:
    return f"there is no report of this run: {errors.first_line(e)}."
  return f"report: {workdir / PAGE}"


def write(target: epath.PathLike, runs: Sequence[dict[str, Any]]) -> None:
  """Writes the page about some runs atomically."""
  with files.atomic_write(target, advice="Name another file with -o.") as f:
    # A file name that is no UTF-8 may have left surrogates.
    f.write(text(runs).encode("utf-8", "replace"))


def text(runs: Sequence[dict[str, Any]]) -> str:
  """The page about some runs, at least one, as `read` gives them."""
  title = runs[0]["name"] if len(runs) == 1 else f"{len(runs)} runs"
  data = {"version": __version__, "runs": list(runs)}
  encoded = json.dumps(data, allow_nan=False, separators=(",", ":"))
  for character in "<>&":  # Nothing in it can end its element.
    encoded = encoded.replace(character, f"\\u{ord(character):04x}")
  parts = {"data": encoded, "title": html.escape(f"{title}: report")}
  folder = importlib.resources.files("mixer.report")

  def part(name: str) -> str:
    return parts.get(name) or (folder / name).read_text("utf-8")

  # In one pass, as the data may contain {{page.js}}.
  page = part("page.html")
  return re.sub(r"\{\{(.+?)\}\}", lambda match: part(match[1]), page)


def keep(workdir: epath.PathLike, content: dict[str, Any]) -> None:
  """Writes `report.json`, with what `predictions.gather` gives."""
  sealed = files.sealed({"format": _FORMAT, **content})
  with files.atomic_write(epath.Path(workdir) / KEPT, "w") as f:
    f.write(json.dumps(sealed, allow_nan=False) + "\n")


def kept(workdir: epath.PathLike) -> tuple[dict[str, Any] | None, list[str]]:
  """The content of `report.json`, None without; and notes on its damage."""
  path = epath.Path(workdir) / KEPT
  try:
    return files.read_sealed(path, "the predictions of a run", _KEYS), []
  except UserError as e:
    missing = isinstance(e.__cause__, FileNotFoundError)
    return None, [] if missing else [str(e)]


def read(
  path: epath.Path, name: str, content: dict[str, Any] | None = None
) -> dict[str, Any]:
  """A run for the page, finished or not; `content` replaces `kept`'s."""
  stored, notes, header = workdir_lib.read_config(path), [], None
  resolved, done, records = stored["resolved"], 0, []
  config = config_lib.from_json(stored["config"], resolved)
  try:
    _, done = checkpoints.locate(path)
    header = checkpoints.header(checkpoints.directory(path) / str(done))
  except (UserError, *files.failures(path)) as e:
    why = errors.first_line(e)
    notes.append(f"Devices, versions and parameters are not known: {why}.")
  metadata = header.metadata if header else {}
  try:
    examined = metrics.examine(path, metadata.get("metrics_lines", 0))
    records = list(examined.records.values())
    notes += filter(None, [examined.damage])
  except UserError as e:
    notes.append(f"There are no metrics: {e}")
  done = max([done, *(r["step"] for r in records)])
  if done < resolved["total"]:
    notes.append(
      f"The run has done {done:,} of {resolved['total']:,} updates. If it was "
      "stopped, the same command continues it."
    )
  content, damage = (content, []) if content else kept(path)
  notes += damage + (content["notes"] if content else [])
  last = max((r["step"] for r in records if "eval/accuracy" in r), default=0)
  if not content or content["step"] < last:
    which = f"those of step {content['step']:,}" if content else "none"
    notes.append(
      f"Predictions and weights: {which}. mixer report --evaluate {path} takes "
      "the newest checkpoint."
    )
  curves = _curves(records)
  return {
    "name": name,
    "finals": _finals(curves),
    "facts": _facts(path, config, resolved, done, header, records),
    "settings": _flat(stored["config"]),
    "environment": _flat(metadata.get("environment", {})),
    "batch_size": config.batch_size,
    "curves": curves,
    "predictions": content and content["predictions"],
    "weights": content and content["weights"],
    "notes": notes,
  }


def _curves(records: Sequence[dict[str, Any]]) -> dict[str, list[list[Any]]]:
  """Metric, or `hours` since the run's first start -> [steps, values].

  Of several records of a step the last one counts; very many are thinned.
  """
  found: dict[str, dict[int, Any]] = {}
  for record in records:
    spent = [v for name, v in record.items() if name.startswith("goodput/")]
    hours = {"hours": sum(spent) / 3600} if spent else {}
    for name, value in (record | hours).items():
      if name != "step":
        found.setdefault(name, {})[record["step"]] = value
  curves = {}
  for name, values in found.items():
    steps = sorted(values)
    steps = [steps[i] for i in kernels.evenly(len(steps), _RECORDS)]
    curves[name] = [steps, [values[step] for step in steps]]
  return curves


def _finals(curves: Mapping[str, list[list[Any]]]) -> list[list[str]]:
  """[label, value, its step] of the last values of metrics."""
  found = []
  for name, (label, form, best) in _FINALS.items():
    steps, values = curves.get(name, ([], []))
    if not steps:
      continue
    known = [v for v in values if v is not None]
    last, aside = values[-1], f"at step {steps[-1]:,}"
    if best and known and (top := best(known)) != last:
      aside += f"; best {form.format(top)} at {steps[values.index(top)]:,}"
    text = "not finite" if last is None else form.format(last)
    found.append([label, text, aside])
  return found


def _facts(
  path: epath.Path,
  config: config_lib.Config,
  counts: Mapping[str, Any],
  done: int,
  header: checkpoints.Header | None,
  records: Sequence[Mapping[str, Any]],
) -> list[list[str]]:
  """[label, text] of a run, for people."""
  data, (height, width) = config.data, config_lib.image_size(config)
  epochs = done * config.batch_size / counts["train_examples"]
  facts = {
    "workdir": os.fspath(path),
    "model": f"Mixer {config.model.variant} at {height} x {width} px, "
    f"{counts['num_classes']:,} classes, {config.model.dtype}",
    "data": f"{data.name}: {data.train_split} ({counts['train_examples']:,} "
    f"images), evaluation on {data.eval_split} ({counts['eval_examples']:,})",
    "steps": f"{done:,} of {counts['total']:,} ({epochs:,.1f} epochs), "
    f"{config.batch_size:,} images each",
  }
  if header:
    about, arrays = header.metadata, header.arrays.items()
    own = [math.prod(x[1]) for name, x in arrays if name.startswith("params/")]
    machine = about["environment"]
    facts["parameters"] = f"{sum(own) / 1e6:,.2f} M"
    facts["started"] = about["origin"].removeprefix("starting ")
    facts["devices"] = f"{machine['num_devices']} x {machine['device_kind']}"
  if timed := [r for r in records if "goodput/step" in r]:
    spent = {v: timed[-1][f"goodput/{k}"] for k, v in reporter.KINDS.items()}
    total = sum(spent.values())
    largest = sorted(spent.items(), key=lambda item: -item[1])
    shares = [f"{kind} {v / total:.1%}" for kind, v in largest if v]
    facts["time"] = f"{metrics.duration(total)}: {', '.join(shares)}"
  return [[label, text] for label, text in facts.items()]


def _flat(tree: Mapping[str, Any]) -> list[list[str]]:
  """[key, text] of a nested config or environment."""
  return [
    [key, value if value and isinstance(value, str) else json.dumps(value)]
    for key, value in config_lib.flatten(tree).items()
  ]
