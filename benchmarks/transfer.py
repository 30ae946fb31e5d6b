"""Does pre-training help where labels are few? On data that is shipped.

  python -m benchmarks.transfer --workdir=runs/transfer

Pre-trains as `make demo` does, then fine-tunes on handwritten digits with 1, 5
and 10 labels a class, and trains the same model from scratch with the same
budget, once for each of `--draws` draws of labels. Prints the table of
docs/results.md, and writes it to benchmarks/results/transfer.json.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import train
from configs import demo_pretrain
from mixer import command_line, runtime
from tools import demo

_RESULTS = pathlib.Path(__file__).parent / "results" / "transfer.json"


def transfer(
  workdir: pathlib.Path, labels: Sequence[int], draws: int
) -> list[demo.Row]:
  """Runs everything that isn't there yet."""
  config = demo_pretrain.get_config()
  config.data.data_dir = str(workdir / "data")
  pretrained = train.train(config, workdir / "pretrain")
  return [
    demo.digits(workdir, n, draws, pretrained.get(f"fewshot/{n}shot"))
    for n in labels
  ]


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer")
  parser.add_argument("--workdir", default="runs/transfer", type=pathlib.Path)
  parser.add_argument("--labels", default=[1, 5, 10], type=int, nargs="+")
  parser.add_argument("--draws", default=5, type=int)
  args = parser.parse_args(argv)

  def body() -> None:
    runtime.quiet_libraries()
    runtime.start()
    rows = transfer(args.workdir, args.labels, args.draws)
    print(demo.table(rows))
    result = {
      "rows": [dataclasses.asdict(row) for row in rows],
      "environment": runtime.environment(),
    }
    _RESULTS.write_text(json.dumps(result, indent=2) + "\n")

  return command_line.run(body)


if __name__ == "__main__":
  sys.exit(main())
