"""The workdir: its path, and the config and data that it was made with.

It is on a local disk or in a bucket of Google Cloud Storage; `epath` reads and
writes both.
"""

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Collection
from typing import Any

from etils import epath

from mixer import config as config_lib
from mixer import errors, files
from mixer.errors import UserError, first_line

CONFIG = "config.json"
# What --allow_change calls the data set's identity: no key of the config.
DATA_SET = "data_set"

# With TensorFlow around, epath would go through it, and import it for that.
os.environ.setdefault("EPATH_USE_TF", "false")


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
  import fsspec.config  # Here, as workdirs on disks needn't wait for it.

  # A cache of listings would hide what others write.
  options = fsspec.config.conf.setdefault("gcs", {})
  options.setdefault("use_listings_cache", False)
  return epath.Path(written)


def make(workdir: epath.PathLike) -> None:
  """Makes the folder, where a folder is a thing."""
  if not files.is_remote(workdir):  # To gcsfs it would mean: make the bucket.
    with writing(workdir):
      os.makedirs(workdir, exist_ok=True)


def writing(workdir: epath.PathLike) -> contextlib.AbstractContextManager[None]:
  """Turns errors of a workdir that takes no files into a UserError."""
  advice = "Name a --workdir that can, or one that doesn't exist yet."
  if files.is_remote(workdir):
    advice = (
      "Does the bucket exist, and may you write to it (gcloud auth "
      "application-default login; the role Storage Object User)?"
    )
  return files.writing(workdir, advice)


def vanished(workdir: epath.PathLike) -> str:
  """The message of a run that stops as its workdir is gone."""
  return (
    f"--workdir={os.fspath(workdir)} has vanished (deleted, renamed or "
    "unmounted), so this run stops without saving. At its new place the same "
    "command goes on from the newest checkpoint."
  )


def write_json(where: epath.PathLike, content: Any) -> None:
  """Writes a file that is there whole or not at all."""
  with files.atomic_write(where, "w") as f:
    f.write(json.dumps(content, indent=2) + "\n")


def write_config(
  workdir: epath.PathLike, config: dict[str, Any], resolved: dict[str, Any]
) -> None:
  """Writes config.json: the config, and the steps and data it comes to."""
  content = {"config": config, "resolved": resolved}
  write_json(epath.Path(workdir) / CONFIG, files.sealed(content))


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
  """`{"config": ..., "resolved": ...}`, as written; else `DamagedConfig`."""
  where = epath.Path(workdir) / CONFIG
  if not where.exists():
    raise UserError(
      f"{workdir} is not a workdir of train.py: it has no {CONFIG}."
    )
  try:
    keys = ("config", "resolved")
    found = files.read_sealed(where, "the config of a run", keys)
    config_lib.from_json(found["config"], found["resolved"])
    return found
  except Exception as e:
    if isinstance(e.__cause__, OSError):
      raise
    raise DamagedConfig(
      f"{where} is damaged ({first_line(e)}). Where there is a checkpoint, the "
      "next start of train.py writes it anew; else restore it from a copy, or "
      "start again in an empty --workdir."
    ) from e


def check(
  workdir: epath.PathLike,
  config: dict[str, Any],
  resolved: dict[str, Any],
  allow: Collection[str] = (),
  step: int | None = None,
) -> str:
  """Checks that a run may have a workdir; a message about what has changed.

  Keys in `allow`, and `config.FREE_KEYS`, may differ from what it was made
  with; all may before there is a checkpoint (`step` of the newest, or None).
  """
  names = []
  with contextlib.suppress(FileNotFoundError):  # A bucket has no folders.
    names = sorted(p.name for p in epath.Path(workdir).iterdir())
  names = [name for name in names if name[0] != "."]
  if names and CONFIG not in names:
    raise UserError(
      f"--workdir={workdir} holds files ({', '.join(names[:5])}) but no "
      f"{CONFIG}, so it is not a workdir of train.py; name another folder."
    )
  if step is None:
    return ""
  changed = _differences(read_config(workdir), config, resolved)
  for key in {*allow} - {DATA_SET, *changed, *config_lib.flatten(config)}:
    near = config_lib.near(key)
    meant = f"; did you mean --allow_change={near}?" if near else "."
    raise UserError(
      f"--allow_change={key}: that is no key of the config{meant}"
    )
  if refused := changed.keys() - {*allow}:
    lines = sorted(line for key in refused for line in changed[key])
    what = "data set" if refused == {DATA_SET} else "config"
    raise UserError(
      f"--workdir={workdir} was made with another {what}:\n  "
      + "\n  ".join(map(errors.printable, lines))
      + "\nUse the old one, or another --workdir; to go on with the new values "
      f"all the same, add --allow_change={','.join(sorted(changed))}.",
      lines=True,
    )
  if resolved["total"] < step:
    raise UserError(
      f"total={config['total']!r} comes to {resolved['total']:,} steps, and "
      f"the run in --workdir={workdir} has done {step:,}. Make it longer."
    )
  if not changed:
    return ""
  lines = [errors.printable(line) for key in changed for line in changed[key]]
  return (
    f"from step {step:,} on with {', '.join(lines)}: schedules, epochs and "
    "the order of the examples are those of the new values."
  )


def _differences(
  old: dict[str, Any], config: dict[str, Any], resolved: dict[str, Any]
) -> dict[str, list[str]]:
  """Lines about what differs, by what --allow_change calls it."""
  # Keys that have come since have their defaults.
  before = config_lib.flatten(config_lib.default())
  before |= config_lib.flatten(old["config"])
  changed = {
    key: [line]
    for key, line in config_lib.differences(before, config).items()
    if key not in config_lib.FREE_KEYS
  }
  if lines := data_set_differences(old["resolved"], resolved):
    changed[DATA_SET] = lines
  if not changed:  # Then what follows from them can still differ.
    a, b = (x | {DATA_SET: ""} for x in (old["resolved"], resolved))
    changed = {
      f"resolved.{key}": [f"resolved.{line}"]
      for key, line in config_lib.differences(a, b).items()
      if key not in config_lib.FREE_KEYS
    }
  return changed


def data_set_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """A line for each known part of the data's identity that `resolved` tell."""
  a, b = (resolved.get(DATA_SET, {}) for resolved in (old, new))
  # Groups that one lacks follow from the config, as few-shot evaluation does.
  a, b = ({k: v for k, v in x.items() if k in y} for x, y in ((a, b), (b, a)))
  return [
    f"{DATA_SET}.{line}"
    for line in config_lib.differences(a, b).values()
    if not re.search(r": '' -> | -> ''$", line)  # Not known.
  ]
