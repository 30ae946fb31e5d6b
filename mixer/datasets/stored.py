"""Prepared data sets on disk: `NAME[/CONFIG]/VERSION` in TFDS's format.

`dataset_info.json`, `features.json` and the names of the labels are read as
data: TFDS's own reader imports the modules that `features.json` names. Records
are `tf.train.Example`s. `manifest.json` is ours: sizes and digests of what was
prepared, so that later changes are noticed.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import glob
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_data_source
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from mixer import files
from mixer.datasets import catalog
from mixer.errors import UserError, first_line

INFO = "dataset_info.json"
FEATURES = "features.json"
MANIFEST = "manifest.json"
# The beginning of a folder's name while TFDS, or a conversion, writes it; and
# while our builders do. No version begins so.
UNFINISHED = "incomplete."
PREPARING = ".preparing-"
# The names of shards: the only template that TFDS's builders use.
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_LIMIT = 16 << 20  # Bytes of a small file.
# The end of a shard says where in it each record is. ArrayRecord notices damage
# before that when it reads.
_TAIL = 1 << 16


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
  """Keeps other processes of this machine from preparing the same set."""
  with contextlib.ExitStack() as stack:
    try:
      root.mkdir(parents=True, exist_ok=True)
      path = root / f".{catalog.base_name(name)}.lock"
      file = stack.enter_context(open(path, "w"))
      fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as e:
      why = f"{e.strerror}. Name another place by --data_dir=DIR"
      if isinstance(e, BlockingIOError):
        why = "another process on this machine is at it. Wait for it, or end it"
      raise UserError(
        f"data set {name} can't be prepared in {root}: {why}."
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
    return "/".join(p for p in (self.name, self.config, self.version) if p)

  @property
  def sizes(self) -> dict[str, int]:
    """The number of examples of each split."""
    return {name: sum(lengths) for name, lengths in self.splits.items()}

  def files(
    self,
    split: str,
    kind: str = "array_record",
    folder: pathlib.Path | None = None,
  ) -> list[pathlib.Path]:
    """Those with a split's records in a format, were they in that folder."""
    count = len(self.splits[split])
    digits = max(5, len(str(count)))
    return [
      (folder or self.folder)
      / f"{self.name}-{split}.{kind}-{i:0{digits}}-of-{count:0{digits}}"
      for i in range(count)
    ]

  @property
  def image_size(self) -> tuple[int, int] | None:
    """(height, width) where all images have the same, else None."""
    try:
      shape = self.features["image"]["image"]["shape"]["dimensions"]
      height, width = int(shape[0]), int(shape[1])
    except (KeyError, IndexError, TypeError, ValueError):
      return None
    return (height, width) if min(height, width) > 0 else None

  @functools.cached_property
  def manifest(self) -> dict[str, dict[str, Any]] | None:
    """`bytes` and `sha256` of each file, `end` of shards; None without one."""
    if not (self.folder / MANIFEST).exists():
      return None
    content = read_json(self.folder / MANIFEST)
    listed = content.get("files")
    if content.get("sha256") != files.json_sha256(listed):
      raise _damaged(self.folder, f"{MANIFEST} has changed")
    return listed

  def class_names(self, feature: str) -> tuple[str, ...]:
    """The names of a label's classes; numbers, where none were ever stored."""
    spec = self.features[feature]
    kind = str(spec.get("pythonClassName", spec.get("type", "")))
    try:
      label = spec.get("classLabel", spec.get("content"))
      count = int(str(label.get("numClasses", label.get("num_classes"))))  # pyright: ignore[reportOptionalMemberAccess]
    except (AttributeError, ValueError):
      count = 0
    if not 0 < count <= 10**6 or not kind.endswith("ClassLabel"):
      raise UserError(
        f"the feature {feature!r} of the data set in {self.folder} is no class "
        f"but {kind[-60:]!r}; name a set for image classification."
      )
    path = self.folder / f"{feature}.labels.txt"
    if not path.exists():
      print(
        f"warning: {path} is missing: classes are called by their numbers",
        file=sys.stderr,
        flush=True,
      )
      return tuple(map(str, range(count)))
    data = files.read_bytes(path, "the names of classes, one a line", _LIMIT)
    lines = data.decode("utf-8", "replace").split("\n")
    names = tuple(name.strip() for name in lines if name.strip())
    if not len(names) == len({*names}) == count:
      what = f"{path.name} has {len({*names}):,} different names of {count:,}"
      raise _damaged(self.folder, what)
    return names

  @property
  def fingerprint(self) -> str:
    """Tells what was prepared from anything else; "" without a manifest."""
    listed = self.manifest
    if listed is None:
      return ""
    return files.json_sha256(
      {
        split: [listed.get(p.name, {}).get("sha256") for p in self.files(split)]
        for split in self.splits
      }
    )[:32]

  def check(self, splits: Iterable[str] | None = None) -> None:
    """Refuses a set, or shards of some splits, that have changed.

    With a manifest, the content of the small files is compared, and the size
    and end of the shards; without, the numbers of records in the shards.
    """
    shards = {
      path: count
      for split in (self.splits if splits is None else splits)
      for path, count in zip(self.files(split), self.splits[split], strict=True)
    }
    listed = self.manifest
    if listed is None:
      paths, counts = [*shards], _each(_num_records, shards)
      found = [shards[p] == n for p, n in zip(paths, counts, strict=True)]
    else:
      small = {self.folder / k for k, v in listed.items() if "end" not in v}
      paths = sorted({*small, *_small_files(self.folder)}) + [*shards]
      found = [
        bool(entry) and entry.items() <= listed.get(path.name, {}).items()
        for path, entry in zip(paths, _each(_entry, paths), strict=True)
      ]
    for path, right in zip(paths, found, strict=True):
      if not right:
        raise _damaged(self.folder, f"{path.name} has changed, is gone or new")


def read(folder: pathlib.Path) -> Stored:
  """What a folder says of its data set; UserError where it doesn't."""
  info, content = read_json(folder / INFO), read_json(folder / FEATURES)
  try:
    splits = {
      split["name"]: tuple(int(str(n)) for n in split["shardLengths"])
      for split in info.get("splits", [])
      if split.get("shardLengths")
    }
    templates = {s.get("filepathTemplate", "") for s in info.get("splits", [])}
    names = "".join([info["name"], *splits])
    if not re.fullmatch(r"[\w-]*", names) or templates - {"", _TEMPLATE}:
      raise ValueError("names of splits or files that can't be")
    formats = info.get("fileFormat") or "tfrecord"
    formats = (formats, *info.get("alternativeFileFormats", []))
    features = content.get("featuresDict", content.get("content", {}))
    if "type" not in content:  # As TFDS wrote it until 4.3.
      features = features.get("features", {})
    return Stored(
      folder,
      info["name"],
      str(info.get("configName", "")),
      str(info.get("version", "")),
      formats,
      splits,
      {name: dict(spec) for name, spec in features.items()},
    )
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    what = f"{INFO} or {FEATURES} is damaged: {first_line(e)[:120]}"
    raise _damaged(folder, what) from e


def versions(place: pathlib.Path, name: str) -> list[pathlib.Path]:
  """The folders of a set's versions, oldest first.

  Args:
    place: a data_dir, a set's folder, a config's, or a version's.
    name: with config and version, if only those; the latter as "1.*.*", too.
  """
  base, config, version = catalog.split_name(name)
  wanted = re.escape(version).replace(r"\*", "[0-9]+") or r"\d+\.\d+\.\d+"
  below, found = glob.escape(base), []
  # Not all that is below: it may be a folder of a million images.
  deeper = ["*/*/"] * (place.name == base)
  for pattern in ("", "*/", f"{below}/*/", f"{below}/*/*/", *deeper):
    for path in place.glob(pattern + INFO):
      folder = path.parent.absolute()
      if re.fullmatch(wanted, folder.name):
        info, above = read_json(path), [p.name for p in folder.parents[:2]]
        is_it = base in (info.get("name"), *above)
        if is_it and config in ("", info.get("configName", ""), above[0]):
          found.append(path.parent)
  return sorted(
    found, key=lambda p: [int(n) for n in p.absolute().name.split(".")]
  )


def write(
  folder: pathlib.Path,
  info: Mapping[str, Any],
  features: Mapping[str, Any],
  class_names: Mapping[str, Sequence[str]],
  splits: Mapping[str, tuple[Sequence[int], int]],
) -> None:
  """Writes the small files of a set whose ArrayRecord shards are there.

  Args:
    folder: with the shards.
    info: fields of `dataset_info.json`: at least `name` and `version`.
    features: name -> its description, as in `features.json`.
    class_names: label -> its names.
    splits: name -> the examples of each shard, and bytes of all records.
  """
  kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
  described = [
    {
      "filepathTemplate": _TEMPLATE,
      "name": name,
      "numBytes": str(size),
      "shardLengths": [str(n) for n in lengths],
    }
    for name, (lengths, size) in splits.items()
  ]
  contents = {
    FEATURES: {"pythonClassName": kind, "featuresDict": {"features": features}},
    INFO: {"fileFormat": "array_record", "splits": described} | dict(info),
  }
  for label, names in class_names.items():
    with files.atomic_write(folder / f"{label}.labels.txt", "w") as f:
      f.writelines(f"{name}\n" for name in names)
  for file, content in contents.items():
    with files.atomic_write(folder / file, "w") as f:
      json.dump(content, f, indent=2)


def seal(folder: pathlib.Path, known: Mapping[str, str] | None = None) -> None:
  """Writes the manifest of a set; `known` has digests of shards by name."""
  found = read(folder)
  paths = [p for split in found.splits for p in found.files(split)]
  paths = [*_small_files(folder), *paths]
  listed = {
    p.name: entry | {"sha256": (known or {}).get(p.name) or file_digest(p)}
    for p, entry in zip(paths, _each(_entry, paths), strict=True)
  }
  with files.atomic_write(folder / MANIFEST, "w") as f:
    json.dump(
      {"sha256": files.json_sha256(listed), "files": listed}, f, indent=1
    )
    f.write("\n")


def file_digest(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


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
  except OSError:
    return {}


def _num_records(path: pathlib.Path) -> int:
  """How many records a shard has; -1 if it can't be read."""
  try:
    return len(array_record_data_source.ArrayRecordDataSource(str(path)))
  except (OSError, RuntimeError, ValueError):
    return -1


def _small_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return [folder / INFO, folder / FEATURES, *folder.glob("*.labels.txt")]


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """What a small file of a set says, as it stands there."""
  try:
    return files.read_json(path, "a file of a TFDS data set", _LIMIT)
  except UserError as e:
    raise _damaged(path.parent, str(e).rstrip(".")) from e


def _damaged(folder: pathlib.Path, what: str) -> UserError:
  known = (folder / MANIFEST).exists()
  return UserError(
    f"the data set in {folder} is not as it was prepared: {what}. Put it back "
    "from a copy, or prepare the data set anew"
    + f"; if it was changed on purpose, remove {MANIFEST} there" * known
    + "."
  )


def encode(features: Mapping[str, bytes | Sequence[int]]) -> bytes:
  """A serialized `tf.train.Example`, with the features sorted by name.

  Those that TFDS writes come in an order of chance, different in each process.
  """
  example = example_class()()
  for name, value in features.items():
    feature = example.features.feature[name]
    if isinstance(value, bytes):
      feature.bytes_list.value.append(value)
    else:
      feature.int64_list.value.extend(value)
  return example.SerializeToString(deterministic=True)


_MAKING = threading.Lock()


def example_class() -> Any:
  """The message `tf.train.Example`, made of TFDS's copy of its fields."""
  with _MAKING:  # The loader's threads ask at once, and it can be made once.
    return _example_class()


@functools.cache
def _example_class() -> Any:
  # From the one file: importing the whole package takes two seconds.
  package: Any = importlib.util.find_spec("tensorflow_datasets")
  path = (
    pathlib.Path(package.origin).parent / "proto/tf_feature_generated_pb2.py"
  )
  spec: Any = importlib.util.spec_from_file_location("tf_feature", path)
  spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
  file = descriptor_pb2.FileDescriptorProto(
    name="mixer.proto", package="mixer", dependency=[module.DESCRIPTOR.name]
  )
  file.message_type.add(name="Example").field.add(
    name="features",
    number=1,
    label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
    type_name=module.DESCRIPTOR.message_types_by_name["Features"].full_name,
  )
  pool: Any = descriptor_pool.Default()
  pool.Add(file)
  found = pool.FindMessageTypeByName("mixer.Example")
  return message_factory.GetMessageClass(found)
