"""timm itself, where it is installed: CI has a stage for this file."""

import numpy as np
import pytest

from benchmarks import peer
from mixer import model as model_lib
from mixer.exporting import timm_weights, verification
from tests.exporting import models

torch = pytest.importorskip("torch")
peer.name_operators(torch)
timm = pytest.importorskip("timm")


pytestmark = [
  pytest.mark.filterwarnings("ignore"),  # PyTorch's own, of every version.
]


def export(model, path):
  images = verification.random_images(model.image_size)
  with models.place(path, ".safetensors", timm_weights.MEMBERS) as place:
    outcome = timm_weights.export(model, place, images)
  return outcome, verification.batches(images, model)


def named():
  """Of a size that timm makes by name, though of small MLPs and images."""
  module = model_lib.build(
    "S/32", 7, num_blocks=8, tokens_mlp_dim=33, channels_mlp_dim=65
  )
  return models.make(module=module, size=(64, 96), short_side=110)


@pytest.mark.parametrize("kind", ["named", "unnamed", "no head"])
@pytest.mark.parametrize("name", ["made", "w.safetensors"])
def test_the_lines_that_load_it(tmp_path, kind, name):
  if kind == "named":
    model = named()
  else:
    model = models.make(num_classes=5 if kind == "unnamed" else 0)
  outcome, batches = export(model, tmp_path / name)
  assert outcome.comparison.sound
  assert outcome.comparison.against.startswith(f"timm {timm.__version__}")
  found = {}
  exec(outcome.loading, found)
  x = np.concatenate(batches).astype(np.float32) / 127.5 - 1
  with torch.inference_mode():
    theirs = found["model"](torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
  ours = verification.outputs(model, batches)
  wanted = ours.logits if model.num_classes else ours.features
  scale = np.abs(wanted).max()
  np.testing.assert_allclose(theirs.numpy(), wanted, atol=1e-5 * scale)


def test_what_timm_knows(tmp_path):
  outcome, _ = export(named(), tmp_path / "made")
  model = timm.create_model(f"local-dir:{tmp_path / 'made'}", pretrained=True)
  found = timm.data.resolve_model_data_config(model)
  assert found["input_size"] == (3, 64, 96)
  assert [*found["mean"]] == [*found["std"]] == [0.5] * 3
  assert found["interpolation"] == "bilinear"
  # Made so, without the GELU, it is another model.
  assert "logits would be off by" in outcome.notes[0]
  off = float(outcome.notes[0].split("off by ")[1].split()[0])
  assert off > 50 * outcome.comparison.differences[-1].relative
