"""How fast ImageNet-21k is prepared, and in how much memory.

  python -m benchmarks.prepare [--images 6000] [--side 400] [--rounds 3]
  python -m benchmarks.prepare --images 200000 --side 32 --rounds 1

Makes a tar of tars as image-net.org hands out, of noise that is as hard to
decode and as large as photographs, and then in turn: reads it to its end, as
the preparation does but doing nothing with the images; and prepares it, in a
process of its own, as `tools.prepare` does. Prints the images a second of each
and the preparation's memory (of all its processes, what they share counted
once) on the way; writes benchmarks/results/prepare.json. Reading is what no
preparation can beat; decoding every image takes most of the rest, so the rate
grows with the cores.
"""

import argparse
import datetime
import functools
import io
import json
import os
import pathlib
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from mixer.datasets import imagenet21k

RESULTS = pathlib.Path(__file__).parent / "results" / "prepare.json"
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


def unique(data: bytes, number: int) -> bytes:
  """The JPEG with a comment: other bytes, the same pixels."""
  comment = b"%012d" % number
  return (
    data[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment
  ) + data[2:]


def make_tar(path: pathlib.Path, images: int, classes: int, side: int) -> None:
  """Writes the tar of tars."""
  with tarfile.open(path, "w") as outer:
    for k in range(classes):
      inner_bytes = io.BytesIO()
      wnid = f"n{k + 1:08}"
      with tarfile.open(fileobj=inner_bytes, mode="w") as inner:
        for i in range(k, images, classes):
          data = unique(picture(i % _DRAWN, side), i)
          add(inner, f"{wnid}_{i}.JPEG", data)
      add(outer, f"{wnid}.tar", inner_bytes.getvalue())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  info = tarfile.TarInfo(name)
  info.size = len(data)
  tar.addfile(info, io.BytesIO(data))


def read_seconds(path: pathlib.Path) -> float:
  """Reads all images of it."""
  start = time.perf_counter()
  source = imagenet21k.open_source([path])
  for _ in source.members():
    pass
  return time.perf_counter() - start


def prepare(args: argparse.Namespace) -> None:
  """What the process does: prepares, and prints how far it is."""
  from mixer.datasets.preparation import build

  source = imagenet21k.open_source([pathlib.Path(args.tar)])
  options = build.Options(
    hold_out={"test": args.images // 100, "validation": args.images // 100},
    drop_duplicates=True,
    workers=args.workers,
    short_side=args.resize,
    chunk_images=max(args.images // 20, 1000),
  )
  builder = imagenet21k.Imagenet21k(
    config="winter21", source=source, options=options, data_dir=args.data_dir
  )
  start = time.perf_counter()
  print("start", flush=True)
  told = 0

  def tell(progress: build.Progress) -> None:
    nonlocal told
    if progress.stage == "reading" and progress.images >= told:
      print("images", progress.images, flush=True)
      told += args.images // 10

  builder.prepare(tell)
  print("seconds", time.perf_counter() - start, flush=True)


def tree(pid: int) -> Iterator[int]:
  """A process and all that it has started."""
  yield pid
  for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
    for child in path.read_text().split():
      yield from tree(int(child))


def memory(pid: int) -> int:
  """Bytes of the tree's memory, shared pages by their share."""
  total = 0
  for one in tree(pid):
    try:
      text = pathlib.Path(f"/proc/{one}/smaps_rollup").read_text()
    except OSError:
      continue  # Gone.
    total += sum(
      int(line.split()[1]) << 10
      for line in text.splitlines()
      if line.startswith("Pss:")
    )
  return total


def measured(args: argparse.Namespace, tar: pathlib.Path) -> dict:
  """Prepares in a process of its own; seconds and memory on the way."""
  with tempfile.TemporaryDirectory(dir=tar.parent) as folder:
    words = [sys.executable, "-m", "benchmarks.prepare", "--tar", str(tar)]
    for name in ("images", "workers", "resize"):
      words += [f"--{name}", str(getattr(args, name))]
    words += ["--data_dir", folder]
    rows, seconds = [], 0.0
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
      assert process.stdout is not None
      for line in process.stdout:
        key, _, value = line.partition(" ")
        if key == "images":
          mb = round(memory(process.pid) / 1e6)
          rows.append({"images": int(value), "memory_mb": mb})
        elif key == "seconds":
          seconds = float(value)
    if process.returncode:
      raise SystemExit(process.returncode)
  return {"seconds": seconds, "memory": rows}


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="How fast ImageNet-21k is prepared, and in how much memory."
  )
  parser.add_argument("--images", type=int, default=6000)
  parser.add_argument("--classes", type=int, default=100)
  parser.add_argument("--side", type=int, default=400, help="short, in pixels")
  parser.add_argument("--resize", type=int, default=0, help="to a short side")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument(
    "--workers", type=int, default=len(os.sched_getaffinity(0))
  )
  parser.add_argument("--scratch", help="where to work; needs 3 x the images")
  # For the process that prepares.
  parser.add_argument("--tar", help=argparse.SUPPRESS)
  parser.add_argument("--data_dir", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.tar:
    prepare(args)
    return
  folder = pathlib.Path(tempfile.mkdtemp(dir=args.scratch))
  try:
    tar = folder / "winter21_whole.tar"
    make_tar(tar, args.images, args.classes, args.side)
    size = tar.stat().st_size
    print(f"{args.images:,} images, {size / args.images / 1e3:,.1f} kB each")
    read_seconds(tar)  # So that the first round finds it in memory too.
    rows = []
    print(f"{'round':<8}{'read/s':>12}{'prepared/s':>12}{'peak MB':>10}")
    for i in range(args.rounds):
      before = read_seconds(tar)
      made = measured(args, tar)
      # Around the preparation, so that a drift of the machine cancels.
      plain = (before + read_seconds(tar)) / 2
      peak = max(row["memory_mb"] for row in made["memory"])
      rows.append(
        {
          "read_per_second": round(args.images / plain),
          "prepared_per_second": round(args.images / made["seconds"], 1),
          "memory": made["memory"],
        }
      )
      print(
        f"{i + 1:<8}{args.images / plain:>12,.0f}"
        f"{args.images / made['seconds']:>12,.0f}{peak:>10,}",
        flush=True,
      )
    for row in rows[-1]["memory"]:
      print(f"  after {row['images']:>9,} images {row['memory_mb']:>6,} MB")
  finally:
    shutil.rmtree(folder)
  write(args, size, rows)


def write(args: argparse.Namespace, size: int, rows: list[dict]) -> None:
  """Adds to the file of results."""
  from mixer import runtime

  RESULTS.parent.mkdir(exist_ok=True)
  name = f"{args.images:,} images of {args.side} px" + (
    f" to {args.resize} px" if args.resize else ""
  )
  old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  old[name] = {
    "date": datetime.date.today().isoformat(),
    "processor": platform.processor() or platform.machine(),
    "environment": runtime.environment() | {"host": ""},
    "workers": args.workers,
    "bytes_per_image": round(size / args.images),
    "rounds": rows,
    "median_prepared_per_second": statistics.median(
      row["prepared_per_second"] for row in rows
    ),
  }
  RESULTS.write_text(json.dumps(old, indent=2) + "\n")


if __name__ == "__main__":
  main()
