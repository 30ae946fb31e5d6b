"""The model as an ONNX graph, from pixels to logits.

Layer by layer as `mixer.model` has it, with all token mixings and permutations.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from mixer import model as model_lib
from mixer import trained, weights
from mixer.exporting import packages

# The first with Gelu; opsets and IR versions are as old as can be, for
# runtimes that are.
_OPSET, _IR = 20, 9


class _Graph:
  """Nodes and weights, as they are added.

  Attributes:
    nodes: in order.
    initializers: weights and constants.
  """

  def __init__(self, params: weights.Params):
    self.nodes: list[Any] = []
    self.initializers: list[Any] = []
    self._flat = weights.flatten(params)
    self._helper, self._arrays = packages.load(
      "onnx.helper", "onnx.numpy_helper"
    )
    self._known: set[str] = set()

  def add(
    self, op: str, *inputs: str, output: str = "", **attributes: Any
  ) -> str:
    """Adds a node with one output; its name is the output's, returned."""
    name = output or f"{op}_{len(self.nodes)}"
    node = self._helper.make_node(op, inputs, [name], name=name, **attributes)
    self.nodes.append(node)
    return name

  def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
    """A constant; of one name there is one."""
    if name not in self._known:
      self._known.add(name)
      array = np.ascontiguousarray(value, dtype)
      self.initializers.append(self._arrays.from_array(array, name))
    return name

  def weight(self, name: str, shape: tuple[int, ...] | None = None) -> str:
    """A parameter under its own name, float32, in another shape if need be."""
    value = np.asarray(self._flat[name])
    return self.constant(
      name, value if shape is None else value.reshape(shape), np.float32
    )

  def has(self, name: str) -> bool:
    """Whether there is such a parameter."""
    return name in self._flat

  def shape(self, name: str) -> tuple[int, ...]:
    """Of a parameter."""
    return self._flat[name].shape

  def reshape(self, x: str, *shape: int) -> str:
    """0 stands for the size that is there, -1 for what remains."""
    name = "shape_" + "_".join(map(str, shape))
    return self.add("Reshape", x, self.constant(name, shape))

  def transpose(self, x: str, *axes: int) -> str:
    """As numpy's."""
    return self.add("Transpose", x, perm=axes)

  def norm(self, x: str, name: str) -> str:
    """LayerNorm over the last axis."""
    return self.add(
      "LayerNormalization",
      x,
      self.weight(f"{name}/scale"),
      self.weight(f"{name}/bias"),
      axis=-1,
      epsilon=1e-6,
    )

  def dense(self, x: str, name: str) -> str:
    """A matmul with the last axis, and a bias where there is one."""
    x = self.add("MatMul", x, self.weight(f"{name}/kernel"))
    if not self.has(f"{name}/bias"):
      return x
    shape = self.shape(f"{name}/bias")
    if len(shape) > 1:  # Of untied MLPs, one for each matrix of a stack.
      shape = (shape[0], 1, shape[1])
    return self.add("Add", x, self.weight(f"{name}/bias", shape))

  def mlp(self, x: str, name: str) -> str:
    """Dense, GELU, Dense."""
    x = self.dense(x, f"{name}/Dense_0")
    x = self.add("Gelu", x, approximate="tanh")
    return self.dense(x, f"{name}/Dense_1")


def build(model: trained.Trained, metadata: dict[str, str]) -> Any:
  """The model: images uint8 `[N, H, W, 3]` -> features, and logits if any.

  Args:
    model: any; it is computed in float32.
    metadata: goes along.

  Returns:
    An `onnx.ModelProto`. Weights keep their names and layout.
  """
  onnx, helper = packages.load("onnx", "onnx.helper")
  graph = _Graph(model.params)
  module = model.module
  x = _stem(graph, model)
  for i in range(module.num_blocks):
    x = _block(graph, x, f"MixerBlock_{i}", model)
  x = graph.norm(x, "pre_head_layer_norm")
  features = graph.add(
    "ReduceMean",
    x,
    graph.constant("axis_1", [1]),
    output="features",
    keepdims=0,
  )
  floats = onnx.TensorProto.FLOAT
  outputs = [
    helper.make_tensor_value_info(features, floats, ["N", module.hidden_dim])
  ]
  if model.num_classes:
    head = graph.weight("head/kernel"), graph.weight("head/bias")
    logits = graph.add("Gemm", features, *head, output="logits")
    outputs.insert(
      0, helper.make_tensor_value_info(logits, floats, ["N", model.num_classes])
    )
  shape = ["N", *model.image_size, 3]
  made = helper.make_model(
    helper.make_graph(
      graph.nodes,
      "mixer",
      [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, shape)],
      outputs,
      graph.initializers,
    ),
    opset_imports=[helper.make_opsetid("", _OPSET)],
    ir_version=_IR,
    producer_name="mixer",
  )
  helper.set_model_props(made, metadata)
  return made


def _stem(graph: _Graph, model: trained.Trained) -> str:
  """Pixels -> tokens `[N, S, C]`: every patch times the kernel, as a matrix."""
  onnx = packages.load("onnx")
  module = model.module
  (height, width), p = model.image_size, module.patch_size
  x = "images"
  if module.permute:
    places = jnp.arange(height * width).reshape(1, height, width, 1)
    order = np.asarray(
      model_lib.permute(places, module.permute, p, module.permute_seed)
    )
    x = graph.reshape(x, 0, height * width, 3)
    x = graph.add("Gather", x, graph.constant("order", order.ravel()), axis=1)
  x = graph.add("Cast", x, to=onnx.TensorProto.FLOAT)
  x = graph.add("Div", x, graph.constant("half", 127.5, np.float32))
  x = graph.add("Sub", x, graph.constant("one", 1.0, np.float32))
  x = graph.reshape(x, 0, height // p, p, width // p, 3 * p)
  x = graph.transpose(x, 0, 1, 3, 2, 4)
  x = graph.reshape(x, 0, (height // p) * (width // p), 3 * p * p)
  kernel = graph.weight("stem/kernel", (3 * p * p, module.hidden_dim))
  x = graph.add("MatMul", x, kernel)
  return graph.add("Add", x, graph.weight("stem/bias"))


def _block(graph: _Graph, x: str, name: str, model: trained.Trained) -> str:
  """Token mixing, then channel mixing; see `mixer.token_mixing`."""
  mixing, c = model.module.mixing, model.module.hidden_dim
  y = graph.norm(x, f"{name}/LayerNorm_0")
  if mixing.projection:
    y = graph.dense(y, f"{name}/group_projection")
  y = graph.transpose(y, 0, 2, 1)
  if mixing.groups > 1:
    y = graph.reshape(y, 0, c // mixing.groups, -1)
  if mixing.untied:
    # One matmul of a stack of matrices, which comes first.
    y = graph.transpose(y, 1, 0, 2)
  y = graph.mlp(y, f"{name}/token_mixing")
  if mixing.untied:
    y = graph.transpose(y, 1, 0, 2)
  if mixing.groups > 1:
    y = graph.reshape(y, 0, c, -1)
  y = graph.transpose(y, 0, 2, 1)
  if graph.has(f"{name}/token_shortcut/kernel"):
    x = graph.transpose(x, 0, 2, 1)
    x = graph.dense(x, f"{name}/token_shortcut")
    x = graph.transpose(x, 0, 2, 1)
  x = graph.add("Add", x, y)
  y = graph.mlp(graph.norm(x, f"{name}/LayerNorm_1"), f"{name}/channel_mixing")
  return graph.add("Add", x, y)
