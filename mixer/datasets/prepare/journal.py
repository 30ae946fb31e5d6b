"""What is committed of a preparation, so that it can be stopped at any time.

A pass over a source is committed chunk by chunk to a hidden folder beside the
data set's: shards, and 00000.json and so on, each written when all that it
names is on the disk. What none of them names is removed at the next start,
which continues after the last entry: the same bytes result in the end.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mixer import files
from mixer.datasets import stored
from mixer.datasets.prepare.request import Spec
from mixer.datasets.prepare.sources import Source
from mixer.errors import UserError, first_line
from mixer.progress import Progress

# Raise it with a change of what is written: a preparation of another number
# isn't continued.
FORMAT = 4
# TFDS wants groups of one record. JPEG and PNG don't compress: left as they
# are, the same records take no more room and are read 1.15 times as fast.
WRITER = "group_size:1,uncompressed"
# Work is committed after so many images, or bytes of them. Readers hold every
# shard open, and 1,024 open files is a common limit: ImageNet-21k makes some
# 400 shards of this size.
CHUNK_IMAGES, CHUNK_BYTES = 32_768, 4 << 30


@dataclasses.dataclass(frozen=True)
class Options:
  """How a source of images becomes a data set: see the command's flags."""

  hold_out: Mapping[str, int | float] = dataclasses.field(default_factory=dict)
  # Splits to put in the order of the images' hashes.
  shuffle: Sequence[str] = ()
  seed: int = 0
  upright: bool = False
  white_ground: bool = False  # Puts what is transparent on white ground.
  short_side: int = 0
  quality: int = 95
  mislabelled: str = "keep"
  # These two change nothing in what is written.
  bad: str = "skip"
  max_bad: float = 0.1

  def identity(self) -> dict[str, Any]:
    """What of it decides what is written, as JSON gives it back."""
    found = dataclasses.asdict(self)
    # The splits are drawn in this order.
    found["hold_out"] = [list(item) for item in self.hold_out.items()]
    found["shuffle"] = [*self.shuffle]
    return {k: v for k, v in found.items() if k not in ("bad", "max_bad")}


def options(spec: Spec, source: Source, given: Mapping[str, Any]) -> Options:
  """The user's, and the set's defaults where the user gives none."""
  defaults = dict(spec.options)
  sizes = source.class_sizes or {"": 1}
  if source.has_splits or not any(sizes.values()):  # All have a split.
    defaults.pop("hold_out", None)
  return Options(**defaults | dict(given))


def beside(final: pathlib.Path, suffix: str = "") -> pathlib.Path:
  """A hidden folder beside a data set's; without a suffix, of its making."""
  return final.with_name(f"{stored.PREPARING}{final.name}{suffix}")


def clean(final: pathlib.Path) -> None:
  """Removes what a preparation has left beside a data set that is whole."""
  old = beside(final, "-replaced")
  if old.exists() and not final.exists():
    old.rename(final)  # A kill came in between.
  for folder in (beside(final), old):
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def disk(path: pathlib.Path) -> Iterator[None]:
  """Makes sentences of the disk's refusals, and of ArrayRecord's."""
  try:
    yield
  # ArrayRecord raises RuntimeErrors, with the system's words in them.
  except (OSError, RuntimeError) as e:
    raise UserError(
      f"{path} can't be written: {first_line(e)}. Mend that or make room, and "
      "give the same command again: it continues after what was committed."
    ) from e


def sync(path: pathlib.Path) -> None:
  """Waits until a file's content is on the disk."""
  with open(path, "rb") as f:
    os.fsync(f.fileno())


class _Shard:
  """One ArrayRecord file in the making, and in `entry` what it is."""

  def __init__(self, path: pathlib.Path, split: str):
    self._path = path
    self.entry: dict[str, Any] = {"file": path.name, "split": split}
    # Keys of the records, if these are to be shuffled.
    self.entry |= {"images": 0, "bytes": 0, "keys": []}
    self._writer = array_record_module.ArrayRecordWriter(str(path), WRITER)

  def write(self, record: bytes) -> bool:
    """Returns whether the shard is full."""
    self._writer.write(record)
    self.entry["images"] += 1
    self.entry["bytes"] += len(record)
    return _is_full(self.entry["images"], self.entry["bytes"])

  def close(self) -> dict[str, Any]:
    """Returns the entry when the file is whole and on the disk."""
    self._writer.close()
    sync(self._path)
    # While it is in memory.
    return self.entry | {"sha256": stored.file_digest(self._path)}


def _is_full(images: int, size: int) -> bool:
  return images >= CHUNK_IMAGES or size >= CHUNK_BYTES


class Work:
  """A preparation: what is to be done, what is committed, the chunk at work."""

  def __init__(
    self,
    source: Source,
    folder: pathlib.Path,
    info: dict[str, Any],
    spec: Spec,
    options: Options,
  ):
    """Reads what an earlier process has committed."""
    self.source, self.folder, self.options = source, folder, options
    self.spec, self.info = spec, {**info, "version": spec.version}
    self.labels = {name: i for i, name in enumerate(source.classes or ())}
    self.identity = {
      "format": FORMAT,
      "data set": f"{info['name']}:{spec.version}",
      "source": source.fingerprint,
      "classes": files.json_sha256([*self.labels]),
      **options.identity(),
    }
    self.entries: list[dict[str, Any]] = []  # Committed.
    while self._entry().exists():
      what = "a journal of preparation, or begin anew with --restart"
      entry = files.read_json(self._entry(), what)
      then = entry.get("identity", {})
      if differs := [k for k, v in self.identity.items() if then.get(k) != v]:
        raise UserError(
          f"the preparation that was stopped in {folder} differs in "
          f"{', '.join(differs)}. Give its source and options, or --restart to "
          "begin anew."
        )
      self.entries.append(entry)
    self.members = sum(entry["members"] for entry in self.entries)
    self.counts = Counter[str]()  # Images by split.
    for shard in self.all("shards"):
      self.counts[shard["split"]] += shard["images"]
    self._begin()
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    named = {shard["file"] for shard in self.all("shards")}
    for path in (folder / "shards").iterdir():
      if path.name not in named:
        path.unlink()

  @property
  def left_out(self) -> int:
    """Members that are in no split."""
    return self.members - self.counts.total()

  def all(self, key: str) -> list[Any]:
    """Of all entries together."""
    return [row for entry in self.entries for row in entry[key]]

  def _begin(self) -> None:
    # Of a problem the kind, file and sentence; of a row digest, label, split.
    self.chunk: dict[str, Any] = {"members": 0, "problems": [], "rows": []}
    self.writers: dict[str, _Shard] = {}  # By split.
    self.new_bytes = 0

  def _entry(self) -> pathlib.Path:
    return self.folder / f"{len(self.entries):05}.json"

  def shard(self, split: str, number: int = 0) -> _Shard:
    """A new one of the chunk."""
    # Numbers come first, so that no name of a split is mistaken.
    name = f"{len(self.entries):05}-{number:05}-{split}.array_record"
    return _Shard(self.folder / "shards" / name, split)

  def commit(self, ended: bool) -> None:
    """Makes what is written count, if it is enough or all."""
    if ended or _is_full(self.chunk["members"], self.new_bytes):
      shards = [writer.close() for writer in self.writers.values()]
      entry = {"identity": self.identity, "ended": ended, "shards": shards}
      files.sync_folder(self.folder / "shards")
      with files.atomic_write(self._entry(), "w") as f:
        json.dump(self.chunk | entry, f)
      self.entries.append(self.chunk | entry)
      self._begin()


def shuffled(
  work: Work, shards: list[dict[str, Any]], progress: Progress
) -> list[dict[str, Any]]:
  """Shards of the same records by their keys: any slice is a fair sample."""
  places = [
    (key, shard["file"], i)
    for shard in shards
    for i, key in enumerate(shard["keys"])
  ]

  @functools.cache
  def reader(file: str) -> Any:
    path = str(work.folder / "shards" / file)
    how = "readahead_buffer_size:0"
    return array_record_module.ArrayRecordReader(path, how)

  found: list[dict[str, Any]] = []
  writer = None
  for done, (_, file, i) in enumerate(sorted(places), 1):
    writer = writer or work.shard(shards[0]["split"], len(found))
    is_full = writer.write(reader(file).read([i])[0])
    progress.show("shuffling", done, len(places), done)
    if is_full or done == len(places):
      found.append(writer.close())
      writer = None
  return found


def describe(work: Work, data: pathlib.Path, splits: dict[str, Any]) -> None:
  """Writes what TFDS wants to know of a data set."""
  spec, names = work.spec, [*work.labels]

  def feature(python: str, key: str, content: Any) -> dict[str, Any]:
    kind = f"tensorflow_datasets.core.features.{python}"
    return {"pythonClassName": kind, key: content}

  fixed = spec.shape if not work.options.short_side else None
  shape = [*map(str, fixed or (-1, -1, 3))]
  image: dict[str, Any] = {"dtype": "uint8", "shape": {"dimensions": shape}}
  image |= {"encodingFormat": "png"} if fixed else {}
  count = {"numClasses": str(len(names))}
  label = feature("class_label_feature.ClassLabel", "classLabel", count)
  features = {
    "image": feature("image_feature.Image", "image", image),
    spec.label: label,
    "file_name": feature("text_feature.Text", "text", {}),
  }
  keys = ["image", spec.label]
  if spec.label == "original_label":
    keys[1] = "real_label"
    content = {"feature": label, "length": "-1"}
    python = "sequence_feature.Sequence"
    features["real_label"] = feature(python, "sequence", content)
  items = [{"featureKey": key} for key in keys]
  info = work.info | {"supervisedKeys": {"tuple": {"items": items}}}
  labels = dict.fromkeys([spec.label, keys[1]], names)
  stored.write(data, info, features, labels, splits)
