"""Files of weights, from whole ones of every dialect to damaged ones."""

import dataclasses
import io
import os
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import model, weights
from mixer.errors import UserError
from tests import reference, trained_files

SMALL = weights.Shape(2, 3, 6, 5, 7, num_tokens=4, num_classes=3)
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


@settings(max_examples=20)
@given(st.builds(weights.Shape, *6 * [widths], num_classes=st.integers(0, 3)))
def test_what_is_saved_is_loaded(tmp_path_factory, shape):
  flat = trained_files.random_weights(shape)
  folder = tmp_path_factory.mktemp("npz")
  device = jax.tree.map(jnp.asarray, weights.unflatten(flat))
  weights.save(device, folder / "a.npz")
  assert_same(weights.load(folder / "a.npz"), flat)
  weights.save(weights.load(folder / "a.npz"), str(folder / "b.npz"))
  content = (folder / "a.npz").read_bytes()
  assert content == (folder / "b.npz").read_bytes()
  with np.load(folder / "a.npz") as file:
    assert_same(dict(file), flat)


@pytest.mark.parametrize("counts", ["0010", "0123", ("3", "1", "17", "2")])
@pytest.mark.parametrize("axes", ["front", "back", "middle", "none"])
def test_the_older_dialect(tmp_path, axes, counts):
  """Also of another order of bytes and of axes."""
  old = {k: v.astype(">f4") for k, v in older(FLAT, axes, counts).items()}
  if axes == "none":
    old = {k: np.asfortranarray(v) for k, v in old.items()}
  assert all(k.startswith(("Mixer/", "embedding/", "head/")) for k in old)
  np.savez_compressed(tmp_path / "a", **old)
  assert_same(weights.load(tmp_path / "a.npz"), FLAT)


@pytest.mark.parametrize(
  ("variant", "num_classes"),
  [
    ("S/32", 1_000),
    *(pytest.param(v, 21_843, marks=pytest.mark.slow) for v in model.VARIANTS),
  ],
)
def test_logits_of_loaded_weights_equal_numpy(tmp_path, variant, num_classes):
  shape = trained_files.shape_of(variant, num_classes)
  flat = trained_files.random_weights(shape, seed=3)
  images = np.random.default_rng(1).uniform(-1, 1, (1, 224, 224, 3))
  images = images.astype(np.float32)
  np.savez(tmp_path / "a", **flat)
  params = weights.load(tmp_path / "a.npz")
  found = jax.jit(model.build(variant, num_classes).apply)(
    {"params": params}, images
  )
  expected = reference.forward(weights.unflatten(flat), images)
  assert found.shape == (1, num_classes) and expected.std() > 0.1
  assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
  np.savez(tmp_path / "a", **older(flat))
  assert_same(weights.load(tmp_path / "a.npz"), flat)


def without(part):
  return {k: v for k, v in FLAT.items() if part not in k}


WRONG = without("head/bias") | {"cls/x": np.zeros((1, 1, 6), np.float32)}
WRONG["MixerBlock_0/token_mixing/Dense_0/bias"] = np.zeros(9, np.float32)
OLD = older(FLAT)
del OLD["Mixer/encoderblock_1/channel_mixing_phase_0/kernel2"]
FIRST = np.zeros(3, np.float32)


@pytest.mark.parametrize(
  ("arrays", "sentence"),
  [
    (
      WRONG,
      "MixerBlock_0/token_mixing/Dense_0/bias is (9,) there and (5,) here; "
      "cls/x (1, 1, 6) is unexpected; head/bias (3,) is missing.",
    ),
    (without("lock_1/"), "MixerBlock_1/LayerNorm_0/bias (6,) is missing"),
    (without("LayerNorm"), "; and 4 more"),
    (FLAT | {"stem/bias/x": FIRST}, "stem/bias/x (3,) is unexpected"),
    (FLAT | {"MixerBlock_99/x": FIRST}, "MixerBlock_3/LayerNorm_0/bias (6,)"),
    (OLD, "MixerBlock_1/channel_mixing/Dense_1/kernel (7, 6) is missing"),
    ({"conv1.weight": FIRST}, "whole MLP-Mixer: there are conv1.weight"),
    ({}, "whole MLP-Mixer: there are none"),
    (FLAT | {"head/bias": FIRST * np.nan}, "NaNs or infinities in head/bias"),
    (FLAT | {"head/bias": FIRST - np.inf}, "NaNs or infinities in head/bias"),
  ],
)
def test_other_weights_are_neither_loaded_nor_saved(tmp_path, arrays, sentence):
  np.savez(tmp_path / "a", **arrays)
  with pytest.raises(UserError) as e:
    weights.load(tmp_path / "a.npz")
  assert sentence in str(e.value)
  if arrays is not OLD:
    with pytest.raises(UserError):
      weights.save(arrays, tmp_path / "b.npz")
  assert os.listdir(tmp_path) == ["a.npz"]
  with pytest.raises(UserError, match="gone.*No such file"):
    weights.save(weights.unflatten(FLAT), tmp_path / "gone" / "a.npz")


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
  ("content", "why"),
  [
    (b"", "not a zip"),
    (b"\n<!DOCTYPE html>", "not a zip"),
    (npy(FIRST), "not a zip"),
    ([b"<x/>"], "magic string"),
    ([npy(np.array([{"a": 1}]))], "a.npy is object of"),
    ([npy(FIRST.astype(np.float16))], "a.npy is float16 of"),
    ([npy(FIRST) + b"x"], "a.npy is float32 of 141 B"),
    ([npy(FIRST)[:-1]], "a.npy is float32 of 139 B"),
    ([HUGE], "a.npy is float32 of 140 B"),
    ([with_header("{'a")], "."),
    ([with_header("(" * 9_000)], "."),
    ([with_header(SOUND, 9, bytes(8))], "."),
    ([with_header(SOUND.replace("2,", "-1, -2"), values=bytes(8))], "."),
  ],
)
def test_other_files_are_refused(tmp_path, content, why):
  path = tmp_path / "a.npz"
  if isinstance(content, bytes):
    path.write_bytes(content)
  else:
    with zipfile.ZipFile(path, "w") as file:
      file.writestr("a.npy", content[0])
  with pytest.raises(UserError, match=rf"a.npz is no .npz file .*\(.*{why}"):
    weights.read(path)
  os.mkfifo(tmp_path / "pipe")
  for name, why in (("none", "No such"), ("", "Is a dir"), ("pipe", "no reg")):
    with pytest.raises(UserError, match=f"no .npz file .*{why}"):
      weights.read(tmp_path / name)


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
    weights.write(tmp_path / "a.npz", flat)
    assert tracemalloc.get_traced_memory()[1] < 0.2 * size
    weights.load(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    for name in "bcd":
      tracemalloc.reset_peak()
      with pytest.raises(UserError):
        weights.read(tmp_path / f"{name}.npz")
      assert tracemalloc.get_traced_memory()[1] < 2**22
  finally:
    tracemalloc.stop()
