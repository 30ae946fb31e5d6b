"""Predictions and weights in the browser."""

import pytest

from tests.report import page_data


def _texts(rows):
  """Cells of the rows, also of those far from the window."""
  return rows.evaluate_all(
    "rows => rows.map((r) => [...r.children].map((c) => c.textContent))"
  )


def test_the_matrix_is_the_one_recorded_and_keys_move_in_it(show):
  run = page_data.run(count=5, classes=40)
  page = show([run])
  data = run["predictions"]["confusion"]
  names = run["predictions"]["classes"]
  cells = page.locator(".matrix tbody tr").evaluate_all(
    "rows => rows.map((r) => [...r.querySelectorAll('td')].map("
    "(c) => Number(c.textContent)))"
  )
  wanted = [
    [*row, other]
    for row, other in zip(data["counts"], data["elsewhere"], strict=True)
  ]
  assert cells == wanted
  page.locator(".matrix td[tabindex='0']").focus()
  page.keyboard.press("ArrowDown")
  page.keyboard.press("ArrowRight")
  page.keyboard.press("ArrowRight")
  label, taken = (names[data["classes"][i]] for i in (1, 2))
  total = sum(wanted[1])
  count = data["counts"][1][2]
  assert page.locator(".readout").inner_text() == (
    f"{label}, taken for {taken}: {count} of {total} "
    f"({100 * count / total:.1f}%)"
  )
  page.keyboard.press("End")
  assert "a class not shown" in page.locator(".readout").inner_text()
  page.locator(".matrix td.diagonal").first.hover()
  readout = page.locator(".readout").inner_text()
  assert readout.startswith(f"{names[data['classes'][0]]}, right: ")


def test_shading_can_be_by_count(show):
  run = page_data.run(count=5, classes=2)
  run["predictions"]["confusion"] = {
    "classes": [0, 1],
    "counts": [[1, 1], [0, 100]],
    "elsewhere": [0, 0],
  }
  page = show([run])
  first = page.locator(".matrix td[role]").first
  shade = "n => parseFloat(n.style.getPropertyValue('--shade'))"
  by_row = first.evaluate(shade)
  page.get_by_role("button", name="Count", exact=True).click()
  assert first.evaluate(shade) < by_row / 3
  assert page.locator(".matrix td[role]").last.evaluate(shade) == 100


def test_classes_sort_and_filter(show):
  run = page_data.run(count=5, classes=120)
  page = show([run])
  rows = page.locator(".classes tbody tr")
  data = run["predictions"]["by_class"]
  shares = [float(row[3].rstrip("%")) for row in _texts(rows)]
  wanted = sorted(100 * right / count for _, count, right in data)
  assert shares == pytest.approx(wanted, abs=0.06)
  page.get_by_role("button", name="examples").press("Enter")
  assert [int(row[1]) for row in _texts(rows)] == sorted(r[1] for r in data)
  page.get_by_role("button", name="examples").press("Enter")
  head = page.locator(".classes th[aria-sort=descending]")
  assert head.inner_text().startswith("examples")
  page.get_by_role("button", name="class", exact=True).click()
  assert _texts(rows)[2][0] == "class 2"  # Not class 10.
  page.get_by_label("Filter classes").fill("class 11")
  left = _texts(page.locator(".classes tbody tr:not([hidden])"))
  assert [row[0] for row in left] == [
    f"class {k}" for k in (11, *range(110, 120))
  ]


def test_cards_say_what_was_predicted(show):
  run = page_data.run(count=5)
  page = show([run])
  predictions = run["predictions"]
  names = predictions["classes"]
  cards = page.locator(".cards").first.locator(".card")
  worst = predictions["worst"][0]
  text = cards.first.inner_text()
  assert f"{worst['index']}.jpg" in text and "class/" not in text
  assert cards.first.get_by_title(worst["file"]).count() == 1
  sample = page.locator(".cards").nth(1).locator(".card").first.inner_text()
  assert f"#{predictions['samples'][0]['index']}" in sample
  assert names[worst["label"]] in text
  for label, score in worst["top"]:
    assert names[label] in text
    assert f"{100 * score:.1f}%" in text
  assert cards.first.locator(".right").count() == 1
  # 16 pixels, enlarged by a whole factor.
  width = cards.first.locator("img").evaluate(
    "async (n) => { await n.decode(); "
    "await new Promise(requestAnimationFrame); return n.clientWidth; }"
  )
  assert width > 100
  assert width % 16 == 0
  seen = [card for card in cards.all() if card.is_visible()]
  assert len(seen) == 12
  page.get_by_role("button", name="Worst mistakes: show all").click()
  assert all(card.is_visible() for card in cards.all())


def test_a_large_image_is_not_made_of_squares(show):
  page = show([page_data.run(count=5, side=160)])
  image = page.locator(".card img").first
  image.evaluate("async (n) => { await n.decode(); }")
  assert image.evaluate("n => getComputedStyle(n).imageRendering") == "auto"
  width, room = image.evaluate(
    "n => [n.clientWidth, n.parentElement.clientWidth]"
  )
  assert 140 < width <= room


def test_confusions_and_calibration_are_tables_too(show):
  run = page_data.run(count=5)
  page = show([run])
  data = run["predictions"]
  pairs = page.get_by_role("region", name="Most frequent confusions")
  assert _texts(pairs.locator("tbody tr")) == [
    [data["classes"][a], data["classes"][b], str(n)]
    for a, b, n in data["pairs"]
  ]
  page.get_by_text("Numbers", exact=True).click()
  bins = page.get_by_role("region", name="Calibration by bin")
  rows = _texts(bins.locator("tbody tr"))
  assert len(rows) == len(data["calibration"]["bins"])
  low, high, count, score, right = data["calibration"]["bins"][0]
  assert rows[0] == [
    f"{low:.3f}–{high:.3f}",
    str(count),
    f"{100 * score:.1f}%",
    f"{100 * right:.1f}%",
  ]
  assert page.locator(".diagram .bar").count() == len(rows)


def test_each_run_has_its_predictions_and_missing_ones_are_left_out(show):
  runs = [page_data.run(n, 5, i) for i, n in enumerate("abc")]
  runs[1]["predictions"] = None
  runs[2]["predictions"]["split"] = "other"
  runs[0]["weights"] = runs[1]["weights"] = None
  runs[2]["weights"]["stem"] = None
  page = show(runs)
  part = page.locator("#predictions")
  assert part.get_by_label("Run").get_by_role("button").all_inner_texts() == [
    "a",
    "c",
  ]
  assert "“test”" in part.inner_text()
  part.get_by_role("button", name="c", exact=True).click()
  assert "“other”" in part.inner_text()
  assert "“test”" not in part.inner_text()
  assert page.locator("#weights figure:visible").count() == 2


def test_sparse_names_and_no_mistakes(show):
  run = page_data.run(count=5, classes=3)
  predictions = run["predictions"]
  predictions |= {"classes": {"1": "cat"}, "worst": [], "pairs": []}
  predictions |= {"accuracy_top5": None, "mean_loss": None}
  predictions["calibration"] = None
  page = show([run])
  assert page.get_by_text("No mistake in this split.").is_visible()
  heads = page.locator(".matrix thead th").all_inner_texts()
  assert heads == ["0", "cat", "2"]
  assert page.locator("#predictions .big").all_inner_texts()[1:] == ["–"] * 3


def test_figures_of_weights_grow_by_whole_factors(show):
  run = page_data.run(count=5)
  page = show([run])
  stem = run["weights"]["stem"]
  small = page.locator("#weights img").first
  assert small.get_attribute("alt") == stem["alt"]
  assert small.evaluate("n => n.clientWidth") == 4 * stem["width"]
  rendering = small.evaluate("n => getComputedStyle(n).imageRendering")
  assert rendering == "pixelated"
  page.get_by_role("button", name="Enlarge: Stem").press("Enter")
  dialog = page.get_by_role("dialog", name="Stem")
  large = dialog.locator("img").evaluate("n => n.clientWidth")
  assert large > 4 * stem["width"]
  assert large % stem["width"] == 0
  page.keyboard.press("Escape")
  dialog.wait_for(state="detached")
