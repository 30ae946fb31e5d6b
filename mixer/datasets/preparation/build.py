"""From a source of images to a TFDS data set in ArrayRecord files.

One pass over the source, in its order (readers shuffle globally), in chunks
that are committed one by one in a hidden folder beside the data set's. However
a preparation ends, the next one goes on after the last chunk, and the result
is the same, byte for byte. Only the last step moves it to where readers look.

    build_options   what is asked for, and told
    build_workers   images are inspected in worker processes
    build_read      the pass: what goes where
    build_draw      which images are held out
    build_classes   the same by class, where the source knows its files
    build_seen      which came before
    build_files     records, shards, and how they get safely to the disk
    build_journal   what is committed
    build_space     whether it will fit
    build_finish    the held-out splits; the data set
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf import json_format

from mixer import files
from mixer.datasets import tfds_info
from mixer.datasets.preparation import (
  build_classes,
  build_files,
  build_finish,
  build_journal,
  build_read,
  build_space,
)
from mixer.datasets.preparation.build_options import Options, Progress, Report
from mixer.datasets.sources.member import Source
from mixer.errors import UserError, first_line

__all__ = ["ImageBuilder", "Options", "Progress", "Report"]

# A preparation of another number isn't gone on with: raise it with a change
# of what is written.
_FORMAT = 2
# Options that change nothing in the result.
_FREE = ("on_bad", "max_bad", "workers", "restart")


class ImageBuilder(tfds.core.GeneratorBasedBuilder):
  """Base of the builders of image sets; a subclass gives VERSION and `_info`.

  `_info` returns `self.image_info(class_names, ...)`; `self.source` is there
  by then.
  """

  VERSION = tfds.core.Version("1.0.0")
  # What a record calls the number of `Member.class_name`.
  LABEL_FEATURE = "label"

  def __init__(
    self,
    *,
    source: Source | None = None,
    options: Options | None = None,
    **kwargs: Any,
  ):
    """Prepares nothing yet.

    Args:
      source: the images; may be None to read a prepared set.
      options: how they are prepared.
      **kwargs: TFDS's own, such as data_dir.
    """
    self.source = source
    self.options = options or Options()
    kwargs.setdefault("file_format", "array_record")
    try:
      super().__init__(**kwargs)
    # Of a set that is there, TFDS reads the small files.
    except (json_format.ParseError, AssertionError, ValueError) as e:
      raise UserError(
        f"the data set {self.name} in {kwargs.get('data_dir')} is damaged: "
        f"{first_line(e)}. Remove its folder and prepare it anew."
      ) from e

  def image_info(
    self,
    class_names: Sequence[str],
    image: tfds.features.Image | None = None,
    **kwargs: Any,
  ) -> tfds.core.DatasetInfo:
    """The DatasetInfo of `image`, `label`, `file_name`.

    Args:
      class_names: every `Member.class_name`, in the order of the labels.
      image: its feature; by default of any size, in color.
      **kwargs: TFDS's own: description, homepage, citation.
    """
    return tfds_info.LocalInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": image or tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(names=list(class_names)),
          "file_name": tfds.features.Text(),
        }
      ),
      supervised_keys=("image", "label"),
      **kwargs,
    )

  def prepare(
    self, progress: Callable[[Progress], None] = lambda progress: None
  ) -> Report:
    """Makes the data set, or goes on where a preparation was stopped.

    Args:
      progress: told some times a second, at most once a few images.

    Raises:
      UserError: the source, the disk or the options don't allow it.
    """
    final = pathlib.Path(self.data_dir)
    work = final.with_name(f".preparing-{final.name}")
    # A data set that is there may lie where nothing can be written.
    if _is_there(final) and not work.exists():
      return self._report(already=True)
    with _locked(work):
      if _is_there(final):
        shutil.rmtree(work, ignore_errors=True)  # A kill came after the end.
        return self._report(already=True)
      if self.source is None:
        raise UserError(
          f"The data set {self.name} is not prepared in {final.parent.parent}, "
          "and no source is named to prepare it from; name one with --source."
        )
      self._prepare(self.source, work, progress)
    self.info.read_from_directory(str(final))
    return self._report(already=False)

  def download_and_prepare(self, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
    """TFDS's name of `prepare`; downloads nothing.

    Args:
      **kwargs: TFDS's. Its writer is not used (it needs twice the room, and
        begins anew when stopped), so that only ArrayRecord can be asked for.

    Raises:
      UserError: as `prepare`, or another format is asked for.
    """
    wanted = kwargs.get("file_format") or "array_record"
    if getattr(wanted, "value", wanted) != "array_record":
      raise UserError(
        f"The data set {self.name} is prepared as array_record, and file_format"
        f" is {getattr(wanted, 'value', wanted)}; leave it out."
      )
    self.prepare()

  def _prepare(
    self,
    source: Source,
    work: pathlib.Path,
    progress: Callable[[Progress], None],
  ) -> None:
    names = self._class_names()
    if self.options.restart:
      shutil.rmtree(work, ignore_errors=True)
    journal = build_journal.Journal(work, self._identity(source))
    unsure = True

    def check() -> None:
      nonlocal unsure
      if unsure:
        build_space.check(
          work, source.total_bytes, journal.totals, self.options
        )
      # Once more after a chunk: it tells how much the rest will need.
      unsure = journal.totals.chunks == chunks

    chunks = journal.totals.chunks
    if not journal.ended:
      check()
    labels = {name: i for i, name in enumerate(names)}
    build_read.read(
      source,
      journal,
      self.options,
      labels,
      progress,
      check,
      self.LABEL_FEATURE,
    )
    by_class = build_classes.sizes(source) is not None  # Drawn while read.
    draws = {} if by_class else self.options.hold_out
    build_finish.draw(
      journal, dataclasses.replace(self.options, hold_out=draws), progress
    )
    build_finish.assemble(
      journal,
      self,
      {"from": source.description, "identity": self._identity(source)},
    )

  def _class_names(self) -> list[str]:
    features: Any = self.info.features
    return features[self.LABEL_FEATURE].names

  def _identity(self, source: Source) -> dict[str, Any]:
    """All that decides what is written."""
    names = "\n".join(self._class_names())
    return {
      "format": _FORMAT,
      "data set": f"{self.name}:{self.version}",
      "source": source.fingerprint,
      "classes": hashlib.sha256(names.encode()).hexdigest(),
      **self._settings(self.options),
    }

  def _settings(self, options: Options) -> dict[str, Any]:
    """What of the options decides what is written."""
    found = dataclasses.asdict(options)
    for later in ("shuffle", "white_ground"):
      if not found[later]:
        # Sets that were prepared before there was such an option.
        del found[later]
    # The splits are drawn in this order.
    found["hold_out"] = list(options.hold_out.items())
    return {k: v for k, v in found.items() if k not in _FREE}

  def _report(self, already: bool) -> Report:
    folder = pathlib.Path(self.data_dir)
    path = folder / build_finish.PREPARATION
    # Absent if TFDS or anyone else has made the set.
    found = {}
    if path.exists():
      found = files.read_json(path, "the record of a preparation")
    then, differs = found.get("identity", {}), []
    if already and found:
      if self.source is None:
        now = self._settings(self.options)
        default = self._settings(Options())
        now = {k: v for k, v in now.items() if v != default.get(k)}
        then = {k: v for k, v in then.items() if k in now}
      else:
        now = self._identity(self.source)
      now = json.loads(json.dumps(now))
      # How it was written changes nothing in what there is.
      now.pop("format", None)
      then.pop("format", None)
      differs = build_journal.differences(then, now)
    return Report(
      data_dir=str(folder),
      splits={k: v.num_examples for k, v in self.info.splits.items()},
      problems=found.get("problems", {}),
      path=str(folder / build_finish.REPORT) if found else "",
      already=already,
      source=found.get("from", ""),
      warnings=tuple(found.get("warnings", ())),
      differs=tuple(differs),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Any:
    raise NotImplementedError("`prepare` writes the data set")

  def _generate_examples(self, **kwargs: Any) -> Any:
    raise NotImplementedError("`prepare` writes the data set")


def _is_there(folder: pathlib.Path) -> bool:
  """Whether the data set is.

  Raises:
    UserError: something else is.
  """
  if (folder / "dataset_info.json").exists():
    return True
  if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
    # Not ours: what we move there is whole.
    raise UserError(
      f"The folder {folder} is there, but has no dataset_info.json, so it is "
      "no whole data set; remove it and give the same command again."
    )
  return False


@contextlib.contextmanager
def _locked(work: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a data set's preparation; it goes with the process.

  Raises:
    UserError: another process holds it, or the place can't be written.
  """
  # Beside the folder and never removed: a lock whose name is gone is none.
  path = work.with_name(work.name + ".lock")
  with contextlib.ExitStack() as stack:
    with build_files.explained(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(open(path, "w"))
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        lock = None
    if lock is None:
      raise UserError(
        f"Another process prepares the data set in {work.parent} right now "
        f"(it holds {path}); wait until it has ended, or end it: a preparation "
        "goes on where it was stopped."
      )
    yield
