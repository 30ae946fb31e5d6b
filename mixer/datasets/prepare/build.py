"""From a source of images to a TFDS data set in ArrayRecord files.

One pass over the source, in its order, in chunks that are committed one by one
to a hidden folder beside the data set's: shards, and 00000.json and so on, each
written when all that it names is on the disk. What none of them names goes at
the next start, which goes on after the last one. So however a preparation is
stopped, the result is the same, byte for byte. In the end the splits that need
it are put in the order of their images' hashes, by one more such step, and a
rename puts the whole where readers look.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from mixer import errors, files, inspection
from mixer.datasets import stored
from mixer.datasets.prepare import holdout
from mixer.datasets.prepare.builders import Builder
from mixer.datasets.prepare.sources import Member, Source
from mixer.errors import UserError, first_line
from mixer.progress import Progress

# A preparation of another number isn't gone on with: raise it with a change of
# what is written.
FORMAT = 3
REPORT = "report.tsv"
PREPARATION = "preparation.json"
MISLABELLED = "mislabelled"
# Problems of files that decode none the less.
NOT_BAD = (*inspection.USABLE, *holdout.IN_TWO)
# Files after which their share of bad ones says something about the source; of
# a smaller one it is judged at the end.
_JUDGED_AFTER = 1000
_IN_FLIGHT_BYTES = 128 << 20  # Of images that wait for a thread, or for us.
# TFDS wants groups of one record. JPEG and PNG don't compress: left as they
# are, the same records take no more room (ratio 1.0012 against 1.0013) and are
# written 1.35 and read 1.15 times as fast as with the default (zstd:3).
WRITER = "group_size:1,uncompressed"
_OPEN_FILES = 128  # Each costs some 100 kB, and there is a limit to them.
_GO_ON = (
  "and give the same command again: it goes on after the last images that were "
  "committed."
)
_FEATURE = "tensorflow_datasets.core.features"


@dataclasses.dataclass(frozen=True)
class Options:
  """How a source of images becomes a data set."""

  hold_out: holdout.HoldOut = dataclasses.field(default_factory=dict)
  shuffle: bool = False  # Puts `train` in the order of the images' hashes.
  seed: int = 0
  upright: bool = False  # Turns images as their EXIF orientation says.
  white_ground: bool = False  # Puts what is transparent on white ground.
  short_side: int = 0  # To which longer ones are reduced; 0 keeps all bytes.
  quality: int = 95  # Of JPEG, where images are encoded anew.
  on_mislabelled: str = "keep"  # Or skip, or fail.
  # Work is committed after so many images, or bytes of them. Readers hold every
  # shard open, and 1,024 open files is a common limit: ImageNet-21k makes some
  # 400 shards of this size.
  chunk_images: int = 32_768
  chunk_bytes: int = 4 << 30

  # These change nothing in what is written.
  on_bad: str = "skip"  # Or fail.
  max_bad: float = 0.1  # The share of bad files that stops it.
  workers: int | None = None  # Threads that decode; None for one a core.

  def identity(self) -> dict[str, Any]:
    """What of it decides what is written, as JSON gives it back."""
    found = dataclasses.asdict(self)
    # The splits are drawn in this order.
    found["hold_out"] = [list(item) for item in self.hold_out.items()]
    free = ("on_bad", "max_bad", "workers")
    return {k: v for k, v in found.items() if k not in free}


def work_folder(final: pathlib.Path) -> pathlib.Path:
  """Where the data set of a folder is prepared."""
  return final.with_name(f"{stored.PREPARING}{final.name}")


def _replaced(final: pathlib.Path) -> pathlib.Path:
  """Where a data set is for a moment that another one replaces."""
  return final.with_name(f"{stored.PREPARING}{final.name}-replaced")


def clean(final: pathlib.Path) -> None:
  """Removes what a preparation has left beside a data set that is whole."""
  if _replaced(final).exists() and not final.exists():
    _replaced(final).rename(final)  # A kill came in between.
  for folder in (work_folder(final), _replaced(final)):
    shutil.rmtree(folder, ignore_errors=True)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """In what an identity differs from an earlier one, for a sentence."""
  hashed = {
    "source": "the source (its place, or its files' number, sizes or times)",
    "classes": "the list of classes",
  }
  return [
    hashed.get(k, f"{k} ({json.dumps(old)} then, {json.dumps(new)} now)")
    for k, new in now.items()
    # What there was no option for was off.
    if (old := then.get(k, False)) != new
    # Where such files end the preparation, there are none in what it wrote.
    and (k, old) != ("on_mislabelled", "fail")
  ]


@contextlib.contextmanager
def disk(path: pathlib.Path) -> Iterator[None]:
  """Makes sentences of the disk's refusals, and of ArrayRecord's."""
  try:
    yield
  # ArrayRecord raises RuntimeErrors, with the system's words in them.
  except (OSError, RuntimeError) as e:
    full = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT)]
    why = f"{path} can't be written: {first_line(e)}. Mend that"
    if any(words in str(e) for words in full):
      why = f"The disk of {path.parent} is full. Make room there"
    raise UserError(f"{why} {_GO_ON}") from e


def check_room(folder: pathlib.Path, need: int) -> None:
  """Refuses at once what would fill the disk after hours."""
  free = shutil.disk_usage(folder).free
  if free < need:
    raise UserError(
      f"{folder} has {free / 1e9:.3f} GB free, and the data set takes up to "
      f"{need / 1e9:.3f} GB more there. Make room, or name another place with "
      "--data_dir=DIR."
    )


def sync(path: pathlib.Path) -> None:
  """Waits until a file's content is on the disk."""
  with open(path, "rb") as f:
    os.fsync(f.fileno())


class _ShardWriter:
  """One ArrayRecord file in the making."""

  def __init__(self, path: pathlib.Path, split: str):
    self._path, self._split = path, split
    self.keys: list[str] = []  # Of the records, if these are to be shuffled.
    self.images = self.bytes = 0
    self._writer = array_record_module.ArrayRecordWriter(str(path), WRITER)

  def write(self, record: bytes) -> None:
    self._writer.write(record)
    self.images += 1
    self.bytes += len(record)

  def close(self) -> dict[str, Any]:
    """Returns when the file is whole and on the disk, with what it is."""
    self._writer.close()
    sync(self._path)
    return {
      "file": self._path.name,
      "split": self._split,
      "images": self.images,
      "bytes": self.bytes,
      "sha256": stored.file_digest(self._path),  # While it is in memory.
      "keys": self.keys,
    }


def _inspect(
  member: Member, options: Options
) -> tuple[inspection.Inspected, bytes]:
  """What is found, and the digest of the bytes."""
  if member.error:
    return inspection.Inspected(b"", "unreadable", member.error), b""
  ways = ("upright", "white_ground", "short_side", "quality")
  ways = {way: getattr(options, way) for way in ways}
  found = inspection.inspect(member.data, member.name, **ways)
  # The thread decodes others next.
  found = found._replace(pixels=None)
  return found, holdout.digest(member.data, options.seed)


def _inspected(
  members: Iterator[tuple[Member, int]], options: Options
) -> Generator[tuple[Member, int, inspection.Inspected, bytes]]:
  """Inspects images in threads; results in order, memory bounded."""
  threads = options.workers or len(os.sched_getaffinity(0))
  waiting: collections.deque[Any] = collections.deque()
  size = 0
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    try:
      for item in members:
        waiting.append((*item, pool.submit(_inspect, item[0], options)))
        size += len(item[0].data) + 1000
        while waiting and (size > _IN_FLIGHT_BYTES or waiting[0][-1].done()):
          member, done, future = waiting.popleft()
          size -= len(member.data) + 1000
          yield member, done, *future.result()
      for member, done, future in waiting:
        yield member, done, *future.result()
    finally:
      pool.shutdown(cancel_futures=True)


class Preparation:
  """What is committed of a preparation, and the chunk at work."""

  def __init__(
    self,
    source: Source,
    final: pathlib.Path,
    about: Mapping[str, Any],
    builder: Builder,
    options: Options,
    progress: Progress,
  ):
    """Begins it, or takes in what one that was stopped has committed.

    Args:
      source: the images; its classes are known.
      final: folder of the version, whose place the result takes.
      about: what TFDS wants to know: `name`, `description`, any `configName`.
      builder: of the set.
      options: how.
      progress: shows how far it is, and warnings.

    Raises:
      UserError: the source or the options aren't those of what is there.
    """
    self._source, self._options, self._progress = source, options, progress
    self._final, self._about, self._builder = final, about, builder
    self._folder = work_folder(final)
    self._labels = {name: i for i, name in enumerate(source.classes or ())}
    self._identity = {
      "format": FORMAT,
      "data set": f"{about['name']}:{builder.version}",
      "source": source.fingerprint,
      "classes": files.json_sha256([*self._labels]),
      **options.identity(),
    }
    # The splits of images that are put in the order of their hashes.
    self._shuffled = {"train"} if options.shuffle else set[str]()
    self._by_class: holdout.ByClass | None = None
    if source.class_sizes is None:
      self._shuffled |= {*options.hold_out}
      images = builder.releases[about.get("configName", "")][0]
      self._place = holdout.by_hash(options.hold_out, images)
    else:
      drawn = holdout.ByClass(options.hold_out, source, self._labels)
      self._by_class, self._place = drawn, drawn.place
    self._entries = self._bytes_done = self._told = 0
    self._ended = False  # The source is read to its end.
    self._shards: list[dict[str, Any]] = []  # Committed.
    # These are with the chunk at work. Kind, file, sentence:
    self._problems: list[list[str]] = []
    self._members = 0
    while self._entry_path().exists():
      self._load()
    self._kinds = collections.Counter(kind for kind, *_ in self._problems)
    self._counts = collections.Counter[str]()  # Images by split.
    for shard in self._shards:
      self._counts[shard["split"]] += shard["images"]
    self._new_chunk()

  def run(self) -> None:
    """Makes the data set; a UserError if source or disk don't allow it."""
    with disk(self._folder):
      (self._folder / "shards").mkdir(parents=True, exist_ok=True)
      named = {shard["file"] for shard in self._shards}
      for path in (self._folder / "shards").iterdir():
        if path.name not in named:
          path.unlink()
      if not self._ended:
        self._read()
      self._shuffle()
      self._assemble()
      clean(self._final)

  def _entry_path(self) -> pathlib.Path:
    return self._folder / f"{self._entries:05}.json"

  def _load(self) -> None:
    """Takes in what an earlier process has committed."""
    path = self._entry_path()
    try:
      entry = files.read_json(path, "what a preparation keeps for itself")
    except UserError as e:
      raise UserError(f"{e} --restart discards it and begins anew.") from e
    if changed := differences(entry.get("identity", {}), self._identity):
      raise UserError(
        f"{self._folder} has what an earlier preparation had done when it was "
        f"stopped, and it differs in {', '.join(changed)}. Give the source and "
        "the options of that time to go on with it, or --restart to discard it "
        "and begin anew."
      )
    self._members += entry["members"]
    self._problems += entry["problems"]
    for key, label, split in entry["rows"]:
      assert self._by_class
      self._by_class.restore(bytes.fromhex(key), label, split)
    self._take(entry)

  def _take(self, entry: dict[str, Any]) -> None:
    self._entries += 1
    self._bytes_done, self._ended = entry["bytes_done"], entry["ended"]
    if entry["shuffled"]:
      self._shards = [s for s in self._shards if not s["keys"]]
    self._shards += entry["shards"]

  def _commit(
    self, done: int, ended: bool, shuffled: list[dict[str, Any]] | None = None
  ) -> None:
    """Makes what is written count, for good."""
    closed = [writer.close() for writer in self._writers.values()]
    entry = {
      "identity": self._identity,
      "members": self._members - self._first[0],
      "bytes_done": done,
      "ended": ended,
      "shuffled": shuffled is not None,
      "shards": shuffled or closed,
      "problems": self._problems[self._first[1] :],
      "rows": self._rows,
    }
    files.sync_folder(self._folder / "shards")
    path = self._entry_path()
    with files.atomic_write(path, "w", f"Mend that {_GO_ON}") as f:
      json.dump(entry, f)
    self._take(entry)
    self._new_chunk()

  def _new_chunk(self) -> None:
    self._writers: dict[str, _ShardWriter] = {}
    self._rows: list[tuple[str, int, str]] = []
    self._first = self._members, len(self._problems)  # Of the chunk.
    self._new_bytes = 0

  def _writer(self, split: str, number: int = 0) -> _ShardWriter:
    # Numbers come first, so that no name of a split is mistaken.
    name = f"{self._entries:05}-{number:05}-{split}.array_record"
    return _ShardWriter(self._folder / "shards" / name, split)

  def _read(self) -> None:
    """The pass over the source: what isn't committed yet."""
    done, options = self._bytes_done, self._options
    # What is shuffled is there twice in the end.
    need = (1 + options.shuffle) * self._source.total_bytes - done
    if options.short_side:  # How small they get isn't known.
      need = min(need, options.chunk_bytes)
    check_room(self._folder, int(1.02 * need))  # ArrayRecord's own bytes.
    self._show(done)
    results = _inspected(self._source.members(self._members), options)
    with contextlib.closing(results):  # Ends the threads.
      for member, done, found, key in results:
        self._add(member, found, key)
        self._show(done)
        if self._is_full(self._members - self._first[0], self._new_bytes):
          self._commit(done, ended=False)
    self._judge(at_end=True)
    for split in options.hold_out:
      if not self._counts[split]:
        self._source.warn(f"no image is held out as {split}, of so few")
    if self._by_class:
      self._source.warn(*self._by_class.warnings(self._counts))
    self._show(done)
    self._commit(done, ended=True)

  def _is_full(self, images: int, size: int) -> bool:
    """Whether a chunk or shard has what it is to have."""
    options = self._options
    return images >= options.chunk_images or size >= options.chunk_bytes

  def _add(
    self, member: Member, found: inspection.Inspected, key: bytes
  ) -> None:
    self._members += 1
    self._new_bytes += len(member.data)
    if found.kind:
      self._problem(found.kind, member.name, found.problem)
      skips = self._options.on_mislabelled == "skip"
      if found.kind not in NOT_BAD or (skips and found.kind == MISLABELLED):
        return
    label = self._labels[member.class_name]
    split, odd = self._place(key, label, member.split)
    for kind, sentence in odd:
      self._problem(kind, member.name, sentence)
    if self._by_class:
      self._rows.append((key.hex(), label, split))
    if split not in self._writers:
      self._writers[split] = self._writer(split)
    name = member.name.encode(errors="surrogateescape")
    if split in self._shuffled and not member.split:
      self._writers[split].keys.append((key + name).hex())
    features = {"image": found.data, "file_name": name}
    features |= {self._builder.label: (label,), **dict(member.more)}
    self._writers[split].write(stored.encode(features))
    self._counts[split] += 1

  def _problem(self, kind: str, name: str, what: str) -> None:
    flag = "mislabelled" if kind == MISLABELLED else "bad"
    fails = getattr(self._options, f"on_{flag}") == "fail"
    if fails and (kind not in NOT_BAD or kind == MISLABELLED):
      raise UserError(
        f"{name} can't be used ({kind}): {what}. Mend it, or leave such files "
        f"out with --{flag}=skip; the images before it that were committed are "
        "kept."
      )
    self._problems.append([kind, name, what])
    self._kinds[kind] += 1
    self._judge()

  def _judge(self, at_end: bool = False) -> None:
    """Stops where it isn't some bad files, but a bad source."""
    bad = sum(n for kind, n in self._kinds.items() if kind not in NOT_BAD)
    too_many = bad > self._options.max_bad * self._members
    if (too_many and (at_end or self._members >= _JUDGED_AFTER)) or (
      at_end and not self._counts
    ):
      first = next((p for p in self._problems if p[0] not in NOT_BAD), None)
      raise UserError(
        f"{bad:,} of the {self._members:,} files of the source that were read "
        "can't be used"
        + (f", such as {first[1]} ({first[2]})" if first else "")
        + ". That looks like a broken copy or another kind of source: check it "
        "(by its checksum, if there is one), or go on all the same with "
        "--max_bad=1; the images so far are kept."
      )

  def _show(self, done: int) -> None:
    for warning in self._source.warnings[self._told :]:
      self._progress.say(f"warning: {warning.rstrip('.')}.")
    self._told = len(self._source.warnings)
    self._progress.show(
      "preparing",
      done,
      self._source.total_bytes,
      self._counts.total(),
      ", ".join(f"{n:,} {kind}" for kind, n in self._kinds.items()),
    )

  def _shuffle(self) -> None:
    """Writes the splits that are shuffled in the order of their keys.

    So any slice of one is a fair sample.
    """
    places: dict[str, list[tuple[str, str, int]]] = {}
    for shard in self._shards:
      found = places.setdefault(shard["split"], [])
      found += [(key, shard["file"], i) for i, key in enumerate(shard["keys"])]
    total = sum(map(len, places.values()))
    shards: list[dict[str, Any]] = []
    done = 0

    @functools.lru_cache(_OPEN_FILES)
    def reader(file: str) -> Any:
      path = str(self._folder / "shards" / file)
      options = "readahead_buffer_size:0"
      return array_record_module.ArrayRecordReader(path, options)

    for split, found in places.items():
      writer = None
      for _, file, i in sorted(found):
        writer = writer or self._writer(split, len(shards))
        writer.write(reader(file).read([i])[0])
        done += 1
        self._progress.show("shuffling", done, total, done)
        if self._is_full(writer.images, writer.bytes):
          shards.append(writer.close())
          writer = None
      shards += [writer.close()] if writer else []
    if total:
      self._commit(self._bytes_done, ended=True, shuffled=shards)

  def _assemble(self) -> None:
    """Makes the data set of the shards and moves it to its place."""
    final = self._final
    # Nobody takes a folder of that name for a data set.
    data = self._folder / f"{stored.PREPARING}data"
    data.mkdir(exist_ok=True)
    splits, digests = {}, {}
    names = {shard["split"] for shard in self._shards}
    # `train` first, then by name: the same whatever came first.
    for split in sorted(names, key=lambda name: (name != "train", name)):
      shards = [shard for shard in self._shards if shard["split"] == split]
      size = sum(shard["bytes"] for shard in shards)
      splits[split] = [shard["images"] for shard in shards], size
      begin = f"{self._about['name']}-{split}.array_record"
      for i, shard in enumerate(shards):
        path = data / f"{begin}-{i:05}-of-{len(shards):05}"
        if not path.exists():
          (self._folder / "shards" / shard["file"]).rename(path)
        digests[path.name] = shard["sha256"]
    self._describe(data, splits)
    stored.seal(data, digests)
    rows = [["kind", "file", "what"], *self._problems]
    lines = ("\t".join(map(errors.printable, row)) + "\n" for row in rows)
    (data / REPORT).write_text("".join(lines), "utf-8")
    preparation = {
      "from": self._source.description,
      "identity": self._identity,
      "problems": self._kinds,
    }
    (data / PREPARATION).write_text(json.dumps(preparation, indent=2) + "\n")
    for path in data.iterdir():
      sync(path)
    files.sync_folder(data)
    if final.exists():  # The old one stays until here.
      os.rename(final, _replaced(final))
    os.rename(data, final)
    files.sync_folder(final.parent)

  def _describe(self, folder: pathlib.Path, splits: dict[str, Any]) -> None:
    """Writes what TFDS wants to know of a data set."""
    builder, names = self._builder, [*self._labels]
    side = "-1" if self._options.short_side else str(builder.side or -1)
    shape = {"dimensions": [side, side, "1" if builder.side else "3"]}
    image: dict[str, Any] = {"dtype": "uint8", "shape": shape}
    image |= {"encodingFormat": "png"} if int(side) > 0 else {}

    def feature(python: str, key: str, content: Any) -> dict[str, Any]:
      return {"pythonClassName": f"{_FEATURE}.{python}", key: content}

    count = {"numClasses": str(len(names))}
    label = feature("class_label_feature.ClassLabel", "classLabel", count)
    labels = {builder.label: names}
    features = {
      "image": feature("image_feature.Image", "image", image),
      builder.label: label,
      "file_name": feature("text_feature.Text", "text", {}),
    }
    if builder.label == "original_label":
      labels["real_label"] = names
      several = {"feature": label, "length": "-1"}
      features["real_label"] = feature(
        "sequence_feature.Sequence", "sequence", several
      )
    keys = [{"featureKey": key} for key in ("image", [*labels][-1])]
    info = {
      **self._about,
      "version": builder.version,
      "supervisedKeys": {"tuple": {"items": keys}},
    }
    stored.write(folder, info, features, labels, splits)
