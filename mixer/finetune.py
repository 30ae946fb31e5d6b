"""Starting from the weights of another run."""

import dataclasses

import jax

from mixer import checkpoints, weights
from mixer import step as step_lib
from mixer.errors import UserError


def take_weights(
  path: str, state: step_lib.TrainState
) -> tuple[step_lib.TrainState, str]:
  """Takes the weights of another run, all but the head.

  The head of `state` stays as it was made: kernel zero, bias as the config
  says, as many classes as this run's data set has.

  Args:
    path: a workdir or a checkpoint in it.
    state: freshly made.

  Returns:
    The state, and a sentence on what was taken.

  Raises:
    UserError: nothing there, or weights of another shape.
  """
  params, info = checkpoints.load_params(path)
  params.pop("head", None)
  own = {k: v for k, v in state.params.items() if k != "head"}
  lines = weights.mismatches(weights.shapes(params), weights.shapes(own))
  if lines:
    raise UserError(
      f"init_from={path} holds another model than this config: "
      + weights.shorten(lines)
      + ". Set model.* and image_size as they were there."
    )
  placed = jax.tree.map(
    lambda new, old: jax.device_put(new, old.sharding), params, own
  )
  state = dataclasses.replace(state, params=dict(state.params) | placed)
  if state.ema is not None:
    state = dataclasses.replace(
      state, ema=jax.tree.map(lambda x: x.copy(), state.params)
    )
  return state, (
    f"starting from the weights of {info['path']} (step {info['step']}) with "
    "a fresh head"
  )
