"""The MLP that mixes tokens as well as channels (section 2 of the paper)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer import linear


class MlpBlock(nn.Module):
  """Dense -> GELU -> dropout -> Dense -> dropout on the last axis.

  GELU is the tanh approximation, as in the released models.

  Attributes:
    mlp_dim: hidden width.
    dropout: rate, after the GELU and at the end.
    dtype: of the computation.
    out_dim: width of the output; 0: that of the input.
    grad_dtype: of the kernels' gradients; see `mixer.linear`.
  """

  mlp_dim: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  out_dim: int = 0
  grad_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """`[..., D]` -> `[..., out_dim or D]`."""
    shape = x.shape
    out_dim = self.out_dim or shape[-1]
    # One plain matmul on two axes: CPUs lack a fast kernel for more.
    x = x.reshape(-1, shape[-1])
    dtypes = (True, self.dtype, self.grad_dtype)
    x = linear.Dense(self.mlp_dim, *dtypes)(x)
    x = nn.gelu(x, approximate=True)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = linear.Dense(out_dim, *dtypes)(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return x.reshape(*shape[:-1], out_dim)
