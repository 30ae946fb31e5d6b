"""The .npz file; tests/tools/test_export.py has what a run's becomes."""

import pytest

from mixer.errors import UserError
from mixer.exporting import npz_file, verification
from tests.exporting import models


def export(model, path):
  batches = verification.random_images(model.image_size)
  with models.place(path, ".npz") as place:
    return npz_file.export(model, place, batches)


def test_loaded_again_it_is_the_same(tmp_path):
  model = models.make(size=(8, 8), num_classes=0, dtype="bfloat16")
  outcome = export(model, tmp_path / "w.npz")
  assert outcome.comparison.sound
  found = {}
  exec(outcome.loading, found)
  assert found["weights"]["stem/bias"].shape == (8,)


def test_images_that_are_not_square_are_told_of(tmp_path):
  outcome = export(models.make(), tmp_path / "w.npz")
  assert outcome.comparison is None and not outcome.missing
  assert "Its images are 8 x 12 px" in outcome.notes[0]


def test_other_mixings_are_refused_by_their_names():
  with pytest.raises(UserError, match=r"no names for \(untied=True\)"):
    npz_file.refuse(models.make("untied"))
