import dataclasses
import functools
import http.server
import threading
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import checkpoints, model, released, resolution, train_step, weights
from mixer.errors import UserError
from tests import reference, trained_files

SMALL = weights.Shape(
  patch_size=2,
  num_blocks=3,
  hidden_dim=6,
  tokens_mlp_dim=5,
  channels_mlp_dim=7,
  num_tokens=4,
  num_classes=3,
)


def random_weights(shape, seed=0):
  """As of a trained model: signals keep their size, nothing is 0 or 1."""
  rng = np.random.default_rng(seed)
  flat = {}
  for name, dims in weights.expected(shape).items():
    array = rng.standard_normal(dims, np.float32)
    if name.endswith("kernel"):
      array /= np.float32(np.sqrt(np.prod(dims[:-1])))
    else:
      array = np.float32(name.endswith("scale")) + array / 10
    flat[name] = array
  return flat


def older(flat, axes="front", counts=("0", "0", "1", "0")):
  """The same in the older layout.

  Args:
    flat: of the current layout.
    axes: where the MLPs' arrays have singleton axes.
    counts: behind the name of a block's norms and mixings, in their order.
  """
  norm_0, tokens, norm_1, channels = counts
  widen = {
    "front": lambda x: x[None],
    "back": lambda x: x[..., None],
    "middle": lambda x: x[:, None] if x.ndim == 2 else x[None, None],
    "none": lambda x: x,
  }[axes]
  result = {
    "embedding/kernel": flat["stem/kernel"],
    "embedding/bias": flat["stem/bias"],
    "Mixer/encoder_norm/scale": flat["pre_head_layer_norm/scale"],
    "Mixer/encoder_norm/bias": flat["pre_head_layer_norm/bias"],
  }
  for name in flat:
    if name.startswith("head"):
      result[name] = flat[name]
  i = 0
  while f"MixerBlock_{i}/LayerNorm_0/scale" in flat:
    new, old = f"MixerBlock_{i}", f"Mixer/encoderblock_{i}"
    for a, b in ((norm_0, 0), (norm_1, 1)):
      for leaf in ("scale", "bias"):
        result[f"{old}/LayerNorm_{a}/{leaf}"] = flat[
          f"{new}/LayerNorm_{b}/{leaf}"
        ]
    for mixing, n in (("token_mixing", tokens), ("channel_mixing", channels)):
      for leaf in ("kernel", "bias"):
        for dense in (0, 1):
          result[f"{old}/{mixing}_phase_{n}/{leaf}{dense + 1}"] = widen(
            flat[f"{new}/{mixing}/Dense_{dense}/{leaf}"]
          )
    i += 1
  return result


def assert_same(params, flat):
  found = weights.flatten(params)
  assert found.keys() == flat.keys()
  for name, array in flat.items():
    assert isinstance(found[name], np.ndarray)
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], array, name)


@pytest.fixture(scope="module")
def flat():
  return random_weights(SMALL)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "weights.npz"


def test_the_current_layout(path, flat):
  np.savez_compressed(path, **flat)
  params = released.load(path)
  assert_same(params, flat)
  assert isinstance(params["MixerBlock_2"]["token_mixing"]["Dense_1"], dict)


@pytest.mark.parametrize("counts", ["0010", "0121", "0123", "1032"])
@pytest.mark.parametrize("axes", ["front", "back", "middle", "none"])
def test_the_older_layout(path, flat, axes, counts):
  if counts == "1032":  # Norms in order of their numbers, whatever these are.
    counts = ("3", "1", "17", "2")
  np.savez(path, **older(flat, axes, counts))
  assert_same(released.load(path), flat)


widths = st.integers(1, 3)


@settings(max_examples=20, deadline=None)
@given(
  st.builds(weights.Shape, *6 * [widths], num_classes=st.integers(0, 3)),
  st.sampled_from(["current", "older"]),
)
def test_what_is_saved_is_loaded(tmp_path_factory, shape, dialect):
  flat = random_weights(shape)
  path = tmp_path_factory.mktemp("released") / "a.npz"
  released.save(weights.unflatten(flat), path, dialect)
  assert_same(released.load(path), flat)
  again = path.with_name("b.npz")
  released.save(released.load(path), again, dialect)
  assert again.read_bytes() == path.read_bytes()
  with np.load(path) as file:
    written = dict(file)
  expected = flat if dialect == "current" else older(flat)
  assert_same(written, expected)


def test_device_arrays_are_saved(path, flat):
  params = jax.tree.map(jnp.asarray, weights.unflatten(flat))
  released.save(params, str(path))
  assert_same(released.load(str(path)), flat)


def test_the_resolution_is_changed_by_that_module():
  assert released.resize is resolution.resize


def logits_of(path, variant, num_classes, batch):
  module = model.build(variant, num_classes)
  images = np.random.default_rng(1).uniform(-1, 1, (batch, 224, 224, 3))
  images = images.astype(np.float32)
  params = released.load(path)
  found = jax.jit(module.apply)({"params": params}, images)
  return np.asarray(found), images


def assert_computes_the_same(folder, variant, num_classes, batch=1):
  flat = random_weights(trained_files.shape_of(variant, num_classes), seed=3)
  np.savez(folder / "current.npz", **flat)
  found, images = logits_of(folder / "current.npz", variant, num_classes, batch)
  expected = reference.forward(weights.unflatten(flat), images)
  assert found.shape == (batch, num_classes) and expected.std() > 0.1
  assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
  (folder / "current.npz").unlink()
  np.savez(folder / "older.npz", **older(flat))
  del flat, expected
  again, _ = logits_of(folder / "older.npz", variant, num_classes, batch)
  np.testing.assert_array_equal(again, found)


def test_logits_of_loaded_weights_equal_numpy(tmp_path):
  assert_computes_the_same(tmp_path, "S/32", 1000)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [1000, 21_843])
@pytest.mark.parametrize("variant", model.VARIANTS)
def test_logits_of_every_size_equal_numpy(tmp_path, variant, num_classes):
  assert_computes_the_same(tmp_path, variant, num_classes)


def test_all_that_is_wrong_is_listed_at_once(path):
  flat = random_weights(SMALL)
  del flat["head/bias"], flat["MixerBlock_1/channel_mixing/Dense_1/kernel"]
  flat["MixerBlock_1/LayerNorm_2/bias"] = np.zeros(6, np.float32)
  flat["MixerBlock_0/token_mixing/Dense_0/bias"] = np.zeros(9, np.float32)
  flat["cls/x"] = np.zeros((1, 1, 6), np.float32)
  np.savez(path, **flat)
  with pytest.raises(UserError) as e:
    released.load(path)
  assert str(e.value) == (
    f"the weights in {path} are not those of a whole MLP-Mixer: "
    "MixerBlock_0/token_mixing/Dense_0/bias is (9,) there and (5,) here; "
    "MixerBlock_1/LayerNorm_2/bias (6,) is unexpected; "
    "MixerBlock_1/channel_mixing/Dense_1/kernel (7, 6) is missing; "
    "cls/x (1, 1, 6) is unexpected; "
    "head/bias (3,) is missing."
  )


def test_the_older_layout_is_judged_in_its_own_names(path, flat):
  wrong = older(flat, counts=("0", "1", "2", "3"))
  block = "Mixer/encoderblock_1"
  del wrong[f"{block}/channel_mixing_phase_3/kernel2"]
  del wrong["embedding/bias"]
  wrong[f"{block}/LayerNorm_2/bias"] = np.zeros(9, np.float32)
  wrong[f"{block}/token_mixing_phase_1/bias1"] = np.zeros((9, 1), np.float32)
  wrong["Mixer/posembed/x"] = np.zeros((1, 4), np.float32)
  np.savez(path, **wrong)
  with pytest.raises(UserError) as e:
    released.load(path)
  assert str(e.value) == (
    f"the weights in {path} have the names of the older layout, and they are "
    "not those of a whole MLP-Mixer: "
    "Mixer/posembed/x (1, 4) is unexpected; "
    f"{block}/LayerNorm_2/bias is (9,) there and (6,) here; "
    f"{block}/channel_mixing_phase_0/kernel2 (7, 6) is missing; "
    f"{block}/token_mixing_phase_1/bias1 is (9,) there and (5,) here; "
    "embedding/bias (6,) is missing. (Shapes are without singleton axes.)"
  )


@pytest.mark.parametrize("layout", [dict, older])
def test_a_block_that_is_missing_is_noticed(path, layout):
  arrays = layout(random_weights(SMALL))
  np.savez(path, **{k: v for k, v in arrays.items() if "lock_1/" not in k})
  with pytest.raises(UserError, match=r"lock_1/.* is missing"):
    released.load(path)


def test_one_parameter_under_two_names(path, flat):
  both = older(flat)
  name = "Mixer/encoderblock_0/token_mixing_phase_"
  both[f"{name}1/bias1"] = both[f"{name}0/bias1"]
  np.savez(path, **both)
  with pytest.raises(UserError, match=f"{name}0/bias1 and as {name}1/bias1"):
    released.load(path)
  np.savez(path, **older(flat) | {"stem/bias": flat["stem/bias"]})
  with pytest.raises(UserError, match="twice, as embedding/bias and as stem/b"):
    released.load(path)


@pytest.mark.parametrize(
  ("keys", "sentence"),
  [
    (
      [
        "embedding/kernel",
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel",
      ],
      "holds a Vision Transformer, not an MLP-Mixer: Transformer/encoderblock_",
    ),
    (
      ["params/stem/bias", "opt/0/mu/stem/bias"],
      r"whole training state \(params/stem/bias, .*lies under `params/`",
    ),
    (["opt/target/stem/bias", "opt/state/step"], "opt/target/"),
    (["conv1.weight"], "not those of an MLP-Mixer.*conv1.weight \\(3,\\)"),
  ],
)
def test_other_files_are_refused(path, keys, sentence):
  arrays: dict[str, Any] = {key: np.zeros(3, np.float32) for key in keys}
  np.savez(path, **arrays)
  with pytest.raises(UserError, match=sentence):
    released.load(path)


def test_a_parameter_that_is_a_group_as_well(path, flat):
  np.savez(path, **flat | {"stem/bias/x": flat["stem/bias"]})
  with pytest.raises(UserError, match=r"stem/bias/x \(6,\) is unexpected"):
    released.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(path, flat, value):
  bad = flat | {"head/bias": np.array([0, value, 0], np.float32)}
  np.savez(path, **bad)
  with pytest.raises(UserError, match="NaNs or infinities in head/bias"):
    released.load(path)
  path.unlink()
  with pytest.raises(UserError, match="NaNs or infinities in head/bias"):
    released.save(weights.unflatten(bad), path)
  assert not path.exists()


def test_what_is_saved_is_checked(path, flat):
  params = weights.unflatten(flat)
  with pytest.raises(UserError, match="weights.zip.* a name ending in .npz"):
    released.save(params, path.with_suffix(".zip"))
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  with pytest.raises(UserError, match="not all float32.*is bfloat16"):
    released.save(half, path)
  del params["stem"]["bias"]
  with pytest.raises(UserError, match=r"stem/bias \(6,\) is missing"):
    released.save(params, path)
  assert not list(path.parent.iterdir())


def test_loading_takes_little_memory_besides_the_weights(tmp_path):
  shape = dataclasses.replace(trained_files.shape_of("B/32", 10), num_blocks=2)
  flat = random_weights(shape)
  np.savez(tmp_path / "a.npz", **flat)
  size = sum(v.nbytes for v in flat.values())
  del flat
  tracemalloc.start()
  try:
    released.load(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 1.1 * size
  finally:
    tracemalloc.stop()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run with two checkpoints, and an average beside the second's weights."""
  path = tmp_path_factory.mktemp("run")
  one, two, average = (
    jax.tree.map(jnp.asarray, weights.unflatten(random_weights(SMALL, seed)))
    for seed in (1, 2, 3)
  )
  with checkpoints.Checkpoints(path, keep=2) as saver:
    for step, params, ema in ((10, one, None), (20, two, average)):
      state = train_step.TrainState(jnp.int32(step), params, (), ema)
      saver.save(step, state, {})
  return path


def test_a_run_is_loaded(workdir):
  assert released.kind(workdir) == "checkpoint"
  assert_same(released.load(workdir), random_weights(SMALL, 3))
  assert_same(released.load(f"{workdir}/"), random_weights(SMALL, 3))
  older_one = workdir / "checkpoints" / "10"
  assert released.kind(older_one) == "checkpoint"
  assert_same(released.load(older_one), random_weights(SMALL, 1))


def test_a_run_is_no_file(workdir):
  with pytest.raises(UserError, match="is a folder where an .npz"):
    released.resolve(workdir)


def test_a_folder_that_is_no_run(tmp_path):
  with pytest.raises(UserError, match="no checkpoint in .*expected a workdir"):
    released.load(tmp_path)


def test_the_names():
  assert sum(map(len, released.NAMES.values())) == 11
  for folder, names in released.NAMES.items():
    for name in names:
      for prefix in (
        "",
        "gs://mixer_models/",
        "https://storage.googleapis.com/mixer_models/",
      ):
        for suffix in ("", ".npz"):
          path = f"{prefix}{folder}/{name}{suffix}"
          assert released.is_name(path)
          assert released.kind(path) == "npz"


@pytest.mark.parametrize(
  "path",
  [
    "Mixer-B_16",
    "imagenet21k",
    "imagenet21k/",
    "imagenet21k/mixer-b_16",
    "imagenet21k/Mixer-B_32",
    "imagenet21k/Mixer-B_16.npz.npz",
    "gs://vit_models/imagenet21k/Mixer-B_16.npz",
    "https://storage.googleapis.com/mixer_models/",
    "weights.npz",
    "runs/b16/checkpoints/300",
    "",
  ],
)
def test_what_is_nothing_of_the_kind_is_told_the_names(
  path, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  assert not released.is_name(path)
  if not path:
    return  # The current folder.
  for function in (released.kind, released.resolve, released.load):
    with pytest.raises(UserError) as e:
      function(path)
    assert str(e.value) == (
      f"there are no weights at {path}: expected an .npz file, a workdir of "
      "train.py or one of its checkpoints on this machine, or the name of a "
      "released file: imagenet1k/Mixer-B_16, imagenet1k/Mixer-L_16, "
      "imagenet21k/Mixer-B_16, imagenet21k/Mixer-L_16, sam/Mixer-B_16, "
      "sam/Mixer-B_32, gsam/Mixer-B_16, gsam/Mixer-B_32, gsam/Mixer-S_16, "
      "gsam/Mixer-S_32, gsam/Mixer-S_8."
    )


class Handler(http.server.SimpleHTTPRequestHandler):
  def log_message(self, format, *args):
    del format, args


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
  """A server's folder and address, with gsam/Mixer-S_32."""
  root = tmp_path_factory.mktemp("mirror")
  (root / "gsam").mkdir()
  np.savez(
    root / "gsam" / "Mixer-S_32.npz",
    **random_weights(trained_files.shape_of("S/32", 1000)),
  )
  handler = functools.partial(Handler, directory=root)
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch, mirror):
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
  monkeypatch.setenv("MIXER_RELEASED_URL", mirror[1] + "/")
  return tmp_path / "cache"


def test_a_name_is_downloaded_once(cache, mirror, monkeypatch):
  expected = random_weights(trained_files.shape_of("S/32", 1000))
  file = cache / "released" / "gsam" / "Mixer-S_32.npz"
  assert_same(released.load("gsam/Mixer-S_32"), expected)
  assert list(file.parent.iterdir()) == [file]
  assert released.is_name(f"{mirror[1]}/gsam/Mixer-S_32.npz")
  # From here on there is nothing to download from.
  monkeypatch.setenv("MIXER_RELEASED_URL", "http://127.0.0.1:1")
  for path in (
    "gsam/Mixer-S_32.npz",
    "gs://mixer_models/gsam/Mixer-S_32.npz",
    "https://storage.googleapis.com/mixer_models/gsam/Mixer-S_32.npz",
  ):
    assert released.resolve(path) == file


def test_what_is_there_comes_before_a_name(cache, tmp_path, monkeypatch, flat):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("MIXER_RELEASED_URL", "http://127.0.0.1:1")
  (tmp_path / "sam").mkdir()
  np.savez("sam/Mixer-B_16.npz", **flat)
  assert_same(released.load("sam/Mixer-B_16.npz"), flat)
  (tmp_path / "sam" / "Mixer-B_16").mkdir()
  assert released.kind("sam/Mixer-B_16") == "checkpoint"
  assert not cache.exists()


def test_home_is_understood(tmp_path, monkeypatch, flat, cache):
  monkeypatch.setenv("HOME", str(tmp_path))
  np.savez(tmp_path / "a.npz", **flat)
  assert_same(released.load("~/a.npz"), flat)
  monkeypatch.setenv("MIXER_CACHE", "")
  assert not cache.exists()
  expected = tmp_path / ".cache" / "mixer" / "released" / "gsam"
  assert released.resolve("gsam/Mixer-S_32").parent == expected


def test_a_page_in_place_of_the_file_is_not_kept(cache, mirror):
  page = mirror[0] / "sam"
  page.mkdir(exist_ok=True)
  (page / "Mixer-B_32.npz").write_text("<html>Please log in</html>")
  with pytest.raises(UserError, match="perhaps a proxy .* is a web page"):
    released.load("sam/Mixer-B_32")
  assert not (cache / "released" / "sam" / "Mixer-B_32.npz").exists()


def test_a_name_that_a_mirror_lacks(cache):
  with pytest.raises(UserError, match="gsam/Mixer-B_16.npz can't .*404 "):
    released.load("gsam/Mixer-B_16")
  assert not (cache / "released" / "gsam" / "Mixer-B_16.npz").exists()


def test_without_a_connection_it_is_said_where_to_put_the_file(
  cache, monkeypatch
):
  monkeypatch.setenv("MIXER_RELEASED_URL", "http://127.0.0.1:1")
  file = cache / "released" / "imagenet21k" / "Mixer-L_16.npz"
  with pytest.raises(
    UserError,
    match=r"fetch that address elsewhere and put the file at "
    rf"{file} yourself",
  ):
    released.load("imagenet21k/Mixer-L_16")


def test_a_file_put_in_another_ones_place_is_refused(cache):
  file = cache / "released" / "imagenet21k" / "Mixer-B_16.npz"
  file.parent.mkdir(parents=True)
  small = weights.expected(trained_files.shape_of("S/32", 1000))
  zeros: dict[str, Any] = {k: np.zeros(v, np.float32) for k, v in small.items()}
  np.savez_compressed(file, **zeros)
  with pytest.raises(UserError) as e:
    released.load("imagenet21k/Mixer-B_16")
  assert str(e.value) == (
    f"{file} is not imagenet21k/Mixer-B_16: patch_size is 32, not 16, "
    "num_blocks is 8, not 12, hidden_dim is 512, not 768, tokens_mlp_dim is "
    "256, not 384, channels_mlp_dim is 2048, not 3072, num_tokens is 49, not "
    f"196, num_classes is 1000, not 21843. Remove {file}, which "
    "imagenet21k/Mixer-B_16 stands for: it is then downloaded anew."
  )
  # By its own path it is what it is.
  assert_same(released.load(file), zeros)
