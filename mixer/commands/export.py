"""Writes a trained model to a file that other programs take.

  python -m mixer export --checkpoint=WORKDIR --to=npz --output=weights.npz
  python -m mixer export --checkpoint=WORKDIR --to=hf --output=DIR1
  python -m mixer export --checkpoint=WORKDIR --to=onnx --output=model.onnx
  python -m mixer export --checkpoint=WORKDIR --to=stablehlo --output=DIR2

npz: weights in the layout of the released files, which every command here
takes. hf (or timm): a folder for the Hugging Face hub with a model card, or one
file, which timm loads in PyTorch. onnx: the model from uint8 pixels to logits.
stablehlo: the same as a program for JAX, with the same bits. Class names, the
kind of loss and the preprocessing of images go along: inside of .onnx and
.safetensors, in info.json of a folder, or in FILE.json beside FILE.

Before anything is put in place, what was written is run beside the model, on
the images given or on random ones, and a table says how far the two are apart.
Beyond the bound nothing is kept, and the exit code is 1. All this runs on the
CPU, unless --platform names another.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import pathlib
import secrets
import shlex
import shutil
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epy

from mixer import files, flags
from mixer.errors import UserError, first_line

with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from mixer import block, predictor, sharding, train_step, trained, weights

_Outputs = dict[str, Any]  # Features `[N, C]` and, with a head, logits.


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  flags.add_model(parser)
  parser.set_defaults(platform="cpu")
  add = parser.add_argument
  choices = "npz", "hf", "timm", "onnx", "stablehlo"
  text = "hf and stablehlo: a folder, or FILE.safetensors, FILE.stablehlo"
  add("--to", choices=choices, default="npz", help=text)
  text = "a file, or a new folder"
  add("-o", "--output", required=True, metavar="PATH", help=text)
  text = "files to compare on, in place of random images"
  add("--images", nargs="+", default=(), metavar="IMAGE", help=text)
  add(
    "--platforms",
    type=flags.some_of(("cpu", "cuda", "rocm", "tpu")),
    default=("cpu", "cuda", "tpu"),
    metavar="NAMES",
    help="that a stablehlo program is for; cpu,cuda,tpu",
  )


def main(args: argparse.Namespace) -> None:
  """Does what the command line says."""
  form: Any = _npz()
  if args.to != "npz":
    try:
      name = {"hf": "timm"}.get(args.to, args.to)
      form = importlib.import_module(f"mixer.export_{name}")
    except ImportError as e:
      raise UserError(_missing(e)) from e
  path = pathlib.Path(args.output).expanduser()
  with _aside(path, form) as (target, place):
    model = trained.of_flags(args)
    more = ()
    if args.to == "stablehlo":
      more = (args.platforms,)
    else:
      _refuse_variant(model)
    with files.writing(path):
      form.write(model, target, *more)
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    missing = f"the program is for {','.join(args.platforms)}, not for {here}"
    table = ""
    if not more or here in args.platforms:
      try:
        table, missing = _verify(model, form, target, args.images), ""
      except ImportError as e:
        missing = _missing(e)
    placed = place()
  size = sum(file.stat().st_size for file in placed)
  count = sum(x.size for x in jax.tree.leaves(model.params))
  loading = textwrap.dedent(form.loading(model, path))
  print(
    f"{args.output}: {count:,} parameters of {model.origin}; "
    f"{size / 1e6:,.1f} MB in {', '.join(file.name for file in placed)}\n\n"
    f"{table}To load it:\n{textwrap.indent(loading, '  ')}",
    flush=True,
  )
  if args.to == "hf" and path.is_dir():
    print(
      f"\nTo publish it:\n\n  hf upload OWNER/NAME {shlex.quote(str(path))}"
    )
  if missing:
    print(f"\nNOT VERIFIED: {missing}.", file=sys.stderr)


def _missing(error: ImportError) -> str:
  return (
    f"packages can't be imported ({first_line(error)}): make setup-export, or "
    "pip install onnx onnxruntime safetensors timm torch"
  )


def _refuse_variant(model: trained.Trained) -> None:
  """Refuses all but the model of the paper's section 2."""
  permute, mixing = model.module.permute, model.module.mixing
  if permute or mixing != block.TokenMixing():
    raise UserError(
      f"{model.source} is another model than the paper's: {mixing}, permute="
      f"{permute!r}. Only --to=stablehlo holds such."
    )


def _npz() -> Any:
  """The format of the released files, with metadata beside it."""

  def write(model: trained.Trained, target: pathlib.Path) -> None:
    weights.save(model.params, target)
    trained.write_beside(target, model)

  def loading(model: trained.Trained, path: pathlib.Path) -> str:
    return f"\nimport mixer\n\nmodel = mixer.load({str(path)!r})"

  found: Any = dict(SUFFIX=".npz", MEMBERS=(), BOUND=0.0)
  return types.SimpleNamespace(write=write, loading=loading, **found)


@contextlib.contextmanager
def _aside(
  path: pathlib.Path, form: Any
) -> Iterator[tuple[pathlib.Path, Callable[[], list[pathlib.Path]]]]:
  """Where to write to at first, and a function that puts it in place.

  What is not put in place is removed. Of a link the target changes.
  """
  is_folder = bool(form.MEMBERS) and path.suffix != form.SUFFIX
  fits = path.suffix == form.SUFFIX and not path.is_dir()
  if is_folder and path.is_dir():
    fits = {file.name for file in path.iterdir()} <= {*form.MEMBERS}
  elif is_folder:
    fits = not path.exists()
  if not fits or (path.exists() and not is_folder and files.in_place(path)):
    folder = f", or of a new folder for {' and '.join(form.MEMBERS)}"
    raise UserError(
      f"{path} can't be written: expected the name of a file that ends in "
      f"{form.SUFFIX}{folder if form.MEMBERS else ''}."
    )
  aside = path.resolve().parent / f".{path.name}.{secrets.token_hex(4)}"
  target = aside if is_folder else aside / path.name
  folder = path if is_folder else path.parent
  last = form.MEMBERS[-1] if is_folder else path.name

  def place() -> list[pathlib.Path]:
    # Without the last file the others are nothing.
    names = sorted(os.listdir(aside), key=lambda name: (name == last, name))
    with files.writing(path):
      folder.mkdir(exist_ok=True)
      for name in names:
        with open(aside / name, "rb") as f:
          os.fsync(f.fileno())
      if len(names) > 1:  # Else an old one goes with new ones for a moment.
        pathlib.Path(os.path.realpath(folder / last)).unlink(missing_ok=True)
        files.sync_folder(folder)
      for name in names:
        (aside / name).replace(os.path.realpath(folder / name))
    files.sync_folder(folder)
    return [folder / name for name in names]

  try:
    with files.writing(path):
      aside.mkdir(parents=True)
    yield target, place
  except UserError as e:
    message = str(e).replace(str(target), str(path))
    raise UserError(message, lines=True) from e
  finally:
    shutil.rmtree(aside, ignore_errors=True)


def runner(
  model: trained.Trained, dtype: str = ""
) -> Callable[[np.ndarray], _Outputs]:
  """Runs the model on one device: with a `dtype` as exactly as it can."""
  module = model.module.clone(dtype=jnp.dtype(dtype)) if dtype else model.module
  mesh = sharding.make_mesh(jax.devices()[:1])
  functions = train_step.Inference(module, model.loss, model.num_classes, mesh)
  params = jax.device_put(model.params, sharding.replicated(mesh))
  by_name = {"features": functions.features}
  if model.num_classes:
    by_name["logits"] = functions.logits

  def run(batch: np.ndarray) -> _Outputs:
    masked = {"image": batch, "mask": np.ones(len(batch), bool)}
    with jax.default_matmul_precision("highest" if dtype else None):
      return {k: np.asarray(f(params, masked)[0]) for k, f in by_name.items()}

  return run


def _verify(
  model: trained.Trained, form: Any, target: pathlib.Path, images: Sequence[Any]
) -> str:
  """Runs what was written beside the model; a table of the differences."""
  found: dict[str, Any] = {}
  if form.SUFFIX == ".npz":
    found["run"] = runner(trained.load(str(target)))
  else:  # By the lines that users get.
    lines = textwrap.dedent(form.loading(model, target)).strip()
    imports, _, rest = lines.partition("\n\n")
    try:
      exec(imports, found)
    except Exception as e:  # Of two that don't fit each other, RuntimeError.
      raise ImportError(first_line(e)) from e
    exec(rest, found)
  own = runner(model, "float32" if form.BOUND else "")
  fitted = []
  for image in images or random_images(model.image_size):
    try:
      fitted.append(predictor.fit(image, model))
    except ValueError as e:
      raise UserError(f"{image} can't be used: {e}.") from e
  batches = np.stack(fitted[:1]), np.stack(fitted[-1:] + fitted)  # Two sizes.
  ours, theirs = ([f(batch) for batch in batches] for f in (own, found["run"]))
  bound = f"{form.BOUND:.0e}" if form.BOUND else "equal bits"
  table = (
    f"compared on {len(fitted)} images with what was written\n"
    f"{'':10}{'absolute':>12}{'relative':>12}{'bound':>12}\n"
  )
  for name in ours[0]:
    a, b = (np.concatenate([x[name] for x in each]) for each in (ours, theirs))
    absolute = float(np.abs(a.astype(np.float64) - b).max())
    relative = absolute / (float(np.abs(a).max()) or 1.0)
    table += f"{name:10}{absolute:12.1e}{relative:12.1e}{bound:>12}\n"
    if not relative <= form.BOUND:  # NaN isn't.
      raise UserError(
        f"what was written of {model.source} computes something else: {name} "
        f"differ by {relative:.1e} of their largest magnitude, where {bound} "
        "is allowed. Nothing was kept. Take another version of the package "
        "that runs it, or report this."
      )
  return f"{table}\n"


def random_images(size: tuple[int, int]) -> list[np.ndarray]:
  """Images uint8 `[H, W, 3]`: noise, of another shape, and flat."""
  rng, (h, w) = np.random.default_rng(0), size
  shapes = (h, w, 3), (h + 1, 2 * w, 3)
  noise = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
  return [*noise, *(np.full((h, w, 3), value, np.uint8) for value in (0, 255))]
