"""Prepared data sets on disk: `NAME[/CONFIG]/VERSION` in TFDS's format.

`dataset_info.json`, `features.json` and the names of the labels are read as
data: TFDS's own reader imports the modules that `features.json` names. Records
are `tf.train.Example`s. `manifest.json` is ours: sizes and digests of all files
at the end of preparation, so that later changes are noticed.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from mixer import files
from mixer.datasets import catalog
from mixer.errors import UserError, first_line

INFO = "dataset_info.json"
FEATURES = "features.json"
MANIFEST = "manifest.json"
# Folders begin so while TFDS, or a conversion, writes them; and while our
# builders do. No version does.
UNFINISHED = "incomplete."
PREPARING = ".preparing-"
_LIMIT = 16 << 20  # Bytes of a small file.
# The end of a shard, which has the places of its records: ArrayRecord notices
# damage before that when it reads.
_TAIL = 1 << 16


def resolve_data_dir(data_dir: str) -> pathlib.Path:
  """The folder that holds data sets, TFDS's own default for ""."""
  place = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  if files.is_remote(place):
    raise UserError(
      f"data sets can't be in {place}, but in a folder: mount the bucket "
      "(gcsfuse), and name where it is mounted."
    )
  return pathlib.Path(os.path.expanduser(place))


@contextlib.contextmanager
def lock(name: str, root: pathlib.Path, wait: bool = False) -> Iterator[None]:
  """Keeps other processes of this machine from preparing the same set."""
  with contextlib.ExitStack() as stack:
    try:
      root.mkdir(parents=True, exist_ok=True)
      path = root / f".{catalog.base_name(name)}.lock"
      file = stack.enter_context(open(path, "w"))
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as e:
      busy = isinstance(e, BlockingIOError)
      why = "another process on this machine does it" if busy else e.strerror
      raise UserError(
        f"data set {name} can't be prepared in {root}: {why}. Wait for that, "
        "or name another place by --data_dir=DIR."
      ) from e
    yield


@dataclasses.dataclass(frozen=True)
class Stored:
  """A data set as the small files of its folder describe it."""

  folder: pathlib.Path  # NAME[/CONFIG]/VERSION.
  name: str
  config: str  # "" if it has none.
  version: str
  formats: tuple[str, ...]  # Of its files, the main one first.
  splits: dict[str, tuple[int, ...]]  # Name -> the records of each shard.
  features: dict[str, dict[str, Any]]  # Name -> its description.

  @property
  def path(self) -> str:
    """Its place below a data_dir."""
    return "/".join(filter(None, (self.name, self.config, self.version)))

  @property
  def sizes(self) -> dict[str, int]:
    """The number of examples of each split."""
    return {name: sum(lengths) for name, lengths in self.splits.items()}

  @property
  def image_size(self) -> tuple[int, int] | None:
    """(height, width) where all images have the same, else None."""
    shape = self.features["image"].get("image", {}).get("shape", {})
    height, width, *_ = map(int, (*shape.get("dimensions", ()), 0, 0))
    return (height, width) if min(height, width) > 0 else None

  def files(
    self,
    split: str,
    kind: str = "array_record",
    folder: pathlib.Path | None = None,
  ) -> list[pathlib.Path]:
    """Those with a split's records in a format, were they in that folder."""
    begin, count = f"{self.name}-{split}.{kind}", len(self.splits[split])
    names = (f"{begin}-{i:05}-of-{count:05}" for i in range(count))
    return [(folder or self.folder) / name for name in names]

  def class_names(self, feature: str) -> tuple[str, ...]:
    """The names of a label's classes; numbers, where none were ever stored."""
    try:
      count = int(self.features[feature]["classLabel"]["numClasses"])
    except (KeyError, TypeError, ValueError) as e:
      raise UserError(
        f"the feature {feature!r} of the data set in {self.folder} is no "
        "class; name a set for image classification."
      ) from e
    path = self.folder / f"{feature}.labels.txt"
    if not path.exists():
      return tuple(map(str, range(min(count, 10**6))))
    data = files.read_bytes(path, "the names of classes, one a line", _LIMIT)
    lines = data.decode("utf-8", "replace").split("\n")
    names = tuple(filter(None, map(str.strip, lines)))
    if not len(names) == len({*names}) == count:
      raise _damaged(self.folder, f"{path.name} has not {count} names")
    return names

  @functools.cached_property
  def manifest(self) -> dict[str, dict[str, Any]]:
    """`bytes` and `sha256` of each file, `end` of shards; {} without one."""
    if not (self.folder / MANIFEST).exists():
      return {}
    content = read_json(self.folder / MANIFEST)
    if content.get("sha256") != files.json_sha256(content.get("files")):
      raise _damaged(self.folder, f"{MANIFEST} has changed")
    return content["files"]

  @property
  def fingerprint(self) -> str:
    """A digest of all shards; "" without a manifest."""
    listed = self.manifest
    digests = {
      split: [listed.get(p.name, {}).get("sha256") for p in self.files(split)]
      for split in self.splits
    }
    return files.json_sha256(digests)[:32] if listed else ""

  def check(self, splits: Iterable[str] | None = None) -> None:
    """Refuses a set, or shards of some splits, that have changed.

    With a manifest, the content of the small files is compared, and the size
    and end of the shards; without, the numbers of records in the shards.
    """
    listed, small, shards = self.manifest, set(), {}
    for split in self.splits if splits is None else splits:
      shards |= zip(self.files(split), self.splits[split], strict=True)
    if listed:
      small = {self.folder / k for k, v in listed.items() if "end" not in v}
      small.update(_small_files(self.folder))

    def is_whole(path: pathlib.Path) -> bool:
      if listed:
        entry, known = _entry(path), listed.get(path.name, {})
        return bool(entry) and entry.items() <= known.items()
      try:
        return len(ArrayRecordDataSource(str(path))) == shards[path]
      except (OSError, RuntimeError, ValueError):
        return False

    paths = [*sorted(small), *shards]
    for path, whole in zip(paths, _each(is_whole, paths), strict=True):
      if not whole:
        raise _damaged(self.folder, f"{path.name} has changed, is gone or new")


def read(folder: pathlib.Path) -> Stored:
  """What a folder says of its data set; UserError where it doesn't."""
  info, content = read_json(folder / INFO), read_json(folder / FEATURES)
  formats = info.get("fileFormat") or "tfrecord"
  try:
    return Stored(
      folder,
      str(info["name"]),
      str(info.get("configName", "")),
      str(info.get("version", "")),
      (formats, *info.get("alternativeFileFormats", [])),
      {
        split["name"]: tuple(map(int, split["shardLengths"]))
        for split in info.get("splits", [])
        if split.get("shardLengths")
      },
      {k: dict(v) for k, v in content["featuresDict"]["features"].items()},
    )
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    what = f"{INFO} or {FEATURES} is damaged: {first_line(e)[:120]}"
    raise _damaged(folder, what) from e


def versions(place: pathlib.Path, name: str) -> list[pathlib.Path]:
  """The folders of a set's versions, oldest first.

  `place` is a data_dir, a set's folder, a config's, or a version's. A config or
  version in `name`, the latter also as "1.*.*", is the only one wanted.
  """
  base, config, version = catalog.split_name(name)
  wanted = re.escape(version).replace(r"\*", "[0-9]+") or r"\d+\.\d+\.\d+"
  below, found = place if place.name == base else place / base, {}
  # Not all that is below: it may be a folder of a million images.
  near = place, *place.glob("*/"), *below.glob("*/"), *below.glob("*/*/")
  for folder in near:
    *_, above, parent, last = "", "", *folder.absolute().parts
    if re.fullmatch(wanted, last) and (folder / INFO).exists():
      info = read_json(folder / INFO)
      is_it = base in (info.get("name"), parent, above)
      if is_it and config in ("", info.get("configName", ""), parent):
        found[folder] = [int(n) for n in last.split(".")]
  return sorted(found, key=found.__getitem__)


def write(
  folder: pathlib.Path,
  info: Mapping[str, Any],
  features: Mapping[str, Any],
  class_names: Mapping[str, Sequence[str]],
  splits: Mapping[str, tuple[Sequence[int], int]],
) -> None:
  """Writes the small files of a set whose ArrayRecord shards are there.

  `info` has fields of `dataset_info.json`, at least `name` and `version`;
  `splits`, name -> the examples of each shard, and bytes of all records.
  """
  described = [
    {
      # The only template that TFDS's builders use.
      "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      "name": name,
      "numBytes": str(size),
      "shardLengths": [str(n) for n in lengths],
    }
    for name, (lengths, size) in splits.items()
  ]
  for label, names in class_names.items():
    with files.atomic_write(folder / f"{label}.labels.txt", "w") as f:
      f.writelines(f"{name}\n" for name in names)
  kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
  spec = {"pythonClassName": kind, "featuresDict": {"features": features}}
  _write_json(folder / FEATURES, spec)
  about = {"fileFormat": "array_record", "splits": described, **info}
  _write_json(folder / INFO, about)


def seal(folder: pathlib.Path, known: Mapping[str, str] | None = None) -> None:
  """Writes the manifest of a set; `known` has digests of shards by name."""
  found, known = read(folder), known or {}
  shards = (p for split in found.splits for p in found.files(split))
  paths = [*_small_files(folder), *shards]
  listed = {
    p.name: entry | {"sha256": known.get(p.name) or file_digest(p)}
    for p, entry in zip(paths, _each(_entry, paths), strict=True)
  }
  content = {"sha256": files.json_sha256(listed), "files": listed}
  _write_json(folder / MANIFEST, content)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The content of a small file of a set."""
  try:
    return files.read_json(path, "a file of a TFDS data set", _LIMIT)
  except UserError as e:
    raise _damaged(path.parent, str(e).rstrip(".")) from e


def _write_json(path: pathlib.Path, content: Any) -> None:
  with files.atomic_write(path, "w") as f:
    json.dump(content, f, indent=2)


def _damaged(folder: pathlib.Path, what: str) -> UserError:
  return UserError(
    f"the data set in {folder} is not as it was prepared: {what}. Put it back "
    "from a copy, or prepare the data set anew; if it was changed on purpose, "
    f"remove {MANIFEST} there."
  )


def _small_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return [folder / INFO, folder / FEATURES, *folder.glob("*.labels.txt")]


def _each(function: Callable[[pathlib.Path], Any], paths: Any) -> list[Any]:
  with concurrent.futures.ThreadPoolExecutor(16) as threads:
    return list(threads.map(function, paths))


def _entry(path: pathlib.Path) -> dict[str, Any]:
  """What the manifest has of a file, but for the digest of a whole shard."""
  try:
    size = path.stat().st_size
    if ".array_record-" not in path.name:
      return {"bytes": size, "sha256": file_digest(path)}
    with open(path, "rb") as f:
      f.seek(max(0, size - _TAIL))
      return {"bytes": size, "end": hashlib.sha256(f.read(_TAIL)).hexdigest()}
  except (OSError, ValueError):
    return {}


def file_digest(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _example_class() -> Any:
  """TFDS's message `tf.train.Example`."""
  package, before = "tensorflow_datasets", {*sys.modules}
  # In place of the package, whose own import takes two seconds.
  spec: Any = importlib.util.find_spec(package)
  sys.modules.setdefault(package, importlib.util.module_from_spec(spec))
  found = importlib.import_module(f"{package}.proto").tf_example_pb2.Example
  for name in {*sys.modules} - before:
    if name.startswith(package):
      del sys.modules[name]
  return found


Example = _example_class()


def encode(features: Mapping[str, bytes | Sequence[int]]) -> bytes:
  """A serialized `tf.train.Example`, with the features sorted by name.

  Those that TFDS writes come in an order of chance, different in each process.
  """
  example = Example()
  for name, value in features.items():
    feature = example.features.feature[name]
    if isinstance(value, bytes):
      feature.bytes_list.value.append(value)
    else:
      feature.int64_list.value.extend(value)
  return example.SerializeToString(deterministic=True)
