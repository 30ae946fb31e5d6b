import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import smoke
from mixer import config as config_lib
from mixer import model, released, trained, weights
from mixer.datasets import wordnet
from mixer.errors import UserError
from tests import trained_files


def logits(found, images):
  """What the model says of uint8 images."""
  scaled = images.astype(np.float32) / 127.5 - 1
  apply = jax.jit(lambda params, x: model.apply(found.module, params, x))
  return np.asarray(apply(found.params, scaled.astype(found.module.dtype)))


def pictures(side, count=2):
  shape = (count, side, side, 3)
  return np.random.default_rng(3).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  return workdir, trained_files.save(workdir, smoke.get_config())


def test_a_run_is_what_its_config_says(run):
  workdir, state = run
  config = smoke.get_config()
  for path in (workdir, workdir / "checkpoints" / "4"):
    found = trained.load(str(path))
    # The average of the weights, as evaluations during training.
    jax.tree.map(np.testing.assert_array_equal, found.params, state.ema)
    assert found.module == model.plain(model.from_config(config, 10))
    assert (found.image_size, found.short_side) == ((16, 16), 16)
    assert found.class_ids == found.class_names == tuple("0123456789")
    assert (found.loss, found.num_classes) == ("softmax", 10)
    assert found.config is not None
    assert found.config.to_dict() == config.to_dict()
    assert f"{workdir}/checkpoints/4 (step 4, averaged weights)" in found.origin


def test_configs_of_other_versions_and_widened_weights(tmp_path):
  config = smoke.get_config()
  config.optimizer.ema_decay = 0.0
  config.model.tokens_mlp_dim = 64

  def older(metadata):
    del metadata["config"]["sweep"]
    del metadata["config"]["data"]["eval_short_side"]
    metadata["config"]["gone"] = 1
    metadata["config"]["fewshot"]["shots"] = [1, 2]
    metadata["config"]["model"]["tokens_mlp_dim"] = 16
    metadata["resolved"]["tokens_mlp_dim"] = 64

  state = trained_files.save(tmp_path, config, older)
  found = trained.load(str(tmp_path))
  assert found.short_side == config_lib.default().data.eval_short_side
  assert found.config is not None and "gone" not in found.config
  assert found.config.fewshot.shots == (1, 2)
  assert found.module.tokens_mlp_dim == 64 and "averaged" not in found.origin
  jax.tree.map(np.testing.assert_array_equal, found.params, state.params)


@pytest.mark.parametrize(
  "change",
  [
    {"config": 3},
    {"class_names": None},
    {"resolved": [[]]},
    {"class_names": "abc"},
    {"config": {"model": 3}},
    {"config": {"image_size": -3}},
  ],
  ids=str,
)
def test_a_foreign_checkpoint_is_refused(tmp_path, change):
  trained_files.save(tmp_path, smoke.get_config(), lambda m: m.update(change))
  with pytest.raises(UserError, match=r"checkpoint .* (damaged|other weights)"):
    trained.load(str(tmp_path))


@pytest.mark.parametrize(
  ("num_classes", "bias", "loss"),
  [(1_000, 0.1, "softmax"), (21, -9.0, "sigmoid")],
)
def test_a_file_of_weights_alone(tmp_path, num_classes, bias, loss):
  path = tmp_path / "w.npz"
  flat = trained_files.npz(path, num_classes, bias)
  found = trained.load(str(path))
  # They may be anybody's thousand classes.
  assert found.class_ids is None and found.class_names is None
  assert f"which classes its {num_classes:,} outputs are" in found.unnamed
  assert found.loss == loss
  # 8 px is to 224 as 9 is to 256.
  assert (found.image_size, found.short_side) == ((8, 8), 9)
  assert (found.config, found.origin) == (None, str(path))
  got = weights.flatten(found.params)
  jax.tree.map(np.testing.assert_array_equal, got, flat)
  module = model.MlpMixer(4, 2, 8, 6, 12, num_classes=num_classes)
  assert found.module == module and module.dtype == jnp.float32


@pytest.mark.parametrize(
  ("name", "classes"),
  [("imagenet1k/Mixer-B_16", "imagenet1k"), ("imagenet21k/Mixer-B_16", "head")],
)
def test_released_weights_are_known_by_name(
  tmp_path, monkeypatch, name, classes
):
  ids = wordnet.classes(classes)
  monkeypatch.setenv("MIXER_CACHE", str(tmp_path))
  path = tmp_path / "released" / f"{name}.npz"
  path.parent.mkdir(parents=True)
  trained_files.npz(path, len(ids))
  for known in (name, path, f"{released._URL}/{name}.npz"):
    found = trained.load(str(known))
    assert found.class_ids == ids and found.unnamed == ""
    assert found.class_names == wordnet.names(ids)


def test_metadata_beside_a_file(tmp_path):
  path, beside = tmp_path / "w.npz", tmp_path / "w.npz.json"
  trained_files.npz(path, 3)
  for wanted in (
    dict(class_ids=("a", "Käse", "c\n\x1b"), loss="sigmoid", short_side=0),
    dict(class_ids=("a", "b", "\udcff"), short_side=17, image_size=(4, 16)),
  ):
    trained_files.describe(path, **wanted)
    found = trained.load(str(path))
    assert {k: getattr(found, k) for k in wanted} == wanted
  trained_files.describe(path, class_ids=tuple("abc"))
  content = json.loads(beside.read_text())
  for wrong in ({"scores": "sigmoid"}, {"sha256": None}, {"weights": ""}):
    beside.write_text(json.dumps(content | wrong))
    with pytest.raises(UserError, match=r"json is damaged, or was not written"):
      trained.load(str(path))
  beside.write_text(json.dumps(content))
  trained_files.npz(path, 3, bias=1.0)
  with pytest.raises(UserError, match="not written with the weights in"):
    trained.load(str(path))
  beside.unlink()
  params = trained.load(str(path), (4, 12), "resample").params
  weights.save(params, tmp_path / "oblong.npz")
  with pytest.raises(UserError, match="images are no squares.*npz.json"):
    trained.load(str(tmp_path / "oblong.npz"))


def test_another_size_is_the_mean_over_tiles(tmp_path):
  # Appendix C, as the head is linear.
  trained_files.npz(tmp_path / "w.npz", 10)
  found = trained.load(str(tmp_path / "w.npz"))
  large = trained.load(str(tmp_path / "w.npz"), (16, 24), "tiles")
  assert (large.image_size, large.short_side) == ((16, 24), 27)
  assert large.module.tokens_mlp_dim == 6 * 6
  assert "token mixing tiled from 2 x 2 to 4 x 6" in large.origin
  images = np.concatenate([pictures(16), pictures(16)], axis=2)[:, :, :24]
  tiles = [
    logits(found, images[:, y : y + 8, x : x + 8])
    for y in (0, 8)
    for x in (0, 8, 16)
  ]
  np.testing.assert_allclose(
    logits(large, images), np.mean(tiles, axis=0), rtol=1e-4, atol=1e-5
  )


def test_what_is_done_to_a_run_is_in_its_origin(run):
  workdir = str(run[0])
  assert trained.load(workdir, 16).module == trained.load(workdir).module
  assert "tiled" in trained.load(workdir, 32).origin
  found = trained.load(workdir, 32, "resample", "bfloat16")
  assert "resampled" in found.origin
  assert found.module.dtype == jnp.bfloat16
  assert logits(found, pictures(32)).shape == (2, 10)


def test_permuted_patches_go_with_the_model_and_with_one_size(tmp_path):
  config = smoke.get_config()
  config.data.permute = "patches"
  config.data.permute_seed = 7
  trained_files.save(tmp_path, config)
  found = trained.load(str(tmp_path))
  assert (found.module.permute, found.module.permute_seed) == ("patches", 7)
  plain = dataclasses.replace(found, module=found.module.clone(permute=""))
  images = pictures(16)
  assert not np.allclose(logits(found, images), logits(plain, images))
  with pytest.raises(UserError, match="patches permuted.*image_size="):
    trained.load(str(tmp_path), 32)
