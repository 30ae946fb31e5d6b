"""How fast ImageNet-21k is prepared, and in how much memory.

  python -m benchmarks.prepare [--images=6000] [--side=400] [--rounds=3]
  python -m benchmarks.prepare --images=200000 --side=32 --rounds=1

Makes a tar of tars as image-net.org hands out, of noise that is as hard to
decode and as large as photographs, and then in turn: reads it to its end, which
no preparation can beat; and prepares it by the command that users type. Prints
the images a second of each and the most memory that the preparation took (of
all its processes, what they share counted once); writes
benchmarks/results/prepare_cpu.json. Decoding every image takes most of the
time, so the rate grows with the cores.
"""

import functools
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

import numpy as np
import psutil
from PIL import Image

import benchmarks
from mixer.errors import UserError

# Pictures are drawn so often, and then told apart by a comment.
_DRAWN = 64


@functools.cache
def picture(number: int, side: int) -> bytes:
  """A JPEG of 4:3 whose short side is near `side`."""
  rng = np.random.default_rng(number)
  short = int(side * rng.uniform(0.8, 1.2))
  # Coarse noise, as the detail of photographs is: 400 px make some 90 kB.
  small = rng.integers(0, 256, (short // 4 + 1, short // 3 + 1, 3), np.uint8)
  image = Image.fromarray(small).resize((short * 4 // 3, short))
  encoded = io.BytesIO()
  image.save(encoded, "JPEG", quality=90)
  return encoded.getvalue()


def make_tar(path: pathlib.Path, images: int, classes: int, side: int) -> None:
  """Writes the tar of tars; every image has other bytes."""

  def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))

  with tarfile.open(path, "w") as outer:
    for k in range(classes):
      part, wnid = io.BytesIO(), f"n{k + 1:08}"
      with tarfile.open(fileobj=part, mode="w") as inner:
        for i in range(k, images, classes):
          data = picture(i % _DRAWN, side)
          comment = b"\xff\xfe\x00\x0e%012d" % i
          add(inner, f"{wnid}_{i}.JPEG", data[:2] + comment + data[2:])
      add(outer, f"{wnid}.tar", part.getvalue())


def read_seconds(path: pathlib.Path) -> float:
  """Reads all images of it."""
  start = time.perf_counter()
  with tarfile.open(path, "r|") as outer:
    for part in outer:
      with tarfile.open(fileobj=outer.extractfile(part), mode="r|") as inner:
        for member in inner:
          file = inner.extractfile(member)
          assert file
          file.read()
  return time.perf_counter() - start


def memory(pid: int) -> int:
  """Bytes of a process and its children, shared pages by their share."""
  total = 0
  try:
    process = psutil.Process(pid)
    for one in (process, *process.children(recursive=True)):
      total += one.memory_full_info().pss
  except psutil.Error:
    pass  # Gone.
  return total


def prepare(tar: pathlib.Path) -> tuple[float, int]:
  """Seconds and peak memory of a preparation."""
  with tempfile.TemporaryDirectory(dir=tar.parent) as folder:
    words = [
      *(sys.executable, "-m", "mixer", "prepare", "imagenet21k"),
      *(f"--source={tar}", f"--data_dir={folder}", "--hold_out=test=1%"),
    ]
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(
      words, cwd=benchmarks.ROOT, stdout=subprocess.DEVNULL
    )
    while process.poll() is None:
      peak = max(peak, memory(process.pid))
      time.sleep(0.05)
    if process.returncode:
      raise UserError(f"{' '.join(words)} failed; its error is above.")
  return time.perf_counter() - start, peak


def body(args: Any) -> None:
  """Measures, prints and writes."""
  rows = []
  with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
    tar = pathlib.Path(folder) / "winter21_whole.tar"
    make_tar(tar, args.images, args.classes, args.side)
    kilobytes = tar.stat().st_size / args.images / 1e3
    read_seconds(tar)  # So that the first round finds it in memory too.
    benchmarks.head("images", "kB each", "read/s", "prepared/s", "peak MB")
    for _ in range(args.rounds):
      before = read_seconds(tar)
      seconds, peak = prepare(tar)
      # Around the preparation, so that a drift of the machine cancels.
      plain = (before + read_seconds(tar)) / 2
      rows.append({"read": plain, "prepare": seconds, "peak": peak})
      benchmarks.row(
        *(f"{args.images:,}", f"{kilobytes:.1f}"),
        *(f"{args.images / plain:,.0f}", f"{args.images / seconds:,.0f}"),
        f"{peak / 1e6:,.0f}",
      )
  record = {"images": args.images, "kilobytes": kilobytes, "rounds": rows}
  benchmarks.write("prepare", args, benchmarks.environment(), record)


def main() -> int:
  """Runs the command line."""
  parser = benchmarks.parser("prepare", __doc__)
  parser.set_defaults(rounds=3)
  parser.add_argument("--images", type=int, default=6000)
  parser.add_argument("--classes", type=int, default=100)
  parser.add_argument("--side", type=int, default=400, help="short, in pixels")
  parser.add_argument("--scratch", help="where to work; needs 3 x the images")
  return benchmarks.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
