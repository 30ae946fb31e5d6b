"""A list of a checkpoint's files, by which damage shows before they are read.

The digests of the arrays (`digests`) prove what counts. This list, made right
after the commit, tells of any file that is gone, cut off or changed, by its
name, also of those that hold no array; and what reads arrays needn't meet such
files, which makes it noisy. Of large files it compares the sizes alone.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Collection

from etils import epath

from mixer import files as files_lib
from mixer.storage import finding

_NAME = "files.json"
# Bytes up to which a file's content is compared.
_SMALL = 1 << 20


def write(path: epath.Path) -> None:
  """Puts the list into a checkpoint.

  Raises:
    OSError: the files can't be read.
    UserError: the list can't be written.
  """
  names = list(finding.files_in(path))
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = pool.map(lambda name: _describe(path / name), names)
    files = dict(sorted(zip(names, found, strict=True)))
  with files_lib.atomic_write(path / _NAME, "w") as f:
    json.dump({"files": files, "sha256": files_lib.json_sha256(files)}, f)


def damage(path: epath.Path, wanted: Collection[str] | None = None) -> str:
  """What is wrong with a checkpoint's files, "" where nothing is.

  Args:
    path: of the checkpoint. Without a list, as when the save was killed before
      it was made, nothing is wrong.
    wanted: folders to look at, beside the files that are in none; None: all.

  Raises:
    OSError: files can't be read.
  """
  try:
    content = json.loads((path / _NAME).read_text())
  except FileNotFoundError:
    return ""
  except ValueError:
    return f"its file {_NAME} is changed"
  files = content.get("files") if isinstance(content, dict) else None
  if files is None or content.get("sha256") != files_lib.json_sha256(files):
    return f"its file {_NAME} is changed"
  names = [
    n
    for n in files
    if wanted is None or "/" not in n or n.split("/")[0] in wanted
  ]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    found = pool.map(lambda name: _wrong(path / name, *files[name]), names)
    wrong = [
      f"its file {n} {what}"
      for n, what in zip(names, found, strict=True)
      if what
    ]
  more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
  return wrong[0] + more if wrong else ""


def _wrong(file: epath.Path, size: int, sha256: str) -> str:
  try:
    now, content = _describe(file)
  except FileNotFoundError:
    return "is gone"
  if now != size:
    return f"has {now} bytes where {size} were written"
  return "is changed" if content != sha256 else ""


def _describe(file: epath.Path) -> tuple[int, str]:
  """Size in bytes, and SHA-256 of what is small."""
  size = file.stat().length
  small = size <= _SMALL
  return size, hashlib.sha256(file.read_bytes()).hexdigest() if small else ""
