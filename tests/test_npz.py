import errno
import io
import os
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mixer import npz
from mixer.errors import UserError

ARRAYS = {
  "stem/kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  "head/bias": np.linspace(-1, 1, 5, dtype=np.float32),
}


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    assert found[name].dtype == np.float32
    np.testing.assert_array_equal(found[name], array)


def zipped(path, members, **options):
  with zipfile.ZipFile(path, "w", **options) as file:
    for name, content in members:
      file.writestr(name, content)
  return path


def npy(array):
  content = io.BytesIO()
  np.save(content, array)
  return content.getvalue()


@settings(max_examples=30, deadline=None)
@given(
  st.dictionaries(
    st.from_regex(r"[a-zA-Z_0-9]{1,8}(/[a-z]{1,4}){0,2}", fullmatch=True),
    hnp.arrays(
      np.float32,
      hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
      elements=st.floats(width=32),
    ),
    min_size=1,
    max_size=4,
  )
)
def test_numpy_reads_what_is_written_and_it_is_read_again(
  tmp_path_factory, arrays
):
  path = tmp_path_factory.mktemp("npz") / "a.npz"
  npz.write(path, arrays)
  with np.load(path) as file:
    assert_same(dict(file), arrays)
  assert_same(npz.read(path), arrays)
  assert npz.shapes(path) == {k: v.shape for k, v in arrays.items()}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path, save):
  # Column-major arrays are stored as such.
  arrays = ARRAYS | {"f": np.asfortranarray(np.eye(3, 4, dtype=np.float32))}
  save(tmp_path / "a.npz", **arrays)
  assert_same(npz.read(tmp_path / "a.npz"), arrays)


def test_the_same_arrays_give_the_same_bytes(tmp_path):
  npz.write(tmp_path / "a.npz", ARRAYS)
  backwards = {k: np.asfortranarray(v) for k, v in reversed(ARRAYS.items())}
  npz.write(tmp_path / "b.npz", backwards)
  npz.write(tmp_path / "c.npz", npz.read(tmp_path / "a.npz"))
  content = (tmp_path / "a.npz").read_bytes()
  assert content == (tmp_path / "b.npz").read_bytes()
  assert content == (tmp_path / "c.npz").read_bytes()


@pytest.mark.parametrize(
  ("content", "sentence"),
  [
    (b"", "is empty where an .npz"),
    (b"\n<!DOCTYPE html><html></html>", "is a web page where an .npz"),
    (npy(np.zeros(3, np.float32)), r"is a single array \(.npy\)"),
    (b"version https://git-lfs", "is no .npz file, as it begins with b'vers"),
  ],
)
def test_what_is_no_zip_is_refused(tmp_path, content, sentence):
  path = tmp_path / "a.npz"
  path.write_bytes(content)
  for function in (npz.shapes, npz.read):
    with pytest.raises(UserError, match=sentence):
      function(path)


@pytest.mark.parametrize(
  ("members", "sentence"),
  [
    ([], "not of arrays .*: it holds nothing"),
    ([("word/document.xml", b"<x/>")], "it holds word/document.xml"),
    (
      [("a.npy", npy(np.zeros(3, np.float32)))] * 2,
      "holds arrays of the same name: a.npy",
    ),
    (
      [("a.npy", npy(np.array([{"a": 1}])))],
      r"holds Python objects \(a\), which are never loaded",
    ),
    (
      [
        ("a.npy", npy(np.zeros(3, np.float16))),
        ("b.npy", npy(np.zeros(3, ml_dtypes.bfloat16))),
        ("c.npy", npy(np.zeros(3, np.float32))),
        ("d.npy", npy(np.zeros(3, np.int8))),
      ],
      "not float32: a is float16; b is bfloat16 or the like; d is int8\\.",
    ),
    ([("a.npy", b"what is this, then?")], "damaged.*magic string"),
    # More bytes, or less, than the shape says.
    ([("a.npy", npy(ARRAYS["head/bias"]) + b"x")], "a has 149 bytes, and 148"),
    ([("a.npy", npy(ARRAYS["head/bias"])[:-1])], "a has 147 bytes, and 148"),
  ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_other_zips_are_refused(tmp_path, members, sentence):
  path = zipped(tmp_path / "a.npz", members)
  for function in (npz.shapes, npz.read):
    with pytest.raises(UserError, match=f"a.npz .*{sentence}"):
      function(path)


def with_header(text, version=1, values=b""):
  """The bytes of an .npy file with such a header."""
  size = len(text).to_bytes(2 if version == 1 else 4, "little")
  return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + values


SOUND = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


@pytest.mark.parametrize(
  "content",
  [
    with_header("{'a"),  # tokenize.TokenError
    with_header("{'a': 1}}"),  # SyntaxError
    with_header(SOUND.replace("(2,)", "('2',)")),
    with_header(SOUND.replace("(2,)", "(-1, -2)"), values=bytes(8)),
    with_header(SOUND.replace("'<f4'", "None")),
    with_header(SOUND, 9, bytes(8)),
    with_header(SOUND, 2)[:8] + b"\xff\xff\xff\xff" + bytes(100),
    with_header("(" * 9_000),
    with_header("9" * 9_000),
  ],
)
def test_a_header_that_is_none_is_refused(tmp_path, content):
  path = zipped(tmp_path / "a.npz", [("a.npy", content)])
  for function in (npz.shapes, npz.read):
    with pytest.raises(UserError, match="a.npz is cut off or damaged"):
      function(path)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_of_every_version_are_read(tmp_path, version):
  content = with_header(SOUND, version, np.array([1, 2], "<f4").tobytes())
  path = zipped(tmp_path / "a.npz", [("a.npy", content)])
  assert_same(npz.read(path), {"a": np.array([1, 2], np.float32)})


def test_the_other_byte_order_is_converted(tmp_path):
  np.savez(
    tmp_path / "a.npz", **{k: v.astype(">f4") for k, v in ARRAYS.items()}
  )
  assert npz.shapes(tmp_path / "a.npz") == {
    k: v.shape for k, v in ARRAYS.items()
  }
  found = npz.read(tmp_path / "a.npz")
  assert_same(found, ARRAYS)
  assert all(x.dtype.isnative for x in found.values())


def test_a_small_file_that_claims_much_takes_little_memory(tmp_path):
  start = with_header(SOUND, 2)[:8] + (10**8).to_bytes(4, "little")
  path = zipped(
    tmp_path / "a.npz",
    [("a.npy", start + bytes(10**8))],
    compression=zipfile.ZIP_DEFLATED,
  )
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match="claims a header of 100,000,000 bytes"):
      npz.read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
  finally:
    tracemalloc.stop()


def test_a_pipe_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "a.npz")
  with pytest.raises(UserError, match="can't be read: it is no regular file"):
    npz.read(tmp_path / "a.npz")


def test_what_cannot_be_opened_is_refused(tmp_path):
  with pytest.raises(UserError, match="can't be read: No such file"):
    npz.read(tmp_path / "a.npz")
  with pytest.raises(UserError, match="can't be read: Is a directory"):
    npz.shapes(tmp_path)


def test_a_shape_that_no_memory_holds_is_refused_before_it_is_tried(tmp_path):
  array = npy(np.zeros((1, 3), np.float32))
  huge = array.replace(b"(1, 3), }" + 12 * b" ", b"(9999999999999, 3), }")
  assert len(huge) == len(array)
  path = zipped(tmp_path / "a.npz", [("a.npy", huge)])
  with pytest.raises(UserError, match="for its shape \\(9999999999999, 3\\)"):
    npz.read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, save):
  path = tmp_path / "a.npz"
  save(path, **ARRAYS)
  content = path.read_bytes()
  for end in range(1, len(content), 3):
    path.write_bytes(content[:end])
    with pytest.raises(UserError):
      npz.read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_flipped_bit_changes_a_value(tmp_path, save):
  path = tmp_path / "a.npz"
  save(path, **ARRAYS)
  content = bytearray(path.read_bytes())
  rng = np.random.default_rng(0)
  refused = 0
  for place in range(0, len(content), 2):
    bit = int(rng.integers(8))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    try:
      found = npz.read(path)
    except UserError:
      refused += 1
    else:  # A date, or the like.
      assert_same(found, ARRAYS)
    content[place] ^= 1 << bit
  assert refused > 0.3 * len(content)


def test_reading_and_writing_take_little_memory_besides_the_arrays(tmp_path):
  arrays = {"a": np.ones((1024, 4096), np.float32), "b": np.ones(9, np.float32)}
  size = arrays["a"].nbytes
  tracemalloc.start()
  try:
    npz.write(tmp_path / "a.npz", arrays)
    assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    found = npz.read(tmp_path / "a.npz")
    assert tracemalloc.get_traced_memory()[1] - before < 1.1 * size
  finally:
    tracemalloc.stop()
  assert_same(found, arrays)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(UserError, match="no folder .*gone; make it first"):
    npz.write(tmp_path / "gone" / "a.npz", ARRAYS)
  assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name_is_refused(tmp_path):
  (tmp_path / "a.npz").mkdir()
  with pytest.raises(UserError, match="a.npz can't be written: it is a folder"):
    npz.write(tmp_path / "a.npz", ARRAYS)
  assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "a.npz"
  npz.write(path, ARRAYS)

  def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(UserError, match="No space left on device"):
    npz.write(path, {"a": np.zeros(3, np.float32)})
  assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
  assert_same(npz.read(path), ARRAYS)
