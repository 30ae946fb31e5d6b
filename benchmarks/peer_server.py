"""What the contenders of `benchmarks.peers` share; needs NumPy alone.

A contender is a process that waits on its standard input, idle, until it is
asked. Its folder has `work.json`, see `peers.make_work`, and `batch.npz`.
"""

import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

# Does something n times, waits for its end, and returns the last result.
Run = Callable[[int], Any]


class Contender(Protocol):
  """What a process measures, in the variants that it has."""

  def forward(self, variant: str) -> Run:
    """A pass over the batch; results are logits `[B, K]`."""
    ...

  def train(self, variant: str) -> Run:
    """An update, from the same weights on; results are losses before it."""
    ...

  def gradients(self, variant: str) -> dict[str, np.ndarray]:
    """Of the loss at those weights, by timm's names."""
    ...


def read(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The work, and its batch: `image` uint8 `[B, H, W, 3]`, `label`, `mask`."""
  work = json.loads((folder / "work.json").read_text())
  with np.load(folder / "batch.npz") as file:
    return work, dict(file)


def seconds_each(run: Run, seconds: float) -> float:
  """Median seconds of one of what `run` does.

  Short ones are timed several at once, so that waiting costs nothing.

  Args:
    run: has run before.
    seconds: for which to go on; one that takes longer is timed once.
  """
  start = time.perf_counter()
  run(1)
  found = [time.perf_counter() - start]
  n = max(1, round(0.1 / found[0]))
  if n > 1:
    found = []
  while not found or time.perf_counter() - start < seconds:
    before = time.perf_counter()
    run(n)
    found.append((time.perf_counter() - before) / n)
  return statistics.median(found)


UPDATES = 3


def check(
  contender: Contender, name: str, variant: str
) -> dict[str, np.ndarray]:
  """What this variant computes, to be compared with the others'.

  Returns:
    Of a forward pass `logits` `[B, K]`; of training the `losses` of the first
    updates, and the first one's gradients as `gradient/NAME`.
  """
  if name == "forward":
    return {"logits": np.asarray(contender.forward(variant)(1), np.float32)}
  run = contender.train(variant)
  losses = [float(run(1)) for _ in range(UPDATES)]
  gradients = contender.gradients(variant)
  return {"losses": np.array(losses)} | {
    f"gradient/{k}": np.asarray(v) for k, v in gradients.items()
  }


def serve(hello: dict[str, Any], contender: Contender, batch: int) -> None:
  """Answers requests on standard input, a line of JSON each.

  Args:
    hello: what the process is; its first answer.
    contender: what it measures.
    batch: images in one.
  """
  ready: dict[tuple[str, str], Run] = {}
  print(f"> {json.dumps(hello)}", flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    name, variant = request["pass"], request["variant"]
    if "check" in request:
      found = check(contender, name, variant)
      np.savez(request["check"], allow_pickle=False, **found)
      answer: dict[str, Any] = {"written": True}
    else:
      if (name, variant) not in ready:
        make = contender.train if name == "train" else contender.forward
        ready[name, variant] = run = make(variant)
        run(2)  # Compiles, and fills caches.
      seconds = seconds_each(ready[name, variant], request["seconds"])
      answer = {"rate": batch / seconds}
    print(f"> {json.dumps(answer)}", flush=True)
