"""Files of weights, from whole ones of every layout to damaged ones."""

import dataclasses
import io
import os
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import model, npz, weights
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
FLAT = trained_files.random_weights(SMALL)
ARRAYS = {"a/b": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
older = trained_files.older


def assert_same(params, flat):
  found = weights.flatten(params)
  assert found.keys() == flat.keys()
  for name, array in flat.items():
    assert type(found[name]) is np.ndarray
    assert found[name].dtype == np.float32 and found[name].dtype.isnative
    np.testing.assert_array_equal(found[name], array, name)


widths = st.integers(1, 3)


@settings(max_examples=20, deadline=None)
@given(st.builds(weights.Shape, *6 * [widths], num_classes=st.integers(0, 3)))
def test_what_is_saved_is_loaded(tmp_path_factory, shape):
  flat = trained_files.random_weights(shape)
  folder = tmp_path_factory.mktemp("npz")
  device = jax.tree.map(jnp.asarray, weights.unflatten(flat))
  npz.save(device, folder / "a.npz")
  assert_same(npz.load(folder / "a.npz"), flat)
  npz.save(npz.load(folder / "a.npz"), str(folder / "b.npz"))
  content = (folder / "a.npz").read_bytes()
  assert content == (folder / "b.npz").read_bytes()
  with np.load(folder / "a.npz") as file:
    assert_same(dict(file), flat)


@pytest.mark.parametrize("counts", ["0010", "0123", (3, 1, 17, 2)])
@pytest.mark.parametrize("axes", ["front", "back", "middle", "none"])
def test_the_older_layout(tmp_path, axes, counts):
  np.savez_compressed(tmp_path / "a", **older(FLAT, axes, counts))
  assert_same(npz.load(tmp_path / "a.npz"), FLAT)
  assert any(k.startswith("Mixer/") for k in npz.read(tmp_path / "a.npz"))


@pytest.mark.parametrize(
  "change", [lambda x: x.astype(">f4"), np.asfortranarray]
)
def test_values_of_another_order(tmp_path, change):
  np.savez(tmp_path / "a", **{k: change(v) for k, v in FLAT.items()})
  assert_same(npz.load(tmp_path / "a.npz"), FLAT)


def assert_computes_the_same(folder, variant, num_classes):
  shape = trained_files.shape_of(variant, num_classes)
  flat = trained_files.random_weights(shape, seed=3)
  images = np.random.default_rng(1).uniform(-1, 1, (1, 224, 224, 3))
  images = images.astype(np.float32)
  apply = jax.jit(model.build(variant, num_classes).apply)
  np.savez(folder / "a", **flat)
  found = apply({"params": npz.load(folder / "a.npz")}, images)
  expected = reference.forward(weights.unflatten(flat), images)
  assert found.shape == (1, num_classes) and expected.std() > 0.1
  assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
  np.savez(folder / "a", **older(flat))
  again = apply({"params": npz.load(folder / "a.npz")}, images)
  np.testing.assert_array_equal(again, found)


def test_logits_of_loaded_weights_equal_numpy(tmp_path):
  assert_computes_the_same(tmp_path, "S/32", 1000)


@pytest.mark.slow
@pytest.mark.parametrize("variant", model.VARIANTS)
def test_logits_of_every_size_equal_numpy(tmp_path, variant):
  assert_computes_the_same(tmp_path, variant, 21_843)


def test_all_that_is_wrong_is_listed_at_once(tmp_path):
  flat = dict(FLAT)
  del flat["head/bias"], flat["MixerBlock_1/channel_mixing/Dense_1/kernel"]
  flat["MixerBlock_0/token_mixing/Dense_0/bias"] = np.zeros(9, np.float32)
  flat["cls/x"] = np.zeros((1, 1, 6), np.float32)
  np.savez(tmp_path / "a", **flat)
  with pytest.raises(UserError) as e:
    npz.load(tmp_path / "a.npz")
  assert str(e.value) == (
    f"the weights in {tmp_path}/a.npz are not those of a whole MLP-Mixer: "
    "MixerBlock_0/token_mixing/Dense_0/bias is (9,) there and (5,) here; "
    "MixerBlock_1/channel_mixing/Dense_1/kernel (7, 6) is missing; "
    "cls/x (1, 1, 6) is unexpected; "
    "head/bias (3,) is missing."
  )


def without(part):
  return {k: v for k, v in FLAT.items() if part not in k}


TWICE = older(FLAT) | {
  "Mixer/encoderblock_0/token_mixing_phase_1/bias1": np.zeros(5, np.float32)
}
OLD = older(FLAT)
del OLD["Mixer/encoderblock_1/channel_mixing_phase_0/kernel2"]
FIRST = np.zeros(3, np.float32)


@pytest.mark.parametrize(
  ("arrays", "sentence"),
  [
    (without("lock_1/"), "MixerBlock_1/LayerNorm_0/bias (6,) is missing"),
    (without("LayerNorm"), "; and 4 more"),
    (TWICE, "MixerBlock_0/token_mixing/Dense_0/bias twice, once as"),
    (older(FLAT) | {"stem/bias": FIRST}, "holds stem/bias twice"),
    (FLAT | {"stem/bias/x": FIRST}, "stem/bias/x (3,) is unexpected"),
    (FLAT | {"MixerBlock_99/x": FIRST}, "MixerBlock_3/LayerNorm_0/bias (6,)"),
    (OLD, "MixerBlock_1/channel_mixing/Dense_1/kernel (7, 6) is missing"),
    ({"conv1.weight": FIRST}, "not those of an MLP-Mixer, which has stem/ker"),
    ({"opt/target/stem/bias": FIRST}, "there are opt/target/stem/bias (3,)"),
    (FLAT | {"head/bias": FIRST * np.nan}, "NaNs or infinities in head/bias"),
    (FLAT | {"head/bias": FIRST - np.inf}, "NaNs or infinities in head/bias"),
  ],
)
def test_other_weights_are_refused(tmp_path, arrays, sentence):
  np.savez(tmp_path / "a", **arrays)
  with pytest.raises(UserError) as e:
    npz.load(tmp_path / "a.npz")
  assert sentence in str(e.value)


def test_what_is_saved_is_checked(tmp_path):
  params = weights.unflatten(FLAT)
  with pytest.raises(UserError, match="weights.zip.* a name ending in .npz"):
    npz.save(params, tmp_path / "weights.zip")
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
  with pytest.raises(UserError, match="not all float32.*is bfloat16"):
    npz.save(half, tmp_path / "a.npz")
  bad = weights.unflatten(FLAT | {"head/bias": FIRST * np.nan})
  with pytest.raises(UserError, match="NaNs or infinities in head/bias"):
    npz.save(bad, tmp_path / "a.npz")
  del params["stem"]["bias"]
  with pytest.raises(UserError, match=r"stem/bias \(6,\) is missing"):
    npz.save(params, tmp_path / "a.npz")
  with pytest.raises(UserError, match="gone.*No such file"):
    npz.write(tmp_path / "gone" / "a.npz", ARRAYS)
  assert not list(tmp_path.iterdir())


def npy(array):
  content = io.BytesIO()
  np.save(content, array)
  return content.getvalue()


def with_header(text, version=1, values=b""):
  """The bytes of an .npy file with such a header."""
  size = len(text).to_bytes(2 if version == 1 else 4, "little")
  return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + values


SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"
HUGE = npy(np.zeros((1, 3), np.float32)).replace(
  b"(1, 3), }" + 12 * b" ", b"(9999999999999, 3), }"
)


@pytest.mark.parametrize(
  ("members", "sentence"),
  [
    (b"", "is no .npz file, as it begins with b''"),
    (b"\n<!DOCTYPE html>", "is no .npz file, as it begins with b'.n<!DOC"),
    (npy(FIRST), "is no .npz file, as it begins with"),
    ([], "holds no arrays"),
    ([("word/document.xml", b"<x/>")], "it holds word/document.xml"),
    ([("a.npy", npy(FIRST))] * 2, "it holds a.npy twice"),
    ([("a.npy", npy(np.array([{"a": 1}])))], "a is object. Weights are"),
    ([("a.npy", npy(FIRST.astype(np.float16)))], "a is float16"),
    ([("a.npy", npy(FIRST.astype(ml_dtypes.bfloat16)))], "a is bfloat16 or"),
    ([("a.npy", b"what is this, then?")], "damaged.*magic string"),
    ([("a.npy", npy(FIRST) + b"x")], "not the bytes of its shape"),
    ([("a.npy", npy(FIRST)[:-1])], "not the bytes of its shape"),
    ([("a.npy", HUGE)], "not the bytes of its shape"),
    ([("a.npy", with_header("{'a"))], "damaged"),
    ([("a.npy", with_header("{'a': 1}}"))], "damaged"),
    ([("a.npy", with_header("(" * 9_000))], "damaged"),
    ([("a.npy", with_header(SOUND, 9, bytes(8)))], "damaged"),
    ([("a.npy", with_header(SOUND.replace("2,", "-1, -2")))], "damaged"),
    ([("a.npy", with_header(SOUND, 2)[:8] + b"\xff" * 99)], "damaged"),
  ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_other_files_are_refused(tmp_path, members, sentence):
  path = tmp_path / "a.npz"
  if isinstance(members, bytes):
    path.write_bytes(members)
  else:
    with zipfile.ZipFile(path, "w") as file:
      for name, content in members:
        file.writestr(name, content)
  with pytest.raises(UserError, match=f"a.npz .*{sentence}"):
    npz.read(path)


def test_what_cannot_be_opened_is_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for name, why in (
    ("none", "No such file"), ("", "Is a dir"), ("pipe", "it is no regular"),
  ):  # fmt: skip
    with pytest.raises(UserError, match=f"can't be read: {why}"):
      npz.read(tmp_path / name)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damage_is_noticed_or_changes_no_value(tmp_path, save):
  path = tmp_path / "a.npz"
  save(path, **ARRAYS)
  content = path.read_bytes()
  for end in range(1, len(content), 3):
    path.write_bytes(content[:end])
    with pytest.raises(UserError):
      npz.read(path)
  rng = np.random.default_rng(0)
  refused = 0
  for place in range(0, len(content), 2):
    flipped = bytearray(content)
    flipped[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(flipped)
    try:
      found = npz.read(path)
    except UserError:
      refused += 1
    else:  # A date, or the like.
      assert_same(found, ARRAYS)
  assert refused > 0.3 * len(content)


def test_memory(tmp_path):
  shape = dataclasses.replace(trained_files.shape_of("B/32", 10), num_blocks=2)
  flat = trained_files.random_weights(shape)
  size = sum(v.nbytes for v in flat.values())
  packed = [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]
  for name, packing in zip("bc", packed, strict=True):
    with zipfile.ZipFile(tmp_path / f"{name}.npz", "w", packing) as file:
      start = with_header(SOUND, 2)[:8] + (10**8).to_bytes(4, "little")
      file.writestr("a.npy", start + bytes(10**8))
  # A directory's entry that claims 1 GB, packed as unpacked.
  text = SOUND.replace("(2,", f"({2**28},")
  with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
    file.writestr("a.npy", with_header(text) + bytes(4))
  content = (tmp_path / "d.npz").read_bytes()
  real, most = len(with_header(text)) + 4, len(with_header(text)) + 2**30
  both = [n.to_bytes(4, "little") * 2 for n in (real, most)]
  (tmp_path / "d.npz").write_bytes(content.replace(*both))
  tracemalloc.start()
  try:
    npz.write(tmp_path / "a.npz", flat)
    assert tracemalloc.get_traced_memory()[1] < 0.2 * size
    npz.load(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    for name in "bcd":
      tracemalloc.reset_peak()
      with pytest.raises(UserError):
        npz.read(tmp_path / f"{name}.npz")
      assert tracemalloc.get_traced_memory()[1] < 2**22
  finally:
    tracemalloc.stop()
