"""Prepares a data set from images that the user has."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from mixer import files, runtime
from mixer.datasets import catalog, stored
from mixer.datasets.prepare import build, builders
from mixer.datasets.prepare.build import Options
from mixer.datasets.prepare.builders import BUILDERS, Builder, Request
from mixer.datasets.prepare.sources import Source
from mixer.errors import UserError
from mixer.progress import Progress


def prepare(args: argparse.Namespace, root: pathlib.Path) -> str:
  """Prepares a set, or goes on with it, and says what it made.

  Args:
    args: of the command; a flag that isn't given is None.
    root: where data sets are.

  Returns:
    The set's name, for `data.name`.
  """
  base, release, version = catalog.split_name(args.set)
  builder, entry = BUILDERS[base], catalog.ENTRIES[base]
  _check(args, base, release, version)
  release = release or next(iter(builder.releases))
  name = args.name or "/".join(filter(None, (base, release)))
  folder = root / name / builder.version
  about = {"name": args.name or base, "description": entry.what}
  about |= {"configName": release} if release else {}
  given = {
    field.name: value
    for field in dataclasses.fields(build.Options)
    if (value := getattr(args, field.name, None)) is not None
  }
  manual = root / "downloads" / "manual"  # Where TFDS wants such files.
  if not args.source and entry.files and (manual / entry.files[0]).exists():
    args.source = [manual]
  truncated, seed = bool(args.accept_truncated), given.get("seed", 0)
  request = Request(base, release, args.source, args.classes, truncated, seed)
  if (folder / stored.INFO).exists() and not args.restart:
    if build.work_folder(folder).exists():  # A kill came after the end.
      with stored.lock(about["name"], root):
        build.clean(folder)
    _compare(name, folder, request, given)
  elif args.source:
    with Progress() as progress, stored.lock(about["name"], root):
      source = builders.open_source(request)
      progress.say(
        f"preparing data set {name} in {root} from {source.description}"
      )
      options = _options(builder, source, given)
      if args.restart:
        build.clean(folder)
      runtime.keep_freed_memory()  # Resizing takes half the time.
      _find_classes(source, build.work_folder(folder), progress)
      count, published = len(source.classes or ()), builder.releases[release][1]
      if published and count != published:
        source.warn(
          f"the source has {count:,} classes, and this release {published:,}"
        )
      build.Preparation(source, folder, about, builder, options, progress).run()
  else:
    raise UserError(
      f"{args.set} is made from images that you have; name them with --source. "
      f"{catalog.how_to(args.set, args.data_dir)}"
    )
  _tell(folder)
  # The short name is enough for the only release that is there.
  is_only = {p.parent.name for p in stored.versions(root, base)} == {release}
  return base if is_only and not args.name else name


def _check(
  args: argparse.Namespace, base: str, release: str, version: str
) -> None:
  """Refuses what doesn't go with the set."""
  builder = BUILDERS[base]
  known = " and ".join(f"{base}/{r}" for r in builder.releases if r) or base
  releases, versions = ("", *builder.releases), ("", builder.version)
  if release not in releases or version not in versions:
    raise UserError(
      f"{args.set} isn't prepared here, but {known} in version "
      f"{builder.version}; name that."
    )
  for flag in ("name", "classes", "accept_truncated"):
    if getattr(args, flag) and flag not in builder.takes:
      raise UserError(f"--{flag} is not for {base}; leave it out.")
  own = "name" in builder.takes
  if own and not re.fullmatch("[a-z][a-z0-9_]*", args.name or ""):
    command = catalog.command("folder", "--name=my_set", "--source=PATH")
    raise UserError(
      f"{base} makes a data set of your own, which can't be called "
      f"{args.name!r}; give it a name of small letters, digits and underscores "
      f"that begins with a letter, as in `{command}`."
    )


def _options(
  builder: Builder, source: Source | None, given: Mapping[str, Any]
) -> Options:
  """The user's options, and the builder's where the user gives none."""
  defaults = dict(builder.options)
  if source is not None and source.has_splits:
    defaults.pop("hold_out", None)
  return Options(**defaults | dict(given))


def _find_classes(
  source: Source, work: pathlib.Path, progress: Progress
) -> None:
  """Looking through a tar.gz can take an hour: once is enough."""
  if source.classes is not None:
    return
  kept = work / "classes.json"
  found: dict[str, Any] = {}
  with contextlib.suppress(UserError):  # Not there yet, or damaged.
    found = files.read_json(kept, "the classes of a source")
  if found.get("source") != source.fingerprint:
    total = source.total_bytes
    names = source.list_classes(
      lambda done: progress.show("looking for the classes", done, total)
    )
    found = {"source": source.fingerprint, "classes": sorted(names)}
    with build.disk(kept):
      work.mkdir(parents=True, exist_ok=True)
    with files.atomic_write(kept, "w") as f:
      json.dump(found, f)
  source.classes = dict.fromkeys(found["classes"])


def _compare(
  name: str, folder: pathlib.Path, request: Request, given: Mapping[str, Any]
) -> None:
  """Says in what a set that is there differs from what is asked for."""
  anew = "--restart prepares it anew"
  try:
    stored.read(folder).check()
    record = folder / build.PREPARATION
    then = files.read_json(record, "the record of a preparation")
  except UserError as e:
    raise UserError(f"{e} {anew}.") from e
  # Its source needn't be there any more.
  source, lacking = None, ""
  if request.paths:
    try:
      source = builders.open_source(request)
    except UserError as e:
      lacking = f"\nnot compared with its source now: {e}"
  now = _options(BUILDERS[request.base], source, given).identity()
  identity = then.get("identity", {})
  if source is None:
    now = {k: v for k, v in now.items() if k in given}
  elif identity.get("format") == build.FORMAT:
    now["source"] = source.fingerprint
  before = f"data set {name} was prepared before, from {then.get('from')}"
  if differs := build.differences(identity, now):
    raise UserError(
      f"{before}, and differs in {', '.join(differs)}. It is left as it is, in "
      f"{folder}: {anew}."
    )
  print(f"{before}; {anew}{lacking}")


def _tell(folder: pathlib.Path) -> None:
  """Says which files had problems."""
  record = files.read_json(folder / build.PREPARATION, "its record")
  skips = record.get("identity", {}).get("on_mislabelled") == "skip"
  told: dict[str, list[str]] = {"left out": [], "kept": []}
  for kind, count in sorted(record.get("problems", {}).items()):
    out = kind not in build.NOT_BAD or (skips and kind == build.MISLABELLED)
    told["left out" if out else "kept"].append(f"{count:,} {kind}")
  parts = "; ".join(f"{k}: {', '.join(v)}" for k, v in told.items() if v)
  if parts:
    print(f"{parts}; listed in {folder / build.REPORT}")
