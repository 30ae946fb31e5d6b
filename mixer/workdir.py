"""The workdir: whose it is, and the config that it was made with."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import jax

from mixer import config as config_lib
from mixer.errors import UserError

_CONFIG = "config.json"


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a file that is there whole or not at all."""
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  with open(temporary, "w") as f:
    json.dump(content, f, indent=2)
    f.write("\n")
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
  """What `claim` wrote: `{"config": ..., "resolved": ...}`.

  Raises:
    UserError: no workdir of ours.
  """
  path = workdir / _CONFIG
  try:
    content = json.loads(path.read_text())
    return {k: dict(content[k]) for k in ("config", "resolved")}
  except FileNotFoundError:
    raise UserError(
      f"{workdir} is not a workdir of train.py: it has no {_CONFIG}."
    ) from None
  except (ValueError, KeyError, TypeError, OSError) as e:
    raise UserError(
      f"{path} can't be read ({e}); restore it from a copy, or start again "
      "in an empty --workdir."
    ) from e


def claim(
  workdir: pathlib.Path,
  config: dict[str, Any],
  resolved: dict[str, Any],
  allow: Iterable[str] = (),
  *,
  has_progress: bool = True,
) -> None:
  """Makes the workdir this run's, or checks that it is.

  Writes the whole config, and what was worked out from it, to `config.json`.

  Args:
    workdir: may be missing, empty, or of an earlier start of the same run.
    config: JSON form of the run's config.
    resolved: what the config comes to: durations in steps, classes.
    allow: keys, besides `config.FREE_KEYS`, that may differ from the config
      that the workdir was made with.
    has_progress: whether it holds a checkpoint; if not, there is nothing to go
      on with, and another config may have it (after a mistake in the first).

  Raises:
    UserError: it can't be made, is somebody else's, or its config differs.
  """
  new = {"config": config, "resolved": resolved}
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    names = {p.name for p in workdir.iterdir()}
    # The folder must take files: better said now than at the first save.
    probe = workdir / f".probe.{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as e:
    raise UserError(
      f"--workdir={workdir} can't be written to ({e.strerror}); name a folder "
      "that can, or one that doesn't exist yet."
    ) from e
  if _CONFIG in names:
    if has_progress:
      _check_drift(workdir, new, tuple(allow))
  elif {n for n in names if not n.startswith(".")}:
    shown = ", ".join(sorted(names)[:5])
    raise UserError(
      f"--workdir={workdir} holds files ({shown}) but no {_CONFIG}, so it is "
      "not a workdir of train.py; name another folder or an empty one."
    )
  if jax.process_index() == 0:
    write_json(workdir / _CONFIG, new)


def _completed(
  config: dict[str, Any], defaults: dict[str, Any]
) -> dict[str, Any]:
  """A config, and what it has no key for."""
  groups = {
    key: _completed(config.get(key, {}), value)
    for key, value in defaults.items()
    if isinstance(value, dict)
  }
  return defaults | config | groups


def _check_drift(
  workdir: pathlib.Path, new: dict[str, Any], allow: tuple[str, ...]
) -> None:
  old = read_config(workdir)
  # A key that came later had its default until then.
  defaults = config_lib.to_json(config_lib.default())
  old["config"] = _completed(old["config"], defaults)
  known = {
    key
    for start in (old, new)  # A key may be gone since.
    for key in (
      *config_lib.flatten(start["config"]),
      *(f"resolved.{k}" for k in start["resolved"]),
    )
  }
  for key in allow:
    if key not in known:
      raise UserError(f"--allow_change={key}: that is no key of the config.")
  changed = {
    key: line
    for key, line in config_lib.differences(
      old["config"], new["config"]
    ).items()
    if key not in config_lib.FREE_KEYS
  }
  if not changed:  # Then what follows from it can still differ.
    changed = {
      f"resolved.{key}": f"resolved.{line}"
      for key, line in config_lib.differences(
        old["resolved"], new["resolved"]
      ).items()
      if key not in config_lib.FREE_KEYS
    }
  refused = {k: line for k, line in changed.items() if k not in allow}
  if refused:
    raise UserError(
      f"--workdir={workdir} was made with another config:\n  "
      + "\n  ".join(refused.values())
      + "\nUse the old values, or another --workdir; to go on with the new "
      f"values all the same, add --allow_change={','.join(changed)}."
    )
