"""Where checkpoints lie, and which of them count."""

import pathlib
import shutil

import pytest

from mixer import workdir as workdir_lib
from mixer.errors import UserError
from mixer.storage import finding
from tests import states


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with checkpoints 1 and 3."""
  workdir = tmp_path_factory.mktemp("saved")
  states.save_tiny(workdir, 1, 3)
  return workdir


@pytest.fixture
def workdir(saved, tmp_path) -> pathlib.Path:
  """A copy of it, to be spoiled."""
  shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
  return tmp_path


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("path", "step"), [("", 3), ("/checkpoints/1", 1)])
def test_locate(saved, path, step, slash):
  assert finding.locate(f"{saved}{path}{slash}") == (saved, step)


def test_locate_expands_the_home_folder(saved, monkeypatch):
  monkeypatch.setenv("HOME", str(saved.parent))
  assert finding.locate(f"~/{saved.name}") == (saved, 3)
  assert finding.directory(f"~/{saved.name}") == saved / "checkpoints"


def test_paths_are_absolute_unless_they_are_addresses(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert finding.directory("run") == tmp_path / "run" / "checkpoints"
  assert str(finding.directory("gs://b/run")) == "gs://b/run/checkpoints"
  assert workdir_lib.is_remote(finding.directory("gs://b/run"))
  assert not workdir_lib.is_remote(finding.directory("run"))


@pytest.mark.parametrize("path", ["nosuch", "checkpoints", "file", ""])
def test_locate_where_nothing_is(tmp_path, path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="expected a workdir of train.py"):
    finding.locate(str(tmp_path / path))


@pytest.mark.parametrize("step", [0, 2])
def test_locate_a_step_that_is_not_there(saved, step):
  where = saved / "checkpoints"
  with pytest.raises(UserError) as caught:
    finding.locate(str(where / str(step)))
  assert str(caught.value) == (
    f"there is no whole checkpoint {step} in {where}; there are: 1, 3."
  )


def test_locate_in_a_workdir_that_has_none_yet(tmp_path):
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  with pytest.raises(UserError, match=r"no whole checkpoint in .*are: none\."):
    finding.locate(str(tmp_path))
  assert finding.committed(tmp_path) == []
  assert finding.committed(tmp_path / "nosuch") == []


def test_tidying_makes_the_folder(tmp_path):
  folder = finding.directory(tmp_path / "a" / "b")
  assert finding.tidy(folder) == []
  assert folder.is_dir()


def test_what_is_left_of_saves_and_removals_goes(workdir):
  where = workdir / "checkpoints"
  for name in ("5.orbax-checkpoint-tmp", "0.removed", "notes"):
    (where / name / "params").mkdir(parents=True)
  (where / "README").write_text("mine")
  assert finding.tidy(finding.directory(workdir)) == []
  assert states.listing(workdir) == ["1", "3", "README", "notes"]


def test_what_is_only_named_like_one_is_moved_aside_and_told(workdir):
  where = workdir / "checkpoints"
  shutil.copytree(where / "3", where / "7")
  (where / "7" / "commit_success.txt").unlink()
  (where / "9").mkdir()
  assert finding.committed(workdir) == [1, 3]
  said = finding.tidy(finding.directory(workdir))
  assert states.listing(workdir) == ["1", "3"]
  away = workdir / "checkpoints.damaged"
  assert sorted(said) == [
    f"{where}/{n} was never finished, or has lost its mark of that: it doesn't "
    f"count as a checkpoint, and now lies in {away}/{n}."
    for n in (7, 9)
  ]
  assert (away / "7" / "params").is_dir() and (away / "9").is_dir()


def test_nothing_that_was_moved_is_lost(workdir):
  folder = finding.directory(workdir)
  for count in (1, 2, 3):
    (folder / "8").mkdir()
    (folder / "8" / f"it is {count}").touch()
    finding.tidy(folder)
  away = workdir / "checkpoints.damaged"
  assert sorted(str(p.relative_to(away)) for p in away.rglob("it*")) == [
    "8.2/it is 2",
    "8.3/it is 3",
    "8/it is 1",
  ]


def test_what_cannot_be_moved(workdir):
  folder = finding.directory(workdir)
  (workdir / "checkpoints.damaged").write_text("in the way")
  with pytest.raises(UserError, match="can't be moved to .*/3: .*Move it away"):
    finding.move_aside(folder / "3")
  assert finding.committed(workdir) == [1, 3]


def test_a_file_in_place_of_the_folder(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(UserError, match="can't be prepared .*file of that name"):
    finding.tidy(finding.directory(tmp_path))


def test_a_removal_that_is_killed_leaves_nothing_that_counts(
  workdir, monkeypatch
):
  def killed(self, *unused):
    raise KeyboardInterrupt

  folder = finding.directory(workdir)
  with monkeypatch.context() as patch:
    patch.setattr(type(folder), "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
      finding.remove(folder / "1")
  assert finding.committed(workdir) == [3]
  assert finding.tidy(folder) == []
  assert states.listing(workdir) == ["3"]


def test_reasons_are_one_line():
  assert finding.reason(ValueError("a.\nb")) == "a"
  assert finding.reason(ValueError()) == "ValueError()"
  long = ValueError("x" * 400 + " No space left on device [28] ...")
  assert finding.reason(long) == "No space left on device"
