"""The list of data sets that `mixer prepare` knows by name."""

from mixer.datasets import catalog, vtab


def known_sets() -> str:
  """A table for a person: what each is, and how it is had."""
  wide = max(len(name) for name in catalog.ENTRIES) + 2
  lines = []
  for entry in catalog.ENTRIES.values():
    how = f"--source={entry.by_hand}" if entry.by_hand else "is made here"
    if entry.downloads and not entry.by_hand:
      how = f"is downloaded, {entry.downloads / 1e9:.2g} GB"
    if "tensorflow" in entry.needs and entry.name not in catalog.OWN:
      how += "; needs TensorFlow"
    if not entry.labelled:
      how += f"; read as {' or '.join(vtab.tasks_of(entry.name))}"
    if entry.name in catalog.ALSO_TFDS and not entry.files:
      size = f"{entry.downloads / 1e9:.2g} GB"
      how += f"; without it TFDS downloads {size}, with TensorFlow"
    lines += [f"{entry.name:<{wide}}{entry.what}", f"{'':<{wide}}{how}"]
  return "\n".join(
    [
      *lines,
      "",
      "Any other set that TFDS knows is prepared by its name as well, and what "
      "TFDS has",
      "written as TFRecord is converted: --source=ITS_FOLDER. TensorFlow is "
      "needed for",
      f"preparing only: {catalog.TENSORFLOW}.",
    ]
  )
