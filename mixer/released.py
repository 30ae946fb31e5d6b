"""The authors' released weights: their names, where they are, downloading.

The files (.npz) are at https://storage.googleapis.com/mixer_models.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import sys
import time
from typing import Any, BinaryIO, Literal

from etils import epy

from mixer import errors, files, model, npz, progress, weights
from mixer.errors import UserError, first_line

with epy.lazy_imports():
  import requests

NAMES = {
  "imagenet1k": ("Mixer-B_16", "Mixer-L_16"),
  "imagenet21k": ("Mixer-B_16", "Mixer-L_16"),
  "sam": ("Mixer-B_16", "Mixer-B_32"),
  "gsam": (
    *("Mixer-B_16", "Mixer-B_32"),
    *("Mixer-S_16", "Mixer-S_32", "Mixer-S_8"),
  ),
}
_URL = "https://storage.googleapis.com/mixer_models"
_IMAGE_SIZE = 224  # Of all of them.
_ATTEMPTS = 5
# Before the second attempt; twice as long before each further one.
_DELAY_SECONDS = 1.0
_LARGEST_BYTES = 8 << 30  # Of a file; those released have 2e9 at most.
_TIMEOUT_SECONDS = 15.0  # To connect, and for each read.
# Those that may be gone a little later; 416 is of a part that isn't the file's.
_TRANSIENT = (408, 416, 425, 429, 500, 502, 503, 504)


def load(path: npz.Path) -> dict[str, Any]:
  """Loads weights.

  What is under that path on this machine comes first: a file is an .npz, a
  folder a workdir of train.py (its newest checkpoint) or one of its
  checkpoints; of a run that kept an average of its weights, the average. Else
  it is the name or the address of a released file, which is downloaded once.

  Args:
    path: `weights.npz`, `runs/b16`, `runs/b16/checkpoints/300`,
      `imagenet21k/Mixer-B_16` (with or without .npz), or the https:// or gs://
      address of a released file.

  Returns:
    Nested dict of float32 numpy arrays, in the current layout.

  Raises:
    UserError: nothing of the kind, not readable, not the weights of a whole
      Mixer, or not finite.
  """
  if kind(path) == "checkpoint":
    from mixer import checkpoints  # Here, as it is above this module.

    params, _ = checkpoints.load_params(os.fspath(path))
    weights.shape_of(params, f"the weights in {path}")
    weights.check_finite(params, f"the weights in {path}")
    return params
  file = resolve(path)
  if os.path.exists(_place(path)):
    return npz.load(file)
  try:
    params = npz.load(file)
    _check_is(params, _name(path))
    return params
  except UserError as e:
    raise UserError(
      f"{e} Remove {file}, which {path} stands for: it is then downloaded anew."
    ) from e


def kind(path: npz.Path) -> Literal["npz", "checkpoint"]:
  """What a path is, without reading it; UserError with all names if neither."""
  place = _place(path)
  # One of them that is gone: its reader says what is there.
  gone = place.name.isdecimal() and place.parent.name == "checkpoints"
  if os.path.isdir(place) or (gone and os.path.isdir(place.parent)):
    return "checkpoint"
  if os.path.exists(place) or _name(path):
    return "npz"
  if files.is_remote(path) and not str(path).endswith(".npz"):
    return "checkpoint"  # Asking the store is left to who reads it.
  names = [f"{folder}/{name}" for folder in NAMES for name in NAMES[folder]]
  raise UserError(
    f"there are no weights at {path}: expected an .npz file, a workdir of "
    "train.py or one of its checkpoints on this machine, or the name of a "
    f"released file: {', '.join(names)}."
  )


def resolve(path: npz.Path) -> pathlib.Path:
  """The .npz file on this machine; downloads it if it must.

  Downloaded files are in `$MIXER_CACHE/released/<folder>/<file>`, where
  MIXER_CACHE is `~/.cache/mixer` unless set. MIXER_RELEASED_URL replaces the
  address of their folders by that of a mirror.
  """
  if kind(path) == "checkpoint":
    raise UserError(f"{path} is a folder where an .npz file was expected.")
  if os.path.exists(_place(path)):
    return _place(path)
  file = _cache() / f"{_name(path)}.npz"
  if not file.exists():
    _download(f"{_base()}/{_name(path)}.npz", file)
  return file


def name_of(path: npz.Path) -> str:
  """The released file that a path stands for, or has the content of; or "".

  A copy is known where the file itself has been downloaded.
  """
  if not os.path.exists(_place(path)):
    return _name(path)
  found = npz.fingerprint(_place(path))
  for file in _cache().glob("*/*.npz"):
    name = _name(f"{file.parent.name}/{file.name}")
    with contextlib.suppress(UserError):  # Another file that is damaged.
      if name and npz.fingerprint(file) == found:
        return name
  return ""


def _cache() -> pathlib.Path:
  cache = pathlib.Path(os.environ.get("MIXER_CACHE") or "~/.cache/mixer")
  return cache.expanduser().absolute() / "released"


def _place(path: npz.Path) -> pathlib.Path:
  # Asked by os.path: pathlib raises where a name is too long.
  return pathlib.Path(os.path.expanduser(path))


def _base() -> str:
  return (os.environ.get("MIXER_RELEASED_URL") or _URL).rstrip("/")


def _name(path: npz.Path) -> str:
  """`imagenet21k/Mixer-B_16` of that, of its file or address; else ""."""
  name = os.fspath(path)
  for base in (_base(), _URL, "gs://mixer_models"):
    name = name.removeprefix(f"{base}/")
  folder, _, name = name.removesuffix(".npz").partition("/")
  return f"{folder}/{name}" if name in NAMES.get(folder, ()) else ""


def _check_is(params: weights.Params, name: str) -> None:
  """Base names are the same in every folder, so files get mixed up."""
  folder, _, base = name.partition("/")
  spec = model.parse_variant(base.removeprefix("Mixer-").replace("_", "/"))
  wanted = dataclasses.asdict(spec) | {
    "num_tokens": (_IMAGE_SIZE // spec.patch_size) ** 2,
    "num_classes": 21_843 if folder == "imagenet21k" else 1000,
  }
  found = dataclasses.asdict(weights.shape_of(params))
  if found != wanted:
    wrong = {k: v for k, v in found.items() if v != wanted[k]}
    raise UserError(f"the file is not {name}: it has {wrong}.")


def _download(url: str, file: pathlib.Path) -> None:
  """Downloads a file whole, or leaves what came of it in FILE.part.

  The process that holds a lock on the part writes it, others wait for it.
  """
  part = file.with_name(f"{file.name}.part")
  with files.writing(file, "MIXER_CACHE can name another place."):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(part, "a+b") as out:
      try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        _say(f"waiting for another process that downloads {file}")
        fcntl.flock(out, fcntl.LOCK_EX)
      if file.exists():  # Another process's part has become the file.
        return
      _receive_all(url, out, file)
      os.fsync(out.fileno())
      try:
        npz.read(part)
      except UserError as e:
        out.truncate(0)
        raise UserError(
          f"what {url} gave is not the file that was asked for; perhaps a "
          f"proxy or a log-in page answered. {e}"
        ) from e
      part.rename(file)
    files.sync_folder(file.parent)


def _receive_all(url: str, out: BinaryIO, file: pathlib.Path) -> None:
  """Appends to `out` what it lacks of the file, in several attempts."""
  for attempt in range(_ATTEMPTS):
    try:
      return _receive(url, out, file)
    except requests.RequestException as e:
      # A machine without a connection should hear so at once.
      offline = isinstance(e, requests.ConnectionError) and not out.tell()
      retry = e.response is None and (attempt or not offline)
      if e.response is not None:
        retry = e.response.status_code in _TRANSIENT
      if not retry or attempt + 1 == _ATTEMPTS:
        raise UserError(
          f"{url} can't be downloaded: {first_line(e)}. With a connection, "
          "give the same command again: it goes on where this one ended. "
          "Without one, fetch that address elsewhere and put the file at "
          f"{file} yourself."
        ) from e
      _say(f"{url}: {first_line(e)}; trying again")
      time.sleep(_DELAY_SECONDS * 2**attempt)


def _receive(url: str, out: BinaryIO, file: pathlib.Path) -> None:
  have = out.seek(0, os.SEEK_END)
  headers = {"Accept-Encoding": "identity", "User-Agent": "mixer"}
  if have:
    headers["Range"] = f"bytes={have}-"
  with requests.get(
    url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS
  ) as answer:
    if answer.status_code in (200, 416):  # The whole file comes, now or next.
      have = out.truncate(0)
    answer.raise_for_status()
    hops = [x.url for x in (*answer.history, answer)]
    if bad := [x for x in hops if url[:6] == "https:" != x[:6]]:
      raise UserError(f"{url} leads to {bad[0]}, which is no https.")
    length = answer.headers.get("Content-Length", "")
    total = have + int(length) if length.isdecimal() else None
    size = f" ({total / 1e6:.0f} MB)" if total else ""
    _say(f"{'resuming' if have else 'downloading'} {url}{size} to {file}")
    with progress.Progress() as bar:
      for block in answer.iter_content(1 << 16):
        have += out.write(block)
        if max(have, total or 0) > _LARGEST_BYTES:
          out.truncate(0)
          raise UserError(f"{url} is no such file: it is too large.")
        bar.show(file.name, have, total)
    out.flush()


def _say(message: str) -> None:
  print(errors.printable(message), file=sys.stderr, flush=True)
