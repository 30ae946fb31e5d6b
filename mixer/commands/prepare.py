"""Prepares a data set for training, once, for all runs to come.

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

import argparse
import contextlib
import importlib
import pathlib
import re
import shlex
import sys
from typing import Any

from mixer import errors, flags, stop
from mixer.errors import UserError

# The recipe that a set is for; any other is for fine-tuning.
_RECIPES = {
  "digits": "smoke",
  "glyphs": "demo",
  "imagenet2012": "mixer_i1k",
  "imagenet21k": "mixer_b16_i21k",
  "imagenet21k_p": "mixer_b16_i21k",
}


def _path(text: str) -> pathlib.Path:
  return pathlib.Path(text).expanduser()


def hold_out(text: str) -> dict[str, int | float]:
  """Parses --hold_out: "10%", "5000" (of `validation`), "NAME=PART,..."."""
  parts: dict[str, int | float] = {}
  try:
    for item in () if text == "none" else text.split(","):
      split, _, amount = item.strip().rpartition("=")
      share = amount.endswith("%")
      value = float(amount[:-1]) / 100 if share else int(amount)
      split = split or "validation"
      if value <= 0 or not split.isidentifier() or split in (*parts, "train"):
        raise ValueError
      parts[split] = value
    whole = {isinstance(value, int) for value in parts.values()}
    if len(whole) > 1 or (whole == {False} and sum(parts.values()) >= 1):
      raise ValueError
  except ValueError:
    raise argparse.ArgumentTypeError(
      f"{text} is none: give other splits than train numbers of images, or "
      "shares of less than 100% together, such as 10%, 5000 or "
      "validation=5000,test=5000"
    ) from None
  return parts


# Flags for files of the user's, which are fields of `build.Options` where there
# are such: how they are read, and their help.
_OWN: dict[str, tuple[dict[str, Any], str]] = {
  "name": ({}, "of the set that `folder` makes"),
  "classes": ({"type": _path}, "a file with the classes, one a line"),
  "resize": (
    {
      "type": flags.number(int, 0, 10**5),
      "metavar": "SHORT_SIDE",
      "dest": "short_side",
    },
    "make images with a longer short side so small; 0: keep every byte",
  ),
  "quality": (
    {"type": flags.number(int, 1, 100)},
    "of JPEG, where images are encoded anew; 95",
  ),
  "upright": (
    {"action": argparse.BooleanOptionalAction},
    "turn images as their EXIF orientation says (folder does)",
  ),
  "bad": (
    {"choices": ("skip", "fail"), "dest": "on_bad"},
    "what becomes of files that don't decode; skip",
  ),
  "max_bad": (
    {"type": flags.number(float, 0, 1), "metavar": "SHARE"},
    "stop where more than this share of the files is bad; 0.1",
  ),
  "mislabelled": (
    {"choices": ("keep", "skip", "fail"), "dest": "on_mislabelled"},
    "what becomes of a PNG that is called .jpg, and the like; keep",
  ),
  "accept_truncated": (
    {"action": "store_const", "const": True},
    "take what is there of a tar that breaks off",
  ),
  "hold_out": (
    {"type": hold_out, "metavar": "PARTS"},
    "10%%, 5000, or validation=10%%,test=5%%, or none: of the images that the "
    "source gives no split; of a folder exactly, and of each class; of "
    "archives to within chance",
  ),
  "seed": ({"type": flags.number(int, 0, 2**63 - 1)}, "of that draw; 0"),
  "workers": (
    {"type": flags.number(int, 0, 1000)},
    "threads that decode images; one a core by default",
  ),
}
_MODEL = "imagenet21k/Mixer-B_16"


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the command's own; of the second group None stands for a default."""
  add = parser.add_argument
  add("set", nargs="?", metavar="NAME", help="NAME, NAME/CONFIG; see --list")
  add("--list", action="store_true", help="the sets that are known by name")
  add(
    "--source",
    action="append",
    type=_path,
    default=[],
    metavar="PATH",
    help="what you have of it: archives, a folder; may be given more than once",
  )
  add("--data_dir", default="", help="where data sets are; TFDS's own default")
  add(
    "--restart",
    action="store_true",
    help="discard what a stopped preparation has done; prepare anew what is "
    "there, which stays until then",
  )
  add = parser.add_argument_group(
    "for files of yours (folder, imagenet21k and others that --list names)"
  ).add_argument
  for flag, (how, text) in _OWN.items():
    add(f"--{flag}", help=text, **how)


def main(args: argparse.Namespace) -> int | None:
  """Prepares it, and says what is there then."""
  if not args.set and not args.list:
    raise UserError("name a data set, or --list.")
  try:
    _known_sets() if args.list else _prepare(args)
  except KeyboardInterrupt as e:
    # After a terminal's "^C".
    begin = "\n" if sys.stderr.isatty() else ""
    name, *told = e.args
    then = told[0] if told else "the same command goes on with it"
    if args.restart:
      then = "the same command begins anew"
    stop.say(f"{begin}{name}: stopped; {then}", sys.stderr)
    # Threads of a download would be waited for.
    stop.exit_at_once(stop.PREEMPTED)


def _known_sets() -> None:
  """Lists the sets that are known by name: what each is, and how it is had."""
  from mixer.datasets import catalog, vtab

  wide = max(len(name) for name in catalog.ENTRIES) + 2
  for name, entry in catalog.ENTRIES.items():
    size = f"{entry.downloads / 1e9:.2g} GB"
    how = f"is downloaded, {size}" if entry.downloads else "is made here"
    if entry.by_hand:
      how = f"--source={entry.by_hand}"
    if name not in (*catalog.OWN, *catalog.SHIPPED):
      how += "; needs TensorFlow"
    if tasks := vtab.tasks_of(name):
      how += f"; read as {' or '.join(tasks)}"
    if name in catalog.ALSO_TFDS and not entry.files:
      how += f"; without it TFDS downloads {size}, with TensorFlow"
    print(f"{name:<{wide}}{entry.what}\n{'':<{wide}}{how}")
  print(
    "\nAny other set that TFDS knows is prepared by its name as well, and what "
    "TFDS has\nwritten as TFRecord is converted: --source=ITS_FOLDER. "
    f"TensorFlow is needed for\npreparing only: {catalog.TENSORFLOW}."
  )


def _prepare(args: argparse.Namespace) -> None:
  from mixer.datasets import catalog, shipped, stored, vtab
  from mixer.datasets.prepare import build, own, tfds
  from mixer.progress import Progress

  root = stored.resolve_data_dir(args.data_dir)
  if args.set.startswith(vtab.PREFIX):
    task, args.set = args.set, vtab.find(args.set).data_set
    print(f"{task} is made of the data set {args.set}", flush=True)
  base = catalog.base_name(args.set)
  ours, both = base in catalog.OWN, base in catalog.ALSO_TFDS
  there = None if ours and not both else _stored(args, root)
  if both and there:  # What TFDS has made is converted, or there already.
    ours = (there.folder / build.PREPARATION).exists()
  elif both:
    ours = bool(args.source) or not catalog.ENTRIES[base].downloads
  if ours:
    _summary(args, own.prepare(args, root), root)
    return
  manual = args.source[0] if args.source else root / "downloads" / "manual"
  if base not in catalog.SHIPPED and not there:
    tfds.check(args.set, manual)
  given = [
    f"--{flag}"
    for flag, (how, _) in _OWN.items()
    if getattr(args, how.get("dest", flag)) is not None
  ]
  if given:
    raise UserError(
      f"{', '.join(given)}: only for what is prepared from files of yours "
      f"({', '.join(catalog.OWN)}), named by --source; {base} is prepared as "
      "it comes."
    )
  if len(args.source) > 1 and not there:
    raise UserError(
      f"--source is given {len(args.source)} times; put the files for "
      f"{args.set} into one folder."
    )
  if base in catalog.SHIPPED:
    if args.source or base != args.set:
      raise UserError(f"{base} is made here, of no files, in one form: {base}.")
    shipped.folder(args.set, root)
  elif there and "array_record" in there.formats:
    print(
      f"data set {args.set} was prepared before; nothing is to be done"
      + (", and --source is not looked at" if args.source else "")
    )
  elif there:
    print(
      f"converting data set {args.set} from TFRecord ({there.folder})",
      flush=True,
    )
    with stored.lock(args.set, root), Progress() as progress:
      here = tfds.convert(there.folder, root, progress)
    if here.samefile(there.folder):
      print(
        "the TFRecord files beside the new ones are kept, and TFDS reads "
        "either; nothing here needs them: rm "
        f"{shlex.quote(str(here))}/*.tfrecord-*"
      )
  else:
    with stored.lock(args.set, root):
      print(f"preparing data set {args.set} in {root} by TFDS", flush=True)
      try:
        tfds.prepare(args.set, root, manual)
      except KeyboardInterrupt as e:
        # TFDS keeps nothing of what it had written.
        raise KeyboardInterrupt(
          *e.args, "the same command begins anew, with the downloads so far"
        ) from e
  _summary(args, args.set, root)


def _stored(args: argparse.Namespace, root: pathlib.Path) -> Any:
  """The set as it is in data_dir, or in --source; None if it is in neither."""
  from mixer.datasets import stored

  # The newest, as TFDS has it.
  here = [stored.read(f) for f in stored.versions(root, args.set)[-1:]]
  if here and ("array_record" in here[0].formats or not args.source):
    return here[0]
  found = [v for path in args.source for v in stored.versions(path, args.set)]
  if len(found) > 1:
    raise UserError(
      f"--source holds the data set {args.set} more than once: "
      f"{', '.join(map(str, found))}. Name one of these folders."
    )
  return stored.read(found[0]) if found else None


def _summary(args: argparse.Namespace, name: str, root: pathlib.Path) -> None:
  """Prints what is there, and what to do with it."""
  from mixer.datasets import catalog, stored, vtab
  from mixer.datasets import split as split_lib

  found = stored.read(split_lib.find(name, root, args.data_dir))
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
  recipe = _RECIPES.get(catalog.base_name(name))
  if recipe:
    print(f"train on it:\n  {_next_command(args, name, sizes, recipe)}")
    return
  height, width = found.image_size or (224, 224)
  size = f",size={height}x{width}" if max(height, width) < 224 else ""
  for what, recipe in (
    ("fine-tune released weights on it", f"finetune:model={_MODEL},"),
    ("or train from random ones (size=32: at 32 px)", "scratch:"),
  ):
    recipe += f"dataset={name}" + size * recipe.startswith("scratch")
    print(f"{what}:\n  {_next_command(args, name, sizes, recipe)}")


def _next_command(
  args: argparse.Namespace, name: str, sizes: dict[str, int], recipe: str
) -> str:
  """A command line of train.py that works with these splits."""
  module, _, given = recipe.partition(":")
  wanted = {"name": name, "data_dir": args.data_dir}
  has = [s for s in ("test", "validation") if sizes.get(s)]
  if not has:
    # Of few images a fiftieth may be none.
    cut = "98%" if sizes["train"] >= 100 else "-1"
    wanted |= {"train_split": f"train[:{cut}]", "eval_split": f"train[{cut}:]"}
  with contextlib.suppress(ModuleNotFoundError):  # Not in a checkout.
    get_config = importlib.import_module(f"configs.{module}").get_config
    data = (get_config(given) if given else get_config()).data
    if has and data.eval_split not in ("auto", *has):
      wanted["eval_split"] = has[0]
    wanted = {key: v for key, v in wanted.items() if data[key] != v}
  words = [f"--config=configs/{module}.py" + (f":{given}" if given else "")]
  words += [f"--config.data.{key}={value}" for key, value in wanted.items()]
  run = re.sub("[/:]", "_", name) + "_scratch" * (module == "scratch")
  return f"python train.py {shlex.join([*words, f'--workdir=runs/{run}'])}"
