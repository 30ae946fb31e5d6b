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
from mixer.report import predictions

PAGE, KEPT = "report.html", "report.json"
_PARTS = {
  "css": ("vendor/uPlot.min.css", "page.css"),
  "js": ("vendor/uPlot.iife.min.js", "page.js", "charts.js", "predictions.js"),
}
_FORMAT = 2
_KEYS = ("format", "step", "predictions", "weights", "notes")
# Records that a browser still draws without a pause.
_MOST = 20_000
_HOURS = "hours"  # A metric of the page: time spent so far.
# Metrics at the top of the page: their name, how to write them, the best one.
_FINALS = {
  "eval/accuracy": ("Accuracy", "{:.2%}", max),
  "eval/accuracy_top5": ("Top-5 accuracy", "{:.2%}", max),
  "eval/loss": ("Evaluation loss", "{:.4g}", min),
  "train/loss": ("Training loss", "{:.4g}", None),
  "train/images_per_second": ("Images per second", "{:,.0f}", None),
  "train/mfu": ("MFU", "{:.2%}", None),
}

Records = Sequence[Mapping[str, Any]]


def finish(
  workdir: epath.Path, step: int, gathered: predictions.Gathered | None
) -> str:
  """Writes the page at a run's end, and `report.json` if it was evaluated.

  For one host. Returns a sentence for people, also where something went wrong.
  """
  try:
    if gathered is not None:
      keep(workdir, gathered.result(step))
    found = read(workdir, workdir.name or str(workdir))
    write(workdir / PAGE, [found])
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
  names = [run["name"] for run in runs]
  title = names[0] if len(names) == 1 else f"{len(names)} runs"
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
  """Writes `report.json`, with what `Gathered.result` gives."""
  sealed = files.sealed(plain({"format": _FORMAT, **content}))
  with files.atomic_write(epath.Path(workdir) / KEPT, "w") as f:
    f.write(json.dumps(sealed, allow_nan=False) + "\n")


def kept(workdir: epath.PathLike) -> tuple[dict[str, Any] | None, str]:
  """What `report.json` has, None without; and a sentence if it is damaged."""
  path = epath.Path(workdir) / KEPT
  try:
    found = files.read_sealed(path, "the predictions of a run", _KEYS)
  except UserError as e:
    gone = isinstance(e.__cause__, FileNotFoundError)
    return None, "" if gone else str(e)
  if found["format"] != _FORMAT:
    return None, f"{path} was written by another version of mixer."
  return found, ""


def read(
  workdir: epath.PathLike,
  name: str,
  said: str = "",
  fresh: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """What is known of a run, finished or not: an element of the page's `runs`.

  `said` is a sentence about predictions, for the notes on what is missing;
  `fresh` what `kept` would give, if it has just been made.
  """
  path = workdir_lib.path(workdir)
  content = workdir_lib.read_config(path)
  resolved = content["resolved"]
  config = config_lib.from_json(content["config"], resolved)
  newest, header, notes = _checkpoint(path)
  metadata = header.metadata if header else {}
  try:
    examined = metrics.examine(path, metadata.get("metrics_lines", 0))
    records = [_timed(record) for record in examined.records.values()]
    notes += [examined.damage] if examined.damage else []
  except UserError as e:
    records = []
    notes.append(f"There are no metrics: {e}")
  found, damage = (fresh, "") if fresh else kept(path)
  done = max([newest or 0, *(r["step"] for r in records)])
  if done < (total := resolved["total"]):
    notes.append(
      f"The run has done {done:,} of {total:,} updates: it is under way, or "
      "was stopped and goes on with the same command."
    )
  notes += [sentence for sentence in (damage, said) if sentence]
  if found is not None:
    notes += found["notes"]
    evaluated = [r["step"] for r in records if "eval/accuracy" in r]
    if evaluated and evaluated[-1] != found["step"]:
      notes.append(
        f"Predictions and weights are those of step {found['step']:,}, and the "
        f"newest evaluation is that of step {evaluated[-1]:,}; mixer report "
        f"--evaluate {path} takes the newest checkpoint."
      )
  elif not said:
    notes.append(
      "No predictions: a run makes them at its end, and mixer report "
      f"--evaluate {path} at any time."
    )
  thin = _thin(records, notes)
  curves = _curves(thin)
  facts = _facts(path, config, resolved, done, header)
  if timed := [r for r in thin if _HOURS in r]:
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


def _checkpoint(
  path: epath.Path,
) -> tuple[int | None, checkpoints.Header | None, list[str]]:
  """The newest one's step and header; and what is wrong with it."""
  step = None
  try:
    _, step = checkpoints.locate(path)
    found = checkpoints.header(checkpoints.directory(path) / str(step))
    return step, found, []
  except (UserError, *workdir_lib.failures(path)) as e:
    what = "There is no whole checkpoint yet"
    if step is not None:
      what = errors.first_line(e)
    lacks = "devices, versions and the number of parameters aren't known"
    return step, None, [f"{what}: {lacks}."]


def _timed(record: dict[str, Any]) -> dict[str, Any]:
  """With the hours since the run's first start."""
  spent = [v for name, v in record.items() if name.startswith("goodput/")]
  return record | ({_HOURS: sum(spent) / 3600} if spent else {})


def _thin(records: Records, notes: list[str]) -> Records:
  """Records enough for a page; adds a note if some of training are left out."""
  plain = [
    i
    for i, r in enumerate(records)
    if not any(name.startswith(("eval/", "fewshot/")) for name in r)
  ]
  room = max(_MOST - (len(records) - len(plain)), 1)
  every = math.ceil(len(plain) / room)
  if every <= 1:
    return records
  out = {*plain} - {*plain[::every], plain[-1]}
  notes.append(
    f"Of the {len(plain):,} records of training one of {every:,} is shown; "
    f"evaluations are all there, and {metrics.FILE} has everything."
  )
  return [r for i, r in enumerate(records) if i not in out]


def _curves(records: Records) -> dict[str, list[list[Any]]]:
  """Metric -> [steps, values], in order; of one step the last record counts."""
  found: dict[str, dict[int, Any]] = {}
  for record in records:
    for name, value in record.items():
      if name != "step":
        found.setdefault(name, {})[record["step"]] = value
  return {
    name: [sorted(values), [values[step] for step in sorted(values)]]
    for name, values in found.items()
  }


def _time(record: Mapping[str, Any]) -> str:
  """Where the time went, the largest part first."""
  total = 3600 * record[_HOURS]
  kinds = {text: record[f"goodput/{k}"] for k, text in reporter.KINDS.items()}
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
