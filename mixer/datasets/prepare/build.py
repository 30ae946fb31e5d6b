"""From a source of images to a TFDS data set in ArrayRecord files.

One pass over the source, in its order, which draws the splits; then splits are
shuffled that need it, and a rename puts the whole where readers look.
"""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from typing import Any

from mixer import errors, files, inspection
from mixer.datasets import stored
from mixer.datasets.prepare import journal
from mixer.datasets.prepare.journal import Options, Work
from mixer.datasets.prepare.request import Spec
from mixer.datasets.prepare.sources import Member, Source
from mixer.errors import UserError
from mixer.progress import Progress

REPORT = "report.tsv"
PREPARATION = "preparation.json"
# Files after which their share of bad ones says something about the source; of
# a smaller one it is judged at the end.
_JUDGED_AFTER = 1000
_IN_FLIGHT_BYTES = 128 << 20  # Of images that wait for a thread, or for us.
HoldOut = Mapping[str, int | float]  # Split -> number or share of the images.
# Takes the digest of an image, its label, and the split that its source names,
# or ""; gives its split, and kind and sentence of what is odd about it.
Place = Callable[[bytes, int, str], tuple[str, list[tuple[str, str]]]]
_IN_TWO = {"class": "in two classes", "split": "in two splits"}


def digest(data: bytes, seed: int) -> bytes:
  """The 128-bit keyed hash of an image's bytes."""
  key = seed.to_bytes(16, "little", signed=True)
  return hashlib.blake2b(data, digest_size=16, key=key).digest()


def by_hash(hold_out: HoldOut, images: int) -> Place:
  """Holds out, of so many images (0: unknown), those with a hash below a bound.

  That takes one pass, depends neither on the order of an archive nor on its
  form, and puts equal images on the same side. Their number is up to chance: k
  becomes k +- sqrt(k).
  """
  bounds: dict[str, int] = {}
  share = 0.0
  for split, wanted in hold_out.items():
    if isinstance(wanted, int) and wanted >= images:
      raise UserError(
        f"--hold_out asks for {wanted:,} images as {split}, of {images:,} (0: "
        f"unknown); ask for a share, as in --hold_out={split}=1%."
      )
    share += wanted / images if isinstance(wanted, int) else wanted
    bounds[split] = int(share * 2**128)  # Exact.

  def place(key: bytes, label: int, split: str):
    if split in bounds:
      raise UserError(
        f"--hold_out draws a split {split}, and the source has one of its own; "
        "leave it out of --hold_out."
      )
    number = int.from_bytes(key, "big")
    drawn = [s for s, bound in bounds.items() if number < bound]
    return split or (drawn or ["train"])[0], []

  return place


def by_class(
  hold_out: HoldOut, sizes: Mapping[str, int], labels: Mapping[str, int]
) -> Place:
  """Divides each class's images, in an order of chance; `sizes` by class.

  The first goes to `train`, the next to the held-out splits until they have
  their share, and the rest to `train`. So a class with a usable image has one
  in `train`, whatever files turn out bad, and one of two different images or
  more has a held-out one. An image that came before goes where it went then.
  """
  names, wanted = [*labels], shares(sizes, hold_out)
  counts = Counter[tuple[str, str]]()  # By class and split.
  seen: dict[bytes, tuple[str, str]] = {}

  def place(key: bytes, label: int, split: str):
    name = names[label]
    if not split:
      split = seen[key][1] if key in seen else draw(name)
    before = seen.setdefault(key, (name, split))
    counts[name, split] += 1
    odd = []
    for what, then, now in zip(_IN_TWO, before, (name, split), strict=True):
      if then != now:
        same = f"has the same bytes as an image before it of the {what} {then}"
        odd.append((_IN_TWO[what], same))
    return split, odd

  def draw(name: str) -> str:
    if counts[name, "train"]:
      for split in hold_out:
        if counts[name, split] < wanted[split][name]:
          return split
    return "train"

  return place


def shares(
  sizes: Mapping[str, int], hold_out: HoldOut
) -> dict[str, dict[str, int]]:
  """Split -> class -> images that it gets, of so many files of each class.

  A share is met class by class, by one image at least; a number exactly, in
  proportion, by largest remainders. Each class keeps an image for `train`.
  """
  spare = {name: max(0, size - 1) for name, size in sizes.items()}
  drawn = {}
  for split, wanted in hold_out.items():
    total = sum(spare.values())
    if isinstance(wanted, float):
      parts = {
        name: min(left, max(1, round(wanted * sizes[name])))
        for name, left in spare.items()
      }
    elif wanted > total:
      raise UserError(
        f"--hold_out asks for {wanted:,} images as {split}, and {total:,} can "
        "be spared: each class keeps one for train. Ask for fewer."
      )
    else:
      parts = {name: wanted * left // total for name, left in spare.items()}
      rests = {name: wanted * left % total for name, left in spare.items()}
      by_rest = sorted(rests, key=lambda name: (-rests[name], name))
      for name in by_rest[: wanted - sum(parts.values())]:
        parts[name] += 1
    drawn[split] = parts
    spare = {name: left - parts[name] for name, left in spare.items()}
  return drawn


_Inspected = tuple[Member, int, inspection.Inspected, bytes]


def _inspect(work: Work, member: Member, done: int) -> _Inspected:
  """A member with the work done, its image to store, and its bytes' digest."""
  error = member.error
  if not error and member.class_name not in work.labels:
    error = f"its class {member.class_name!r} is none of {len(work.labels):,}"
  if error:
    return member, done, inspection.Inspected(b"", "unreadable", error), b""
  ways = ("upright", "white_ground", "short_side", "quality")
  ways = {way: getattr(work.options, way) for way in ways}
  found = inspection.inspect(member.data, member.name, **ways)
  key = digest(member.data, work.options.seed)
  # The pixels are overwritten by the next image of the thread.
  return member, done, found._replace(pixels=None), key


def _inspected(work: Work) -> Generator[_Inspected]:
  """Inspects images in threads; results in order, memory bounded."""
  waiting: deque[tuple[int, concurrent.futures.Future]] = deque()
  total, cores = 0, len(os.sched_getaffinity(0))
  with concurrent.futures.ThreadPoolExecutor(cores) as pool:
    try:
      members = work.source.members(work.members)
      for item in itertools.chain(members, [None]):
        if item:
          size = len(item[0].data) + 1000
          total += size
          waiting.append((size, pool.submit(_inspect, work, *item)))
        while waiting and (
          not item or total > _IN_FLIGHT_BYTES or waiting[0][1].done()
        ):
          size, future = waiting.popleft()
          total -= size
          yield future.result()
    finally:
      pool.shutdown(cancel_futures=True)


def _read(work: Work, progress: Progress) -> None:
  """The pass over the source, from where it was committed."""
  source, options, spec = work.source, work.options, work.spec
  images = spec.releases[work.info.get("configName", "")]
  shuffled = {*options.shuffle}
  if source.class_sizes is not None:
    place = by_class(options.hold_out, source.class_sizes, work.labels)
  else:
    place = by_hash(options.hold_out, images)
    shuffled |= {*options.hold_out}
  for key, label, split in work.all("rows"):
    place(bytes.fromhex(key), label, split)
  policies = {"": "keep", "dark": "keep", "mislabelled": options.mislabelled}
  with contextlib.closing(_inspected(work)) as results:  # Ends the threads.
    for member, done, found, key in results:
      work.members += 1
      work.chunk["members"] += 1
      work.new_bytes += len(member.data)
      policy = policies.get(found.kind, options.bad)
      problems = [(found.kind, found.problem)] if found.kind else []
      if policy == "keep":
        label = work.labels[member.class_name]
        split, odd = place(key, label, member.split)
        problems += odd
        if source.class_sizes is not None:
          work.chunk["rows"].append((key.hex(), label, split))
        if split not in work.writers:
          work.writers[split] = work.shard(split)
        shard, name = work.writers[split], member.name.encode()
        if split in shuffled:
          shard.entry["keys"].append((key + name).hex())
        features = {"image": found.data, "file_name": name}
        features |= {spec.label: (label,), **dict(member.more)}
        shard.write(stored.encode(features))
        work.counts[split] += 1
      work.chunk["problems"] += [(k, member.name, what) for k, what in problems]
      if policy == "fail" or (
        policy == "skip" and work.members >= _JUDGED_AFTER
      ):
        _judge(work, 0 if policy == "fail" else options.max_bad)
      total = source.total or images
      progress.show("preparing", done, total, work.counts.total())
      work.commit(ended=False)
  _judge(work, options.max_bad)
  work.commit(ended=True)
  lacking = [split for split in options.hold_out if not work.counts[split]]
  source.warn("splits have no image, of so few", lacking)
  trained = {label for _, label, split in work.all("rows") if split == "train"}
  rest = {label for _, label, _ in work.all("rows")} - trained
  names = [name for name, label in work.labels.items() if label in rest]
  source.warn("classes have images, but none in train", names)
  for warning in source.warnings:
    progress.say(f"warning: {warning}.")


def _judge(work: Work, most: float) -> None:
  """Stops where it isn't some bad files, but a bad source."""
  if work.left_out > most * work.members or not work.counts:
    rows = [*work.all("problems"), *work.chunk["problems"]]
    kind, name, what = rows[-1] if rows else ("empty", "all", "no image")
    raise UserError(
      f"{work.left_out:,} of {work.members:,} files can't be used, such as "
      f"{name} ({kind}: {what}). Get a whole copy, mend these files, or go on "
      "without them by --bad=skip, --mislabelled=keep and --max_bad=1."
    )


def _check_room(work: Work) -> None:
  """Refuses at once what would fill the disk after hours."""
  # Twice what is shuffled. How small resized images get isn't known.
  need = (1 + bool(work.options.shuffle)) * work.source.total_bytes
  need *= not work.options.short_side
  need -= sum(shard["bytes"] for shard in work.all("shards"))
  free = shutil.disk_usage(work.folder).free
  if free < 1.02 * need:  # ArrayRecord's own bytes.
    raise UserError(
      f"{work.folder} has {free / 1e9:.3f} GB free, and the data set takes up "
      f"to {need / 1e9:.3f} GB more. Make room, or name another --data_dir=DIR."
    )


def prepare(
  source: Source,
  final: pathlib.Path,
  info: dict[str, Any],
  spec: Spec,
  options: Options,
  progress: Progress,
) -> str:
  """Makes the data set of a folder, or continues with it; says what was odd.

  `info` is what TFDS wants to know: `name`, `description`, any `configName`.
  """
  with journal.disk(journal.beside(final)):
    work = Work(source, journal.beside(final), info, spec, options)
    if not (work.entries and work.entries[-1]["ended"]):
      _check_room(work)
      _read(work, progress)
    # Nobody takes a folder of that name for a data set.
    data = work.folder / f"{stored.PREPARING}data"
    data.mkdir(exist_ok=True)
    splits, digests = {}, {}
    # `train` first, then by name: the same whatever came first.
    for split in sorted(work.counts, key=lambda name: (name != "train", name)):
      shards = [
        shard for shard in work.all("shards") if shard["split"] == split
      ]
      if any(shard["keys"] for shard in shards):
        shards = journal.shuffled(work, shards, progress)
      size = sum(shard["bytes"] for shard in shards)
      splits[split] = [shard["images"] for shard in shards], size
      for i, shard in enumerate(shards):
        end = f"{i:05}-of-{len(shards):05}"
        path = data / f"{info['name']}-{split}.array_record-{end}"
        if not path.exists():
          (work.folder / "shards" / shard["file"]).rename(path)
        digests[path.name] = shard["sha256"]
    journal.describe(work, data, splits)
    stored.seal(data, digests)
    rows = [["kind", "file", "what"], *work.all("problems")]
    lines = ("\t".join(map(errors.printable, row)) + "\n" for row in rows)
    (data / REPORT).write_text("".join(lines), "utf-8")
    record = {"from": source.description, "identity": work.identity}
    (data / PREPARATION).write_text(json.dumps(record, indent=2) + "\n")
    for path in data.iterdir():
      journal.sync(path)
    files.sync_folder(data)
    if final.exists():  # The old one stays until here.
      os.rename(final, journal.beside(final, "-replaced"))
    os.rename(data, final)
    files.sync_folder(final.parent)
    journal.clean(final)
  kinds = Counter(kind for kind, *_ in work.all("problems"))
  found = [f"{n:,} {kind}" for kind, n in sorted(kinds.items())] or ["none"]
  return (
    f"{work.left_out:,} files are left out; with problems: "
    f"{', '.join(found)}; listed in {final / REPORT}"
  )
