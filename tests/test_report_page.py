"""The page of the report in a browser: what is shown is what was recorded."""

import os
import pathlib
import shutil

import numpy as np
import pytest

from mixer.report import collect
from tests import test_report

NASTY = "</script><script>alert(1)</script>{{title}}<!--" + "y" * 200

# [text, contrast] of each text in sight with what is next behind it.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => c / 255).map((c) =>
      c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      const fill = at.matches(".card ol li")
        ? style.backgroundImage.match(/rgb[^)]*./)[0] : style.backgroundColor;
      const colour = rgba(fill);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) =>
      child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("script")) continue;
    const [a, b] = [rgba(getComputedStyle(node).color), behind(node)]
      .map(luminance).sort((p, q) => q - p);
    found.push([node.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
  """Chromium without a window, shared by all tests of the page."""
  missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
  try:
    from playwright import sync_api
  except ImportError:
    missing("the report's page is not tested: pip install playwright")
  names = ("chromium-headless-shell", "chromium", "google-chrome")
  known = [os.environ.get("CHROMIUM"), *map(shutil.which, names)]
  path = next(filter(None, known), None)
  if path is None:
    missing("the report's page is not tested: set CHROMIUM to its path")
  with sync_api.sync_playwright() as playwright:
    running = playwright.chromium.launch(
      executable_path=path, args=["--no-sandbox"]
    )
    yield running
    running.close()


@pytest.fixture
def show(browser, tmp_path: pathlib.Path):
  """Opens the report of some runs; it may neither complain nor load."""
  contexts, complaints, requests = [], [], []
  file = tmp_path / "report.html"

  def opened(runs, **options):
    file.write_text(collect.text(runs), encoding="utf-8")
    options.setdefault("viewport", {"width": 1280, "height": 900})
    context = browser.new_context(**options)
    context.set_default_timeout(5000)
    contexts.append(context)
    page = context.new_page()
    page.on("console", lambda m: complaints.append(f"{m.type}: {m.text}"))
    page.on("pageerror", lambda e: complaints.append(f"error: {e}"))
    page.on("request", lambda r: requests.append(r.url))
    page.goto(file.as_uri())
    return page

  yield opened
  for context in contexts:
    context.close()
  assert complaints == []
  loaded = [url for url in requests if not url.startswith("data:image/")]
  assert set(loaded) == {file.as_uri()}


def make_run(name="runs/a", count=30, seed=0, classes=10, names=None):
  """A run with everything that a report knows, as of `collect.read`."""
  rng = np.random.default_rng(seed)
  steps = [10 * (i + 1) for i in range(count)]
  some = steps[2::3]
  curves = {
    "train/loss": [steps, rng.random(count).tolist()],
    "eval/loss": [some, rng.random(len(some)).tolist()],
    "eval/accuracy": [some, rng.random(len(some)).tolist()],
    "train/grad_norm": [steps, (rng.random(count) + 1).tolist()],
    "hours": [steps, [step / 100 for step in steps]],
    "my/own": [steps, [step / 3 for step in steps]],
  }
  curves["train/loss"][1][count // 2] = None
  rows = test_report.random_rows(seed, classes, 30 * classes + 100, 0, 0)
  found = test_report.gathered(rows, classes)["predictions"]
  return {
    "name": name,
    "finals": [["Accuracy", "62.50%", "at step 30; best 75.00% at 20"]],
    "facts": [["model", "Mixer S/4 at 16 px"], ["steps", f"{steps[-1]}"]],
    "settings": [["loss.name", "softmax"], ["seed", str(seed)]],
    "environment": [["versions.jax", "0.11.0"]],
    "batch_size": 32 * (seed + 1),
    "curves": curves,
    "predictions": found | {"classes": names or found["classes"]},
    "weights": list(test_report.drawn()[1].values())[:1],
    "notes": [],
  }


def bare(name="runs/new"):
  """A run that has just begun."""
  empty = {"curves": {}, "predictions": None, "weights": None}
  lists = {key: [] for key in ("finals", "facts", "environment")}
  note = ["There is no checkpoint in runs/new yet."]
  return make_run(name) | empty | lists | {"notes": note}


def charts(page, *titles):
  """The plots of some charts, drawn."""
  found = []
  for title in titles:
    plot = page.get_by_role("img", name=f"{title}: curves")
    plot.scroll_into_view_if_needed()
    plot.locator("canvas").wait_for()
    found.append(plot)
  return found


def curves(plot):
  """{x: value} of each curve that is drawn; None is a gap."""
  columns = plot.evaluate(
    "n => n.chart.data.map((column) => [...column].map((v) =>"
    " v === undefined ? 'none' : v))"
  )
  return [
    {x: v for x, v in zip(columns[0], column, strict=True) if v != "none"}
    for column in columns[1:]
  ]


def axis(plot):
  return plot.evaluate("n => [n.chart.scales.x.min, n.chart.scales.x.max]")


def wait_for_values(page, plot):
  page.wait_for_function(
    "n => n.chart.legend.idx !== null", arg=plot.element_handle()
  )


def curve(run, metric):
  return dict(zip(*run["curves"][metric], strict=True))


def table(page, name):
  """The rows of a table, also those out of sight."""
  region = page.get_by_role("region", name=name, exact=True)
  return region.locator("tbody tr").evaluate_all(
    "rows => rows.map((r) => [...r.children].map((c) => c.textContent))"
  )


@pytest.mark.parametrize("kind", ["one", "four", "nasty"])
def test_it_fits_a_phone_and_shows_names_as_they_are(show, kind):
  runs = {
    "one": lambda: [make_run()],
    "four": lambda: [
      make_run(f"runs/{i}", 20, i, classes=(10, 40, 3, 2)[i]) for i in range(4)
    ],
    "nasty": lambda: [make_run(NASTY, names=[NASTY] * 10), bare()],
  }[kind]()
  page = show(
    runs, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
  )
  sizes = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
  assert sizes == [360, 360]
  for run in runs:
    assert page.get_by_text(run["name"], exact=True).count()
    for note in run["notes"]:
      assert page.get_by_text(note).is_visible()
  # What is under <main> is ours: no name has become an element.
  assert page.locator("main script").count() == 0
  if kind == "one":
    # A swipe still scrolls, and a tap shows values.
    (plot,) = charts(page, "Accuracy")
    over = plot.locator(".u-over")
    assert over.evaluate("n => getComputedStyle(n).touchAction") == "pan-y"
    over.tap(position={"x": 150, "y": 90})
    wait_for_values(page, plot)
    value = plot.locator(".u-value").nth(1).inner_text()
    assert float(value) in [
      float(f"{v:.6g}") for v in curve(runs[0], "eval/accuracy").values()
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_also_on_paper(show, scheme):
  papers = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}
  paper = "getComputedStyle(document.body).backgroundColor"
  strokes = {"light": "rgb(0, 114, 178)", "dark": "rgb(86, 180, 233)"}
  stroke = "n => n.chart.series[1]._stroke"
  runs = [make_run("a", 20), make_run("b", 20, 1, classes=30)]
  page = show(runs, color_scheme=scheme)
  (plot,) = charts(page, "Loss")
  for wanted in ("light", "dark", "Auto"):
    page.get_by_label("Colours").select_option(wanted)
    wanted = scheme if wanted == "Auto" else wanted
    assert page.evaluate(paper) == papers[wanted]
    assert plot.evaluate(stroke) == strokes[wanted]
  page.evaluate("dispatchEvent(new Event('beforeprint'))")
  assert page.locator("details:not([open], .records)").count() == 0
  assert page.locator(".chart canvas").count() == page.locator(".chart").count()
  assert page.locator(".card:visible").count() == 2 * 48
  found = page.evaluate(CONTRASTS)
  assert len(found) > 500
  assert [pair for pair in found if pair[1] < 4.5] == []
  page.emulate_media(media="print")
  assert page.evaluate(paper) == papers["light"]


def test_curves_and_tables_have_every_record(show):
  runs = [make_run("runs/a", 600), make_run("runs/b", 17, 1)]
  page = show(runs)
  for title, metrics in (
    ("Loss", ["train/loss", "eval/loss"]),
    ("Accuracy", ["eval/accuracy"]),
  ):
    wanted = [curve(run, metric) for run in runs for metric in metrics]
    (plot,) = charts(page, title)
    assert curves(plot) == wanted
    page.get_by_label(f"{title}: data table").press("Enter")
    page.get_by_role("region", name=f"{title}: records").wait_for()
    assert table(page, f"{title}: records") == [
      [
        f"{step:,}",
        *(
          "not finite" if known.get(step, 0) is None
          else str(known[step]) if step in known else ""
          for known in wanted
        ),
      ]
      for step in sorted(set().union(*wanted))
    ]  # fmt: skip
  page.get_by_text("More metrics").click()
  (plot,) = charts(page, "my/own")
  assert curves(plot)[0][30] == 10


def test_pointing_zooming_and_hiding_runs(show):
  runs = [make_run(f"runs/{i}", 31, i) for i in range(2)]
  page = show(runs)
  loss, norm = charts(page, "Loss", "Gradient norm")
  assert axis(loss) == [10, 310]
  loss.evaluate("n => n.scrollIntoView({ block: 'center' })")
  box = loss.locator(".u-over").bounding_box()
  for y in (40, 50):
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + y)
  wait_for_values(page, loss)
  # Of each curve the record that is nearest.
  shown = loss.locator(".u-value").all_inner_texts()
  nearest = {"train/loss": 110, "eval/loss": 120}
  wanted = [curve(r, name)[at] for r in runs for name, at in nearest.items()]
  assert shown == ["110", *(f"{v:.6g}" for v in wanted)]
  page.mouse.down()
  page.mouse.move(box["x"] + box["width"] * 2 / 3, box["y"] + 80)
  page.mouse.up()
  for plot in (loss, norm):
    assert axis(plot) == pytest.approx([110, 210], abs=3)
  page.get_by_role("button", name="Reset").click()
  assert axis(norm) == [10, 310]
  loss.locator(".u-over").dblclick(position={"x": 200, "y": 60})
  assert axis(norm) == [10, 310]
  page.get_by_label("Runs shown").get_by_text("runs/1").click()
  assert len(curves(norm)) == 1 and len(curves(loss)) == 2
  page.get_by_label("Runs shown").get_by_text("runs/1").click()
  for name, ends in (("images", [10 * 32, 310 * 64]), ("hours", [0.1, 3.1])):
    page.get_by_label("Horizontal axis").select_option(name)
    assert axis(norm) == ends


def test_smoothing_and_logarithms(show):
  run = make_run(count=31)
  run["curves"]["train/grad_norm"][1][:3] = [0, 1, -3]
  page = show([run])
  loss, norm = charts(page, "Loss", "Gradient norm")
  page.get_by_label("Smoothing").fill("0.8")
  known = curve(run, "train/loss")
  raw, average, evaluation = curves(loss)
  assert raw == known and evaluation == curve(run, "eval/loss")
  values = [v for v in known.values() if v is not None]
  weights = 0.8 ** np.arange(len(values))[::-1]
  expected = np.average(values, weights=weights)
  assert average[310] == pytest.approx(expected)
  page.get_by_label("Smoothing").fill("0")
  page.get_by_label("Gradient norm: logarithmic").check()
  (drawn,) = curves(norm)
  assert [drawn[10], drawn[20], drawn[30]] == [None, 1, None]
  ends = norm.evaluate("n => [0.1, 1, 10].map((v) => n.chart.valToPos(v, 'y'))")
  assert ends[0] - ends[1] == pytest.approx(ends[1] - ends[2])


def test_predictions_are_those_recorded(show):
  run = make_run(classes=120)
  data, page = run["predictions"], show([run])
  names, matrix = data["classes"], data["confusion"]
  wanted = zip(matrix["counts"], matrix["elsewhere"], strict=True)
  rows = [row[1:] for row in table(page, "Confusion matrix")]
  rows = [[int(count.strip() or 0) for count in row] for row in rows]
  assert rows == [[*row, other] for row, other in wanted]
  cell = page.locator(".matrix tbody tr").nth(1).locator("td span").nth(2)
  label, taken = (names[matrix["classes"][k]] for k in (1, 2))
  count, total = matrix["counts"][1][2], sum(rows[1])
  assert cell.get_attribute("title") == (
    f"{label}, taken for {taken}: {count} ({100 * count / total:.1f}%)"
  )
  assert table(page, "Most frequent confusions") == [
    [names[a], names[b], str(n)] for a, b, n in data["pairs"]
  ]
  low, high, count, *shares = data["calibration"]["bins"][0]
  assert table(page, "Calibration")[0] == [
    f"{low:.3f}–{high:.3f}",
    f"{count:.0f}",
    *(f"{100 * share:.1f}%" for share in shares),
  ]
  classes = sorted(data["by_class"], key=lambda row: row[2] / row[1])
  shown = table(page, "Accuracy by class")
  assert [row[:3] for row in shown] == [
    [names[k], str(n), str(right)] for k, n, right in classes
  ]
  shares = [float(row[3].rstrip("%")) for row in shown]
  expected = [100 * right / n for _, n, right in classes]
  assert shares == pytest.approx(expected, abs=0.06)
  # Cards: a file's name alone, and what was predicted.
  cards = page.locator(".block", has_text="Worst mistakes").locator(".card")
  assert cards.count() == 24
  k = [bool(e["file"]) for e in data["worst"]].index(True)
  worst, text = data["worst"][k], cards.nth(k).inner_text()
  assert f"{worst['index']}.png" in text and "x1b" not in text
  assert f"loss {worst['loss']:.4g}" in text
  for label, score in worst["top"]:
    assert names[label] in text and f"{100 * score:.1f}%" in text
  style = "n => getComputedStyle(n).imageRendering"
  assert cards.first.locator("img").evaluate(style) == "pixelated"
  stem, width = page.get_by_alt_text("Stem"), run["weights"][0]["width"]
  assert stem.evaluate("n => n.clientWidth") == 400 // width * width


def test_settings_that_differ_and_what_is_missing(show):
  runs = [make_run(name, seed=i) for i, name in enumerate("abc")]
  runs[0]["weights"] = runs[1]["predictions"] = None
  runs[2]["predictions"] |= {
    "worst": [], "pairs": [], "mean_loss": None, "accuracy": 0.875,
    "accuracy_top5": None, "balanced_accuracy": 0.75, "macro_f1": None,
    "calibration": {"ece": None, "bins": []},
  }  # fmt: skip
  runs[1]["settings"].append(["extra", "null"])
  page = show(runs)
  parts = page.locator("#predictions > details")
  assert parts.locator("> summary").all_inner_texts() == ["a", "c"]
  parts.nth(1).locator("> summary").click()
  text = "accuracy 87.50%, top-5 –, balanced 75.00%, macro F1 –, mean loss –."
  assert parts.nth(1).get_by_text(text).is_visible()
  assert page.locator("#weights > details").count() == 2
  assert table(page, "Differences") == [
    ["seed", "0", "1", "2"],
    ["extra", "–", "null", "–"],
  ]
  head = page.get_by_role("region", name="Differences").locator("thead th")
  assert head.all_inner_texts() == ["", "a", "b", "c"]
  page.locator("summary", has_text="Configuration").click()
  names = [row[0] for row in table(page, "Configuration")]
  assert names == ["loss.name", "seed", "extra"]
