"""A program for any device, as `jax.export` writes it, with its weights.

It needs no mixer to run, only JAX, and computes the same bits as mixer on the
same device.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import __version__, files, npz, trained, weights
from mixer import metadata as metadata_lib
from mixer import model as model_lib
from mixer.errors import UserError
from mixer.exporting import packages, placing, verification
from mixer.files import writing

MEMBERS = ("info.json", "weights.npz", "model.stablehlo")
_INFO, _WEIGHTS, _PROGRAM = MEMBERS
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Bytes of weights inside one file. Making and loading it takes ten times that
# in memory, and minutes; flatbuffers end at 2 GiB.
_LARGEST = 2**29


def program(
  model: trained.Trained, platforms: Sequence[str], inside: bool
) -> bytes:
  """The program, serialised: images uint8 `[b, H, W, 3]` -> dict of outputs.

  Args:
    model: any.
    platforms: of `PLATFORMS`.
    inside: whether it holds the weights; else they are its first argument, as a
      dict by name.
  """
  module = model.module
  flat = weights.flatten(model.params)

  def outputs(arrays: Mapping[str, Any], images: jax.Array) -> Any:
    params = weights.unflatten(arrays)
    scaled = model_lib.scale(images, module.dtype)
    features = model_lib.apply(module, params, scaled, pre_logits=True)
    if not model.num_classes:
      return {"features": features}
    logits = model_lib.apply(module, params, scaled)
    return {"features": features, "logits": logits}

  (b,) = jax.export.symbolic_shape("b")
  images = jax.ShapeDtypeStruct((b, *model.image_size, 3), jnp.uint8)
  if inside:
    # The barrier keeps the compiler from computing with weights beforehand,
    # which takes time and may round otherwise.
    def whole(images: jax.Array) -> Any:
      return outputs(jax.lax.optimization_barrier(flat), images)

    function, args = whole, (images,)
  else:
    shapes = {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in flat.items()
    }
    function, args = outputs, (shapes, images)
  exported = jax.export.export(jax.jit(function), platforms=platforms)(*args)
  return bytes(exported.serialize())


def refuse(model: trained.Trained, place: placing.Place) -> None:
  """Refuses more weights than one file should hold.

  Raises:
    UserError: so many.
  """
  size = sum(x.nbytes for x in jax.tree.leaves(model.params))
  if not place.is_folder and size > _LARGEST:
    raise UserError(
      f"the weights of {model.source} are {size / 2**30:.1f} GiB, and one "
      f"file should hold no more than {_LARGEST / 2**30:.1f}; give --output "
      "the name of a folder, where program and weights are two files."
    )


def write(
  model: trained.Trained, place: placing.Place, platforms: Sequence[str]
) -> str:
  """Writes the file or the folder; returns lines of Python that load it.

  Raises:
    UserError: too many weights for one file, or the disk refuses.
  """
  packages.load("flatbuffers")  # JAX needs it for this alone.
  refuse(model, place)
  data = program(model, platforms, inside=not place.is_folder)
  with writing(place.path):
    if place.is_folder:
      (place.part / _PROGRAM).write_bytes(data)
      npz.write(place.part / _WEIGHTS, weights.flatten(model.params))
    else:
      place.part.write_bytes(data)
    _info_file(place).write_text(_info(model, platforms), "utf-8")
  return loading(model, place)


def export(
  model: trained.Trained,
  place: placing.Place,
  images: Sequence[Any],
  platforms: Sequence[str],
) -> verification.Outcome:
  """Writes, reads back what was written, and runs it here.

  Raises:
    UserError: see `write`.
  """
  lines = write(model, place, platforms)
  here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
  if here not in platforms:
    missing = (
      f"the program is for {', '.join(platforms)}, and this is a machine with "
      f"{here}: leave --platforms out, or load it there"
    )
    return verification.Outcome(None, missing, lines)
  comparison = verification.compare(
    verification.outputs(model, verification.batches(images, model)),
    _run(model, place, images),
    f"jax {jax.__version__} on {jax.devices()[0].device_kind}",
    0.0,
  )
  return verification.Outcome(comparison, "", lines, _NOTES)


_NOTES = (
  "JAX promises that the program runs with versions up to 6 months newer and 3 "
  "weeks older than the one that wrote it (docs.jax.dev, Exporting). Keep the "
  "checkpoint, or an .npz.",
  "Bits are equal for the same device, JAX and XLA_FLAGS. On CPUs mixer sets "
  "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= (jax issue 39103); "
  "without it the last digits differ.",
)


def _info_file(place: placing.Place) -> pathlib.Path:
  if place.is_folder:
    return place.part / _INFO
  return metadata_lib.beside(place.part)


def _info(model: trained.Trained, platforms: Sequence[str]) -> str:
  dtype = jnp.dtype(model.module.dtype).name
  found = dataclasses.replace(model.metadata, dtype=dtype).to_json(
    mixer_version=__version__,
    source=model.origin,
    platforms=list(platforms),
    jax_version=jax.__version__,
  )
  return files.json_text(found, indent=2) + "\n"


def loading(model: trained.Trained, place: placing.Place) -> str:
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


def _run(
  model: trained.Trained, place: placing.Place, images: Sequence[Any]
) -> verification.Outputs:
  """As `loading` and the metadata say."""
  said = files.read_json(_info_file(place), "what is written there")
  found = metadata_lib.parse(said, f"the metadata for {place.path}")
  metadata_lib.check(
    dataclasses.replace(found, dtype=""), model.metadata, str(place.path)
  )
  file = place.part / _PROGRAM if place.is_folder else place.part
  exported = jax.export.deserialize(bytearray(file.read_bytes()))
  args = ()
  if place.is_folder:
    args = (jax.device_put(npz.read(place.part / _WEIGHTS)),)
  call = jax.jit(exported.call)
  rows = [
    jax.tree.map(np.asarray, call(*args, batch))
    for batch in verification.batches(images, found)
  ]
  outputs = {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}
  return verification.Outputs(outputs["features"], outputs.get("logits"))
