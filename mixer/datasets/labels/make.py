"""Makes synsets.txt.gz from WordNet 3.0 and lists of ids; README.md says how.

  python -m mixer.datasets.labels.make --wordnet=data.noun --lists=FOLDER

The result depends on the sources alone, but for the version of zlib, which may
compress the same text to other bytes.
"""

import argparse
import gzip
import io
import pathlib
import sys
from collections.abc import Iterable, Mapping

from mixer.datasets import wordnet

# List -> file of ids, one a line.
FILES = {
  "head": "imagenet21k_goog_synsets.txt",
  "fall11": "imagenet22k_synsets.txt",
  "fall11_p": "imagenet21k_miil_synsets.txt",
  "winter21_p": "imagenet21k_miil_w21_synsets.txt",
  "imagenet1k": "imagenet_synsets.txt",
}
_COLUMNS = ("wnid", "lists", "kind", "lemmas", "definition")
_HERE = pathlib.Path(__file__).parent


def read_nouns(lines: Iterable[str]) -> dict[str, wordnet.Synset]:
  """Reads WordNet's data.noun (wndb(5WN) describes its format).

  Args:
    lines: of the file; those of the licence start with two spaces.

  Returns:
    Every synset by its id. An instance ("Thames") is a kind of what it is an
    instance of; what is a kind of nothing ("entity") has the kind "".
  """
  lemmas, parents, definitions = {}, {}, {}
  for line in lines:
    if line.startswith("  "):
      continue
    data, gloss = line.split(" | ", 1)
    # offset, file, type, number of lemmas (hexadecimal), lemma and sense in
    # turn, number of pointers, then symbol, offset, type, words of each.
    fields = data.split()
    wnid, count = "n" + fields[0], int(fields[3], 16)
    words = fields[4 : 4 + 2 * count : 2]
    lemmas[wnid] = tuple(w.replace("_", " ") for w in words)
    at = 5 + 2 * count
    pointers = [fields[i : i + 4] for i in range(at, len(fields), 4)]
    assert len(pointers) == int(fields[at - 1])
    parents[wnid] = [
      "n" + p[1] for p in pointers if p[0] in ("@", "@i") and p[2] == "n"
    ]
    # Examples of usage follow, in quotation marks.
    definitions[wnid] = gloss.split('"')[0].strip().rstrip(";:").rstrip()
  return {
    wnid: wordnet.Synset(
      wnid,
      words,
      definitions[wnid],
      lemmas[parents[wnid][0]][0] if parents[wnid] else "",
    )
    for wnid, words in lemmas.items()
  }


def table(
  nouns: Mapping[str, wordnet.Synset], lists: Mapping[str, Iterable[str]]
) -> str:
  """The text of the file: a line for each id of any list, by id."""
  members = {name: {*ids} for name, ids in lists.items()}
  rows = ["\t".join(_COLUMNS)]
  for wnid in sorted(set().union(*members.values())):
    if wnid not in nouns:
      sys.exit(f"error: {wnid} is not a noun of this WordNet; is it 3.0?")
    letters = "".join(
      letter for name, letter in wordnet.LISTS.items() if wnid in members[name]
    )
    s = nouns[wnid]
    row = (wnid, letters, s.kind, "|".join(s.lemmas), s.definition)
    assert not any("\t" in field for field in row)
    assert not any("|" in lemma for lemma in s.lemmas)
    rows.append("\t".join(row))
  return "\n".join(rows) + "\n"


def compress(text: str) -> bytes:
  """Gzip without name and time in the header: equal text, equal bytes."""
  buffer = io.BytesIO()
  with gzip.GzipFile("", "wb", 9, buffer, mtime=0) as f:
    f.write(text.encode("ascii"))
  return buffer.getvalue()


def main() -> None:
  """Reads both sources, writes synsets.txt.gz beside this file."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--wordnet", type=pathlib.Path, required=True)
  parser.add_argument("--lists", type=pathlib.Path, required=True)
  parser.add_argument(
    "--out", type=pathlib.Path, default=_HERE / "synsets.txt.gz"
  )
  options = parser.parse_args()
  with options.wordnet.open(encoding="ascii") as f:
    nouns = read_nouns(f)
  lists = {
    name: (options.lists / file).read_text().split()
    for name, file in FILES.items()
  }
  text = table(nouns, lists)
  options.out.write_bytes(compress(text))
  print(
    f"{options.out}: {text.count(chr(10)) - 1:,} synsets, {len(text):,} bytes, "
    f"{options.out.stat().st_size:,} compressed"
  )


if __name__ == "__main__":
  main()
