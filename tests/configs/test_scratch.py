"""configs/scratch.py: a set of one's own, from random weights, at any size."""

import json

import jax
import pytest

import input_pipeline
from configs import finetune, scratch
from mixer import cli, durations, validation
from mixer import config as config_lib
from mixer import model as model_lib
from mixer.commands import sweep
from mixer.datasets import split
from mixer.errors import UserError
from tests.datasets import forms


@pytest.mark.parametrize(
  ("size", "variant", "short_side"),
  [
    ("8", "S/1", 8),
    ("28", "S/4", 28),
    ("32", "S/4", 32),
    ("64", "S/8", 64),
    ("96", "S/12", 110),
    ("100", "S/10", 114),
    ("224", "S/16", 256),
    ("384", "S/16", 439),
    ("224x320", "S/16", 366),
    ("32x48", "S/4", 48),
  ],
)
def test_the_patch_divides_the_size(size, variant, short_side):
  c = scratch.get_config(f"dataset=mine,size={size}")
  validation.validate(c, 8)
  assert (c.model.variant, c.data.eval_short_side) == (variant, short_side)
  assert c.data.name == "mine"
  height, width = config_lib.image_size(c)
  assert size in (f"{height}", f"{height}x{width}")


@pytest.mark.parametrize("examples", [1, 3, 54, 1000, 50_000, 14_000_000])
def test_the_schedule_fits_any_number_of_images(examples):
  plan = durations.plan(scratch.get_config("dataset=mine"), examples)
  assert plan.warmup < plan.total == round(300 * examples / 128)
  assert plan.eval_every <= plan.total


def test_small_images_have_a_small_model():
  c = scratch.get_config("size=32")
  module = model_lib.build(
    c.model.variant,
    10,
    **{k: c.model[k] for k in ("hidden_dim", "tokens_mlp_dim")},
    channels_mlp_dim=c.model.channels_mlp_dim,
  )
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)
  assert sum(x.size for x in jax.tree.leaves(shapes)) < 5e6
  # As the docstring has it.
  whole = 300 * 50_000
  assert f"{model_lib.training_flop(module, 32) * whole:.0e}" == "3e+16"
  large = model_lib.build("S/16", 10)
  assert f"{model_lib.training_flop(large, 224) * whole:.0e}" == "3e+17"


@pytest.mark.parametrize(
  ("words", "sentence"),
  [
    ("birds", "'birds' behind configs/scratch.py: is none of .*=birds,size=96"),
    ("dataset=", "'dataset=' behind configs/scratch.py"),
    ("size=0", "size=0 behind configs/scratch.py"),
    ("size=227", "is divided by no patch .* size=224x224, or name a model"),
    ("size=13x1000", "take a multiple of 16 as in size=16x992"),
  ],
)
def test_other_words_are_refused(words, sentence):
  with pytest.raises(UserError, match=sentence):
    scratch.get_config(words)


def test_a_model_that_is_named_is_taken():
  c = scratch.get_config("model=B/32,size=64")
  assert (c.model.variant, c.model.hidden_dim) == ("B/32", 0)


# Of a set that `mixer prepare folder` has made: no `test`.


@pytest.fixture(scope="module")
def own_set(tmp_path_factory):
  root = tmp_path_factory.mktemp("own")
  places = [f"{c}/{k}.jpg" for c in ("tit", "owl") for k in range(20)]
  files = {place: forms.image(k) for k, place in enumerate(places)}
  source = forms.write(root / "in", files)
  words = ["folder", "--name=birds", f"--source={source}", "--hold_out=30%"]
  assert cli.main(["prepare", *words, f"--data_dir={root}"]) == 0
  return root


@pytest.mark.parametrize("recipe", [finetune, scratch])
def test_recipes_evaluate_on_the_split_that_there_is(recipe, own_set):
  c = recipe.get_config("dataset=birds,size=32,model=S/4")
  c.data.data_dir = str(own_set)
  checked = input_pipeline.open_inputs(c)
  assert checked.eval_split.expression == "validation"
  assert len(checked.train_split) + len(checked.eval_split) == 40
  assert checked.config.data.eval_split == "validation"
  assert c.data.eval_split == "auto"


def test_the_evaluation_split_of_other_sets(own_set, data_dir):
  assert split.open_split("digits", split.AUTO, data_dir).expression == "test"
  prepared = own_set / "birds" / "1.0.0" / "dataset_info.json"
  kept = prepared.read_text()
  info = json.loads(kept)
  info["splits"] = [s for s in info["splits"] if s["name"] == "train"]
  prepared.write_text(json.dumps(info))
  try:
    with pytest.raises(UserError, match="`validation` to evaluate on, but"):
      split.open_split("birds", split.AUTO, str(own_set))
  finally:
    prepared.write_text(kept)


def test_a_sweep_opens_every_split_before_it_trains(
  smoke_config, own_set, tmp_path
):
  c = smoke_config
  c.data.name, c.data.data_dir = "birds", str(own_set)
  c.sweep.learning_rates = (0.01,)
  c.sweep.train_split, c.sweep.eval_split = "train[:80%]", "train[80%:]"
  # `test` is what the last run alone would evaluate on.
  with pytest.raises(UserError, match="birds has no split 'test'"):
    sweep.sweep(c, tmp_path / "sweep")
  c.data.eval_split = "auto"
  c.sweep.eval_split = "validation"
  with pytest.raises(UserError, match="is data.eval_split as well"):
    sweep.sweep(c, tmp_path / "sweep")
  assert not (tmp_path / "sweep").exists()
