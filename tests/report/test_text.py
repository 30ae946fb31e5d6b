"""The page's text (`mixer.report.page`): the data in it, and nothing else."""

import html.parser
import json
import math
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer import __version__
from mixer.report import page

_EVIL = "</script><script>alert(1)</script>"


class Elements(html.parser.HTMLParser):
  """What a page consists of.

  Attributes:
    found: (name, attributes, text) of each element.
  """

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.found = []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.found.append((tag, dict(attrs), []))

  def handle_data(self, data):
    if self.found:
      self.found[-1][2].append(data)

  def text(self, tag, **attributes):
    (text,) = [
      "".join(parts)
      for name, has, parts in self.found
      if name == tag and attributes.items() <= has.items()
    ]
    return text


def data_of(text):
  return json.loads(Elements(text).text("script", id="data"))


def a_run(name="run", **changes):
  return {"name": name, "facts": [], "metrics": [], "notes": []} | changes


_SHAPE = [tag for tag, _, _ in Elements(page.text([a_run()])).found]


@pytest.mark.parametrize(
  "nasty",
  [
    _EVIL,
    "<!--<script>",
    "]]>&lt;&amp;",
    "{data}{title}/*{js}*//*{css}*/",
    "\u2028\u2029\0\x1b",
    "a\"b\\c'd`${e}",
    "\\1\\g<0>",
    "été \U0001f600",
  ],
)
def test_nothing_gets_out_of_its_place(nasty):
  run = a_run(
    nasty,
    facts=[[nasty, nasty]],
    config={nasty: nasty},
    predictions={"classes": [nasty]},
    notes=[nasty],
  )
  text = page.text([run])
  elements = Elements(text)
  assert [tag for tag, _, _ in elements.found] == _SHAPE
  assert data_of(text) == {"version": __version__, "runs": [run]}
  title = elements.text("title").strip("\n").replace("\0", "")
  assert title == f"{nasty}: report".replace("\0", "")


_JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(_JSON)
def test_any_data_comes_back(value):
  def expected(x):
    if isinstance(x, dict):
      return {k: expected(v) for k, v in x.items()}
    if isinstance(x, list):
      return [expected(v) for v in x]
    if isinstance(x, float) and not math.isfinite(x):
      return None
    return x

  (run,) = data_of(page.text([a_run(config=value)]))["runs"]
  assert run["config"] == expected(value)


def test_it_loads_nothing():
  text = page.text([a_run("a"), a_run("b")])
  elements = Elements(text)
  (policy,) = [
    has["content"]
    for tag, has, _ in elements.found
    if tag == "meta" and has.get("http-equiv") == "Content-Security-Policy"
  ]
  rules = dict(rule.split(None, 1) for rule in policy.split("; "))
  assert rules["default-src"] == "'none'"
  assert rules["img-src"] == "data:"
  assert rules["script-src"] == rules["style-src"] == "'unsafe-inline'"
  for _, has, _ in elements.found:
    assert has.get("href", "data:").startswith("data:")
    assert "src" not in has
  assert elements.text("title").strip() == "2 runs: report"


def test_every_part_is_in_it():
  text = page.text([a_run()])
  folder = pathlib.Path(page.__file__).parent
  parts = [*folder.glob("page*.js"), *folder.glob("page*.css")]
  assert len(parts) >= 2
  for part in parts:
    assert part.read_text("utf-8") in text
