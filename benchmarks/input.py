"""Images a second of the input pipeline, beside tf.data and PyTorch's loader.

  python -m benchmarks.input [--rounds 5] [--seconds 4] [--cores 2]
    [--tensorflow_python PYTHON] [--torch_python PYTHON]

Decoding, Inception crop, resizing to 224, flip, batches of 64, from the same
encoded files in memory, on the same cores, in turn: each round runs every
contender on every kind of file. `decoder` is simplejpeg alone, whole images
thrown away: what bounds ours where it has no markers to skip by. A contender
whose packages are missing is left out; name a Python that has them.

Files: parts of the two photographs that scikit-learn ships,
  photo        500 x 375, about 100 KB, as in ImageNet
  markers      the same with restart markers, as preparation encodes
  small        299 x 224, about 30 KB
  randaugment  photo, with RandAugment
Prints medians as Markdown, and writes benchmarks/results/input.json.
"""

import argparse
import io
import os
import pathlib
import pickle
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image
from sklearn import datasets

from benchmarks import common
from mixer import cli, jpeg
from mixer.errors import UserError

FILES = 96
NAMES = ("ours", "decoder", "tf.data", "torch")


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
  """A process that measures on demand; `version` is "" where it can't."""

  def __init__(self, name: str, python: str, path: str, cores: int):
    self.name = name
    script = common.ROOT / "benchmarks" / "input_peer.py"
    self._process = subprocess.Popen(
      [python, str(script), name, path, str(cores)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=dict(os.environ)
      | {"PYTHONPATH": str(common.ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
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
    """Images a second.

    Raises:
      UserError: it has stopped.
    """
    assert self._process.stdin
    self._process.stdin.write(f"{kind} {seconds}\n")
    self._process.stdin.flush()
    answer = self._answer()
    if not answer:
      raise UserError(f"{self.name} stopped; its error is above.")
    return float(answer)

  def close(self) -> None:
    """Ends it, and waits for that."""
    self._process.communicate()


def body(args: argparse.Namespace) -> None:
  """Measures, prints and writes.

  Raises:
    UserError: a contender stops.
  """
  kinds = make_files()
  pythons = {"tf.data": args.tensorflow_python, "torch": args.torch_python}
  with tempfile.NamedTemporaryFile(suffix=".pickle") as file:
    pickle.dump(kinds, file)
    file.flush()
    every = [
      Contender(n, pythons.get(n, sys.executable), file.name, args.cores)
      for n in NAMES
    ]
    field = [c for c in every if c.version]
    rows = {
      kind: {
        c.name: []
        for c in field
        if kind != "randaugment" or c.name in ("ours", "torch")
      }
      for kind in (*kinds, "randaugment")
    }
    for _ in range(args.rounds):
      for kind, found in rows.items():
        for c in field:
          if c.name in found:
            found[c.name].append(c.measure(kind, args.seconds))
    for c in every:
      c.close()
  names = [c.name for c in field]
  common.head("files, images/s", *(f"{n} (ours over it)" for n in names))
  for kind, found in rows.items():
    cells = []
    for n in names:
      rates = found.get(n)
      ratios = rates and [
        a / b for a, b in zip(found["ours"], rates, strict=True)
      ]
      cells.append(
        f"{statistics.median(rates):,.0f} ({statistics.median(ratios):.2f})"
        if rates and ratios
        else "-"
      )
    common.row(kind, *cells)
  environment = common.alone(common.environment)
  record = common.record("benchmarks.input", environment) | {
    "kilobytes": {
      k: np.mean([len(f) for f in v]) / 1e3 for k, v in kinds.items()
    },
    "contenders": {c.name: c.version for c in field},
    "images_per_second": rows,
  }
  common.write(args.out or common.RESULTS / "input.json", record)


def main() -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Images a second of the input pipeline beside its peers'."
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--seconds", type=float, default=4)
  parser.add_argument("--cores", type=int, default=common.cores())
  parser.add_argument("--tensorflow_python", default=sys.executable)
  parser.add_argument("--torch_python", default=sys.executable)
  parser.add_argument("--out", type=pathlib.Path, help="another file")
  return cli.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
