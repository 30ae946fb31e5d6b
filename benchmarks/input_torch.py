"""The same with PyTorch's DataLoader over Pillow, for `benchmarks.input`.

With torchvision's own transforms where it is installed; else the same is
written out here in Pillow, with those of RandAugment's operations that Pillow
has a function for.
"""

import io
import math
import random

import input_server
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

try:
  import torch  # pyright: ignore[reportMissingImports]
except ImportError:
  raise SystemExit() from None
try:
  from torchvision import (  # pyright: ignore[reportMissingImports]
    transforms,
  )
except Exception:  # Builds that don't fit each other raise RuntimeError.
  transforms = None


def random_resized_crop(image):
  width, height = image.size
  for _ in range(10):
    area = width * height * random.uniform(0.05, 1)
    ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left = random.randint(0, width - w)
      top = random.randint(0, height - h)
      break
  else:
    left, top, w, h = 0, 0, width, height
  size = (input_server.SIZE, input_server.SIZE)
  image = image.crop((left, top, left + w, top + h))
  image = image.resize(size, Image.Resampling.BILINEAR)
  if random.random() < 0.5:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return image


class Files(torch.utils.data.Dataset):
  """Encoded files in memory, many times over."""

  def __init__(self, files, transform):
    self.files, self.transform = files, transform

  def __len__(self):
    return 1_000_000

  def __getitem__(self, i):
    image = Image.open(io.BytesIO(self.files[i % len(self.files)]))
    image = self.transform(image.convert("RGB"))
    return torch.from_numpy(np.array(image)), i % 10


OPERATIONS = (
  ImageOps.autocontrast,
  ImageOps.equalize,
  ImageOps.invert,
  lambda i: i.rotate(30 * random.choice((-1, 1)), fillcolor=(128,) * 3),
  lambda i: ImageOps.posterize(i, 4),
  lambda i: ImageOps.solarize(i, 128),
  lambda i: ImageEnhance.Color(i).enhance(1.9),
  lambda i: ImageEnhance.Contrast(i).enhance(1.9),
  lambda i: ImageEnhance.Brightness(i).enhance(1.9),
  lambda i: ImageEnhance.Sharpness(i).enhance(1.9),
  lambda i: i.transform(
    i.size, Image.Transform.AFFINE, (1, 0.3, 0, 0, 1, 0), fillcolor=(128,) * 3
  ),
)


def augmented_crop(image):
  image = random_resized_crop(image)
  for operation in random.choices(OPERATIONS, k=2):
    image = operation(image)
  return image


def batches(files, randaugment, cores):
  transform = augmented_crop if randaugment else random_resized_crop
  if transforms is not None:
    steps = [
      transforms.RandomResizedCrop(input_server.SIZE, scale=(0.05, 1)),
      transforms.RandomHorizontalFlip(),
    ]
    if randaugment:
      steps.append(transforms.RandAugment(2, 10))
    transform = transforms.Compose(steps)
  return iter(
    torch.utils.data.DataLoader(
      Files(files, transform),
      batch_size=input_server.BATCH,
      num_workers=cores,
    )
  )


if __name__ == "__main__":
  kind = "torchvision" if transforms else "Pillow"
  input_server.serve(f"torch {torch.__version__} with {kind}", batches)
