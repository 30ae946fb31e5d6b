import json

import pytest

from benchmarks import records, tables

PEERS = sorted(records.RESULTS.glob("peers_*.json"))
# Of issue 7: what a row of peers_cpu.json and peers_gpu.json holds.
FIELDS = {
  *("model", "pass", "batch", "dtype", "ours", "peer", "theirs"),
  *("ratio", "spread"),
}


@pytest.mark.parametrize("path", PEERS, ids=lambda p: p.name)
def test_rows_of_peers(path):
  rows = json.loads(path.read_text())["rows"]
  assert rows
  for row in rows:
    assert FIELDS <= row.keys()
    assert row["pass"] in ("forward", "train")
    assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"])
    assert row["spread"][0] <= row["spread"][1]


ORIGIN = {
  "date": "2026-01-02",
  "command": "python -m benchmarks.known",
  "processor": "Known",
  "cores": 2,
  "environment": {"platform": "cpu", "device_kind": "cpu"},
}
RATIO = {"ratio": 1.5, "spread": [1.25, 2.0]}
PEER = {"model": "S/32", "batch": 4, "dtype": "float32", "ours": 150.0}
STARTED = {"model": "B/16", "batch": 8, "dtype": "float32", "seconds": 9.0}
LOOP = {
  **{"model": "S/32", "image_size": 224, "batch": 32, "dtype": "float32"},
  **{"seconds": {"bare": 0.5}, "loop": 1.01, "loop_spread": [0.99, 1.02]},
  **{"loader": 1.05, "loader_spread": [1.0, 1.1], "loop_thread": 0.003},
  **{"both": 1.06, "both_spread": [1.0, 1.2], "waited": 0.02},
}
FILES = {
  "end_to_end": {"rows": [ORIGIN | LOOP]},
  "peers": ORIGIN
  | {
    "rows": [
      PEER | RATIO | {"pass": what, "peer": peer, "theirs": 100.0} | setting
      for what in ("forward", "train")
      for peer, setting in (
        ("timm", {"variant": "eager"}),
        ("ours, plain malloc", {"variant": "plain malloc"}),
      )
    ]
  },
  "startup": ORIGIN
  | {
    "rows": [
      STARTED
      | {"cache": "cold", "spread": [8.0, 10.0]}
      | {"phases": {"imports": 2.0, "first update": 7.0}}
    ],
    "imports": [
      {
        **{"module": "train", "seconds": 2.0, "spread": [1.9, 2.1]},
        **{"heaviest": {"jax": 0.5}, "others": 0.25},
      }
    ],
  },
}


CELLS = {
  "peers": (
    "| S/32 | train | 150 | timm | eager | 100 | 1.50 | 1.25 to 2.00 |",
    "| S/32, forward | 150 | 100 (1.50, 1.25 to 2.00) |",
  ),
  "startup": (
    "| B/16 | cold | 9.0 | 8.0 to 10.0 | 2.0 | 7.0 |",
    "| `import train` | 2.00 (1.90 to 2.10) | jax 500 | 250 |",
  ),
  "end_to_end": (
    "| 500.0 | +1.0% (-1.0 to +2.0) | 0.30% | +5.0% (+0.0 to +10.0) | 2.0% |",
  ),
}


@pytest.mark.parametrize("name", CELLS)
def test_tables_hold_the_figures(name, tmp_path):
  path = tmp_path / "results.json"
  path.write_text(json.dumps(FILES[name]))
  found = tables.markdown(name, path)
  for table, cells in zip(found, CELLS[name], strict=True):
    assert cells in table
    assert "2 cores of Known" in table
    assert "2026-01-02, `python -m benchmarks.known`" in table
    # Every line of it has as many cells.
    lines = [x for x in table.splitlines() if x.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_figures_of_the_step():
  path = records.RESULTS / "step_cpu.json"
  rows = json.loads(path.read_text())["rows"]
  (table,) = tables.markdown("step", path)
  for row, line in zip(rows, table.splitlines()[2:], strict=False):
    cells = [c.strip() for c in line.strip("|").split("|")]
    assert cells[0] == row["model"] and cells[2] == row["pass"]
    milliseconds = float(cells[3].replace(",", ""))
    assert milliseconds == pytest.approx(row["seconds"] * 1e3, rel=5e-3)
