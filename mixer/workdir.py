"""The workdir: where it may lie, whose it is, and the config it was made with.

It lies on a local disk or in a bucket of Google Cloud Storage; `epath` reads
and writes both.
"""

import importlib.util
import json
import os
import re
import uuid
from collections.abc import Iterable
from typing import Any

import fsspec.config
import jax
from etils import epath

from mixer import config as config_lib
from mixer import drift, files
from mixer.errors import UserError, first_line

CONFIG = "config.json"
# What its `resolved` has of numbers.
_COUNTS = ("total", "train_examples", "eval_examples", "num_classes")

# With TensorFlow around, epath would go through it, and import it for that.
os.environ.setdefault("EPATH_USE_TF", "false")


def path(text: epath.PathLike) -> epath.Path:
  """A folder or file, local or gs://, from what a user has written.

  Raises:
    UserError: it lies where nothing can be written to, or what is needed for
      it isn't installed.
  """
  written = os.fspath(text)
  scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):/", written)
  if scheme is None:
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
  # Its memory of what lies in a folder knows nothing of what others write, not
  # even TensorStore in this process.
  options = fsspec.config.conf.setdefault("gcs", {})
  options.setdefault("use_listings_cache", False)
  return epath.Path(written)


is_remote = files.is_remote
failures = files.failures
reason = files.reason


def make(workdir: epath.PathLike) -> None:
  """Makes the folder, where a folder is a thing.

  Raises:
    UserError: it can't be made.
  """
  if is_remote(workdir):
    return  # To gcsfs it would mean: make the bucket.
  try:
    os.makedirs(workdir, exist_ok=True)
  except OSError as e:
    raise not_writable(workdir, e) from e


def not_writable(workdir: epath.PathLike, error: Exception) -> UserError:
  """The error of a workdir that takes no files."""
  where = os.fspath(workdir)
  advice = "name a folder that can, or one that doesn't exist yet."
  if is_remote(workdir):
    advice = (
      "does the bucket exist, and may you write to it (gcloud auth "
      "application-default login; the role Storage Object User)?"
    )
  return UserError(
    f"--workdir={where} can't be written to ({reason(error)}); {advice}"
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


def read_config(workdir: epath.PathLike) -> dict[str, Any]:
  """What `claim` wrote: `{"config": ..., "resolved": ...}`.

  Raises:
    UserError: no workdir of ours.
  """
  path = epath.Path(workdir) / CONFIG
  advice = (
    "Where there is a checkpoint, the next start of train.py writes it anew; "
    "else restore it from a copy, or start again in an empty --workdir."
  )
  try:
    keys = ("config", "resolved")
    content = files.read_sealed(path, "the config of a run", keys)
  except UserError as e:
    if isinstance(e.__cause__, FileNotFoundError | NotADirectoryError):
      raise UserError(
        f"{workdir} is not a workdir of train.py: it has no {CONFIG}."
      ) from None
    raise UserError(f"{e} {advice}") from e
  try:
    found = {k: dict(content[k]) for k in keys}
    config_lib.from_json(found["config"], found["resolved"])
    wrong = [k for k in _COUNTS if type(found["resolved"].get(k, 0)) is not int]
    if wrong:
      raise TypeError(f"resolved.{wrong[0]} is no number")
  except (LookupError, TypeError, ValueError, AttributeError) as e:
    raise UserError(
      f"{path} is not what train.py writes there ({first_line(e)}). {advice}"
    ) from e
  return found


def write_config(workdir: epath.PathLike, content: dict[str, Any]) -> None:
  """Writes what `read_config` reads."""
  write_json(epath.Path(workdir) / CONFIG, files.sealed(content))


def claim(
  workdir: epath.PathLike,
  config: dict[str, Any],
  resolved: dict[str, Any],
  allow: Iterable[str] = (),
  *,
  step: int | None = 0,
) -> list[str]:
  """Makes the workdir this run's, or checks that it is.

  Writes the whole config, and what was worked out from it, to `config.json`.

  Args:
    workdir: may be missing, empty, or of an earlier start of the same run.
    config: JSON form of the run's config.
    resolved: what the config comes to: durations in steps, classes, the data
      set's identity.
    allow: keys, besides `config.FREE_KEYS`, that may differ from the config
      that the workdir was made with; see `drift`.
    step: of the newest checkpoint; None: there is nothing to go on with, and
      another config may have it (after a mistake in the first).

  Returns:
    Sentences for people about what has changed.

  Raises:
    UserError: it can't be made, is somebody else's, or its config differs.
  """
  new = {"config": config, "resolved": resolved}
  workdir = epath.Path(workdir)
  make(workdir)
  try:
    # The folder must take files: better said now than at the first save.
    probe = workdir / f".probe.{uuid.uuid4().hex}"
    probe.write_text("probe")
    names = {p.name for p in workdir.iterdir()} - {probe.name}
    probe.unlink()
  except failures(workdir) as e:
    raise not_writable(workdir, e) from e
  sentences = []
  if CONFIG in names:
    if step is not None:
      old = read_config(workdir)
      sentences = drift.check(str(workdir), old, new, tuple(allow), step)
  elif {n for n in names if not n.startswith(".")}:
    shown = ", ".join(sorted(names)[:5])
    raise UserError(
      f"--workdir={workdir} holds files ({shown}) but no {CONFIG}, so it is "
      "not a workdir of train.py; name another folder or an empty one."
    )
  if jax.process_index() == 0:
    write_config(workdir, new)
  return sentences
