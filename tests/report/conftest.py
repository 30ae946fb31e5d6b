"""A browser that opens reports."""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mixer.report import page as report_page

_NAMES = (
  "chromium-headless-shell",
  "chromium",
  "chromium-browser",
  "google-chrome",
)


def _missing(what: str) -> None:
  """Skips, but not where everything has to be tested."""
  sentence = f"{what}: the report's page is not tested."
  if os.environ.get("CI") == "true":
    pytest.fail(sentence)
  pytest.skip(sentence)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
  """Chromium without a window, shared by all tests of the page."""
  try:
    from playwright import sync_api
  except ImportError:
    _missing("playwright is not installed (pip install playwright)")
  known = [os.environ.get("CHROMIUM"), *map(shutil.which, _NAMES)]
  path = next(filter(None, known), None)
  if path is None:
    _missing("there is no Chromium (set CHROMIUM to its path)")
  with sync_api.sync_playwright() as playwright:
    running = playwright.chromium.launch(
      executable_path=path, args=["--no-sandbox"]
    )
    yield running
    running.close()


@pytest.fixture
def show(browser, tmp_path: pathlib.Path) -> Iterator[Callable[..., Any]]:
  """Opens the report of some runs; it may neither complain nor load."""
  contexts, complaints, requests = [], [], []
  file = tmp_path / "report.html"

  def opened(runs: list[dict[str, Any]], **options: Any) -> Any:
    file.write_text(report_page.text(runs), encoding="utf-8")
    options.setdefault("viewport", {"width": 1280, "height": 900})
    options.setdefault("reduced_motion", "reduce")  # Tests wait for no scroll.
    context = browser.new_context(**options)
    context.set_default_timeout(5000)
    contexts.append(context)
    page = context.new_page()
    page.on("console", lambda m: complaints.append(f"{m.type}: {m.text}"))
    page.on("pageerror", lambda e: complaints.append(f"error: {e}"))
    page.on("dialog", lambda d: complaints.append(f"dialog: {d.message}"))
    page.on("request", lambda r: requests.append(r.url))
    page.goto(file.as_uri())
    return page

  yield opened
  for context in contexts:
    context.close()
  assert complaints == []
  loaded = [url for url in requests if not url.startswith("data:image/")]
  assert set(loaded) == {file.as_uri()}
