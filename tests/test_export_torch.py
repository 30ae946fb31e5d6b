"""timm itself, where it is installed: CI has a stage for this file."""

import numpy as np
import pytest
from PIL import Image

import mixer
from benchmarks import peers
from mixer import model as model_lib
from mixer.commands import export as command
from tests import test_export

torch = pytest.importorskip("torch")
peers.name_operators(torch)
timm = pytest.importorskip("timm")
pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's own.
export = test_export.export


def named():
  """Of a size that timm makes by name, though of small MLPs and images."""
  module = model_lib.build(
    "S/32", 7, num_blocks=8, tokens_mlp_dim=33, channels_mlp_dim=65
  )
  return test_export.make((64, 96), 110, module=module)


@pytest.mark.parametrize("kind", ["named", "unnamed", "no head"])
@pytest.mark.parametrize("name", ["made", "w.safetensors"])
def test_the_lines_that_load_it(tmp_path, export, kind, name):
  model = test_export.make(num_classes=0 if kind == "no head" else 5)
  if kind == "named":
    model = named()
  out = export(model, name, "timm").out
  assert "compared on 4 images" in out
  images = command.random_images(model.image_size)[0][None]
  theirs = test_export.loaded(out)["run"](images)
  ours = command.runner(model)(images)
  for output, wanted in ours.items():
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(theirs[output], wanted, atol=1e-5 * scale)
  if kind == "named" and name == "made":
    gelu = timm.layers.GELUTanh
    where = f"local-dir:{tmp_path / name}"
    made = timm.create_model(where, pretrained=True, act_layer=gelu).eval()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    with torch.inference_mode():
      theirs = made(x).numpy()
    np.testing.assert_allclose(theirs, ours["logits"], rtol=1e-4, atol=1e-5)
    found = timm.data.resolve_model_data_config(made)
    assert found["input_size"] == (3, 64, 96)
    assert [*found["mean"]] == [*found["std"]] == [0.5] * 3
    assert found["interpolation"] == "bilinear"


@pytest.mark.parametrize("kind", ["goog", "miil"])
def test_timm_to_ours_and_back(tmp_path, export, kind):
  """From a picture to logits, by timm's own saving and preprocessing."""
  made = timm.create_model("mixer_s32_224", num_classes=7)
  with torch.no_grad():
    for name, x in made.named_parameters():
      scale = x[0].numel() ** -0.5 if x.ndim > 1 else 0.1
      scale_of_norm = "norm" in name and name.endswith("weight")
      x.copy_(torch.randn_like(x) * scale + float(scale_of_norm))
  fixed = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}
  labels = {"label_names": list("abcdefg")}
  changed = {"pretrained_cfg": fixed} if kind == "miil" else {}
  timm.models.save_for_hf(
    made, tmp_path / kind, labels | changed, safe_serialization=True
  )
  noise = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
  picture = Image.fromarray(noise).resize((500, 375))
  kinds = [tmp_path / kind]
  export(tmp_path / kind, "ours", "hf")
  kinds.append(tmp_path / "ours")
  logits = []
  for path in kinds:
    theirs = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(theirs)
    x = timm.data.create_transform(**data)(picture)[None]
    with torch.inference_mode():
      logits.append(theirs(x).numpy())
    found = mixer.load(path)
    assert found.model.class_ids == tuple("abcdefg")
    logits.append(found.logits(picture))
  for other in logits[1:]:
    np.testing.assert_allclose(other, logits[0], rtol=1e-5, atol=1e-5)
