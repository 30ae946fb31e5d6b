"""Checkpoints: whole or absent, and the same to the bit on any devices."""

import dataclasses
import gc
import pathlib
import resource
import shutil

import jax
import numpy as np
import pytest

from configs import smoke
from mixer import checkpoints, durations, sharding
from mixer import step as step_lib
from mixer.errors import UserError

_PLAN = durations.Plan(
  total=20, warmup=2, log_every=1, eval_every=1, checkpoint_every=1
)


def make_trainer(devices=8, num_classes=10, **optimizer) -> step_lib.Trainer:
  config = smoke.get_config()
  for key, value in optimizer.items():
    config.optimizer[key] = value
  mesh = sharding.make_mesh(jax.devices()[:devices])
  return step_lib.Trainer(config, _PLAN, num_classes, mesh)


def update(trainer, state, count=1):
  """The state after that many more updates; `state` is given away."""
  for _ in range(count):
    rng = np.random.default_rng(int(state.step))
    batch = {
      "image": rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8),
      "label": rng.integers(0, 10, 16, dtype=np.int32),
    }
    mesh = trainer.abstract.step.sharding.mesh
    state, _ = trainer.train_step(state, sharding.put_batch(mesh, batch))
  return state


def copy(tree):
  """On the host, in memory of its own: a device's may be looked at only."""
  return jax.tree.map(lambda x: np.array(x, copy=True), tree)


def names(tree) -> list[str]:
  paths = jax.tree_util.tree_leaves_with_path(tree)
  return [jax.tree_util.keystr(path) for path, _ in paths]


def assert_same(got, expected):
  """Equal in every bit, and in type, shape and structure."""
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for name, a, b in zip(
    names(expected),
    jax.tree.leaves(got),
    jax.tree.leaves(expected),
    strict=True,
  ):
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), name
    assert a.tobytes() == b.tobytes(), name


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


def listing(workdir) -> list[str]:
  return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def test_the_whole_state_comes_back(trainer, saved):
  workdir, states = saved
  with checkpoints.Checkpoints(workdir, keep=3) as c:
    assert c.latest == 3
    got = c.restore(trainer.abstract)
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
    state = c.restore(trainer.abstract)
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
    assert_same(c.restore(trainer.abstract), expected[3])


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_restores_onto_fewer_devices(saved, devices):
  workdir, states = saved
  fewer = make_trainer(devices)
  with checkpoints.Checkpoints(workdir, keep=3) as c:
    got = c.restore(fewer.abstract)
  assert_same(got, states[3])
  for leaf in jax.tree.leaves(got):
    assert leaf.sharding.device_set == {*jax.devices()[:devices]}


def test_restores_onto_more_devices(trainer, tmp_path):
  state = make_trainer(2).init()
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(0, state, {})
    got = c.restore(trainer.abstract)
  assert_same(got, copy(state))
  kernel = got.params["stem"]["kernel"]
  assert kernel.sharding.device_set == {*jax.devices()}


def test_a_state_without_average(tmp_path):
  plain = make_trainer(ema_decay=0.0)
  state = plain.init()
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(1, state, {})
    got = c.restore(plain.abstract)
  assert got.ema is None
  assert_same(got, copy(state))
  params, info = checkpoints.load_params(str(tmp_path))
  assert_same(params, copy(state.params))
  assert not info["averaged"]


def test_there_is_none_at_first(tmp_path):
  with checkpoints.Checkpoints(tmp_path / "new") as c:
    assert c.latest is None


@pytest.mark.parametrize("keep", [1, 2])
def test_the_newest_stay(trainer, tmp_path, keep):
  state = trainer.init()
  steps = range(1, 5)
  with checkpoints.Checkpoints(tmp_path, keep) as c:
    for step in steps:
      c.save(step, state, {})
    assert c.latest == 4
  assert listing(tmp_path) == [str(s) for s in steps[-keep:]]


def test_latest_waits_for_the_save_under_way(trainer, tmp_path):
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(7, trainer.init(), {})
    assert c.latest == 7
    assert listing(tmp_path) == ["7"]


def test_what_a_killed_save_left_is_not_taken_and_goes(trainer, saved, workdir):
  # Orbax writes under such a name, marks it, and renames it.
  left = workdir / "checkpoints" / "5.orbax-checkpoint-tmp"
  shutil.copytree(workdir / "checkpoints" / "3", left)
  (left / "commit_success.txt").unlink()
  assert checkpoints.locate(str(workdir)) == (workdir, 3)
  with checkpoints.Checkpoints(workdir, keep=3) as c:
    assert c.latest == 3
    assert_same(c.restore(trainer.abstract), saved[1][3])
    c.save(5, trainer.init(), {})
  assert listing(workdir) == ["1", "3", "5"]


def test_a_folder_without_the_mark_is_not_taken(trainer, saved, workdir):
  # As a copy has it that was cut short, or a file system without renaming.
  shutil.copytree(workdir / "checkpoints" / "3", workdir / "checkpoints" / "7")
  (workdir / "checkpoints" / "7" / "commit_success.txt").unlink()
  (workdir / "checkpoints" / "9").mkdir()
  assert checkpoints.locate(str(workdir)) == (workdir, 3)
  with checkpoints.Checkpoints(workdir, keep=9) as c:
    assert c.latest == 3
    assert_same(c.restore(trainer.abstract), saved[1][3])


def test_other_files_do_not_matter(trainer, saved, workdir):
  (workdir / "checkpoints" / "notes").mkdir()
  (workdir / "checkpoints" / "README").write_text("mine")
  assert checkpoints.locate(str(workdir)) == (workdir, 3)
  with checkpoints.Checkpoints(workdir) as c:
    assert_same(c.restore(trainer.abstract), saved[1][3])
  assert {"notes", "README"} <= {*listing(workdir)}


def restore_refused(workdir, other: step_lib.Trainer) -> str:
  with (
    checkpoints.Checkpoints(workdir, keep=3) as c,
    pytest.raises(UserError) as caught,
  ):
    c.restore(other.abstract)
  assert str(workdir / "checkpoints" / "3") in str(caught.value)
  return str(caught.value)


def test_another_shape_is_refused(saved):
  message = restore_refused(saved[0], make_trainer(num_classes=11))
  assert "params/head/kernel is (32, 10) there and (32, 11) here" in message
  assert "ema/head/bias is (10,) there and (11,) here" in message
  assert "Use the config that it was made with" in message


def test_another_optimizer_is_refused(saved):
  other = make_trainer(name="sgd", weight_decay=0.0)
  message = restore_refused(saved[0], other)
  assert "training/opt_state/1/count () is unexpected" in message
  # The first eight are named.
  assert "more. Use the config" in message and message.count(";") == 8


def test_an_average_too_many_or_too_few_is_refused(trainer, saved, tmp_path):
  plain = make_trainer(ema_decay=0.0)
  message = restore_refused(saved[0], plain)
  assert "ema/MixerBlock_0/LayerNorm_0/bias (32,) is unexpected" in message
  with checkpoints.Checkpoints(tmp_path) as c:
    c.save(3, plain.init(), {})
  message = restore_refused(tmp_path, trainer)
  assert "ema/MixerBlock_0/LayerNorm_0/bias (32,) is missing" in message


# What Orbax leaves behind when it gives up complains when it is collected.
@pytest.fixture
def collected():
  """Lets the complaints come in the test that they are of."""
  yield
  gc.collect()


def noisy(test):
  quiet = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:Sharding info not provided when restoring:UserWarning",
  )
  return quiet(pytest.mark.usefixtures("collected")(test))


def empty(directory: pathlib.Path) -> None:
  """Makes the files that hold a part's arrays empty."""
  files = [p for p in directory.rglob("d/*") if p.is_file()]
  assert files
  for path in files:
    path.write_bytes(b"")


@noisy
@pytest.mark.parametrize("part", ["params", "training", "ema"])
def test_a_damaged_checkpoint_is_refused(trainer, workdir, part):
  empty(workdir / "checkpoints" / "3" / part)
  with checkpoints.Checkpoints(workdir, keep=3) as c:
    with pytest.raises(UserError, match="can't be read") as caught:
      c.restore(trainer.abstract)
  assert f"{workdir}/checkpoints/3" in str(caught.value)
  assert "move it away" in str(caught.value)


def test_what_a_damaged_one_advises_helps(trainer, saved, workdir):
  (workdir / "checkpoints" / "3").rename(workdir / "away")
  with checkpoints.Checkpoints(workdir) as c:
    assert c.latest == 1
    assert_same(c.restore(trainer.abstract), saved[1][1])


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("path", "step"), [("", 3), ("/checkpoints/1", 1)])
def test_locate(saved, path, step, slash):
  workdir = saved[0]
  assert checkpoints.locate(f"{workdir}{path}{slash}") == (workdir, step)


def test_locate_expands_the_home_folder(saved, monkeypatch):
  workdir = saved[0]
  monkeypatch.setenv("HOME", str(workdir.parent))
  assert checkpoints.locate(f"~/{workdir.name}") == (workdir, 3)


@pytest.mark.parametrize("path", ["nosuch", "checkpoints", "file", ""])
def test_locate_where_nothing_is(tmp_path, path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="expected a workdir of train.py"):
    checkpoints.locate(str(tmp_path / path))


@pytest.mark.parametrize("step", [0, 2])
def test_locate_a_step_that_is_not_there(saved, step):
  where = saved[0] / "checkpoints"
  with pytest.raises(UserError) as caught:
    checkpoints.locate(str(where / str(step)))
  assert str(caught.value) == (
    f"there is no whole checkpoint {step} in {where}; there are: 1, 3."
  )


def test_locate_in_a_workdir_that_has_none_yet(tmp_path):
  (tmp_path / "checkpoints" / "4").mkdir(parents=True)
  with pytest.raises(UserError, match=r"no whole checkpoint in .*are: none\."):
    checkpoints.locate(str(tmp_path))


def test_the_average_is_loaded_where_there_is_one(saved):
  workdir, states = saved
  average, info = checkpoints.load_params(str(workdir))
  assert_same(average, states[3].ema)
  params, plain = checkpoints.load_params(str(workdir), averaged=False)
  assert_same(params, states[3].params)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  # Whether there is an average, not whether it was asked for.
  assert info["averaged"] and plain["averaged"]
  kernels = (average["stem"]["kernel"], params["stem"]["kernel"])
  assert np.any(kernels[0] != kernels[1])


def test_metadata_comes_with_the_weights(saved):
  workdir, states = saved
  where = workdir / "checkpoints" / "1"
  params, info = checkpoints.load_params(str(where), averaged=False)
  assert info == {
    "class_names": ["a", "b"],
    "step": 1,
    "path": str(where),
    "averaged": True,
  }
  assert_same(params, states[1].params)


@noisy
def test_damaged_weights_are_not_loaded(saved, workdir):
  empty(workdir / "checkpoints" / "3" / "ema")
  with pytest.raises(UserError, match=r"checkpoints/3 can't be read: "):
    checkpoints.load_params(str(workdir))
  params, info = checkpoints.load_params(str(workdir), averaged=False)
  assert_same(params, saved[1][3].params)
  assert info["averaged"]


class Later:
  """In place of Orbax's response to a save that fails in the background."""

  def result(self):
    raise OSError(28, "No space left on device")


def fail(*unused, **also_unused):
  raise OSError(28, "No space left on device")


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize(
  ("before", "kept"),
  [(None, "There is none yet"), (3, "The newest whole one is that of step 3")],
)
def test_a_save_that_fails(trainer, tmp_path, monkeypatch, when, before, kept):
  state = trainer.init()
  with checkpoints.Checkpoints(tmp_path) as c:
    if before is not None:
      c.save(before, state, {})
      c.wait()
    with monkeypatch.context() as patch:
      broken = fail if when == "at once" else lambda *a, **k: Later()
      patch.setattr(c._orbax, "save_checkpointables_async", broken)
      with pytest.raises(checkpoints.SaveError) as caught:
        c.save(4, state, {})
        c.wait()
    message = str(caught.value)
    assert message.startswith(
      f"the checkpoint of step 4 could not be written to {c.directory}: "
      "[Errno 28] No space left on device. "
    )
    assert kept in message and "start the same command again" in message
    # It has been told; and the next one may succeed.
    assert c.latest == before
    c.save(5, state, {})
  assert checkpoints.locate(str(tmp_path)) == (tmp_path, 5)


def test_a_save_that_fails_at_the_end_is_told(trainer, tmp_path, monkeypatch):
  c = checkpoints.Checkpoints(tmp_path)
  monkeypatch.setattr(
    c._orbax, "save_checkpointables_async", lambda *a, **k: Later()
  )
  with pytest.raises(checkpoints.SaveError, match="step 4"), c:
    c.save(4, trainer.init(), {})


def test_what_went_wrong_first_is_what_is_told(trainer, tmp_path, monkeypatch):
  c = checkpoints.Checkpoints(tmp_path)
  monkeypatch.setattr(
    c._orbax, "save_checkpointables_async", lambda *a, **k: Later()
  )
  with pytest.raises(ZeroDivisionError), c:
    c.save(4, trainer.init(), {})
    raise ZeroDivisionError


@noisy
def test_a_save_that_fails_in_earnest(trainer, tmp_path):
  state = trainer.init()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with pytest.raises(checkpoints.SaveError, match="step 4"):
    with checkpoints.Checkpoints(tmp_path) as c:
      c.save(3, state, {})
      c.wait()
      try:
        # Python ignores the signal: the kernel then refuses what is longer.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        c.save(4, state, {})
        c.wait()
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  # That a new process goes on from there is tests/test_train.py's to show: in
  # this one, threads of the failed save may still be at work in its folder.
  assert checkpoints.locate(str(tmp_path)) == (tmp_path, 3)
  params, _ = checkpoints.load_params(str(tmp_path), averaged=False)
  assert_same(params, copy(state.params))


def test_a_step_is_saved_once(saved, trainer, workdir):
  with checkpoints.Checkpoints(workdir, keep=3) as c:
    with pytest.raises(checkpoints.SaveError, match="step 3 .*already exists"):
      c.save(3, trainer.init(), {})
    assert_same(c.restore(trainer.abstract), saved[1][3])
