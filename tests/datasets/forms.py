"""Small sets of images in every form that `mixer prepare` takes.

The images are PPMs under any name: their bytes don't depend on an encoder.
"""

import gzip
import io
import json
import pathlib
import struct
import tarfile

import numpy as np

from mixer.datasets import wordnet

# WordNet ids in the order of a tar, which isn't sorted.
CLASSES = ("n02084071", "n01440764", "n12345678")
# Not in the order of their numbers, as in the real one.
NUMBERS = (3, 50_000, 1, 2, 41)
V2_TOP = "imagenetv2-matched-frequency-format-val"


def image(number: int, height: int = 6, width: int = 8) -> bytes:
  noise = np.random.default_rng(number).bytes(3 * height * width)
  return b"P6 %d %d 255\n" % (width, height) + noise


def images(per_class: int = 3) -> dict[str, bytes]:
  """Name -> bytes, class by class."""
  return {
    f"{wnid}/{wnid}_{k}.ppm": image(100 * c + k)
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


def write(root: pathlib.Path, files: dict[str, bytes]) -> pathlib.Path:
  for name, data in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return root


def imagenet21k(root: pathlib.Path, per_class: int = 20) -> pathlib.Path:
  """The whole set as tar.gz, tar, tar of folders, tars and folders."""
  files = images(per_class)
  whole = tar(class_tars(files))
  write(root / "tars", class_tars(files))
  write(root / "folders", files)
  return write(
    root,
    {
      "winter21_whole.tar.gz": gzip.compress(whole),
      "fall11_whole.tar": whole,
      "folders.tar": tar({f"./top/{name}": d for name, d in files.items()}),
    },
  )


def imagenet21k_p(root: pathlib.Path) -> pathlib.Path:
  """The processed set as tar.gz and in folders."""
  files = {
    f"imagenet21k_resized/imagenet21k_{split}/{wnid}/{k}.ppm": image(k)
    for split, numbers in (("train", range(9)), ("val", range(9, 12)))
    for wnid in ("n02084071", "n01440764")
    for k in numbers
  }
  small = "imagenet21k_resized/imagenet21k_small_classes/n00000009/1.ppm"
  packed = gzip.compress(tar(files | {small: image(1)}))
  write(root / "folders", files)
  return write(root, {"imagenet21k_resized.tar.gz": packed})


def ilsvrc(root: pathlib.Path) -> pathlib.Path:
  """ImageNet-1k's two tars, and the ReaL labels."""
  wnids = [wordnet.classes("imagenet1k")[k] for k in (5, 0, 999)]
  train = {
    f"{wnid}/{wnid}_{k}.JPEG": image(10 * c + k)
    for c, wnid in enumerate(wnids)
    for k in range(3)
  }
  val = {f"ILSVRC2012_val_{n:08}.JPEG": image(1000 + n) for n in NUMBERS}
  real = [[] if n % 3 == 0 else [n % 7, n % 1000] for n in range(50_000)]
  return write(
    root,
    {
      "ILSVRC2012_img_train.tar": tar(class_tars(train)),
      "ILSVRC2012_img_val.tar": tar(val),
      "real.json": json.dumps(real).encode(),
    },
  )


def imagenet_v2(root: pathlib.Path) -> pathlib.Path:
  files = {
    f"{V2_TOP}/{k}/{n}.jpeg": image(10 * k + n)
    for k in (0, 1, 10, 2, 999)
    for n in range(3)
  }
  name = "imagenetv2-matched-frequency.tar.gz"
  return write(root, {name: gzip.compress(tar(files))} | files)


def idx(values: np.ndarray) -> bytes:
  """As its author describes the format."""
  magic = bytes([0, 0, 8, values.ndim])
  return magic + struct.pack(f">{values.ndim}I", *values.shape) + bytes(values)


def mnist(root: pathlib.Path, form="{}-{}-idx{}-ubyte.gz") -> pathlib.Path:
  rng = np.random.default_rng(0)
  for begin, size in (("train", 23), ("t10k", 7)):
    pixels = rng.integers(0, 256, (size, 28, 28)).astype(np.uint8)
    labels = rng.integers(0, 10, size).astype(np.uint8)
    for kind, values in (("images", pixels), ("labels", labels)):
      name = form.format(begin, kind, values.ndim)
      data = idx(values)
      data = gzip.compress(data, 1) if name.endswith(".gz") else data
      write(root, {name: data})
  return root


def photos(root: pathlib.Path, splits: bool = False) -> pathlib.Path:
  """A user's folder: three classes, and all that may come along."""
  files = {
    f"{c}/{i}.ppm": image(100 * k + i)
    for k, c in enumerate(("cat", "d\u00f6g", "eel"))
    for i in range(25)
  }
  files |= {
    "cat/mislabelled.jpg": image(901),
    "cat/empty.ppm": b"",
    "cat/cut.ppm": image(902)[:60],
    "cat/sub/1.ppm": image(903),
    "eel/film.mp4": b"z",
    "eel/copy.ppm": files["cat/3.ppm"],
    "eel/page.jpg": b"<html>404",
  }
  if splits:
    names = enumerate(sorted(files))
    moved = {n: f"{'train' if i % 3 else 'val'}/{n}" for i, n in names}
    return write(root, {moved[name]: data for name, data in files.items()})
  return write(root, files | {".h/1.ppm": image(904), "1.ppm": image(905)})
