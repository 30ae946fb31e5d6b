"""What the contenders of `benchmarks.input` share; needs no package."""

import pickle
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

BATCH = 64
SIZE = 224


def serve(
  version: str, batches: Callable[[list[bytes], bool, int], Iterator[Any]]
) -> None:
  """Answers requests on standard input with images a second.

  Args:
    version: of what is measured.
    batches: (files, RandAugment or not, cores) -> endless batches of BATCH.
  """
  with open(sys.argv[1], "rb") as file:
    kinds = pickle.load(file)
  cores = int(sys.argv[2])
  print(f"> {version}", flush=True)
  for line in sys.stdin:
    kind, seconds = line.split()
    randaugment = kind == "randaugment"
    files = kinds["photo" if randaugment else kind]
    iterator = batches(files, randaugment, cores)
    for _ in range(4):
      next(iterator)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < float(seconds):
      next(iterator)
      count += BATCH
    print(f"> {count / (time.perf_counter() - start)}", flush=True)
    del iterator
