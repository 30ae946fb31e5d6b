"""Small sets of images in the forms in which ImageNet is handed out."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from mixer.datasets.sources.member import Member, Source

# WordNet ids in the order of a tar, which isn't sorted.
CLASSES = ("n02084071", "n01440764", "n12345678")


def image(number: int, size: int = 8, format: str = "JPEG") -> bytes:
  rng = np.random.default_rng(number)
  pixels = rng.integers(0, 256, (size, size, 3)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, format)
  return file.getvalue()


def images(per_class: int = 3) -> dict[str, bytes]:
  """Name -> bytes, class by class."""
  return {
    f"{wnid}/{wnid}_{k}.JPEG": image(100 * c + k)
    for c, wnid in enumerate(CLASSES)
    for k in range(per_class)
  }


def tar(files: dict[str, bytes], **kwargs) -> bytes:
  """A tar, as GNU tar writes it; mode="w:gz" and the like."""
  kwargs = {"format": tarfile.GNU_FORMAT, "mode": "w", **kwargs}
  content = io.BytesIO()
  with tarfile.open(fileobj=content, **kwargs) as archive:
    for name, data in files.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return content.getvalue()


def class_tars(files: dict[str, bytes]) -> dict[str, bytes]:
  """Name of a class's tar -> the tar."""
  classes: dict[str, dict[str, bytes]] = {}
  for name, data in files.items():
    wnid, base = name.split("/")
    classes.setdefault(wnid, {})[base] = data
  return {f"{wnid}.tar": tar(inner) for wnid, inner in classes.items()}


def write(root: Path, files: dict[str, bytes]) -> Path:
  for name, data in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return root


def members(source: Source, start: int = 0) -> list[Member]:
  return [member for member, _ in source.members(start)]


def contents(source: Source) -> dict[str, bytes]:
  """Name -> bytes; every member's name is its own, and none has an error."""
  found = members(source)
  assert not [m for m in found if m.error]
  assert len({m.name for m in found}) == len(found)
  return {m.name: m.data for m in found}


def check_start(source: Source) -> None:
  """Members from any number on are the last ones of all."""
  everything = list(source.members())
  done = [d for _, d in everything]
  assert done == sorted(done)
  assert not done or 0 < done[-1] <= source.total_bytes
  for start in range(len(everything) + 2):
    assert list(source.members(start)) == everything[start:]
