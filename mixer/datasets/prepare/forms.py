"""Images with labels as others keep them: WebDataset, parquet, a table."""

import contextlib
import csv
import functools
import io
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mixer import files, image_files
from mixer.datasets.prepare import sources, tars
from mixer.datasets.prepare.sources import Member, Source
from mixer.errors import UserError, first_line

_SHARD = re.compile(r".*[-_]\d{2,}\.tar|.*\.parquet")
_WNID = re.compile(r"(?<![A-Za-z\d])n\d{8}(?!\d)")
# Of a sample's JSON, or a parquet file: names of its class, or its number.
_LABELS = (
  *("class_name", "label_name", "label", "labels", "fine_label", "cls"),
  *("class", "class_id", "target"),
)
# How tables call their columns.
_COLUMNS = {
  "file": "file filename file_name path image_path image image_id img id",
  "label": "label class class_name category target breed species",
  "split": "split set subset partition",
}
_MOST_LABEL = 1 << 20  # Bytes of a sample's label.
_ROWS = 64  # Of a parquet file at a time.


def shards(paths: Sequence[Path]) -> list[Path]:
  """NAME-0000.tar and the like, or parquet files, in paths and folders."""
  found: set[Path] = set()
  for path in paths:
    inside = (
      [*path.glob("*"), *path.glob("data/*")] if path.is_dir() else [path]
    )
    found |= {p for p in inside if _SHARD.fullmatch(p.name)}
  return sorted(found, key=lambda path: path.name)


def of_hub(
  paths: Sequence[Path], classes: Collection[str] | None, truncated: bool
) -> Source:
  """WebDataset shards, or parquet files; names of the files say the splits."""
  splits = [
    next(filter(None, map(sources.SPLITS.get, re.split(r"[-_.]", p.stem))), "")
    for p in paths
  ]
  if {*splits} <= {"train", ""}:  # Then they are to be drawn.
    splits = [""] * len(paths)
  by_path = dict(zip(paths, splits, strict=True))
  names = [*(classes or ())]
  if paths[0].suffix == ".parquet":
    found = _parquet(by_path, classes)
    found.has_splits = any(splits)
    return found

  def samples(stream: tars.Stream, path: Path, fill: tars.Fill):
    return _samples(stream, by_path[path], fill, names)

  def layout(path: PurePosixPath) -> None:  # No folder has samples.
    return None

  found = tars.source(paths, layout, classes, truncated, samples=samples)
  found.has_splits = any(splits)
  return found


def _samples(
  stream: tars.Stream, split: str, fill: tars.Fill, names: Sequence[str]
) -> Iterator[Member]:
  """A shard's samples: neighbouring files of one name before the first dot."""
  key, member, about = "", None, dict[str, bytes]()
  for name, size, problem in itertools.chain(
    tars.entries(stream), [("", 0, "")]
  ):
    path = PurePosixPath(name)
    stem, _, suffix = path.name.partition(".")
    own = str(path.with_name(stem)) if stem else ""
    if own != key:
      if member:
        label = _label(key, about, names)
        yield member._replace(class_name=label, split=split)
      key, member, about = own, None, {}
    suffix = suffix.lower()
    if member is None and image_files.named(f"x.{suffix}"):
      read = functools.partial(stream.read, size)
      member = fill(Member(name, "", error=problem), read, size)
    elif suffix in ("cls", "json") and size <= _MOST_LABEL and not problem:
      about[suffix] = stream.read(size)


def _label(key: str, about: dict[str, bytes], names: Sequence[str]) -> str:
  """The class of a sample: of its WordNet id, its label, or its key's begin."""
  found: Any = {}
  with contextlib.suppress(ValueError):  # No JSON: then the rest decides.
    found = json.loads(about.get("json", b"{}"))
  found = found if isinstance(found, dict) else {"label": found}
  base = PurePosixPath(key)
  if wnid := _WNID.search(f"{base.name} {found.get('filename', '')}"):
    return wnid[0]
  values = [found[k] for k in _LABELS if k in found]
  if "cls" in about:
    values.append(about["cls"].decode("utf-8", "replace").strip())
  if values:
    return _named(values[0], names)
  folder = base.parent.name
  return sources.readable(folder or base.name.rpartition("_")[0])


def _named(label: Any, names: Sequence[str]) -> str:
  """A class's name, of that or of its number among names that are known."""
  text = sources.readable(str(label)).strip()
  if text.isdecimal() and text not in names and int(text) < len(names):
    return names[int(text)]
  return "" if text.startswith("-") or label is None else text


def _parquet(
  splits: dict[Path, str], classes: Collection[str] | None
) -> Source:
  """Rows of `image: {bytes, path}` and a label, as `datasets` writes them."""
  import pyarrow.parquet  # Here, as it takes a while that others needn't wait.

  paths, found = [*splits], {}
  with _whole(paths[0]):
    schema = pyarrow.parquet.read_schema(paths[0])
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    found = about.get("info", {}).get("features", {})
  image = next((f.name for f in schema if "bytes" in _fields(f.type)), "")
  label = next((k for k in _LABELS if k in schema.names), "")
  if not (image and label):
    raise UserError(
      f"{paths[0]} has the columns {', '.join(schema.names)}; expected an "
      "image with its `bytes`, and a `label`."
    )
  listed = found.get(label, {}).get("names") or classes
  names = [*(listed or ())]

  def read(start: int) -> Iterator[tuple[Member, int]]:
    number = 0
    for path, split in splits.items():
      with _whole(path), pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
          rows = file.metadata.row_group(group).num_rows
          columns = [label, image] if number + rows > start else [label]
          for batch in file.iter_batches(_ROWS, [group], columns):
            for row in batch.to_pylist():
              value, picture = row[label], row.get(image) or {}
              data = picture.get("bytes")
              name = f"{path.stem}/{picture.get('path') or number}"
              member = Member(
                sources.readable(name), _named(value, names), split
              )
              if number >= start:
                error = "" if data else "its row has no bytes of an image"
                member = member._replace(data=data or b"", error=error)
              number += 1
              yield member, number

  size = sum(path.stat().st_size for path in paths)
  mark = sources.fingerprint(paths, *names)
  return Source(sources.some(paths), mark, read, 0, size, listed)


def _fields(kind: Any) -> list[str]:
  return [kind.field(i).name for i in range(kind.num_fields)]


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
  """Makes sentences of what pyarrow says of a file."""
  try:
    yield
  except UserError:
    raise
  except (OSError, ValueError) as e:  # ArrowInvalid is a ValueError.
    raise UserError(
      f"{path} is no whole parquet file: {first_line(e)}. Get it again."
    ) from e


def table(
  path: Path, classes: Collection[str] | None, columns: str, seed: int
) -> Source:
  """Images whose classes a CSV or TSV file says, relative to its folder.

  `columns` names those of file and label, and maybe split; "" has them guessed
  by their names, which the description says.
  """
  data = files.read_bytes(path, "a table of labels")
  text = data.decode("utf-8-sig", "replace")
  mark = max("\t;,", key=text.partition("\n")[0].count)
  table = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)
  heads = [head or "" for head in table.fieldnames or ()]
  chosen = columns.split(",") if columns else _guessed(heads)
  if not (2 <= len(chosen) <= 3 and {*chosen} <= {*heads}):
    raise UserError(
      f"{path} has the columns {', '.join(heads)}: name those of the image's "
      "file, its label and maybe its split, as in --columns=FILE,LABEL."
    )
  # Images by their place, and by their names in any folder below.
  ways = {way: e.path for way, e in image_files.find(str(path.parent))}
  near: dict[str, set[str]] = {}
  for way, place in ways.items():
    for name in (PurePosixPath(way).name, PurePosixPath(way).stem):
      near.setdefault(name, set()).add(place)
  listed: dict[str, tuple[str, str, str, str]] = {}
  again: list[str] = []
  for row in table:
    name, label, *split = ((row[column] or "").strip() for column in chosen)
    places = near.get(PurePosixPath(name).name, {str(path.parent / name)})
    place = ways.get(PurePosixPath(name).as_posix()) or min(places)
    if place in listed:
      again.append(name)
    which = split[0] if split else ""
    which = sources.SPLITS.get(which.lower(), sources.readable(which))
    listed.setdefault(place, (name, sources.readable(label), which, place))
  what = f"{path} ({', '.join(chosen)})"
  found = sources.listed(what, listed.values(), classes, seed, chosen)
  found.warn("rows name an image again; its first row counts", again)
  rest = [way for way, place in ways.items() if place not in listed]
  found.warn("images are not in the table and are left out", rest)
  return found


def _guessed(heads: Sequence[str]) -> list[str]:
  """Which columns have the file, the label, and the split if there is one."""
  names = {head.strip().lower(): head for head in reversed(heads)}
  found = [
    next((names[k] for k in known.split() if k in names), "")
    for known in _COLUMNS.values()
  ]
  return [*found[:2], *filter(None, found[2:])]
