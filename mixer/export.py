"""Files for other programs: written aside, run beside the model, then placed.

What stood under the name stays until what was written has been proven to
compute the same, and nothing half-written ever takes its place.
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
  predictor,
  preprocess,
  sharding,
  train_step,
  trained,
)
from mixer import metadata as metadata_lib
from mixer.errors import UserError, first_line

# Nobody means a folder by them.
_SUFFIXES = (".npz", ".onnx", ".safetensors", ".stablehlo", ".pt", ".pth")
# Images in one batch.
_BATCH = 8
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
    return sorted(folder.iterdir(), key=lambda f: (f.name == self.last, f.name))

  def commit(self) -> None:
    """Puts what was written where it belongs."""
    with files.writing(self.path):
      folder = self.path if self.is_folder else self.path.parent
      folder.mkdir(exist_ok=True)
      written = self.written()
      for file in written:
        with open(file, "rb") as f:
          os.fsync(f.fileno())
      if len(written) > 1:  # Else an old one goes with new ones for a moment.
        last = pathlib.Path(os.path.realpath(folder / self.last))
        last.unlink(missing_ok=True)
      for file in written:  # Of a link it is the target that is replaced.
        target = os.path.realpath(folder / file.name)
        if files.in_place(target):
          shutil.copyfile(file, target)
        else:
          file.replace(target)
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
  """Checks a name, and opens a folder beside it to write to.

  Args:
    output: of the user: a file or, where there are `members`, a folder.
    suffix: of the file's name.
    members: names of the files that are made in a folder, the one last without
      which the others are nothing.

  Yields:
    The place; what isn't committed is removed. A UserError that is raised
    inside names `output` in place of the folder beside it.
  """
  path = pathlib.Path(output).expanduser()
  is_folder = bool(members) and path.suffix != suffix
  expected = f"a name ending in {suffix}"
  if members:
    expected += f", or the name of a folder for {' and '.join(members)}"
  wrong = ""
  if path.suffix in _SUFFIXES if is_folder else path.suffix != suffix:
    wrong = "it has another suffix"
  elif path.is_dir() if not is_folder else path.is_file():
    wrong = f"it is a {'file' if is_folder else 'folder'}"
  elif is_folder and path.exists():
    others = sorted({f.name for f in path.iterdir()} - {*members})
    if others:
      wrong = f"that folder holds something else ({', '.join(others[:3])})"
      expected += ", new, empty or from an earlier export"
  if wrong:
    raise UserError(f"{path} can't be written: {wrong}; expected {expected}.")
  files.make_parent(path)
  real = path if files.in_place(path) else path.resolve()
  aside = real.parent / f".{path.name}.{secrets.token_hex(4)}"
  with files.writing(path):
    aside.mkdir()
  part = aside if is_folder else aside / path.name
  try:
    yield Place(path, part, is_folder, members[-1] if is_folder else path.name)
  except UserError as e:
    raise UserError(str(e).replace(str(part), str(path)), lines=True) from e
  finally:
    shutil.rmtree(aside, ignore_errors=True)


class MissingError(UserError):
  """A package isn't installed; the message says how to get it."""


def load(*names: str) -> Any:
  """Imports a module, or a tuple of them, that not everybody has."""
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


def write_npz(model: trained.Trained, place: Place) -> Written:
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


def verify(
  model: trained.Trained, written: Written, images: Sequence[Any]
) -> str:
  """Runs what was written beside the model; a table of the differences.

  Raises:
    UserError: they differ beyond the bound, or in what they say of themselves.
  """
  assert written.run and written.metadata
  found = dataclasses.replace(written.metadata, dtype="")
  metadata_lib.check(found, model.metadata, "what was written")
  batches = _batches(images, model)
  dtype = "float32" if written.bound else ""
  ours = outputs(model, batches, dtype)
  theirs = _joined([written.run(batch) for batch in batches])
  sizes = [str(len(batch)) for batch in batches]
  bound = f"{written.bound:.0e}" if written.bound else "equal bits"
  lines = [
    f"compared on {sum(map(len, batches))} images, in batches of "
    f"{', '.join(sizes[:-1])} and {sizes[-1]}: mixer and {written.against}",
    f"{'':10}{'absolute':>12}{'relative':>12}{'bound':>12}",
  ]
  wrong = []
  for name, wanted in ours.items():
    absolute, relative = difference(wanted, theirs[name])
    lines.append(f"{name:10}{absolute:12.1e}{relative:12.1e}{bound:>12}")
    if not relative <= written.bound:  # NaN isn't.
      wrong.append(f"{name} differ by {relative:.1e}")
  if wrong:
    raise UserError(
      f"what was exported of {model.source} computes something else in "
      f"{written.against}: {', '.join(wrong)}, relative to their largest "
      f"magnitude, where {bound} is allowed. Nothing was kept. Take another "
      "version of that package, or report it."
    )
  if "logits" in ours:
    best = (x["logits"].argmax(axis=-1) for x in (ours, theirs))
    lines.append(
      f"{'top-1':10}{np.equal(*best).sum()} of {sum(map(len, batches))} agree"
    )
  if dtype and jnp.dtype(model.module.dtype) == jnp.bfloat16:
    name, wanted = list(ours.items())[-1]
    _, apart = difference(wanted, outputs(model, batches)[name])
    lines += [
      "Both in float32, in which the export computes; in the model's own",
      f"bfloat16 {name} are {apart:.1e} (relative) from that.",
    ]
  return "\n".join(lines)


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
  """The largest one; the same as a share of the largest magnitude of ours."""
  if ours.shape != theirs.shape:
    return np.inf, np.inf
  absolute = float(np.abs(ours.astype(np.float64) - theirs).max())
  return absolute, absolute / (float(np.abs(ours).max()) or 1.0)


def random_images(size: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
  """Six images uint8 `[H, W, 3]`: noise, smooth, flat; of several shapes."""
  rng = np.random.default_rng(seed)
  h, w = size

  def noise(height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)

  flat = [np.full((h, w, 3), value, np.uint8) for value in (0, 255)]
  smooth = [
    preprocess.resize(noise(4, 4), sides) for sides in ((h, 3 * w), (2 * h, w))
  ]
  return [noise(h, w), *flat, *smooth, noise(h + 1, 2 * w)]


def _batches(images: Sequence[Any], takes: predictor.Takes) -> list[np.ndarray]:
  """The first image alone, then more at once: two sizes of batch at least."""
  fitted = [
    predictor.read(i, takes) if isinstance(i, str) else predictor.fit(i, takes)
    for i in images
  ]
  rest = fitted[1:] or (fitted[0], fitted[0])
  starts = range(0, len(rest), _BATCH)
  cut = [np.stack(rest[start : start + _BATCH]) for start in starts]
  return [fitted[0][None], *cut]


def _joined(rows: Sequence[Outputs]) -> Outputs:
  return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]}


def outputs(
  model: trained.Trained, batches: Sequence[np.ndarray], dtype: str = ""
) -> Outputs:
  """What the model computes of batches, see `runner`."""
  run = runner(model, dtype)
  return _joined([run(batch) for batch in batches])


def runner(
  model: trained.Trained, dtype: str = ""
) -> Callable[[np.ndarray], Outputs]:
  """Runs the model on uint8 `[B, H, W, 3]`, on one device.

  In float32 matmuls are as exact as the device has them; without a `dtype` bits
  are those of evaluation.
  """
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
