"""The program that needs no mixer: the same bits, here and elsewhere."""

import json
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from mixer import weights
from mixer.errors import UserError
from mixer.exporting import stablehlo, verification
from tests.exporting import models

_PLATFORMS = ("cpu", "cuda", "tpu")


def export(model, path, platforms=_PLATFORMS):
  images = verification.random_images(model.image_size)
  with models.place(path, ".stablehlo", stablehlo.MEMBERS) as place:
    return stablehlo.export(model, place, images, platforms)


@pytest.mark.parametrize(
  ("name", "kind"),
  [
    ("made", {"permute": "pixels"}),
    ("p.stablehlo", {"dtype": "bfloat16", "num_classes": 0}),
    pytest.param("made", {"mixing": "all"}, marks=pytest.mark.slow),
    pytest.param(
      "p.stablehlo",
      {"mixing": "all", "dtype": "bfloat16", "permute": "patches"},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_the_same_bits(tmp_path, name, kind):
  outcome = export(models.make(**kind), tmp_path / name)
  assert outcome.comparison.sound
  assert outcome.comparison.bound == 0
  more = [] if name == "made" else [f"{name}.json"]
  assert models.left_over(tmp_path) == [name, *more]


def test_what_lies_in_the_folder(tmp_path):
  model = models.make()
  path = tmp_path / "made"
  with models.place(path, ".stablehlo", stablehlo.MEMBERS) as place:
    stablehlo.write(model, place, ("cpu", "tpu"))
  info = json.loads((tmp_path / "made" / "info.json").read_text())
  assert info["class_names"][2] == "kind 2"
  assert info["platforms"] == ["cpu", "tpu"]
  assert info["dtype"] == "float32"
  with np.load(tmp_path / "made" / "weights.npz") as arrays:
    for name, value in weights.flatten(model.params).items():
      assert arrays[name].tobytes() == value.tobytes()
  data = (tmp_path / "made" / "model.stablehlo").read_bytes()
  exported = jax.export.deserialize(bytearray(data))
  assert exported.platforms == ("cpu", "tpu")
  batch, *rest = exported.in_avals[-1].shape
  assert (str(batch), rest) == ("b", [8, 12, 3])


def test_not_for_this_machine(tmp_path):
  outcome = export(models.make(), tmp_path / "p.stablehlo", ("cuda",))
  assert outcome.comparison is None
  assert "is for cuda, and this is a machine with cpu" in outcome.missing
  assert models.left_over(tmp_path) == ["p.stablehlo", "p.stablehlo.json"]


def test_more_weights_than_a_file_should_hold(tmp_path, monkeypatch):
  monkeypatch.setattr(stablehlo, "_LARGEST", 1_000)
  with pytest.raises(UserError, match="give --output the name of a folder"):
    export(models.make(), tmp_path / "p.stablehlo")
  assert not models.left_over(tmp_path)


def test_the_lines_that_load_it_need_no_mixer(tmp_path):
  """In a process of its own, which can't find mixer."""
  model = models.make()
  code = ""
  for i, name in enumerate(("made", "p.stablehlo")):
    path = tmp_path / name
    with models.place(path, ".stablehlo", stablehlo.MEMBERS) as place:
      code += stablehlo.write(model, place, _PLATFORMS)
    code += f"\nnp.save('{i}.npy', outputs['logits'])\n"
  code += (
    "import sys\n"
    "assert not any(m.split('.')[0] == 'mixer' for m in sys.modules)\n"
  )
  done = subprocess.run(
    [sys.executable, "-I", "-c", code],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("'logits': (2, 5)") == 2
  black = [np.zeros((2, 8, 12, 3), np.uint8)]
  wanted = verification.outputs(model, black).logits
  for i in range(2):
    # XLA_FLAGS, which it inherits, may change the last ones.
    assert np.load(tmp_path / f"{i}.npy").tobytes() == wanted.tobytes()
