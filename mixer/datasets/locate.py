"""Finds a prepared data set by its name, or says what there is instead."""

import contextlib
import difflib
import fcntl
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Iterator

from mixer import files
from mixer.datasets import catalog, stored
from mixer.errors import UserError

_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_CONFIG = re.compile(r"[\w+.-]+")
# What a folder's name begins with while TFDS, or `convert`, writes it. No
# version does, so that nobody takes it for a data set.
UNFINISHED = "incomplete."
# The same for `build`.
PREPARING = ".preparing-"
_WORKING = (UNFINISHED, PREPARING)


def resolve_data_dir(data_dir: str) -> pathlib.Path:
  """The folder that holds data sets, TFDS's own default for "".

  Raises:
    UserError: it lies in an object store.
  """
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  place = data_dir or default
  if files.is_remote(place):
    raise UserError(
      f"{place} is no folder, where data sets have to lie: mount the bucket "
      "(gcsfuse), and name what it is mounted on."
    )
  return pathlib.Path(os.path.expanduser(place))


@contextlib.contextmanager
def lock(name: str, root: pathlib.Path) -> Iterator[None]:
  """Keeps other processes of this machine from preparing the same set.

  It goes with the process, however that ends.

  Raises:
    UserError: another process has it; `root` can't be written.
  """
  try:
    root.mkdir(parents=True, exist_ok=True)
    file = open(_lock_file(name, root), "w")
  except OSError as e:
    raise UserError(
      f"data set {name} can't be prepared in {root}: {e.strerror}. Name "
      "another place with --data_dir=DIR."
    ) from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise UserError(
        f"data set {name} is being prepared in {root} by another process on "
        "this machine. Wait for it, or end it and give the command again: it "
        "goes on from there."
      ) from e
    yield


def is_locked(name: str, root: pathlib.Path) -> bool:
  """Whether a process of this machine is preparing the set."""
  base = catalog.base_name(name)
  # `build` has one for each version.
  locks = [p for d in ("*", "*/*") for p in (root / base).glob(f"{d}.lock")]
  for path in (_lock_file(name, root), *locks):
    try:
      with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError:
      pass
  return False


def _lock_file(name: str, root: pathlib.Path) -> pathlib.Path:
  return root / f".{catalog.base_name(name)}.lock"


def split_name(name: str) -> tuple[str, str, str]:
  """Base, config and version of "NAME/CONFIG:VERSION"; "" where not given."""
  rest, _, version = name.partition(":")
  base, _, config = rest.partition("/")
  return base, config, version


def configs(base: pathlib.Path) -> tuple[str, ...]:
  """The configs of which a version lies under a data set's folder."""
  versions = {path.parent for path in base.glob("*/*/dataset_info.json")}
  names = {v.parent.name for v in versions if _VERSION.fullmatch(v.name)}
  return tuple(sorted(n for n in names if not n.startswith(".")))


def versions(place: pathlib.Path, name: str) -> list[pathlib.Path]:
  """The folders of a set's versions, oldest first.

  Args:
    place: a data_dir, a set's folder, a config's, or a version's.
    name: with config and version, if only those.

  Raises:
    UserError: `place` is a version of another set.
  """
  base, config, version = split_name(name)
  found = {}
  # Not all that is below: it may be a folder of a million images.
  patterns = ["", "*/", f"{base}/*/", f"{base}/*/*/"]
  if place.name == base:
    patterns.append("*/*/")
  for pattern in patterns:
    for path in place.glob(f"{pattern}{stored.INFO}"):
      try:
        info = stored.read_info(path)
      except UserError:
        if base in path.parts[-4:-1]:
          raise
        continue  # Of another set.
      is_it = info.get("name") == base and (
        config in ("", info.get("configName", ""))
        and version in ("", info.get("version"))
      )
      if is_it and not path.parent.name.startswith(_WORKING):
        found[path.parent] = _order(str(info.get("version")))
      elif not pattern:
        raise UserError(
          f"{place} holds the data set {info.get('name')}, not {name}; "
          "prepare it by its name."
        )
  return sorted(found, key=lambda folder: found[folder])


def _order(version: str) -> list[int]:
  return [int(n) for n in re.findall("[0-9]{1,18}", version)]


def unfinished(name: str, root: pathlib.Path) -> pathlib.Path | None:
  """The folder that a preparation at work, or a stopped one, writes."""
  base, config, _ = split_name(name)
  found = [
    path
    for place in ("", f"{glob.escape(config) or '*'}/")
    for prefix in _WORKING
    for path in (root / base).glob(f"{place}{prefix}*")
  ]
  # Files of that name, in a version's own folder, are of a conversion.
  return next((p for p in sorted(found) if p.is_dir()), None)


def find(name: str, root: pathlib.Path, data_dir: str = "") -> pathlib.Path:
  """The folder of a prepared set: of its newest version, if none is named.

  Args:
    name: with config and version if need be, the latter as "1.*.*", too;
      without a config, the default is meant, or the only one that is prepared.
    root: where data sets lie.
    data_dir: as the user gave it.

  Raises:
    UserError: not prepared; says how it is done.
  """
  base, config, version = split_name(name)
  pattern = re.compile(re.escape(version).replace(r"\*", "[0-9]+") or ".*")
  places = [root / base / config]
  if not config:
    places += [root / base / c for c in (_default(root / base),) if c]
  half = ""
  for place in places:
    folders = [
      path.parent
      for path in place.glob(f"*/{stored.FEATURES}")
      if _VERSION.fullmatch(path.parent.name)
      and pattern.fullmatch(path.parent.name)
    ]
    for folder in sorted(folders, key=lambda f: _order(f.name), reverse=True):
      if (folder / stored.INFO).exists():
        return folder
      half = f" (there is no {folder / stored.INFO})"
  found = () if config else configs(root / base)
  if len(found) > 1:
    raise UserError(
      f"data set {name} in {root} is prepared in several forms; name one of "
      f"them: {', '.join(f'{base}/{c}' for c in found)}."
    )
  if found:
    only = f"{base}/{found[0]}" + (f":{version}" if version else "")
    return find(only, root, data_dir)
  raise _not_prepared(name, root, data_dir, half)


def _default(base: pathlib.Path) -> str:
  """The config that is meant where none is named, "" if nothing says so."""
  path = base / ".config" / "metadata.json"
  if not path.exists():
    return ""
  told = files.read_json(path, "the default config of a data set")
  name = told.get("default_config_name")
  return name if isinstance(name, str) and _CONFIG.fullmatch(name) else ""


def prepared_sets(root: pathlib.Path) -> list[str]:
  """The names of the sets in a data_dir, with their configs."""
  found = set()
  for base in _folders(root):
    for place in (base, *_folders(base)):
      if any(
        _VERSION.fullmatch(path.name) and (path / stored.INFO).exists()
        for path in _folders(place)
      ):
        found.add(place.relative_to(root).as_posix())
  return sorted(found)


def _folders(place: pathlib.Path) -> list[pathlib.Path]:
  """Folders in a place, of its first few entries: it may have a million."""
  try:
    with os.scandir(place) as entries:
      return [
        pathlib.Path(entry.path)
        for entry in itertools.islice(entries, 200)
        if not entry.name.startswith(".") and entry.is_dir()
      ]
  except OSError:
    return []


def _not_prepared(
  name: str, root: pathlib.Path, data_dir: str, why: str
) -> UserError:
  there = f"data set {name} is not prepared in {root}"
  if is_locked(name, root):
    return UserError(
      f"{there} yet: another process on this machine is at it. Wait for it."
    )
  half = unfinished(name, root)
  if half:
    return UserError(
      f"{there}: a preparation was begun and stopped ({half}). The same "
      f"command goes on with it: {catalog.how_to(name, data_dir)}"
    )
  others = prepared_sets(root)
  near = difflib.get_close_matches(name, others, n=1)
  if near:
    has = f"Did you mean {near[0]}, which is there? "
  elif others:
    more = ", ..." if len(others) > 10 else ""
    has = f"Prepared there: {', '.join(others[:10])}{more}. "
  else:
    has = ""
  return UserError(
    f"{there}{why}. {has}{catalog.how_to(name, data_dir)} If it lies "
    "elsewhere, name the place with --config.data.data_dir=DIR. Without any "
    f"preparation: {', '.join(catalog.SHIPPED)}."
  )


def not_by_index(found: stored.Stored, name: str, data_dir: str) -> UserError:
  """About a set whose files can't be read by index."""
  kind = found.formats[0]
  here = (
    f"data set {name} in {found.folder} is stored as {kind}, which can't be "
    "read "
  )
  if kind == "tfrecord":
    run = catalog.command(name, data_dir=data_dir)
    return UserError(
      f"{here}by index; `{run}` adds ArrayRecord files to it, without "
      "TensorFlow."
    )
  return UserError(
    f"{here}by index and not be converted from; prepare it anew in another "
    f"place: `{catalog.command(name, '--data_dir=DIR')}`."
  )
