"""What is said of an update that met a NaN."""

import pytest
from etils import epath

from configs import smoke
from mixer import nonfinite, reporter

ERROR = reporter.NotFinite(12, "train/loss", float("nan"))


def sentence(newest=None, **changes) -> str:
  config = smoke.get_config()
  config.update_from_flattened_dict(changes)
  return str(nonfinite.stopped(ERROR, "A batch.", newest, config))


def test_a_report_that_cannot_be_written_hides_nothing(tmp_path):
  for workdir, said in (
    (tmp_path, f"(all 3 in {tmp_path}/nonfinite/12.json)"),
    (tmp_path / "gone", "/nonfinite/12.json can't be written: No such file"),
  ):
    text = nonfinite.describe(
      epath.Path(workdir), ERROR, smoke.get_config(), [5, 6, 7]
    )
    assert "records 5, 6, 7 of digits, train" in text and said in text
  assert not (tmp_path / "gone").exists()


# Keys, whether there is a checkpoint; what is said then, and what is not.
@pytest.mark.parametrize(
  ("changes", "newest", "said", "unsaid"),
  [
    (
      {"model.dtype": "bfloat16"},
      8,
      ["try model.dtype=float32", "--config.init_from", "(0.01)", "(5 steps)"],
      ["sam_rho"],
    ),
    ({"model.dtype": "float32"}, None, [], ["dtype", "init_from"]),
    ({"optimizer.clip_norm": 2.0}, 8, ["lower optimizer.clip_norm (2)"], []),
    (
      {"optimizer.clip_norm": 0.0},
      8,
      ["clip gradients by optimizer.clip_norm=1"],
      ["lower optimizer.clip_norm"],
    ),
    ({"optimizer.sam_rho": 0.5}, 8, ["lower optimizer.sam_rho (0.5)"], []),
    ({"nonfinite": "stop"}, 8, ["--config.nonfinite=skip"], ["_limit"]),
    (
      {"nonfinite": "skip", "nonfinite_limit": 3},
      8,
      ["--config.nonfinite_limit=30"],
      ["nonfinite=skip"],
    ),
  ],
)
def test_advice_applies_to_the_run(changes, newest, said, unsaid):
  text = sentence(newest, **changes)
  assert text.startswith("train/loss is nan at step 12: training stops there.")
  assert all(part in text for part in said), text
  assert not any(part in text for part in unsaid), text
