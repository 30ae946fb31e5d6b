"""The command lines of the tools.

Nothing heavy is imported here: a command reads its flags before its imports,
which take seconds, so that --help and a wrong flag are answered at once.
"""

import argparse
import pathlib
from collections.abc import Sequence

from mixer import command_line, trained_flags

# What `mixer export` can write.
TARGETS = {
  "npz": "a file as the released ones",
  "timm": "a folder that timm loads, or FILE.safetensors of weights alone",
  "onnx": "a file for ONNX runtimes, uint8 pixels in",
  "stablehlo": "a program for JAX on any device, in a folder with its weights, "
  "or FILE.stablehlo with them inside",
}
# What its programs can be for.
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
# Formats of `mixer predict`, and how many classes it tells of each image.
FORMATS = ("table", "json", "csv")
TOP = 5
# What `mixer visualize` draws, the first three of weights alone, and how it
# makes a plane of features.
FIGURES = (
  *("tokens", "stem", "distance"),
  *("receptive_field", "similarity", "saliency", "embedding"),
)
EMBEDDINGS = ("pca", "tsne", "umap")


def _parser(
  name: str, description: str, **options: str
) -> argparse.ArgumentParser:
  return command_line.Parser(f"python -m mixer {name}", description, **options)


def demo() -> argparse.ArgumentParser:
  """Of `mixer demo`."""
  parser = _parser("demo", "The main job from end to end.")
  parser.add_argument("--workdir", default="runs/demo", type=pathlib.Path)
  return parser


def _shots(text: str) -> tuple[int, ...]:
  return tuple(trained_flags.positive(part) for part in text.split(","))


def _table(text: str) -> str:
  if pathlib.Path(text).suffix.lower() not in (".csv", ".parquet"):
    raise argparse.ArgumentTypeError(
      f"{text!r} ends in neither .csv nor .parquet"
    )
  return text


def evaluate() -> argparse.ArgumentParser:
  """Of `mixer evaluate`."""
  parser = _parser("evaluate", "Evaluates a trained model on a data set.")
  trained_flags.add(parser)
  add = parser.add_argument
  add("--data", default="", help="data set, as TFDS names it; a run's own")
  add("--split", default="", help="a run's own, else validation")
  add("--data_dir", default="", help="where data sets lie; a run's, or TFDS's")
  add("--batch_size", type=trained_flags.positive, help="over all devices")
  add(
    "--same_classes",
    action="store_true",
    help="outputs are the data set's classes, in order, whatever their names",
  )
  add("--output", default="", metavar="DIR", help="runs/evaluate/...")
  add(
    "--examples",
    type=_table,
    metavar="FILE",
    help="list every example: file, label, prediction, score; .csv or .parquet",
  )
  few = parser.add_argument_group("few-shot").add_argument
  few("--fewshot", action="store_true", help="ridge regression on features")
  few("--train_split", default="train", help="labelled examples come from it")
  few("--shots", type=_shots, default=(1, 5, 10, 25), help="as in 1,5,10,25")
  few("--seeds", type=trained_flags.positive, default=3, help="draws of each")
  few("--l2", type=float, default=1024.0, help="weight of the ridge")
  return parser


def _platforms(text: str) -> tuple[str, ...]:
  """Reads "cpu,cuda"."""
  names = tuple(text.split(","))
  wrong = [name for name in names if name not in PLATFORMS]
  if wrong or len({*names}) < len(names):
    raise argparse.ArgumentTypeError(
      f"{text!r}: expected some of {','.join(PLATFORMS)}, each once"
    )
  return names


def export() -> argparse.ArgumentParser:
  """Of `mixer export`."""
  parser = _parser(
    "export",
    "Writes a trained model to a file that other programs take, and compares "
    "the two.",
  )
  trained_flags.add(parser)
  parser.set_defaults(platform="cpu")
  parser.add_argument(
    "--averaged",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="take the average of the weights where the run kept one",
  )
  parser.add_argument(
    "--to",
    choices=tuple(TARGETS),
    default="npz",
    help="; ".join(f"{name}: {text}" for name, text in TARGETS.items()),
  )
  parser.add_argument(
    "--output", required=True, metavar="PATH", help="a file, or a new folder"
  )
  parser.add_argument(
    "--images",
    nargs="+",
    default=(),
    metavar="IMAGE",
    help="files to compare on, in place of random images",
  )
  parser.add_argument(
    "--platforms",
    type=_platforms,
    default=("cpu", "cuda", "tpu"),
    metavar="NAMES",
    help="that a stablehlo program is for; cpu,cuda,tpu",
  )
  return parser


def inspect() -> argparse.ArgumentParser:
  """Of `mixer inspect`."""
  parser = _parser(
    "inspect", "Shows what a checkpoint holds, or how two differ."
  )
  parser.add_argument(
    "path",
    metavar="CHECKPOINT",
    help="workdir, WORKDIR/checkpoints/STEP, .npz file, or released name",
  )
  parser.add_argument(
    "other", metavar="OTHER", nargs="?", help="to compare it with"
  )
  parser.add_argument(
    "--parameters",
    action="store_true",
    help="list every parameter, and norms by module",
  )
  parser.add_argument("--json", action="store_true", help="for programs")
  return parser


def predict() -> argparse.ArgumentParser:
  """Of `mixer predict`."""
  parser = _parser(
    "predict", "Says what is on images, or writes their features."
  )
  trained_flags.add(parser)
  parser.add_argument(
    "images", nargs="*", metavar="IMAGE", help="a file, a folder, or a pattern"
  )
  parser.add_argument(
    "--files",
    default="",
    metavar="LIST",
    help="a file with the path of an image on each line; - for stdin",
  )
  parser.add_argument(
    "--top",
    type=trained_flags.positive,
    help=f"how many classes of each; {TOP}",
  )
  parser.add_argument(
    "--format",
    choices=FORMATS,
    default="",
    help="json is an object a line (JSON Lines), csv a line a class; as the "
    "suffix of --output says, else a table",
  )
  parser.add_argument(
    "--output",
    default="",
    metavar="FILE",
    help="write there in place of stdout; FILE.partial until it is whole",
  )
  parser.add_argument(
    "--features",
    default="",
    metavar="FILE",
    help="write pre-logits in place of classes: FILE.npy, with the paths in "
    "FILE.csv, or FILE.parquet",
  )
  parser.add_argument(
    "--batch_size",
    type=trained_flags.positive,
    metavar="IMAGES",
    help="at a time, over all devices; 32 on each",
  )
  return parser


def replay() -> argparse.ArgumentParser:
  """Of `mixer replay`."""
  parser = _parser(
    "replay",
    "Makes one update of a run again, and says where it stops being finite.",
  )
  parser.add_argument("workdir", metavar="WORKDIR", help="of train.py")
  parser.add_argument(
    "--step", type=int, required=True, metavar="N", help="the update, from 1"
  )
  parser.add_argument("--data_dir", default="", help="where the data lie now")
  parser.add_argument("--json", action="store_true", help="print all as JSON")
  parser.add_argument(
    "--platform", choices=("cpu", "gpu", "tpu"), default="", help="to run on"
  )
  return parser


def report() -> argparse.ArgumentParser:
  """Of `mixer report`."""
  parser = _parser(
    "report", "Makes a page about a run, or one that compares several."
  )
  add = parser.add_argument
  add("workdirs", nargs="+", metavar="WORKDIR", help="of train.py")
  add(
    "-o",
    "--output",
    default="",
    metavar="FILE",
    help="the page; WORKDIR/report.html, or report.html here for several runs",
  )
  add(
    "--evaluate",
    action=argparse.BooleanOptionalAction,
    help="evaluate the newest checkpoint, or don't; if none, or an older one, "
    "has been",
  )
  add("--data_dir", default="", help="where data sets lie; each run's own")
  add(
    "--platform",
    choices=("cpu", "gpu", "tpu"),
    default="",
    help="to evaluate on",
  )
  return parser


def _figures(text: str) -> list[str]:
  names = list(dict.fromkeys(text.split(",")))
  for name in names:
    if name not in FIGURES:
      raise argparse.ArgumentTypeError(
        f"{name!r} is none of {', '.join(FIGURES)}"
      )
  return names


def _count(text: str) -> int:
  return 0 if text == "0" else trained_flags.positive(text)


def _visualize() -> argparse.ArgumentParser:
  parser = _parser(
    "visualize",
    "Looks inside a trained Mixer.",
    usage="%(prog)s CHECKPOINT -o DIR [--images IMAGE ...] ...",
  )
  trained_flags.add(parser, required=False)
  add = parser.add_argument
  add(
    "paths",
    nargs="*",
    metavar="CHECKPOINT",
    help="the model, as for --checkpoint; images may follow",
  )
  add("-o", "--output", required=True, metavar="DIR", help="for the figures")
  add(
    "--images",
    nargs="+",
    default=[],
    metavar="IMAGE",
    help="files, and folders with images; some of the run's evaluation split",
  )
  add(
    "--figures",
    type=_figures,
    default=list(FIGURES),
    help=f"some of {','.join(FIGURES)}; all",
  )
  add(
    "--examples",
    type=trained_flags.positive,
    default=256,
    help="how many images at most; 256",
  )
  add(
    "--explain",
    type=trained_flags.positive,
    default=6,
    help="of how many the saliency is shown; 6",
  )
  add(
    "--smooth",
    type=_count,
    default=16,
    help="noisy copies for the saliency's gradient; 16; 0 for a plain one",
  )
  add(
    "--embedding",
    choices=EMBEDDINGS,
    default="pca",
    help="of features, beside PCA",
  )
  add("--data_dir", default="", help="where data sets lie; as in the run")
  return parser


def visualize(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads that of `mixer visualize`, where the checkpoint may be a word."""
  parser = _visualize()
  args = parser.parse_intermixed_args(argv)
  words = list(args.paths)
  if args.checkpoint is None:
    if not words:
      parser.error("the checkpoint is missing: name it first")
    args.checkpoint = words.pop(0)
  args.images = words + args.images
  return args
