"""Checkpoints: what they hold, and how they are found, verified and read.

`WORKDIR/checkpoints/N` holds the state after N updates:

  params    the weights by themselves, so that they load without an optimizer
  ema       their average, where the run keeps one
  training  the step and the optimizer's state
  metadata  JSON: what train.py says of the run (config, resolved, class_names,
            origin, environment, history, metrics_lines); `arrays`, the type,
            shape and digest of every array; `arrays_sha256` of all that

`mixer.saving` writes it by Orbax, which marks it as committed at the very end;
what has no such mark doesn't count. Paths may be those of an object store.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath, epy

from mixer import errors, files, weights
from mixer import workdir as workdir_lib
from mixer.errors import UserError, first_line

with epy.lazy_imports():  # It takes a while that weights in .npz needn't wait.
  import orbax.checkpoint.experimental.v1

# Orbax's annotations don't fit its own classes.
ocp: Any = orbax.checkpoint.experimental.v1

_METADATA = "_CHECKPOINT_METADATA"
COMMITTED = "commit_success.txt"  # Orbax writes it last.
_ARRAYS, _SHA256 = "arrays", "arrays_sha256"


class Damaged(UserError):
  """A checkpoint is not as it was saved."""


class Header(NamedTuple):
  """All that a checkpoint holds but its arrays."""

  path: epath.Path
  metadata: dict[str, Any]
  arrays: dict[str, list[Any]]  # `[type, shape, digest]` by name.


def directory(workdir: epath.PathLike) -> epath.Path:
  """The folder of a workdir's checkpoints, absolute."""
  path = workdir_lib.path(workdir) / "checkpoints"
  return path if files.is_remote(path) else path.absolute()


def contents(folder: epath.Path) -> list[epath.Path]:
  """What is in a folder, nothing if it isn't there."""
  try:
    return list(folder.iterdir())
  except (FileNotFoundError, NotADirectoryError):
    return []  # An object store has no empty folders.


def steps_in(folder: epath.Path, committed: bool = True) -> list[int]:
  """The steps of the checkpoints that were committed, or were not, in order."""
  found = [d for d in contents(folder) if d.name.isdigit() and d.is_dir()]
  return sorted(
    int(d.name) for d in found if (d / COMMITTED).exists() == committed
  )


def committed(workdir: epath.PathLike) -> list[int]:
  """The steps of the committed checkpoints in a workdir, in order."""
  return steps_in(directory(workdir))


def locate(path: epath.PathLike) -> tuple[epath.Path, int]:
  """The workdir and step of a path that names either; UserError if neither."""
  workdir, step = workdir_lib.path(path), None
  if workdir.parent.name == "checkpoints" and workdir.name.isdigit():
    workdir, step = workdir.parent.parent, int(workdir.name)
  found = committed(workdir)
  if step is None and found:
    step = found[-1]
  if step not in found:
    raise UserError(
      f"there is no checkpoint in {path}: expected a workdir of train.py, or "
      "WORKDIR/checkpoints/STEP; whole ones in "
      f"{workdir}/checkpoints: {', '.join(map(str, found)) or 'none'}."
    )
  return workdir, step


def best(scores: Mapping[int, float]) -> int | None:
  """The step with the highest finite score; of several the newest."""
  known = [(v, s) for s, v in scores.items() if np.isfinite(v)]
  return max(known)[1] if known else None


@contextlib.contextmanager
def _reading(where: epath.Path) -> Iterator[None]:
  """Lets Orbax read without other hosts; errors but of memory are damage."""
  me, context = ocp.multihost.process_index(), ocp.Context()
  context.multiprocessing.primary_host = me
  context.multiprocessing.active_processes = {me}
  try:
    with context:
      yield
  except Exception as e:
    if errors.is_memory(e):
      raise
    why = f"checkpoint {where} is damaged: can't be read: {first_line(e)}"
    raise Damaged(why) from e


def header(where: epath.Path) -> Header:
  """Reads all but the arrays; Damaged if that is not as it was saved."""
  with _reading(where):
    content = json.loads((where / _METADATA).read_text())["custom_metadata"]
    if content.pop(_SHA256, None) != files.json_sha256(content):
      raise ValueError("its metadata are not as they were saved")
    return Header(where, content, content.pop(_ARRAYS))


def sealed(metadata: dict[str, Any], parts: Any) -> dict[str, Any]:
  """The metadata, what is known of every array, and a digest of all that."""
  found, arrays = digests(parts), _kinds(parts)
  content = metadata | {_ARRAYS: {k: [*arrays[k], found[k]] for k in found}}
  return content | {_SHA256: files.json_sha256(content)}


def _kinds(tree: Any) -> dict[str, list[Any]]:
  """The type and shape of every array, by name."""
  leaves = weights.flatten(tree).items()
  return {k: [np.dtype(x.dtype).name, list(x.shape)] for k, x in leaves}


def changed(about: Header, parts: dict[str, Any]) -> list[str]:
  """Names of arrays that are not as saved; all hosts have to call it."""
  now = digests(parts)
  saved = {k: v[2] for k, v in about.arrays.items() if k.split("/")[0] in parts}
  return sorted(k for k in {*now, *saved} if now.get(k) != saved.get(k))


def refuse(about: Header, names: list[str]) -> None:
  """Raises Damaged if there are names, as of `changed`."""
  if names:
    shown = weights.shorten(names)
    raise Damaged(f"checkpoint {about.path} is damaged: not as saved: {shown}")


def read_state(where: epath.Path, abstract: Any) -> tuple[Header, Any]:
  """The state's parts, laid out as `abstract` says; digests aren't compared.

  UserError: damaged, or of another model. Orbax itself loads an array of
  another shape without a word.
  """
  about, targets = header(where), parts_of(abstract)
  there, here = (
    {k: f"{v[0]} {tuple(v[1])}" for k, v in kinds.items()}
    for kinds in (about.arrays, _kinds(targets))
  )
  lines = weights.mismatches(cast(Any, there), cast(Any, here))
  if lines:
    raise UserError(
      f"checkpoint {where} is of another model or optimizer: "
      f"{weights.shorten(lines)}. Use the config that it was made with, or "
      "start in another --workdir from its weights, by "
      f"--config.init_from={where}."
    )
  return about, _read(where, targets)


def restore(where: epath.Path, abstract: Any) -> Any:
  """The state of one checkpoint, verified; on one host."""
  about, found = read_state(where, abstract)
  refuse(about, changed(about, found))
  return state_of(abstract, found)


def _read(where: epath.Path, targets: dict[str, Any]) -> dict[str, Any]:
  """Reads parts as their targets say, None: as numpy arrays; no digests."""
  found = {}
  for name, target in targets.items():
    with _reading(where):
      if target is None:
        tree = ocp.checkpointables_metadata(where).metadata[name]
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)
      # One call for each part: of several in a call, Orbax leaves those after
      # a part that fails waiting, and Python warns of them at any later time.
      found |= ocp.load_checkpointables(where, {name: target})
  return found


def load_params(
  path: epath.PathLike, *, averaged: bool = True, verify: bool = True
) -> tuple[Any, dict[str, Any]]:
  """Weights alone, as numpy arrays; their average where there is one.

  Returns them with the metadata, and `step`, `path`, and `averaged`, whether
  there is an average. UserError: nothing there, or not as it was saved.
  """
  workdir, step = locate(path)
  where = directory(workdir) / str(step)
  try:
    about = header(where)
    ema = any(name.startswith("ema/") for name in about.arrays)
    part = "ema" if averaged and ema else "params"
    found = _read(where, {part: None})
    if verify:
      refuse(about, changed(about, found))
  except Damaged as e:
    others = [s for s in committed(workdir) if s != step]
    take = f"take {where.parent / str(others[-1])}" if others else "take a copy"
    raise UserError(f"{e}. Instead of it {take}.") from e
  info = about.metadata | {"step": step, "path": str(where), "averaged": ema}
  return found[part], info


def verify(path: epath.PathLike) -> tuple[int, list[str]]:
  """The number of arrays, and the names of those that are not as saved."""
  workdir, step = locate(path)
  about, names = header(directory(workdir) / str(step)), list[str]()
  for part in sorted({name.split("/")[0] for name in about.arrays}):
    names += changed(about, _read(about.path, {part: None}))
  return len(about.arrays), names


def mend_config(workdir: epath.PathLike) -> str:
  """Writes a damaged config.json anew from the newest checkpoint; a message."""
  try:
    workdir_lib.read_config(workdir)
  except workdir_lib.DamagedConfig:
    with contextlib.suppress(UserError, KeyError):
      path, step = locate(workdir)
      found = header(directory(path) / str(step)).metadata
      workdir_lib.write_config(path, found["config"], found["resolved"])
      return (
        f"{path}/config.json was damaged, and is written anew as checkpoint "
        f"{step} has it."
      )
  except UserError:
    pass
  return ""


def parts_of(state: Any) -> dict[str, Any]:
  """The state as the named parts that a checkpoint consists of."""
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  fields = {k: v for k, v in fields.items() if v is not None}
  parts = {k: fields.pop(k) for k in ("params", "ema") if k in fields}
  return parts | {"training": fields}


def state_of(abstract: Any, parts: dict[str, Any]) -> Any:
  """The state of these parts."""
  own = {k: v for k, v in parts.items() if k != "training"}
  return dataclasses.replace(abstract, **own, **parts["training"])


# A digest of each array, equal however the array is split over devices; against
# disks, networks and memory, not against people. Element i with bits b becomes
#
#   u = mix(b ^ mix(i)),    v = u * (mix(i) | 1)
#
# in 32 bits, with MurmurHash3's finalizer for `mix`; the digest is the sum of
# all u and the sum of all v. A change of one element always shows, any other
# but for a chance of about 2**-58; each device sums up its own part.

_BITS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_CHUNK = 1 << 15  # Elements that the host sums up in one go: what fits a cache.
# Arrays of at most so many elements are summed on the host: a copy takes less
# time than compiling the sum for one more shape.
_SMALL = 1 << 14


def digests(tree: Any) -> dict[str, str]:
  """Of every leaf 16 hexadecimal digits by name; all hosts have to call it."""
  leaves = weights.flatten(tree)
  # All is under way on the devices before the first result is waited for.
  on_device = {k: _sums(v) for k, v in leaves.items() if _is_large(v)}
  small = {k: v for k, v in leaves.items() if k not in on_device}
  sums = {k: _host_sums(v) for k, v in jax.device_get(small).items()}
  sums |= jax.device_get(on_device)
  return {k: "".join(f"{int(x):08x}" for x in sums[k]) for k in leaves}


def _is_large(leaf: Any) -> bool:
  """Whether to sum it up on its devices."""
  return isinstance(leaf, jax.Array) and (
    leaf.size > _SMALL
    or not (leaf.is_fully_addressable or leaf.is_fully_replicated)
  )


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
  """The two sums, [2] uint32, of an array of any shape."""
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(x, _BITS[x.dtype.itemsize])
  place = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    stride = np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32)
    place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * stride
  u, v = _terms(bits.astype(jnp.uint32), place)
  return jnp.stack([jnp.sum(u), jnp.sum(v)])


def _host_sums(x: np.ndarray) -> np.ndarray:
  """As `_sums`; beside a contiguous array it takes memory for some chunks."""
  bits = np.ascontiguousarray(x).reshape(-1).view(_BITS[x.dtype.itemsize])
  totals = np.zeros(2, np.uint32)
  for start in range(0, x.size, _CHUNK):
    part = bits[start : start + _CHUNK].astype(np.uint32)
    place = np.arange(start, start + len(part), dtype=np.uint32)
    totals += np.sum(_terms(part, place), axis=1, dtype=np.uint32)
  return totals


def _terms(bits: Any, place: Any) -> tuple[Any, Any]:
  """u and v of elements, of JAX or numpy, at these places."""
  place = _mix(place)
  u = _mix(bits ^ place)
  return u, u * (place | np.uint32(1))


def _mix(x: Any) -> Any:
  """[...] uint32 -> [...] uint32, one to one."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
  return x ^ (x >> np.uint32(16))
