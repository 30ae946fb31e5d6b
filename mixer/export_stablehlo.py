"""A program for any device, as `jax.export` writes it, with its weights.

It needs no mixer to run, only JAX, and computes the same bits as mixer on the
same device.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import __version__, export, files, metadata, npz, trained, weights
from mixer import model as model_lib
from mixer.errors import UserError

SUFFIX, PACKAGES = ".stablehlo", ("flatbuffers",)  # JAX needs it for this.
MEMBERS = ("info.json", "weights.npz", "model.stablehlo")
_INFO, _WEIGHTS, _PROGRAM = MEMBERS
# Bytes of weights inside one file. Making and loading it takes ten times that
# in memory, and minutes; flatbuffers end at 2 GiB.
_LARGEST = 2**29
_NOTES = (
  "JAX promises that the program runs with versions up to 6 months newer and 3 "
  "weeks older than the one that wrote it (docs.jax.dev, Exporting). Keep the "
  "checkpoint, or an .npz.",
  "Bits are equal for the same device, JAX and XLA_FLAGS. On CPUs mixer sets "
  "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= (jax issue 39103); "
  "without it the last digits differ.",
)


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
    shapes = {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in flat.items()
    }
    args.insert(0, shapes)
  function = jax.jit(whole if inside else outputs)
  exported = jax.export.export(function, platforms=platforms)(*args)
  return bytes(exported.serialize())


def write(
  model: trained.Trained, place: export.Place, platforms: Sequence[str]
) -> export.Written:
  """Writes the file or the folder; it is run here, if it is for here."""
  size = sum(x.nbytes for x in jax.tree.leaves(model.params))
  if not place.is_folder and size > _LARGEST:
    raise UserError(
      f"the weights of {model.source} are {size / 2**30:.1f} GiB, and one "
      f"file should hold no more than {_LARGEST / 2**30:.1f}; give --output "
      "the name of a folder, where program and weights are two files."
    )
  inside = not place.is_folder
  data = program(model, platforms, inside)
  file = place.part if inside else place.part / _PROGRAM
  info = metadata.beside(place.part) if inside else place.part / _INFO
  dtype = jnp.dtype(model.module.dtype).name
  content = dataclasses.replace(model.metadata, dtype=dtype).to_json(
    mixer_version=__version__,
    source=model.origin,
    platforms=list(platforms),
    jax_version=jax.__version__,
  )
  with files.writing(place.path):
    file.write_bytes(data)
    if not inside:
      npz.write(place.part / _WEIGHTS, weights.flatten(model.params))
    info.write_text(files.json_text(content, indent=2) + "\n", "utf-8")
  lines = loading(model, place)
  here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
  if here not in platforms:
    missing = (
      f"the program is for {', '.join(platforms)}, and this is a machine with "
      f"{here}: leave --platforms out, or load it there"
    )
    return export.Written(lines, _NOTES, missing)
  call = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
  args = ()
  if not inside:
    args = (jax.device_put(npz.read(place.part / _WEIGHTS)),)

  def run(batch: np.ndarray) -> export.Outputs:
    return jax.tree.map(np.asarray, call(*args, batch))

  said = files.read_json(info, "what is written there")
  return export.Written(
    lines,
    _NOTES,
    against=f"jax {jax.__version__} on {jax.devices()[0].device_kind}",
    run=run,
    metadata=metadata.parse(said, f"the metadata for {place.path}"),
  )


def loading(model: trained.Trained, place: export.Place) -> str:
  """Lines of Python that run it with jax, numpy and flatbuffers alone."""
  height, width = model.image_size
  file, args, more = place.path, "images", ""
  if place.is_folder:
    file, args = place.path / _PROGRAM, "weights, images"
    more = (
      f"with np.load({str(place.path / _WEIGHTS)!r}) as arrays:\n"
      "  weights = jax.device_put(dict(arrays))\n"
    )
  return (
    "import jax\nimport jax.export\nimport numpy as np\n\n"
    f'with open({str(file)!r}, "rb") as f:\n'
    "  model = jax.jit(jax.export.deserialize(bytearray(f.read())).call)\n"
    f"{more}"
    f"images = np.zeros((2, {height}, {width}, 3), np.uint8)\n"
    f"outputs = model({args})\n"
    "print({name: x.shape for name, x in outputs.items()})"
  )
