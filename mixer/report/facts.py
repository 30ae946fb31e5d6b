"""A run in some lines: what it is, how far it came, how well and how fast."""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mixer import config as config_lib
from mixer import metrics

# Speed is that of so many records, the last ones.
_RECENT = 20

Records = Sequence[Mapping[str, Any]]


def of(
  path: epath.Path,
  content: Mapping[str, Any],
  records: Records,
  done: int,
  metadata: Mapping[str, Any],
  arrays: Mapping[str, Any],
) -> list[list[str]]:
  """Pairs of a label and a text, for people.

  Args:
    path: the workdir.
    content: of its config.json.
    records: of its metrics.jsonl.
    done: updates.
    metadata: of its newest checkpoint, empty if there is none.
    arrays: name -> (type, shape, digest) of that.
  """
  resolved = content["resolved"]
  config = config_lib.from_json(content["config"], resolved)
  about = metadata.get("environment") or {}
  found = {
    "workdir": os.fspath(path),
    "model": _model(config, resolved, arrays),
    "started": (metadata.get("origin") or "").removeprefix("starting "),
    "data": _data(config, resolved),
    "steps": _steps(config, resolved, done),
    "batch": f"{config.batch_size:,} images an update",
    "devices": _devices(about),
    "speed": _speed(records),
    "accuracy": _accuracy(records),
    "time": _time(records),
    "code": _code(about),
  }
  return [[label, text] for label, text in found.items() if text]


def _model(
  config: config_lib.Config,
  resolved: Mapping[str, Any],
  arrays: Mapping[str, Any],
) -> str:
  height, width = config_lib.image_size(config)
  size = height if height == width else f"{height} x {width}"
  parts = [f"Mixer {config.model.variant} at {size} px"]
  if resolved.get("num_classes"):
    parts.append(f"{resolved['num_classes']:,} classes")
  shapes = [v[1] for k, v in arrays.items() if k.startswith("params/")]
  if shapes:
    count = sum(math.prod(shape) for shape in shapes)
    parts.append(f"{count / 1e6:,.2f} M parameters")
  return ", ".join([*parts, config.model.dtype])


def _data(config: config_lib.Config, resolved: Mapping[str, Any]) -> str:
  d = config.data
  parts = []
  for split, use in (("train", "training"), ("eval", "evaluation")):
    count = resolved.get(f"{split}_examples")
    images = f" ({count:,} images)" if count else ""
    parts.append(f"{d[f'{split}_split']}{images} for {use}")
  return f"{d.name}: {', '.join(parts)}"


def _steps(
  config: config_lib.Config, resolved: Mapping[str, Any], done: int
) -> str:
  total, examples = resolved.get("total"), resolved.get("train_examples")
  text = f"{done:,} of {total:,}" if total else f"{done:,}"
  if examples:
    text += f" ({done * config.batch_size / examples:,.1f} epochs)"
  return text


def _devices(about: Mapping[str, Any]) -> str:
  if "device_kind" not in about:
    return ""
  text = f"{about.get('num_devices', 1)} x {about['device_kind']}"
  hosts = about.get("num_processes", 1)
  return f"{text}, {hosts} processes" if hosts > 1 else text


def _code(about: Mapping[str, Any]) -> str:
  versions = about.get("versions") or {}
  named = {"mixer": versions.get("mixer"), "commit": about.get("commit")}
  named |= {"jax": versions.get("jax")}
  return ", ".join(f"{k} {v}" for k, v in named.items() if v)


def _speed(records: Records) -> str:
  name = "train/images_per_second"
  found = [r[name] for r in records if r.get(name) is not None][-_RECENT:]
  if not found:
    return ""
  of_last = f"median of the last {len(found)} records" if found[1:] else ""
  text = f"{statistics.median(found):,.0f} images/s"
  return f"{text} ({of_last})" if of_last else text


def _accuracy(records: Records) -> str:
  name = "eval/accuracy"
  found = [(r["step"], r[name]) for r in records if r.get(name) is not None]
  return f"{found[-1][1]:.2%} at step {found[-1][0]:,}" if found else ""


def _time(records: Records) -> str:
  for record in reversed(records):
    spent = [v or 0.0 for k, v in record.items() if k.startswith("goodput/")]
    if any(spent):
      return f"{_seconds(sum(spent))} in all"
  return ""


def _seconds(seconds: float) -> str:
  short = seconds < 10
  return f"{seconds:.1f}s" if short else metrics.duration(seconds)
