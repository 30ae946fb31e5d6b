"""Prepares images that the user has, by the builders of this package."""

import contextlib
import dataclasses
import importlib
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from mixer import files, progress
from mixer.datasets import catalog, locate, stored
from mixer.datasets.preparation import build_files
from mixer.datasets.preparation.build_options import Options, Progress, Report
from mixer.datasets.sources import tar_source
from mixer.datasets.sources.member import Source
from mixer.errors import UserError

# Below a data_dir, where a set is made that is to replace another one.
_ANEW = f"{locate.PREPARING}anew"
# What of a request a set's `open_source` takes, beside the paths.
_TAKES = {
  "folder": ("class_file", "seed"),
  "imagenet21k": ("release", "class_file", "accept_truncated"),
  "imagenet21k_p": ("release", "class_file", "accept_truncated"),
  "imagenet2012": ("accept_truncated",),
  "imagenet2012_real": ("accept_truncated",),
  "imagenet_v2": ("release", "accept_truncated"),
  "mnist": ("name",),
  "fashion_mnist": ("name",),
}


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be prepared, from what, and how.

  Attributes:
    name: a key of `catalog.OWN`, with its config if it has any.
    sources: files or folders.
    own_name: of the result, where the builder is `folder`.
    class_file: a list of the classes.
    accept_truncated: take what is there of a tar that breaks off.
    options: fields of `Options` that the user has set; the builder's defaults
      are taken for `hold_out` and `upright` if they aren't among them.
  """

  name: str
  sources: Sequence[pathlib.Path]
  own_name: str = ""
  class_file: pathlib.Path | None = None
  accept_truncated: bool = False
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def prepare(
  request: Request,
  root: pathlib.Path,
  meter: progress.Progress,
  data_dir: str = "",
) -> tuple[str, Report]:
  """Prepares a set, or goes on with it.

  Args:
    request: what to do.
    root: where data sets lie.
    meter: shows how far it is.
    data_dir: as the user gave it.

  Returns:
    The set's name for `data.name`, and what the builder tells.

  Raises:
    UserError: everything that the user can mend.
  """
  base, config, version = locate.split_name(request.name)
  _check(request)
  asked = Options(**request.options)
  module: Any = importlib.import_module(catalog.OWN[base][0])
  make: Any = getattr(module, catalog.OWN[base][1])
  kwargs: dict[str, Any] = {"data_dir": str(root)}
  if base == "folder":
    kwargs["name"] = name = request.own_name
  else:
    config = config or next(iter(make.builder_configs), "")
    _check_config(base, config, tuple(make.builder_configs))
    name = f"{base}/{config}" if config else base
    if config:
      kwargs["config"] = config
  if version not in ("", str(make.VERSION)):
    raise UserError(
      f"{name} is prepared in version {make.VERSION}; leave :{version} out."
    )
  given = {
    "release": config,
    "name": base,
    "class_file": request.class_file,
    "accept_truncated": request.accept_truncated,
    "seed": asked.seed,
  }
  taken = {key: given[key] for key in _TAKES[base]}
  there = root / name / str(make.VERSION)
  is_there = (there / stored.INFO).exists()
  if not is_there:
    make(**kwargs)  # Refuses what can't be a name.
  elif not asked.restart:
    try:
      stored.read(there).check()
    except UserError as e:
      raise UserError(f"{e} --restart prepares it anew.") from e
    # Its source needn't be there any more, and isn't read.
    lacking = ""
    if request.sources:
      try:
        source = _open(module, request, taken)
      except UserError as e:
        lacking = str(e)
      else:
        options = _options(request, base, module, source)
        return name, make(source=source, options=options, **kwargs).prepare()
    report = make(options=asked, **kwargs).prepare()
    return name, dataclasses.replace(report, not_compared=lacking)
  if not request.sources:
    raise UserError(
      f"{request.name} is made from images that you have; name them with "
      f"--source. {catalog.how_to(request.name, data_dir)}"
    )
  source = _open(module, request, taken)
  if is_there:
    # What is there stays until all of the new one is.
    kwargs["data_dir"] = str(root / _ANEW)
  meter.say(f"preparing data set {name} in {root} from {source.description}")
  kept = root / name / f".classes-{source.fingerprint}.json"
  _find_classes(source, kept, meter)
  builder = make(
    source=source, options=_options(request, base, module, source), **kwargs
  )
  told = 0

  def show(progress: Progress) -> None:
    nonlocal told
    for warning in source.warnings[told:]:
      meter.say(f"warning: {warning.rstrip('.')}.")
    told = len(source.warnings)
    reading = progress.stage == "reading"
    counts = {
      "bad": progress.bad,
      "mislabelled": progress.mislabelled,
      "duplicate": progress.duplicates,
    }
    meter.show(
      "preparing" if reading else "drawing the held-out splits",
      progress.bytes_done,
      progress.bytes_total,
      progress.images if reading else progress.bytes_done,
      ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n),
    )

  report = builder.prepare(show)
  kept.unlink(missing_ok=True)
  if is_there:
    _replace(there, pathlib.Path(report.data_dir), root)
    report = dataclasses.replace(
      report,
      data_dir=str(there),
      path=str(there / pathlib.Path(report.path).name),
    )
  return name, report


def _open(module: Any, request: Request, taken: Mapping[str, Any]) -> Source:
  try:
    return module.open_source(request.sources, **taken)
  except OSError as e:  # No permission, a name that is too long, a bad disk.
    raise UserError(
      f"the source {e.filename or request.sources[0]} can't be looked at: "
      f"{files.reason(e)}."
    ) from e


def _replace(old: pathlib.Path, new: pathlib.Path, root: pathlib.Path) -> None:
  """Puts a set in another one's place."""
  aside = old.with_name(f"{locate.PREPARING}replaced-{old.name}")
  with build_files.explained(old):
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    new.rename(old)
    build_files.sync(old.parent)
  for left in (aside, root / _ANEW):
    shutil.rmtree(left, ignore_errors=True)


def _find_classes(
  source: Any, kept: pathlib.Path, meter: progress.Progress
) -> None:
  """Looking through a tar.gz can take an hour: once is enough."""
  looks = isinstance(source, tar_source.TarSource) and not source.knows_classes
  if looks:
    with contextlib.suppress(UserError):  # Not there yet, or damaged.
      source.take_classes(build_files.read_checked(kept))
      return
  names = source.class_names(
    lambda done: meter.show("looking for the classes", done, source.total_bytes)
  )
  if looks:
    with build_files.explained(kept):
      kept.parent.mkdir(parents=True, exist_ok=True)
    build_files.write_checked(kept, names)


def _check(request: Request) -> None:
  """Flags that don't go with the set."""
  base, config, _ = locate.split_name(request.name)
  if base == "folder" and (config or not request.own_name):
    raise UserError(
      "folder makes a data set of your own; give it a name, as in "
      f"`{catalog.command('folder', '--name=my_set', '--source=PATH')}`."
    )
  if base != "folder" and request.own_name:
    raise UserError(
      f"--name={request.own_name} is for the builder `folder`; {base} has its "
      "name."
    )
  if request.accept_truncated and "accept_truncated" not in _TAKES[base]:
    raise UserError(
      f"--accept_truncated is for tars of ImageNet; {base} reads none that may "
      "break off."
    )
  if request.class_file and "class_file" not in _TAKES[base]:
    raise UserError(
      f"--classes={request.class_file} lists classes, and those of {base} are "
      "known; leave it out."
    )


def _check_config(base: str, config: str, known: tuple[str, ...]) -> None:
  if config and not known:
    raise UserError(f"data set {base} comes in one form; name it {base}.")
  if config and config not in known:
    raise UserError(
      f"{base} has no release {config!r}; it has "
      f"{' and '.join(f'{base}/{c}' for c in known)}."
    )


def _options(request: Request, base: str, module: Any, source: Any) -> Options:
  """The user's, and the builder's where the user has set none."""
  options = dict(request.options)
  if base == "folder":
    options.setdefault("hold_out", module.hold_out(source))
    options.setdefault("upright", True)
    options.setdefault("white_ground", True)
  elif base == "imagenet21k":
    options.setdefault("hold_out", module.HOLD_OUT)
  elif base == "imagenet2012":
    # TFDS's is shuffled, and recipes choose by slices of it.
    options["shuffle"] = True
  return Options(**options)
