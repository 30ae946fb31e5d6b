"""timm's MlpMixer under PyTorch, for `benchmarks.peers`.

Needs NumPy, torch and timm, and none of ours but `peer_server`. It is given
float images, scaled already, where ours scales bytes in its own time.

Variants are words joined by "+": `eager` or `compile` (torch.compile), then
  channels_last   the layout of images and of the stem's kernel
  autotune        mode="max-autotune-no-cudagraphs"
  freezing        Inductor's option: weights are constants, for forward alone
"""

import importlib.metadata
import os
import pathlib
import sys
from typing import Any

import numpy as np

from benchmarks import peer_server


def name_operators(torch: Any) -> None:
  """Lets timm be imported beside a torchvision whose operators don't load.

  As one for CUDA's doesn't beside PyTorch for CPUs. No Mixer uses them, but
  without their names the import fails.
  """
  if _KEPT:  # Once in a process.
    return
  try:
    version = importlib.metadata.version("torchvision")
  except importlib.metadata.PackageNotFoundError:
    return
  if torch.version.cuda is None and "+" not in version:
    names = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      names.define(f"{name}(Tensor a) -> Tensor")
    _KEPT.append(names)


_KEPT = []  # What a library defines is gone with it.


class Timm:
  """A model for each variant and pass, all from the same weights."""

  def __init__(self, folder: pathlib.Path, torch: Any, timm: Any):
    self._torch, self._timm = torch, timm
    self._work, batch = peer_server.read(folder)
    with np.load(folder / "timm.npz") as file:
      self._weights = {k: torch.from_numpy(v) for k, v in file.items()}
    self.device = "cuda" if torch.cuda.is_available() else "cpu"
    images = batch["image"].astype(np.float32) / 127.5 - 1
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    self._images = torch.from_numpy(images).to(self.device)
    self._labels = torch.from_numpy(batch["label"]).long().to(self.device)
    self._gradients: dict[str, dict[str, np.ndarray]] = {}

  def _model(self, variant: str) -> tuple[Any, Any]:
    """The module, and the images as it likes them."""
    model = self._timm.models.mlp_mixer.MlpMixer(
      **self._work["timm"], act_layer=self._timm.layers.GELUTanh
    )
    model.load_state_dict(self._weights)
    model.to(self.device)
    if "channels_last" not in variant:
      return model, self._images
    form = self._torch.channels_last
    return (
      model.to(memory_format=form),
      self._images.contiguous(memory_format=form),
    )

  def _compiled(self, function: Any, variant: str) -> Any:
    if not variant.startswith("compile"):
      return function
    if "autotune" in variant:
      return self._torch.compile(function, mode="max-autotune-no-cudagraphs")
    options = {"freezing": True} if "freezing" in variant else None
    return self._torch.compile(function, options=options)

  def _autocast(self) -> Any:
    return self._torch.autocast(
      self.device,
      self._torch.bfloat16,
      enabled=self._work["dtype"] == "bfloat16",
    )

  def _wait(self) -> None:
    if self.device == "cuda":
      self._torch.cuda.synchronize()

  def forward(self, variant: str) -> peer_server.Run:
    model, images = self._model(variant)
    call = self._compiled(model.eval(), variant)

    def run(n: int) -> np.ndarray:
      # Inductor doesn't freeze in inference mode, which is a little faster.
      no_grad = "freezing" in variant
      logits = self._images
      mode = self._torch.no_grad if no_grad else self._torch.inference_mode
      with mode(), self._autocast():
        for _ in range(n):
          logits = call(images)
      self._wait()
      return logits.float().cpu().numpy()

    return run

  def train(self, variant: str) -> peer_server.Run:
    model, images = self._model(variant)
    model.train()
    optimizer = self._optimizer(model)
    loss_of = self._torch.nn.functional.cross_entropy

    def losses(images: Any, labels: Any) -> Any:
      return loss_of(model(images), labels)

    call = self._compiled(losses, variant)

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

  def _optimizer(self, model: Any) -> Any:
    c, optim = self._work["optimizer"], self._torch.optim
    if c["name"] == "sgd":
      return optim.SGD(
        model.parameters(),
        c["learning_rate"],
        c["momentum"],
        fused=True,
      )
    kernels = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
      {"params": kernels, "weight_decay": c["weight_decay"]},
      {"params": rest, "weight_decay": 0.0},
    ]
    return optim.AdamW(groups, c["learning_rate"], fused=True)

  def gradients(self, variant: str) -> dict[str, np.ndarray]:
    """Those of the first update of `train`."""
    return self._gradients[variant]

  def matmul_flops(self) -> float:
    """FLOP/s of its best matmul of large squares, in float32."""
    side = 2048 if self.device == "cpu" else 8192
    x = self._torch.randn(side, side, device=self.device)

    def run(n: int) -> None:
      for _ in range(n):
        self._torch.mm(x, x)
      self._wait()

    run(1)
    return 2 * side**3 / peer_server.seconds_each(run, 1)


def main() -> None:
  try:
    import torch  # pyright: ignore[reportMissingImports]

    name_operators(torch)
    import timm  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise SystemExit() from None
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  if torch.cuda.is_available():
    torch.set_float32_matmul_precision("high")  # As XLA's there: TF32.
  contender = Timm(pathlib.Path(sys.argv[1]), torch, timm)
  hello = {
    "version": f"timm {timm.__version__}, torch {torch.__version__}",
    "platform": {"cuda": "gpu"}.get(contender.device, contender.device),
    "capability": torch.backends.cpu.get_cpu_capability(),
    "threads": torch.get_num_threads(),
    "matmul_flops": contender.matmul_flops(),
  }
  work, _ = peer_server.read(pathlib.Path(sys.argv[1]))
  peer_server.serve(hello, contender, work["batch"])


if __name__ == "__main__":
  main()
