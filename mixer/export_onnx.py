"""The model as an ONNX graph: uint8 pixels -> logits and features, float32."""

from typing import Any

import numpy as np

from mixer import __version__, export, files, metadata, trained, weights

SUFFIX, PACKAGES = ".onnx", ("onnx",)
MEMBERS = ()
# The first with Gelu; opsets and IR versions are as old as can be, for
# runtimes that are.
_OPSET, _IR = 20, 9
# A protobuf message ends at 2 GiB; something is left for the graph.
_LARGEST = 2**31 - 2**24


def build(model: trained.Trained, strings: dict[str, str]) -> Any:
  """An `onnx.ModelProto`: images -> features and logits, with metadata."""
  onnx, helper, arrays = export.load("onnx", "onnx.helper", "onnx.numpy_helper")
  module, flat = model.module, weights.flatten(model.params)
  nodes: list[Any] = []
  constants: dict[str, Any] = {}

  def add(op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
    """Adds a node with one output; its name is the output's, returned."""
    name = output or f"{op}_{len(nodes)}"
    node = helper.make_node(op, inputs, [name], name=name, **attributes)
    nodes.append(node)
    return name

  def constant(name: str, value: Any, dtype: Any = np.int64) -> str:
    array = np.ascontiguousarray(value, dtype)
    constants.setdefault(name, arrays.from_array(array, name))
    return name

  def weight(name: str) -> str:
    return constant(name, flat[name], np.float32)

  def reshape(x: str, *shape: int) -> str:
    """0 stands for the size that is there."""
    name = "shape_" + "_".join(map(str, shape))
    return add("Reshape", x, constant(name, shape))

  def norm(x: str, name: str) -> str:
    scale, bias = weight(f"{name}/scale"), weight(f"{name}/bias")
    return add("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)

  def dense(x: str, name: str) -> str:
    x = add("MatMul", x, weight(f"{name}/kernel"))
    return add("Add", x, weight(f"{name}/bias"))

  def mlp(x: str, name: str) -> str:
    x = add("Gelu", dense(x, f"{name}/Dense_0"), approximate="tanh")
    return dense(x, f"{name}/Dense_1")

  # Every patch times the stem's kernel, as a matrix.
  (height, width), p = model.image_size, module.patch_size
  x = add("Cast", "images", to=onnx.TensorProto.FLOAT)
  x = add("Div", x, constant("half", 127.5, np.float32))
  x = add("Sub", x, constant("one", 1.0, np.float32))
  x = reshape(x, 0, height // p, p, width // p, 3 * p)
  x = add("Transpose", x, perm=(0, 1, 3, 2, 4))
  x = reshape(x, 0, (height // p) * (width // p), 3 * p * p)
  flat["stem/kernel"] = np.reshape(
    flat["stem/kernel"], (3 * p * p, module.hidden_dim)
  )
  x = dense(x, "stem")
  for i in range(module.num_blocks):
    name = f"MixerBlock_{i}"
    y = add("Transpose", norm(x, f"{name}/LayerNorm_0"), perm=(0, 2, 1))
    y = mlp(y, f"{name}/token_mixing")
    x = add("Add", x, add("Transpose", y, perm=(0, 2, 1)))
    y = mlp(norm(x, f"{name}/LayerNorm_1"), f"{name}/channel_mixing")
    x = add("Add", x, y)
  x = norm(x, "pre_head_layer_norm")
  axis = constant("axis_1", [1])
  add("ReduceMean", x, axis, output="features", keepdims=0)
  sizes = {"features": module.hidden_dim}
  if model.num_classes:
    head = weight("head/kernel"), weight("head/bias")
    add("Gemm", "features", *head, output="logits")
    sizes = {"logits": model.num_classes, **sizes}

  def value(name: str, kind: Any, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, ["N", *shape])

  pixels = [height, width, 3]
  made = helper.make_model(
    helper.make_graph(
      nodes,
      "mixer",
      [value("images", onnx.TensorProto.UINT8, pixels)],
      [value(k, onnx.TensorProto.FLOAT, [n]) for k, n in sizes.items()],
      list(constants.values()),
    ),
    opset_imports=[helper.make_opsetid("", _OPSET)],
    ir_version=_IR,
    producer_name="mixer",
  )
  helper.set_model_props(made, strings)
  return made


def write(model: trained.Trained, place: export.Place) -> export.Written:
  """Writes the file; weights over 2 GB go into a second one, FILE.data."""
  export.refuse_variant(model, "an ONNX file")
  onnx, checker = export.load("onnx", "onnx.checker")
  made = build(
    model,
    model.metadata.to_strings(mixer_version=__version__, source=model.origin),
  )
  apart = sum(len(x.raw_data) for x in made.graph.initializer) > _LARGEST
  data = f"{place.path.name}.data"
  with files.writing(place.path):
    onnx.save_model(
      made,
      place.part,
      save_as_external_data=apart,
      location=data if apart else None,
    )
  checker.check_model(str(place.part), full_check=True)
  notes = ()
  if apart:
    notes = (
      f"The weights are more than an ONNX file can hold; they are in {data} "
      "beside it, and the two belong together.",
    )
  height, width = model.image_size
  last = "logits" if model.num_classes else "features"
  lines = (
    "import numpy as np\nimport onnxruntime\n\n"
    f"model = onnxruntime.InferenceSession({str(place.path)!r})\n"
    f"images = np.zeros((2, {height}, {width}, 3), np.uint8)\n"
    f'({last},) = model.run(["{last}"], {{"images": images}})'
  )
  try:
    runtime = export.load("onnxruntime")
  except export.MissingError as e:
    return export.Written(lines, notes, str(e))
  session = runtime.InferenceSession(
    str(place.part), providers=["CPUExecutionProvider"]
  )
  found = session.get_modelmeta().custom_metadata_map
  names = [output.name for output in session.get_outputs()]

  def run(batch: np.ndarray) -> export.Outputs:
    values = session.run(names, {"images": batch})
    return dict(zip(names, values, strict=True))

  return export.Written(
    lines,
    notes,
    against=f"onnxruntime {runtime.__version__}",
    bound=1e-4,
    run=run,
    metadata=metadata.parse(found, str(place.path)),
  )
