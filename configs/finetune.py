"""Fine-tunes a Mixer as in the paper (section 3, appendix B).

  python train.py --workdir=DIR1 \
    --config=configs/finetune.py:model=imagenet21k/Mixer-B_16,dataset=cifar10
  python train.py --config=configs/finetune.py --workdir=DIR2 \
    --config.init_from=WORKDIR_OF_B16

Behind the colon may be, in any order:

  model    weights: a released checkpoint (imagenet21k/Mixer-B_16), which is
           fetched, an .npz file, a workdir or one of its checkpoints; or a
           variant (B/16), whose weights --config.init_from names
  dataset  imagenet2012, cifar10, cifar100, oxford_iiit_pet, oxford_flowers102,
           vtab/TASK for the 19 tasks of VTAB-1k, or any other prepared set,
           such as one of `mixer prepare folder`
  size     of the images, in pixels, or height x width as in size=224x320; to
           another one than that of the weights, which is the default, these
           are fitted as `init_resize` says

Without weights it is refused: random ones are for configs/scratch.py.

The head starts at zero, with the new data set's classes. The learning rate is
the paper's choice among .003, .01, .03 and .06 (VTAB: without .06), made on a
held-out part of the training split. This tries them all there, and trains once
more, on all of the training split, with the best one:

  python -m mixer sweep --workdir=DIR3 \
    --config=configs/finetune.py:model=imagenet21k/Mixer-B_16,dataset=cifar10

Hardware: one GPU or a few TPU chips; batch 512 is divided among all devices.
Where that is too much memory, `--config.optimizer.accumulate=4` computes the
same in four parts. Sets that the paper hasn't get 2,500 steps, a tenth of
`train` to choose on, and are evaluated on `test`, or on `validation` if there
is no `test`.

Expected: B/16 and L/16 pre-trained on ImageNet-21k reach 80.64 % and 82.89 % on
ImageNet (the paper's numbers; at 448 px L/16 84.15 %), 96.82 % and 98.34 % on
CIFAR-10 (the authors' published runs).

The paper names no warm-up for the 500 and 2,500 steps of Pets, Flowers and
VTAB: here it is a fifth. VTAB's images are squeezed to the size, neither
cropped nor flipped, as its rules want.
"""

import dataclasses
import re

from mixer import config as config_lib
from mixer.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Recipe:
  """What the paper does with a data set: steps, and splits to choose on."""

  steps: int = 2_500
  test: str = "test"
  choose_train: str = "train[:90%]"
  choose_eval: str = "train[90%:]"
  crop: bool = True
  rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.06)


_CIFAR = _Recipe(10_000, "test", "train[:98%]", "train[98%:]")
_RECIPES = {
  "imagenet2012": _Recipe(20_000, "validation", "train[:99%]", "train[99%:]"),
  "cifar10": _CIFAR,
  "cifar100": _CIFAR,
  "oxford_iiit_pet": _Recipe(500),
  "oxford_flowers102": _Recipe(500),
}
_VTAB = _Recipe(
  choose_train="train800",
  choose_eval="val200",
  crop=False,
  rates=(0.003, 0.01, 0.03),
)
# Names that people give them.
_ALIASES = {
  "imagenet": "imagenet2012",
  "pets": "oxford_iiit_pet",
  "flowers": "oxford_flowers102",
}


def get_config(words: str = "") -> config_lib.Config:
  example = "model=imagenet21k/Mixer-B_16,dataset=cifar10"
  given = parse(words, "configs/finetune.py", example)
  c = config_lib.default()
  model = given.get("model", "B/16")
  height, width = _take_model(c, model)
  if "size" in given:
    height, width = sides(given["size"])
  c.image_size, c.image_width = height, width if width != height else 0
  c.batch_size = 512

  data = given.get("dataset", "cifar10")
  c.data.name = _ALIASES.get(data, data)
  is_vtab = c.data.name.startswith("vtab/")
  r = _VTAB if is_vtab else _RECIPES.get(c.data.name, _Recipe(test="auto"))
  c.total = f"{r.steps} steps"
  c.data.eval_split = r.test
  c.data.flip = r.crop
  c.data.crop = "inception" if r.crop else "resize"
  # CIFAR's too, as in the authors' fine-tuning: enlarged by areas, as others
  # are evaluated, 32 pixels become a mosaic that training doesn't show.
  squeezed = is_vtab or c.data.name in ("cifar10", "cifar100")
  c.data.eval_short_side = (
    0 if squeezed else round(max(height, width) * 256 / 224)
  )
  c.sweep.learning_rates = r.rates
  c.sweep.train_split = r.choose_train
  c.sweep.eval_split = r.choose_eval

  c.optimizer.name = "sgd"
  c.optimizer.learning_rate = 0.01
  c.optimizer.momentum = 0.9
  c.optimizer.clip_norm = 1.0
  c.schedule.warmup = f"{min(500, r.steps // 5)} steps"
  c.schedule.decay = "cosine"

  c.eval_every = "10%"
  c.checkpoint_every = "10%"
  return c


def _take_model(c: config_lib.Config, model: str) -> tuple[int, int]:
  """Sets the model and its weights; returns the size of its images."""
  released = re.fullmatch(r"\w+/Mixer-([SBLH])_(\d+)(\.npz)?", model)
  if re.fullmatch(r"[SBLH]/\d+", model):
    c.init_from, c.model.variant = config_lib.UNNAMED, model
    return 224, 224
  if released:
    c.init_from, c.model.variant = model, f"{released[1]}/{released[2]}"
    return 224, 224
  from mixer import initial  # Late, as it takes a second to import.

  c.init_from = model
  try:
    shape, size = initial.model_of(model)
  except UserError as e:
    raise UserError(
      f"model={model} behind configs/finetune.py: is no variant, such as B/16, "
      f"and {e}"
    ) from e
  c.model.update(shape)
  return size


def parse(words: str, recipe: str, example: str) -> dict[str, str]:
  """Reads what is behind the colon: "size=96" -> {"size": "96"}."""
  given = {}
  for word in filter(None, words.split(",")):
    key, _, value = word.partition("=")
    if not value or key not in ("model", "dataset", "size"):
      raise UserError(
        f"{config_lib.shown(word)} behind {recipe}: is none of model=, "
        f"dataset= and size=, as in {recipe}:{example}."
      )
    given[key] = value
  size = given.get("size", "1")
  if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", size, re.ASCII):
    raise UserError(
      f"size={size[:60]} behind {recipe}: is no number of pixels, as in "
      "size=448 or size=224x320."
    )
  return given


def sides(size: str) -> tuple[int, int]:
  """Height and width: "224" -> (224, 224)."""
  height, _, width = size.partition("x")
  return int(height), int(width or height)
