"""Prepares a data set, once, for all runs to come.

  python -m mixer prepare cifar10
  python -m mixer prepare imagenet2012 --source=DIR_WITH_THE_TARS
  python -m mixer prepare imagenet21k --source=winter21_whole.tar.gz
  python -m mixer prepare folder --name=my_set --source=DIR
  python -m mixer prepare cifar10 --source=TFRECORD_DIR
  python -m mixer prepare --list

The result is a TFDS data set in ArrayRecord files, in --data_dir. A data set
that TFDS wrote as TFRecord is converted. Stopped at any time, by Ctrl-C too,
the same command goes on. docs/data.md says more.
"""

# What prepares images starts processes that import this module again: nothing
# heavy up here.
import argparse
import functools
import os
import pathlib
import shlex
import sys
from typing import Any

from mixer import errors, flags, stop
from mixer.errors import UserError

# The recipe that a set is for; any other is for fine-tuning.
_RECIPES = {
  "digits": "smoke",
  "glyphs": "demo_pretrain",
  "imagenet2012": "mixer_b16_i1k",
  "imagenet21k": "mixer_b16_i21k",
  "imagenet21k_p": "mixer_b16_i21k",
}


# Flags that are fields of `Options`, and those that have another name there.
OPTIONS = (
  "seed",
  "drop_duplicates",
  "short_side",
  "quality",
  "on_mislabelled",
  "on_bad",
  "max_bad",
  "workers",
  "restart",
)
RENAMED = {
  "short_side": "resize",
  "on_bad": "bad",
  "on_mislabelled": "mislabelled",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own."""
  add = parser.add_argument
  add("set", nargs="?", metavar="NAME", help="NAME, NAME/CONFIG; see --list")
  add("--list", action="store_true", help="the sets that are known by name")
  add(
    "--source",
    action="append",
    default=[],
    metavar="PATH",
    help="what you have of it: archives, a folder; may be given more than once",
  )
  add("--data_dir", default="", help=flags.DATA_DIR)
  own = parser.add_argument_group(
    "for files of yours (folder, imagenet21k and others that --list names)"
  )
  add = own.add_argument
  add("--name", help="of the set that `folder` makes")
  add("--classes", metavar="FILE", help="the classes, one a line, in order")
  add(
    "--resize",
    dest="short_side",
    type=flags.number(int, 0, 10**5),
    default=0,
    metavar="SHORT_SIDE",
    help="make images with a longer short side so small; 0: keep every byte",
  )
  add(
    "--quality",
    type=flags.number(int, 1, 100),
    default=95,
    help="of JPEG, where images are encoded anew",
  )
  add(
    "--upright",
    action=argparse.BooleanOptionalAction,
    help="turn images as their EXIF orientation says (folder does)",
  )
  add(
    *("--bad", "--on_bad"),
    dest="on_bad",
    choices=("skip", "fail"),
    default="skip",
    help="what becomes of files that don't decode",
  )
  add(
    "--max_bad",
    type=flags.number(float, 0, 1),
    default=0.1,
    metavar="SHARE",
    help="stop where more than this share of the files is bad",
  )
  add(
    *("--mislabelled", "--on_mislabelled"),
    dest="on_mislabelled",
    choices=("keep", "skip", "fail"),
    default="keep",
    help="what becomes of a PNG that is called .jpg, and the like",
  )
  add(
    "--drop_duplicates",
    action="store_true",
    help="of images with equal bytes keep one",
  )
  add(
    "--accept_truncated",
    action="store_true",
    help="take what is there of a tar that breaks off",
  )
  add(
    "--hold_out",
    type=hold_out,
    metavar="PARTS",
    help="10%%, 5000, or validation=10%%,test=5%%, or none: of the images that "
    "the source gives no split; of a folder exactly, and of each class",
  )
  add(
    "--seed", type=flags.number(int, 0, 2**63), default=0, help="of that draw"
  )
  add(
    "--workers",
    type=flags.number(int, 0, 1000),
    help="processes that look at images; one a core by default",
  )
  add(
    "--restart",
    action="store_true",
    help="discard what a stopped preparation has done; prepare anew what is "
    "there, which stays until then",
  )


def hold_out(text: str) -> dict[str, int | float]:
  """Parses --hold_out: "10%", "5000" (of `validation`), "NAME=PART,...".

  Raises:
    ArgumentTypeError: it is something else.
  """
  if text == "none":
    return {}
  parts: dict[str, int | float] = {}
  for item in text.split(","):
    split, equals, amount = item.strip().rpartition("=")
    split = split if equals else "validation"
    try:
      share = amount.endswith("%")
      value = float(amount[:-1]) / 100 if share else int(amount)
    except ValueError:
      value = 0
    if not split.isidentifier() or split in parts or value <= 0:
      raise argparse.ArgumentTypeError(
        f"{text} is no share or number of images, such as 10%, 5000 or "
        "validation=5000,test=5000"
      )
    parts[split] = value
  return parts


def _prepare(args: argparse.Namespace) -> None:
  """Prepares it, and says what is there then."""
  from mixer.datasets import catalog, locate, shipped, vtab

  root = locate.resolve_data_dir(args.data_dir)
  if args.set.startswith(vtab.PREFIX):
    task, args.set = args.set, vtab.find(args.set).data_set
    print(f"{task} is made of the data set {args.set}", flush=True)
  base = catalog.base_name(args.set)
  ours = base in catalog.OWN
  both = base in catalog.ALSO_TFDS
  stored = None if ours and not both else _stored(args, root)
  if ours and not (both and _is_for_tfds(args, root, stored)):
    _summary(args, _own(args, root), root)
    return
  _refuse_options(args, base)
  if base in catalog.SHIPPED:
    if base != args.set:
      raise UserError(f"data set {base} comes in one form; name it {base}.")
    shipped.folder(args.set, root)
  elif stored and "array_record" in stored.formats:
    print(
      f"data set {args.set} was prepared before; nothing is to be done"
      + (", and --source is not looked at" if args.source else "")
    )
  elif stored:
    _convert(args, root, stored)
  else:
    _by_tfds(args, root)
  _summary(args, args.set, root)


def _is_for_tfds(
  args: argparse.Namespace, root: pathlib.Path, stored: Any
) -> bool:
  """Of a set that TFDS can prepare as well as we: whose turn it is."""
  from mixer.datasets import catalog
  from mixer.datasets.preparation import build_finish

  if stored:  # What TFDS has made is converted, or there already.
    return not (stored.folder / build_finish.PREPARATION).exists()
  entry = catalog.ENTRIES[catalog.base_name(args.set)]
  return not args.source and entry.downloads > 0


def _refuse_options(args: argparse.Namespace, base: str) -> None:
  """Flags that would change nothing."""
  from mixer.datasets import catalog
  from mixer.datasets.preparation import tfds_sets

  parser = flags.Parser("mixer prepare", None)
  add_flags(parser)
  own = (
    *OPTIONS,
    "name",
    "classes",
    "hold_out",
    "upright",
    "accept_truncated",
  )
  given = [o for o in own if getattr(args, o) != parser.get_default(o)]
  if base in catalog.SHIPPED and args.source:
    raise UserError(f"{base} is made here, of no files; leave --source out.")
  if given and not catalog.known(args.set):
    tfds_sets.check(args.set, pathlib.Path())  # Says so.
  if given:
    words = [f"--{RENAMED.get(o, o)}" for o in given]
    raise UserError(
      f"{', '.join(words)}: only for what is prepared from files of yours "
      f"({', '.join(catalog.OWN)}), named by --source; {base} is prepared as "
      "it comes."
    )


def _stored(args: argparse.Namespace, root: pathlib.Path) -> Any:
  """The set as it lies in data_dir, or in --source; None if it doesn't."""
  from mixer.datasets import locate, stored

  # The newest, as TFDS has it.
  here = [stored.read(f) for f in locate.versions(root, args.set)[-1:]]
  if here and ("array_record" in here[0].formats or not args.source):
    return here[0]
  found = []
  for source in args.source:
    found += locate.versions(pathlib.Path(os.path.expanduser(source)), args.set)
  if len(found) > 1:
    raise UserError(
      f"--source holds the data set {args.set} more than once: "
      f"{', '.join(map(str, found))}. Name one of these folders."
    )
  return stored.read(found[0]) if found else None


def _convert(args: argparse.Namespace, root: pathlib.Path, stored: Any) -> None:
  from mixer import progress
  from mixer.datasets import locate
  from mixer.datasets.preparation import convert

  print(
    f"converting data set {args.set} from TFRecord ({stored.folder})",
    flush=True,
  )
  with locate.lock(args.set, root), progress.Progress() as shown:
    here = convert.convert(
      stored.folder,
      root,
      lambda done, total: shown.show(args.set, done, total, done),
    )
  if here.samefile(stored.folder):
    print(
      "the TFRecord files beside the new ones are kept, and TFDS reads either; "
      f"nothing here needs them: rm {shlex.quote(str(here))}/*.tfrecord-*"
    )


def _by_tfds(args: argparse.Namespace, root: pathlib.Path) -> None:
  from mixer.datasets import locate
  from mixer.datasets.preparation import tfds_sets

  if len(args.source) > 1:
    raise UserError(
      f"{args.set} is prepared by TFDS from one folder, and --source is given "
      f"{len(args.source)} times; put the files into one."
    )
  source = (
    pathlib.Path(os.path.expanduser(args.source[0])) if args.source else None
  )
  tfds_sets.check(args.set, root, source)
  with locate.lock(args.set, root):
    print(f"preparing data set {args.set} in {root} by TFDS", flush=True)
    try:
      tfds_sets.prepare(args.set, root, source, bars=sys.stderr.isatty())
    except KeyboardInterrupt as e:
      # TFDS keeps nothing of what it had written.
      raise KeyboardInterrupt(
        *e.args, "the same command begins anew, with the downloads so far"
      ) from e


def _own(args: argparse.Namespace, root: pathlib.Path) -> str:
  """Prepares images that the user has; returns the set's name."""
  from mixer import progress
  from mixer.datasets import catalog, locate
  from mixer.datasets.preparation import own_sets

  manual = root / "downloads" / "manual"
  entry = catalog.ENTRIES[catalog.base_name(args.set)]
  if not args.source and entry.files:
    # Where TFDS wants what was fetched by hand.
    args.source = [manual] if (manual / entry.files[0]).exists() else []
  options = {k: getattr(args, k) for k in OPTIONS}
  for name in ("hold_out", "upright"):
    if getattr(args, name) is not None:
      options[name] = getattr(args, name)
  request = own_sets.Request(
    args.set,
    [pathlib.Path(os.path.expanduser(source)) for source in args.source],
    args.name or "",
    pathlib.Path(os.path.expanduser(args.classes)) if args.classes else None,
    args.accept_truncated,
    options,
  )
  try:
    with progress.Progress() as shown:
      name, report = own_sets.prepare(request, root, shown, args.data_dir)
  except KeyboardInterrupt as e:
    if args.restart:
      then = "the same command begins anew; without --restart one goes on"
      raise KeyboardInterrupt(*e.args, then) from e
    raise
  if report.already:
    before = f"data set {name} was prepared before" + (
      f", from {report.source}" if report.source else ""
    )
    if report.differs:
      raise UserError(
        f"{before}, and differs in {', '.join(report.differs)}. It is left as "
        f"it is, in {report.data_dir}: --restart prepares it anew."
      )
    print(f"{before}; --restart prepares it anew")
    if report.not_compared:
      print(f"not compared with its source now: {report.not_compared}")
  if report.problems:
    kinds = dict(report.problems)
    mislabelled = kinds.pop("mislabelled", 0)
    dark = kinds.pop("dark", 0)
    equal = [k for k in kinds if k.startswith("in two ")]
    equal = ", ".join(f"{kinds.pop(k):,} {k}" for k in equal)
    out = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items())
    told = [f"left out: {out}"] if out else []
    told += [f"equal images: {equal}"] if equal else []
    if mislabelled:
      kept = {"keep": "kept", "skip": "left out"}[args.on_mislabelled]
      # Of a preparation long ago only the report knows.
      did = "" if report.already else f", {kept}"
      told.append(f"{mislabelled:,} of another format than named{did}")
    if dark:
      told.append(
        f"{dark:,} black, as their values leave the upper 8 bits empty"
      )
    print(f"{'; '.join(told)}; listed in {report.path}")
  base = locate.split_name(name)[0]
  return (
    base
    if {*locate.by_config(root / base)} <= {"", name[len(base) + 1 :]}
    else name
  )


def _summary(args: argparse.Namespace, name: str, root: pathlib.Path) -> None:
  """Prints what lies there, and what to do with it."""
  from mixer.datasets import catalog, locate, stored, vtab

  found = stored.read(locate.find(name, root, args.data_dir))
  print(f"data set {name} is ready in {found.folder}")
  sizes = found.sizes
  for split, size in sizes.items():
    print(f"  {split:<12}{size:>12,} examples")
  features = found.features
  tasks = vtab.tasks_of("/".join(filter(None, (found.name, found.config))))
  if tasks:
    print(f"  VTAB-1k makes of it {' and '.join(tasks)}")
  label = next((k for k in ("label", "original_label") if k in features), "")
  if "image" not in features or not label:
    print(
      f"  its features are {', '.join(sorted(features))}; training here takes "
      "sets with `image` and `label`"
      + (f", or --config.data.name={tasks[0]}" if tasks else "")
    )
    return
  names = found.class_names(label)
  few = ", ".join(names if len(names) <= 6 else [*names[:3], "...", names[-1]])
  print(errors.printable(f"  {len(names):,} classes: {few}"))
  if "train" not in sizes:
    print("  it has no split `train`: for evaluation only")
    return
  command = functools.partial(_next_command, args, name, sizes)
  recipe = _RECIPES.get(catalog.base_name(name))
  if recipe:
    print(f"train on it:\n  {command(recipe)}")
    return
  tuned = f"finetune:model=imagenet21k/Mixer-B_16,dataset={name}"
  print(f"fine-tune released weights on it:\n  {command(tuned)}")
  scratch = f"scratch:dataset={name}"
  height, width = found.image_size or (224, 224)
  size = f",size={height}x{width}" if max(height, width) < 224 else ""
  print(
    f"or train from random ones{size and ', at the size of its images'}:\n"
    f"  {command(scratch + size)}"
    + ("" if size else f"  # At 32 px: dataset={name},size=32")
  )


def _next_command(
  args: argparse.Namespace, name: str, sizes: dict[str, int], recipe: str
) -> str:
  """A command line of train.py that works with these splits.

  Args:
    args: of this command.
    name: of the set.
    sizes: examples by split.
    recipe: module in configs, with words behind a colon if it takes any.
  """
  import importlib

  module, _, given = recipe.partition(":")
  get_config = importlib.import_module(f"configs.{module}").get_config
  data = (get_config(given) if given else get_config()).data
  wanted = {"name": name, "data_dir": args.data_dir or ""}
  has = [s for s in ("test", "validation") if sizes.get(s)]
  if not has:
    # Of few images a fiftieth may be none.
    cut = "98%" if sizes["train"] >= 100 else "-1"
    wanted |= {"train_split": f"train[:{cut}]", "eval_split": f"train[{cut}:]"}
  elif data.eval_split not in ("auto", *has):
    wanted["eval_split"] = has[0]
  file = f"configs/{module}.py" + (f":{given}" if given else "")
  words = [f"--config={file}"]
  words += [
    f"--config.data.{key}={value}"
    for key, value in wanted.items()
    if data[key] != value
  ]
  run = name.replace("/", "_").replace(":", "_")
  run += "_scratch" if module == "scratch" else ""
  words.append(f"--workdir=runs/{run}")
  return f"python train.py {shlex.join(words)}"


def main(args: argparse.Namespace) -> None:
  """Does what the command line says.

  Raises:
    UserError: something that the user can mend.
  """
  if args.list:
    from mixer.datasets.preparation import listing

    print(listing.known_sets())
    return
  if not args.set:
    raise UserError("name a data set, or --list.")
  try:
    _prepare(args)
  except KeyboardInterrupt as e:
    # After a terminal's "^C".
    begin = "\n" if sys.stderr.isatty() else ""
    name, *told = e.args
    then = told[0] if told else "the same command goes on with it"
    stop.say(f"{begin}{name}: stopped; {then}", sys.stderr)
    # Threads of a download would be waited for.
    stop.exit_at_once(stop.PREEMPTED)
