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


def _run(*args, **kwargs):
  """A run of curves only."""
  run = page_data.run(*args, **kwargs)
  return run | {"predictions": None, "weights": None}


def _drawn(page, chart):
  """[x, curve, curve ...] as the chart draws them; None is a gap."""
  plot = _plot(page, chart)
  plot.scroll_into_view_if_needed()
  page.wait_for_function(
    "id => { const c = document.querySelector(`#chart-${id} .plot`).chart;"
    " return c && !c.stale; }",
    arg=chart,
  )
  found = plot.evaluate(
    "n => n.chart.drawn.data.map((column) => [...column].map((v) =>"
    " v === undefined ? 'none' : v))"
  )
  return found


def _curves(page, chart):
  """{x: value} of each curve that is drawn."""
  xs, *curves = _drawn(page, chart)
  return [
    {x: v for x, v in zip(xs, curve, strict=True) if v != "none"}
    for curve in curves
  ]


def _range(page, chart="loss"):
  _drawn(page, chart)
  return _plot(page, chart).evaluate(
    "n => [n.chart.drawn.scales.x.min, n.chart.drawn.scales.x.max]"
  )


def _point(page, chart, x):
  """Points at a place on the axis; the tip's lines."""
  _drawn(page, chart)
  plot = _plot(page, chart)
  left = plot.evaluate("(n, x) => n.chart.drawn.valToPos(x, 'x')", x)
  box = plot.locator(".u-over").bounding_box()
  at = box["x"] + min(left, box["width"] - 2)
  page.mouse.move(at, box["y"] + 40)
  page.mouse.move(at, box["y"] + 60)
  tip = page.locator(f"#chart-{chart} .tip")
  tip.wait_for()
  return tip, tip.locator("tr").all_inner_texts()


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


@pytest.mark.parametrize("chart", CHARTS)
def test_every_record_is_drawn(show, chart):
  # One value is not finite: a gap.
  runs = [_run("runs/a", 30), _run("runs/b", 17, 1)]
  page = show(runs)
  wanted = [_curve(run, m) for run in runs for m in CHARTS[chart]]
  assert _curves(page, chart) == wanted


def test_pointing_shows_all_runs_at_the_nearest_record(show):
  runs = [_run(f"runs/{i}", 30, i) for i in range(3)]
  page = show(runs)
  tip, _ = _point(page, "grad-norm", 101)
  assert tip.locator("strong").inner_text() == "step 100"
  shown = [float(v) for v in tip.locator(".value").all_inner_texts()]
  wanted = [_curve(run, "train/grad_norm")[100] for run in runs]
  np.testing.assert_allclose(shown, wanted, rtol=1e-5)
  names = tip.locator("th").all_inner_texts()
  assert names == [run["name"] for run in runs]
  page.mouse.move(0, 0)
  assert tip.is_hidden()


def test_a_record_elsewhere_says_where(show):
  run = _run(count=12)
  page = show([run])
  _, (train, evaluation) = _point(page, "loss", 20)
  values = _curve(run, "eval/loss")
  near = min(values, key=lambda step: abs(step - 20))
  assert f"{_curve(run, 'train/loss')[20]:.6g}" in train
  assert f"{values[near]:.6g}" in evaluation
  assert ("at" in evaluation) == (near != 20)


def test_a_tap_shows_values_and_a_swipe_still_scrolls(show):
  page = show(
    [_run(count=30)],
    viewport={"width": 360, "height": 740},
    has_touch=True,
    is_mobile=True,
  )
  _drawn(page, "accuracy")
  _plot(page, "accuracy").tap(position={"x": 200, "y": 90})
  page.locator("#chart-accuracy .tip").wait_for()  # To be visible.
  over = _plot(page, "accuracy").locator(".u-over")
  assert over.evaluate("n => getComputedStyle(n).touchAction") == "pan-y"


def test_dragging_zooms_all_charts_and_two_ways_lead_back(show):
  page = show([_run(count=100)])
  full = _range(page)
  assert full == [10, 1000]
  over = _plot(page, "accuracy").locator(".u-over")
  for back in (
    lambda: page.locator("#curves").get_by_text("Reset").click(),
    lambda: over.dblclick(position={"x": 200, "y": 60}),
  ):
    _drawn(page, "accuracy")
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 80)
    page.mouse.up()
    for chart in ("accuracy", "loss"):
      first, last = _range(page, chart)
      assert first == pytest.approx(10 + 990 / 4, abs=11)
      assert last == pytest.approx(10 + 990 / 2, abs=11)
    back()
    assert _range(page) == full


def test_buttons_and_wheel_zoom(show):
  page = show([_run(count=100)])
  page.get_by_role("button", name="Zoom in").click()
  first, last = _range(page)
  assert last - first == pytest.approx(990 / 2)
  page.get_by_role("button", name="Zoom out").click()
  assert _range(page) == [10, 1000]
  _plot(page, "loss").locator(".u-over").hover()
  page.keyboard.down("Control")
  page.mouse.wheel(0, -100)
  page.keyboard.up("Control")
  page.wait_for_function(
    "() => document.querySelector('#chart-loss .plot')"
    ".chart.drawn.scales.x.max < 1000"
  )
  first, last = _range(page)
  assert last - first == pytest.approx(990 * 0.8)


def test_logarithms_leave_out_what_has_none_and_say_so(show):
  run = page_data.bare("runs/a")
  values = [1.0, 10.0, 0.0, 100.0, -3.0, 1000.0]
  run["metrics"] = [
    {"step": i, "train/grad_norm": v} for i, v in enumerate(values)
  ]
  page = show([run])
  note = page.locator("#chart-grad-norm .note")
  assert _curves(page, "grad-norm") == [dict(enumerate(values))]
  assert note.is_hidden()
  page.get_by_role("button", name="logarithmic").click()
  (curve,) = _curves(page, "grad-norm")
  assert curve == {0: 1, 1: 10, 2: None, 3: 100, 4: None, 5: 1000}
  heights = _plot(page, "grad-norm").evaluate(
    "n => [1, 10, 100, 1000].map((v) => n.chart.drawn.valToPos(v, 'y'))"
  )
  # Ten times as much is always equally far up.
  np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0], atol=0.2)
  assert note.inner_text().startswith("2 values ≤ 0 left out")
  page.get_by_role("button", name="logarithmic").click()
  assert note.is_hidden()


def test_runs_can_be_hidden_in_all_charts(show):
  page = show([_run(f"runs/{i}", 30, i) for i in range(3)])
  switch = page.get_by_label("Runs shown").get_by_text("runs/1")
  assert len(_curves(page, "grad-norm")) == 3
  switch.click()
  assert len(_curves(page, "grad-norm")) == 2
  assert len(_curves(page, "loss")) == 4
  assert page.locator("#chart-goodput-1").is_hidden()
  _, rows = _point(page, "loss", 300)
  assert "runs/1" not in " ".join(rows) and "runs/2" in " ".join(rows)
  switch.click()
  assert len(_curves(page, "grad-norm")) == 3


def test_smoothing_is_an_average_beside_the_values(show):
  run = _run(count=30)
  page = show([run])
  page.get_by_label("Smoothing").fill("0.8")
  curve = _curve(run, "train/loss")
  values = [v for v in curve.values() if v is not None]
  raw, average, evaluation = _curves(page, "loss")
  assert raw == curve and evaluation == _curve(run, "eval/loss")
  weights = 0.8 ** np.arange(len(values))[::-1]
  wanted = np.average(values, weights=weights)
  assert average[300] == pytest.approx(wanted)
  _, rows = _point(page, "loss", 300)
  smooth = float(re.search(r"smooth (\S+)", rows[0])[1])
  assert smooth == pytest.approx(wanted, rel=1e-5)
  assert f"{values[-1]:.6g}" in rows[0]
  assert "smooth" not in rows[1]  # An evaluation is no noise.
  page.get_by_label("Smoothing").fill("0")
  assert len(_curves(page, "loss")) == 2


def test_many_records_are_all_there(show):
  run = page_data.bare("runs/long")
  values = np.random.default_rng(0).random(20_000)
  run["metrics"] = [
    {"step": i, "train/loss": float(v)} for i, v in enumerate(values)
  ]
  page = show([run])
  assert _curves(page, "loss") == [dict(enumerate(values))]


def test_the_axis_can_be_images_or_hours(show):
  runs = [_run("a", 20), _run("b", 20, 1)]
  runs[1]["config"]["batch_size"] = 64
  page = show(runs)
  page.get_by_role("button", name="images", exact=True).click()
  assert _range(page, "mfu") == [10 * 32, 200 * 64]
  tip, (a, b) = _point(page, "mfu", 200 * 64)
  assert tip.locator("strong").inner_text() == "12,800 images"
  assert a.endswith("at 200") and b.endswith("at 200")
  page.get_by_role("button", name="hours").click()
  totals = [
    sum(v for k, v in record.items() if k.startswith("goodput/"))
    for record in (run["metrics"][-1] for run in runs)
  ]
  assert _range(page, "mfu")[1] == pytest.approx(max(totals) / 3600)


def test_time_by_kind(show):
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
  # The whole on top, updates at the bottom.
  areas = _curves(page, "goodput-0")
  assert len(areas) == 7
  assert areas[0][200] == pytest.approx(1)
  assert areas[-1][200] == pytest.approx(seconds["goodput/step"] / total)
  _, lines = _point(page, "goodput-0", 200)
  assert any(f"updates\t{number} s ({share})" in line for line in lines)


def test_a_metric_that_nobody_knows_has_a_chart(show):
  run = page_data.bare("runs/a")
  run["metrics"] = [{"step": s, "my/own": s / 3} for s in range(5)]
  page = show([run])
  page.get_by_text("More metrics").click()
  figure = page.get_by_role("img", name="my/own")
  figure.scroll_into_view_if_needed()
  page.wait_for_selector(".chart canvas")
  assert figure.evaluate("n => n.chart.drawn.data[1]")[4] == 4 / 3


def test_records_of_a_resumed_run_are_put_in_order(show):
  run = page_data.bare("runs/a")
  run["metrics"] = [
    {"step": s, "train/loss": v}
    for s, v in [(1, 5.0), (3, 4.0), (2, 3.0), (3, 2.0)]
  ]
  page = show([run])
  page.get_by_role("button", name="Loss: data table").click()
  assert _rows(page, "loss") == [["1", "5"], ["2", "3"], ["3", "2"]]


def test_a_canvas_follows_the_colours(show):
  page = show([_run(count=20)], color_scheme="light")
  stroke = "n => n.chart.drawn.series[1]._stroke"
  _drawn(page, "loss")
  light = _plot(page, "loss").evaluate(stroke)
  page.get_by_role("button", name="Dark").click()
  _drawn(page, "loss")
  dark = _plot(page, "loss").evaluate(stroke)
  assert light == "rgb(0, 114, 178)" and dark == "rgb(86, 180, 233)"
  page.evaluate("dispatchEvent(new Event('beforeprint'))")
  assert _plot(page, "loss").evaluate(stroke) == light
