"""configs/finetune.py: the paper's recipes by words behind the colon."""

import json

import numpy as np
import pytest

from configs import finetune, smoke
from mixer import config as config_lib
from mixer import durations, released, validation, weights
from mixer import initial as lib
from mixer.commands import sweep
from mixer.datasets import catalog, vtab
from mixer.errors import UserError
from tests import trained_files


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


def test_a_file_of_weights_brings_its_model_and_size(tmp_path):
  path = tmp_path / "mine.npz"
  trained_files.npz(path, 3)
  c = recipe(f"model={path},dataset=pets")
  assert c.init_from == str(path)
  assert (c.model.variant, c.model.num_blocks) == ("S/4", 2)
  assert (c.image_size, c.data.eval_short_side) == (8, 9)
  # They are what the run starts from, at another size as well.
  for config in (c, recipe(f"model={path},dataset=pets,size=16")):
    origin = lib.find(config, tmp_path / "run", ["a", "b"])
    assert f"the weights of {path}" in origin.message
  np.savez(path, **trained_files.older(trained_files.npz(path, 3)))
  assert recipe(f"model={path}").model == c.model


def test_weights_of_a_published_shape_are_of_that_variant(tmp_path):
  path = tmp_path / "any_name.npz"
  shape = trained_files.shape_of("S/32", 5)
  zeros = {k: np.zeros(s, "f4") for k, s in weights.expected(shape).items()}
  np.savez_compressed(path, allow_pickle=False, **zeros)
  c = recipe(f"model={path}")
  assert (c.model.variant, c.model.num_blocks) == ("S/32", 0)
  assert c.image_size == 224


@pytest.mark.parametrize("place", ["", "checkpoints/3"])
def test_a_run_brings_its_model_and_size(tmp_path, place):
  run = smoke.get_config()
  run.model.token_groups, run.image_width = 4, 24
  content = {"config": config_lib.to_json(run), "resolved": {}}
  (tmp_path / "config.json").write_text(json.dumps(content))
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  c = recipe(f"model={tmp_path / place},dataset=pets")
  assert c.init_from == str(tmp_path / place)
  for key in ("variant", "hidden_dim", "num_blocks", "token_groups"):
    assert c.model[key] == run.model[key]
  # What is the paper's for fine-tuning stays.
  assert (c.model.dropout, c.model.dtype) == (0.0, "bfloat16")
  assert config_lib.image_size(c) == (16, 24)


def test_a_variant_without_weights_is_refused(smoke_config, tmp_path):
  for words in ("", "dataset=birds", "model=S/16,dataset=birds"):
    with pytest.raises(UserError) as caught:
      lib.find(recipe(words), tmp_path, ["a", "b"])
    assert "no weights are named" in str(caught.value)
    assert "scratch.py:dataset=" in str(caught.value)
  # By a sweep too, before it trains.
  c = smoke_config
  c.init_from = recipe("").init_from
  c.sweep.learning_rates = (0.01,)
  c.sweep.train_split, c.sweep.eval_split = "train[:80%]", "train[80%:]"
  with pytest.raises(UserError, match="no weights are named"):
    sweep.sweep(c, tmp_path / "sweep")
  assert not (tmp_path / "sweep" / "lr_0.01").exists()
  c.init_from = ""
  assert "random" in lib.find(c, tmp_path, ["a", "b"]).message


def test_size():
  c = recipe("size=448,model=L/16,dataset=imagenet")
  assert (c.image_size, c.data.eval_short_side) == (448, 512)
  assert c.model.variant == "L/16"
  assert recipe("").image_size == 224
  c = recipe("size=224x320,dataset=pets")
  assert (c.image_size, c.image_width) == (224, 320)
  assert c.data.eval_short_side == 366
  # Enlarged as in training, not to a mosaic.
  assert recipe("dataset=cifar100").data.eval_short_side == 0


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    ("model=b/16", "model=b/16 .* is no variant, such as B/16, and there are "),
    ("model=" + "a" * 5000, "is no variant, such as B/16, and there are no we"),
    ("model=~nobody/x.npz", "there are no weights at ~nobody/x.npz"),
    ("b" * 5000, "^'bbb.* long. behind configs/finetune.py: is none of model="),
    ("model=B16", "there are no weights at B16: expected an .npz file, a work"),
    ("cifar10", "'cifar10' behind configs/finetune.py: is none of model="),
    ("data=cifar10", "'data=cifar10' behind"),
    ("size=224x", "size=224x behind .* as in size=448 or size=224x320"),
    ("size=big", "size=big behind .* no number of pixels"),
  ],
)
def test_other_words_are_refused(words, sentence):
  with pytest.raises(UserError, match=sentence):
    finetune.get_config(words)
