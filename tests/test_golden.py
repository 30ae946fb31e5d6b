"""The first losses of the smoke run, as recorded: a change is seen.

To record them anew, after a change that is meant to alter them:

  python -m tests.test_golden
"""

import json
import pathlib
import tempfile

import numpy as np

from tests import conftest

RECORD = pathlib.Path(__file__).parent / "golden" / "smoke_losses.json"
STEPS = 20
# Other processors and versions of XLA round otherwise, and 20 updates carry
# that on: between jax 0.10.2 and 0.12.0 on one machine it came to 1e-7.
TOLERANCE = 1e-4

MEANING = """
The losses of the first {steps} updates of configs/smoke.py are not those that
were recorded. Something that makes the numbers has changed: data order,
augmentation, initialisation, random keys, model, loss, optimizer or schedule.
If that is what the change is for, say so in CHANGELOG.md (runs that go on from
older checkpoints will differ) and record anew: python -m tests.test_golden
"""


def losses(train_command: conftest.TrainCommand, workdir: pathlib.Path):
  done = train_command(workdir, "--config.log_every=1 steps")
  assert done.returncode == 0, done.stderr
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  found = {r["step"]: r["train/loss"] for r in records if "train/loss" in r}
  return [found[step] for step in range(1, STEPS + 1)]


def test_first_losses_are_those_recorded(train_command, tmp_path):
  recorded = json.loads(RECORD.read_text())
  np.testing.assert_allclose(
    losses(train_command, tmp_path),
    recorded,
    rtol=TOLERANCE,
    err_msg=MEANING.format(steps=STEPS),
  )


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as folder:
    command = conftest.TrainCommand(f"{folder}/data")
    found = losses(command, pathlib.Path(folder) / "run")
  RECORD.parent.mkdir(exist_ok=True)
  RECORD.write_text(json.dumps(found, indent=1) + "\n")
  print(f"recorded {RECORD}")
