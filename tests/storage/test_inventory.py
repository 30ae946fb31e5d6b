"""The list of a checkpoint's files."""

import pytest
from etils import epath

from mixer.storage import inventory

FILES = {
  "_META": b"{}",
  "mark": b"",
  "params/d/a": b"0123456789" * 100,
  "ema/d/b": b"x" * 50,
  "ema/large": bytes(range(256)) * 5000,  # Over 1 MiB.
}


@pytest.fixture
def folder(tmp_path):
  for name, content in FILES.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
  inventory.write(epath.Path(tmp_path))
  return epath.Path(tmp_path)


def test_nothing_is_wrong_at_first(folder):
  assert inventory.damage(folder) == ""
  (folder / "more").write_text("Of no interest.")
  assert inventory.damage(folder) == ""


def test_without_a_list_nothing_is_known_to_be_wrong(folder):
  (folder / "files.json").unlink()
  (folder / "_META").unlink()
  assert inventory.damage(folder) == ""


@pytest.mark.parametrize("name", [*FILES, "files.json"])
@pytest.mark.parametrize("how", ["gone", "cut", "longer", "changed"])
def test_damage_is_named(folder, name, how):
  path = folder / name
  content = bytearray(path.read_bytes())
  if how == "gone":
    path.unlink()
    expected = f"its file {name} is gone"
  elif how == "changed":
    if not content:
      return
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    expected = f"its file {name} is changed"
  else:
    if how == "cut" and not content:
      return
    path.write_bytes(bytes(content[:-1] if how == "cut" else content + b"x"))
    now = len(content) + (-1 if how == "cut" else 1)
    expected = f"its file {name} has {now} bytes where {len(content)} were"
  if name == "files.json":
    expected = "" if how == "gone" else "its file files.json is changed"
  if name == "ema/large" and how == "changed":
    expected = ""  # The digests of arrays are for that.
  assert inventory.damage(folder).startswith(expected)
  assert bool(inventory.damage(folder)) == bool(expected)


def test_only_what_is_wanted_is_looked_at(folder):
  (folder / "ema/d/b").unlink()
  assert inventory.damage(folder, {"params"}) == ""
  assert inventory.damage(folder, {"ema"}) == "its file ema/d/b is gone"
  (folder / "_META").write_text("[]")
  assert inventory.damage(folder, {"params"}) == "its file _META is changed"
  assert inventory.damage(folder).endswith("(and 1 more)")


@pytest.mark.parametrize(
  "text", ["[]", "{}", '{"files": {}}', '{"files": 3, "sha256": "x"}', "\0"]
)
def test_a_list_that_is_none(folder, text):
  (folder / "files.json").write_text(text)
  assert inventory.damage(folder) == "its file files.json is changed"
