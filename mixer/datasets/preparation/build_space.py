"""Whether a preparation's result will fit on the disk."""

import math
import pathlib
import shutil

from mixer.datasets.preparation.build_journal import Totals
from mixer.datasets.preparation.build_options import Options
from mixer.errors import UserError

_MARGIN = 1.02  # ArrayRecord's own bytes, and the journal.


def needed(total_bytes: int, totals: Totals, options: Options) -> int:
  """Estimates the bytes that are yet to be written.

  What is left of the source, at the rate at which its bytes became bytes of
  records so far. Before the first chunk: at 1, as compressed images stay what
  they are; where images are made smaller, room for the first chunk, after
  which the rate is known. Beside them, the candidates for the held-out splits
  are there twice while those are drawn, and all images while they are shuffled.
  """
  if totals.bytes_done:
    rate = totals.bytes_written / totals.bytes_done
  elif options.short_side or options.upright:
    return min(total_bytes, options.chunk_bytes)
  else:
    rate = 1.0
  left = max(total_bytes - totals.bytes_done, 0)
  whole = rate * max(total_bytes, totals.bytes_done)
  share = float(sum(options.hold_out.values()))
  if options.shuffle:
    share = 1.0
  elif share >= 1:  # Counts.
    if totals.images:
      images = totals.images * total_bytes / max(totals.bytes_done, 1)
      entering = share * (1 + max(math.log(max(images, 1) / share), 0))
      share = min(entering / max(images, 1), 1.0)
    else:
      share = 0.0  # Known after the first chunk.
  return int(_MARGIN * (left * rate + whole * share))


def check(
  folder: pathlib.Path, total_bytes: int, totals: Totals, options: Options
) -> None:
  """Stops before hours of work that can't end well.

  Raises:
    UserError: there is too little room.
  """
  need = needed(total_bytes, totals, options)
  free = shutil.disk_usage(folder).free
  if free < need:
    raise UserError(
      f"The disk of {folder} has {_size(free)} free, and the data set needs "
      f"about {_size(need)} more. Make room there, or name another place with "
      "--data_dir=DIR."
      + (
        " What was committed is kept: the same command goes on after it."
        if totals.members
        else ""
      )
    )


def _size(count: float) -> str:
  for unit in ("bytes", "kB", "MB", "GB"):
    if count < 1000:
      return f"{count:.3g} {unit}"
    count /= 1000
  return f"{count:,.3g} TB"
