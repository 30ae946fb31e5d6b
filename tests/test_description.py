"""What a checkpoint tells of itself."""

import hashlib
import struct

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from configs import smoke
from mixer import description, released, sharding, weights
from mixer.errors import UserError
from tests import trained_files

_FORMATS = {"float32": "f", "float64": "d", "int32": "i", "uint8": "B"}


def by_the_docstring(params) -> str:
  """The digest, byte by byte, from what `digest` promises."""
  leaves = {}

  def collect(tree, prefix):
    for key, value in tree.items():
      if isinstance(value, dict):
        collect(value, f"{prefix}{key}/")
      else:
        leaves[prefix + key] = value

  collect(params, "")
  text = b""
  for name in sorted(leaves):
    leaf = np.asarray(leaves[name])
    text += f"{name} {leaf.dtype.name} {leaf.shape}".encode()
    text += b"\0"
    values = leaf.ravel(order="C").tolist()
    text += struct.pack(f"<{len(values)}{_FORMATS[leaf.dtype.name]}", *values)
  return hashlib.sha256(text).hexdigest()


_ARRAYS = st.sampled_from(sorted(_FORMATS)).flatmap(
  lambda name: numpy_st.arrays(
    name,
    numpy_st.array_shapes(min_dims=0, max_dims=3, max_side=3),
    elements={"allow_nan": False} if name.startswith("f") else None,
  )
)
_NAMES = st.text("abcX_0", min_size=1, max_size=4)
_PARAMS = st.recursive(
  st.dictionaries(_NAMES, _ARRAYS, min_size=1, max_size=3),
  lambda inner: st.dictionaries(
    _NAMES, inner | _ARRAYS, min_size=1, max_size=3
  ),
  max_leaves=4,
)


@given(_PARAMS)
def test_digest_is_what_its_docstring_says(params):
  assert description.digest(params) == by_the_docstring(params)


def reversed_tree(tree):
  return {
    k: reversed_tree(v) if isinstance(v, dict) else v
    for k, v in reversed(tree.items())
  }


@given(_PARAMS)
def test_digest_does_not_depend_on_the_order_of_a_dict(params):
  assert description.digest(reversed_tree(params)) == description.digest(params)


@given(_PARAMS)
def test_digest_does_not_depend_on_the_layout_in_memory(params):
  turned = jax.tree.map(lambda x: np.asarray(x, order="F"), params)
  assert description.digest(turned) == description.digest(params)
  swapped = jax.tree.map(lambda x: x.astype(x.dtype.newbyteorder(">")), params)
  assert description.digest(swapped) == description.digest(params)


@given(_PARAMS, st.data())
def test_digest_changes_with_one_bit(params, data):
  leaves, structure = jax.tree.flatten(params)
  which = data.draw(st.integers(0, len(leaves) - 1))
  raw = bytearray(leaves[which].tobytes())
  bit = data.draw(st.integers(0, len(raw) * 8 - 1))
  raw[bit // 8] ^= 1 << bit % 8
  old = leaves[which]
  leaves[which] = np.frombuffer(bytes(raw), old.dtype).reshape(old.shape)
  other = jax.tree.unflatten(structure, leaves)
  assert description.digest(other) != description.digest(params)


def test_digest_depends_on_names_types_and_shapes():
  zeros = np.zeros((2, 3), np.float32)
  all_different = [
    {"a": zeros},
    {"b": zeros},
    {"a": {"a": zeros}},
    {"a": zeros.reshape(3, 2)},
    {"a": zeros.ravel()},
    {"a": zeros.view(np.int32)},
    {"a": zeros, "b": zeros},
  ]
  assert len({description.digest(p) for p in all_different}) == len(
    all_different
  )


def test_digest_is_the_same_wherever_arrays_lie():
  value = np.arange(8, dtype=np.float32)
  mesh = sharding.make_mesh()
  expected = description.digest({"a": value})
  for where in (sharding.replicated(mesh), sharding.batch(mesh)):
    assert description.digest({"a": jax.device_put(value, where)}) == expected


def test_modules():
  rng = np.random.default_rng(0)
  params = {
    "stem": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)},
    "MixerBlock_0": {
      "token_mixing": {
        "Dense_0": {"kernel": rng.normal(size=(2, 2))},
        "Dense_1": {"kernel": rng.normal(size=(5, 2)) - 3},
      }
    },
  }
  found = description.modules(params)
  assert sorted(found) == ["MixerBlock_0/token_mixing", "stem"]
  for name, arrays in (
    ("stem", params["stem"].values()),
    (
      "MixerBlock_0/token_mixing",
      [x["kernel"] for x in params["MixerBlock_0"]["token_mixing"].values()],
    ),
  ):
    whole = np.concatenate([np.ravel(x) for x in arrays])
    assert found[name]["parameters"] == whole.size
    assert found[name]["norm"] == pytest.approx(np.linalg.norm(whole))
    assert found[name]["largest"] == np.abs(whole).max()


@pytest.mark.parametrize("name", ["S/32", "B/16", "H/14"])
@pytest.mark.parametrize("num_classes", [0, 10])
def test_a_published_model_is_named(name, num_classes):
  shape = trained_files.shape_of(name, num_classes)
  params = weights.unflatten(
    {k: np.broadcast_to(0.0, v) for k, v in weights.expected(shape).items()}
  )
  assert description.model_of(params) == f"{name}, {shape.num_tokens} tokens"


def test_another_model_is_told_by_its_widths(tmp_path):
  trained_files.npz(tmp_path / "own.npz", 10)
  assert description.model_of(released.load(tmp_path / "own.npz")) == (
    "2 blocks, C 8, T 6, F 12, patches of 4 px, 4 tokens"
  )
  assert description.model_of({"a": np.zeros(1)}) == "another than the paper's"


def test_a_file_of_weights(tmp_path):
  path = tmp_path / "own.npz"
  flat = trained_files.npz(path, 10)
  found = description.describe(str(path))
  about = found.facts
  content = path.read_bytes()
  assert about["file_sha256"] == hashlib.sha256(content).hexdigest()
  assert about["bytes"] == len(content)
  assert about["layout"] == "current names"
  assert about["sha256"] == by_the_docstring(weights.unflatten(flat))
  assert about["parameters"] == sum(x.size for x in flat.values())
  flat = weights.flatten(found.params)
  np.savez(tmp_path / "older.npz", **trained_files.older(flat))
  older = description.describe(str(tmp_path / "older.npz")).facts
  assert older["layout"] == "older names"
  assert older["sha256"] == about["sha256"]


def test_a_run(tmp_path):
  config = smoke.get_config()
  config.optimizer.ema_decay = 0.9
  state = trained_files.save(tmp_path, config)
  about = description.describe(str(tmp_path)).facts
  assert about["step"] == 4 and about["not_as_saved"] == []
  assert about["sha256"] == by_the_docstring(state.params)
  assert about["sha256_ema"] == by_the_docstring(state.ema)


def test_nothing_of_the_kind(tmp_path):
  with pytest.raises(UserError, match="there are no weights at"):
    description.describe(str(tmp_path / "none"))
