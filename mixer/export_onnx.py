"""The model as an ONNX graph: uint8 pixels -> logits and features, float32."""

import pathlib
from typing import Any

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper

from mixer import trained, weights

SUFFIX, MEMBERS, BOUND = ".onnx", (), 1e-4
# The first with Gelu; opsets and IR versions are as old as can be, for
# runtimes that are.
_OPSET, _IR = 20, 9
# A protobuf message ends at 2 GiB; something is left for the graph.
_LARGEST = 2**31 - 2**24


def build(model: trained.Trained) -> onnx.ModelProto:
  """The graph: images -> features and logits, with metadata."""
  module, flat = model.module, weights.flatten(model.params)
  nodes: list[Any] = []
  constants: dict[str, Any] = {}

  def add(op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
    """Adds a node with one output; its name is the output's, returned."""
    name = output or f"{op}_{len(nodes)}"
    nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
    return name

  def constant(name: str, value: Any, dtype: Any = np.float32) -> str:
    array = np.ascontiguousarray(value, dtype)
    constants.setdefault(name, numpy_helper.from_array(array, name))
    return name

  def weight(name: str) -> str:
    return constant(name, flat[name])

  def reshape(x: str, *shape: int) -> str:  # 0: the size that is there.
    name = "shape_" + "_".join(map(str, shape))
    return add("Reshape", x, constant(name, shape, np.int64))

  def norm(x: str, name: str) -> str:
    scale, bias = weight(f"{name}/scale"), weight(f"{name}/bias")
    return add("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-6)

  def dense(x: str, name: str) -> str:
    x = add("MatMul", x, weight(f"{name}/kernel"))
    return add("Add", x, weight(f"{name}/bias"))

  gelu = {"tanh": "tanh", "exact": "none"}[module.gelu]

  def mlp(x: str, name: str) -> str:
    x = add("Gelu", dense(x, f"{name}/Dense_0"), approximate=gelu)
    return dense(x, f"{name}/Dense_1")

  # Every patch times the stem's kernel, as a matrix.
  (height, width), p = model.image_size, module.patch_size
  x = add("Cast", "images", to=onnx.TensorProto.FLOAT)
  x = add("Div", x, constant("half", 127.5))
  x = add("Sub", x, constant("one", 1.0))
  x = reshape(x, 0, height // p, p, width // p, 3 * p)
  x = add("Transpose", x, perm=(0, 1, 3, 2, 4))
  x = reshape(x, 0, (height // p) * (width // p), 3 * p * p)
  kernel = flat["stem/kernel"]
  flat["stem/kernel"] = np.reshape(kernel, (3 * p * p, module.hidden_dim))
  x = dense(x, "stem")
  for i in range(module.num_blocks):
    name = f"MixerBlock_{i}"
    y = add("Transpose", norm(x, f"{name}/LayerNorm_0"), perm=(0, 2, 1))
    y = mlp(y, f"{name}/token_mixing")
    x = add("Add", x, add("Transpose", y, perm=(0, 2, 1)))
    y = mlp(norm(x, f"{name}/LayerNorm_1"), f"{name}/channel_mixing")
    x = add("Add", x, y)
  x = norm(x, "pre_head_layer_norm")
  axis = constant("axis_1", [1], np.int64)
  add("ReduceMean", x, axis, output="features", keepdims=0)
  sizes = {"features": module.hidden_dim}
  if model.num_classes:
    head = weight("head/kernel"), weight("head/bias")
    add("Gemm", "features", *head, output="logits")
    sizes = {"logits": model.num_classes, **sizes}

  def value(name: str, kind: int, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, kind, ["N", *shape])

  images = value("images", onnx.TensorProto.UINT8, height, width, 3)
  outputs = [value(k, onnx.TensorProto.FLOAT, n) for k, n in sizes.items()]
  made = helper.make_model(
    helper.make_graph(
      nodes, "mixer", [images], outputs, list(constants.values())
    ),
    opset_imports=[helper.make_opsetid("", _OPSET)],
    ir_version=_IR,
    producer_name="mixer",
  )
  helper.set_model_props(made, trained.strings(trained.metadata(model)))
  return made


def write(model: trained.Trained, target: pathlib.Path) -> None:
  """Writes the file; weights over 2 GB go into a second one, FILE.data."""
  made = build(model)
  apart = sum(len(x.raw_data) for x in made.graph.initializer) > _LARGEST
  data = f"{target.name}.data" if apart else None
  onnx.save_model(made, target, save_as_external_data=apart, location=data)
  checker.check_model(str(target), full_check=True)


def loading(model: trained.Trained, path: pathlib.Path) -> str:
  """Lines of Python that load and run it."""
  return f"""
    import onnxruntime

    model = onnxruntime.InferenceSession({str(path)!r})
    names = [output.name for output in model.get_outputs()]

    def run(images):
      return dict(zip(names, model.run(names, {{"images": images}})))"""
