"""Reads a source to its end, once, and commits chunk by chunk."""

from collections.abc import Callable, Mapping

import numpy as np

from mixer.datasets.preparation import (
  build_classes,
  build_draw,
  build_files,
  build_journal,
  build_workers,
)
from mixer.datasets.preparation.build_draw import DIGEST_BYTES
from mixer.datasets.preparation.build_options import Options, Progress
from mixer.datasets.preparation.build_seen import Seen
from mixer.datasets.sources.member import Member, Source
from mixer.errors import UserError

# Files after which their share of bad ones says something about the source; of
# a smaller one it is judged at the end.
_JUDGED_AFTER = 1000


def read(
  source: Source,
  journal: build_journal.Journal,
  options: Options,
  labels: Mapping[str, int],
  progress: Callable[[Progress], None],
  committed: Callable[[], None] = lambda: None,
  label_feature: str = "label",
) -> None:
  """Reads what the journal doesn't have yet.

  Args:
    source: where the images come from.
    journal: of what was done; gets the chunks.
    options: as asked for.
    labels: class name -> label.
    progress: told after every few images.
    committed: called after each chunk; may raise.
    label_feature: what the label is called in a record.

  Raises:
    UserError: of the source, of the disk, of the images.
  """
  if journal.ended:
    return
  reader = _Reader(source, journal, options, labels, label_feature)
  resumed = journal.totals.members

  def tell() -> None:
    problems = reader.problems
    progress(
      Progress(
        stage="reading",
        bytes_done=reader.bytes_done,
        bytes_total=source.total_bytes,
        images=reader.images,
        bad=build_journal.bad(problems),
        mislabelled=problems.get(build_journal.MISLABELLED, 0),
        duplicates=problems.get(build_journal.DUPLICATE, 0),
        resumed=resumed,
      )
    )

  tell()
  todo = build_workers.batches(source.members(start=resumed), options)
  results = build_workers.inspected(todo, options)
  try:
    for batch, outcomes in results:
      reader.add(batch, outcomes)
      if batch.ends_chunk:
        reader.commit()
        committed()
      tell()
    reader.judge(at_end=True)
    if reader.places is not None:
      found = reader.places.warnings()
      source.warnings += [w for w in found if w not in source.warnings]
    tell()  # Of warnings, too, that came at the end.
  finally:
    # Ends the workers at once, not when the garbage is collected.
    results.close()
    reader.close()
  # Not every source has any.
  journal.end(getattr(source, "warnings", ()))


class _Reader:
  """The chunk at work, and what is known of all before it."""

  def __init__(
    self,
    source: Source,
    journal: build_journal.Journal,
    options: Options,
    labels: Mapping[str, int],
    label_feature: str,
  ):
    self._label_feature = label_feature
    self._journal = journal
    self._options = options
    self._labels = labels
    self.places = None
    self._seen = Seen() if options.drop_duplicates else None
    hold_out = options.hold_out
    sizes = build_classes.sizes(source)
    if sizes is not None:
      splits = getattr(source, "splits", ())
      self.places = build_classes.Places(labels, splits, sizes, hold_out)
      self._seen, hold_out = None, {}
    self._candidates = build_draw.Candidates(hold_out)
    self._first_bad = ""
    for chunk in journal.chunks():
      self._candidates.commit(map(bytes.fromhex, chunk.candidates))
      for problem in chunk.problems:
        self._remember(*problem)
      if self._seen is not None:
        path = journal.shards / chunk.hashes
        self._seen.commit(build_files.read_array(path, np.dtype(np.uint64)))
      if self.places is not None:
        path = journal.shards / chunk.hashes
        self.places.commit(build_files.read_array(path, build_classes.ROW))
    self.bytes_done = journal.totals.bytes_done
    self._clear()

  def _clear(self) -> None:
    self._shards: dict[str, build_files.ShardWriter] = {}
    self._keys: list[bytes] = []
    self._problems: list[tuple[str, str, str]] = []
    self._members = 0
    self.problems = dict(self._journal.totals.problems)
    self.images = self._journal.totals.images

  def add(
    self, batch: build_workers.Batch, outcomes: list[build_workers.Outcome]
  ) -> None:
    """Writes the images of a batch."""
    digests = b"".join(outcome.digest for outcome in outcomes)
    # Of 128 bits the first 64.
    hashes = np.frombuffer(digests, ">u8")[:: DIGEST_BYTES // 8]
    hashes = hashes.astype(np.uint64)
    found = np.full(len(outcomes), -1)
    if self._seen is not None:
      found = self._seen.known(hashes) - 1
    if self.places is not None:
      found = self.places.find(hashes)
    i = 0
    for member in batch.members:
      if member.error:
        self._problem("unreadable", member.name, member.error)
        continue
      outcome = outcomes[i]
      number, before = int(hashes[i]), int(found[i])
      i += 1
      kept = outcome.kind in ("", build_journal.DARK) or (
        outcome.kind == build_journal.MISLABELLED
        and self._options.on_mislabelled == "keep"
      )
      if not kept:
        self._problem(outcome.kind, member.name, outcome.problem)
        continue
      if self._options.drop_duplicates and self._repeats(number, before):
        self._problem(
          build_journal.DUPLICATE,
          member.name,
          "has the same bytes as an image before it",
        )
        continue
      if outcome.problem:
        self._problem(outcome.kind, member.name, outcome.problem)
      self._write(member, outcome, number, before)
    self._members += len(batch.members)
    self.bytes_done = batch.bytes_done
    self.judge()

  def _repeats(self, number: int, before: int) -> bool:
    if self.places is not None:
      return not self.places.is_new(number, before)
    return before >= 0 or (
      self._seen is not None and not self._seen.add(number)
    )

  def _problem(self, kind: str, name: str, sentence: str) -> None:
    option = "on_bad" if build_journal.bad({kind: 1}) else ""
    if kind == build_journal.MISLABELLED:
      option = "on_mislabelled"
    if option and getattr(self._options, option) == "fail":
      raise UserError(
        f"{name} can't be used ({kind}): {sentence.rstrip('.')}. Mend it, or "
        f"leave such files out with --{option}=skip; the images before it that "
        "were committed are kept."
      )
    self._problems.append((kind, name, sentence))
    self.problems[kind] = self.problems.get(kind, 0) + 1
    self._remember(kind, name, sentence)

  def _remember(self, kind: str, name: str, sentence: str) -> None:
    if not self._first_bad and build_journal.bad({kind: 1}):
      self._first_bad = f"{name}: {sentence.rstrip('.')}"

  def judge(self, at_end: bool = False) -> None:
    """Stops where it isn't some bad files, but a bad source.

    Raises:
      UserError: too many are bad.
    """
    files = self._journal.totals.members + self._members
    bad = build_journal.bad(self.problems)
    if at_end and not self.images:
      raise UserError(
        f"There is no image to be used among the {files:,} files of the "
        f"source{f' ({self._first_bad})' if bad else ''}; look at what "
        "--source names."
      )
    if (
      at_end or files >= _JUDGED_AFTER
    ) and bad > self._options.max_bad * files:
      raise UserError(
        f"{bad:,} of the {'' if at_end else 'first '}{files:,} files can't be "
        "used, such as "
        f"{self._first_bad}. That looks like a broken copy or another kind of "
        "source: check it (by its checksum, if there is one), or go on all "
        "the same with --max_bad=1; the images so far are kept."
      )

  def _write(
    self,
    member: Member,
    outcome: build_workers.Outcome,
    number: int,
    before: int,
  ) -> None:
    try:
      label = self._labels[member.class_name]
    except KeyError:
      raise UserError(
        f"{member.name} is of the class {member.class_name!r}, which is not "
        f"among the {len(self._labels):,} classes of the data set; check that "
        "--source is of that set."
      ) from None
    split = member.split or "train"
    if self.places is not None:
      split, odd = self.places.place(number, before, label, member.split)
      for kind, sentence in odd:
        self._problem(kind, member.name, sentence)
    if not member.split and split == "train":
      key = build_draw.key(outcome.digest, member.name)
      if self._options.shuffle or self._candidates.enters(key):
        self._keys.append(key)
        split = ""
    elif self.places is None and split in self._options.hold_out:
      raise UserError(
        f"--hold_out draws a split {split}, and the source has one of its own "
        f"({member.name}); leave it out of --hold_out."
      )
    if split not in self._shards:
      # The number comes first, so that no name of a split is mistaken.
      name = f"{self._journal.totals.chunks:05}-{split}.array_record"
      self._shards[split] = build_files.ShardWriter(self._journal.shards / name)
    self._shards[split].write(
      build_files.encode(
        member.data if outcome.data is None else outcome.data,
        member.name.encode(errors="surrogateescape"),
        {self._label_feature: (label,), **dict(member.more)},
      )
    )
    self.images += 1

  def commit(self) -> None:
    """Ends the chunk, for good."""
    shards = [writer.close(split) for split, writer in self._shards.items()]
    hashes = ""
    for kept in (self._seen, self.places):
      if kept is not None:
        chunk = kept.take_chunk()
        hashes = f"{self._journal.totals.chunks:05}.hashes"
        build_files.write_array(self._journal.shards / hashes, chunk)
        kept.commit(chunk)
    self._journal.commit(
      build_journal.Chunk(
        members=self._members,
        bytes_done=self.bytes_done,
        shards=tuple(shards),
        candidates=tuple(key.hex() for key in self._keys),
        problems=tuple(self._problems),
        hashes=hashes,
      )
    )
    self._candidates.commit(self._keys)
    self._clear()

  def close(self) -> None:
    """Lets go of a chunk that isn't committed."""
    for writer in self._shards.values():
      writer.abandon()
