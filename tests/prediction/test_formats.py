"""Each format read back by another reader."""

import csv
import io
import json

import hypothesis
import numpy as np
from hypothesis import strategies as st

from mixer import predictor
from mixer.prediction import formats

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_SCORE = st.floats(0, 1, width=32)


@st.composite
def predictions(draw):
  if draw(st.booleans()):
    return predictor.Prediction(draw(_TEXT), problem=draw(_TEXT) or "damaged")
  rows = draw(
    st.lists(
      st.tuples(_TEXT, _SCORE, st.integers(0, 99), _TEXT),
      min_size=1,
      max_size=4,
    )
  )
  columns = (tuple(column) for column in zip(*rows, strict=True))
  return predictor.Prediction(draw(_TEXT), *columns)


@hypothesis.given(st.lists(predictions(), max_size=3))
@hypothesis.settings(max_examples=50, deadline=None)
def test_csv(said):
  text = formats.header("csv") + "".join(formats.text("csv", p) for p in said)
  rows = list(csv.DictReader(io.StringIO(text, newline="")))
  want = []
  for one in said:
    if one.problem:
      want.append((one.source, "", "", "", "", one.problem))
    for k in range(len(one.names)):
      want.append(
        (
          one.source,
          str(k + 1),
          str(one.indexes[k]),
          one.class_ids[k],
          one.names[k],
          "",
        )
      )
  columns = ("path", "rank", "index", "class_id", "name", "error")
  assert [tuple(row[c] for c in columns) for row in rows] == want
  scores = [np.float32(row["score"]) for row in rows if row["score"]]
  assert scores == [np.float32(s) for one in said for s in one.scores]


@hypothesis.given(predictions())
@hypothesis.settings(max_examples=50, deadline=None)
def test_json_is_an_object_a_line(said):
  text = formats.text("json", said)
  assert text.endswith("\n") and "\n" not in text[:-1]
  found = json.loads(text)
  assert found["path"] == said.source
  assert found["error"] == (said.problem or None)
  rows = found["predictions"]
  assert [r["name"] for r in rows] == list(said.names)
  assert [r["index"] for r in rows] == list(said.indexes)
  assert [r["class_id"] or "" for r in rows] == list(said.class_ids)
  assert [np.float32(r["score"]) for r in rows] == [
    np.float32(s) for s in said.scores
  ]


def test_scores_are_short_and_exact():
  score = float(np.float32(0.1))
  one = predictor.Prediction("a", ("b",), (score,), (0,), ("n1",))
  assert '"score": 0.1}' in formats.text("json", one)
  assert formats.text("csv", one) == "a,1,0,n1,b,0.1,\n"


def test_table():
  one = predictor.Prediction("a", ("b", "c"), (0.5, 0.25), (0, 1), ("", ""))
  assert formats.text("table", one, 3) == "a     0.500  b\n      0.250  c\n"
  assert formats.text("table", predictor.Prediction("a", problem="bad")) == ""
  assert formats.header("table") == formats.header("json") == ""
