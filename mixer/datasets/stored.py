"""A prepared data set, as the small files of its folder describe it.

`dataset_info.json`, `features.json` and the names of the labels are in TFDS's
format. They are read here as data: TFDS's own reader imports the modules that
`features.json` names. `manifest.json` is ours: what was prepared, so that what
has changed since is noticed.
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

from mixer import files, text
from mixer.errors import UserError, first_line

INFO = "dataset_info.json"
FEATURES = "features.json"
MANIFEST = "manifest.json"
_LIMIT = 16 << 20  # Bytes of such a file.
_CLASSES = 10**6
_FIELD = re.compile(r"\{(\w+)\}")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
# The end of a shard says where in it each record is. What is damaged before
# that, ArrayRecord notices when it reads it.
_TAIL = 1 << 16
_THREADS = 16


@dataclasses.dataclass(frozen=True)
class Stored:
  """A data set as its folder describes it.

  Attributes:
    folder: the version's, with `dataset_info.json` in it.
    name: of the set.
    config: "" if it has none.
    version: as "1.0.0".
    formats: of its files, the main one first.
    splits: names and their numbers of records, one a file.
    templates: of the names of each split's files.
    features: by name, those that aren't nested in others.
  """

  folder: pathlib.Path
  name: str
  config: str
  version: str
  formats: tuple[str, ...]
  splits: dict[str, tuple[int, ...]]
  templates: dict[str, str]
  features: dict[str, dict[str, Any]]

  @property
  def path(self) -> str:
    """Its place below a data_dir, "NAME[/CONFIG]/VERSION"."""
    return "/".join(p for p in (self.name, self.config, self.version) if p)

  @property
  def sizes(self) -> dict[str, int]:
    """The number of examples of each split."""
    return {name: sum(lengths) for name, lengths in self.splits.items()}

  def files(
    self, split: str, kind: str, folder: pathlib.Path | None = None
  ) -> list[pathlib.Path]:
    """Those with a split's records in a format, were they in that folder."""
    count = len(self.splits[split])
    digits = max(5, len(str(count)))
    own = {"DATASET": self.name, "SPLIT": split, "FILEFORMAT": kind}

    def name(i: int) -> str:
      x, y = f"{i:0{digits}}", f"{count:0{digits}}"
      shard = {"SHARD_INDEX": x, "NUM_SHARDS": y, "SHARD_X_OF_Y": f"{x}-of-{y}"}
      return _FIELD.sub(lambda m: (own | shard)[m[1]], self.templates[split])

    return [(folder or self.folder) / name(i) for i in range(count)]

  @property
  def image_size(self) -> tuple[int, int] | None:
    """(height, width) where all images have the same, else None."""
    spec = self.features.get("image", {})
    try:
      shape = spec["image"]["shape"]["dimensions"]
    except (KeyError, TypeError):
      return None
    sides = [str(side) for side in shape[:2]]
    if len(sides) < 2 or not all(
      re.fullmatch("[1-9][0-9]{0,4}", s) for s in sides
    ):
      return None
    return int(sides[0]), int(sides[1])

  def labels(self, feature: str) -> pathlib.Path:
    """The file with the names of a label's classes, which may be missing."""
    return self.folder / f"{feature}.labels.txt"

  @functools.cached_property
  def manifest(self) -> dict[str, dict[str, Any]] | None:
    """`bytes` and `sha256` of each file, `end` of shards; None without one.

    Raises:
      UserError: it is damaged.
    """
    path = self.folder / MANIFEST
    if not path.exists():
      return None
    content = _json(path, "the list of a data set's files")
    listed = content.get("files")
    if (
      not isinstance(listed, dict)
      or content.get("sha256") != digest(listed)
      or not all(isinstance(v, dict) and "sha256" in v for v in listed.values())
    ):
      raise _damaged(self, f"{MANIFEST} itself is not as it was written")
    return listed

  def class_names(self, feature: str) -> tuple[str, ...]:
    """The names of a label's classes; numbers, where none were ever stored.

    Raises:
      UserError: it is no label, or its names aren't whole.
    """
    spec = self.features[feature]
    label = spec.get("classLabel", spec.get("content"))
    if not isinstance(label, dict) or not _class(spec).endswith("ClassLabel"):
      raise UserError(
        f"the feature {feature!r} of the data set in {self.folder} is no class "
        f"but {_class(spec)[-60:]!r}; name a set for image classification."
      )
    path, where = self.labels(feature), f"{FEATURES}: {feature}"
    with _sentences(self.folder / FEATURES):
      count = _int(label.get("numClasses", label.get("num_classes", 0)), where)
    if not path.exists():
      self._never_had_names(path, count)
      return tuple(map(str, range(count)))
    data = files.read_bytes(path, "the names of classes, one a line", _LIMIT)
    try:
      lines = data.decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
      raise _damaged(self, f"{path.name} is no UTF-8 text") from e
    names = tuple(name.strip() for name in lines if name.strip())
    if len(names) != count or len({*names}) != count:
      raise _damaged(
        self,
        f"{path.name} has {len({*names}):,} different names, and {FEATURES} "
        f"has {count:,} classes",
      )
    own = hashlib.sha256(data.removesuffix(b"\n")).hexdigest()
    if self.manifest is None and self._preparation().get("classes", own) != own:
      raise _damaged(self, f"{path.name} has other names than were prepared")
    return names

  def _never_had_names(self, path: pathlib.Path, count: int) -> None:
    if self._preparation():
      raise _damaged(self, f"{path.name} is gone")
    if count > _CLASSES:
      raise _damaged(self, f"{FEATURES} has {count:,} classes")
    if self.manifest is None:
      _warn(
        f"data set {self.name}: {self.folder} has no {path.name}, so its "
        f"{count:,} classes are called by their numbers."
      )

  def _preparation(self) -> dict[str, Any]:
    """What was asked for, of sets that our own builders have prepared."""
    path = self.folder / "preparation.json"
    if not path.exists():
      return {}
    found = _json(path, "the record of a preparation")
    identity = found.get("identity")
    return identity if isinstance(identity, dict) else {}

  @property
  def fingerprint(self) -> str:
    """Tells what was prepared from anything else; "" where that isn't known."""
    listed = self.manifest
    if listed is None:
      return ""
    shards = {
      split: [listed.get(self._relative(p), {}).get("sha256") for p in paths]
      for split, paths in self._shards().items()
    }
    return digest(shards)[:32]

  def _shards(self) -> dict[str, list[pathlib.Path]]:
    return {name: self.files(name, "array_record") for name in self.splits}

  def _relative(self, path: pathlib.Path) -> str:
    return path.relative_to(self.folder).as_posix()

  def check(self, splits: Iterable[str] | None = None) -> None:
    """Refuses a set that isn't as it was prepared.

    With a manifest, that is told by the content of the small files, and by size
    and end of the shards; without, by the numbers of records in the shards.

    Args:
      splits: of which the shards are looked at; None: of all.

    Raises:
      UserError: names what has changed.
    """
    names = list(self.splits if splits is None else splits)
    shards = [p for name in names for p in self.files(name, "array_record")]
    if self.manifest is None:
      self._check_counts(shards, [n for k in names for n in self.splits[k]])
      return
    told = self.manifest
    small = [INFO, FEATURES, *(p.name for p in _label_files(self.folder))]
    names = [*small, *map(self._relative, shards)]
    gone = [name for name, at in told.items() if "end" not in at]
    gone = [name for name in gone if name not in small]
    new = [name for name in names if name not in told]
    if gone or new:
      raise _damaged(
        self, f"{gone[0]} is gone" if gone else f"{new[0]} was not there then"
      )
    same = _each(lambda name: self._is_same(name, told[name]), names)
    wrong = [
      name for name, is_same in zip(names, same, strict=True) if not is_same
    ]
    if wrong:
      more = f", and so have {len(wrong) - 1} more" if len(wrong) > 1 else ""
      raise _damaged(self, f"{wrong[0]} has changed or is gone{more}")

  def _is_same(self, name: str, told: Mapping[str, Any]) -> bool:
    path = self.folder / name
    try:
      if path.stat().st_size != told.get("bytes"):
        return False
      if "end" in told:
        return _end(path) == told["end"]
      return file_digest(path) == told["sha256"]
    except OSError:
      return False

  def _check_counts(
    self, shards: Sequence[pathlib.Path], lengths: Sequence[int]
  ) -> None:
    found = _each(_count, shards)
    for path, count, told in zip(shards, found, lengths, strict=True):
      if count != told:
        what = count if isinstance(count, str) else f"it has {count:,} records"
        raise _damaged(
          self, f"{path.name} should have {told:,} records, and {what}"
        )


@functools.cache  # Once, though several splits may be opened.
def _warn(sentence: str) -> None:
  print(f"warning: {text.printable(sentence)}", file=sys.stderr, flush=True)


def _each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
    return list(threads.map(function, items))


def _count(path: pathlib.Path) -> int | str:
  """The records of a shard, or why they can't be counted."""
  try:
    if not path.is_file():
      return "there is no such file"
    reader = array_record_module.ArrayRecordReader(
      str(path), "readahead_buffer_size:0"
    )
    try:
      return reader.num_records()
    finally:
      reader.close()
  except (OSError, RuntimeError, ValueError) as e:
    return f"it can't be read: {first_line(e)}"


def _damaged(stored: Stored, what: str) -> UserError:
  known = (stored.folder / MANIFEST).exists()
  return UserError(
    f"data set {stored.name} in {stored.folder} is not as it was prepared: "
    f"{what}. Put it back from a copy, or prepare the data set anew"
    + (
      f"; if it was changed on purpose, remove {MANIFEST} there."
      if known
      else "."
    )
  )


def digest(value: Any) -> str:
  """SHA-256 of JSON values."""
  plain = json.dumps(value, sort_keys=True)
  return hashlib.sha256(plain.encode()).hexdigest()


def _end(path: pathlib.Path) -> str:
  with open(path, "rb") as f:
    f.seek(max(0, path.stat().st_size - _TAIL))
    return hashlib.sha256(f.read(_TAIL)).hexdigest()


def file_digest(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def seal(folder: pathlib.Path, known: Mapping[str, str] | None = None) -> None:
  """Writes the manifest of a set that has just been prepared as ArrayRecord.

  Args:
    folder: of the version.
    known: the digests of shards, by their names, as far as they are known.
  """
  stored = read(folder)
  small = (folder / INFO, folder / FEATURES, *_label_files(folder))
  shards = [path for paths in stored._shards().values() for path in paths]
  digests = _each(
    lambda path: (known or {}).get(path.name) or file_digest(path),
    [*small, *shards],
  )
  listed = {}
  for path, own in zip((*small, *shards), digests, strict=True):
    entry = {"bytes": path.stat().st_size, "sha256": own}
    if path not in small:
      entry["end"] = _end(path)
    listed[stored._relative(path)] = entry
  with files.atomic_write(folder / MANIFEST, "w") as f:
    json.dump({"sha256": digest(listed), "files": listed}, f, indent=1)
    f.write("\n")


def _label_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob("*.labels.txt"))


def read_info(path: pathlib.Path) -> dict[str, Any]:
  """What `dataset_info.json` says, as it stands there."""
  what = "the description of a TFDS data set, in NAME[/CONFIG]/VERSION"
  return _json(path, what)


def _json(path: pathlib.Path, what: str) -> dict[str, Any]:
  try:
    return files.read_json(path, what, _LIMIT)
  except UserError as e:
    raise UserError(
      f"{e} Put it back from a copy, or remove {path.parent} and prepare the "
      "data set anew."
    ) from e


def read(folder: pathlib.Path) -> Stored:
  """Reads what a folder says of its data set.

  Raises:
    UserError: none there, or one that isn't whole.
  """
  info = read_info(folder / INFO)
  with _sentences(folder / INFO):
    formats = [_str(_field(info, "fileFormat", "") or "tfrecord", "fileFormat")]
    others = _field(info, "alternativeFileFormats", [])
    formats += [_str(v, "alternativeFileFormats") for v in _list(others)]
    splits, templates = {}, {}
    for split in map(_dict, _list(_field(info, "splits", []))):
      name = _str(split.get("name"), "the name of a split")
      lengths = _list(_field(split, "shardLengths", []))
      if name in splits or not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"there is a split {name[:60]!r}, or there are two")
      splits[name] = tuple(_int(n, "shardLengths") for n in lengths)
      templates[name] = _template(_field(split, "filepathTemplate", ""))
    identity = {
      key: _str(_field(info, field, ""), field)
      for key, field in (
        ("name", "name"),
        ("config", "configName"),
        ("version", "version"),
      )
    }
    if not re.fullmatch(r"\w+", identity["name"]):
      raise ValueError(f"the set is called {identity['name'][:60]!r}")
  if not (folder / FEATURES).exists() or not all(splits.values()):
    raise UserError(
      f"{folder} was written by TFDS before 4.0: there is no {FEATURES}, or "
      "the splits' sizes are missing. Prepare the data set anew."
    )
  return Stored(
    folder=folder,
    formats=tuple(formats),
    splits=splits,
    templates=templates,
    features=_features(folder / FEATURES),
    **identity,
  )


def _features(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """The features of a set, as `features.json` describes them."""
  content = _json(path, "the features of a TFDS data set")
  with _sentences(path):
    inner = content.get("featuresDict", content.get("content", {}))
    inner = _dict(inner)
    if "type" not in content:  # As TFDS wrote it until 4.3.
      inner = _dict(inner.get("features", {}))
    return {name: _dict(spec) for name, spec in inner.items()}


def _class(spec: Mapping[str, Any]) -> str:
  """What a feature says of what it is; no more than a word to us."""
  return str(spec.get("pythonClassName", spec.get("type", "")))


@contextlib.contextmanager
def _sentences(path: pathlib.Path) -> Iterator[None]:
  """Makes a UserError of what is wrong in a file."""
  try:
    yield
  except ValueError as e:
    raise UserError(
      f"{path} is damaged: {e}. Put it back from a copy, or prepare the data "
      "set anew."
    ) from e


def _field(values: Mapping[str, Any], name: str, default: Any) -> Any:
  """As protocol buffers write it to JSON, or call it."""
  other = re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name)
  return values.get(name, values.get(other, default))


def _str(value: Any, what: str) -> str:
  if not isinstance(value, str):
    raise ValueError(f"{what} is {str(value)[:60]!r} where a text should be")
  return value


def _list(value: Any) -> list[Any]:
  if not isinstance(value, list):
    raise ValueError(f"{str(value)[:60]!r} stands where a list should be")
  return value


def _dict(value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f"{str(value)[:60]!r} stands where an object should be")
  return value


def _int(value: Any, what: str) -> int:
  """A count: protocol buffers write 64 bits as text."""
  digits = str(value)
  if not re.fullmatch(r"[0-9]{1,18}", digits, re.ASCII):
    raise ValueError(f"{what} is {digits[:60]!r} where a count should be")
  return int(digits)


def _template(value: Any) -> str:
  """Of file names: relative, and within the folder."""
  written = _str(value, "filepathTemplate") or _TEMPLATE
  fields = _FIELD.findall(written)
  known = _FIELD.findall(_TEMPLATE) + ["SHARD_INDEX", "NUM_SHARDS"]
  steps = written.split("/")
  if {*fields} - {*known} or {"", ".", ".."} & {*steps} or "\0" in written:
    raise ValueError(f"filepathTemplate is {written[:60]!r}")
  return written
