"""MLP-Mixer (arXiv 2105.01601) in JAX: pre-train, fine-tune, evaluate, predict.

What is trained, or released, predicts in two lines:

    import mixer
    model = mixer.load("imagenet21k/Mixer-B_16")
    for prediction in model.predict(["cat.jpg", "dog.jpg"], top=3):
      print(prediction)
"""

import typing

# Every import of a module of this package comes by here: keep it cheap.
from mixer.errors import UserError

if typing.TYPE_CHECKING:
  import os
  from collections.abc import Sequence

  from mixer.predictor import Predictor

__all__ = ["UserError", "__version__", "load"]
__version__ = "0.1.0"


def load(
  path: "str | os.PathLike[str]",
  image_size: "int | Sequence[int] | None" = None,
  resize: str = "",
  dtype: str = "",
  averaged: bool = True,
  batch_size: int | None = None,
) -> "Predictor":
  """Loads a trained model to predict with.

  Args:
    path: a workdir of train.py (for its best checkpoint, if it keeps that, else
      its newest), a checkpoint in it, an .npz or .safetensors file, a folder
      with model.safetensors and config.json, as timm writes it, "timm/NAME"
      or "hf-hub:OWNER/NAME", or the name of a released file, as
      "imagenet21k/Mixer-B_16"; what has to be is downloaded once.
    image_size: of the images, in pixels: a side, or (height, width); None for
      what the model was trained at.
    resize: how the model is fitted to another size, "tiles", "interleaved"
      or "resample"; "" for what suits the size.
    dtype: of activations, "float32" or "bfloat16"; "" for that of the run, and
      float32 for released files.
    averaged: take the average of the weights where the run kept one.
    batch_size: images at a time, over all devices; None for 32 on each.

  Returns:
    An object with `predict`, `features` and `logits`; see `mixer.predictor`.

  Raises:
    mixer.UserError: nothing there, damaged weights, or a size that can't be.
  """
  import os

  from mixer import predictor  # JAX alone takes half a second.

  how = {"image_size": image_size, "method": resize, "dtype": dtype}
  path = os.fspath(path)
  return predictor.load(path, batch_size, averaged=averaged, **how)
