"""Images of the user's own that a run prepares itself: `folder:PATH`."""

import functools
import hashlib
import pathlib
import re

from mixer import files
from mixer.datasets import stored
from mixer.datasets.prepare import build, journal, sets
from mixer.datasets.prepare.request import Request
from mixer.progress import Progress


@functools.cache
def folder(path: str, root: pathlib.Path) -> pathlib.Path:
  """The data set in `root` of a folder or table; prepares it on first use.

  One whose files have other names, sizes or times by now is prepared anew.
  """
  place = pathlib.Path(path).expanduser().resolve()
  mark = hashlib.sha256(str(place).encode()).hexdigest()[:8]
  name = f"{re.sub('[^a-z0-9]+', '_', place.stem.lower())}_{mark}"
  final, spec = root / f"folder_{name}" / "1.0.0", sets.SETS["folder"]
  info = {"name": f"folder_{name}", "description": f"images in {place}"}
  source = sets.open_source(Request("folder", "", [place]))
  # One process of this machine prepares, others wait.
  with stored.lock(info["name"], root, wait=True), Progress() as progress:
    why = f"preparing {source.description}, once, in {final}"
    if (final / build.PREPARATION).exists():
      record = files.read_json(final / build.PREPARATION, "its record")
      if record["identity"]["source"] == source.fingerprint:
        return final
      why = f"{place} has changed since it was prepared: prepared anew"
    progress.say(why)
    source.find_classes(
      lambda done: progress.show("looking for the classes", done, source.total)
    )
    options = journal.options(spec, source, {})
    build.prepare(source, final, info, spec, options, progress)
  return final
