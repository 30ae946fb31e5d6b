"""Files for other programs: written aside, run beside the model, then placed.

What stood under the name stays until what was written has been proven to
compute the same.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import (
  __version__,
  block,
  files,
  npz,
  sharding,
  train_step,
  trained,
)
from mixer import metadata as metadata_lib
from mixer.errors import UserError, first_line

SUFFIX, PACKAGES, MEMBERS = ".npz", (), ()  # Of `write`.
# Nobody means a folder by them.
_SUFFIXES = (".npz", ".onnx", ".safetensors", ".stablehlo", ".pt", ".pth")
# Features `[N, C]` and, with a head, logits `[N, K]`, by these names.
Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Place:
  """Where an export goes."""

  path: pathlib.Path  # What the user asked for.
  part: pathlib.Path  # Where to write instead, a file or a folder.
  is_folder: bool
  last: str  # The file without which the others are nothing.

  def written(self) -> list[pathlib.Path]:
    """All files in `part`, or beside it."""
    folder = self.part if self.is_folder else self.part.parent
    return sorted(folder.iterdir(), key=lambda f: (f.name == self.last, f))

  def commit(self) -> None:
    """Puts what was written where it belongs; of a link the target changes."""
    with files.writing(self.path):
      folder = self.path if self.is_folder else self.path.parent
      folder.mkdir(exist_ok=True)
      written = self.written()
      for file in written:
        with open(file, "rb") as f:
          os.fsync(f.fileno())
      if len(written) > 1:  # Else an old one goes with new ones for a moment.
        main = os.path.realpath(folder / self.last)
        pathlib.Path(main).unlink(missing_ok=True)
        files.sync_folder(os.path.dirname(main))
      for file in written:
        file.replace(os.path.realpath(folder / file.name))
    files.sync_folder(folder)


@dataclasses.dataclass(frozen=True)
class Written:
  """What an export has written, and how to run it."""

  loading: str  # Lines of Python that load it, from its final place.
  notes: tuple[str, ...] = ()  # Sentences for the user.
  missing: str = ""  # What there lacks to run it, and how to get that.
  against: str = ""  # What runs it, as "onnxruntime 1.32.0".
  # On differences, relative to the largest magnitude; 0: equal bits.
  bound: float = 0.0
  run: Callable[[np.ndarray], Outputs] | None = None  # uint8 [B, H, W, 3] ->
  metadata: metadata_lib.Metadata | None = None  # Read back.


@contextlib.contextmanager
def place(
  output: str, suffix: str, members: Sequence[str] = ()
) -> Iterator[Place]:
  """Checks a user's name, and opens a folder beside it to write to.

  The name is that of a file with this suffix or, where there are `members`, of
  a folder for files of these names. What isn't committed is removed.
  """
  path = pathlib.Path(output).expanduser()
  is_folder = bool(members) and path.suffix != suffix
  expected = f"a name ending in {suffix}"
  if members:
    expected += f", or the name of a folder for {' and '.join(members)}"
  wrong = ""
  if path.suffix in _SUFFIXES if is_folder else path.suffix != suffix:
    wrong = "it has another suffix"
  elif path.is_file() if is_folder else path.is_dir():
    wrong = f"it is a {'file' if is_folder else 'folder'}"
  elif not path.is_dir() and files.in_place(path):
    wrong = "it is a pipe or a device"
  elif is_folder and path.exists():
    others = sorted({f.name for f in path.iterdir()} - {*members})
    if others:
      wrong = f"that folder holds something else ({', '.join(others[:3])})"
  if wrong:
    raise UserError(f"{path} can't be written: {wrong}; expected {expected}.")
  aside = path.resolve().parent / f".{path.name}.{secrets.token_hex(4)}"
  part = aside if is_folder else aside / path.name
  try:
    with files.writing(path):
      aside.mkdir(parents=True)
    yield Place(path, part, is_folder, members[-1] if is_folder else path.name)
  except UserError as e:
    raise UserError(str(e).replace(str(part), str(path)), lines=True) from e
  finally:
    shutil.rmtree(aside, ignore_errors=True)


class MissingError(UserError):
  """A package isn't installed; the message says how to get it."""


def load(*names: str) -> Any:
  """Imports modules that not everybody has: a tuple, or the only one."""
  found, missing, why = [], [], ""
  for name in names:
    try:
      found.append(importlib.import_module(name))
    except Exception as e:  # Of two that don't fit each other, RuntimeError.
      missing.append(name.partition(".")[0])
      why = first_line(e)
  if missing:
    raise MissingError(
      f"{' and '.join(missing)} can't be imported ({why}); install what is "
      f"missing by: pip install {' '.join(missing)}"
    )
  return found[0] if len(found) == 1 else tuple(found)


def refuse_variant(model: trained.Trained, what: str) -> None:
  """Refuses all but the model of the paper's section 2, for `what`."""
  permute, mixing = model.module.permute, model.module.mixing
  if permute or mixing != block.TokenMixing():
    how = f"has its images' {permute} permuted" if permute else f"has {mixing}"
    raise UserError(
      f"{model.source} is another model than the paper's: it {how}, which "
      f"{what} can't hold. --to=stablehlo holds every model."
    )


def write(model: trained.Trained, place: Place) -> Written:
  """Writes a file as the released ones are, and metadata beside it."""
  refuse_variant(model, "an .npz file")
  npz.save(model.params, place.part)
  metadata_lib.write_beside(
    place.part,
    dataclasses.replace(
      model.metadata, dtype=jnp.dtype(model.module.dtype).name
    ),
    mixer_version=__version__,
    source=model.origin,
  )
  again = trained.load(str(place.part))
  return Written(
    "import numpy\n\n"
    f'weights = dict(numpy.load("{place.path}", allow_pickle=False))',
    (
      "Classes, loss and preprocessing are in "
      f"{metadata_lib.beside(place.path).name} beside it, where mixer reads "
      "them; the two belong together.",
    ),
    against="the file, loaded again",
    run=runner(again),
    metadata=again.metadata,
  )


def outputs(
  run: Callable[[np.ndarray], Outputs], batches: Sequence[np.ndarray]
) -> Outputs:
  """What comes of all batches."""
  rows = [run(batch) for batch in batches]
  return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}


def runner(
  model: trained.Trained, dtype: str = ""
) -> Callable[[np.ndarray], Outputs]:
  """Runs the model on one device: with a `dtype` as exactly as it can."""
  module = model.module.clone(dtype=jnp.dtype(dtype)) if dtype else model.module
  mesh = sharding.make_mesh(jax.devices()[:1])
  functions = train_step.Inference(module, model.loss, model.num_classes, mesh)
  params = jax.device_put(model.params, sharding.replicated(mesh))
  by_name = {"features": functions.features}
  if model.num_classes:
    by_name["logits"] = functions.logits

  def run(batch: np.ndarray) -> Outputs:
    masked = {"image": batch, "mask": np.ones(len(batch), bool)}
    with jax.default_matmul_precision("highest" if dtype else None):
      return {k: np.asarray(f(params, masked)[0]) for k, f in by_name.items()}

  return run
