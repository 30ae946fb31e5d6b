import copy
import json

import pytest

from benchmarks import records, tables
from mixer.errors import UserError

PEERS = sorted(records.RESULTS.glob("peers_*.json"))
# Of issue 7: what a row of peers_cpu.json and peers_gpu.json holds.
FIELDS = {
  *("model", "pass", "batch", "dtype", "ours", "peer", "theirs"),
  *("ratio", "spread"),
}


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda p: p.name)
def test_pages_say_what_the_files_do(page):
  text = page.read_text("utf-8")
  assert tables.render(text) == text, "run: python -m benchmarks.tables"


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
  "peers_cpu": {
    "rows": [
      PEER | RATIO | {"pass": what, "peer": peer, "theirs": 100.0} | setting
      for what in ("forward", "train")
      for peer, setting in (
        ("timm", {"variant": "eager"}),
        ("ours, plain malloc", {"variant": "plain malloc"}),
      )
    ]
  },
  "startup_cpu": {
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


@pytest.fixture
def results(tmp_path):
  for name, record in FILES.items():
    (tmp_path / f"{name}.json").write_text(json.dumps(ORIGIN | record))
  rows = {"rows": [copy.deepcopy(ORIGIN | LOOP)]}
  (tmp_path / "end_to_end.json").write_text(json.dumps(rows))
  return tmp_path


def page(*names):
  found = "".join(
    f"<!-- table: {n} -->\nstale\n<!-- end -->\n\n" for n in names
  )
  return f"# Before\n\n{found}After\n"


def test_tables_hold_the_figures(results):
  assert tables.names(results) == [
    *("end_to_end", "peers_cpu", "peers_short_cpu", "startup_cpu"),
    "imports_cpu",
  ]
  (results / "compiled.json").write_text("{}")
  assert {"compiled_gpu", "remat"} < {*tables.names(results)}
  (results / "compiled.json").unlink()
  text = tables.render(page(*tables.names(results)), results)
  assert tables.render(text, results) == text
  assert text.startswith("# Before\n\n<!-- table") and "stale" not in text
  assert text.endswith("<!-- end -->\n\nAfter\n")
  assert text.count("2 cores of Known") == 5
  assert text.count("2026-01-02, `python -m benchmarks.known`") == 5
  for cells in (
    "| S/32 | train | 150 | timm | eager | 100 | 1.50 | 1.25 to 2.00 |",
    "| S/32, forward | 150 | 100 (1.50, 1.25 to 2.00) |",
    "| B/16 | cold | 9.0 | 8.0 to 10.0 | 2.0 | 7.0 |",
    "| `import train` | 2.00 (1.90 to 2.10) | jax 500 | 250 |",
    "| 500.0 | +1.0% (-1.0 to +2.0) | 0.30% | +5.0% (+0.0 to +10.0) | 2.0% |",
  ):
    assert cells in text
  # Each is a table: every line of it has as many cells.
  for block in text.split("\n\n"):
    lines = [x for x in block.splitlines() if x.startswith("|")]
    assert len({line.count("|") for line in lines}) <= 1


def test_figures_of_the_step():
  path = records.RESULTS / "step_cpu.json"
  rows = json.loads(path.read_text())["rows"]
  lines = tables.table("step_cpu").splitlines()
  for row, line in zip(rows, lines[2:], strict=False):
    cells = [c.strip() for c in line.strip("|").split("|")]
    assert cells[0] == row["model"] and cells[2] == row["pass"]
    milliseconds = float(cells[3].replace(",", ""))
    assert milliseconds == pytest.approx(row["seconds"] * 1e3, rel=5e-3)


@pytest.mark.parametrize(
  "text, told",
  [
    (page("peers_xpu"), "there is no table 'peers_xpu'"),
    (page("peers_gpu"), "which isn't there: measure it first"),
    ("<!-- table: peers_cpu -->\n", "'peers_cpu' has no end"),
    (
      "<!-- table: end_to_end -->\n" + page("peers_cpu"),
      "'end_to_end' has no end",
    ),
  ],
)
def test_mistakes_are_told(text, told, results):
  with pytest.raises(UserError, match=told):
    tables.render(text, results)
