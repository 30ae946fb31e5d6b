"""The .npz file; tests/commands/test_export.py has what a run's becomes."""

import pytest

from mixer import trained
from mixer.errors import UserError
from mixer.exporting import npz_file, verification
from tests.exporting import models


def export(model, path):
  images = verification.random_images(model.image_size)
  with models.place(path, ".npz") as place:
    return npz_file.export(model, place, images)


def test_loaded_again_it_is_the_same(tmp_path):
  model = models.make(size=(8, 8), num_classes=0, dtype="bfloat16")
  outcome = export(model, tmp_path / "w.npz")
  assert outcome.comparison.sound
  found = {}
  exec(outcome.loading, found)
  assert found["weights"]["stem/bias"].shape == (8,)


@pytest.mark.parametrize("short_side", [0, 16])
def test_what_is_beside_it_is_read_again(tmp_path, short_side):
  # Neither square images, nor the paper's crop, nor softmax.
  model = models.make(short_side=short_side, loss="sigmoid")
  outcome = export(model, tmp_path / "w.npz")
  assert outcome.comparison.sound and "w.npz.json" in outcome.notes[0]
  assert models.left_over(tmp_path) == ["w.npz", "w.npz.json"]
  again = trained.load(str(tmp_path / "w.npz"))
  assert again.metadata == model.metadata
  assert again.class_names[3] == "kind 3" and again.unnamed == ""
  # Without that it is of numbers, and says so.
  (tmp_path / "w.npz.json").unlink()
  with pytest.raises(UserError, match="into w.npz.json"):
    trained.load(str(tmp_path / "w.npz"))


def test_other_mixings_are_refused_by_their_names():
  with pytest.raises(UserError, match=r"no names for \(untied=True\)"):
    npz_file.refuse(models.make("untied"))
