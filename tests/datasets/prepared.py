"""Opens a split as three values, for tests that look at its records."""

from mixer.datasets import split as split_lib


def open_source(name: str, split: str, data_dir: str):
  """The records, class names and identity of a split."""
  part = split_lib.open_split(name, split, data_dir)
  return part, part.class_names, part.identity
