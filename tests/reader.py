"""A folder in which a reader of one document types what he reads.

It holds the checkout by links, and small data under the names that the
documents give theirs. What a document takes for granted (a data set, a run) is
there; what it makes is made by its own commands.
"""

import contextlib
import functools
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from PIL import Image

from mixer import cli, weights
from tests import conftest, trained_files
from tests.datasets import forms, test_makers, tfrecords

# What makes a run short: all recipes take these.
SHORT = (
  '--config.total="2 steps" --config.batch_size=8 --config.model.dtype=float32 '
  '--config.schedule.warmup="1 steps" --config.eval_every="2 steps" '
  '--config.checkpoint_every="2 steps" --config.fewshot.shots="(1,)"'
)
# And a model small, where no weights say how large it is.
SMALL = (
  "--config.model.num_blocks=1 --config.model.hidden_dim=16 "
  "--config.model.tokens_mlp_dim=8 --config.model.channels_mlp_dim=16"
)
# Which files stand under a name that a command reads: (command, what). The
# name is the group; None: the command makes it.
_NAMES = [
  (r"prepare folder .*--source=(\w+)", "birds"),
  (r"prepare imagenet2012(?:_real)? .*--source=(\w+)", "ilsvrc"),
  (r"prepare fashion_mnist --source=(\S+)", "idx"),
  (r"prepare cifar10 --source=(\w+)(?![\w.-])", "tfrecord"),
  (r"prepare oxford_iiit_pet --source=(\w+)", "pets"),
  (r"prepare oxford_flowers102 --source=(\w+)", "flowers"),
  (r"prepare imagenet21k --source=(DIR\w+)", "shards"),
  (r"dataset=(DIR)\b", "birds"),
  (r"predict .* (DIR)\b", "photos"),
  (r"(?:--workdir=|--output=|-o )(DIR\w*)", None),
]
# How the sets are prepared that a document takes for granted.
_SETS = {
  "my_set": "folder --name=my_set --source=birds",
  "birds": "folder --name=birds --source=birds",
  "cifar10": "cifar10 --source=tfrecord",
  "oxford_iiit_pet": "oxford_iiit_pet --source=tfrecord",
  "imagenet2012": "imagenet2012 --source=ilsvrc",
  "imagenet2012_real": "imagenet2012_real --source=ilsvrc",
  "imagenet_v2": "imagenet_v2 --source=imagenetv2-matched-frequency.tar.gz",
  "imagenet21k": "imagenet21k --source=winter21_whole.tar.gz "
  "--hold_out=validation=15%,test=15%",
  "imagenet21k_p": "imagenet21k_p --source=imagenet21k_resized.tar.gz",
  "fashion_mnist": "fashion_mnist --source=idx",
  "digits": "digits",
  "glyphs": "glyphs",
}


class Kept:
  """What all sandboxes copy, made once and when it is first asked for."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    self.files = root / "files"
    self.data = root / "data"
    self.cache = root / "cache"
    self._written: set[str] = set()
    self.files.mkdir()

  def write(self, text: str) -> None:
    """The files that a line reads, if they aren't there."""
    for pattern, make in _FILES.items():
      if pattern not in self._written and re.search(pattern, text):
        make(self.files)
        self._written.add(pattern)

  def data_set(self, name: str) -> pathlib.Path:
    """Prepared from the small files."""
    if (self.data / name).exists():
      return self.data / name
    self.write(_SETS[name])
    words = [
      re.sub(r"(?<=--source=)", f"{self.files}/", word)
      for word in _SETS[name].split()
    ]
    words += [f"--data_dir={self.data}"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
      assert cli.main(["prepare", *words]) == 0, out.getvalue()
    return self.data / name

  def released(self, name: str) -> None:
    """A file of a released checkpoint's name and shapes; random weights."""
    path = self.cache / "released" / f"{name}.npz"
    if path.exists():
      return
    folder, variant = name.split("/")
    classes = {"imagenet21k": 21_843}.get(folder, 1000)
    shape = trained_files.shape_of(
      variant.removeprefix("Mixer-").replace("_", "/"), classes
    )
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
      k: rng.standard_normal(dims, np.float32) / 50
      for k, dims in weights.expected(shape).items()
    }
    np.savez(path, allow_pickle=False, **arrays)

  @functools.cached_property
  def run(self) -> pathlib.Path:
    """A workdir: digits, with a checkpoint of step 300."""
    reader = Reader(self.root / "reader", self)
    reader.give_set("digits")
    done = reader.type(
      "python train.py --config=configs/smoke.py --workdir=runs/given",
      '--config.total="300 steps" --config.checkpoint_every="100 steps"',
    )
    assert done.returncode == 0, done.stderr
    return reader.root / "runs" / "given"


def _tars(root: pathlib.Path) -> None:
  forms.ilsvrc(root / "ilsvrc")
  for make in (forms.imagenet21k, forms.imagenet21k_p, forms.imagenet_v2):
    make(root / "archives")
  for path in (root / "archives").glob("*.tar.gz"):
    path.rename(root / path.name)


def _records(root: pathlib.Path) -> None:
  for name in ("cifar10", "oxford_iiit_pet"):
    tfrecords.make(root / "tfrecord", name, shards=(20, 20))


def _images(root: pathlib.Path) -> None:
  photo = functools.partial(_photo, np.random.default_rng(0))
  for kind in ("jay", "owl", "tit"):
    (root / "birds" / kind).mkdir(parents=True)
    for i in range(20):
      photo(root / "birds" / kind / f"{i}.jpg")
  (root / "photos" / "more").mkdir(parents=True)
  for name in ("1.jpg", "2.png", "more/3.jpg"):
    photo(root / "photos" / name)
  for name in ("a.jpg", "b.jpg", "cat.jpg", "dog.jpg", "photo.jpg", "x.png"):
    photo(root / name)


# All that commands read: what a line says -> makes its files.
_FILES = {
  r"": _images,
  r"ilsvrc|imagenet2012|imagenet_?v2|imagenet21k": _tars,
  r"cifar10|pet": _records,
  r"fashion_mnist": lambda root: forms.mnist(root / "idx"),
  r"cifar-10-binary": lambda root: test_makers.cifar(root, "cifar10"),
  r"oxford_iiit_pet": lambda root: test_makers.pets(root / "pets"),
  r"flowers102": lambda root: test_makers.flowers(root / "flowers"),
  r"SHARDS": lambda root: test_makers.shards(root / "shards"),
  r"tiny\.npz": lambda root: trained_files.npz(
    root / "tiny.npz", 1000, side=224
  ),
}


def _photo(rng: np.random.Generator, path: pathlib.Path) -> None:
  small = rng.integers(0, 256, (6, 8, 3), np.uint8)
  Image.fromarray(small).resize((80, 60)).save(path)


class Reader:
  """Types commands, one after the other."""

  def __init__(self, root: pathlib.Path, kept: Kept):
    self.root = root
    self._kept = kept
    self.data = root / "data"
    for folder in (self.data, root / "runs", root / "home"):
      folder.mkdir(parents=True)
    for path in conftest.ROOT.iterdir():
      if path.name not in (".git", ".venv", "runs", "data"):
        (root / path.name).symlink_to(path)
    (root / ".venv").symlink_to(sys.prefix)
    self.env = os.environ | {
      "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
      "XLA_FLAGS": "",
      "HOME": str(root / "home"),
      "TFDS_DATA_DIR": str(self.data),
      "MIXER_CACHE": str(kept.cache),
      # Nothing is fetched.
      "MIXER_RELEASED_URL": "http://127.0.0.1:1",
      **{f"{k}_proxy": "http://127.0.0.1:1" for k in ("http", "https")},
      "STORAGE_EMULATOR_HOST": "http://127.0.0.1:1",
      "NO_GCE_CHECK": "true",
      "CLOUDSDK_CONFIG": str(root / "home"),
      "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    }
    self.env.pop("PYTHONPATH", None)

  def type(self, text: str, more: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a line as a shell does, with more flags behind it."""
    # Folders of a whole machine are those of the sandbox.
    text = re.sub(r"=(?=/(?:data|mnt|usr|shared)\b)", "=.", text)
    self._place(text)
    return subprocess.run(
      ["bash", "-c", f"set -o pipefail\n{text} {more}"],
      cwd=self.root,
      env=self.env,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=600,
    )

  def give_runs(self, text: str) -> None:
    """Trained models that no command of this document has made."""
    text = re.sub(r"(--workdir=|--output=|-o )\S+", "", text)
    names = re.findall(
      r"\b(?:runs/\w+(?:/\*)?|WORKDIR\b|CHECKPOINT|OTHER)", text
    )
    for name in names:
      for one in (name.replace("*", "1"), name.replace("*", "2")):
        if not (self.root / one).exists():
          shutil.copytree(self._kept.run, self.root / one)
          self.give_set("digits")

  def give_set(self, name: str) -> None:
    """What no command of this document has prepared."""
    if name in _SETS and not (self.data / name).exists():
      shutil.copytree(self._kept.data_set(name), self.data / name)

  def give_weights(self, text: str) -> None:
    for name in re.findall(r"\bimagenet\w+/Mixer-\w+", text):
      self._kept.released(name)

  def _place(self, text: str) -> None:
    self._kept.write(text)
    for path in self._kept.files.iterdir():
      if not (self.root / path.name).exists():
        (self.root / path.name).symlink_to(path)
    for pattern, what in _NAMES:
      for name in re.findall(pattern, text):
        path = self.root / name
        if path.is_symlink():
          path.unlink()
        if what:
          shutil.rmtree(path, ignore_errors=True)  # A run of before was there.
          path.parent.mkdir(parents=True, exist_ok=True)
          path.symlink_to(self._kept.files / what)
    self.give_weights(text)
