"""What is collected of predictions, against plain numpy over all of them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixer.report import predictions


def random_rows(seed, num_classes, count, nan=0.1, infinite=0.1):
  """Rows as `evaluate.examples` gives; often right, some not to be counted."""
  rng = np.random.default_rng(seed)
  logits = np.round(rng.normal(0, 2, (count, num_classes)), 1)
  label = rng.integers(0, num_classes, count).astype(np.int32)
  logits[np.arange(count), label] += 1.5
  order = np.argsort(-logits, axis=1, kind="stable")[:, :5].astype(np.int32)
  scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  loss = -np.log(scores[np.arange(count), label]).astype(np.float32)
  scores = np.take_along_axis(scores, order, 1).astype(np.float32)
  broken = rng.random(count) < nan
  order[broken], scores[broken], loss[broken] = -1, np.nan, np.nan
  loss[(rng.random(count) < infinite) & ~broken] = np.inf
  return {"classes": order, "scores": scores, "label": label, "loss": loss}


def collect(rows, num_classes, cuts=()):
  """The collector, after the rows came in some pieces; and its result."""
  count = len(rows["label"])
  found = predictions.Collector([f"c{k}" for k in range(num_classes)], count)
  for start, end in zip([0, *cuts], [*cuts, count], strict=True):
    found.add({k: v[start:end] for k, v in rows.items()})
  places = found.places()
  result = found.result(
    {i: f"#{i}" for i in places}, "test", 7, "softmax",
    {i: f"{i}.png" for i in places},
  )  # fmt: skip
  json.dumps(result, allow_nan=False)
  return places, result


@st.composite
def cases(draw):
  k, n = draw(st.integers(1, 40)), draw(st.integers(1, 200))
  cuts = draw(st.lists(st.integers(0, n), max_size=4))
  return random_rows(draw(st.integers(0, 999)), k, n), k, sorted(cuts)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_against_numpy(case):
  rows, k, cuts = case
  places, got = collect(rows, k, cuts)
  label, first = rows["label"], rows["classes"][:, 0]
  n = len(label)
  assert (got["examples"], got["step"], got["split"]) == (n, 7, "test")
  assert got["accuracy"] == np.mean(label == first)
  top5 = (rows["classes"] == label[:, None]).any(axis=1)
  assert got["accuracy_top5"] == np.mean(top5)
  mean = rows["loss"].astype(np.float64).mean()
  if np.isfinite(mean):
    assert got["mean_loss"] == pytest.approx(mean, rel=1e-6)
  else:
    assert got["mean_loss"] is None
  assert got["classes"] == [f"c{i}" for i in range(k)]
  full = np.zeros((k, k), int)
  np.add.at(full, (label[first >= 0], first[first >= 0]), 1)
  assert got["by_class"] == [
    [i, int((label == i).sum()), int(full[i, i])] for i in range(k)
  ]
  # The matrix: a part of the whole one, and nobody is lost.
  chosen = got["confusion"]["classes"]
  assert chosen == sorted(set(chosen))
  assert len(chosen) <= 30
  if k <= 30:
    assert chosen == list(range(k))
  counts = np.array(got["confusion"]["counts"], int)
  counts = counts.reshape(len(chosen), len(chosen))
  np.testing.assert_array_equal(counts, full[np.ix_(chosen, chosen)])
  np.testing.assert_array_equal(
    counts.sum(axis=1) + got["confusion"]["elsewhere"],
    [(label == i).sum() for i in chosen],
  )
  pairs = [
    [a, b, int(full[a, b])]
    for a in range(k)
    for b in range(k)
    if a != b and full[a, b]
  ]
  pairs.sort(key=lambda p: -p[2])
  assert got["pairs"] == pairs[:30]
  if not pairs:
    assert chosen == list(range(min(k, 30)))
  # Of many classes, the two that are taken for each other most.
  both = full + full.T - 2 * np.diag(full.diagonal())
  if k > 30 and pairs:
    most = both.max()
    assert any(both[a, b] == most for a in chosen for b in chosen if a != b)
  samples = [e["index"] for e in got["samples"]]
  assert samples == sorted(set(samples))
  assert len(samples) == min(n, 24)
  assert {samples[0], samples[-1]} == {0, n - 1}
  gaps = np.diff(samples)
  assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
  shown = {e["index"] for e in got["samples"] + got["worst"]}
  assert places == sorted(shown)
  for example in got["samples"] + got["worst"]:
    i = example["index"]
    assert example["file"] == f"{i}.png"
    assert example["image"] == f"#{i}"
    assert example["label"] == label[i]
    loss = float(rows["loss"][i])
    assert example["loss"] == (loss if np.isfinite(loss) else None)
    if first[i] < 0:
      assert example["top"] == []
      continue
    assert [c for c, _ in example["top"]] == rows["classes"][i].tolist()
    assert [s for _, s in example["top"]] == rows["scores"][i].tolist()


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_worst_mistakes(case):
  rows, k, cuts = case
  _, got = collect(rows, k, cuts)
  wrong = [
    i for i, row in enumerate(rows["label"]) if row != rows["classes"][i, 0]
  ]

  def rank(i):
    loss = float(rows["loss"][i])
    if np.isnan(loss):
      return (0, 0, i)
    return (2, 0, i) if np.isinf(loss) else (1, -loss, i)

  expected = sorted(wrong, key=rank)[:24]
  assert [e["index"] for e in got["worst"]] == expected


@settings(max_examples=60, deadline=None)
@given(cases())
def test_calibration_against_its_definition(case):
  rows, k, cuts = case
  _, got = collect(rows, k, cuts)
  sound = rows["classes"][:, 0] >= 0
  score = rows["scores"][sound, 0].astype(float)
  right = (rows["classes"][:, 0] == rows["label"])[sound]
  bins, ece = [], 0.0
  for m in range(15):
    low, high = m / 15, (m + 1) / 15
    inside = (score > low) & (score <= high)
    if m == 0:
      inside |= score == 0
    if inside.any():
      accuracy, mean = right[inside].mean(), score[inside].mean()
      ece += inside.sum() / len(score) * abs(accuracy - mean)
      bins.append([low, high, int(inside.sum()), mean, accuracy])
  found = got["calibration"]
  assert [b[2] for b in found["bins"]] == [b[2] for b in bins]
  np.testing.assert_allclose(
    np.array(found["bins"]), np.array(bins), atol=1e-12
  )
  if bins:
    assert found["ece"] == pytest.approx(ece, abs=1e-12)
  else:
    assert found["ece"] is None


def test_a_score_that_is_rounded_above_1():
  rows = random_rows(0, 2, 4, nan=0, infinite=0)
  rows["scores"][:, 0] = np.nextafter(np.float32(1), np.float32(2))
  _, got = collect(rows, 2)
  (last,) = got["calibration"]["bins"]
  assert last[1:4] == [1, 4, 1]


def test_many_classes_and_few_names():
  k, n = 21_843, 3_000
  rng = np.random.default_rng(1)
  label = rng.integers(0, k, n).astype(np.int32)
  classes = rng.integers(0, k, (n, 5)).astype(np.int32)
  classes[::3, 0] = label[::3]
  # Two classes that are taken for each other, often.
  label[:60], classes[:60, 0] = 17, 20_000
  label[60:80], classes[60:80, 0] = 20_000, 17
  rows = {
    "label": label,
    "classes": classes,
    "scores": np.full((n, 5), 0.2, np.float32),
    "loss": rng.random(n).astype(np.float32),
  }
  _, got = collect(rows, k, [1, 2_000])
  assert got["pairs"][:2] == [[17, 20_000, 60], [20_000, 17, 20]]
  assert {17, 20_000} <= set(got["confusion"]["classes"])
  assert len(got["confusion"]["classes"]) == 30
  assert len(got["by_class"]) == 100
  assert got["by_class"][0][0] == 17  # None right, and the most examples.
  needed = {*got["confusion"]["classes"]}
  needed |= {row[0] for row in got["by_class"]}
  needed |= {c for pair in got["pairs"] for c in pair[:2]}
  for e in got["worst"] + got["samples"]:
    needed |= {e["label"], *(c for c, _ in e["top"])}
  assert got["classes"] == {str(c): f"c{c}" for c in sorted(needed)}


def test_an_image_that_is_missing():
  rows = random_rows(3, 5, 50)
  found = predictions.Collector("abcde", 50)
  found.add(rows)
  one = found.places()[0]
  got = found.result({one: "#"}, "test", 1, "sigmoid", {})
  assert {e["index"] for e in got["samples"] + got["worst"]} == {one}
  assert got["loss"] == "sigmoid"


def test_what_is_no_number_is_told():
  rows = random_rows(3, 5, 50, nan=0.2)
  found = predictions.Collector("abcde", 50)
  found.add(rows)
  broken = int(np.isnan(rows["loss"]).sum())
  (note,) = found.notes()
  assert note.startswith(f"{broken} of the 50 examples have a NaN")
  found = predictions.Collector("abcde", 50)
  found.add(random_rows(3, 5, 50, nan=0))
  assert found.notes() == []
