"""Curves in the browser: what is shown is what was recorded."""

import re

import numpy as np
import pytest

from tests.report import page_data

CHARTS = {
  "loss": ["train/loss", "eval/loss"],
  "accuracy": ["eval/accuracy", "eval/accuracy_top5"],
  "learning-rate": ["train/learning_rate"],
  "grad-norm": ["train/grad_norm"],
  "throughput": ["train/images_per_second"],
  "mfu": ["train/mfu"],
  "wait": ["data/wait"],
}


def _curve(run, metric):
  """{step: value} as recorded."""
  return {r["step"]: r[metric] for r in run["metrics"] if metric in r}


def _rows(page, chart):
  """All rows of a chart's data table, through its pages."""
  table = page.locator(f"#chart-{chart} .data")
  rows = []
  while True:
    rows += table.evaluate(
      "n => [...n.querySelectorAll('tbody tr')].map("
      "(r) => [...r.children].map((c) => c.textContent))"
    )
    following = table.get_by_role("button", name="Next rows")
    if following.is_disabled():
      return rows
    following.click()


def _plot(page, chart):
  return page.locator(f"#chart-{chart} .plot")


def _spoken(page):
  return page.locator("#spoken").inner_text()


def _axis(page, chart="loss"):
  """First and last step of the axis, as the keys find them."""
  ends = []
  for key in ("Home", "End"):
    _plot(page, chart).press(key)
    step = re.match(r"step ([\d,]+)", _spoken(page))[1]
    ends.append(int(step.replace(",", "")))
  return ends


def _run(*args, **kwargs):
  """A run of curves only."""
  run = page_data.run(*args, **kwargs)
  return run | {"predictions": None, "weights": None}


def _lines(page, chart, kind="path.line"):
  """Points [N, 2] of each path, and how many pieces it has."""
  page.wait_for_selector(f"#chart-{chart} .plot:not([aria-busy])")
  paths = (
    _plot(page, chart)
    .locator(kind)
    .evaluate_all("nodes => nodes.map((n) => n.getAttribute('d'))")
  )
  return [
    (
      np.array(re.findall(r"[ML]([-\d.]+) ([-\d.]+)", d), float).reshape(-1, 2),
      d.count("M"),
    )
    for d in paths
  ]


def test_tables_have_every_record(show):
  counts = (130, 60)
  runs = [_run(f"runs/{i}", n, i) for i, n in enumerate(counts)]
  page = show(runs)
  for chart, metrics in CHARTS.items():
    page.locator(f"#chart-{chart}").get_by_text("Table").click()
    curves = [_curve(run, m) for run in runs for m in metrics]
    steps = sorted(set().union(*curves))
    rows = _rows(page, chart)
    assert [int(row[0].replace(",", "")) for row in rows] == steps
    for column, curve in enumerate(curves, 1):
      for step, row in zip(steps, rows, strict=True):
        if step not in curve:
          assert row[column] == ""
        elif curve[step] is None:
          assert row[column] == "not finite"
        else:
          assert float(row[column]) == curve[step]


@pytest.mark.parametrize("chart", ["loss", "accuracy", "wait"])
def test_the_cursor_says_every_record(show, chart):
  run = _run("runs/a", 12)
  page = show([run])
  curves = {m: _curve(run, m) for m in CHARTS[chart]}
  steps = sorted(set().union(*curves.values()))
  plot = _plot(page, chart)
  plot.focus()
  for step in steps:
    page.keyboard.press("ArrowRight")
    head, said = _spoken(page).split(": ")
    assert head == f"step {step}"
    for text, (metric, curve) in zip(
      said.split("; "), curves.items(), strict=True
    ):
      found = re.fullmatch(r"(\S+) (.+?)(?: at step (\d+))?", text)
      assert found[1] == metric
      there = int(found[3] or step)
      assert abs(there - step) == min(abs(s - step) for s in curve)
      if curve[there] is None:
        assert found[2] == "not finite"
      else:
        assert float(found[2]) == pytest.approx(curve[there], rel=1e-5)
  page.keyboard.press("ArrowRight")  # At the end it stays.
  assert _spoken(page).startswith(f"step {steps[-1]}:")


def test_pointing_shows_all_runs_at_the_nearest_record(show):
  runs = [_run(f"runs/{i}", 30, i) for i in range(3)]
  page = show(runs)
  plot = _plot(page, "grad-norm")
  plot.scroll_into_view_if_needed()
  box = plot.bounding_box()
  ((points, _), *_) = _lines(page, "grad-norm")
  # A little beside the tenth point: it is the nearest one.
  page.mouse.move(box["x"] + points[9, 0] + 3, box["y"] + 60)
  tip = plot.locator(".tip")
  assert tip.locator("strong").inner_text() == "step 100"
  shown = [float(v) for v in tip.locator(".value").all_inner_texts()]
  wanted = [_curve(run, "train/grad_norm")[100] for run in runs]
  np.testing.assert_allclose(shown, wanted, rtol=1e-5)
  names = tip.locator("th").all_inner_texts()
  assert names == [run["name"] for run in runs]
  page.mouse.move(0, 0)
  assert tip.is_hidden()


def test_a_tap_shows_values_and_a_swipe_still_scrolls(show):
  page = show(
    [_run(count=30)],
    viewport={"width": 360, "height": 740},
    has_touch=True,
    is_mobile=True,
  )
  plot = _plot(page, "accuracy")
  plot.tap(position={"x": 200, "y": 90})
  assert plot.locator(".tip").is_visible()
  assert plot.evaluate("n => getComputedStyle(n).touchAction") == "pan-y"


def test_dragging_zooms_all_charts_and_three_ways_lead_back(show):
  page = show([_run(count=100)])
  plot = _plot(page, "accuracy")
  plot.scroll_into_view_if_needed()
  full = _axis(page)
  assert full == [10, 1000]
  ways = [
    lambda: page.locator("#curves").get_by_text("Reset").click(),
    lambda: plot.press("Escape"),
    lambda: plot.dblclick(position={"x": 300, "y": 60}),
  ]
  for back in ways:
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    # From a quarter to half of the axis, between the margins.
    left, right = box["x"] + 54, box["x"] + box["width"] - 14
    page.mouse.move(left + (right - left) / 4, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(left + (right - left) / 2, box["y"] + 80)
    assert plot.locator(".selection").count() == 1
    page.mouse.up()
    first, last = _axis(page)
    assert first == pytest.approx(10 + 990 / 4, abs=11)
    assert last == pytest.approx(10 + 990 / 2, abs=11)
    back()
    assert _axis(page) == full


def test_keys_and_wheel_zoom(show):
  page = show([_run(count=100)])
  plot = _plot(page, "loss")
  plot.press("Home")
  plot.press("Shift+ArrowRight")
  assert _spoken(page).startswith("step 110:")
  plot.press("+")
  first, last = _axis(page)
  assert last - first == pytest.approx(990 / 2, abs=11)
  plot.press("-")
  assert _axis(page) == [10, 1000]
  plot.hover()
  page.keyboard.down("Control")
  page.mouse.wheel(0, -100)
  page.keyboard.up("Control")
  first, last = _axis(page)
  assert last - first == pytest.approx(990 * 0.8, abs=21)
  plot.press("0")
  assert _axis(page) == [10, 1000]


def test_a_value_that_is_not_finite_is_a_gap(show):
  page = show([_run(count=20)])
  (train, evaluation) = _lines(page, "loss")
  assert train[1] == 2
  assert evaluation[1] == 1
  # 20 records, one of them null.
  assert len(train[0]) == 19


def test_logarithms_leave_out_what_has_none_and_say_so(show):
  run = page_data.bare("runs/a")
  values = [1.0, 10.0, 0.0, 100.0, -3.0, 1000.0]
  run["metrics"] = [
    {"step": i, "train/grad_norm": v} for i, v in enumerate(values)
  ]
  page = show([run])
  note = page.locator("#chart-grad-norm .note")
  assert note.is_hidden()
  ((_, pieces),) = _lines(page, "grad-norm")
  assert pieces == 1
  _plot(page, "grad-norm").press("l")
  ((points, pieces),) = _lines(page, "grad-norm")
  assert pieces == 3
  heights = points[:, 1]
  assert len(heights) == 4
  # Ten times as much is always equally far up.
  np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0], atol=0.2)
  assert note.inner_text().startswith("2 values ≤ 0 left out")
  page.get_by_role("button", name="logarithmic").click()
  assert note.is_hidden()


def test_runs_can_be_hidden_in_all_charts(show):
  page = show([_run(f"runs/{i}", 30, i) for i in range(3)])
  assert len(_lines(page, "grad-norm")) == 3
  page.get_by_label("Runs shown").get_by_text("runs/1").click()
  assert len(_lines(page, "grad-norm")) == 2
  assert len(_lines(page, "loss")) == 4
  assert page.locator("#chart-goodput-1").is_hidden()
  _plot(page, "loss").press("End")
  assert "runs/1" not in _spoken(page)
  assert "runs/2" in _spoken(page)
  page.get_by_label("Runs shown").get_by_text("runs/1").click()
  assert len(_lines(page, "grad-norm")) == 3


def test_smoothing_is_an_average_beside_the_values(show):
  run = _run(count=30)
  page = show([run])
  page.get_by_label("Smoothing").fill("0.8")
  curve = _curve(run, "train/loss")
  values = [v for v in curve.values() if v is not None]
  weights = 0.8 ** np.arange(len(values))[::-1]
  _plot(page, "loss").press("End")
  rows = page.locator("#chart-loss .tip tr").all_inner_texts()
  smooth = float(re.search(r"smooth (\S+)", rows[0])[1])
  assert smooth == pytest.approx(np.average(values, weights=weights), rel=1e-5)
  assert f"{values[-1]:.6g}" in rows[0]
  assert "smooth" not in rows[1]  # An evaluation is no noise.
  assert len(_lines(page, "loss", "path.raw")) == 1
  assert len(_lines(page, "loss", "path.smooth")) == 1
  ((drawn, pieces),) = _lines(page, "loss", "path.smooth")
  assert pieces == 2
  assert len(drawn) == len(values)
  page.get_by_label("Smoothing").fill("0")
  assert len(_lines(page, "loss", "path.raw")) == 0


def test_a_spike_among_many_records_stays(show):
  run = page_data.bare("runs/long")
  rng = np.random.default_rng(0)
  values = rng.random(20_000)
  values[12_345] = 9.0
  values[4_321] = -7.0
  run["metrics"] = [
    {"step": i, "train/loss": float(v)} for i, v in enumerate(values)
  ]
  page = show([run])
  ((points, _),) = _lines(page, "loss")
  assert len(points) < 4 * 1280
  left, right = points[0, 0], points[-1, 0]
  high, low = points[:, 1].argmin(), points[:, 1].argmax()
  for step, best in ((12_345, high), (4_321, low)):
    at = left + (right - left) * step / 19_999
    assert points[best, 0] == pytest.approx(at, abs=0.2)
  # The cursor still stands on single records.
  plot = _plot(page, "loss")
  plot.press("Home")
  plot.press("Shift+ArrowRight")
  head, value = _spoken(page).split(": train/loss ")
  assert head == "step 10"
  assert float(value) == pytest.approx(values[10], rel=1e-5)


def test_the_axis_can_be_images_or_hours(show):
  runs = [_run("a", 20), _run("b", 20, 1)]
  runs[1]["config"]["batch_size"] = 64
  page = show(runs)
  page.get_by_role("button", name="images", exact=True).click()
  _plot(page, "mfu").press("End")
  assert _spoken(page).startswith("12,800 images:")
  assert re.search(r"a 0\.\d+ at step 200; b 0\.\d+$", _spoken(page))
  page.get_by_role("button", name="hours").click()
  _plot(page, "mfu").press("End")
  totals = [
    sum(v for k, v in record.items() if k.startswith("goodput/"))
    for record in (run["metrics"][-1] for run in runs)
  ]
  hours = float(_spoken(page).split(" hours")[0])
  assert hours == pytest.approx(max(totals) / 3600, rel=1e-3)


def test_time_is_told_by_kind(show):
  run = _run(count=20)
  page = show([run])
  last = run["metrics"][-1]
  seconds = {k: v for k, v in last.items() if k.startswith("goodput/")}
  total = sum(seconds.values())
  rows = page.locator("#time tbody tr").all_inner_texts()
  shown = {r.split("\t")[0]: r.split("\t")[1:] for r in rows}
  number, share = shown["updates"]
  assert float(number) == pytest.approx(seconds["goodput/step"])
  assert share == f"{100 * seconds['goodput/step'] / total:.1f}%"
  assert float(shown["all"][0]) == pytest.approx(total)
  assert len(shown) == 8
  _plot(page, "goodput-0").press("End")
  assert f"updates {number} s ({share})" in _spoken(page)
  assert page.locator("#chart-goodput-0 .area").count() == 7


def test_a_metric_that_nobody_knows_has_a_chart(show):
  run = page_data.bare("runs/a")
  run["metrics"] = [{"step": s, "my/own": s / 3} for s in range(5)]
  page = show([run])
  page.get_by_text("More metrics").click()
  plot = page.get_by_role("application", name="my/own")
  plot.press("End")
  assert _spoken(page) == "step 4: my/own 1.33333"


def test_records_of_a_resumed_run_are_put_in_order(show):
  run = page_data.bare("runs/a")
  run["metrics"] = [
    {"step": s, "train/loss": v}
    for s, v in [(1, 5.0), (3, 4.0), (2, 3.0), (3, 2.0)]
  ]
  page = show([run])
  page.get_by_role("button", name="Loss: data table").click()
  assert _rows(page, "loss") == [["1", "5"], ["2", "3"], ["3", "2"]]
