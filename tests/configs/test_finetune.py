"""configs/finetune.py: the paper's recipes by words behind the colon."""

import pytest

from configs import finetune
from mixer import durations, released, validation
from mixer.datasets import catalog, vtab
from mixer.errors import UserError


def recipe(words):
  config = finetune.get_config(words)
  validation.validate(config, 8)
  return config


# Appendix B of the paper: steps; learning rates; what chooses them.
@pytest.mark.parametrize(
  ("name", "examples", "steps", "rates", "held_out", "test"),
  [
    ("imagenet2012", 1_281_167, 20_000, 4, "train[99%:]", "validation"),
    ("cifar10", 50_000, 10_000, 4, "train[98%:]", "test"),
    ("cifar100", 50_000, 10_000, 4, "train[98%:]", "test"),
    ("oxford_iiit_pet", 3_680, 500, 4, "train[90%:]", "test"),
    ("oxford_flowers102", 1_020, 500, 4, "train[90%:]", "test"),
    ("vtab/dtd", 1000, 2_500, 3, "val200", "test"),
    ("my_photos", 300, 2_500, 4, "train[90%:]", "auto"),
  ],
)
def test_recipes_are_the_papers(name, examples, steps, rates, held_out, test):
  c = recipe(f"dataset={name}")
  assert c.data.name == name
  plan = durations.plan(c, examples)
  assert plan.total == steps
  assert plan.warmup == min(500, steps // 5)
  assert c.sweep.learning_rates == (0.003, 0.01, 0.03, 0.06)[:rates]
  assert c.sweep.eval_split == held_out
  assert (c.data.train_split, c.data.eval_split) == ("train", test)
  assert (c.batch_size, c.optimizer.name, c.optimizer.momentum) == (
    512,
    "sgd",
    0.9,
  )
  assert (c.optimizer.clip_norm, c.schedule.decay) == (1.0, "cosine")
  assert (c.optimizer.weight_decay, c.loss.mixup) == (0.0, 0.0)


def test_every_set_that_is_named_can_be_prepared():
  names = set(finetune._RECIPES) | set(finetune._ALIASES.values())
  assert names <= catalog.ENTRIES.keys()


@pytest.mark.parametrize("task", vtab.TASKS)
def test_vtab_squeezes_and_never_augments(task):
  c = recipe(f"dataset=vtab/{task.removeprefix('vtab/')}")
  assert (c.data.crop, c.data.flip, c.data.eval_short_side) == (
    "resize",
    False,
    0,
  )


@pytest.mark.parametrize(
  "name", [f"{f}/{n}" for f, names in released.NAMES.items() for n in names]
)
def test_released_weights_bring_their_variant(name):
  c = recipe(f"model={name},dataset=pets")
  assert c.init_from == name
  assert c.model.variant == name.split("Mixer-")[1].replace("_", "/")
  assert c.data.name == "oxford_iiit_pet"


def test_size():
  c = recipe("size=448,model=L/16")
  assert (c.image_size, c.data.eval_short_side) == (448, 512)
  assert (c.model.variant, c.init_from) == ("L/16", "")
  assert recipe("").image_size == 224
  c = recipe("size=224x320")
  assert (c.image_size, c.image_width) == (224, 320)
  assert c.data.eval_short_side == 366


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    ("cifar10", "'cifar10' behind configs/finetune.py: is none of model="),
    ("data=cifar10", "'data=cifar10' behind"),
    ("size=224x", "size=224x behind .* as in size=448 or size=224x320"),
    ("size=big", "size=big behind .* no number of pixels"),
  ],
)
def test_other_words_are_refused(words, sentence):
  with pytest.raises(UserError, match=sentence):
    finetune.get_config(words)
