"""docs/tour.ipynb is stored without outputs, and runs from top to bottom."""

import json
import re

import pytest

from tests.conftest import ROOT

_PATH = ROOT / "docs" / "tour.ipynb"


def test_no_outputs_are_stored():
  cells = json.loads(_PATH.read_text("utf-8"))["cells"]
  assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
  reason = "the notebook is not run: make setup-notebook"
  nbformat = pytest.importorskip("nbformat", reason=reason)
  nbclient = pytest.importorskip("nbclient", reason=reason)
  pytest.importorskip("ipykernel", reason=reason)
  monkeypatch.setenv("TMPDIR", str(tmp_path))  # Of the kernel.
  tour = nbformat.read(_PATH, 4)
  at = {"metadata": {"path": str(_PATH.parent)}}
  nbclient.NotebookClient(tour, timeout=600, resources=at).execute()
  pages = [
    output["data"]["text/html"]
    for cell in tour.cells
    for output in cell.get("outputs", ())
    if "text/html" in output.get("data", {})
  ]
  model, digits, shapes, confusions, report = pages
  assert "in patches of 4" in model
  assert (digits.count("<img"), shapes.count("<img")) == (5, 3)
  first = re.findall(r">(\w+)<br>\w+<br>\w+<", shapes)
  assert first == ["triangles", "squares", "discs"]
  accuracy = re.search(r">accuracy</td><td[^>]*>([\d.]+)<", confusions)
  assert accuracy and float(accuracy[1]) > 0.8
  assert "<iframe srcdoc=" in report and "triangles" in report
