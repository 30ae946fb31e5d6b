"""Makes the figures, one kind after the other."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from matplotlib import figure as figure_lib

from mixer import trained
from mixer.errors import UserError
from mixer.insight import (
  activations,
  draw_images,
  draw_weights,
  embedding,
  mixing,
  pictures,
  receptive,
  saliency,
  similarity,
)

# A file's name without suffix, what it shows, and the figure itself.
Drawn = Iterator[tuple[str, str, figure_lib.Figure]]
# Panels of the receptive field, and the images behind it.
_DEPTHS, _FIELD_IMAGES = 8, 16


@dataclasses.dataclass(frozen=True)
class Options:
  """What can be chosen.

  Attributes:
    explain: images of which the saliency is shown, at most.
    smooth: noisy copies for the gradient, see `saliency.explain`.
    embedding: of `embedding.METHODS`, beside PCA.
  """

  explain: int = 6
  smooth: int = 16
  embedding: str = "pca"


class LeftOut(Exception):
  """A figure that can't be made: why not, in a sentence."""


def _tokens(model: trained.Trained, options: Options) -> Drawn:
  if model.module.permute == "pixels":
    raise LeftOut(_PIXELS)
  blocks, rows, problem = [], [], ""
  digits = len(str(model.module.num_blocks - 1))
  for block in range(model.module.num_blocks):
    try:
      units = draw_weights.units_of(model, block)
    except UserError as e:
      problem = str(e)
      break
    blocks.append(block)
    rows.append(draw_weights.some_pairs(units))
    name = f"tokens_block{block:0{digits}}"
    figure = draw_weights.token_units(model, block, units)
    yield (
      name,
      f"all hidden units of token mixing in MixerBlock_{block}",
      figure,
    )
  if blocks:
    chosen = draw_weights.some_blocks(blocks)
    figure = draw_weights.overview(
      model, chosen, [rows[blocks.index(i)] for i in chosen]
    )
    yield "tokens", "some of those units, by depth", figure
  if problem:
    raise LeftOut(problem)


def _stem(model: trained.Trained, options: Options) -> Drawn:
  if model.module.permute:
    raise LeftOut(
      "the model permutes the pixels of its images (data.permute), so the "
      "stem's kernels are no pictures."
    )
  yield "stem", "the stem's kernels in colour", draw_weights.stem(model)


def _distance(model: trained.Trained, options: Options) -> Drawn:
  if model.module.permute == "pixels":
    raise LeftOut(_PIXELS)
  reaches = mixing.reaches(model.module, model.params, model.image_size)
  if not reaches:
    raise LeftOut("the first block already changes the number of tokens.")
  figure = draw_weights.distance(model, reaches)
  yield "distance", "how far token mixing reaches, by depth", figure


_PIXELS = (
  "the model permutes all pixels of its images (data.permute=pixels), so its "
  "tokens have no place in them."
)


def _receptive_field(
  model: trained.Trained, shown: pictures.Pictures, options: Options
) -> Drawn:
  if model.module.permute == "pixels":
    raise LeftOut(_PIXELS)
  last = min((i for i, _ in model.module.mixing.pyramid), default=None)
  last = model.module.num_blocks if last is None else last
  later = np.round(np.linspace(min(1, last), last, _DEPTHS - 1)).astype(int)
  depths = np.unique([0, *later])
  chosen = pictures.evenly(len(shown.images), _FIELD_IMAGES)
  fields = receptive.fields(
    model.module, model.params, shown.images[chosen], depths.tolist()
  )
  figure = draw_images.receptive_field(
    model, depths.tolist(), fields, len(chosen)
  )
  what = "which pixels the central token depends on, by depth"
  yield "receptive_field", what, figure


def _enough(shown: pictures.Pictures, least: int) -> int:
  """How many images there are; refuses too few."""
  count = len(shown.images)
  if count < least:
    raise LeftOut(
      f"it needs at least {least} images, and there "
      f"{'is 1' if count == 1 else f'are {count}'}; some hundred are good."
    )
  return count


def _similarity(
  model: trained.Trained, shown: pictures.Pictures, options: Options
) -> Drawn:
  count = _enough(shown, similarity.LEAST)
  if model.module.mixing.pyramid:
    raise LeftOut("the blocks of a pyramid have different numbers of tokens.")
  cka, cosine = similarity.layers(model.module, model.params, shown.images)
  figure = draw_images.similarity(model, cka, cosine, count)
  yield "similarity", "how alike the layers' representations are", figure


def _saliency(
  model: trained.Trained, shown: pictures.Pictures, options: Options
) -> Drawn:
  if not model.num_classes:
    raise LeftOut(
      "the checkpoint has no head, so it predicts no classes; take one that "
      "was fine-tuned."
    )
  chosen = pictures.evenly(len(shown.images), options.explain)
  images = shown.images[chosen]
  found = saliency.explain(
    model.module, model.params, model.loss, images, options.smooth
  )
  names = [shown.names[i] for i in chosen]
  figure = draw_images.saliency(model, images, names, found, options.smooth)
  yield "saliency", "which pixels predictions rest on", figure


def _embedding(
  model: trained.Trained, shown: pictures.Pictures, options: Options
) -> Drawn:
  _enough(shown, embedding.LEAST)
  features = activations.features(model.module, model.params, shown.images)
  labels, what = shown.labels, shown.what
  if labels is None:
    labels, what = _predicted(model, features), "predicted class"
  for method in dict.fromkeys(("pca", options.embedding)):
    points, axes = embedding.plane(features, method)
    title = embedding.TITLES[method]
    figure = draw_images.embedding(model, points, axes, title, labels, what)
    yield (
      f"embedding_{method}",
      f"features of images in a plane ({title})",
      figure,
    )


def _predicted(model: trained.Trained, features: np.ndarray) -> tuple[str, ...]:
  if not model.num_classes:
    return ("image",) * len(features)
  head = model.params["head"]
  logits = features @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
  names = model.class_names or [f"output {k}" for k in range(model.num_classes)]
  return tuple(names[k] for k in logits.argmax(axis=-1))


# Each raises LeftOut where the figure can't be made, or not all of it.
OF_WEIGHTS: dict[str, Callable[..., Drawn]] = {
  "tokens": _tokens,
  "stem": _stem,
  "distance": _distance,
}
OF_IMAGES: dict[str, Callable[..., Drawn]] = {
  "receptive_field": _receptive_field,
  "similarity": _similarity,
  "saliency": _saliency,
  "embedding": _embedding,
}
