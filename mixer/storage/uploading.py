"""Files that grow, written here and kept in a workdir wherever that lies."""

import concurrent.futures
import pathlib
import tempfile
import time
from typing import Protocol

from etils import epath

from mixer import workdir as workdir_lib
from mixer.storage import lock_file

# Seconds between two uploads, unless one is asked for.
EVERY = 30.0


class Place(Protocol):
  """Where files are written, and how they come to the workdir.

  Attributes:
    local: the folder to write them in.
  """

  local: pathlib.Path

  def keep_up(self) -> None:
    """Something was written; doesn't wait until it has arrived."""
    ...

  def catch_up(self) -> None:
    """Returns when all that was written has arrived."""
    ...

  def close(self) -> None:
    """Ends."""
    ...


def place(workdir: epath.Path) -> Place:
  """The place for a workdir that `workdir.path` has made."""
  remote = workdir_lib.is_remote(workdir)
  return _Uploaded(workdir) if remote else _Here(workdir)


class _Here:
  """On a local disk: written where it belongs."""

  def __init__(self, workdir: epath.Path):
    self.local = pathlib.Path(workdir)

  def keep_up(self) -> None:
    pass

  def catch_up(self) -> None:
    pass

  def close(self) -> None:
    pass


class _Uploaded:
  """In an object store: written into a temporary folder and copied whole.

  What can't be uploaded now and then, by a thread, is tried again the next
  time; what `catch_up` can't upload is an error.
  """

  def __init__(self, workdir: epath.Path):
    self._workdir = workdir
    self._folder = tempfile.TemporaryDirectory(prefix="mixer-")
    self.local = pathlib.Path(self._folder.name)
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "upload")
    self._upload = concurrent.futures.Future[None]()
    self._upload.set_result(None)
    self._last = time.monotonic()
    self._arrived: dict[str, lock_file.Content] = {}

  def keep_up(self) -> None:
    if time.monotonic() - self._last > EVERY and self._upload.done():
      self._start()

  def catch_up(self) -> None:
    concurrent.futures.wait([self._upload])
    self._start()
    self._upload.result()

  def close(self) -> None:
    try:
      self.catch_up()
    finally:
      self._thread.shutdown()
      self._folder.cleanup()

  def _start(self) -> None:
    self._last = time.monotonic()
    # Read at once: the thread must not see a line that is half written.
    files = {
      str(path.relative_to(self.local)): path.read_bytes()
      for path in sorted(self.local.rglob("*"))
      if path.is_file()
    }
    self._upload = self._thread.submit(self._send, files)

  def _send(self, files: dict[str, bytes]) -> None:
    for name, data in files.items():
      file = lock_file.open_file(self._workdir / name)
      before = self._arrived.get(name) or file.read()
      if before and before.data == data:
        self._arrived[name] = before
        continue
      written = file.write(data, before) or file.read()
      # If it was written but the answer got lost, it reads as it should.
      if written is None or written.data != data:
        raise OSError("another run writes there, too")
      self._arrived[name] = written
