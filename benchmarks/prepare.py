"""How fast ImageNet-21k is prepared, and in how much memory.

  python -m benchmarks.prepare [--images=6000] [--rounds=3] [--classes=100]
    [--scratch=DIR]

Makes a tar of tars as image-net.org hands out, of the photographs that
`benchmarks.input` has, and prepares it by the command that users type. Prints
the images a second and the memory of the largest process. Decoding takes most
of the time, so the rate grows with the cores. `--scratch` needs 3 x the images,
of 0.1 MB.
"""

import io
import pathlib
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

import benchmarks
from benchmarks import input as photographs
from mixer.errors import UserError

FLAGS = {"images": 6000, "classes": 100, "rounds": 3, "scratch": ""}


def make_tar(path: pathlib.Path, images: int, classes: int) -> None:
  """Writes the tar of tars; a comment gives every image other bytes."""
  files = photographs.make_files()

  def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))

  with tarfile.open(path, "w") as outer:
    for k in range(classes):
      part, wnid = io.BytesIO(), f"n{k + 1:08}"
      with tarfile.open(fileobj=part, mode="w") as inner:
        for i in range(k, images, classes):
          data, comment = files[i % len(files)], b"\xff\xfe\x00\x0e%012d" % i
          add(inner, f"{wnid}_{i}.JPEG", data[:2] + comment + data[2:])
      add(outer, f"{wnid}.tar", part.getvalue())


def prepare(tar: pathlib.Path) -> float:
  """Seconds of a preparation."""
  with tempfile.TemporaryDirectory(dir=tar.parent) as folder:
    words = [
      *(sys.executable, "-m", "mixer", "prepare", "imagenet21k"),
      *(f"--source={tar}", f"--data_dir={folder}", "--hold_out=test=1%"),
    ]
    start, root = time.perf_counter(), benchmarks.ROOT
    done = subprocess.run(words, cwd=root, stdout=subprocess.DEVNULL)
    if done.returncode:
      raise UserError(f"{' '.join(words)} failed; its error is above.")
    return time.perf_counter() - start


def measure(args: Any) -> benchmarks.Rows:
  """The one row."""
  with tempfile.TemporaryDirectory(dir=args.scratch or None) as folder:
    tar = pathlib.Path(folder) / "winter21_whole.tar"
    make_tar(tar, args.images, args.classes)
    seconds = [prepare(tar) for _ in range(args.rounds)]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    yield {
      "images": args.images,
      "kB each": tar.stat().st_size / args.images / 1e3,
      "prepared/s": [args.images / s for s in seconds],
      "peak MB": peak / (1e6 if sys.platform == "darwin" else 1e3),
    }


if __name__ == "__main__":
  sys.exit(benchmarks.main(__doc__, measure, FLAGS))
