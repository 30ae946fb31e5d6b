import json
import sys

import pytest

from benchmarks import curve_plot, curves


def test_the_law():
  point = curves.Point("S/32", 8, 224, "float32", devices=3)
  law = curves.law(point, matmul_flops=1e11, bytes_per_second=1e10)
  # 19,104,624 parameters and 5.86 GFLOP an image, as published.
  assert law["matmuls"] == pytest.approx(8 * 5.86e9 / 1e11, rel=1e-3)
  assert law["optimizer"] == 19_104_624 * 28 / 1e10
  assert law["partition"] == 2 * 19_104_624 * 8 / 1e10
  parts = ("matmuls", "optimizer", "partition")
  assert law["all"] == pytest.approx(sum(law[k] for k in parts))


def record():
  rows = [
    {
      **{"model": "S/32", "batch": n, "image": 224, "devices": n},
      **{"dtype": "float32", "seconds": 0.1 * n, "matmul_flops": 1e11},
      **{"spread": [0.09 * n, 0.12 * n], "over": 1.25},
      "law": {"matmuls": 0.07 * n, "all": 0.08 * n},
    }
    for n in (1, 2, 4)
  ]
  return {
    "date": "2026-01-01",
    "command": "known",
    "processor": "known",
    "cores": 2,
    "environment": {"platform": "cpu", "device_kind": "cpu"},
    "curves": {"batch": rows, "model": rows, "devices": rows},
  }


def test_the_picture(tmp_path):
  curve_plot.draw(record(), tmp_path / "a.png")
  assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_two_points_by_batch_and_devices(monkeypatch, tmp_path):
  path = tmp_path / "curves_cpu.json"
  flags = ["--only=batch,devices", "--batches=1,2", "--devices=1,2"]
  flags += ["--batch=2", "--model=S/32", "--dtype=float32"]
  flags += ["--rounds=1", "--seconds=0", f"--out={path}"]
  monkeypatch.setattr(sys, "argv", ["curves", *flags])
  # The tests' own eight devices are not what is asked for here.
  monkeypatch.setenv("XLA_FLAGS", "")
  assert curves.main() == 0
  found = json.loads(path.read_text())["curves"]
  assert [row["batch"] for row in found["batch"]] == [1, 2]
  assert [row["devices"] for row in found["devices"]] == [1, 2]
  for row in found["batch"] + found["devices"]:
    assert row["over"] == pytest.approx(row["seconds"] / row["law"]["all"])
  assert path.with_suffix(".png").exists()
