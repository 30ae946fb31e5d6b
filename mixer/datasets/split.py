"""A part of a data set, opened by name: random access to encoded records."""

import dataclasses
import difflib
import functools
import glob
import pathlib
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_data_source
from google.protobuf.message import DecodeError

from mixer import files
from mixer.datasets import by_code, catalog, stored, vtab
from mixer.errors import UserError, first_line

# Beside the seed, so that other uses of it draw other numbers.
_SUBSET = 102
# The split expression for `test`, or `validation` where there is no `test`.
AUTO = "auto"
_PART = re.compile(r"([\w-]+)(?:\[([\w%:.-]+)\])?")
_BOUND = re.compile(r"(?:(-?[\d_.]+)(%|shard)?)?")
# Under which a data set may have the name of an image's file.
_FILE_NAMES = ("file_name", "image/filename", "filename")


@dataclasses.dataclass(frozen=True)
class Split:
  """Random access to the encoded records of a part of a data set.

  Attributes:
    name: of the data set.
    expression: TFDS split expression, such as "train[:98%]".
    source: a sequence of records of `image` (encoded bytes) and `label` (and
      `valid_labels`, if several may be right), read by `__getitems__(indices)`.
    class_names: in the order of the labels.
    indices: the records that belong to it, None for all.
    identity: of the whole data set, JSON: what tells it from any other.
  """

  name: str
  expression: str
  source: Any
  class_names: tuple[str, ...]
  indices: np.ndarray | None = None
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.source if self.indices is None else self.indices)

  def __getitem__(self, i: int) -> dict[str, Any]:
    (record,) = self.read([range(len(self))[i]])
    return record

  @property
  def records(self) -> np.ndarray:
    """int `[N]`: the place of each of its records in `source`."""
    return np.arange(len(self)) if self.indices is None else self.indices

  def read(self, places: Sequence[int]) -> list[dict[str, Any]]:
    """The records at some places, and at once: cheaper than one by one.

    Returns:
      For each its encoded `image`, its `label` and its `index` in the source;
      its `file_name`, where the set has those; with the ReaL labels of ImageNet
      also its `valid_labels`.

    Raises:
      UserError: a label is none of the classes', or a record can't be read.
    """
    if not places:
      return []
    own = self.indices
    indices = [int(i if own is None else own[i]) for i in places]
    try:
      found = self.source.__getitems__(indices)
    except (OSError, RuntimeError, ValueError) as e:  # Of ArrayRecord.
      raise UserError(
        f"data set {self.name}, split {self.expression}: its files can't be "
        f"read: {first_line(e)}. Check the disk, or prepare the data set anew."
      ) from e
    for i, record in zip(indices, found, strict=True):
      for label in (record["label"], *record.get("valid_labels", ())):
        if not 0 <= label < len(self.class_names):
          raise UserError(
            f"{self._place(i)} has label {label}, outside the "
            f"{len(self.class_names)} classes; take a split with labels, or "
            "prepare the data set anew."
          )
    return [r | {"index": i} for i, r in zip(indices, found, strict=True)]

  def _place(self, index: int) -> str:
    return f"data set {self.name}, split {self.expression}, record {index}"

  def decode_error(self, index: int, error: Exception) -> UserError:
    """The error for a record whose image can't be decoded."""
    return UserError(
      f"{self._place(index)} can't be decoded: {error}. Prepare the data set "
      "anew without that image, or choose a split that leaves it out."
    )

  def _all(self, key: str) -> list[Any]:
    places = range(len(self))
    groups = (places[i : i + 256] for i in places[::256])
    return [record.get(key) for group in groups for record in self.read(group)]

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """int64 `[N]`; reads every record, so for small sets."""
    return np.array(self._all("label"), np.int64)

  @functools.cached_property
  def valid_labels(self) -> tuple[frozenset[int], ...] | None:
    """The right classes of each example, where there may be several.

    Those of ImageNet with the ReaL labels (`imagenet2012_real`); an example
    with none is left out of that score. None for any other set. Reads every
    record.
    """
    if not len(self) or "valid_labels" not in self[0]:
      return None
    return tuple(self._all("valid_labels"))

  def per_class(
    self, count: int, seed: int, key: str = "data.examples_per_class"
  ) -> "Split":
    """`count` examples of each class, drawn by `seed`.

    A larger count with the same seed contains the smaller one's examples. `key`
    of the config says how many, for the UserError where a class has too few.
    """
    rng = np.random.default_rng((seed, _SUBSET))
    chosen = []
    for k, class_name in enumerate(self.class_names):
      (own,) = np.nonzero(self.labels == k)
      if len(own) < count:
        raise UserError(
          f"data set {self.name}, split {self.expression} has {len(own)} "
          f"examples of class {class_name!r} and {count} are asked for; ask "
          f"for fewer, by --config.{key}=N."
        )
      chosen.append(rng.permutation(own)[:count])
    picked = np.sort(np.concatenate(chosen))
    return dataclasses.replace(self, indices=self.records[picked])


class _Examples:
  """Random access to serialized `tf.train.Example`s, parsed into records."""

  def __init__(self, raw: Any, parse: Callable[[Any], dict[str, Any]]):
    self._raw, self._parse = raw, parse

  def __len__(self) -> int:
    return len(self._raw)

  def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
    decode, found = stored.example_class().FromString, []
    for i, data in zip(indices, self._raw.__getitems__(indices), strict=True):
      found.append(self._record(i, data, decode))
    return found

  def _record(self, i: int, data: bytes, decode: Any) -> dict[str, Any]:
    try:
      feature = decode(data).features.feature
      record = self._parse(feature)
    except (DecodeError, LookupError) as e:
      raise ValueError(f"record {i} is no example with an image") from e
    for name in _FILE_NAMES:
      if name in feature and (value := feature[name].bytes_list.value):
        return record | {
          "file_name": value[0].decode("utf-8", "surrogateescape")
        }
    return record


def _record(feature: Any) -> dict[str, Any]:
  """Of a set with `image` and `label`, or of ImageNet with the ReaL labels."""
  real = "original_label" in feature and "label" not in feature
  label = feature["original_label" if real else "label"]
  found = {
    "image": feature["image"].bytes_list.value[0],
    "label": label.int64_list.value[0],
  }
  if real:
    labels = feature["real_label"].int64_list.value
    found["valid_labels"] = frozenset(labels)
  return found


def open_split(name: str, expression: str, data_dir: str) -> Split:
  """Opens a part of a prepared data set; prepares the shipped ones itself.

  Args:
    name: of a TFDS data set, with `/config` and `:version` where it has any;
      of a task of VTAB-1k, "vtab/..."; or of a function, see `by_code`.
    expression: TFDS split expression, or `AUTO`; of a task, one of
      `vtab.SPLITS`.
    data_dir: where data sets are, "" for TFDS's default.

  Raises:
    UserError: not prepared, damaged, not readable by index, not for
      classification, or without such a split.
  """
  if by_code.is_one(name):
    return _open_by_code(name, expression, data_dir)
  task = vtab.find(name) if name.startswith(vtab.PREFIX) else None
  base = task.data_set if task else name
  root = stored.resolve_data_dir(data_dir)
  if base in catalog.SHIPPED:
    from mixer.datasets import shipped

    folder = shipped.folder(base, root)
  else:
    folder = find(base, root, data_dir)
  found = stored.read(folder)
  if "array_record" not in found.formats:
    run = catalog.command(base, data_dir=data_dir)
    raise UserError(
      f"data set {base} in {folder} is stored as {found.formats[0]}, which "
      f"can't be read by index; `{run}` adds ArrayRecord files to TFRecord."
    )
  has, parse, label = found.features.keys(), _record, "label"
  if task and task.label:
    parse, label = task.record, task.features[0].split("/")[0]
  elif "real_label" in has:
    label = "original_label"
  if not {"image", label} <= has:
    meant = "".join(f"{task} or " for task in vtab.tasks_of(name))
    raise UserError(
      f"data set {name} in {folder} has no features `image` and `{label}`; "
      f"name {meant}one for image classification in data.name."
    )
  if expression == AUTO:
    there = [s for s in ("test", "validation") if task or s in found.sizes]
    if not there:
      raise UserError(
        f"data set {name} has neither a split `test` nor `validation` to "
        f"evaluate on, but {', '.join(found.sizes)}; hold a part out, as in "
        '--config.data.train_split="train[:90%]" '
        '--config.data.eval_split="train[90%:]".'
      )
    expression = there[0]
  pieces = _pieces(name, task, found, expression)
  take: Any = array_record_data_source.ArrayRecordDataSource
  class_names = (task.names if task else ()) or found.class_names(label)
  return Split(
    name,
    expression,
    _Examples(take(pieces), parse),
    class_names,
    identity=_identity(class_names, found.sizes, found.fingerprint),
  )


def _open_by_code(name: str, expression: str, data_dir: str) -> Split:
  if expression == AUTO:
    try:
      return _open_by_code(name, "test", data_dir)
    except UserError:
      expression = "validation"
  split = expression.partition("[")[0]
  source, class_names = by_code.open_source(name, split, data_dir)
  sizes = {split: len(source)}
  taken = parts(name, expression, {split: (len(source),)})
  identity = _identity(class_names, sizes, source.digest())
  indices = np.concatenate([np.arange(a, b) for _, a, b in taken])
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
  one that is prepared.

  Raises:
    UserError: not prepared; says how it is done.
  """
  base, config, _ = catalog.split_name(name)
  there = stored.versions(root, name)
  if not config:
    there = [p for p in there if p.parent == root / base] or there
  if len({p.parent for p in there}) > 1:
    forms = sorted({f"{base}/{p.parent.name}" for p in there})
    raise UserError(
      f"data set {name} in {root} is prepared in several forms; name one of "
      f"them: {', '.join(forms)}."
    )
  if there:
    return there[-1]
  how_to, base = catalog.how_to(name, data_dir), glob.escape(base)
  for mark in (stored.UNFINISHED, stored.PREPARING):
    found = *root.glob(f"{base}/{mark}*/"), *root.glob(f"{base}/*/{mark}*/")
    if found:
      raise UserError(
        f"data set {name} is not prepared in {root} yet: a preparation was "
        f"begun and has not ended ({found[0]}). If none is running, the same "
        f"command continues it: {how_to}"
      )
  folders = (*root.glob("*/[0-9]*/"), *root.glob("*/*/[0-9]*/"))
  others = {p.parent for p in folders if (p / stored.INFO).exists()}
  others = sorted(path.relative_to(root).as_posix() for path in others)
  has = f"Prepared there: {', '.join(others[:10])}. " if others else ""
  if near := difflib.get_close_matches(name, others, n=1):
    has = f"Did you mean {near[0]}, which is there? "
  raise UserError(
    f"data set {name} is not prepared in {root}. {has}{how_to} If it is "
    "elsewhere, name the place by --config.data.data_dir=DIR. Without any "
    f"preparation: {', '.join(catalog.SHIPPED)}."
  )


def _pieces(
  name: str, task: vtab.Task | None, found: stored.Stored, split: str
) -> list[Any]:
  """What a split takes of the shards, which are checked; for ArrayRecord."""
  wanted = task.expression(split, found.sizes) if task else split
  taken = parts(name, wanted, found.splits)
  found.check({part for part, _, _ in taken})
  pieces = []
  for part, start, stop in taken:
    before = 0
    for path, count in zip(found.files(part), found.splits[part], strict=True):
      skip = max(start - before, 0)
      take = min(stop - before, count) - skip
      if take > 0:
        piece = {"filename": str(path), "skip": skip, "take": take}
        pieces.append(types.SimpleNamespace(**piece, examples_in_shard=count))
      before += count
  return pieces


def parts(
  name: str, expression: str, splits: Mapping[str, Sequence[int]]
) -> list[tuple[str, int, int]]:
  """(split, start, stop) of what a TFDS split expression takes, in its order.

  Args:
    name: of the data set.
    expression: names of splits, with slices in examples, per cent or shards.
    splits: name -> examples of each shard.

  Raises:
    UserError: there is no such split, or nothing in it.
  """
  found = []
  try:
    for text in re.split(r"\s*\+\s*", expression):
      if text == "all" and text not in splits:
        found += [(k, 0, sum(v)) for k, v in splits.items()]
      elif match := _PART.fullmatch(text):
        lengths = splits[match[1]]
        bounds = _slice(match[2], lengths) if match[2] else (0, sum(lengths))
        found.append((match[1], *bounds))
      else:
        raise ValueError
    if all(start >= stop for _, start, stop in found):
      raise ValueError
  except (KeyError, ValueError) as e:
    raise UserError(
      f"data set {name} has no split {expression!r}, or it is empty; it has "
      + ", ".join(f"{k} ({sum(v):,} examples)" for k, v in splits.items())
      + ', or parts of these as in "train[:98%]".'
    ) from e
  return found


def _slice(bounds: str, lengths: Sequence[int]) -> tuple[int, int]:
  """Start and stop, as TFDS reads a slice; ValueError for none."""
  size, count = sum(lengths), len(lengths)
  matches = [_BOUND.fullmatch(b) for b in bounds.split(":")]
  values = [m[1] for m in matches if m and m[0]]
  unit = next((m[2] for m in matches if m and m[2]), "")
  single = len(matches) == 1
  if not values or not all(matches) or len(matches) > 2:
    raise ValueError
  first, last = (m and m[1] for m in (matches[0], matches[-1]))
  if single and unit != "shard":
    raise ValueError
  if unit == "shard":
    begin = int(first or 0)
    end = begin + 1 if single else int(last) if last else count
    start = sum(lengths[:begin])
    stop = sum(lengths[: end if end > 0 else count + end])
  else:
    if unit == "%" and max(abs(float(v)) for v in values) > 100:
      raise ValueError

    def place(text: str) -> int:
      return round(float(text) * size / 100) if unit == "%" else int(text)

    start = place(first) if first else 0
    stop = place(last) if last else size
  if max(abs(start), abs(stop)) > size:
    raise ValueError
  return start + size * (start < 0), stop + size * (stop < 0)
