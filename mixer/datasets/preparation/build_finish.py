"""Ends a preparation: draws the held-out splits, and makes the data set.

Each step is done anew if it was cut short, and gives the same.
"""

import collections
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
from tensorflow_datasets.core import naming, splits

from mixer.datasets import stored
from mixer.datasets.preparation import build_draw, build_files
from mixer.datasets.preparation.build_files import Shard
from mixer.datasets.preparation.build_journal import Journal
from mixer.datasets.preparation.build_options import Options, Progress
from mixer.errors import UserError, first_line

# Every file that is open costs some 100 kB, and there is a limit to them.
_OPEN_FILES = 128
REPORT = "report.tsv"
PREPARATION = "preparation.json"


class _Pool:
  """The records of the candidates, by number of chunk and of record."""

  def __init__(self, journal: Journal):
    self._paths = {
      number: journal.shards / shard.file
      for number, chunk in enumerate(journal.chunks())
      for shard in chunk.shards
      if not shard.split
    }
    self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()

  def read(self, chunk: int, record: int) -> bytes:
    path = self._paths[chunk]
    try:
      if chunk not in self._open:
        if len(self._open) >= _OPEN_FILES:
          self._open.popitem(last=False)[1].close()
        self._open[chunk] = array_record_module.ArrayRecordReader(
          str(path), "readahead_buffer_size:0"
        )
      self._open.move_to_end(chunk)
      return self._open[chunk].read([record])[0]
    except (OSError, RuntimeError, ValueError, IndexError) as e:
      raise UserError(
        f"{path} can't be read: {first_line(e)}. {build_files.RESTART}"
      ) from e

  def close(self) -> None:
    for reader in self._open.values():
      reader.close()
    self._open.clear()


def draw(
  journal: Journal, options: Options, progress: Callable[[Progress], None]
) -> None:
  """Writes the held-out splits, and to `train` the candidates left over.

  A held-out split's images come in the order of their keys, so that any slice
  of it is a fair sample.

  Raises:
    UserError: too few images; the disk refuses.
  """
  if journal.drawn() is not None:
    return
  total = sum(len(chunk.candidates) for chunk in journal.chunks())
  shards: list[Shard] = []
  writer: build_files.ShardWriter | None = None
  writer_split = ""
  pool = _Pool(journal)
  try:
    for done, (split, chunk, record) in enumerate(_order(journal, options), 1):
      if writer is not None and (
        split != writer_split
        or writer.images >= options.chunk_images
        or writer.bytes >= options.chunk_bytes
      ):
        shards.append(writer.close(writer_split))
        writer = None
      if writer is None:
        name = f"drawn-{len(shards):05}-{split}.array_record"
        writer = build_files.ShardWriter(journal.shards / name)
        writer_split = split
      writer.write(pool.read(chunk, record))
      if done % 100 == 0 or done == total:
        totals = journal.totals
        progress(Progress("drawing", done, total, totals.images, totals.bad))
    if writer is not None:
      shards.append(writer.close(writer_split))
  finally:
    pool.close()
  journal.commit_drawn(shards)


def _order(
  journal: Journal, options: Options
) -> Iterator[tuple[str, int, int]]:
  """Each candidate's split, chunk and place in it, as they are to be written.

  Raises:
    UserError: a held-out split gets too few, or `train` nothing.
  """
  candidates = build_draw.Candidates(options.hold_out)
  others = set()
  for chunk in journal.chunks():
    candidates.commit(map(bytes.fromhex, chunk.candidates))
    others |= {shard.split for shard in chunk.shards if shard.split}
  # Where counts are asked for, several times as many have been candidates as
  # are still: it would be a waste to remember where those are.
  places = {}
  total = 0
  for number, chunk in enumerate(journal.chunks()):
    total += len(chunk.candidates)
    for i, text in enumerate(chunk.candidates):
      key = bytes.fromhex(text)
      if candidates.may_be_chosen(key):
        places[key] = (number, i)
  chosen = build_draw.divide(places, options.hold_out)
  taken = {places[key] for keys in chosen.values() for key in keys}
  # A source may give its images another split, and none to train on.
  if total and len(taken) == total and "train" not in others:
    raise UserError(
      f"--hold_out takes all of the {total:,} images, and none is left for "
      "train; ask for fewer, with --restart."
    )
  for split, keys in chosen.items():
    for key in keys:
      yield split, *places[key]
  rest = (
    (text, number, i)
    for number, chunk in enumerate(journal.chunks())
    for i, text in enumerate(chunk.candidates)
    if (number, i) not in taken
  )
  # Hex digits sort as the bytes do.
  for _, number, i in sorted(rest) if options.shuffle else rest:
    yield "train", number, i


def assemble(
  journal: Journal,
  builder: tfds.core.GeneratorBasedBuilder,
  preparation: Mapping[str, Any],
) -> None:
  """Makes the data set of the shards and moves it to its place.

  Args:
    journal: has all; is gone afterwards.
    builder: whose set it is.
    preparation: for the record, in `preparation.json`.

  Raises:
    UserError: the disk refuses.
  """
  final = pathlib.Path(builder.data_dir)
  data = journal.folder / "data"
  shards = [s for c in journal.chunks() for s in c.shards if s.split]
  shards += journal.drawn() or ()
  by_split = collections.defaultdict(list)
  for shard in shards:
    by_split[shard.split].append(shard)
  with build_files.explained(data):
    data.mkdir(exist_ok=True)
    infos, digests = [], {}
    # `train` first, then by name: the same whatever came first.
    for split in sorted(by_split, key=lambda name: (name != "train", name)):
      of_split = by_split[split]
      template = naming.ShardedFileTemplate(
        data_dir=data,  # pyright: ignore[reportArgumentType]
        dataset_name=builder.name,
        filetype_suffix="array_record",
        split=split,
      )
      for i, shard in enumerate(of_split):
        target = pathlib.Path(
          template.sharded_filepath(shard_index=i, num_shards=len(of_split))
        )
        if not target.exists():
          (journal.shards / shard.file).rename(target)
        digests[target.name] = shard.sha256
      infos.append(
        splits.SplitInfo(
          name=split,
          shard_lengths=[shard.images for shard in of_split],
          num_bytes=sum(shard.bytes for shard in of_split),
          filename_template=template,
        )
      )
    builder.info.set_splits(splits.SplitDict(infos))
    builder.info.write_to_directory(data)
    stored.seal(data, digests)
    shutil.copyfile(journal.report, data / REPORT)
    record = dict(preparation) | {
      "problems": journal.totals.problems,
      "warnings": journal.warnings(),
    }
    (data / PREPARATION).write_text(json.dumps(record, indent=2) + "\n")
    for path in data.iterdir():
      # Shards are synced, but cheap to sync again.
      build_files.sync(path)
    build_files.sync(data)
    # So that `NAME` is found without its config, too.
    if builder.BUILDER_CONFIGS:
      folder = final.parent.parent / ".config"
      folder.mkdir(exist_ok=True)
      default = {"default_config_name": builder.BUILDER_CONFIGS[0].name}
      build_files.write_json(folder / "metadata.json", default)
    os.rename(data, final)
    build_files.sync(final.parent)
    build_files.sync(journal.folder)
  shutil.rmtree(journal.folder, ignore_errors=True)
