"""Images a second of the input pipeline, beside tf.data and PyTorch's loader.

  python -m benchmarks.input [--rounds=5] [--seconds=4] [--cores=2]

Decoding, Inception crop, resizing to 224, flip, batches of 64, from the same
encoded files in memory (500 x 375, about 100 KB: parts of the two photographs
that scikit-learn ships), on the same cores, in turn, each contender in its own
process. One whose packages are missing is left out.
"""

import io
import sys
import time
from collections.abc import Iterator
from typing import Any

import benchmarks

BATCH, SIZE = 64, 224
FLAGS = {"seconds": 4.0, "cores": benchmarks.cores()}


def make_files() -> list[bytes]:
  """Encoded photographs, as in ImageNet."""
  import numpy as np
  from PIL import Image
  from sklearn import datasets

  rng, found = np.random.default_rng(0), []
  photographs = datasets.load_sample_images().images
  for i in range(96):
    photograph = Image.fromarray(photographs[i % 2])
    left = int(rng.integers(photograph.width - 500 + 1))
    top = int(rng.integers(photograph.height - 375 + 1))
    part = photograph.crop((left, top, left + 500, top + 375))
    file = io.BytesIO()
    # Colours at half the resolution, as photographs have them.
    part.save(file, "JPEG", quality=96, subsampling=2)
    found.append(file.getvalue())
  return found


class Files(list[bytes]):
  """The same as records of our data sets."""

  def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
    return [{"image": self[i], "label": 0} for i in indices]


def ours(files: list[bytes], cores: int) -> Iterator[Any]:
  """As in training."""
  import input_pipeline
  from mixer import config as config_lib
  from mixer.datasets import split

  part = split.Split("files", "all", Files(files * 10_000), ("any",))
  config = config_lib.default()
  config.batch_size = BATCH
  config.data.threads = cores
  return input_pipeline.train_batches(part, config)


def tf_data(files: list[bytes], cores: int) -> Iterator[Any]:
  """As big_vision composes it.

  That is `decode_jpeg_and_inception_crop(224)|flip_lr|value_range(-1, 1)`.
  """
  import tensorflow as tf  # pyright: ignore

  def prepare(data: Any) -> Any:
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      tf.image.extract_jpeg_shape(data),
      tf.zeros([0, 0, 4], tf.float32),
      area_range=(0.05, 1.0),
      min_object_covered=0,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, (SIZE, SIZE))
    return tf.image.random_flip_left_right(image) / 127.5 - 1

  data = tf.data.Dataset.from_tensor_slices(files).repeat()
  data = data.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
  data = data.batch(BATCH, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.threading.private_threadpool_size = cores
  return iter(data.with_options(options).as_numpy_iterator())


def torch(files: list[bytes], cores: int) -> Iterator[Any]:
  """DataLoader and torchvision's transforms."""
  import torch  # pyright: ignore[reportMissingImports]
  from PIL import Image
  from torch.utils import data  # pyright: ignore[reportMissingImports]
  from torchvision import transforms  # pyright: ignore[reportMissingImports]

  steps = (
    transforms.RandomResizedCrop(SIZE, scale=(0.05, 1)),
    transforms.RandomHorizontalFlip(),
    transforms.PILToTensor(),
  )
  prepare: Any = transforms.Compose(steps)

  def collate(part: list[bytes]) -> Any:  # In a worker.
    images = (Image.open(io.BytesIO(file)).convert("RGB") for file in part)
    return torch.stack([prepare(image) for image in images])

  loader: Any = data.DataLoader
  return iter(
    loader(files * 10_000, BATCH, num_workers=cores, collate_fn=collate)
  )


# With the package whose version is shown.
PIPELINES = {
  "mixer": (ours, "mixer"),
  "tf.data": (tf_data, "tensorflow"),
  "PyTorch": (torch, "torchvision"),
}


def contender(name: str, files: list[bytes], cores: int) -> dict[str, Any]:
  """A pipeline: `version`, and `rate(seconds)`, in images a second."""
  make, package = PIPELINES[name]
  version = f"{package} {__import__(package).__version__}"

  def rate(seconds: float) -> float:
    batches, count = make(files, cores), 0
    for _ in range(4):
      next(batches)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
      next(batches)
      count += BATCH
    return count / (time.perf_counter() - start)

  return {"version": lambda: version, "rate": rate}


def measure(args: Any) -> benchmarks.Rows:
  """A row of each pipeline that there is."""
  files = make_files()
  work = {name: (contender, name, files, args.cores) for name in PIPELINES}
  with benchmarks.field(work) as asks:
    rates = benchmarks.in_turn(asks, args.rounds, "rate", args.seconds)
    for name, found in rates.items():
      yield {
        "pipeline": asks[name]("version"),
        "images/s": found,
        "ours over it": benchmarks.ratios(rates["mixer"], found),
      }


if __name__ == "__main__":
  sys.exit(benchmarks.main(__doc__, measure, FLAGS))
