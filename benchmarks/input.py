"""Images a second of the input pipeline, beside tf.data and PyTorch's loader.

  python -m benchmarks.input [--rounds=5] [--seconds=4] [--cores=2]

Decoding, Inception crop, resizing to 224, flip, batches of 64, from the same
encoded files in memory, on the same cores, in turn: each round runs every
contender on every kind of file, each in a process of its own. `decoder` is
simplejpeg alone, whole images thrown away: what bounds ours where it has no
markers to skip by. A contender whose packages are missing is left out.

Files: parts of the two photographs that scikit-learn ships,
  photo        500 x 375, about 100 KB, as in ImageNet
  markers      the same with restart markers, as preparation encodes
  small        299 x 224, about 30 KB
  randaugment  photo, with RandAugment
Prints medians as Markdown, and writes benchmarks/results/input_cpu.json.
"""

import io
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import benchmarks

BATCH, SIZE = 64, 224
KINDS = ("photo", "markers", "small", "randaugment")


def make_files() -> dict[str, list[bytes]]:
  """The encoded files of each kind."""
  import numpy as np
  from PIL import Image
  from sklearn import datasets

  from mixer import jpeg

  def encode(image: Image.Image, quality: int) -> bytes:
    # Colours at half the resolution, as photographs have them.
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=2)
    return file.getvalue()

  photographs = [
    Image.fromarray(image) for image in datasets.load_sample_images().images
  ]
  rng = np.random.default_rng(0)
  kinds: dict[str, list[bytes]] = {"photo": [], "markers": [], "small": []}
  for i in range(96):
    photograph = photographs[i % 2]
    left = int(rng.integers(photograph.width - 500 + 1))
    top = int(rng.integers(photograph.height - 375 + 1))
    part = photograph.crop((left, top, left + 500, top + 375))
    kinds["photo"].append(encode(part, 96))
    kinds["markers"].append(jpeg.encode(np.asarray(part), 96))
    small = part.resize((299, 224), Image.Resampling.BOX)
    kinds["small"].append(encode(small, 90))
  return kinds | {"randaugment": kinds["photo"]}


class Contender:
  """Measures a pipeline; the package is that whose version is shown."""

  package = "mixer"

  def __init__(self, kinds: dict[str, list[bytes]], cores: int):
    self._kinds, self._cores = kinds, cores
    try:
      module = __import__(self.package)
    except RuntimeError as e:  # Builds that don't fit each other.
      raise ImportError(str(e)) from e
    self.hello = {"version": f"{self.package} {module.__version__}"}

  # (encoded files, with RandAugment?, cores) -> batches without end.
  batches: Callable[[list[bytes], bool, int], Iterator[Any]]

  def measure(self, kind: str, seconds: float) -> float:
    """Images a second."""
    randaugment = kind == "randaugment"
    iterator = self.batches(self._kinds[kind], randaugment, self._cores)
    for _ in range(4):
      next(iterator)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
      next(iterator)
      count += BATCH
    return count / (time.perf_counter() - start)


class Ours(Contender):
  """As in training."""

  def batches(self, files: Any, randaugment: bool, cores: int) -> Iterator[Any]:
    import input_pipeline
    from mixer import config as config_lib
    from mixer.datasets import split

    class Files(list):
      """Records of encoded files in memory, many times over."""

      def __len__(self):
        return 1_000_000

      def __getitems__(self, indices: Any) -> Any:
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


class Decoder(Contender):
  """simplejpeg alone, whole images."""

  package = "simplejpeg"

  def batches(self, files: Any, randaugment: bool, cores: int) -> Iterator[Any]:
    import concurrent.futures

    import simplejpeg

    pool = concurrent.futures.ThreadPoolExecutor(cores)

    def decode(many: list[bytes]) -> None:
      for data in many:
        simplejpeg.decode_jpeg(data, fastdct=True, strict=False)

    endless = itertools.cycle(files)
    while True:
      batch = list(itertools.islice(endless, BATCH))
      yield list(pool.map(decode, (batch[i::8] for i in range(8))))


class TfData(Contender):
  """As big_vision composes it.

  That is `decode_jpeg_and_inception_crop(224)|flip_lr|value_range(-1, 1)`.
  """

  package = "tensorflow"

  def batches(self, files: Any, randaugment: bool, cores: int) -> Iterator[Any]:
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


class Torch(Contender):
  """DataLoader and torchvision's transforms."""

  package = "torchvision"

  def batches(self, files: Any, randaugment: bool, cores: int) -> Iterator[Any]:
    import torch  # pyright: ignore[reportMissingImports]
    from PIL import Image
    from torchvision import transforms  # pyright: ignore[reportMissingImports]

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

      def __getitem__(self, i: int) -> Any:
        image = Image.open(io.BytesIO(files[i % len(files)]))
        return transform(image.convert("RGB")), i % 10

    loader = torch.utils.data.DataLoader
    return iter(loader(Files(), batch_size=BATCH, num_workers=cores))


def body(args: Any) -> None:
  """Measures, prints and writes."""
  kinds = make_files()
  every = {
    made.__name__: benchmarks.Process(made, kinds, args.cores)
    for made in (Ours, Decoder, TfData, Torch)
  }
  field = {name: p for name, p in every.items() if p.hello}
  rows: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
  for _ in range(args.rounds):
    for kind, found in rows.items():
      for name, process in field.items():
        if kind != "randaugment" or name in ("Ours", "Torch"):
          rate = process.ask("measure", kind, args.seconds)
          found.setdefault(name, []).append(rate)
  for process in field.values():
    process.close()
  benchmarks.head("files, images/s", *(f"{n} (ours over it)" for n in field))
  for kind, found in rows.items():
    cells = []
    for name in field:
      rates = found.get(name, [])
      ratios = [a / b for a, b in zip(found["Ours"], rates, strict=False)]
      cells.append(
        f"{statistics.median(rates):,.0f} ({statistics.median(ratios):.2f})"
        if rates
        else "-"
      )
    benchmarks.row(kind, *cells)
  record = {
    "contenders": {name: p.hello["version"] for name, p in field.items()},
    "images_per_second": rows,
  }
  benchmarks.write("input", args, benchmarks.environment(), record)


def main() -> int:
  """Runs the command line."""
  parser = benchmarks.parser("input", __doc__)
  parser.add_argument("--seconds", type=float, default=4, help="of each")
  parser.add_argument("--cores", type=int, default=benchmarks.cores())
  return benchmarks.run(body, parser.parse_args())


if __name__ == "__main__":
  sys.exit(main())
