"""What a report may hold, made up: runs as of mixer.report.runs."""

import base64
import io
import itertools
from typing import Any

import numpy as np
from PIL import Image


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
  """One each ten steps, with noise, a spike, a gap and ten evaluations."""
  rng = np.random.default_rng(seed)
  time = np.arange(count) / count
  loss = 0.4 + 2 * np.exp(-4 * time) + rng.normal(0, 0.05, count)
  # A spike that is one record wide, and one that is no number.
  loss[count // 3] = 4.5
  norm = np.exp(rng.normal(0, 0.4, count)) * (1 + 3 * np.exp(-8 * time))
  rate = 1e-3 * np.minimum(20 * time, np.cos(time * np.pi / 2))
  speed = 4000 + rng.normal(0, 120, count)
  seconds = dict.fromkeys(
    ("start", "compile", "data", "step", "evaluation", "saving", "lost"), 0.0
  )
  seconds |= {"start": 4.1, "compile": 12.5}
  out = []
  for i in range(count):
    seconds["data"] += 0.02 + 0.01 * float(rng.random())
    seconds["step"] += 0.25
    record: dict[str, Any] = {
      "step": (i + 1) * 10,
      "train/grad_norm": float(norm[i]),
      "train/learning_rate": float(rate[i]),
      "train/loss": None if i == count // 2 else float(loss[i]),
      "train/param_norm": 20 + float(time[i]),
    }
    if i:
      record["train/images_per_second"] = float(speed[i])
      record["train/mfu"] = float(speed[i] / 10000)
      record["data/wait"] = float(0.05 + 0.05 * rng.random())
    record |= {f"goodput/{k}": round(v, 3) for k, v in seconds.items()}
    out.append(record)
    if (i + 1) % max(1, count // 10) == 0:
      seconds["evaluation"] += 0.9
      seconds["saving"] += 0.3
      accuracy = 1 - 0.8 * float(np.exp(-3 * time[i])) - 0.02 * seed
      out.append(
        {
          "step": (i + 1) * 10,
          "eval/accuracy": accuracy,
          "eval/accuracy_top5": 0.5 + accuracy / 2,
          "eval/loss": float(0.5 + 1.5 * np.exp(-3 * time[i])),
          "eval/examples": 397,
        }
        | {f"goodput/{k}": round(v, 3) for k, v in seconds.items()}
      )
  return out


def image(rng: np.random.Generator, height: int, width: int) -> str:
  """A PNG of blobs, as an address."""
  small = rng.integers(0, 256, (6, 6, 3), np.uint8)
  blobs = Image.fromarray(small)
  picture = blobs.resize((width, height), Image.Resampling.BICUBIC)
  file = io.BytesIO()
  picture.save(file, "PNG")
  return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def predictions(
  classes: int, seed: int = 0, side: int = 16, names: list[str] | None = None
) -> dict[str, Any]:
  """Predictions that agree with themselves, from a random confusion matrix."""
  rng = np.random.default_rng(seed)
  counts = rng.poisson(0.6, (classes, classes)) * rng.integers(
    0, 2, (classes, classes)
  )
  counts[np.arange(classes), np.arange(classes)] += rng.poisson(35, classes)
  right, total = int(np.trace(counts)), int(counts.sum())
  wrong = counts - np.diag(np.diag(counts))
  shown = np.sort(np.argsort(-wrong.sum(1), kind="stable")[:30])
  pairs = sorted(
    ([int(i), int(j), int(wrong[i, j])] for i, j in np.argwhere(wrong)),
    key=lambda pair: -pair[2],
  )
  edges = np.linspace(0, 1, 16)

  def example(index: int, mistaken: bool) -> dict[str, Any]:
    label = int(rng.integers(classes))
    others = [int(k) for k in rng.permutation(classes) if k != label][:4]
    order = [*others[:1], label, *others[1:]] if mistaken else [label, *others]
    scores = np.sort(rng.dirichlet(np.full(len(order), 0.4)))[::-1]
    return {
      "index": index,
      "file": f"class/{index}.jpg" if mistaken else "",
      "image": image(rng, side, side),
      "label": label,
      "loss": float(-np.log(scores[1 if mistaken else 0] + 1e-4)),
      "top": [[k, float(s)] for k, s in zip(order, scores, strict=True)],
    }

  worst = [example(7 * i, True) for i in range(24)]
  worst.sort(key=lambda e: -e["loss"])
  return {
    "split": "test",
    "step": 1000,
    "examples": total,
    "loss": "softmax",
    "classes": names or [f"class {k}" for k in range(classes)],
    "accuracy": right / total,
    "accuracy_top5": 1 - (1 - right / total) / 3,
    "mean_loss": 0.21,
    "confusion": {
      "classes": shown.tolist(),
      "counts": counts[np.ix_(shown, shown)].tolist(),
      "elsewhere": (
        counts[shown].sum(1) - counts[np.ix_(shown, shown)].sum(1)
      ).tolist(),
    },
    "pairs": pairs[:30],
    "by_class": [
      [k, int(counts[k].sum()), int(counts[k, k])] for k in range(classes)
    ],
    "calibration": {
      "ece": 0.021,
      "bins": [
        [
          float(low),
          float(high),
          int(1 + 300 * high**4),
          float((low + high) / 2),
          float(min(1, (low + high) / 2 * (0.85 + 0.15 * high))),
        ]
        for low, high in itertools.pairwise(edges[2:])
      ],
    },
    "worst": worst,
    "samples": [example(40 * i, False) for i in range(24)],
  }


def figure(title: str, height: int, width: int, seed: int = 0):
  """A figure of weights."""
  rng = np.random.default_rng(seed)
  return {
    "title": title,
    "caption": "Made up: each tile is a unit.",
    "image": image(rng, height, width),
    "width": width,
    "height": height,
    "alt": f"{title}: coloured tiles",
  }


def run(
  name: str = "runs/a",
  count: int = 100,
  seed: int = 0,
  classes: int = 10,
  side: int = 16,
  names: list[str] | None = None,
) -> dict[str, Any]:
  """A run with everything that a report knows."""
  return {
    "name": name,
    "facts": [
      ["model", "Mixer S/4 at 16 px, 10 classes, 0.01 M parameters"],
      ["steps", f"{10 * count} of {10 * count}"],
      ["data", "digits: 1,400 examples of the split train"],
      ["devices", "8 × TPU v4"],
    ],
    "config": {
      "batch_size": 32,
      "data": {"name": "digits", "crop": "inception"},
      "loss": {"name": "softmax", "mixup": 0.1 * seed},
      "optimizer": {"name": "adam", "learning_rate": 1e-3 * (seed + 1)},
      "seed": seed,
      "fewshot": {"shots": [1, 5, 10]},
    },
    "environment": {"python": "3.12.3", "jax": "0.11.0", "devices": {"n": 8}},
    "metrics": records(count, seed),
    "predictions": predictions(classes, seed, side, names),
    "weights": {
      "stem": figure("Stem", 40, 80, seed),
      "tokens": [figure(f"Token mixing, block {i}", 70, 70, i) for i in (1, 2)],
    },
    "notes": [],
  }


def bare(name: str = "runs/new") -> dict[str, Any]:
  """A run that has just started: nothing recorded, nothing saved."""
  return {
    "name": name,
    "facts": [],
    "config": {},
    "environment": None,
    "metrics": [],
    "predictions": None,
    "weights": None,
    "notes": ["There is no checkpoint in runs/new yet."],
  }
