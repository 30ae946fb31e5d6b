"""Small sets from their makers' own files: MNIST, CIFAR, Pets, Flowers."""

import gzip
import io
import math
import pathlib
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from mixer import files
from mixer.datasets.prepare import sources, tars
from mixer.datasets.prepare.request import Request
from mixer.datasets.prepare.sources import Member, Source
from mixer.errors import UserError

_LABELS = pathlib.Path(__file__).parents[1] / "labels"

# The idx files of MNIST and its like: a magic number and the sizes of the axes,
# as big-endian 32-bit integers, and the values
# (https://yann.lecun.com/exdb/mnist/).
_SIDE = 28
CLASSES = {
  "mnist": tuple("0123456789"),
  "fashion_mnist": (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt",
    "Sneaker", "Bag", "Ankle boot",
  ),
}  # fmt: skip
# How labels of `train` begin: both have the same names of files.
_BEGIN = {"mnist": [5, 0, 4, 1], "fashion_mnist": [9, 0, 0, 3]}
# The arrays of setid.mat.
_FLOWER_SPLITS = {"trnid": "train", "valid": "validation", "tstid": "test"}
_MOST_BYTES = 1 << 30


def idx(request: Request) -> Source:
  """Four idx files in a folder; members in their order, train first."""
  (folder, *_), name = request.paths, request.base
  paths, arrays, sets = [], {}, {}
  for split, begin in (("train", "train"), ("test", "t10k")):
    for kind, axes in (("images", 3), ("labels", 1)):
      # Some copies have a dot for the second dash; some are packed.
      found = sorted(folder.glob(f"{begin}-{kind}[-.]idx{axes}-ubyte*"))
      if not found:
        raise request.unfit(f"{folder} has no {begin}-{kind}-idx{axes}-ubyte")
      paths.append(found[0])
      arrays[split, axes] = _read_idx(found[0], axes)
    images, labels = arrays[split, 3], arrays[split, 1]
    is_other = [*labels[:4]] in [v for k, v in _BEGIN.items() if k != name]
    shape = len(labels), _SIDE, _SIDE
    if is_other or images.shape != shape or labels.max(initial=0) > 9:
      raise request.unfit(f"{folder} holds the files of another set")
    sets[split] = images, labels
  return _of_arrays(f"idx files ({folder})", paths, sets, CLASSES[name])


def _of_arrays(
  what: str,
  paths: Sequence[Path],
  sets: Mapping[str, tuple[np.ndarray, np.ndarray]],
  names: Sequence[str],
) -> Source:
  """PNGs of each split's pixels, uint8 [N, H, W, ...], and labels [N]."""

  def read(start: int) -> Iterator[tuple[Member, int]]:
    number = 0
    for split, arrays in sets.items():
      for i, (pixels, label) in enumerate(zip(*arrays, strict=True)):
        data = _png(np.ascontiguousarray(pixels)) if number >= start else b""
        number += 1
        # Without a class, a label that no class has is reported.
        known = names[int(label)] if label < len(names) else ""
        yield Member(f"{split}/{i:05}.png", known, split, data), number

  total = sum(len(labels) for _, labels in sets.values())
  size = sum(images.nbytes for images, _ in sets.values())
  return Source(what, sources.fingerprint(paths), read, total, size, names)


def _read_idx(path: Path, axes: int) -> np.ndarray:
  """The values of an idx file of so many axes, uint8."""
  content = files.read_bytes(path, "an idx file")
  try:
    # By its content: browsers unpack on the way, and keep the name.
    if content.startswith(b"\x1f\x8b"):
      with gzip.open(io.BytesIO(content)) as packed:
        content = packed.read(_MOST_BYTES)
    magic, *sizes = struct.unpack_from(f">{1 + axes}I", content)
    values = np.frombuffer(content, np.uint8, offset=4 * (1 + axes))
    if magic == 0x800 + axes and math.prod(sizes) == values.size:
      return values.reshape(sizes)
    why = "its header is another"
  except (OSError, EOFError, ValueError, struct.error, zlib.error) as e:
    why = str(e)
  raise UserError(
    f"{path} is no idx file of {axes} axes, or damaged ({why}). Get it again."
  )


def _png(pixels: np.ndarray) -> bytes:
  Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
  return file.getvalue()


def cifar(request: Request) -> Source:
  """CIFAR-10's or CIFAR-100's binary form: rows of labels and 3 x 32 x 32."""
  path, fine = request.paths[0], request.base == "cifar100"
  form = "cifar-100-binary.tar.gz" if fine else "cifar-10-binary.tar.gz"
  if "python" in path.name:
    raise request.unfit(f"{path} holds pickles, which can run any code")
  parts = {"train": ["train.bin"], "test": ["test.bin"]}
  listed, count, labels = "fine_label_names.txt", 100, 2
  if not fine:
    parts = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)]}
    parts |= {"test": ["test_batch.bin"]}
    listed, count, labels = "batches.meta.txt", 10, 1
  wanted = [listed, *parts["train"], *parts["test"]]
  found = _content(path, wanted)
  names = tuple(found.get(listed, b"").decode().split())
  sets = {}
  for split, own in parts.items():
    data = b"".join(found.get(name, b"") for name in own)
    row = labels + 3072
    if len(names) != count or not data or len(data) % row:
      raise request.unfit(f"{path} is no whole {form}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, row)
    pixels = rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    sets[split] = pixels, rows[:, labels - 1]
  return _of_arrays(str(path), [path], sets, names)


def _content(path: Path, wanted: list[str]) -> dict[str, bytes]:
  """Files by name, of a folder and those in it, or of an archive."""
  if path.is_dir():
    places = [p for name in wanted for p in sorted(path.rglob(name))]
    return {p.name: p.read_bytes() for p in places}
  found, stream = {}, tars.Stream(path)
  try:
    for name, size, _ in tars.entries(stream):
      if PurePosixPath(name).name in wanted:
        found[PurePosixPath(name).name] = stream.read(size)
  except tars.BrokenError as e:
    raise UserError(
      f"{path} is no whole tar archive: {e}. Get it again."
    ) from e
  finally:
    stream.close()
  return found


def pets(request: Request) -> Source:
  """Oxford-IIIT Pet: images.tar.gz and annotations.tar.gz, or unpacked."""
  lists = {"trainval.txt": "train", "test.txt": "test"}
  place = request.only("annotations")
  rows: dict[str, tuple[str, str]] = {}
  numbers: dict[int, str] = {}
  for file, data in _content(place, [*lists]).items():
    for line in data.decode("utf-8", "replace").splitlines():
      # As "Abyssinian_100 1 1 1": name, class from 1, species, breed in it.
      if match := re.fullmatch(r"((\S+)_\d+) (\d+) \d+ \d+", line.strip()):
        numbers[int(match[3])] = match[2]
        rows[match[1]] = match[2], lists[file]
  if not rows:
    raise request.unfit(f"{place} has no lists of images")

  def layout(path: PurePosixPath) -> Member | None:
    if path.stem not in rows:  # Some are in no list.
      return None
    return Member(path.name, *rows[path.stem])

  names = [numbers[k] for k in sorted(numbers)]
  images = [request.only("images")]
  more = request.accept_truncated, sources.fingerprint([place])
  return tars.source(images, layout, names, *more)


def flowers(request: Request) -> Source:
  """Oxford Flowers-102: 102flowers.tgz or jpg/, imagelabels.mat, setid.mat."""
  from scipy import io as scipy_io  # Here, as few need it.

  places = [request.only(name) for name in ("imagelabels.mat", "setid.mat")]
  try:
    labels, sets = (scipy_io.loadmat(str(path)) for path in places)
    label = labels["labels"][0]
    splits = {
      int(k): split
      for key, split in _FLOWER_SPLITS.items()
      for k in sets[key][0]
    }
  except Exception as e:  # scipy raises anything at bytes of another kind.
    raise request.unfit(
      f"{sources.some(places)} are no whole files of MATLAB ({e})"
    ) from e
  listed = files.read_bytes(_LABELS / "flowers102.txt", "names of flowers")
  names = listed.decode().splitlines()

  def layout(path: PurePosixPath) -> Member | None:
    match = re.fullmatch(r"image_(\d{5})", path.stem)
    number = int(match[1]) if match else 0
    if number not in splits:
      return None
    return Member(path.name, names[label[number - 1] - 1], splits[number])

  packed = [*request.inside("102flowers"), *request.inside("jpg")]
  if not packed:
    raise request.unfit(f"{sources.some(request.paths)} has no 102flowers.tgz")
  more = request.accept_truncated, sources.fingerprint(places)
  return tars.source(packed[:1], layout, names, *more)
