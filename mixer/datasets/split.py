"""A part of a data set, opened by name: random access to encoded records."""

import contextlib
import dataclasses
import functools
import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source
from google.protobuf.message import DecodeError

from mixer import files, progress
from mixer.datasets import by_code, catalog, stored, vtab
from mixer.errors import UserError, first_line

# Beside the seed, so that other uses of it draw other numbers.
_SUBSET = 102
# The split expression for `test`, or `validation` where there is no `test`.
AUTO = "auto"
_BOUND = r"(?:(-?[\d_.]+)(%|shard)?)?"
_PART = re.compile(rf"([\w-]+)(?:\[{_BOUND}:{_BOUND}\])?")
# Of images in a folder, by its path, which are prepared on first use.
FOLDER = "folder:"
# Bytes of pixels up to which a set of equally large images (PNGs all) is kept
# decoded: an image of 16 px then takes 29 us of a core in place of 143.
_MOST_DECODED = 1 << 30
# Features in which a data set may have the name of an image's file.
_FILE_NAMES = ("file_name", "image/filename", "filename")


@dataclasses.dataclass(frozen=True)
class Split:
  """Random access to the encoded records of a part of a data set."""

  name: str  # Of the data set.
  expression: str  # TFDS split expression, such as "train[:98%]".
  # Records of `image` (encoded bytes) and `label` (and `valid_labels`, if
  # several may be right), read by `__getitems__(indices)`.
  source: Any
  class_names: tuple[str, ...]  # In the order of the labels.
  indices: np.ndarray | None = None  # Of its records in `source`; None: all.
  # JSON that tells the whole data set from any other.
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # Decoded records by place in `source`, where they fit into memory.
  kept: dict[int, dict[str, Any]] | None = None

  def __len__(self) -> int:
    return len(self.source if self.indices is None else self.indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    (record,) = self.read([range(len(self))[i]])
    return record

  @functools.cached_property
  def records(self) -> np.ndarray:
    """int `[N]`: the place of each of its records in `source`."""
    return np.arange(len(self)) if self.indices is None else self.indices

  def read(self, places: Sequence[int]) -> list[dict[str, Any]]:
    """The records at some places, and at once: cheaper than one by one.

    Each has its encoded `image`, its `label` and its `index` in the source; its
    `file_name` and `valid_labels`, where the set has those. UserError: a label
    is none of the classes', or a record can't be read.
    """
    own = self.indices
    indices = [int(i if own is None else own[i]) for i in places]
    try:
      found = self.source.__getitems__(indices) if indices else []
    except (OSError, RuntimeError, ValueError) as e:  # Of ArrayRecord.
      raise self._error(
        f": its files can't be read: {first_line(e)}. Check the disk, or "
        "prepare the data set anew."
      ) from e
    known = range(len(self.class_names))
    for i, record in zip(indices, found, strict=True):
      for label in (record["label"], *record.get("valid_labels", ())):
        if label not in known:
          raise self._error(
            f", record {i} has label {label}, outside the {len(known)} "
            "classes; take a split with labels, or prepare the data set anew."
          )
    return [r | {"index": i} for i, r in zip(indices, found, strict=True)]

  def decoded(self, places: Sequence[int]) -> list[dict[str, Any]]:
    """As `read`; of a small set with pixels, which are decoded once."""
    if self.kept is None:
      return self.read(places)
    from mixer import images  # Here, as names and sizes don't need it.

    indices = [int(i) for i in self.records[[*places]]]
    new = [
      p for p, i in zip(places, indices, strict=True) if i not in self.kept
    ]
    for record in self.read(new):
      # One that is damaged stays encoded, and is reported by who decodes it.
      with contextlib.suppress(images.ImageError):
        pixels = images.Opened(record["image"]).pixels()
        record["image"] = np.ascontiguousarray(pixels)
      self.kept[record["index"]] = record
    return [self.kept[i] for i in indices]

  def _error(self, what: str) -> UserError:
    return UserError(f"data set {self.name}, split {self.expression}{what}")

  def decode_error(self, index: int, error: Exception) -> UserError:
    """The error for a record whose image can't be decoded."""
    return self._error(
      f", record {index} can't be decoded: {error}. Prepare the data set anew "
      "without that image, or choose a split that leaves it out."
    )

  def _all(self, key: str) -> list[Any]:
    places = range(len(self))
    groups = [places[i : i + 256] for i in places[::256]]
    track = progress.track(groups, f"reading labels of {self.name}")
    return [record.get(key) for group in track for record in self.read(group)]

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int64 `[N]`; reads every record, so for small sets."""
    return np.array(self._all("label"), np.int64)

  @functools.cached_property
  def valid_labels(self) -> tuple[frozenset[int], ...] | None:
    """The right classes of each example, of `imagenet2012_real`; else None."""
    return (
      tuple(self._all("valid_labels")) if "valid_labels" in self[0] else None
    )

  def per_class(
    self, count: int, seed: int, key: str = "data.examples_per_class"
  ) -> "Split":
    """`count` examples of each class, drawn by `seed`.

    A larger count with the same seed contains the smaller one's examples. `key`
    of the config is for the UserError where a class has too few.
    """
    rng, chosen = np.random.default_rng((seed, _SUBSET)), []
    for k, class_name in enumerate(self.class_names):
      own = rng.permutation(np.flatnonzero(self.labels == k))[:count]
      if len(own) < count:
        raise self._error(
          f" has {len(own)} examples of class {class_name!r} and {count} are "
          f"asked for; ask for fewer, by --config.{key}=N."
        )
      chosen.append(own)
    picked = np.sort(np.concatenate(chosen))
    return dataclasses.replace(self, indices=self.records[picked])


@dataclasses.dataclass(frozen=True)
class _Examples:
  """Random access to serialized `tf.train.Example`s, parsed into records."""

  raw: Any
  parse: Callable[[Any], dict[str, Any]]

  def __len__(self) -> int:
    return len(self.raw)

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    return [*map(self._record, indices, self.raw.__getitems__(indices))]

  def _record(self, i: int, data: bytes) -> dict[str, Any]:
    try:
      feature = stored.Example.FromString(data).features.feature
      record = self.parse(feature)
    except (DecodeError, LookupError) as e:
      raise ValueError(f"record {i} is no example with an image") from e
    for name in _FILE_NAMES:
      if name in feature and (value := feature[name].bytes_list.value):
        record["file_name"] = value[0].decode("utf-8", "surrogateescape")
        break
    return record


def _parse(feature: Any) -> dict[str, Any]:
  """Of a set with `image` and `label`, or of ImageNet with the ReaL labels."""
  real = "original_label" in feature and "label" not in feature
  label = feature["original_label" if real else "label"].int64_list.value[0]
  found = {"image": feature["image"].bytes_list.value[0], "label": label}
  if real:
    found["valid_labels"] = frozenset(feature["real_label"].int64_list.value)
  return found


def open_split(name: str, expression: str, data_dir: str) -> Split:
  """Opens a part of a prepared data set; prepares the shipped ones itself.

  `name` is of a TFDS data set, with `/config` and `:version` where it has any,
  of a task of VTAB-1k, of a function (see `by_code`), or "folder:PATH", which
  is prepared on first use; `expression` a TFDS split expression or `AUTO`, of a
  task one of `vtab.SPLITS`. UserError: not prepared, damaged, not for
  classification, no such split.
  """
  if by_code.NAME.fullmatch(name) and not name.startswith(FOLDER):
    return _open_by_code(name, expression, data_dir)
  task = vtab.find(name) if name.startswith(vtab.PREFIX) else None
  base = task.data_set if task else name
  root = stored.resolve_data_dir(data_dir)
  if base in catalog.SHIPPED:
    from mixer.datasets import shipped

    folder = shipped.folder(base, root)
  elif base.startswith(FOLDER):
    from mixer.datasets.prepare import straight

    folder = straight.folder(base.removeprefix(FOLDER), root)
  else:
    folder = find(base, root, data_dir)
  found = stored.read(folder)
  if "array_record" not in found.formats:
    run = catalog.command(base, data_dir=data_dir)
    raise UserError(
      f"data set {base} in {folder} is stored as {found.formats[0]}, which "
      f"can't be read by index; `{run}` adds ArrayRecord files to TFRecord."
    )
  parse, label = _parse, "label"
  if task and task.label:
    parse, label = task.record, task.features[0].split("/")[0]
  elif "real_label" in found.features:
    label = "original_label"
  if not {"image", label} <= found.features.keys():
    tasks = " or ".join((*vtab.tasks_of(name), "a set for classification"))
    raise UserError(
      f"data set {name} in {folder} has no features `image` and `{label}`; "
      f"name {tasks} in data.name."
    )
  if expression == AUTO:
    has_test = task or "test" in found.sizes
    expression = "test" if has_test else "validation"
  wanted = task.expression(expression, found.sizes) if task else expression
  taken = parts(name, wanted, found.splits)
  found.check({split for split, _, _ in taken})
  class_names = (task.names if task else ()) or found.class_names(label)
  height, width = found.image_size or (0, 0)
  pixels = 3 * height * width * sum(b - a for _, a, b in taken)
  return Split(
    name,
    expression,
    _Examples(_open_shards(found, taken), parse),
    class_names,
    identity=_identity(class_names, found.sizes, found.fingerprint),
    kept={} if 0 < pixels <= _MOST_DECODED else None,
  )


def _open_shards(
  found: stored.Stored, taken: Sequence[tuple[str, int, int]]
) -> Any:
  """Random access to the serialized records of (split, start, stop) ..."""
  pieces = []
  for split, start, stop in taken:
    first = 0
    counts = found.splits[split]
    for path, count in zip(found.files(split), counts, strict=True):
      skip = max(start - first, 0)
      take = min(stop - first, count) - skip
      if take > 0:
        piece = {"filename": str(path), "skip": skip, "take": take}
        pieces.append(types.SimpleNamespace(**piece, examples_in_shard=count))
      first += count
  make: Any = array_record_data_source.ArrayRecordDataSource
  return make(pieces)


def _open_by_code(name: str, expression: str, data_dir: str) -> Split:
  if expression == AUTO:
    try:
      return _open_by_code(name, "test", data_dir)
    except UserError:
      expression = "validation"
  split = expression.partition("[")[0]
  source, class_names = by_code.open_source(name, split, data_dir)
  taken = parts(name, expression, {split: (len(source),)})
  indices = np.concatenate([np.arange(a, b) for _, a, b in taken])
  identity = _identity(class_names, {split: len(source)}, source.digest())
  return Split(name, expression, source, class_names, indices, identity)


def _identity(
  class_names: tuple[str, ...], sizes: Mapping[str, int], fingerprint: str
) -> dict[str, Any]:
  shown = ", ".join(class_names)
  if len(class_names) > 6:
    shown = (
      f"{len(class_names):,} names, {class_names[0]} to {class_names[-1]} "
      f"({files.json_sha256(class_names)[:12]})"
    )
  return {"class_names": shown, "examples": sizes, "fingerprint": fingerprint}


def find(name: str, root: pathlib.Path, data_dir: str = "") -> pathlib.Path:
  """The folder of a prepared set in `root`, for a user who gave `data_dir`.

  That of the newest version, if none is named; without a config, of the only
  one that is prepared. UserError, if there is none, says how to prepare it.
  """
  base, config, _ = catalog.split_name(name)
  there = stored.versions(root, name)
  if not config:
    there = [p for p in there if p.parent == root / base] or there
  if not there:
    raise UserError(
      f"data set {name} is not prepared in {root}. "
      f"{catalog.how_to(name, data_dir)} If it is elsewhere, name the place by "
      "--config.data.data_dir=DIR."
    )
  if len({p.parent for p in there}) > 1:
    forms = sorted({f"{base}/{p.parent.name}" for p in there})
    raise UserError(
      f"data set {name} in {root} is prepared in several forms; name one of "
      f"them: {', '.join(forms)}."
    )
  return there[-1]


def parts(
  name: str, expression: str, splits: Mapping[str, Sequence[int]]
) -> list[tuple[str, int, int]]:
  """(split, start, stop) of what a TFDS split expression takes, in its order.

  `splits` has the examples of each shard of data set `name`.
  """
  found = []
  try:
    for text in re.split(r"\s*\+\s*", expression):
      split, *bounds = _PART.fullmatch(text).groups()  # pyright: ignore[reportOptionalMemberAccess]
      found.append((split, *_bounds(splits[split], *bounds)))
    if not any(start < stop for _, start, stop in found):
      raise ValueError
  except (AttributeError, KeyError, ValueError) as e:
    has = ", ".join(f"{k} ({sum(v):,} examples)" for k, v in splits.items())
    raise UserError(
      f"data set {name} has no split {expression!r}, or it is empty; it has "
      f'{has}, or parts of these as in "train[:98%]".'
    ) from e
  return found


def _bounds(
  lengths: Sequence[int], first: str, unit: str, last: str, last_unit: str
) -> tuple[int, int]:
  """Start and stop of "[first:last]", by TFDS's rules; ValueError for none."""
  size, count = sum(lengths), len(lengths)
  unit = unit or last_unit
  if unit == "shard":
    end = int(last or count)
    start = sum(lengths[: int(first or 0)])
    stop = sum(lengths[: end if end > 0 else count + end])
  elif unit:
    percents = float(first or 0), float(last or 100)
    if max(map(abs, percents)) > 100:
      raise ValueError
    start, stop = (round(percent * size / 100) for percent in percents)
  else:
    start, stop = int(first or 0), int(last or size)
  if max(abs(start), abs(stop)) > size:
    raise ValueError
  return start + size * (start < 0), stop + size * (stop < 0)
