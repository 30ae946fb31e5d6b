"""Weights in the layout of the released files (.npz)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mixer import (
  __version__,
  block,
  digests,
  npz,
  trained,
  weights,
)
from mixer import (
  metadata as metadata_lib,
)
from mixer.errors import UserError
from mixer.exporting import placing, verification


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
  plain = block.TokenMixing()
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
  images: Sequence[Any],
) -> verification.Outcome:
  """Writes the file, and metadata beside it; reads and runs what was written.

  Raises:
    UserError: it can't be written, or doesn't hold what was written.
  """
  npz.save(model.params, place.part)
  written = digests.of(npz.read(place.part))
  wrong = digests.different(written, digests.of(model.params))
  if wrong:
    raise UserError(
      f"{place.path} doesn't hold what was written to it: "
      f"{weights.shorten(wrong)} differ. Write it to another disk."
    )
  dtype = jnp.dtype(model.module.dtype).name
  metadata = dataclasses.replace(model.metadata, dtype=dtype)
  metadata_lib.write_beside(
    place.part, metadata, mixer_version=__version__, source=model.origin
  )
  loading = (
    "import numpy\n\n"
    f'weights = dict(numpy.load("{place.path}", allow_pickle=False))'
  )
  again = trained.load(str(place.part))
  metadata_lib.check(again.metadata, model.metadata, str(place.path))
  comparison = verification.compare(
    verification.outputs(model, verification.batches(images, model)),
    verification.outputs(again, verification.batches(images, again)),
    "the file, loaded again",
    0.0,
  )
  note = (
    f"Classes, loss and preprocessing are in "
    f"{metadata_lib.beside(place.path).name} beside it, where mixer reads "
    "them; the two belong together."
  )
  return verification.Outcome(comparison, "", loading, (note,))
