"""Weights in the layout of the released files (.npz)."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from mixer import npz, released, token_mixing, trained, weights
from mixer.errors import UserError
from mixer.exporting import placing, verification
from mixer.storage import digests


def refuse(model: trained.Trained, what: str = "an .npz file") -> None:
  """Refuses a model of which weights under the known names can't tell.

  Args:
    model: any.
    what: holds the weights, for the sentence.

  Raises:
    UserError: it is no Mixer as in section 2 of the paper.
  """
  module = model.module
  if module.permute:
    raise UserError(
      f"{model.source} was trained on images with their {module.permute} "
      f"permuted, of which {what} can't tell; it would be taken for a model of "
      "images as they are. --to=onnx and --to=stablehlo hold all of it."
    )
  plain = token_mixing.TokenMixing()
  if module.mixing != plain:
    changed = [
      f"{f.name}={getattr(module.mixing, f.name)}"
      for f in dataclasses.fields(plain)
      if getattr(module.mixing, f.name) != getattr(plain, f.name)
    ]
    raise UserError(
      f"{model.source} mixes tokens in a way that {what} has no names for "
      f"({', '.join(changed)}). --to=onnx and --to=stablehlo hold all of it."
    )


def export(
  model: trained.Trained,
  place: placing.Place,
  batches: Sequence[np.ndarray],
) -> verification.Outcome:
  """Writes the file, reads it back and runs what was read.

  Raises:
    UserError: it can't be written, or doesn't hold what was written.
  """
  released.save(model.params, place.part)
  written = digests.of(npz.read(place.part))
  wrong = digests.different(written, digests.of(model.params))
  if wrong:
    raise UserError(
      f"{place.path} doesn't hold what was written to it: "
      f"{weights.shorten(wrong)} differ. Write it to another disk."
    )
  height, width = model.image_size
  loading = (
    "import numpy\n\n"
    f'weights = dict(numpy.load("{place.path}", allow_pickle=False))'
  )
  if height != width:
    note = (
      f"Its images are {height} x {width} px, which the file can't say: it is "
      "read as of square ones, or refused."
    )
    return verification.Outcome(None, "", loading, (note,))
  again = trained.load(
    str(place.part), dtype=jnp.dtype(model.module.dtype).name
  )
  comparison = verification.compare(
    verification.outputs(model, batches),
    verification.outputs(again, batches),
    "the file, loaded again",
    0.0,
  )
  return verification.Outcome(comparison, "", loading)
