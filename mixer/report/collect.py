"""What the page shows of a run, from its workdir.

`WORKDIR/report.json` keeps what it took the model and the data to find: the
predictions and the figures of the weights of one step.
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
_PARTS = {
  "css": ("vendor/uPlot.min.css", "page.css"),
  "js": ("vendor/uPlot.iife.min.js", "page.js", "charts.js", "predictions.js"),
}
_FORMAT = 2
_KEYS = ("format", "step", "predictions", "weights", "notes")
# Records that a browser still draws without a pause.
_MOST = 20_000
# Metrics at the top of the page: their name, how to write them, the best one.
_FINALS = {
  "eval/accuracy": ("Accuracy", "{:.2%}", max),
  "eval/accuracy_top5": ("Top-5 accuracy", "{:.2%}", max),
  "eval/loss": ("Evaluation loss", "{:.4g}", min),
  "train/loss": ("Training loss", "{:.4g}", None),
  "train/images_per_second": ("Images per second", "{:,.0f}", None),
  "train/mfu": ("MFU", "{:.2%}", None),
}


def finish(workdir: epath.Path, fresh: dict[str, Any]) -> str:
  """Keeps what `predictions.gather` found at a run's end; writes the page.

  Returns a sentence for people, also where something went wrong.
  """
  try:
    keep(workdir, fresh)
    write(workdir / PAGE, [read(workdir, workdir.name or str(workdir))])
  except Exception as e:  # A run that is finished stays so.
    return f"there is no report of this run: {errors.first_line(e)}."
  return f"report: {workdir / PAGE}"


def write(target: epath.PathLike, runs: Sequence[dict[str, Any]]) -> None:
  """Writes the page; it is there whole or not at all."""
  advice = "Name a file in a folder that takes some: mixer report ... -o FILE."
  with files.atomic_write(target, advice=advice) as f:
    # Of a name that is no text there may be remains in it.
    f.write(text(runs).encode("utf-8", "replace"))


def text(runs: Sequence[dict[str, Any]]) -> str:
  """The page about some runs, at least one, as of `read`."""
  title = runs[0]["name"] if len(runs) == 1 else f"{len(runs)} runs"
  data = plain({"version": __version__, "runs": list(runs)})
  written = json.dumps(data, allow_nan=False, separators=(",", ":"))
  # So that nothing in it can end the element that it is in.
  for character in "<>&":
    written = written.replace(character, f"\\u{ord(character):04x}")
  folder = importlib.resources.files("mixer.report")
  values = {
    kind: "\n".join((folder / name).read_text("utf-8") for name in names)
    for kind, names in _PARTS.items()
  } | {"data": written, "title": html.escape(f"{title}: report")}
  template = (folder / "page.html").read_text("utf-8")
  # In one go: the data may hold the name of a place.
  return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], template)


def plain(value: Any) -> Any:
  """JSON with null for each number that isn't finite."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def keep(workdir: epath.PathLike, content: dict[str, Any]) -> None:
  """Writes `report.json`, with what `predictions.gather` gives."""
  sealed = files.sealed(plain({"format": _FORMAT, **content}))
  with files.atomic_write(epath.Path(workdir) / KEPT, "w") as f:
    f.write(json.dumps(sealed, allow_nan=False) + "\n")


def kept(workdir: epath.PathLike) -> tuple[dict[str, Any] | None, list[str]]:
  """What `report.json` has, None without; and what is wrong with it."""
  path = epath.Path(workdir) / KEPT
  try:
    found = files.read_sealed(path, "the predictions of a run", _KEYS)
  except UserError as e:
    gone = isinstance(e.__cause__, FileNotFoundError)
    return None, [] if gone else [str(e)]
  if found["format"] != _FORMAT:
    return None, [f"{path} was written by another version of mixer."]
  return found, []


def read(
  path: epath.Path, name: str, fresh: dict[str, Any] | None = None
) -> dict[str, Any]:
  """What is known of a run, finished or not: an element of the page's `runs`.

  `fresh` is what `kept` would give, if it has just been made.
  """
  content, notes, header = workdir_lib.read_config(path), [], None
  resolved, done, records = content["resolved"], 0, []
  config = config_lib.from_json(content["config"], resolved)
  try:
    _, done = checkpoints.locate(path)
    header = checkpoints.header(checkpoints.directory(path) / str(done))
  except (UserError, *workdir_lib.failures(path)) as e:
    why = errors.first_line(e)
    notes.append(f"Devices, versions and parameters aren't known: {why}.")
  metadata = header.metadata if header else {}
  try:
    examined = metrics.examine(path, metadata.get("metrics_lines", 0))
    records = list(examined.records.values())
    notes += filter(None, [examined.damage])
  except UserError as e:
    notes.append(f"There are no metrics: {e}")
  done = max([done, *(r["step"] for r in records)])
  if done < (total := resolved["total"]):
    notes.append(
      f"The run has done {done:,} of {total:,} updates: it is under way, or "
      "was stopped and goes on with the same command."
    )
  found, damage = (fresh, []) if fresh else kept(path)
  notes += damage + (found["notes"] if found else [])
  last = max((r["step"] for r in records if "eval/accuracy" in r), default=0)
  if (known := found["step"] if found else None) is None or known < last:
    what = "none" if known is None else f"those of step {known:,}"
    notes.append(
      f"Predictions and weights: {what}. mixer report --evaluate {path} takes "
      "the newest checkpoint."
    )
  curves = _curves(records, notes)
  facts = _facts(path, config, resolved, done, header)
  if timed := [r for r in records if "goodput/step" in r]:
    facts.append(["time", _time(timed[-1])])
  return {
    "name": name,
    "finals": _finals(curves),
    "facts": facts,
    "settings": _flat(content["config"]),
    "environment": _flat(metadata.get("environment", {})),
    "batch_size": config.batch_size,
    "curves": curves,
    "predictions": found and found["predictions"],
    "weights": found and found["weights"],
    "notes": notes,
  }


def _curves(
  records: Sequence[dict[str, Any]], notes: list[str]
) -> dict[str, list[list[Any]]]:
  """Metric -> [steps, values], in order; of one step the last record counts.

  With the hours since the run's first start. Those of very many steps are
  thinned; a note says so.
  """
  found: dict[str, dict[int, Any]] = {}
  for record in records:
    spent = [v for name, v in record.items() if name.startswith("goodput/")]
    hours = {"hours": sum(spent) / 3600} if spent else {}
    for name, value in (record | hours).items():
      if name != "step":
        found.setdefault(name, {})[record["step"]] = value
  most = max(map(len, found.values()), default=0)
  if most > _MOST:
    notes.append(
      f"{_MOST:,} records of each metric are shown, of up to {most:,}; "
      f"{metrics.FILE} has everything."
    )
  curves = {}
  for name, values in found.items():
    steps = sorted(values)
    steps = [steps[i] for i in kernels.evenly(len(steps), _MOST)]
    curves[name] = [steps, [values[step] for step in steps]]
  return curves


def _time(record: Mapping[str, Any]) -> str:
  """Where the time went, the largest part first."""
  kinds = {text: record[f"goodput/{k}"] for k, text in reporter.KINDS.items()}
  total = sum(kinds.values())
  shares = [
    f"{text} {seconds / total:.1%}"
    for text, seconds in sorted(kinds.items(), key=lambda kind: -kind[1])
    if seconds
  ]
  return f"{metrics.duration(total)}: {', '.join(shares)}"


def _finals(curves: Mapping[str, list[list[Any]]]) -> list[list[str]]:
  """[label, text, where it is from] of the last values of metrics."""
  found = []
  for name, (label, form, best) in _FINALS.items():
    steps, values = curves.get(name, ([], []))
    if not steps:
      continue
    known = [v for v in values if v is not None and math.isfinite(v)]
    last = values[-1]
    text = form.format(last) if last in known else "not finite"
    aside = f"at step {steps[-1]:,}"
    if best and known and (top := best(known)) != last:
      at = steps[values.index(top)]
      aside += f"; best {form.format(top)} at {at:,}"
    found.append([label, text, aside])
  return found


def _facts(
  path: epath.Path,
  config: config_lib.Config,
  resolved: Mapping[str, Any],
  done: int,
  header: checkpoints.Header | None,
) -> list[list[str]]:
  """Pairs of a label and a text, for people."""
  data, counts = config.data, resolved
  height, width = config_lib.image_size(config)
  epochs = done * config.batch_size / counts["train_examples"]
  found = {
    "workdir": os.fspath(path),
    "model": f"Mixer {config.model.variant} at {height} x {width} px, "
    f"{counts['num_classes']:,} classes, {config.model.dtype}",
    "data": f"{data.name}: {data.train_split} ({counts['train_examples']:,} "
    f"images) for training, {data.eval_split} ({counts['eval_examples']:,} "
    "images) for evaluation",
    "steps": f"{done:,} of {counts['total']:,} ({epochs:,.1f} epochs), "
    f"{config.batch_size:,} images each",
  }
  if header:
    about = header.metadata["environment"]
    shapes = [
      shape
      for name, (_, shape, _) in header.arrays.items()
      if name.startswith("params/")
    ]
    count = sum(map(math.prod, shapes))
    versions = about["versions"]
    found |= {
      "parameters": f"{count / 1e6:,.2f} M",
      "started": header.metadata["origin"].removeprefix("starting "),
      "devices": f"{about['num_devices']} x {about['device_kind']}",
      "code": f"mixer {versions['mixer']}, commit {about['commit'] or '-'}, "
      f"jax {versions['jax']}",
    }
  return [[label, text] for label, text in found.items()]


def _flat(tree: Mapping[str, Any]) -> list[list[str]]:
  """[key, text] of a nested config or environment."""
  flat = config_lib.flatten(tree)
  return [
    [key, value if value and isinstance(value, str) else json.dumps(value)]
    for key, value in flat.items()
  ]
