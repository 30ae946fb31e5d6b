"""Saving: whole or absent, and the same to the bit on any devices."""

import dataclasses
import os
import pathlib
import resource
import shutil
import subprocess

import jax
import numpy as np
import pytest
from etils import epath

from mixer import checkpoints
from mixer.errors import UserError
from mixer.storage import inventory
from tests import conftest, states
from tests.states import assert_same, copy, listing, make_trainer, update


@pytest.fixture(scope="module")
def trainer():
  return make_trainer()


@pytest.fixture(scope="module")
def saved(trainer, tmp_path_factory):
  """A workdir with checkpoints 1 and 3, and the states that they hold."""
  workdir = tmp_path_factory.mktemp("saved")
  states, state = {}, trainer.init()
  with checkpoints.Checkpoints(workdir, keep=3) as c:
    for step in (1, 3):
      state = update(trainer, state, step - int(state.step))
      states[step] = copy(state)
      c.save(step, state, {"class_names": ["a", "b"], "step": step})
  return workdir, states


@pytest.fixture
def workdir(saved, tmp_path) -> pathlib.Path:
  """A copy of `saved`'s, to be spoiled."""
  shutil.copytree(saved[0] / "checkpoints", tmp_path / "checkpoints")
  return tmp_path


def test_the_whole_state_comes_back(trainer, saved):
  workdir, states = saved
  with checkpoints.Checkpoints(workdir, keep=3) as c:
    assert c.latest == 3
    got, _ = c.restore(trainer.abstract)
  assert_same(got, states[3])
  # Nothing of it is at its initial value, which would prove little.
  assert int(got.step) == 3
  initial = trainer.init()
  for part in ("params", "opt_state", "ema"):
    ours, first = (
      np.concatenate([np.ravel(x) for x in jax.tree.leaves(getattr(s, part))])
      for s in (got, initial)
    )
    assert np.mean(ours != first) > 0.9, part
  leaves = zip(
    jax.tree.leaves(got), jax.tree.leaves(trainer.abstract), strict=True
  )
  assert all(leaf.sharding == there.sharding for leaf, there in leaves)


def test_training_goes_on_to_the_same_bits(trainer, saved, workdir):
  shutil.rmtree(workdir / "checkpoints" / "3")
  with checkpoints.Checkpoints(workdir) as c:
    state, _ = c.restore(trainer.abstract)
  assert_same(update(trainer, state, 2), saved[1][3])


def test_the_state_may_be_donated_right_after_a_save(trainer, tmp_path):
  state = trainer.init()
  expected = {}
  with checkpoints.Checkpoints(tmp_path, keep=9) as c:
    for step in (1, 2, 3):
      state = update(trainer, state)
      expected[step] = copy(state)
      c.save(step, state, {})
      given = state
      state = update(trainer, state)  # Over the buffers being saved.
      assert given.params["stem"]["kernel"].is_deleted()
      state = dataclasses.replace(
        state, step=jax.device_put(np.int32(step), state.step.sharding)
      )
  for step, state in expected.items():
    found, _ = checkpoints.load_params(
      str(tmp_path / "checkpoints" / str(step)), averaged=False
    )
    assert_same(found, state.params)
  with checkpoints.Checkpoints(tmp_path) as c:
    assert_same(c.restore(trainer.abstract)[0], expected[3])


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_restores_onto_fewer_devices(saved, devices):
  workdir, states = saved
  fewer = make_trainer(devices)
  with checkpoints.Checkpoints(workdir, keep=3) as c:
    got, _ = c.restore(fewer.abstract)
  assert_same(got, states[3])
  for leaf in jax.tree.leaves(got):
    assert leaf.sharding.device_set == {*jax.devices()[:devices]}


def test_restores_onto_more_devices(trainer, tmp_path):
  state = make_trainer(2).init()
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(0, state, {})
    got, _ = c.restore(trainer.abstract)
  assert_same(got, copy(state))
  kernel = got.params["stem"]["kernel"]
  assert kernel.sharding.device_set == {*jax.devices()}


def test_a_state_without_average(tmp_path):
  plain = make_trainer(ema_decay=0.0)
  state = plain.init()
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(1, state, {})
    got, _ = c.restore(plain.abstract)
  assert got.ema is None
  assert_same(got, copy(state))
  params, info = checkpoints.load_params(str(tmp_path))
  assert_same(params, copy(state.params))
  assert not info["averaged"]


def test_there_is_none_at_first(tmp_path):
  with checkpoints.Checkpoints(tmp_path / "new") as c:
    assert c.latest is None


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_stay(tmp_path, keep):
  assert saved_steps(tmp_path, range(1, 5), keep=keep) == ["3", "4"][-keep:]


def test_latest_waits_for_the_save_under_way(trainer, tmp_path):
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(7, trainer.init(), {})
    assert c.latest == 7
    assert listing(tmp_path) == ["7"]


def saved_steps(workdir, steps, **options) -> list[str]:
  """What lies there after saves of these steps."""
  state = states.tiny(0)
  with checkpoints.Checkpoints(workdir, **options) as c:
    for step in steps:
      c.save(step, state, {})
  return listing(workdir)


def test_multiples_stay(tmp_path):
  left = saved_steps(tmp_path, range(1, 9), keep=2, keep_every=3)
  assert left == ["3", "6", "7", "8"]


def test_the_best_stays(tmp_path):
  known = {}
  state = states.tiny(0)
  with checkpoints.Checkpoints(tmp_path, best=lambda: known) as c:
    # As in a run: a state is evaluated after it was saved.
    for step, metric in [(1, 0.2), (2, 0.9), (3, 0.5), (4, 0.95), (5, 0.1)]:
      c.save(step, state, {})
      known[step] = metric
      c.wait()
      best = max(known, key=lambda s: known[s])
      # Of the newest one nothing was known when it was saved.
      before = max(list(known)[:-1], key=lambda s: known[s], default=step)
      assert {str(step), str(before)} == {*listing(tmp_path)}, best
  assert listing(tmp_path) == ["4", "5"]


def test_the_one_that_was_read_back_stays(tmp_path):
  saved_steps(tmp_path, (1, 2))
  state = states.tiny(0)
  with checkpoints.Checkpoints(tmp_path) as c:
    _, step = c.restore(states.abstract(state))
    assert step == 2
    for step in (3, 4, 5):
      c.save(step, state, {})
  assert listing(tmp_path) == ["2", "5"]
  assert saved_steps(tmp_path, (6,)) == ["6"]


def test_one_that_cannot_be_removed_is_told(tmp_path, monkeypatch):
  def refuse(self, *unused):
    raise OSError(16, "Device or resource busy")

  said = []
  state = states.tiny(0)
  with checkpoints.Checkpoints(tmp_path, tell=said.append) as c:
    c.save(1, state, {})
    c.wait()
    with monkeypatch.context() as patch:
      patch.setattr(type(c.directory), "rename", refuse)
      patch.setattr(
        checkpoints.ocp,
        "save_checkpointables_async",
        lambda *a, **k: Kept(tmp_path),
      )
      c.save(2, state, {})
      c.wait()
    assert c.latest == 2
  assert said == [
    f"checkpoint {tmp_path}/checkpoints/1 can't be removed: [Errno 16] Device "
    "or resource busy. It is left as it is."
  ]


class Kept:
  """In place of Orbax's response to a save that succeeds without a rename."""

  def __init__(self, workdir):
    shutil.copytree(workdir / "checkpoints/1", workdir / "checkpoints/2")

  def result(self):
    pass


def test_a_list_of_files_that_cannot_be_written_is_told(tmp_path, monkeypatch):
  monkeypatch.setattr(inventory, "write", fail)
  said = []
  with checkpoints.Checkpoints(tmp_path, tell=said.append) as c:
    c.save(1, states.tiny(1), {})
    assert c.latest == 1
  assert len(said) == 1 and "1 is saved, but no list of its files: " in said[0]
  assert checkpoints.locate(tmp_path) == (tmp_path, 1)


def test_the_folder_has_vanished_between_saves(tmp_path):
  said = []
  state = states.tiny(3)
  with checkpoints.Checkpoints(tmp_path / "run", tell=said.append) as c:
    c.save(2, state, {})
    c.wait()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    c.save(3, state, {})
    # It is of use at once, as if nothing had been.
    assert_same(c.restore(states.abstract(state))[0], copy(state))
  assert said == [
    f"{c.directory} had vanished, with what was in it, and was made anew for "
    "the checkpoint of step 3."
  ]


@pytest.mark.parametrize("gone", ["deleted", "moved"])
def test_a_workdir_that_has_vanished_is_not_made_anew(tmp_path, gone):
  workdir, state = tmp_path / "run", states.tiny(3)
  with checkpoints.Checkpoints(workdir) as c:
    c.save(2, state, {})
    c.wait()
    if gone == "deleted":
      shutil.rmtree(workdir)
    else:
      workdir.rename(tmp_path / "elsewhere")
    with pytest.raises(checkpoints.SaveError) as caught:
      c.save(3, state, {})
    assert not workdir.exists()
  said = str(caught.value)
  assert said.startswith(f"--workdir={workdir} has vanished (deleted, renamed")
  assert "deleted, the same command begins anew" in said


@pytest.mark.parametrize("there", [[], ["params"], ["params", "training"]])
def test_what_vanishes_while_it_is_written(tmp_path, monkeypatch, there):
  # Orbax itself takes no notice, if it comes at the wrong moment.
  class Vanished:
    def result(self):
      for part in there:
        (tmp_path / "checkpoints" / "4" / part).mkdir(parents=True)

  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(3, states.tiny(3), {})
    c.wait()
    monkeypatch.setattr(
      checkpoints.ocp, "save_checkpointables_async", lambda *a, **k: Vanished()
    )
    c.save(4, states.tiny(4), {})
    with pytest.raises(
      checkpoints.SaveError, match="/4(/ema|/params|) has van"
    ):
      c.wait()
  assert checkpoints.committed(tmp_path) == [3]


class Later:
  """In place of Orbax's response to a save that fails in the background."""

  def result(self):
    raise OSError(28, "No space left on device")


def fail(*unused, **also_unused):
  raise OSError(28, "No space left on device")


def later(*unused, **also_unused):
  return Later()


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize(
  ("before", "kept"),
  [(None, "There is none yet"), (3, "The newest whole one is that of step 3")],
)
def test_a_save_that_fails(tmp_path, monkeypatch, when, before, kept):
  state = states.tiny(0)
  with checkpoints.Checkpoints(tmp_path) as c:
    if before is not None:
      c.save(before, state, {})
      c.wait()
    with monkeypatch.context() as patch:
      broken = fail if when == "at once" else later
      patch.setattr(checkpoints.ocp, "save_checkpointables_async", broken)
      with pytest.raises(checkpoints.SaveError) as caught:
        c.save(4, state, {})
        c.wait()
    message = str(caught.value)
    assert message.startswith(
      f"the checkpoint of step 4 could not be written to {c.directory}: "
      "No space left on device. "
    )
    assert kept in message and "start the same command again" in message
    # It has been told; and the next one may succeed.
    assert c.latest == before
    c.save(5, state, {})
  assert checkpoints.locate(str(tmp_path)) == (tmp_path, 5)


def test_a_save_that_fails_at_the_end_is_told(tmp_path, monkeypatch):
  c = checkpoints.Checkpoints(tmp_path)
  monkeypatch.setattr(checkpoints.ocp, "save_checkpointables_async", later)
  with pytest.raises(checkpoints.SaveError, match="step 4"), c:
    c.save(4, states.tiny(0), {})


def test_what_went_wrong_first_is_what_is_told(tmp_path, monkeypatch):
  c = checkpoints.Checkpoints(tmp_path)
  monkeypatch.setattr(checkpoints.ocp, "save_checkpointables_async", later)
  with pytest.raises(ZeroDivisionError), c:
    c.save(4, states.tiny(0), {})
    raise ZeroDivisionError


def assert_fails(workdir, spoil, mend=lambda: None) -> str:
  """Saves 3, spoils, can't save 4; 3 is as it was. The sentence."""
  three = states.tiny(3)
  c = checkpoints.Checkpoints(workdir)
  with c:
    c.save(3, three, {})
    c.wait()
    try:
      spoil(c.directory)
      with pytest.raises(checkpoints.SaveError) as caught:
        c.save(4, states.tiny(4), {})
        c.wait()
    finally:
      mend()
  message = str(caught.value)
  assert message.startswith("the checkpoint of step 4 could not be written to")
  assert "The newest whole one is that of step 3" in message
  with checkpoints.Checkpoints(workdir) as c:  # As a new start does.
    state, step = c.restore(states.abstract(three))
    assert step == 3 and listing(workdir) == ["3"]
    c.save(4, states.tiny(4), {})
  assert_same(state, copy(three))
  return message


@conftest.noisy
def test_a_commit_that_fails(tmp_path, monkeypatch):
  rename = type(epath.Path(tmp_path)).rename

  def broken(self, to):
    if "orbax-checkpoint-tmp" in self.name:
      raise OSError(5, "Input/output error")
    return rename(self, to)

  def spoil(directory):
    monkeypatch.setattr(type(directory), "rename", broken)

  assert "Input/output error" in assert_fails(tmp_path, spoil, monkeypatch.undo)


@conftest.noisy
def test_a_mark_that_cannot_be_set(tmp_path, monkeypatch):
  write = type(epath.Path(tmp_path)).write_text

  def broken(self, *args, **kwargs):
    if self.name == "commit_success.txt":
      raise OSError(5, "Input/output error")
    return write(self, *args, **kwargs)

  def spoil(directory):
    monkeypatch.setattr(type(directory), "write_text", broken)

  assert "Input/output error" in assert_fails(tmp_path, spoil, monkeypatch.undo)


@conftest.noisy
def test_files_that_may_not_grow(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

  def spoil(directory):
    # Python ignores the signal: the kernel then refuses what is longer.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

  def mend():
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

  assert_fails(tmp_path, spoil, mend)


@pytest.fixture
def small_disk(tmp_path):
  """A disk of one MiB."""
  where = tmp_path / "disk"
  where.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)]
  if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("only root may mount a small disk")
  yield where
  subprocess.run(["umount", "--lazy", str(where)], check=True)


@conftest.noisy
def test_a_full_disk(small_disk):
  filler = small_disk / "filler"

  def spoil(directory):
    with pytest.raises(OSError, match="No space"), filler.open("wb") as f:
      while True:
        f.write(bytes(4096))
        f.flush()

  message = assert_fails(small_disk, spoil, filler.unlink)
  assert "No space left on device. The newest" in message


@conftest.noisy
def test_a_disk_that_has_become_read_only(small_disk):
  def remount(how):
    subprocess.run(
      ["mount", "-o", f"remount,{how}", str(small_disk)], check=True
    )

  message = assert_fails(
    small_disk, lambda _: remount("ro"), lambda: remount("rw")
  )
  assert "Read-only file system" in message


@conftest.noisy
def test_a_read_only_disk_at_the_start(small_disk):
  subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
  with pytest.raises(UserError, match="can't be prepared .*Read-only file sys"):
    checkpoints.Checkpoints(small_disk)


@conftest.noisy
def test_a_file_in_place_of_the_folder(tmp_path):
  c = checkpoints.Checkpoints(tmp_path / "run")
  shutil.rmtree(tmp_path / "run")
  (tmp_path / "run").write_text("")
  with pytest.raises(checkpoints.SaveError, match="Not a dir.*none yet"), c:
    c.save(3, states.tiny(0), {})


@conftest.noisy
def test_a_step_is_saved_once(tmp_path):
  state = states.tiny(3)
  with checkpoints.Checkpoints(tmp_path, keep=3) as c:
    c.save(3, state, {})
    with pytest.raises(checkpoints.SaveError, match="step 3 .*already exists"):
      c.save(3, states.tiny(4), {})
    assert_same(c.restore(states.abstract(state))[0], copy(state))


def test_a_folder_of_that_name_is_told_of_at_the_start(tmp_path):
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  said = []
  with checkpoints.Checkpoints(tmp_path, tell=said.append) as c:
    assert c.latest is None
  assert len(said) == 1 and "3 was never finished, or has lost its" in said[0]
