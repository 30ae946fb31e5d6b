"""What can go wrong while TFDS prepares a set, in sentences."""

import contextlib
import logging
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from mixer.datasets import catalog
from mixer.errors import UserError


@contextlib.contextmanager
def retries_told() -> Iterator[None]:
  """One sentence in place of urllib3's warning for each of ten attempts."""
  logger = logging.getLogger("urllib3.connectionpool")
  told = set()

  def once(record: logging.LogRecord) -> bool:
    found = re.search(r"host='([^']+)'", record.getMessage())
    host = found.group(1) if found else "the site"
    if host not in told:
      told.add(host)
      print(
        f"no connection to {host} yet; trying for three minutes",
        file=sys.stderr,
        flush=True,
      )
    return False

  logger.addFilter(once)
  try:
    yield
  finally:
    logger.removeFilter(once)


@contextlib.contextmanager
def explained(base: str, manual: pathlib.Path) -> Iterator[None]:
  """Sentences in place of what TFDS raises."""
  import requests
  from tensorflow_datasets.core.download import download_manager, extractor
  from tensorflow_datasets.core.download import util as download_util

  try:
    yield
  except UserError:
    raise
  except Exception as e:
    chain = list(_chain(e))
    # TFDS wraps those in others that don't name the module.
    modules = [c.name for c in chain if isinstance(c, ImportError) and c.name]
    if modules:
      needed = catalog.requirement([modules[-1].split(".")[0]])
      raise UserError(
        f"TFDS's builder of {base} needs {needed}; then give the same command "
        "again."
      ) from e
    if found := _first(chain, download_manager.NonMatchingChecksumError):
      parts = re.search(r"Artifact (\S+), downloaded to (.+?), has", str(found))
      url, path = parts.groups() if parts else ("its site", "a file")
      raise UserError(
        f"{path} isn't what TFDS knows as {url}: its size or checksum differs. "
        "The copy is damaged, or the site has changed the file. Fetch it anew; "
        "if it stays so, a newer TFDS may know the new one."
      ) from e
    unreachable = (
      download_util.DownloadError,
      requests.exceptions.RequestException,
    )
    if found := _first(chain, *unreachable):
      raise UserError(
        f"A file of {base} can't be downloaded: {_reason(found)}. What was "
        "fetched before is kept: give the same command again when the site "
        "can be reached. Or fetch by other means, and name with --source=DIR "
        f"the folder with: {_files(base)}."
      ) from e
    if found := _first(chain, OSError):
      raise UserError(
        f"{base} can't be prepared: {line(found)}. Mend that, or name another "
        "place with --data_dir=DIR."
      ) from e
    stopped = isinstance(e, (AssertionError, extractor.ExtractError))
    if stopped or type(e).__module__.startswith("tensorflow.python"):
      raise UserError(
        f"TFDS's builder of {base} stopped: {line(e)}. What was fetched by "
        f"hand is looked for in {manual}; --source=DIR names another folder."
      ) from e
    raise


def _files(base: str) -> str:
  """What TFDS downloads for a set: places and names."""
  from tensorflow_datasets.core import registered

  make: Any = registered.imported_builder_cls(base)
  infos = (make.url_infos or {}).items()
  return ", ".join(
    f"{url} as {info.filename}" for url, info in infos if info.filename
  )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def _first(
  chain: list[BaseException], *kinds: type[BaseException]
) -> BaseException | None:
  return next((e for e in chain if isinstance(e, kinds)), None)


def _reason(error: BaseException) -> str:
  """Why a download failed, without the names of urllib3's classes."""
  inner = getattr(error.args[0], "reason", error) if error.args else error
  return line(inner).rpartition("): ")[2]


def line(error: BaseException) -> str:
  """An exception's text on one line, without the full stop."""
  text = " ".join(str(error).split()).rstrip(".")
  return text[:600] or type(error).__name__
