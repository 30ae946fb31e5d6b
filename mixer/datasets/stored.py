"""A prepared data set, as the small files of its folder describe it.

`dataset_info.json`, `features.json` and the names of the labels are in TFDS's
format. They are read here as data: TFDS's own reader imports the modules that
`features.json` names. `manifest.json` is ours: sizes and digests of what was
prepared, so that later changes are noticed.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mixer import errors, files
from mixer.errors import UserError, first_line

INFO = "dataset_info.json"
FEATURES = "features.json"
MANIFEST = "manifest.json"
# Of the names of shards: the only one that TFDS's builders use.
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_LIMIT = 16 << 20  # Bytes of such a file.
_CLASSES = 10**6
# The end of a shard says where in it each record is. What is damaged before
# that, ArrayRecord notices when it reads it.
_TAIL = 1 << 16
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Stored:
  """A data set as its folder describes it."""

  folder: pathlib.Path  # The version's, with `dataset_info.json` in it.
  name: str
  config: str  # "" if it has none.
  version: str
  formats: tuple[str, ...]  # Of its files, the main one first.
  splits: dict[str, tuple[int, ...]]  # Name -> the records of each shard.
  features: dict[str, dict[str, Any]]  # Name -> its description.

  @property
  def path(self) -> str:
    """Its place below a data_dir, "NAME[/CONFIG]/VERSION"."""
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
    return (height, width) if 0 < min(height, width) < 10**5 else None

  @functools.cached_property
  def manifest(self) -> dict[str, dict[str, Any]] | None:
    """`bytes` and `sha256` of each file, `end` of shards; None without one."""
    path = self.folder / MANIFEST
    if not path.exists():
      return None
    content = _json(path, "the list of a data set's files")
    listed = content.get("files")
    if (
      not isinstance(listed, dict)
      or content.get("sha256") != files.json_sha256(listed)
      or not all(isinstance(v, dict) and "sha256" in v for v in listed.values())
    ):
      raise self._damaged(f"{MANIFEST} itself is not as it was written")
    return listed

  def class_names(self, feature: str) -> tuple[str, ...]:
    """The names of a label's classes; numbers, where none were ever stored."""
    spec = self.features[feature]
    label = spec.get("classLabel", spec.get("content"))
    python_class = str(spec.get("pythonClassName", spec.get("type", "")))
    if not isinstance(label, dict) or not python_class.endswith("ClassLabel"):
      raise UserError(
        f"the feature {feature!r} of the data set in {self.folder} is no class "
        f"but {python_class[-60:]!r}; name a set for image classification."
      )
    with _damage(self.folder / FEATURES):
      count = _count(label.get("numClasses", label.get("num_classes", 0)))
    path = self.folder / f"{feature}.labels.txt"
    if not path.exists():
      if count > _CLASSES:
        raise self._damaged(f"{FEATURES} has {count:,} classes")
      _warn(
        f"data set {self.name}: {self.folder} has no {path.name}, so its "
        f"{count:,} classes are called by their numbers."
      )
      return tuple(map(str, range(count)))
    data = files.read_bytes(path, "the names of classes, one a line", _LIMIT)
    with _damage(path):
      lines = data.decode("utf-8").split("\n")
    names = tuple(name.strip() for name in lines if name.strip())
    if len(names) != count or len({*names}) != count:
      raise self._damaged(
        f"{path.name} has {len({*names}):,} different names, and {FEATURES} "
        f"has {count:,} classes"
      )
    return names

  @property
  def fingerprint(self) -> str:
    """Tells what was prepared from anything else; "" where that isn't known."""
    listed = self.manifest
    if listed is None:
      return ""
    shards = {
      split: [listed.get(p.name, {}).get("sha256") for p in paths]
      for split, paths in ((k, self.files(k)) for k in self.splits)
    }
    return files.json_sha256(shards)[:32]

  def _damaged(self, what: str) -> UserError:
    known = (self.folder / MANIFEST).exists()
    return UserError(
      f"data set {self.name} in {self.folder} is not as it was prepared: "
      f"{what}. Put it back from a copy, or prepare the data set anew"
      + f"; if it was changed on purpose, remove {MANIFEST} there" * known
      + "."
    )

  def check(self, splits: Iterable[str] | None = None) -> None:
    """Refuses a set that isn't as it was prepared.

    With a manifest, the content of the small files is compared, and the size
    and end of the shards; without, the numbers of records in the shards.

    Args:
      splits: of which the shards are looked at; None: of all.

    Raises:
      UserError: names what has changed.
    """
    shards = {
      path: count
      for split in (self.splits if splits is None else splits)
      for path, count in zip(self.files(split), self.splits[split], strict=True)
    }
    if self.manifest is None:
      found = _each(_num_records, [*shards])
      for (path, count), there in zip(shards.items(), found, strict=True):
        if there != f"it has {count:,} records":
          raise self._damaged(
            f"{path.name} should have {count:,} records, and {there}"
          )
      return
    paths = [*_small_files(self.folder), *shards]
    found = zip((p.name for p in paths), _each(_entry, paths), strict=True)
    # Small files that are gone, then what has changed or is new.
    listed = {k: v for k, v in self.manifest.items() if "end" not in v}
    wrong = [name for name in listed if not (self.folder / name).exists()]
    for name, entry in found:
      if not entry or entry.items() - self.manifest.get(name, {}).items():
        wrong.append(name)
    if wrong:
      more = f", and so have {len(wrong) - 1} more" if len(wrong) > 1 else ""
      raise self._damaged(f"{wrong[0]} has changed, is gone or is new{more}")


def read(folder: pathlib.Path) -> Stored:
  """Reads what a folder says of its data set.

  Raises:
    UserError: none there, or one that isn't whole.
  """
  info = read_info(folder / INFO)
  splits = {}
  with _damage(folder / INFO):
    formats = [info.get("fileFormat", "") or "tfrecord"]
    formats += _list(info.get("alternativeFileFormats", []))
    identity = {"name": info["name"], "version": info.get("version", "")}
    identity["config"] = info.get("configName", "")
    for value in (*formats, *identity.values()):
      _require(isinstance(value, str), value)
    _require(re.fullmatch(r"\w+", identity["name"]), identity["name"])
    for split in _list(info.get("splits", [])):
      name = split["name"]
      _require(name not in splits and re.fullmatch(r"[\w-]+", name), name)
      lengths = _list(split.get("shardLengths", []))
      splits[name] = tuple(map(_count, lengths))
      template = split.get("filepathTemplate", "")
      _require(template in ("", TEMPLATE), template)
  path = folder / FEATURES
  if not path.exists() or not all(splits.values()):
    raise UserError(
      f"{folder} was written by TFDS before 4.0: there is no {FEATURES}, or "
      "the splits' sizes are missing. Prepare the data set anew."
    )
  content = _json(path, "the features of a TFDS data set")
  with _damage(path):
    features = content.get("featuresDict", content.get("content", {}))
    if "type" not in content:  # As TFDS wrote it until 4.3.
      features = features.get("features", {})
    for spec in (features, *features.values()):
      _require(isinstance(spec, dict), spec)
  return Stored(
    folder=folder,
    formats=tuple(formats),
    splits=splits,
    features=features,
    **identity,
  )


def read_info(path: pathlib.Path) -> dict[str, Any]:
  """What `dataset_info.json` says, as it stands there."""
  what = "the description of a TFDS data set, in NAME[/CONFIG]/VERSION"
  return _json(path, what)


def write(
  folder: pathlib.Path,
  info: Mapping[str, Any],
  features: Mapping[str, Any],
  class_names: Mapping[str, Sequence[str]],
  splits: Mapping[str, tuple[Sequence[int], int]],
) -> None:
  """Writes the small files of a set whose ArrayRecord shards are there.

  Args:
    folder: with the shards, called as `TEMPLATE` says.
    info: fields of `dataset_info.json`: at least `name` and `version`.
    features: name -> its description, as in `features.json`.
    class_names: label -> its names.
    splits: name -> the examples of each shard, and bytes of all records.
  """
  kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
  described = [
    {
      "filepathTemplate": TEMPLATE,
      "name": name,
      "numBytes": str(size),
      "shardLengths": [str(n) for n in lengths],
    }
    for name, (lengths, size) in splits.items()
  ]
  own = {"fileFormat": "array_record", "splits": described}
  contents = {
    FEATURES: {
      "pythonClassName": kind,
      "featuresDict": {"features": features},
    },
    INFO: own | dict(info),
  }
  for label, names in class_names.items():
    with files.atomic_write(folder / f"{label}.labels.txt", "w") as f:
      f.writelines(f"{name}\n" for name in names)
  for file, content in contents.items():
    with files.atomic_write(folder / file, "w") as f:
      json.dump(content, f, indent=2)


def seal(folder: pathlib.Path, known: Mapping[str, str] | None = None) -> None:
  """Writes the manifest of a set that has just been prepared as ArrayRecord.

  Args:
    folder: of the version.
    known: the digests of shards, by their names, as far as they are known.
  """
  found = read(folder)
  small = _small_files(folder)
  paths = [*small, *(p for split in found.splits for p in found.files(split))]
  digests = _each(
    lambda path: (known or {}).get(path.name) or file_digest(path), paths
  )
  listed = {
    path.name: _entry(path) | {"sha256": own}
    for path, own in zip(paths, digests, strict=True)
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


def _num_records(path: pathlib.Path) -> str:
  """How many records a shard has, or why they can't be counted."""
  if not path.is_file():
    return "there is no such file"
  try:
    reader = array_record_module.ArrayRecordReader(
      str(path), "readahead_buffer_size:0"
    )
    try:
      return f"it has {reader.num_records():,} records"
    finally:
      reader.close()
  except (OSError, RuntimeError, ValueError) as e:
    return f"it can't be read: {first_line(e)}"


def _small_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return [
    folder / INFO,
    folder / FEATURES,
    *sorted(folder.glob("*.labels.txt")),
  ]


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
    return list(threads.map(function, items))


@functools.cache  # Once, though several splits may be opened.
def _warn(sentence: str) -> None:
  print(f"warning: {errors.printable(sentence)}", file=sys.stderr, flush=True)


def _json(path: pathlib.Path, what: str) -> dict[str, Any]:
  try:
    return files.read_json(path, what, _LIMIT)
  except UserError as e:
    raise UserError(
      f"{e} Put it back from a copy, or remove {path.parent} and prepare the "
      "data set anew."
    ) from e


@contextlib.contextmanager
def _damage(path: pathlib.Path) -> Iterator[None]:
  """Makes a UserError of what is wrong in a file."""
  try:
    yield
  except (AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(
      f"{path} is damaged: {first_line(e)[:120]}. Put it back from a copy, or "
      "prepare the data set anew."
    ) from e


def _require(condition: Any, value: Any) -> None:
  if not condition:
    raise ValueError(f"{str(value)[:60]!r} stands where it can't")


def _list(value: Any) -> list[Any]:
  _require(isinstance(value, list), value)
  return value


def _count(value: Any) -> int:
  """Of a JSON value: protocol buffers write 64 bits as text."""
  _require(re.fullmatch(r"[0-9]{1,18}", str(value), re.ASCII), value)
  return int(value)
