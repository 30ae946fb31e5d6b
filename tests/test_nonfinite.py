"""What is said of an update that met a NaN."""

import pytest

from configs import smoke
from mixer import nonfinite, reporter


def sentence(newest=None, skipped=0, **changes) -> str:
  config = smoke.get_config()
  config.update_from_flattened_dict(changes)
  error = reporter.NotFinite(12, "train/loss", float("nan"), skipped)
  return str(nonfinite.stopped(error, "A batch.", newest, config))


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
