"""What goes along with weights, whatever the classes are called."""

import json
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mixer import metadata as metadata_lib
from mixer import npz


def metadata(*names):
  return metadata_lib.Metadata((8, 16), 0, "softmax", names, names, "")


_NAMES = st.lists(st.text(st.characters(codec=None)), min_size=1, max_size=3)


@hypothesis.given(_NAMES)
@hypothesis.example(["b\u00e4r", "a\n\x1b", "\udcff\ud800"])
def test_any_names_go_through_strings_and_json(names):
  found = metadata(*names)
  strings = found.to_strings(source="runs/\udcff")
  for text in (*strings.values(), *strings):
    text.encode()  # As protocol buffers and safetensors need it.
  assert metadata_lib.parse(strings, "it") == found
  assert metadata_lib.parse(json.loads(json.dumps(found.to_json())), "it") == (
    found
  )


def test_any_names_lie_beside_an_npz(tmp_path):
  path = tmp_path / "w.npz"
  npz.write(path, {"head/bias": np.zeros(3, np.float32)})
  found = metadata("b\u00e4r", "a\n\x1b", "\udcff\ud800")
  metadata_lib.write_beside(path, found)
  assert metadata_lib.read_beside(path, 3) == found
  assert "bär" in pathlib.Path(f"{path}.json").read_text("utf-8")


def test_any_names_are_in_other_files(tmp_path):
  onnx = pytest.importorskip("onnx")
  numpy_files = pytest.importorskip("safetensors.numpy")
  strings = metadata("b\u00e4r", "\udcff\ud800").to_strings()
  arrays = {"a": np.zeros(1, np.float32)}
  numpy_files.save_file(arrays, tmp_path / "a.safetensors", metadata=strings)
  entry = onnx.StringStringEntryProto(key="k", value=strings["class_names"])
  assert json.loads(entry.value) == ["b\u00e4r", "\udcff\ud800"]
