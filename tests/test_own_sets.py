"""configs/finetune.py and configs/scratch.py, by the words behind a colon."""

import json

import jax
import numpy as np
import pytest

import input_pipeline
from configs import cifar10, finetune, scratch, smoke
from mixer import config as config_lib
from mixer import durations, released, validation
from mixer import initial as lib
from mixer import model as model_lib
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
  optimizer = c.optimizer
  assert (c.batch_size, optimizer.name, optimizer.momentum) == (512, "sgd", 0.9)
  assert (optimizer.clip_norm, c.schedule.decay) == (1.0, "cosine")
  assert (optimizer.weight_decay, c.loss.mixup) == (0.0, 0.0)


def test_names_of_sets_and_weights():
  assert finetune._TABLE.keys() <= catalog.ENTRIES.keys()
  for task in vtab.TASKS:  # Squeezed, and never augmented.
    data = recipe(f"dataset=vtab/{task.removeprefix('vtab/')}").data
    assert (data.crop, data.flip, data.eval_short_side) == ("resize", False, 0)
  for folder, files in released.NAMES.items():
    for file in files:
      c = recipe(f"model={folder}/{file},dataset=oxford_iiit_pet")
      assert c.init_from == f"{folder}/{file}"
      assert c.model.variant == file.split("Mixer-")[1].replace("_", "/")
      assert c.data.name == "oxford_iiit_pet"


def test_a_file_of_weights_brings_its_model_and_size(tmp_path):
  path = tmp_path / "mine.npz"
  trained_files.npz(path, 3)
  c = recipe(f"model={path},dataset=oxford_iiit_pet")
  assert c.init_from == str(path)
  assert (c.model.variant, c.model.num_blocks) == ("S/4", 2)
  assert (c.image_size, c.data.eval_short_side) == (8, 9)
  # They are what the run starts from, at another size as well.
  for config in (c, recipe(f"model={path},dataset=oxford_iiit_pet,size=16")):
    origin = lib.find(config, tmp_path / "run", ["a", "b"])
    assert f"the weights of {path}" in origin.message
  np.savez(path, **trained_files.older(trained_files.npz(path, 3)))
  assert recipe(f"model={path}").model == c.model


@pytest.mark.parametrize("place", ["", "checkpoints/3"])
def test_a_run_brings_its_model_and_size(tmp_path, place):
  run = smoke.get_config()
  run.model.token_groups, run.image_width = 4, 24
  content = {"config": config_lib.to_json(run), "resolved": {}}
  (tmp_path / "config.json").write_text(json.dumps(content))
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  c = recipe(f"model={tmp_path / place},dataset=oxford_iiit_pet")
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


def test_sizes():
  c = recipe("size=448,model=L/16,dataset=imagenet2012")
  assert (c.image_size, c.data.eval_short_side) == (448, 512)
  assert c.model.variant == "L/16"
  assert recipe("").image_size == 224
  c = recipe("size=224x320,dataset=oxford_iiit_pet")
  assert (*config_lib.image_size(c), c.data.eval_short_side) == (224, 320, 366)
  # Enlarged as in training, not to a mosaic.
  assert recipe("dataset=cifar100").data.eval_short_side == 0


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    ("model=b/16", "model=b/16 .* is no variant, such as B/16, and there are "),
    ("model=" + "a" * 5000, "is no variant, such as B/16, and there are no we"),
    ("model=~nobody/x.npz", "there are no weights at ~nobody/x.npz"),
    (
      "cifar10",
      "'cifar10' behind configs/finetune.py: should be model=",
    ),
    ("data=cifar10", "'data=cifar10' behind"),
    ("size=224x", "'size=224x' behind .* or size=PIXELS or HEIGHTxWIDTH"),
  ],
)
def test_other_words_are_refused(words, sentence):
  with pytest.raises(UserError, match=sentence):
    finetune.get_config(words)


# From scratch.


@pytest.mark.parametrize(
  ("size", "variant", "short_side"),
  [
    ("8", "S/1", 8),  # Up to 64 px that of configs/cifar10.py.
    ("28", "S/4", 28),
    ("32x48", "S/4", 48),
    ("64", "S/8", 64),
    ("96", "S/12", 110),
    ("224", "S/16", 256),
    ("224x320", "S/16", 366),
  ],
)
def test_the_patch_divides_the_size(size, variant, short_side):
  c = scratch.get_config(f"dataset=mine,size={size}")
  validation.validate(c, 8)
  assert (c.model.variant, c.data.eval_short_side) == (variant, short_side)
  height, width = config_lib.image_size(c)
  assert size in (f"{height}", f"{height}x{width}")
  epochs = int(c.total.split()[0])
  fewest = 1 if epochs == 300 else 6  # For one update.
  for examples in (fewest, 54, 14_000_000):  # The schedule fits any number.
    plan = durations.plan(c, examples)
    assert plan.warmup < plan.total == round(epochs * examples / 128)


@pytest.mark.parametrize(
  ("words", "millions"), [("", "0.31"), ("model=nano", "1.13")]
)
def test_models_for_small_photographs(words, millions):
  c = cifar10.get_config(words)
  validation.validate(c, 8)
  module = model_lib.from_config(c, 10)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  found = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
  assert f"{found:.2f}" == millions and f"({millions} M" in cifar10.__doc__
  # The same behind the other recipe's colon; any size, any set.
  assert scratch.get_config("size=32") == cifar10.get_config()
  c = scratch.get_config("size=64x48,dataset=mine")
  assert c == cifar10.get_config("dataset=mine,size=64x48")


def test_a_model_from_scratch_may_be_named():
  large = model_lib.build("S/16", 10)  # As the docstring has it.
  whole = 300 * 50_000
  assert f"{model_lib.training_flop(large, 224) * whole:.0e}" == "3e+17"
  c = scratch.get_config("model=B/32,size=64")
  assert (c.model.variant, c.model.hidden_dim) == ("B/32", 0)


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    ("birds", "'birds' behind configs/scratch.py: .*=birds,size=96"),
    ("size=0", "'size=0' behind configs/scratch.py"),
    ("size=227", "no patch .* divides it .* size=224x320, or name a model"),
    ("size=13x1000", "take multiples of 16 as in"),
  ],
)
def test_words_that_scratch_refuses(words, sentence):
  with pytest.raises(UserError, match=sentence):
    scratch.get_config(words)
  if "scratch" not in sentence:
    with pytest.raises(UserError, match=f"behind configs/cifar10.*{sentence}"):
      cifar10.get_config(words)


def test_models_that_cifar10_refuses():
  with pytest.raises(UserError, match="as in .*cifar10.py:model=nano"):
    cifar10.get_config("model=B/16")


def test_the_evaluation_split_that_there_is(data_dir):
  c = scratch.get_config("dataset=digits,size=16")
  c.data.data_dir = data_dir
  checked = input_pipeline.open_inputs(c)
  assert checked.config.data.eval_split == "test"
  assert c.data.eval_split == "auto"
