"""The workdir: its path, and the config and data that it was made with.

It is on a local disk or in a bucket of Google Cloud Storage; `epath` reads and
writes both.
"""

import importlib.util
import json
import os
import re
import uuid
from collections.abc import Collection
from typing import Any

import fsspec.config
from etils import epath

from mixer import config as config_lib
from mixer import errors, files
from mixer.errors import UserError, first_line

CONFIG = "config.json"
# What --allow_change calls the data set's identity: no key of the config.
DATA_SET = "data_set"

# With TensorFlow around, epath would go through it, and import it for that.
os.environ.setdefault("EPATH_USE_TF", "false")

is_remote = files.is_remote
failures = files.failures


class DamagedConfig(UserError):
  """config.json is there, and not as it was written."""


def path(written: epath.PathLike) -> epath.Path:
  """A folder or file, local or gs://, from what a user has written."""
  written = os.fspath(written)
  if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", written):
    return epath.Path(written).expanduser()
  if not re.match(r"gs://[^/]+", written):
    raise UserError(
      f"{written}: expected a local path or gs://BUCKET/FOLDER; other stores "
      "than Google's are not supported."
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(
      f"{written} needs gcsfs, which is not installed: make setup-gcs, or "
      'pip install -e ".[gcs]".'
    )
  # Its memory of what is in a folder knows nothing of what others write, not
  # even TensorStore in this process.
  options = fsspec.config.conf.setdefault("gcs", {})
  options.setdefault("use_listings_cache", False)
  return epath.Path(written)


def make(workdir: epath.PathLike) -> None:
  """Makes the folder, where a folder is a thing."""
  if is_remote(workdir):
    return  # To gcsfs it would mean: make the bucket.
  try:
    os.makedirs(workdir, exist_ok=True)
  except OSError as e:
    raise not_writable(workdir, e) from e


def not_writable(workdir: epath.PathLike, error: Exception) -> UserError:
  """The error of a workdir that takes no files."""
  advice = "name a folder that can, or one that doesn't exist yet."
  if is_remote(workdir):
    advice = (
      "does the bucket exist, and may you write to it (gcloud auth "
      "application-default login; the role Storage Object User)?"
    )
  return UserError(
    f"--workdir={os.fspath(workdir)} can't be written to "
    f"({files.reason(error)}); {advice}"
  )


def vanished(workdir: epath.PathLike) -> str:
  """Sentences about a workdir that is gone, for a run that stops."""
  return (
    f"--workdir={os.fspath(workdir)} has vanished (deleted, renamed or "
    "unmounted), so this run stops without saving. Moved back, or named by its "
    "new place, it goes on from the newest checkpoint in it by the same "
    "command; deleted, the same command begins anew."
  )


def write_json(where: epath.PathLike, content: Any) -> None:
  """Writes a file that is there whole or not at all."""
  with files.atomic_write(where, "w") as f:
    f.write(json.dumps(content, indent=2) + "\n")


def write_config(
  workdir: epath.PathLike, config: dict[str, Any], resolved: dict[str, Any]
) -> None:
  """Writes config.json: the config as JSON, and what it comes to.

  `resolved` has durations in steps, numbers of examples and classes, and the
  data set's identity.
  """
  content = {"config": config, "resolved": resolved}
  write_json(epath.Path(workdir) / CONFIG, files.sealed(content))


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
  """`{"config": ..., "resolved": ...}`, as written; else `DamagedConfig`."""
  where, keys = epath.Path(workdir) / CONFIG, ("config", "resolved")
  try:
    found = files.read_sealed(where, "the config of a run", keys)
    config_lib.from_json(found["config"], found["resolved"])
    return found
  except UserError as e:
    if isinstance(e.__cause__, FileNotFoundError | NotADirectoryError):
      raise UserError(
        f"{workdir} is not a workdir of train.py: it has no {CONFIG}."
      ) from None
    if isinstance(e.__cause__, OSError):
      raise
    why = str(e).rstrip(".")
  except (LookupError, TypeError, ValueError, AttributeError) as e:
    why = f"{where} is not what train.py writes there ({first_line(e)})"
  raise DamagedConfig(
    f"{why}. Where there is a checkpoint, the next start of train.py writes it "
    "anew; else restore it from a copy, or start again in an empty --workdir."
  )


def check(
  workdir: epath.PathLike,
  config: dict[str, Any],
  resolved: dict[str, Any],
  allow: Collection[str] = (),
  step: int | None = None,
) -> str:
  """Checks that a run may have a workdir; makes it if it is missing.

  Keys in `allow`, and `config.FREE_KEYS`, may differ from what it was made
  with; all may before there is a checkpoint (`step` of the newest, or None).
  Returns a sentence about what has changed, or "".
  """
  make(workdir)
  workdir = epath.Path(workdir)
  try:
    # The folder must take files: better said now than at the first save.
    probe = workdir / f".probe.{uuid.uuid4().hex}"
    probe.write_text("probe")
    names = sorted(p.name for p in workdir.iterdir() if p.name[0] != ".")
    probe.unlink()
  except failures(workdir) as e:
    raise not_writable(workdir, e) from e
  if names and CONFIG not in names:
    raise UserError(
      f"--workdir={workdir} holds files ({', '.join(names[:5])}) but no "
      f"{CONFIG}, so it is not a workdir of train.py; name another folder or "
      "an empty one."
    )
  if step is None:
    return ""
  old = read_config(workdir)
  changed = _differences(old, {"config": config, "resolved": resolved})
  known = {DATA_SET, *changed, *config_lib.flatten(config)}
  if unknown := [key for key in allow if key not in known]:
    near = config_lib.near(unknown[0])
    meant = f"; did you mean --allow_change={near}?" if near else "."
    raise UserError(
      f"--allow_change={unknown[0]}: that is no key of the config{meant}"
    )
  refused = [line for key in changed.keys() - {*allow} for line in changed[key]]
  if refused:
    what = "data set" if changed.keys() - {*allow} == {DATA_SET} else "config"
    raise UserError(
      f"--workdir={workdir} was made with another {what}:\n  "
      + "\n  ".join(map(errors.printable, sorted(refused)))
      + "\nUse the old one, or another --workdir; to go on with the new values "
      f"all the same, add --allow_change={','.join(sorted(changed))}.",
      lines=True,
    )
  if resolved["total"] < step:
    raise UserError(
      f"total={config['total']!r} comes to {resolved['total']:,} steps, and "
      f"the run in --workdir={workdir} has done {step:,}. Make it longer, or "
      "start another --workdir."
    )
  if not changed:
    return ""
  lines = [errors.printable(line) for key in changed for line in changed[key]]
  return (
    f"from step {step:,} on with {', '.join(lines)}: schedules, epochs and "
    "the order of the examples are those of the new values."
  )


def _differences(
  old: dict[str, Any], new: dict[str, Any]
) -> dict[str, list[str]]:
  """Lines about what differs, by what --allow_change calls it."""
  lines = config_lib.differences(old["config"], new["config"])
  changed = {k: [v] for k, v in lines.items() if k not in config_lib.FREE_KEYS}
  sets = data_set_differences(old, new)
  if sets:
    changed[DATA_SET] = sets
  if not changed:  # Then what follows from them can still differ.
    a, b = (start["resolved"] | {DATA_SET: ""} for start in (old, new))
    changed = {
      f"resolved.{k}": [f"resolved.{v}"]
      for k, v in config_lib.differences(a, b).items()
      if k not in config_lib.FREE_KEYS
    }
  return changed


def data_set_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """A line for each part of the data set's identity that differs and is known.

  Takes two results of `read_config`.
  """
  a, b = (start["resolved"].get(DATA_SET, {}) for start in (old, new))
  # Groups that one lacks follow from the config, as few-shot evaluation does.
  a, b = ({k: v for k, v in x.items() if k in y} for x, y in ((a, b), (b, a)))
  a, b = config_lib.flatten(a), config_lib.flatten(b)
  unknown = {k for k, v in (*a.items(), *b.items()) if v == ""}
  lines = config_lib.differences(a, b)
  return [f"{DATA_SET}.{v}" for k, v in lines.items() if k not in unknown]
