import argparse
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import peer_process, peers
from mixer.errors import UserError


class Known:
  """A contender whose figures are known, in place of a process."""

  keeps = True

  def __init__(self, rates, folder, scale=1.0):
    self._rates, self._scale, self.folder = rates, scale, folder

  def ask(self, request):
    if "check" in request:
      arrays = {"losses": np.ones(3), "gradient/a": np.arange(4.0)}
      if request["pass"] == "forward":
        arrays = {"logits": np.ones((2, 3))}
      np.savez(
        request["check"], **{k: v * self._scale for k, v in arrays.items()}
      )
      return {"written": True}
    # Turns of 0 s only warm it up.
    return {"rate": self._rates.pop(0) if request["seconds"] else 1e9}


def field(folder, scale=1.0):
  ours = Known([12.0, 10.0, 11.0, 6.0, 6.0, 7.0], folder)
  slow = Known([2.0] * 4, folder, scale)
  # Two trials and three rounds, of each pass.
  fast = Known([3.0, 3.0, 4.0, 5.0, 6.0] * 2, folder, scale)
  return {
    "ours": [peer_process.Setting(ours, "")],
    "other": [peer_process.Setting(p, "a") for p in (slow, fast)],
  }


WORK = {"variant": "S/32", "batch": 2, "dtype": "float32"}
ARGS = argparse.Namespace(rounds=3, seconds=1.0, trial=1.0)


def test_rows(tmp_path, capsys):
  chosen = {}
  forward, train = peers.compare(field(tmp_path), WORK, chosen, ARGS)
  # The faster one of two settings was taken.
  assert chosen["other", "forward"] == chosen["other", "train"] == 1
  assert (forward["pass"], train["pass"]) == ("forward", "train")
  assert forward["ours"] == 11.0 and forward["theirs"] == 5.0
  assert forward["ratio"] == 11 / 5
  assert forward["spread"] == [11 / 6, 3.0]
  assert train["ratio"] == 6 / 5
  assert "| 2.20 (1.83 to 3.00) |" in capsys.readouterr().out


@pytest.mark.parametrize("scale", [1.01, float("nan")])
def test_contenders_that_compute_something_else_are_refused(tmp_path, scale):
  with pytest.raises(UserError, match="logits of S/32 differ by"):
    peers.compare(field(tmp_path, scale), WORK, {}, ARGS)


def test_other_parameters_are_refused():
  one = {"gradient/a": np.ones(2)}
  for other in ({"gradient/b": np.ones(2)}, {"gradient/a": np.ones(3)}):
    with pytest.raises(UserError, match="other names or shapes"):
      peers.differences(one, other)


def test_mistakes(monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["peers", "--models=S/33"])
  assert peers.main() == 1
  assert "S/33" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process(tmp_path: pathlib.Path):
  shape = dict(num_blocks=1, hidden_dim=8, tokens_mlp_dim=8)
  peers.make_work(
    tmp_path, "S/32", 8, shape=shape, image_size=32, num_classes=3
  )
  peer = peer_process.Peer(sys.executable, "ours", tmp_path, True)
  assert peer.hello["platform"] == "cpu"
  setting = peer_process.Setting(peer, "")
  assert setting.rate("train", 0.1) > 0
  found = setting.check("train")
  assert found["losses"][0] > found["losses"][2]
  assert "gradient/head.weight" in found
  peer.close()
