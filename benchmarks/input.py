"""Images a second of the input pipeline, beside tf.data and PyTorch's loader.

  python -m benchmarks.input [--rounds 5] [--seconds 4] [--cores 2]
    [--tensorflow_python PYTHON] [--torch_python PYTHON]

Decoding, Inception crop, resizing to 224, flip, batches of 64, from the same
encoded files in memory, on the same cores, in turn: each round runs every
contender on every kind of file. `decoder` is simplejpeg alone, whole images
thrown away: what bounds ours where it has no markers to skip by. A contender
whose packages are missing is left out; name a Python that has them.

Files: parts of the two photographs that scikit-learn ships,
  photo      500 x 375, about 100 KB, as in ImageNet
  markers    the same with restart markers, as tools.prepare encodes
  small      299 x 224, about 30 KB
Prints the medians, ours over each other's in pairs of the same round, and
writes benchmarks/results/input.json.
"""

import argparse
import datetime
import io
import json
import os
import pathlib
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from PIL import Image
from sklearn import datasets

from mixer import jpeg, runtime

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "input.json"
FILES = 96


def encode(image: Image.Image, quality: int) -> bytes:
  """A JPEG with colours at half the resolution, as photographs have them."""
  file = io.BytesIO()
  image.save(file, "JPEG", quality=quality, subsampling=2)
  return file.getvalue()


def make_files() -> dict[str, list[bytes]]:
  """The encoded files of each kind."""
  photographs = [
    Image.fromarray(image) for image in datasets.load_sample_images().images
  ]
  rng = np.random.default_rng(0)
  kinds: dict[str, list[bytes]] = {"photo": [], "markers": [], "small": []}
  for i in range(FILES):
    photograph = photographs[i % 2]
    left = int(rng.integers(photograph.width - 500 + 1))
    top = int(rng.integers(photograph.height - 375 + 1))
    part = photograph.crop((left, top, left + 500, top + 375))
    kinds["photo"].append(encode(part, 96))
    kinds["markers"].append(jpeg.encode(np.asarray(part), 96))
    small = part.resize((299, 224), Image.Resampling.BOX)
    kinds["small"].append(encode(small, 90))
  return kinds


class Contender:
  """A process that measures on demand."""

  def __init__(self, name: str, python: str, module: str, options: list[str]):
    self.name = name
    self._process = subprocess.Popen(
      [python, str(HERE / f"{module}.py"), *options],
      cwd=HERE.parent,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=dict(os.environ)
      | {"PYTHONPATH": str(HERE.parent), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    self.version = self._answer()

  def _answer(self) -> str:
    """The next line that is meant for us; "" at the end."""
    assert self._process.stdout
    for line in self._process.stdout:
      if line.startswith("> "):
        return line[2:].strip()
    return ""

  def measure(self, kind: str, seconds: float) -> float:
    """Images a second."""
    assert self._process.stdin
    self._process.stdin.write(f"{kind} {seconds}\n")
    self._process.stdin.flush()
    answer = self._answer()
    if not answer:
      raise SystemExit(f"{self.name} stopped; its error is above")
    return float(answer)


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Images a second of the input pipeline beside its peers'."
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=4)
  parser.add_argument("--cores", type=int, default=os.cpu_count())
  parser.add_argument("--tensorflow_python", default=sys.executable)
  parser.add_argument("--torch_python", default=sys.executable)
  args = parser.parse_args()
  kinds = make_files()
  sizes = {k: np.mean([len(f) for f in v]) / 1e3 for k, v in kinds.items()}
  print(", ".join(f"{k} {v:.0f} KB" for k, v in sizes.items()))
  with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
    pickle.dump(kinds, file)
    file.flush()
    options = [file.name, str(args.cores)]
    contenders = []
    for name, python, module in (
      ("ours", sys.executable, "input_ours"),
      ("decoder", sys.executable, "input_decoder"),
      ("tf.data", args.tensorflow_python, "input_tf"),
      ("torch", args.torch_python, "input_torch"),
    ):
      contender = Contender(name, python, module, options)
      print(f"{name:<8} {contender.version or 'not installed: left out'}")
      if contender.version:
        contenders.append(contender)
    rows = measure(contenders, [*kinds, "randaugment"], args)
  write(rows, sizes, {c.name: c.version for c in contenders}, args)


def measure(
  contenders: list[Contender], kinds: list[str], args: argparse.Namespace
) -> dict[str, dict[str, list[float]]]:
  """Images a second by kind and contender, one for each round."""
  rows: dict[str, dict[str, list[float]]] = {k: {} for k in kinds}
  for _ in range(args.rounds):
    for kind in kinds:
      for contender in contenders:
        if kind == "randaugment" and contender.name in ("decoder", "tf.data"):
          continue
        rate = contender.measure(kind, args.seconds)
        rows[kind].setdefault(contender.name, []).append(rate)
        print(f"{kind:<12} {contender.name:<8} {rate:8,.0f}", flush=True)
  return rows


def write(
  rows: dict[str, dict[str, list[float]]],
  sizes: dict[str, Any],
  versions: dict[str, str],
  args: argparse.Namespace,
) -> None:
  """Prints the table and leaves the record."""
  names = list(versions)
  print(f"\nmedian of {args.rounds} rounds, images/s on {args.cores} cores")
  print(f"{'':<12}" + "".join(f"{n:>10}" for n in names) + "   ours/other")
  summary = {}
  for kind, found in rows.items():
    medians = {n: statistics.median(r) for n, r in found.items()}
    ratios = {
      n: statistics.median(a / b for a, b in zip(found["ours"], r, strict=True))
      for n, r in found.items()
      if n != "ours"
    }
    summary[kind] = {"median": medians, "ours_over": ratios, "rounds": found}
    cells = "".join(f"{medians.get(n, float('nan')):>10,.0f}" for n in names)
    told = "  ".join(f"{n} {r:.2f}" for n, r in ratios.items())
    print(f"{kind:<12}{cells}   {told}")
  RESULTS.parent.mkdir(exist_ok=True)
  record = {
    "date": datetime.date.today().isoformat(),
    "processor": platform.processor() or platform.machine(),
    "environment": runtime.environment() | {"host": ""},
    "cores": args.cores,
    "kilobytes": {k: round(float(v), 1) for k, v in sizes.items()},
    "contenders": versions,
    "kinds": summary,
  }
  RESULTS.write_text(json.dumps(record, indent=2) + "\n")
  print(f"written to {RESULTS.relative_to(HERE.parent)}")


if __name__ == "__main__":
  main()
