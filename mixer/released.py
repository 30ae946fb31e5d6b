"""Files of weights by name or path; downloading the authors' released ones.

Those (.npz) are at https://storage.googleapis.com/mixer_models.
"""

import fcntl
import importlib.util
import os
import pathlib
import sys
from typing import Any, BinaryIO

from etils import epy

from mixer import errors, files, hub, progress, timm_format, weights
from mixer.errors import UserError, first_line

with epy.lazy_imports():
  import requests
  import urllib3
  from requests import adapters

NAMES = {
  "imagenet1k": ("Mixer-B_16", "Mixer-L_16"),
  "imagenet21k": ("Mixer-B_16", "Mixer-L_16"),
  "sam": ("Mixer-B_16", "Mixer-B_32"),
  "gsam": tuple(f"Mixer-{x}" for x in ("B_16", "B_32", "S_16", "S_32", "S_8")),
}
# timm's conversions; what their names say of fine-tuning is not so.
COPIES = {
  "imagenet21k/Mixer-B_16": "timm/mixer_b16_224.goog_in21k",
  "imagenet21k/Mixer-L_16": "timm/mixer_l16_224.goog_in21k",
  "imagenet1k/Mixer-B_16": "timm/mixer_b16_224.goog_in21k_ft_in1k",
  "imagenet1k/Mixer-L_16": "timm/mixer_l16_224.goog_in21k_ft_in1k",
}
_URL = "https://storage.googleapis.com/mixer_models"
_TIMEOUT = 15.0  # Seconds to connect, and for each read.
_BUSY = (429, 500, 502, 503, 504)  # The statuses with which to try again.
_DELAY = 1.0  # Seconds, before a further attempt twice as long.
_LARGEST = 8 << 30  # Bytes of a file; those released have 2e9 at most.


def load(path: files.Path) -> dict[str, Any]:
  """Loads the weights in a file, or those of a name.

  Args:
    path: `weights.npz`, a .safetensors file or a folder with that and
      config.json, `timm/NAME` or `hf-hub:OWNER/NAME`; `imagenet21k/Mixer-B_16`
      (with or without .npz), or the https:// or gs:// address of a released
      file. What is on this machine comes first; others are downloaded once.

  Returns:
    Nested dict of float32 numpy arrays, under the current names.

  Raises:
    UserError: nothing of the kind, not readable, not the weights of a whole
      Mixer, or not finite.
  """
  file = resolve(path)
  if file is None:
    raise UserError(f"{path} is a folder where an .npz file was expected.")
  return read(file, path)


def read(file: pathlib.Path, path: files.Path) -> dict[str, Any]:
  """The weights in a file to which `path` resolves."""
  try:
    is_timm = file.suffix == timm_format.SUFFIX
    return (timm_format.load if is_timm else weights.load)(file)
  except UserError as e:
    again = f" Remove {os.path.realpath(file)}: it is then downloaded anew."
    named = name_of(path) or hub.is_name(str(path))
    raise UserError(f"{e}{again if named else ''}") from e


def resolve(path: files.Path) -> pathlib.Path | None:
  """The file of weights, downloaded if it must be; None for a run.

  Downloaded files are in `$MIXER_CACHE/released/<folder>/<file>`, where
  MIXER_CACHE is `~/.cache/mixer` unless set. MIXER_RELEASED_URL replaces the
  address of their folders by that of a mirror. What is on the Hugging Face hub
  is in its own cache.
  """
  place = pathlib.Path(path).expanduser()
  # Of a checkpoint that is gone, and of a bucket, its reader tells more.
  if os.path.exists(place / timm_format.WEIGHTS):
    return place / timm_format.WEIGHTS
  gone = place.name.isdecimal() and place.parent.name == "checkpoints"
  if os.path.isdir(place) or (gone and os.path.isdir(place.parent)):
    return None
  if os.path.exists(place):
    return place
  if name := name_of(path):
    if not (file := _cache() / f"{name}.npz").exists():
      try:
        _download(f"{_base()}/{name}.npz", file)
      except UserError as e:
        return _copy(name, e)
    return file
  if hub.is_name(str(path)):
    return hub.fetch(str(path)) / timm_format.WEIGHTS
  if files.is_remote(path) and not str(path).endswith(".npz"):
    return None
  names = [f"{folder}/{name}" for folder in NAMES for name in NAMES[folder]]
  raise UserError(
    f"there are no weights at {path}: expected an .npz or .safetensors file, a "
    "folder with model.safetensors, a workdir of train.py or one of its "
    "checkpoints on this machine; timm/NAME or hf-hub:OWNER/NAME; or the name "
    f"of a released file: {', '.join(names)}."
  )


def name_of(path: files.Path) -> str:
  """`imagenet21k/Mixer-B_16` of that, its address or its file here; else ""."""
  name = os.path.expanduser(path)
  if os.path.exists(name):
    name = os.path.relpath(name, _cache())
  for base in (_base(), _URL, "gs://mixer_models"):
    name = name.removeprefix(f"{base}/")
  folder, _, name = name.removesuffix(".npz").partition("/")
  return f"{folder}/{name}" if name in NAMES.get(folder, ()) else ""


def _copy(name: str, error: UserError) -> pathlib.Path:
  """The hub's copy of a released file that can't be downloaded."""
  copy = COPIES.get(name)
  if not copy or not importlib.util.find_spec("huggingface_hub"):
    raise error
  _say(f"{error} Instead, {copy} on the Hugging Face hub is taken.")
  try:
    return hub.fetch(copy) / timm_format.WEIGHTS
  except UserError as e:
    raise UserError(f"{error} Nor is its copy to be had: {e}") from e


def _cache() -> pathlib.Path:
  cache = pathlib.Path(os.environ.get("MIXER_CACHE") or "~/.cache/mixer")
  return cache.expanduser().absolute() / "released"


def _base() -> str:
  return (os.environ.get("MIXER_RELEASED_URL") or _URL).rstrip("/")


def _download(url: str, file: pathlib.Path) -> None:
  """Downloads a file whole; of several processes one does, others wait."""
  part = file.with_name(f"{file.name}.part")
  with files.writing(file, "MIXER_CACHE can name another place."):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "ab") as out:
      _say(f"downloading {url} to {file}, one process at a time")
      fcntl.flock(out, fcntl.LOCK_EX)
      if file.exists():  # Another process's part has become the file.
        return
      out.truncate(0)
      try:
        _receive(url, out, file.name)
        weights.read(part)
      except requests.RequestException as e:
        out.truncate(0)
        raise UserError(
          f"{url} can't be downloaded: {first_line(e)}. Give the same command "
          f"again, or fetch that address elsewhere and put the file at {file} "
          "yourself."
        ) from e
      except UserError as e:
        out.truncate(0)
        message = f"{url} gave another file; perhaps a proxy answered: {e}"
        raise UserError(message) from e
      part.rename(file)
    files.sync_folder(file.parent)


def _receive(url: str, out: BinaryIO, name: str) -> None:
  # A machine without a connection should hear so at once.
  retries = urllib3.Retry(3, 1, status_forcelist=_BUSY, backoff_factor=_DELAY)
  with requests.Session() as session, progress.Progress() as bar:
    session.adapters.clear()  # So that https doesn't lead to http.
    for scheme in {"https", url.partition(":")[0]}:
      session.mount(f"{scheme}://", adapters.HTTPAdapter(max_retries=retries))
    with session.get(url, stream=True, timeout=_TIMEOUT) as answer:
      answer.raise_for_status()
      total, have = int(answer.headers.get("Content-Length", 0)), 0
      for block in answer.iter_content(1 << 16):
        have += out.write(block)
        if max(have, total) > _LARGEST:
          raise UserError("it is too large.")
        bar.show(name, have, total)
  out.flush()
  os.fsync(out.fileno())


def _say(message: str) -> None:
  print(errors.printable(message), file=sys.stderr, flush=True)
