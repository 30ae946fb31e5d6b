"""The page of the report, in a browser: that it opens, fits and can be read."""

import json
import re

import pytest

from mixer.report import page as report_page
from tests.report import page_data

NASTY = "</script><script>alert(1)</script>{title}/*{js}*/<!--"
LONG = "y" * 200

# [text, contrast] of each text in sight, of all its text's backgrounds the one
# that is next behind it.
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
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) =>
      child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.disabled) continue;
    if (node.closest("script, .unseen")) continue;
    const style = getComputedStyle(node);
    const text = rgba(node.namespaceURI.endsWith("svg")
      ? style.fill : style.color);
    const back = node.closest(".scores")
      ? rgba(getComputedStyle(node.parentElement.querySelector(".fill"))
        .backgroundColor) : behind(node);
    const [a, b] = [luminance(text), luminance(back)].sort((p, q) => q - p);
    found.push([node.textContent.slice(0, 40), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""


def _sorts() -> dict[str, list]:
  return {
    "one": [page_data.run(count=20)],
    "four": [
      page_data.run(f"runs/{i}", 20, i, classes=(10, 40, 3, 2)[i])
      for i in range(4)
    ],
    "nasty": [
      page_data.run(NASTY, 20, names=[NASTY] * 9 + [LONG]),
      page_data.run(LONG, 20, 1),
      page_data.bare(),
    ],
    "bare": [page_data.bare()],
    "none": [],
  }


@pytest.mark.parametrize("sort", _sorts())
def test_it_fits_a_phone_and_shows_names_as_they_are(show, sort):
  runs = _sorts()[sort]
  page = show(
    runs, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
  )
  wide, window = page.evaluate(
    "[document.documentElement.scrollWidth, innerWidth]"
  )
  assert wide <= window == 360
  if len(runs) == 1:
    assert page.locator("h1").inner_text() == runs[0]["name"]
  for run in runs:
    assert page.get_by_text(run["name"], exact=True).count()
    for note in run["notes"]:
      assert page.get_by_text(note).is_visible()
  # What is under <main> is ours: no name has become an element.
  assert page.locator("main script, main b").count() == 0
  assert page.title().endswith(": report")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(show, scheme):
  page = show(
    [page_data.run("a", 20), page_data.run("b", 20, 1, classes=30)],
    color_scheme=scheme,
  )
  page.get_by_role("button", name="Loss: data table").click()
  page.get_by_role("button", name="b", exact=True).first.click()
  for summary in page.locator("summary").all():
    summary.click()
  found = page.evaluate(CONTRASTS)
  assert len(found) > 500
  assert [pair for pair in found if pair[1] < 4.5] == []


def test_the_colours_can_be_chosen(show):
  page = show([page_data.bare()], color_scheme="light")
  paper = "getComputedStyle(document.body).backgroundColor"
  light = page.evaluate(paper)
  page.get_by_role("button", name="Dark").click()
  dark = page.evaluate(paper)
  assert light == "rgb(255, 255, 255)"
  assert max(map(int, re.findall(r"\d+", dark))) < 40
  page.emulate_media(media="print")
  assert page.evaluate(paper) == light
  page.emulate_media(media="screen", color_scheme="dark")
  page.get_by_role("button", name="Light").click()
  assert page.evaluate(paper) == light
  page.get_by_role("button", name="Auto").click()
  assert page.evaluate(paper) == dark


def test_every_control_is_reached_by_tab_and_is_seen_to_be(show):
  page = show([page_data.run("a", 20), page_data.run("b", 20, 1)])
  expected = page.evaluate("""() => {
    const all = document.querySelectorAll(
      "a[href], button, input, summary, [tabindex='0']");
    const seen = [...all].filter((n) => n.checkVisibility() && !n.disabled);
    seen.forEach((n, i) => { n.dataset.place = i; });
    return seen.length;
  }""")
  assert expected > 50
  places = []
  for _ in range(expected):
    page.keyboard.press("Tab")
    places.append(
      page.evaluate("""() => {
        const node = document.activeElement;
        return [Number(node.dataset.place),
          getComputedStyle(node).outlineStyle !== "none"];
      }""")
    )
  assert places == [[i, True] for i in range(expected)]


def test_print_shows_everything(show):
  runs = [page_data.run("a", 20), page_data.run("b", 20, 1)]
  page = show(runs)
  page.evaluate("dispatchEvent(new Event('beforeprint'))")
  page.emulate_media(media="print")
  for panel in page.locator(".panel").all():
    assert panel.is_visible()
  assert page.locator("details:not([open])").count() == 0
  charts = page.locator(".chart").count()
  assert page.locator(".chart canvas").count() == charts
  assert page.locator(".card:visible").count() == 2 * 48
  page.evaluate("dispatchEvent(new Event('afterprint'))")
  page.emulate_media(media="screen")
  assert page.locator("details[open]").count() == 0


def test_differences_are_those_of_the_configurations(show):
  runs = [page_data.run("a", 5), page_data.run("b", 5, 1)]
  runs[1]["config"]["extra"] = {"deep": None}
  page = show(runs)
  rows = page.locator("#differences tbody tr").all_inner_texts()
  assert [row.split("\t") for row in rows] == [
    ["loss.mixup", "0", "0.1"],
    ["optimizer.learning_rate", "0.001", "0.002"],
    ["seed", "0", "1"],
    ["extra.deep", "–", "null"],
  ]


def test_the_whole_configuration_can_be_searched(show):
  run = page_data.run("a", 5)
  run["config"] = {"config": run["config"]}  # As a config.json may have it.
  page = show([run])
  page.get_by_text("Configuration", exact=False).last.click()
  box = page.get_by_label("Filter: Configuration")
  rows = page.locator("details.folded:has-text('Configuration') tbody tr")
  assert rows.count() == 9
  box.fill("LOSS name")
  left = [row for row in rows.all() if row.is_visible()]
  assert [row.inner_text() for row in left] == ["loss.name\tsoftmax"]
  assert page.get_by_text("1 of 9").is_visible()


def test_final_numbers_are_the_last_and_the_best(show):
  run = page_data.bare("runs/a")
  run["metrics"] = [
    {"step": 10, "eval/accuracy": 0.5, "eval/loss": 2.0},
    {"step": 20, "eval/accuracy": 0.75, "eval/loss": None},
    {"step": 1030, "eval/accuracy": 0.625, "eval/loss": 1.23456},
  ]
  page = show([run])
  tiles = page.locator(".top .finals > div").all_inner_texts()
  assert [tile.split("\n") for tile in tiles] == [
    ["Accuracy", "62.50%", "at step 1,030; best 75.00% at 20"],
    ["Evaluation loss", "1.235", "at step 1,030"],
  ]


def test_the_data_are_whole_in_the_page():
  text = report_page.text([page_data.run(NASTY, 5, names=[NASTY] * 10)])
  (data,) = re.findall(
    r'<script type="application/json" id="data">(.*?)</script>', text
  )
  (run,) = json.loads(data)["runs"]
  assert run["name"] == NASTY
  assert run["predictions"]["classes"] == [NASTY] * 10
