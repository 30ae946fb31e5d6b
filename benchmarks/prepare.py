"""How fast ImageNet-21k is prepared, and in how much memory.

  python -m benchmarks.prepare [--images=6000] [--side=400] [--rounds=3]
    [--classes=100] [--scratch=DIR]
  python -m benchmarks.prepare --images=200000 --side=32 --rounds=1

Makes a tar of tars as image-net.org hands out, of noise that is as hard to
decode and as large as photographs, and prepares it by the command that users
type. Prints the images a second and the most memory (of all processes, what
they share counted once); writes benchmarks/results/prepare_cpu.json. Decoding
takes most of the time, so the rate grows with the cores. `--scratch` needs 3 x
the images.
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

_DRAWN = 64  # Pictures; copies of one are told apart by a comment.


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


def memory(pid: int) -> int:
  """Bytes of a process and its children, shared pages by their share."""
  try:
    process = psutil.Process(pid)
    every = (process, *process.children(recursive=True))
    return sum(one.memory_full_info().pss for one in every)
  except psutil.Error:
    return 0  # One is gone.


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
  with tempfile.TemporaryDirectory(dir=args.scratch or None) as folder:
    tar = pathlib.Path(folder) / "winter21_whole.tar"
    make_tar(tar, args.images, args.classes, args.side)
    kilobytes = tar.stat().st_size / args.images / 1e3
    for _ in range(args.rounds):
      seconds, peak = prepare(tar)
      rows.append({"prepare": seconds, "peak": peak})
      benchmarks.row(
        {
          "images": f"{args.images:,}",
          "kB each": f"{kilobytes:.1f}",
          "prepared/s": f"{args.images / seconds:,.0f}",
          "peak MB": f"{peak / 1e6:,.0f}",
        }
      )
  record = {"images": args.images, "kilobytes": kilobytes, "rounds": rows}
  benchmarks.write("prepare", args, benchmarks.environment(), record)


def main() -> int:
  """Runs the command line."""
  flags: dict[str, Any] = {"images": 6000, "classes": 100, "side": 400}
  return benchmarks.main(__doc__, body, rounds=3, scratch="", **flags)


if __name__ == "__main__":
  sys.exit(main())
