"""What the documents tell readers to type is run, as it stands, on small data.

Only what makes training short is added to a line. tests/test_documents.py
checks what can't be run: set-ups, clouds, and measurements of hours.
"""

import importlib.util
import pathlib
import re
import shutil
import textwrap
from collections.abc import Iterator

import pytest

from tests import documents, reader, test_documents

COMMANDS = documents.commands()
# Not run: why.
_LEFT_OUT = {
  r"--": "flags, of no command",
  r"make ": "CI runs what can be run; make -n in test_documents.py",
  r"(.*python -m )?(pip|apt|apt-get|ssh-add)\b": "changes the machine",
  r"(python -m )?benchmarks\b": "measures for minutes to hours",
  r"python -m mixer demo": "minutes: `make demo` in CI",
  r"python (-X importtime|train\.py)$": "no command",
  r"launch/|sbatch|sky|for vm in": "dry runs: tests of launch and documents",
  r"kubectl": "wants a cluster",
  r".*\.\.\.": "not whole",
}
# What ends with a sentence here: (document or "", command, sentence).
_STOPS = [
  ("docs/data.md", "flowers:load", "No module named 'flowers'.*put its folder"),
  (
    "",
    r"mixer prepare (cifar10|svhn_cropped|vtab/(pets|dtd))$",
    "make setup-tensorflow",
  ),
  ("", r"mixer plan .*--compile", "make setup-tpu"),
  ("", r"mixer plan --compile$", "required: --hardware"),
  ("", r"--workdir=gs://", "Google Cloud Storage can't be used"),
  # Against a server of the tests' own: tests/test_timm_format.py.
  ("", "=timm/", "can't be fetched from the Hugging Face hub"),
  # No account; and a flag that is newer than some gcloud.
  ("", r"gcloud", "active account|credentialed|target-size-policy-mode"),
]

# Of these, what stops them is that a package isn't here.
_MISSING = {"make setup-tensorflow": "tensorflow", "make setup-tpu": "libtpu"}


@pytest.fixture(scope="session")
def kept(tmp_path_factory) -> Iterator[reader.Kept]:
  root = tmp_path_factory.mktemp("kept")
  yield reader.Kept(root)
  shutil.rmtree(root)  # Gigabytes.


def left_out(command: documents.Command) -> bool:
  text = command.text
  return not command.python and (
    any(re.match(pattern, text) for pattern in _LEFT_OUT)
    or any(name in text for name in documents.ANY_OF_A_KIND)
    or (text.startswith("gcloud") and not shutil.which("gcloud"))
  )


def additions(text: str) -> str:
  """Flags behind a line that make it short."""
  if "mixer prepare imagenet21k --" in text:
    return "--hold_out=validation=15%,test=15%"
  if "--fewshot" in text:  # There are no more labels.
    return "--shots=1"
  if "mixer plan --config" in text:  # Not of the small set.
    return "--examples=13102300 --classes=19167"
  if not re.search(r"train\.py|mixer sweep", text):
    return ""
  more = [reader.SHORT]
  if "Mixer-" not in text:
    more.append(reader.SMALL)
  if "--profile=11:15" in text:
    more.append('--config.total="15 steps"')
  if ",paper" in text:
    # ImageNet's few shots want an image of each of its 1,000 classes.
    more.append("--config.fewshot.name=digits --config.fewshot.eval_split=test")
  if "mixer sweep" in text:
    more.append('--config.sweep.learning_rates="(0.01,)"')
  return " ".join(more)


def data_sets(text: str) -> set[str]:
  """That a line reads."""
  named = {*re.findall(r"--data=(\w+)", text)}
  for words in test_documents.simple_commands(text):
    flags = [w for w in words if re.match("--config[.=]", w)]
    if flags and "mixer plan" not in words:
      config = test_documents.reads("train.py", flags).config
      named |= {config.data.name, config.fewshot.name}
  return named


# Of what commands print, all that was run; for one data set of several.
_TYPED: set[str] = set()


class Session:
  """A reader of one document; `complaints` are what went wrong."""

  def __init__(self, path: str, root: pathlib.Path, kept: reader.Kept):
    self.path = path
    self.reader = reader.Reader(root, kept)
    self.complaints: list[str] = []
    self.printed: list[str] = []

  def do(self, text: str) -> None:
    text = documents.as_typed(text)
    # Of code in a sentence.
    text = re.sub(r"^mixer ", "python -m mixer ", text)
    text = re.sub(r"^train\.py ", "python train.py ", text)
    stop = ""
    for path, pattern, sentence in _STOPS:
      if path in ("", self.path) and re.search(pattern, text):
        stop = sentence
    missing = _MISSING.get(stop)
    if missing and importlib.util.find_spec(missing):
      return
    for name in data_sets(text):
      self.reader.give_set(name)
    self.reader.give_runs(text)
    done = self.reader.type(text, additions(text))
    output = done.stdout + done.stderr
    print(f"$ {text}\n{output}", flush=True)
    if (
      bool(done.returncode) != bool(stop)
      or "Traceback" in output
      or not re.search(stop, output)
    ):
      self.complaints.append(
        f"$ {text}\n{output[-2000:]}\nexit code {done.returncode}, expected "
        f"{stop or 0}"
      )
    # What a sentence names is looked at; it has its reader's own values.
    named = re.findall(r"`((?:python|make|pip) [^`]+)`", output)
    self.complaints += test_documents.complaints(
      [documents.Command(f"$ {text}", code) for code in named]
    )
    _, _, loading = done.stdout.partition("To load it:\n\n")
    if loading and "NOT VERIFIED" not in output:  # What loads it isn't here.
      self.do_python(textwrap.dedent(loading))
    # What is printed to be typed next, without its comment.
    self.printed += re.findall(
      r"(?m)^ +((?:\.venv/bin/)?python .*?)(?:  #.*)?$", done.stdout
    )

  def do_printed(self) -> None:
    """What the commands so far have printed, in folders of their own."""
    shutil.rmtree(self.reader.root / "runs")
    for text in dict.fromkeys(self.printed):
      kind = re.sub(r"dataset=\w+|--workdir=\S+", "", text)
      if kind not in _TYPED:
        _TYPED.add(kind)
        self.do(text)

  def do_python(self, text: str) -> None:
    match = re.search(r"\[B, (\d+), \d+, 3\]", text)
    side = match[1] if match else 8
    self.reader.give_weights(text)
    (self.reader.root / "snippet.py").write_text(
      "import numpy as np, PIL.Image\n"
      f"images = np.zeros((1, {side}, {side}, 3), np.float32)\n"
      "pil_image = PIL.Image.open('a.jpg')\n"
      f"array = np.asarray(pil_image)\n{text}"
    )
    self.do("python snippet.py")


_BEFORE = {
  "configs/finetune.py": "python train.py --workdir=WORKDIR_OF_B16 "
  "--config=configs/scratch.py:dataset=cifar10,model=B/16",
  "docs/after_training.md": "python -m mixer export --checkpoint=tiny.npz "
  "--to=stablehlo --output=DIR",
}


@pytest.mark.slow
@pytest.mark.parametrize(
  "path", sorted({c.path for c in COMMANDS if not left_out(c)})
)
def test_what_is_shown_works(path, kept, tmp_path):
  session = Session(path, tmp_path / "reader", kept)
  if path in _BEFORE:
    session.do(_BEFORE[path])
  for command in COMMANDS:
    if command.path == path and not left_out(command):
      (session.do_python if command.python else session.do)(command.text)
  session.do_printed()
  shutil.rmtree(tmp_path)
  assert not session.complaints, "\n\n".join(session.complaints)
