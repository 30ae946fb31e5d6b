import argparse
import pathlib
import sys

import numpy as np
import pytest

from benchmarks import peer_comparison, peer_plot, peer_process, peers
from mixer.errors import UserError

FIELDS = {
  "model",
  "pass",
  "batch",
  "dtype",
  "ours",
  "peer",
  "theirs",
  "ratio",
  "spread",
}


class Known:
  """A contender whose figures are known, in place of a process."""

  keeps = True

  def __init__(self, rates, scale=1.0):
    self._rates, self._scale = rates, scale

  def rate(self, what, variant, seconds):
    # Turns of 0 s only warm it up.
    return self._rates[variant].pop(0) if seconds else 1e9

  def check(self, what, variant, path):
    arrays = {"losses": np.ones(3), "gradient/a": np.arange(4.0)}
    if what == "forward":
      arrays = {"logits": np.ones((2, 3))}
    np.savez(path, **{k: v * self._scale for k, v in arrays.items()})


class Field:
  def __init__(self, scale=1.0):
    # Per round: two passes of three.
    self.ours = Known({"": [12.0, 10.0, 11.0, 6.0, 6.0, 7.0]})
    slow = Known({"a": [2.0] * 4, "b": []}, scale)
    fast = Known({"a": [3.0] * 4 + [4.0, 5.0, 6.0] * 2, "b": []}, scale)
    self.settings = {
      "other": [
        peer_process.Setting(slow, "a"),
        peer_process.Setting(fast, "a"),
      ]
    }

  def of(self, name, what):
    return self.settings[name]


WORK = {"variant": "S/32", "batch": 2, "dtype": "float32"}
ARGS = argparse.Namespace(rounds=3, seconds=1.0, trial=1.0)


def test_rows(tmp_path, capsys):
  record = {"rows": [], "trials": [], "agreement": []}
  chosen = {}
  peer_comparison.compare(Field(), tmp_path, WORK, chosen, record, ARGS)
  # The faster one of two settings was taken.
  assert chosen == {("other", "forward"): 1, ("other", "train"): 1}
  forward, train = record["rows"]
  assert FIELDS <= forward.keys()
  assert (forward["pass"], train["pass"]) == ("forward", "train")
  assert forward["ours"] == 11.0 and forward["theirs"] == 5.0
  assert forward["ratio"] == 11 / 5
  assert forward["spread"] == [11 / 6, 3.0]
  assert train["ratio"] == 6 / 5
  assert len(record["trials"]) == 4
  assert "computes the same" in capsys.readouterr().out
  record |= {
    "environment": {"device_kind": "cpu"},
    "processor": "known",
    "cores": 2,
    "date": "2026-01-01",
  }
  peer_plot.draw(record, tmp_path / "a.png")
  assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("scale", [1.01, float("nan")])
def test_contenders_that_compute_something_else_are_refused(tmp_path, scale):
  record = {"rows": [], "trials": [], "agreement": []}
  with pytest.raises(UserError, match="logits of S/32 differ by"):
    peer_comparison.compare(Field(scale), tmp_path, WORK, {}, record, ARGS)
  assert not record["rows"]


def test_other_parameters_are_refused():
  one = {"gradient/a": np.ones(2)}
  for other in ({"gradient/b": np.ones(2)}, {"gradient/a": np.ones(3)}):
    with pytest.raises(UserError, match="other names or shapes"):
      peer_comparison.differences(one, other)


def run(monkeypatch, *flags):
  monkeypatch.setattr(sys, "argv", ["peers", *flags])
  return peers.main()


def test_mistakes_are_told(monkeypatch, capsys):
  assert run(monkeypatch, "--models=S/33") == 1
  assert "S/33" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process(tmp_path: pathlib.Path):
  shape = dict(num_blocks=1, hidden_dim=8, tokens_mlp_dim=8)
  peers.make_work(
    tmp_path, "S/32", 8, shape=shape, image_size=32, num_classes=3
  )
  peer = peer_process.Peer(sys.executable, "peer_ours", tmp_path, True)
  assert peer.hello["platform"] == "cpu"
  assert peer.rate("train", "", 0.1) > 0
  peer.check("train", "", tmp_path / "found.npz")
  with np.load(tmp_path / "found.npz") as found:
    assert found["losses"][0] > found["losses"][2]
    assert "gradient/head.weight" in found
  peer.close()
