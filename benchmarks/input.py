"""Images a second of the input pipeline, beside tf.data and PyTorch's loader.

  python -m benchmarks.input [--rounds=5] [--seconds=4] [--cores=2]

Decoding, Inception crop, resizing to 224, flip, batches of 64, from the same
encoded files in memory (500 x 375, about 100 KB: parts of the two photographs
that scikit-learn ships), on the same cores, in turn, each contender in its own
process. One whose packages are missing is left out. Prints medians as
Markdown, and writes benchmarks/results/input_cpu.json.
"""

import functools
import io
import sys
import time
from collections.abc import Iterator
from typing import Any

import benchmarks

BATCH, SIZE = 64, 224


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


class Files(list):
  """Records of encoded files in memory, many times over."""

  def __len__(self):
    return 1_000_000

  def __getitem__(self, i: Any) -> Any:
    return list.__getitem__(self, i % list.__len__(self)), i % 10

  def __getitems__(self, indices: Any) -> Any:
    found = map(self.__getitem__, indices)
    return [{"image": image, "label": label} for image, label in found]


def ours(files: list[bytes], cores: int) -> Iterator[Any]:
  """As in training."""
  import input_pipeline
  from mixer import config as config_lib
  from mixer.datasets import split

  part = split.Split("files", "all", Files(files), tuple("0123456789"))
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
  from PIL import Image
  from torch.utils import data  # pyright: ignore[reportMissingImports]
  from torchvision import transforms  # pyright: ignore[reportMissingImports]

  steps = [
    transforms.RandomResizedCrop(SIZE, scale=(0.05, 1)),
    transforms.RandomHorizontalFlip(),
    transforms.PILToTensor(),
  ]

  class Images(Files):
    """Decoded, one by one."""

    __getitems__ = None  # pyright: ignore

    def __getitem__(self, i: int) -> Any:
      encoded, label = super().__getitem__(i)
      image: Any = Image.open(io.BytesIO(encoded)).convert("RGB")
      for step in steps:
        image = step(image)
      return image, label

  loader: Any = data.DataLoader
  return iter(loader(Images(files), BATCH, num_workers=cores))


# With the package whose version is shown.
CONTENDERS = {
  "mixer": (ours, "mixer"),
  "tf.data": (tf_data, "tensorflow"),
  "PyTorch": (torch, "torchvision"),
}


def contender(name: str, files: list[bytes], cores: int) -> Any:
  """Measures a pipeline: `rate(seconds)`, in images a second."""
  batches, package = CONTENDERS[name]
  try:
    version = f"{package} {__import__(package).__version__}"
  except RuntimeError as e:  # Builds that don't fit each other.
    raise ImportError(str(e)) from e

  def rate(seconds: float) -> float:
    iterator, count = batches(files, cores), 0
    for _ in range(4):
      next(iterator)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
      next(iterator)
      count += BATCH
    return count / (time.perf_counter() - start)

  return {"version": version}, {"rate": rate}


def body(args: Any) -> None:
  """Measures, prints and writes."""
  files = make_files()
  field = {
    n: benchmarks.Process(contender, n, files, args.cores) for n in CONTENDERS
  }
  field = {name: process for name, process in field.items() if process.hello}
  turns = {
    n: functools.partial(p.ask, "rate", args.seconds) for n, p in field.items()
  }
  rates = benchmarks.in_turn(turns, args.rounds)
  for name, process in field.items():
    process.close()
    benchmarks.row(
      {
        "pipeline": process.hello["version"],
        "images/s": benchmarks.number(rates[name]),
        "ours over it (spread)": benchmarks.ratio(rates["mixer"], rates[name]),
      }
    )
  record = {"images_per_second": rates, "cores": args.cores}
  benchmarks.write("input", args, benchmarks.environment(), record)


def main() -> int:
  """Runs the command line."""
  return benchmarks.main(__doc__, body, seconds=4.0, cores=benchmarks.cores())


if __name__ == "__main__":
  sys.exit(main())
