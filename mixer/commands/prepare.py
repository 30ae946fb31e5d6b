"""Prepares a data set for training, once, for all runs to come.

  python -m mixer prepare cifar10
  python -m mixer prepare imagenet2012 --source=DIR_WITH_THE_TARS
  python -m mixer prepare imagenet21k --source=winter21_whole.tar.gz
  python -m mixer prepare folder --name=my_set --source=DIR
  python -m mixer prepare cifar10 --source=TFRECORD_DIR
  python -m mixer prepare --list

The result is a TFDS data set in ArrayRecord files, in --data_dir. A data set
that TFDS wrote as TFRecord is converted. Stopped at any time, by Ctrl-C too,
the same command continues. docs/data.md says more.
"""

import argparse
import dataclasses
import pathlib
import re
import shlex
import sys
from typing import Any

from mixer import errors, flags, stop
from mixer.errors import UserError

# The recipe that a set is for; any other is for fine-tuning.
_RECIPES = {
  "cifar10": "cifar10.py",
  "cifar100": "cifar10.py",
  "digits": "smoke.py",
  "glyphs": "demo.py",
  "imagenet2012": "mixer_i1k.py",
  "imagenet21k": "mixer_b16_i21k.py",
  "imagenet21k_p": "mixer_b16_i21k.py",
}
_FINETUNE = "finetune.py:model=imagenet21k/Mixer-B_16"


def _path(text: str) -> pathlib.Path:
  return pathlib.Path(text).expanduser()


def hold_out(text: str) -> dict[str, int | float]:
  """Parses --hold_out: "10%", "5000" (of `validation`), "NAME=PART,..."."""
  parts: dict[str, int | float] = {}
  try:
    for item in () if text == "none" else text.split(","):
      split, _, amount = item.strip().rpartition("=")
      split, share = split or "validation", amount.endswith("%")
      value = float(amount[:-1]) / 100 if share else int(amount)
      if value <= 0 or not split.isidentifier() or split in (*parts, "train"):
        raise ValueError
      parts[split] = value
    if text != "none" and {*map(type, parts.values())} != {int}:
      if sum(parts.values()) >= 1:  # A number among shares, too.
        raise ValueError
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text} is none: give other splits than train numbers, or shares of "
      "less than 100% together, as in 10%, 5000 or validation=500,test=500"
    ) from None
  return parts


# Flags for images of the user, most of them fields of `journal.Options`: how
# they are parsed, and their help.
_OWN: dict[str, tuple[dict[str, Any], str]] = {
  "name": ({}, "of the set that `folder` makes of your images"),
  "classes": ({"type": _path}, "a file with the classes, one a line"),
  "columns": (
    {"metavar": "FILE,LABEL[,SPLIT]"},
    "of a table of labels; guessed by their names",
  ),
  "resize": (
    {"type": flags.number(int, 0, 10**5), "dest": "short_side"},
    "make images with a longer short side so small; 0: keep every byte",
  ),
  "quality": ({"type": flags.number(int, 1, 100)}, "of JPEG encoding; 95"),
  "upright": (
    {"action": argparse.BooleanOptionalAction},
    "turn images as their EXIF orientation says (folder does)",
  ),
  "bad": ({"choices": ("skip", "fail")}, "files that don't decode; skip"),
  "max_bad": (
    {"type": flags.number(float, 0, 1)},
    "stop where more than this share of the files is left out; 0.1",
  ),
  "mislabelled": (
    {"choices": ("keep", "skip", "fail")},
    "a PNG that is called .jpg, and the like; keep",
  ),
  "accept_truncated": (
    {"action": "store_const", "const": True},
    "take what is there of a tar that breaks off",
  ),
  "hold_out": (
    {"type": hold_out},
    "10%%, 5000, or validation=10%%,test=5%%, or none: of the images that the "
    "source gives no split",
  ),
  "seed": ({"type": flags.number(int, 0, 2**63 - 1)}, "of that draw; 0"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own; of the second group None stands for a default."""
  add = parser.add_argument
  add("set", nargs="?", metavar="NAME", help="NAME, NAME/CONFIG; see --list")
  add("--list", action="store_true", help="the sets that are known by name")
  text = "what you have of it: archives, a folder; may be given more than once"
  add("--source", action="append", type=_path, default=[], help=text)
  add("--data_dir", default="", help="where data sets are; TFDS's own default")
  text = "discard what is prepared in part; prepare anew what is whole"
  add("--restart", action="store_true", help=text)
  title = "for files of yours (folder, imagenet21k and others, see --list)"
  add = parser.add_argument_group(title).add_argument
  for flag, (how, text) in _OWN.items():
    add(f"--{flag}", help=text, **how)


def main(args: argparse.Namespace) -> int | None:
  """Prepares a set and describes the result, or lists the known ones."""
  if not args.set and not args.list:
    raise UserError("name a data set, or --list.")
  try:
    _list() if args.list else _prepare(args)
  except KeyboardInterrupt as e:
    # After a terminal's "^C".
    begin = "\n" if sys.stderr.isatty() else ""
    then = "begins anew" if args.restart else "goes on with it"
    stop.say(
      f"{begin}{e.args[0]}: stopped; the same command {then}", sys.stderr
    )
    # Threads of a download would be waited for.
    stop.exit_at_once(stop.PREEMPTED)


def _list() -> None:
  from mixer.datasets import catalog

  for name, entry in catalog.ENTRIES.items():
    size = f"downloaded, {entry.downloads / 1e9:.2g} GB; needs TensorFlow"
    ways = [f"--source={entry.by_hand}"] if entry.by_hand else []
    # Some downloads are a list of labels, for images that are fetched by hand.
    ways += [size] if entry.downloads > 10**7 else []
    how = "; or ".join(ways) or "made here"
    print(f"{name:<32}{entry.what}\n{'':<32}{how}")
  print(
    "Any other set that TFDS knows is prepared by its name, and what TFDS has "
    "written as\nTFRecord by --source=ITS_FOLDER. TensorFlow is needed for "
    f"preparing only:\n{catalog.TENSORFLOW}."
  )


def _prepare(args: argparse.Namespace) -> None:
  from mixer.datasets import catalog, shipped, stored, vtab
  from mixer.datasets.prepare import build, tfds
  from mixer.progress import Progress

  root = stored.resolve_data_dir(args.data_dir)
  if args.set.startswith(vtab.PREFIX):
    task, args.set = args.set, vtab.find(args.set).data_set
    print(f"{task} is made of the data set {args.set}", flush=True)
  name, base, given = args.set, catalog.base_name(args.set), args.source
  # The newest in data_dir, as TFDS has it, or what --source names.
  known = base in catalog.ALSO_TFDS or base not in catalog.OWN
  places = [root, *given] if known and not args.restart else []
  found = [v for p in places for v in stored.versions(p, name)[-1:]]
  there = stored.read(found[0]) if found else None
  if there and found[1:] and "array_record" not in there.formats:
    there = stored.read(found[1])
  by_tfds = there and not (there.folder / build.PREPARATION).exists()
  if base in catalog.OWN and not by_tfds:
    if there or given or not catalog.ENTRIES[base].downloads:
      return _summary(args, *_own(args, root))
  manual = given[0] if given else root / "downloads" / "manual"
  if base not in catalog.SHIPPED and not there:
    tfds.check(name)
  dests = [how.get("dest", flag) for flag, (how, _) in _OWN.items()]
  odd = any(getattr(args, dest) is not None for dest in dests)
  if odd or len(given) > (base not in catalog.SHIPPED):
    raise UserError(
      f"{name} is prepared as it comes, from one --source at most; further "
      f"flags are for images that you have: {', '.join(catalog.OWN)}."
    )
  if base in catalog.SHIPPED:
    folder = shipped.folder(name, root)
  elif there and "array_record" in there.formats:
    folder = there.folder
    print(f"data set {name} was prepared before; nothing is to be done")
  else:
    with stored.lock(name, root), Progress() as progress:
      if there:
        print(f"converting data set {name} from TFRecord", flush=True)
        folder = tfds.convert(there.folder, root, progress)
      else:
        print(f"preparing data set {name} in {root} by TFDS", flush=True)
        folder = tfds.prepare(name, root, manual)
  _summary(args, name, folder)


def _own(args: argparse.Namespace, root: pathlib.Path) -> tuple[str, Any]:
  """Prepares a set from images that the user has; its name and folder."""
  from mixer import files, runtime
  from mixer.datasets import catalog, stored
  from mixer.datasets.prepare import build, journal, sets
  from mixer.datasets.prepare import request as request_lib
  from mixer.progress import Progress

  base, release, version = catalog.split_name(args.set)
  spec, entry = sets.SETS[base], catalog.ENTRIES[base]
  if release not in ("", *spec.releases) or version not in ("", spec.version):
    known = " or ".join(f"{base}/{r}".rstrip("/") for r in spec.releases)
    raise UserError(f"name {known}, in version {spec.version}.")
  for flag in ("name", "classes", "columns", "accept_truncated"):
    if getattr(args, flag) and flag not in spec.takes:
      raise UserError(f"--{flag} is not for {base}; leave it out.")
  if base == "folder" and not re.fullmatch("[a-z][a-z0-9_]*", args.name or ""):
    raise UserError(
      f"your data set can't be called {args.name!r}; give it a --name of small "
      "letters, digits and underscores that begins with a letter."
    )
  release = release or next(iter(spec.releases))
  name = args.name or "/".join(filter(None, (base, release)))
  folder = root / name / spec.version
  info = {"name": args.name or base, "description": entry.what}
  info |= {"configName": release} if release else {}
  fields = [field.name for field in dataclasses.fields(journal.Options)]
  given = {k: v for k, v in vars(args).items() if k in fields and v is not None}
  if (folder / stored.INFO).exists() and not args.restart:
    if journal.beside(folder).exists():  # A kill came after the end.
      with stored.lock(info["name"], root):
        journal.clean(folder)
    stored.read(folder).check()
    record = files.read_json(folder / build.PREPARATION, "its record")
    now, then = journal.Options(**given).identity(), record["identity"]
    differs = [k for k in given if k in now and now[k] != then.get(k)]
    before = f"data set {name} was prepared before"
    if differs:
      raise UserError(
        f"{before}, and differs in {', '.join(differs)}; it stays in {folder} "
        "as it is. --restart prepares it anew."
      )
    print(f"{before}; --restart prepares it anew")
    return name, folder
  if not args.source:
    how = catalog.how_to(args.set, args.data_dir)
    raise UserError(f"name the images that you have with --source. {how}")
  more = bool(args.accept_truncated), given.get("seed", 0), args.columns or ""
  request = request_lib.Request(base, release, args.source, args.classes, *more)
  with Progress() as progress, stored.lock(info["name"], root):
    source = sets.open_source(request)
    progress.say(f"preparing {name} in {root} from {source.description}")
    if args.restart:
      journal.clean(folder)
    runtime.keep_freed_memory()  # Resizing takes half the time.
    source.find_classes(
      lambda done: progress.show("looking for the classes", done, source.total)
    )
    options = journal.options(spec, source, given)
    print(build.prepare(source, folder, info, spec, options, progress))
  return name, folder


def _summary(args: argparse.Namespace, name: str, folder: pathlib.Path) -> None:
  """Prints what is there, and how to train on it."""
  from mixer.datasets import catalog, stored

  found = stored.read(folder)
  print(f"data set {name} is ready in {found.folder}")
  for split, size in found.sizes.items():
    print(f"  {split:<12}{size:>12,} examples")
  label = {"label", "original_label"} & found.features.keys()
  if "image" not in found.features or not label or "train" not in found.sizes:
    print(f"  its features are {', '.join(sorted(found.features))}")
    return
  names = found.class_names(label.pop())
  few = names if len(names) <= 6 else [*names[:3], "...", names[-1]]
  print(errors.printable(f"  {len(names):,} classes: {', '.join(few)}"))
  height, width = found.image_size or (224, 224)
  if recipe := _RECIPES.get(catalog.base_name(name)):
    words = [f"--config=configs/{recipe}", f"--config.data.name={name}"]
  elif max(height, width) < 224:
    size = f"size={height}x{width}"
    words = [f"--config=configs/scratch.py:dataset={name},{size}"]
  else:
    words = [f"--config=configs/{_FINETUNE},dataset={name}"]
  if args.data_dir:
    words.append(f"--config.data.data_dir={args.data_dir}")
  if not {"test", "validation"} & found.sizes.keys():
    # Of few images a fiftieth may be none.
    cut = "98%" if found.sizes["train"] >= 100 else "-1"
    words.append(f"--config.data.train_split=train[:{cut}]")
    words.append(f"--config.data.eval_split=train[{cut}:]")
  words.append(f"--workdir=runs/{re.sub('[/:]', '_', name)}")
  print(f"train on it:\n  python train.py {shlex.join(words)}")
