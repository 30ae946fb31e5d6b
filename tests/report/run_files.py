"""A workdir as train.py leaves it, made without training."""

import json

from configs import smoke
from mixer import config as config_lib
from mixer import metrics, workdir
from tests import trained_files

# Steps 10 and 20 are logged, 20 is evaluated, the checkpoint is that of 4.
RECORDS = [
  {"step": 10, "train/loss": 2.1, "train/images_per_second": 900.0},
  {
    "step": 20,
    "train/loss": None,
    "train/images_per_second": 1100.0,
    "goodput/start": 4.0,
    "goodput/step": 61.5,
  },
  {"step": 10, "eval/accuracy": 0.5, "eval/loss": 1.9},
  {"step": 20, "eval/accuracy": 0.25, "eval/loss": 1.5},
]


def make(path, data_dir, records=RECORDS, change=None, checkpoint=True):
  """Makes it; the config."""
  config = smoke.get_config()
  config.data.data_dir = data_dir
  if checkpoint:

    def about(metadata):
      metadata["environment"] = {
        "device_kind": "TPU v0",
        "num_devices": 8,
        "versions": {"mixer": "0.1.0", "jax": "1.2.3"},
      }
      metadata["origin"] = "starting from random weights"
      if change:
        change(metadata)

    trained_files.save(path, config, about)
  write(path, config_lib.to_json(config), records)
  return config


def write(path, config, records):
  """The files beside the checkpoints."""
  path.mkdir(exist_ok=True)
  resolved = {
    "total": 20,
    "train_examples": 1400,
    "eval_examples": 397,
    "num_classes": 10,
  }
  workdir.write_json(
    path / "config.json", {"config": config, "resolved": resolved}
  )
  lines = "".join(json.dumps(r) + "\n" for r in records)
  (path / metrics.FILE).write_text(lines)
