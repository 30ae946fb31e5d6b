from mixer.prediction import results


def test_lines():
  one = results.Prediction("a.png", ("cat", "dog"), (0.75, 0.1), (3, 1))
  assert str(one) == "a.png   0.750  cat\n        0.100  dog"
  assert one.lines(8)[0] == "a.png      0.750  cat"
  assert one.lines(8)[1] == "           0.100  dog"
  bad = results.Prediction("a.png", problem="it is cut off")
  assert str(bad) == "a.png  it is cut off"
