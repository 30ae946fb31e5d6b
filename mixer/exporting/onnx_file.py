"""The ONNX file: written, checked, run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer import __version__, trained
from mixer import metadata as metadata_lib
from mixer.exporting import onnx_graph, packages, placing, verification
from mixer.files import writing

# Relative to the largest logit, in float32.
BOUND = 1e-4
# A protobuf message ends at 2 GiB; something is left for the graph.
_LARGEST = 2**31 - 2**24


def export(
  model: trained.Trained,
  place: placing.Place,
  images: Sequence[Any],
) -> verification.Outcome:
  """Writes the file; weights over 2 GB go into a second one, FILE.data.

  Raises:
    UserError: the disk refuses, or a package is missing to write with.
  """
  onnx, checker = packages.load("onnx", "onnx.checker")
  made = onnx_graph.build(
    model,
    model.metadata.to_strings(mixer_version=__version__, source=model.origin),
  )
  size = sum(len(x.raw_data) for x in made.graph.initializer)
  apart = size > _LARGEST
  data = f"{place.path.name}.data"
  with writing(place.path):
    onnx.save_model(
      made,
      place.part,
      save_as_external_data=apart,
      location=data if apart else None,
    )
  del made
  checker.check_model(str(place.part), full_check=True)
  notes = ()
  if apart:
    notes = (
      f"The weights are more than an ONNX file can hold; they are in {data} "
      "beside it, and the two belong together.",
    )
  lines = loading(model, place)
  try:
    runtime = packages.load("onnxruntime")
  except packages.MissingError as e:
    return verification.Outcome(None, str(e), lines, notes)
  batches = verification.batches(images, model)
  ours = verification.outputs(model, batches, "float32")
  comparison = verification.compare(
    ours,
    _run(model, place, images),
    f"onnxruntime {runtime.__version__}",
    BOUND,
  )
  notes += verification.bfloat16_note(model, batches, ours)
  return verification.Outcome(comparison, "", lines, notes)


def loading(model: trained.Trained, place: placing.Place) -> str:
  """Lines of Python that run the file."""
  height, width = model.image_size
  name = "logits" if model.num_classes else "features"
  return (
    "import numpy as np\nimport onnxruntime\n\n"
    f"model = onnxruntime.InferenceSession({str(place.path)!r})\n"
    f"images = np.zeros((2, {height}, {width}, 3), np.uint8)\n"
    f'({name},) = model.run(["{name}"], {{"images": images}})'
  )


def _run(
  model: trained.Trained, place: placing.Place, images: Sequence[Any]
) -> verification.Outputs:
  runtime = packages.load("onnxruntime")
  session = runtime.InferenceSession(
    str(place.part), providers=["CPUExecutionProvider"]
  )
  said = session.get_modelmeta().custom_metadata_map
  found = metadata_lib.parse(said, str(place.path))
  metadata_lib.check(found, model.metadata, str(place.path))
  names = [output.name for output in session.get_outputs()]
  rows = [
    session.run(names, {"images": batch})
    for batch in verification.batches(images, found)
  ]
  columns = map(np.concatenate, zip(*rows, strict=True))
  outputs = dict(zip(names, columns, strict=True))
  return verification.Outputs(outputs["features"], outputs.get("logits"))
