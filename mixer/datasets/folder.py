"""The TFDS data set of a user's own images, in one folder a class."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mixer.datasets.preparation import build
from mixer.datasets.sources import class_folders, detect, file_names
from mixer.datasets.sources.member import Source
from mixer.errors import UserError

# Where the folders name no splits, of each class.
HOLD_OUT = {"validation": 0.1}
# TFDS's names of data sets.
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def open_source(
  paths: Sequence[Path], *, class_file: Path | None = None, seed: int = 0
) -> Source:
  """Opens a folder of images.

  Args:
    paths: a single one, of a folder; see `detect.detect`.
    class_file: the classes, one a line, in the order of their labels.
    seed: of the images' order, and so of the draw of held-out ones.

  Raises:
    UserError: what is there isn't one folder a class.
  """
  classes = None
  if class_file is not None:
    classes = file_names.read_classes(class_file, wnids=False)
  return detect.detect(paths, "folder", classes=classes, seed=seed)


def hold_out(source: Source) -> Mapping[str, int | float]:
  """What to hold out by default: nothing, if the folders name splits."""
  if isinstance(source, class_folders.ClassFolders) and source.splits != ("",):
    return {}
  return HOLD_OUT


class Folder(build.ImageBuilder):
  """TFDS builder of any images, under a name of the user's."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    *,
    name: str = "folder",
    source: Source | None = None,
    options: build.Options | None = None,
    **kwargs: Any,
  ):
    """Prepares nothing yet.

    Args:
      name: of the data set.
      source: the images; may be None to read a prepared set.
      options: how they are prepared; by default upright, on white ground, and
        with a tenth held out for `validation` where the folders name no splits.
      **kwargs: TFDS's own, such as data_dir.

    Raises:
      UserError: a name that can't be a data set's.
    """
    if not _NAME.fullmatch(name):
      raise UserError(
        f"a data set can't be called {name!r}; give it a name of small "
        "letters, digits and underscores that begins with a letter."
      )
    self.name = name  # pyright: ignore[reportAttributeAccessIssue]
    if options is None and source is not None:
      options = build.Options(
        hold_out=hold_out(source), upright=True, white_ground=True
      )
    super().__init__(source=source, options=options, **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    names = file_names.stored_classes(self.data_dir)
    if not names and self.source is not None:
      names = self.source.class_names()
    return self.image_info(
      names,
      description="Images that lay in one folder a class.",
    )
