"""Token mixing and its gradients in float64 numpy, written from the paper."""

import numpy as np


def arrays(b, s, c, t, seed=0):
  """Input, gradient of the output, keep, (scale, offset), four parameters."""
  rng = np.random.default_rng(seed)

  def normal(*shape, size=1.0):
    return (size * rng.standard_normal(shape)).astype(np.float32)

  keep = rng.choice(np.float32([0, 1, 1.25]), b)
  norm = 1 + normal(c, size=0.3), normal(c, size=0.3)
  return (
    normal(b, s, c),
    normal(b, s, c),
    keep,
    norm,
    normal(s, t, size=s**-0.5),
    normal(t),
    normal(t, s, size=t**-0.5),
    normal(s),
  )


def _gelu(h):
  root = np.sqrt(2 / np.pi)
  inner = root * (h + 0.044715 * h**3)
  slope_inner = root * (1 + 3 * 0.044715 * h**2)
  value = h / 2 * (1 + np.tanh(inner))
  slope = (1 + np.tanh(inner)) / 2 + h / 2 * slope_inner / np.cosh(inner) ** 2
  return value, slope


def _wide(*values):
  return [np.asarray(v, np.float64) for v in values]


def token_mlp(y, k1, b1, k2, b2):
  """`[B, S, C]`."""
  y, k1, b1, k2, b2 = _wide(y, k1, b1, k2, b2)
  g, _ = _gelu(np.einsum("bsc,st->bct", y, k1) + b1)
  return np.moveaxis(g @ k2 + b2, 2, 1)


def token_mlp_gradients(y, dout, k1, b1, k2, b2):
  """Of y and the four parameters."""
  y, dout, k1, b1, k2 = _wide(y, dout, k1, b1, k2)
  g, slope = _gelu(np.einsum("bsc,st->bct", y, k1) + b1)
  dh = np.einsum("bsc,ts->bct", dout, k2) * slope
  return (
    np.einsum("bct,st->bsc", dh, k1),
    np.einsum("bsc,bct->st", y, dh),
    dh.sum((0, 1)),
    np.einsum("bct,bsc->ts", g, dout),
    dout.sum((0, 2)),
  )


def _layer_norm(x, scale, offset):
  deviation = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  n = (x - x.mean(-1, keepdims=True)) / deviation
  return n * scale + offset, n, deviation


def token_mixing(x, keep, scale, offset, *mlp):
  """`[B, S, C]`."""
  x, keep, scale, offset = _wide(x, keep, scale, offset)
  y, _, _ = _layer_norm(x, scale, offset)
  return x + keep[:, None, None] * token_mlp(y, *mlp)


def token_mixing_gradients(x, dout, keep, scale, offset, *mlp):
  """Of x, scale, offset and the four parameters."""
  x, dout, keep, scale, offset = _wide(x, dout, keep, scale, offset)
  y, n, deviation = _layer_norm(x, scale, offset)
  dbranch = keep[:, None, None] * dout
  dy, *parameters = token_mlp_gradients(y, dbranch, *mlp)
  dn = dy * scale
  # LayerNorm takes out what is constant or along n.
  c = x.shape[-1]
  jacobian = np.eye(c) - 1 / c - n[..., :, None] * n[..., None, :] / c
  dx = np.einsum("bsij,bsj->bsi", jacobian, dn) / deviation
  return dout + dx, (dy * n).sum((0, 1)), dy.sum((0, 1)), *parameters
