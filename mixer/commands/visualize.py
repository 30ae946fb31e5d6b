"""Looks inside a trained Mixer: figures of its weights, and of what it does.

  python -m mixer visualize CHECKPOINT -o DIR
  python -m mixer visualize CHECKPOINT -o DIR --images photo.jpg photos/
  python -m mixer visualize CHECKPOINT -o DIR --figures=tokens,stem

Writes a PNG and an SVG of each figure. The weights alone give `tokens`, `stem`
and `distance`; `receptive_field`, `similarity`, `saliency` and `embedding` need
images: files, and folders with images, or else some of the data set that the
run was evaluated on, where it is prepared. Says at the end what each file
shows, and what was left out and why. A file that can't be read is told of on
stderr; the rest goes on, and the exit code is 1.
"""

# First of all, so that a wrong flag and --help are answered at once.
from mixer.commands import arguments

if __name__ == "__main__":
  arguments.visualize()

import argparse
import pathlib
import sys
from collections.abc import Sequence

from mixer import command_line, stop, text, trained, trained_flags
from mixer.errors import UserError
from mixer.insight import embedding, figures, making, pictures


def _folder(name: str) -> pathlib.Path:
  """Where figures go; made before the work that they are of."""
  folder = pathlib.Path(name).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink()
  except OSError as e:
    why = e.strerror
    if isinstance(e, FileExistsError | NotADirectoryError):
      why = "a file is in the way"
    raise UserError(
      f"figures can't be written to {folder} ({why}); name another folder "
      "with -o."
    ) from e
  return folder


def _pictures(
  args: argparse.Namespace, model: trained.Trained
) -> tuple[pictures.Pictures | None, list[str], str]:
  """The images; what is wrong with some; and why there are none."""
  if args.images:
    files, problems = pictures.find(args.images)
    shown = pictures.of_files(files, model, args.examples)
    if len(files) > args.examples:
      print(
        f"images        {args.examples:,} of {len(files):,}, evenly spaced "
        "(--examples)"
      )
    problems += shown.problems
    if len(shown.images):
      return shown, problems, ""
    return None, problems, "none of the images could be read."
  if model.config is None:
    return None, [], "it needs images: name some with --images."
  try:
    return pictures.of_data(model, args.data_dir, args.examples), [], ""
  except UserError as e:
    return (
      None,
      [],
      (
        "it needs images: name some with --images. Those of the run's own data "
        f"set could not be had: {e}"
      ),
    )


def run(args: argparse.Namespace) -> int:
  """Does what the command line says; returns the exit code.

  Raises:
    UserError: something that the user can mend.
  """
  embedding.check(args.embedding)
  folder = _folder(args.output)
  model = trained_flags.load(args)
  print(f"checkpoint    {model.origin}", flush=True)
  shown, problems, missing = None, [], ""
  if any(name in making.OF_IMAGES for name in args.figures):
    shown, problems, missing = _pictures(args, model)
  for problem in problems:
    print(text.printable(f"error: {problem}"), file=sys.stderr)
  if shown:
    print(f"images        {len(shown.images):,} looked at", flush=True)
  options = making.Options(args.explain, args.smooth, args.embedding)
  written: list[tuple[str, str]] = []
  left_out: dict[str, str] = {}
  for name in args.figures:
    if name in making.OF_IMAGES and shown is None:
      left_out[name] = missing
      continue
    print(f"making        {name}", flush=True)
    try:
      with figures.style():
        drawn = (
          making.OF_IMAGES[name](model, shown, options)
          if name in making.OF_IMAGES
          else making.OF_WEIGHTS[name](model, options)
        )
        for file, what, figure in drawn:
          figures.save(figure, folder, file)
          written.append((file, what))
    except making.LeftOut as e:
      left_out[name] = str(e)
  wide = max((len(file) for file, _ in written), default=0) + 10
  print(f"\nwritten to {folder}:")
  for file, what in written:
    print(f"  {f'{file}.png, .svg':<{wide}}  {what}")
  for why in dict.fromkeys(left_out.values()):
    names = [name for name, own in left_out.items() if own == why]
    print(f"left out: {', '.join(names)}: {why}")
  if not written:
    raise UserError("no figure could be made; see above.")
  return stop.FAILED if problems else stop.DONE


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  return command_line.tool(run, arguments.visualize(argv))


if __name__ == "__main__":
  sys.exit(main())
