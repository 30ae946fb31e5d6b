"""A contender of `benchmarks.input`: a process that measures on demand.

  python benchmarks/input_peer.py KIND FILES CORES

KIND is "ours", "decoder" (simplejpeg alone, whole images), "tf.data" (as
big_vision composes it: `decode_jpeg_and_inception_crop(224)|flip_lr|
value_range(-1, 1)`), or "torch" (DataLoader and torchvision's transforms). Each
needs its own packages alone.
"""

import itertools
import pickle
import sys
import time

BATCH = 64
SIZE = 224


def ours(files, randaugment, cores):
  import input_pipeline
  from mixer import config as config_lib
  from mixer.datasets import split

  class Files(list):
    """Records of encoded files in memory, many times over."""

    def __len__(self):
      return 1_000_000

    def __getitems__(self, indices):
      count = list.__len__(self)
      return [{"image": self[i % count], "label": i % 10} for i in indices]

  part = split.Split("files", "all", Files(files), tuple("0123456789"))
  config = config_lib.default()
  config.batch_size = BATCH
  config.data.threads = cores
  if randaugment:
    config.data.randaugment_layers = 2
    config.data.randaugment_magnitude = 10
  return input_pipeline.train_batches(part, config)


def decoder(files, randaugment, cores):
  import concurrent.futures

  import simplejpeg

  del randaugment
  pool = concurrent.futures.ThreadPoolExecutor(cores)

  def decode(many):
    for data in many:
      simplejpeg.decode_jpeg(data, fastdct=True, strict=False)

  endless = itertools.cycle(files)
  while True:
    batch = list(itertools.islice(endless, BATCH))
    list(pool.map(decode, (batch[i : i + 8] for i in range(0, BATCH, 8))))
    yield


def tf_data(files, randaugment, cores):
  import tensorflow as tf  # pyright: ignore

  del randaugment

  def prepare(data):
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


def torch(files, randaugment, cores):
  import io

  import torch  # pyright: ignore[reportMissingImports]
  from PIL import Image
  from torchvision import (  # pyright: ignore[reportMissingImports]
    transforms,
  )

  augment = [transforms.RandAugment(2, 10)] if randaugment else []
  transform = transforms.Compose(
    [
      transforms.RandomResizedCrop(SIZE, scale=(0.05, 1)),
      transforms.RandomHorizontalFlip(),
      *augment,
      transforms.PILToTensor(),
    ]
  )

  class Files(torch.utils.data.Dataset):
    """Encoded files in memory, many times over."""

    def __len__(self):
      return 1_000_000

    def __getitem__(self, i):
      image = Image.open(io.BytesIO(files[i % len(files)]))
      return transform(image.convert("RGB")), i % 10

  return iter(
    torch.utils.data.DataLoader(Files(), batch_size=BATCH, num_workers=cores)
  )


# What each is, and the package whose version is shown.
KINDS = {
  "ours": (ours, "mixer"),
  "decoder": (decoder, "simplejpeg"),
  "tf.data": (tf_data, "tensorflow"),
  "torch": (torch, "torchvision"),
}


def main() -> None:
  """Answers requests on standard input with images a second."""
  kind, path, cores = sys.argv[1:]
  batches, package = KINDS[kind]
  try:
    module = __import__(package)
    version = f"{package} {getattr(module, '__version__', '')}".strip()
  except (ImportError, RuntimeError):  # Builds that don't fit each other.
    raise SystemExit() from None
  with open(path, "rb") as file:
    kinds = pickle.load(file)
  print(f"> {version}", flush=True)
  for line in sys.stdin:
    name, seconds = line.split()
    randaugment = name == "randaugment"
    files = kinds["photo" if randaugment else name]
    iterator = batches(files, randaugment, int(cores))
    for _ in range(4):
      next(iterator)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < float(seconds):
      next(iterator)
      count += BATCH
    print(f"> {count / (time.perf_counter() - start)}", flush=True)
    del iterator


if __name__ == "__main__":
  main()
