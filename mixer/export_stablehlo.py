"""A program for any device, as `jax.export` writes it, with its weights.

It needs no mixer to run, only JAX, and computes the same bits as mixer on the
same device with the same XLA_FLAGS.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from mixer import files, trained, weights
from mixer import model as model_lib
from mixer.errors import UserError

SUFFIX, BOUND = ".stablehlo", 0.0
MEMBERS = ("info.json", "weights.npz", "model.stablehlo")
_INFO, _WEIGHTS, _PROGRAM = MEMBERS
# Bytes of weights inside one file. Making and loading it takes ten times that
# in memory, and minutes; flatbuffers end at 2 GiB.
_LARGEST = 2**29


def program(
  model: trained.Trained, platforms: Sequence[str], inside: bool
) -> bytes:
  """The program, serialised: images uint8 `[b, H, W, 3]` -> dict of outputs.

  Unless the weights are `inside` they are its first argument, by name.
  """
  module, flat = model.module, weights.flatten(model.params)

  def outputs(arrays: Mapping[str, Any], images: jax.Array) -> Any:
    params = weights.unflatten(arrays)
    scaled = model_lib.scale(images, module.dtype)
    features = model_lib.apply(module, params, scaled, pre_logits=True)
    if not model.num_classes:
      return {"features": features}
    logits = model_lib.apply(module, params, scaled)
    return {"features": features, "logits": logits}

  # The barrier keeps the compiler from computing with weights beforehand, which
  # takes time and may round otherwise.
  def whole(images: jax.Array) -> Any:
    return outputs(jax.lax.optimization_barrier(flat), images)

  (b,) = jax.export.symbolic_shape("b")
  args: list[Any] = [jax.ShapeDtypeStruct((b, *model.image_size, 3), jnp.uint8)]
  if not inside:
    args.insert(0, jax.eval_shape(lambda: flat))
  function = jax.jit(whole if inside else outputs)
  exported = jax.export.export(function, platforms=platforms)(*args)
  return bytes(exported.serialize())


def write(
  model: trained.Trained, target: pathlib.Path, platforms: Sequence[str]
) -> None:
  """Writes the file, with metadata beside it, or the files of a folder."""
  inside = not target.is_dir()
  size = sum(x.nbytes for x in jax.tree.leaves(model.params))
  if inside and size > _LARGEST:
    raise UserError(
      f"the weights of {model.source} are {size / 2**30:.1f} GiB, too much for "
      "one file: give --output the name of a folder, where program and weights "
      "are two files."
    )
  file, info = target, trained.beside(target)
  if not inside:
    file, info = target / _PROGRAM, target / _INFO
    weights.write(target / _WEIGHTS, weights.flatten(model.params))
  file.write_bytes(program(model, platforms, inside))
  content = trained.metadata(model, jnp.dtype(model.module.dtype).name)
  content |= {"platforms": list(platforms), "jax_version": jax.__version__}
  info.write_text(files.json_text(content, indent=2) + "\n", "utf-8")


def loading(model: trained.Trained, path: pathlib.Path) -> str:
  """Lines of Python that load and run it, with jax and flatbuffers alone."""
  file, more, args = path, "", "images"
  if path.is_dir():
    file, args = path / _PROGRAM, "weights, images"
    more = f"""
    with np.load({str(path / _WEIGHTS)!r}) as arrays:
      weights = jax.device_put(dict(arrays))"""
  return f"""
    import jax
    import jax.export
    import numpy as np

    with open({str(file)!r}, "rb") as f:
      model = jax.jit(jax.export.deserialize(bytearray(f.read())).call){more}

    def run(images):
      return model({args})"""
