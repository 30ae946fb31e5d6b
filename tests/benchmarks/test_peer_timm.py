"""Both sides of `benchmarks.peers` do the same work, where timm is there."""

import json

import numpy as np
import pytest

from benchmarks import peer, peer_jax, peers

torch = pytest.importorskip("torch")
peer.name_operators(torch)
pytest.importorskip("timm")

pytestmark = [
  pytest.mark.filterwarnings("ignore"),  # PyTorch's own, of every version.
]

SHAPE = dict(num_blocks=2, hidden_dim=24, tokens_mlp_dim=20)
SHAPE["channels_mlp_dim"] = 36


def differences(folder, what):
  # Here and not in fixtures: training goes on from where it was.
  ours = peer_jax.Ours(folder)
  theirs = peer.Timm(folder)
  return peers.differences(
    peer.check(ours, what, ""),
    peer.check(theirs, what, "eager+channels_last"),
  )


@pytest.fixture(params=["adamw", "sgd"])
def folder(request, tmp_path):
  peers.make_work(
    tmp_path,
    "S/32",
    8,
    optimizer=request.param,
    shape=SHAPE,
    image_size=96,
    num_classes=11,
  )
  # So large that losses show what the optimizer does.
  work = json.loads((tmp_path / "work.json").read_text())
  work["optimizer"]["learning_rate"] = 1e-2
  (tmp_path / "work.json").write_text(json.dumps(work))
  return tmp_path


def test_both_train_the_same(folder):
  off = differences(folder, "train")
  assert off.keys() == {"losses", "gradients"}
  assert off["losses"] < 1e-4
  # Ours takes LayerNorm's variance in one pass, as Flax does; in two passes
  # half of this would do.
  assert off["gradients"] < 2e-4


@pytest.mark.parametrize("folder", ["sgd"], indirect=True)
def test_a_weight_that_differs_is_seen(folder):
  off = differences(folder, "forward")
  assert off["logits"] < 1e-5
  with np.load(folder / "timm.npz") as file:
    found = dict(file)
  found["blocks.1.mlp_tokens.fc1.bias"][3] += 0.1
  np.savez(folder / "timm.npz", **found)
  assert differences(folder, "forward")["logits"] > 1e-4
