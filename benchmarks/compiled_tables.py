"""The tables that `benchmarks.compiled` has the rows of."""

from collections.abc import Callable, Sequence
from typing import Any

_Row = dict[str, Any]
_DEFAULTS = {
  "model.layout": "token_major",
  "model.dtype": "bfloat16",
  "model.remat": "none",
  "model.token_mlp": "xla",
}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  return "\n".join("| " + " | ".join(x) + " |" for x in lines)


def _value(row: _Row, key: str) -> Any:
  return row["changes"].get(key, _DEFAULTS[key])


def _layout(row: _Row) -> str:
  return {"token_major": "[S, B, C]", "batch_major": "[B, S, C]"}[
    _value(row, "model.layout")
  ]


def _remat(row: _Row) -> str:
  return _value(row, "model.remat")


def _gb(size: float | None) -> str:
  return "-" if size is None else f"{size / 1e9:.2f}"


def _fused(row: _Row) -> str:
  return ", fused token MLP" * (_value(row, "model.token_mlp") == "pallas")


def compiled_gpu(rows: Sequence[_Row]) -> str:
  """Kernels of one H100."""
  lines = []
  for row in rows:
    if not row["hardware"].startswith("h100") or _remat(row) != "none":
      continue
    cells = [
      row["variant"] + _fused(row),
      str(row["batch"]),
      _layout(row),
      _value(row, "model.dtype"),
    ]
    if "kernels" not in row:
      lines.append([*cells, row["reason"], *["-"] * 9])
      continue
    seconds = row["predicted_seconds"]
    cells += [
      f"{row[x]:,}" for x in ("kernels", "transposes", "copies", "pads")
    ]
    cells.append(", ".join(f"{n} {e}" for e, n in row["epilogues"].items()))
    cells += [
      f"{row['moved'] / 1e9:.1f}",
      _gb(row["temporaries"]),
      _gb(row["peak"]),
      f"{seconds * 1e3:.1f} ({row['batch'] / seconds:,.0f} images/s)",
      f"{row['predicted_mfu']:.0%}",
    ]
    lines.append(cells)
  head = (
    *("model", "batch", "layout", "precision", "kernels", "transposes"),
    *("copies", "pads", "matmuls", "GB moved", "temporaries, GB", "peak, GB"),
    *("predicted ms", "predicted MFU"),
  )
  return _table(head, lines)


def compiled_tpu(rows: Sequence[_Row]) -> str:
  """Memory and copies of one TPU chip."""
  lines = []
  for row in rows:
    if row["hardware"].startswith("h100") or _remat(row) != "none":
      continue
    cells = [
      row["variant"] + _fused(row),
      row["hardware"].removesuffix("-1"),
      str(row["batch"]),
      _layout(row),
      _value(row, "model.dtype"),
    ]
    if "kernels" not in row:
      lines.append([*cells, row["reason"], *["-"] * 6])
      continue
    cells += [
      _gb(row["traffic"]),
      _gb(row["moved"]),
      _gb(row["temporaries"]),
      _gb(row["peak"]),
      f"{row['copies']:,}, {row['copied'] / 1e9:.2f} GB",
      f"{row['pads']:,}",
      f"{row['seconds']:.0f} s",
    ]
    lines.append(cells)
  head = (
    *("model", "chip", "batch", "layout", "precision", "GB accessed"),
    *("GB of HBM", "temporaries, GB", "peak, GB", "copies", "pads", "compile"),
  )
  return _table(head, lines)


def remat(rows: Sequence[_Row]) -> str:
  """What policies of rematerialisation change."""
  sizes = {(r["variant"], r["hardware"]) for r in rows if _remat(r) != "none"}
  lines = []
  for row in rows:
    plain = _value(row, "model.layout") == _DEFAULTS["model.layout"]
    plain &= _value(row, "model.dtype") == "bfloat16" and not _fused(row)
    if not plain or (row["variant"], row["hardware"]) not in sizes:
      continue
    cells = [
      row["variant"],
      row["hardware"],
      str(row["batch"]),
      _remat(row),
    ]
    if "kernels" not in row:
      lines.append([*cells, row["reason"], *["-"] * 4])
      continue
    seconds = row.get("predicted_seconds")
    cells += [
      _gb(row["temporaries"]),
      _gb(row["peak"]),
      _gb(row["traffic"] or row["moved"]),
      f"{seconds * 1e3:.1f}" if seconds else "-",
      f"{row['seconds']:.0f} s",
    ]
    lines.append(cells)
  head = (
    *("model", "hardware", "batch", "policy", "temporaries, GB", "peak, GB"),
    *("GB moved", "predicted ms", "compile"),
  )
  return _table(head, lines)


TABLES: dict[str, Callable[[Sequence[_Row]], str]] = {
  "compiled_gpu": compiled_gpu,
  "compiled_tpu": compiled_tpu,
  "remat": remat,
}
