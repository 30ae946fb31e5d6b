"""timm itself, where it is installed: CI has a stage for this file."""

import numpy as np
import pytest

from benchmarks import peers
from mixer import export, predictor
from mixer import model as model_lib
from mixer.commands import export as command
from tests import test_export

torch = pytest.importorskip("torch")
peers.name_operators(torch)
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's own.


def named():
  """Of a size that timm makes by name, though of small MLPs and images."""
  module = model_lib.build(
    "S/32", 7, num_blocks=8, tokens_mlp_dim=33, channels_mlp_dim=65
  )
  return test_export.make((64, 96), 110, module=module)


@pytest.mark.parametrize("kind", ["named", "unnamed", "no head"])
@pytest.mark.parametrize("name", ["made", "w.safetensors"])
def test_the_lines_that_load_it(tmp_path, kind, name):
  model = test_export.make(num_classes=0 if kind == "no head" else 5)
  if kind == "named":
    model = named()
  written, table = test_export.write(model, tmp_path / name, "timm")
  assert f"mixer and timm {timm.__version__}" in table
  found = {}
  exec(written.loading, found)
  images = np.stack(
    [predictor.fit(i, model) for i in command.random_images(model.image_size)]
  )
  x = images.astype(np.float32) / 127.5 - 1
  with torch.inference_mode():
    theirs = found["model"](torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
  wanted = list(export.outputs(export.runner(model), [images]).values())[-1]
  scale = np.abs(wanted).max()
  np.testing.assert_allclose(theirs.numpy(), wanted, atol=1e-5 * scale)


def test_what_timm_knows(tmp_path):
  test_export.write(named(), tmp_path / "made", "timm")
  model = timm.create_model(f"local-dir:{tmp_path / 'made'}", pretrained=True)
  found = timm.data.resolve_model_data_config(model)
  assert found["input_size"] == (3, 64, 96)
  assert [*found["mean"]] == [*found["std"]] == [0.5] * 3
  assert found["interpolation"] == "bilinear"
