"""The ONNX graph, run by onnxruntime, against mixer and plain numpy."""

import numpy as np
import onnx
import onnxruntime
import pytest

from mixer import model as model_lib
from mixer.exporting import onnx_graph, verification
from tests import reference
from tests.exporting import models


def run(model, batches):
  made = onnx_graph.build(model, {"source": "here"})
  onnx.checker.check_model(made, full_check=True)
  session = onnxruntime.InferenceSession(made.SerializeToString())
  rows = [session.run(None, {"images": batch}) for batch in batches]
  names = [output.name for output in session.get_outputs()]
  return {
    name: np.concatenate([row[i] for row in rows])
    for i, name in enumerate(names)
  }


@pytest.mark.parametrize("permute", ["", "pixels", "patches"])
def test_it_is_the_paper(permute):
  model = models.make(permute=permute)
  batches = models.batches(model)
  found = run(model, batches)
  x = np.concatenate(batches).astype(np.float64) / 127.5 - 1
  x = np.asarray(model_lib.permute(x, permute, 4, model.module.permute_seed))
  np.testing.assert_allclose(
    found["logits"], reference.forward(model.params, x), atol=2e-5
  )
  np.testing.assert_allclose(
    found["features"],
    reference.forward(model.params, x, head=False),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "mixing",
  [
    pytest.param("untied", marks=pytest.mark.slow),
    pytest.param("groups", marks=pytest.mark.slow),
    "all",
  ],
)
def test_every_mixing_is_the_same(mixing):
  model = models.make(mixing)
  batches = models.batches(model)
  ours = verification.outputs(model, batches, "float32")
  theirs = run(model, batches)
  np.testing.assert_allclose(theirs["logits"], ours.logits, atol=2e-5)
  np.testing.assert_allclose(theirs["features"], ours.features, atol=1e-5)


def test_without_a_head_there_are_features_alone():
  model = models.make(num_classes=0)
  batches = models.batches(model)
  assert {*run(model, batches)} == {"features"}


def test_weights_keep_their_names_and_the_batch_its_freedom():
  model = models.make()
  made = onnx_graph.build(model, {})
  names = {x.name for x in made.graph.initializer}
  assert "MixerBlock_1/channel_mixing/Dense_0/kernel" in names
  (images,) = made.graph.input
  batch, *rest = images.type.tensor_type.shape.dim
  assert batch.dim_param == "N"
  assert [d.dim_value for d in rest] == [8, 12, 3]
  assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
