"""Finds a prepared data set by its name, or says what there is instead."""

import contextlib
import difflib
import fcntl
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterator

from mixer import files
from mixer.datasets import catalog, stored
from mixer.errors import UserError

_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
# What the name of a folder begins with while TFDS, or `convert`, writes it; and
# while our builders do. No version does.
UNFINISHED = "incomplete."
PREPARING = ".preparing-"


def resolve_data_dir(data_dir: str) -> pathlib.Path:
  """The folder that holds data sets, TFDS's own default for ""."""
  default = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  place = data_dir or default
  if files.is_remote(place):
    raise UserError(
      f"{place} is no folder, where data sets have to be: mount the bucket "
      "(gcsfuse), and name what it is mounted on."
    )
  return pathlib.Path(os.path.expanduser(place))


@contextlib.contextmanager
def lock(
  name: str, root: pathlib.Path, *, wait: bool = False
) -> Iterator[None]:
  """Keeps other processes of this machine from preparing the same set.

  It is released with the process, however that ends.
  """
  try:
    root.mkdir(parents=True, exist_ok=True)
    file = open(root / f".{catalog.base_name(name)}.lock", "w")
  except OSError as e:
    raise UserError(
      f"data set {name} can't be prepared in {root}: {e.strerror}. Name "
      "another place by --data_dir=DIR, or --config.data.data_dir=DIR."
    ) from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as e:
      raise UserError(
        f"data set {name} is being prepared in {root} by another process on "
        "this machine. Wait for it, or end it and give the command again: it "
        "continues from there."
      ) from e
    yield


def split_name(name: str) -> tuple[str, str, str]:
  """Base, config and version of "NAME/CONFIG:VERSION"; "" where not given."""
  rest, _, version = name.partition(":")
  base, _, config = rest.partition("/")
  return base, config, version


def by_config(base: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Config -> folders of its versions, newest first, in a set's folder."""
  found = defaultdict(list)
  for path in (*base.glob("[!.]*"), *base.glob("[!.]*/[!.]*")):
    if _VERSION.fullmatch(path.name) and (path / stored.FEATURES).exists():
      found["" if path.parent == base else path.parent.name].append(path)
  for paths in found.values():
    paths.sort(key=lambda p: [int(n) for n in p.name.split(".")], reverse=True)
  return dict(found)


def find(name: str, root: pathlib.Path, data_dir: str = "") -> pathlib.Path:
  """The folder of a prepared set: of its newest version, if none is named.

  Args:
    name: with config and version if need be, the latter as "1.*.*", too;
      without a config, the only one that is prepared is meant.
    root: where data sets are.
    data_dir: as the user gave it.

  Raises:
    UserError: not prepared; says how it is done.
  """
  base, config, version = split_name(name)
  pattern = re.compile(re.escape(version).replace(r"\*", "[0-9]+") or ".*")
  there = by_config(root / base)
  if not config and "" not in there and there:
    if len(there) > 1:
      several = ", ".join(f"{base}/{c}" for c in sorted(there))
      raise UserError(
        f"data set {name} in {root} is prepared in several forms; name one of "
        f"them: {several}."
      )
    (config,) = there
  damaged = ""
  for folder in there.get(config, ()):
    if pattern.fullmatch(folder.name):
      if (folder / stored.INFO).exists():
        return folder
      damaged = f" (there is no {folder / stored.INFO})"
  raise _not_prepared(name, root, data_dir, damaged)


def _not_prepared(
  name: str, root: pathlib.Path, data_dir: str, why: str
) -> UserError:
  there = f"data set {name} is not prepared in {root}"
  how_to = catalog.how_to(name, data_dir)
  base = root / split_name(name)[0]
  for prefix in (UNFINISHED, PREPARING):
    for path in (*base.glob(f"{prefix}*/"), *base.glob(f"*/{prefix}*/")):
      # Files of that name, in a version's own folder, are of a conversion.
      if path.is_dir():
        return UserError(
          f"{there} yet: a preparation was begun and has not ended ({path}). "
          f"If none is running, the same command continues it: {how_to}"
        )
  found = {p.parents[1] for p in root.glob(f"*/[0-9]*.*.*/{stored.INFO}")}
  found |= {p.parents[1] for p in root.glob(f"*/*/[0-9]*.*.*/{stored.INFO}")}
  others = sorted(path.relative_to(root).as_posix() for path in found)
  near = difflib.get_close_matches(name, others, n=1)
  if near:
    has = f"Did you mean {near[0]}, which is there? "
  elif others:
    more = ", ..." if len(others) > 10 else ""
    has = f"Prepared there: {', '.join(others[:10])}{more}. "
  else:
    has = ""
  return UserError(
    f"{there}{why}. {has}{how_to} If it is elsewhere, name the place by "
    "--config.data.data_dir=DIR. Without any preparation: "
    f"{', '.join(catalog.SHIPPED)}."
  )


def versions(place: pathlib.Path, name: str) -> list[pathlib.Path]:
  """The folders of a set's versions, oldest first.

  Args:
    place: a data_dir, a set's folder, a config's, or a version's.
    name: with config and version, if only those.

  Raises:
    UserError: `place` is a version of another set.
  """
  base, config, version = split_name(name)
  found = []
  # Not all that is below: it may be a folder of a million images.
  deeper = ["*/*/"] * (place.name == base)
  for pattern in ("", "*/", f"{base}/*/", f"{base}/*/*/", *deeper):
    for path in place.glob(f"{pattern}{stored.INFO}"):
      info = stored.read_info(path)
      is_it = info.get("name") == base and (
        config in ("", info.get("configName", ""))
        and version in ("", info.get("version"))
      )
      if is_it and not path.parent.name.startswith((UNFINISHED, PREPARING)):
        found.append((info.get("version"), path.parent))
      elif not pattern:
        raise UserError(
          f"{place} holds the data set {info.get('name')}, not {name}; "
          "prepare it by its name."
        )
  found.sort(key=lambda v: [int(n) for n in re.findall("[0-9]+", str(v[0]))])
  return [folder for _, folder in found]
