"""A contender of `benchmarks.peers`: a process that waits until it is asked.

Its folder has `work.json`, `batch.npz` and weights, see `peers.make_work`. The
first line that it answers says what it is; then it takes a request a line, as
JSON, and answers a line. timm's process needs NumPy, torch and timm alone.
"""

import importlib.metadata
import json
import os
import pathlib
import sys
from typing import Any, Protocol

import numpy as np

from benchmarks import common

UPDATES = 3


class Contender(Protocol):
  """What a process measures, in the variants that it has."""

  hello: dict[str, Any]

  def forward(self, variant: str) -> common.Run:
    """A pass over the batch; results are logits `[B, K]`."""
    ...

  def train(self, variant: str) -> common.Run:
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


def scaled(images: np.ndarray) -> np.ndarray:
  """Float images, as the others are given them; ours scales in its time."""
  return images.astype(np.float32) / 127.5 - 1


def check(
  contender: Contender, name: str, variant: str
) -> dict[str, np.ndarray]:
  """What a variant computes, to be compared with the others'.

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


def serve(contender: Contender, batch: int) -> None:
  """Answers requests on standard input, a line of JSON each."""
  ready: dict[tuple[str, str], common.Run] = {}
  print(f"> {json.dumps(contender.hello)}", flush=True)
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
      took = common.seconds_each(ready[name, variant], request["seconds"])
      answer = {"rate": batch / took}
    print(f"> {json.dumps(answer)}", flush=True)


_KEPT = []  # What a library defines is gone with it.


def name_operators(torch: Any) -> None:
  """Lets timm be imported beside a torchvision whose operators don't load.

  As one for CUDA's doesn't beside PyTorch for CPUs. No Mixer uses them, but
  without their names the import fails.
  """
  try:
    version = importlib.metadata.version("torchvision")
  except importlib.metadata.PackageNotFoundError:
    return
  if not _KEPT and torch.version.cuda is None and "+" not in version:
    names = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      names.define(f"{name}(Tensor a) -> Tensor")
    _KEPT.append(names)


class Timm:
  """timm's MlpMixer under PyTorch, all variants from the same weights.

  Variants are words joined by "+": `eager` or `compile` (torch.compile), then
    channels_last   the layout of images and of the stem's kernel
    autotune        mode="max-autotune-no-cudagraphs"
    freezing        Inductor's option: weights are constants, for forward alone
  """

  def __init__(self, folder: pathlib.Path):
    import torch  # pyright: ignore[reportMissingImports]

    name_operators(torch)
    import timm  # pyright: ignore[reportMissingImports]

    self._torch, self._timm = torch, timm
    self._work, batch = read(folder)
    torch.set_num_threads(common.cores())
    if torch.cuda.is_available():
      torch.set_float32_matmul_precision("high")  # As XLA's there: TF32.
    with np.load(folder / "timm.npz") as file:
      self._weights = {k: torch.from_numpy(v) for k, v in file.items()}
    self._device = "cuda" if torch.cuda.is_available() else "cpu"
    images = np.ascontiguousarray(scaled(batch["image"]).transpose(0, 3, 1, 2))
    self._images = torch.from_numpy(images).to(self._device)
    self._labels = torch.from_numpy(batch["label"]).long().to(self._device)
    self._gradients: dict[str, dict[str, np.ndarray]] = {}
    self.hello = {
      "version": f"timm {timm.__version__}, torch {torch.__version__}",
      "platform": {"cuda": "gpu"}.get(self._device, self._device),
      "threads": torch.get_num_threads(),
    }

  def _model(self, variant: str) -> tuple[Any, Any]:
    """The module, and the images as it likes them."""
    model = self._timm.models.mlp_mixer.MlpMixer(
      **self._work["timm"], act_layer=self._timm.layers.GELUTanh
    )
    model.load_state_dict(self._weights)
    model.to(self._device)
    if "channels_last" not in variant:
      return model, self._images
    form = {"memory_format": self._torch.channels_last}
    return model.to(**form), self._images.contiguous(**form)

  def _compiled(self, function: Any, variant: str) -> Any:
    if not variant.startswith("compile"):
      return function
    if "autotune" in variant:
      return self._torch.compile(function, mode="max-autotune-no-cudagraphs")
    options = {"freezing": True} if "freezing" in variant else None
    return self._torch.compile(function, options=options)

  def _autocast(self) -> Any:
    half = self._work["dtype"] == "bfloat16"
    return self._torch.autocast(
      self._device, self._torch.bfloat16, enabled=half
    )

  def _wait(self) -> None:
    if self._device == "cuda":
      self._torch.cuda.synchronize()

  def forward(self, variant: str) -> common.Run:
    model, images = self._model(variant)
    call = self._compiled(model.eval(), variant)
    # Inductor doesn't freeze in inference mode, which is a little faster.
    freezing = "freezing" in variant
    mode = self._torch.no_grad if freezing else self._torch.inference_mode

    def run(n: int) -> np.ndarray:
      logits = self._images
      with mode(), self._autocast():
        for _ in range(n):
          logits = call(images)
      self._wait()
      return logits.float().cpu().numpy()

    return run

  def train(self, variant: str) -> common.Run:
    model, images = self._model(variant)
    model.train()
    c, optim = self._work["optimizer"], self._torch.optim
    parameters = list(model.parameters())
    rate = c["learning_rate"]
    if c["name"] == "sgd":
      optimizer = optim.SGD(parameters, rate, c["momentum"], fused=True)
    else:
      kernels = [p for p in parameters if p.ndim > 1]
      rest = [p for p in parameters if p.ndim <= 1]
      groups = [
        {"params": kernels, "weight_decay": c["weight_decay"]},
        {"params": rest, "weight_decay": 0.0},
      ]
      optimizer = optim.AdamW(groups, rate, fused=True)

    def loss_of(images: Any, labels: Any) -> Any:
      return self._torch.nn.functional.cross_entropy(model(images), labels)

    call = self._compiled(loss_of, variant)

    def run(n: int) -> float:
      loss = self._labels
      for _ in range(n):
        optimizer.zero_grad(set_to_none=True)
        with self._autocast():
          loss = call(images, self._labels)
        loss.backward()
        if variant not in self._gradients:
          self._gradients[variant] = {
            k: p.grad.float().cpu().numpy().copy()
            for k, p in model.named_parameters()
          }
        optimizer.step()
      self._wait()
      return float(loss.detach())

    return run

  def gradients(self, variant: str) -> dict[str, np.ndarray]:
    """Those of the first update of `train`."""
    return self._gradients[variant]


def main() -> None:
  kind, memory, *rest = sys.argv[1:]
  folder = pathlib.Path(rest[0])
  if kind == "timm":
    try:
      contender: Contender = Timm(folder)
    except ImportError:
      raise SystemExit() from None  # An empty answer: it isn't here.
  else:
    from benchmarks import peer_jax

    contender = peer_jax.make(kind, folder, memory == "kept", *rest[1:])
  serve(contender, read(folder)[0]["batch"])


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  main()
