"""Predicting over a folder of JPEGs, beside its loader and its model alone.

  python -m benchmarks.predict [--models S/32:4000,tiny:10000] [--rounds 5]

The files are 500 x 375, some 60 KB, parts of the two photographs that
scikit-learn ships; a few hundred of them under many names, as many as stand
behind a model's name. In each round one part of them goes in turn through
  loader  reading, decoding, resizing and batching, as predicting does it
  model   batches that are there already, with the results fetched
  whole   mixer.predictor.Predictor.stream, from paths to classes and scores
S/32 with 1,000 classes is bound by its model on a CPU, `tiny` by the loader.
Where loader and model share the same cores, as without an accelerator, the
whole can't be faster than the sum of both on all cores; elsewhere it can come
as near as the slower of them.

Prints the medians of images/s, and the whole's time over the slower one's and
over the sum, in pairs of the same round; and the same of the processor's time,
which other programs on the machine disturb less. Writes
benchmarks/results/predict.json.
"""

import argparse
import datetime
import io
import json
import os
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image
from sklearn import datasets

from mixer import evaluate, inference, predictor, runtime, sharding, trained
from mixer import model as model_lib
from mixer.prediction import batching, inputs

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "predict.json"
DISTINCT = 400
CLASSES = 1_000


def make_files(folder: pathlib.Path, count: int) -> list[str]:
  """JPEGs under `count` names."""
  photographs = [
    Image.fromarray(image) for image in datasets.load_sample_images().images
  ]
  rng = np.random.default_rng(0)
  paths = []
  for i in range(count):
    path = folder / f"{i:06}.jpg"
    paths.append(str(path))
    if i >= DISTINCT:
      os.link(paths[i % DISTINCT], path)
      continue
    photograph = photographs[i % 2]
    left = int(rng.integers(photograph.width - 500 + 1))
    top = int(rng.integers(photograph.height - 375 + 1))
    file = io.BytesIO()
    photograph.crop((left, top, left + 500, top + 375)).save(
      file, "JPEG", quality=90, subsampling=2
    )
    path.write_bytes(file.getvalue())
  return paths


def make_model(name: str) -> trained.Trained:
  """With random weights, for 224 px."""
  if name == "tiny":
    module = model_lib.MlpMixer(32, 1, 64, 32, 64, num_classes=CLASSES)
  else:
    module = model_lib.build(name, CLASSES)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: rng.normal(0, 0.02, x.shape).astype(np.float32), shapes
  )
  return trained.Trained(
    module, params, (224, 224), 256, None, None, "softmax", name, name
  )


class Contenders:
  """What is measured: each does its part of the work for some files."""

  def __init__(self, model: trained.Trained):
    self._predictor = predictor.Predictor(model)
    self._mesh = sharding.make_mesh()
    self._params = jax.device_put(model.params, sharding.replicated(self._mesh))
    self._functions = inference.Inference(
      model.module, model.loss, model.num_classes, self._mesh, top=10
    )

  def loader(self, paths: Sequence[str]) -> None:
    """Reads, decodes, resizes, batches; nothing becomes of it."""
    model = self._predictor.model
    batches = batching.batches(
      ((path, path) for path in paths),
      self._predictor.batch_size,
      model.image_size,
      lambda path: inputs.fit(path, model),
      os.cpu_count() or 1,
    )
    assert sum(len(batch.sources) for batch in batches) == len(paths)

  def model(self, paths: Sequence[str]) -> None:
    """As many images as there are files, from memory."""
    size = self._predictor.batch_size
    shape = (size, *self._predictor.model.image_size, 3)
    rng = np.random.default_rng(0)
    batch = {
      "image": rng.integers(0, 256, shape, np.uint8),
      "mask": np.ones(size, np.bool_),
    }
    batches = (batch for _ in range(-(-len(paths) // size)))
    for _ in evaluate.examples(
      self._functions, self._params, batches, self._mesh
    ):
      pass

  def whole(self, paths: Sequence[str]) -> None:
    """From paths to predictions."""
    assert sum(not p.problem for p in self._predictor.stream(paths)) == len(
      paths
    )


def measure(
  contenders: Contenders, paths: Sequence[str], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Seconds, and the processor's, of each contender in each round."""
  seconds: dict[str, list[float]] = {"loader": [], "model": [], "whole": []}
  processor: dict[str, list[float]] = {name: [] for name in seconds}
  contenders.whole(paths[:64])  # Compiles.
  contenders.model(paths[:64])
  length = len(paths) // rounds
  for k in range(rounds):
    part = paths[k * length : (k + 1) * length]
    for name, times in seconds.items():
      start, before = time.perf_counter(), time.process_time()
      getattr(contenders, name)(part)
      times.append(time.perf_counter() - start)
      processor[name].append(time.process_time() - before)
    rates = ", ".join(f"{n} {length / t[-1]:,.0f}" for n, t in seconds.items())
    print(f"  round {k + 1}: images/s {rates}", flush=True)
  return seconds, processor


def summary(
  seconds: dict[str, list[float]],
  processor: dict[str, list[float]],
  length: int,
) -> dict[str, Any]:
  """Medians, and ratios in pairs of the same round."""
  rounds = list(zip(*seconds.values(), strict=True))
  used = list(zip(*processor.values(), strict=True))
  return {
    "images_per_second": {
      name: statistics.median(length / t for t in times)
      for name, times in seconds.items()
    },
    "whole_over_slower": statistics.median(
      whole / max(loader, model) for loader, model, whole in rounds
    ),
    "whole_over_sum": statistics.median(
      whole / (loader + model) for loader, model, whole in rounds
    ),
    "processor_over_sum": statistics.median(
      whole / (loader + model) for loader, model, whole in used
    ),
    "seconds": seconds,
    "processor_seconds": processor,
  }


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(
    description="Predicting over JPEGs, beside its loader and its model alone."
  )
  parser.add_argument("--models", default="S/32:4000,tiny:10000")
  parser.add_argument("--rounds", type=int, default=5)
  args = parser.parse_args()
  runtime.start()
  models = dict(pair.split(":") for pair in args.models.split(","))
  counts = {name: int(count) for name, count in models.items()}
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    paths = make_files(pathlib.Path(folder), max(counts.values()))
    size = statistics.mean(os.path.getsize(p) for p in paths) / 1e3
    for name, count in counts.items():
      print(name)
      contenders = Contenders(make_model(name))
      times = measure(contenders, paths[:count], args.rounds)
      found[name] = summary(*times, count // args.rounds)
  for name, s in found.items():
    rates = ", ".join(
      f"{n} {rate:,.0f}" for n, rate in s["images_per_second"].items()
    )
    print(
      f"{name:<5} images/s: {rates}; the whole takes "
      f"{s['whole_over_slower']:.2f} of the slower one's time, "
      f"{s['whole_over_sum']:.2f} of the sum; of the processor's time "
      f"{s['processor_over_sum']:.2f} of the sum"
    )
  record = {
    "date": datetime.date.today().isoformat(),
    "processor": platform.processor() or platform.machine(),
    "environment": runtime.environment() | {"host": ""},
    "images": counts,
    "kilobytes": round(size, 1),
    "models": found,
  }
  RESULTS.write_text(json.dumps(record, indent=2) + "\n")
  print(f"written to {RESULTS.relative_to(HERE.parent)}")


if __name__ == "__main__":
  main()
