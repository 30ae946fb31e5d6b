"""The ONNX file and what goes along."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from mixer.exporting import onnx_file, verification
from tests.exporting import models


def test_what_the_file_says_of_itself(tmp_path):
  model = models.make()
  images = verification.random_images(model.image_size)
  with models.place(tmp_path / "m.onnx", ".onnx") as place:
    outcome = onnx_file.export(model, place, images)
  assert outcome.comparison.sound
  assert outcome.comparison.images == 6
  found = {}
  exec(outcome.loading, found)
  assert found["logits"].shape == (2, 5)
  assert max(d.relative for d in outcome.comparison.differences) > 0
  said = (
    onnxruntime.InferenceSession(tmp_path / "m.onnx")
    .get_modelmeta()
    .custom_metadata_map
  )
  assert json.loads(said["class_ids"]) == [f"n{k:08}" for k in range(5)]
  assert json.loads(said["class_names"])[3] == "kind 3"
  assert said["short_side"] == "16"
  assert (said["image_height"], said["image_width"]) == ("8", "12")
  assert "central 8 x 12" in said["preprocessing"]
  assert said["scores"] == "softmax"


@pytest.mark.parametrize(
  "num_classes", [5, pytest.param(0, marks=pytest.mark.slow)]
)
def test_bfloat16_is_told(tmp_path, num_classes):
  model = models.make(dtype="bfloat16", num_classes=num_classes)
  images = verification.random_images(model.image_size)
  with models.place(tmp_path / "m.onnx", ".onnx") as place:
    outcome = onnx_file.export(model, place, images)
  assert outcome.comparison.sound
  (note,) = outcome.notes
  assert "what was exported computes in float32" in note


def test_more_weights_than_a_file_holds(tmp_path, monkeypatch):
  monkeypatch.setattr(onnx_file, "_LARGEST", 2_000)
  model = models.make(num_classes=200, class_ids=None, class_names=None)
  images = verification.random_images(model.image_size)
  with models.place(tmp_path / "m.onnx", ".onnx") as place:
    outcome = onnx_file.export(model, place, images)
  assert outcome.comparison.sound
  assert "in m.onnx.data beside it" in outcome.notes[0]
  # Once more, over what is there, and without what runs it.
  monkeypatch.setitem(sys.modules, "onnxruntime", None)
  with models.place(tmp_path / "m.onnx", ".onnx") as place:
    outcome = onnx_file.export(model, place, images)
  assert outcome.comparison is None
  assert outcome.missing.startswith("onnxruntime can't be imported")
  assert models.left_over(tmp_path) == ["m.onnx", "m.onnx.data"]
  assert (tmp_path / "m.onnx.data").stat().st_size > 200 * 8 * 4
  made = onnx.load(tmp_path / "m.onnx")
  (head,) = [x for x in made.graph.initializer if x.name == "head/kernel"]
  np.testing.assert_array_equal(
    onnx.numpy_helper.to_array(head), model.params["head"]["kernel"]
  )
