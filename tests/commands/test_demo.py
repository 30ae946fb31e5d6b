import pytest

from mixer.commands import demo


def rows():
  values = {
    5: ([0.9, 0.94], [0.8, 0.82]),
    10: ([0.95], [0.9]),
    25: ([0.97], [0.95]),
    0: ([0.98], [0.96]),
  }
  return [
    demo.Row(labels, None if labels == 0 else 0.9, *values[labels])
    for labels in values
  ]


def test_table_has_means_ranges_and_gaps():
  lines = demo.table(rows()).splitlines()
  assert lines[2].split() == (
    "5 0.920 (0.900 to 0.940) 0.810 (0.800 to 0.820) 0.900".split()
  )
  assert lines[-1].split() == "all 0.980 0.960 -".split()


def test_check_accepts_what_is_good():
  assert demo.check(0.8, rows()) == []


@pytest.mark.parametrize("labels", [5, 10, 25, 0])
def test_check_names_what_is_too_low(labels):
  found = [
    demo.Row(r.labels, r.ridge, [0.5], [0.2]) if r.labels == labels else r
    for r in rows()
  ]
  (failure,) = demo.check(0.8, found)
  assert failure.startswith(f"fine-tuned at {labels or 'all'}: 0.500")


def test_check_wants_fonts_and_a_gain():
  assert demo.check(0.7, rows())[0].startswith("held-out fonts: 0.700")
  found = [demo.Row(5, 0.9, [0.9], [0.89]), *rows()[1:]]
  assert demo.check(0.8, found) == [
    "gain over scratch at 5: 0.010, should be at least 0.02"
  ]
