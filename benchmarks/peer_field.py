"""The processes of `benchmarks.peers`, and the ways in which each can run."""

import argparse
import pathlib
import sys

from benchmarks.peer_process import Peer, Setting
from mixer.errors import UserError

# Ours without what `runtime.keep_freed_memory` does.
PLAIN = "ours, plain malloc"
_EAGER = ("eager", "eager+channels_last")
_COMPILED = ("compile", "compile+channels_last", "compile+autotune")


class Field:
  """All processes that measure one model, and what is timed in them."""

  def __init__(self, folder: pathlib.Path, args: argparse.Namespace):
    here = sys.executable

    def peer(python: str, module: str, keeps: bool, *options: str) -> Peer:
      return Peer(python, module, folder, keeps, *options)

    self.ours = peer(here, "peer_ours", True)
    if not self.ours.hello:
      raise UserError("our own process stopped; its error is above.")
    self.platform = self.ours.hello["platform"]
    cpu = self.platform == "cpu"
    # On other devices malloc has no part in it.
    keeping = (True, False) if cpu else (False,)
    self.settings: dict[str, list[Setting]] = {}
    timms = [peer(args.torch_python, "peer_timm", k) for k in keeping]
    if not timms[0].hello:
      print("timm     not installed: left out", flush=True)
      timms = []
    for name, variants in (("timm", _EAGER), ("timm compiled", _COMPILED)):
      self.settings[name] = [Setting(p, v) for p in timms for v in variants]
    self.freezing = [Setting(p, "compile+freezing") for p in timms]
    if args.authors:
      authors = [
        peer(here, "peer_authors", k, str(args.authors)) for k in keeping
      ]
      if not authors[0].hello:
        raise UserError(
          f"--authors={args.authors} has no vit_jax/models_mixer.py that can "
          "be imported, see above; name a checkout of "
          "google-research/vision_transformer (which wants einops too)."
        )
      # They wrote it for float32, whatever the others have.
      own = "" if args.dtype == "float32" else "float32"
      self.settings["authors"] = [Setting(p, own) for p in authors]
    if cpu:
      self.settings[PLAIN] = [Setting(peer(here, "peer_ours", False), "")]
    self.settings = {k: v for k, v in self.settings.items() if v}
    if not {*self.settings} - {PLAIN}:
      self.close()
      raise UserError(
        "there is nothing to compare with: timm isn't installed here. Install "
        'it (pip install -e ".[export]"), or name a Python that has it, as in '
        "--torch_python=OTHER/bin/python."
      )
    for name, group in self.settings.items():
      if group[0].peer.hello["platform"] != self.platform:
        self.close()
        raise UserError(
          f"{name} runs on {group[0].peer.hello['platform']}, ours on "
          f"{self.platform}: install the build of each for the same device, "
          "or set JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES= for all."
        )

  def of(self, name: str, what: str) -> list[Setting]:
    """A contender's settings for a pass."""
    more = self.freezing if (name, what) == ("timm compiled", "forward") else []
    return self.settings[name] + more

  def close(self) -> None:
    for setting in [Setting(self.ours, "")] + [
      s for group in self.settings.values() for s in group
    ]:
      setting.peer.close()
