"""A workdir in an object store: the same as on a disk."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from etils import epath
from hypothesis import HealthCheck, given, settings

from configs import smoke
from mixer import cli, metrics
from mixer import config as config_lib
from mixer import workdir as workdir_lib
from mixer.errors import UserError
from mixer.storage import finding, lock, lock_file, owner, uploading
from tests import conftest, object_store, test_metrics, test_train
from tests.storage import test_lock

pytest.importorskip("gcsfs")


@pytest.fixture(scope="module")
def server():
  """The store; libraries keep its address, so there is one for all tests."""
  with object_store.Server() as server, pytest.MonkeyPatch.context() as patch:
    for key, value in server.environment.items():
      patch.setenv(key, value)
    yield server


@pytest.fixture
def store(server):
  """An empty store."""
  server.store.fail = lambda method, name: None
  server.store.objects.clear()
  server.store.log.clear()
  return server.store


@pytest.fixture
def workdir(store) -> epath.Path:
  return workdir_lib.path(f"gs://{object_store.BUCKET}/runs/one")


@pytest.fixture
def a_file(store) -> lock_file.LockFile:
  return lock_file.open_file(workdir_lib.path("gs://bucket/file"))


def out_of_reach(prefix: str):
  """No retry helps, so none is made."""

  def fail(method, name):
    if method != "GET" and name.startswith(prefix):
      raise object_store.Failure(403, "Permission denied on bucket")

  return fail


_RESOLVED = {"total": 60}


def config_json(**changes):
  return config_lib.to_json(smoke.get_config()) | changes


def test_claiming_and_going_on(store, workdir):
  workdir_lib.claim(workdir, config_json(), _RESOLVED)
  assert list(store.objects) == ["runs/one/config.json"]
  written = {"config": config_json(), "resolved": _RESOLVED}
  assert workdir_lib.read_config(workdir) == written
  store.objects["runs/one/checkpoints/3/commit_success.txt"] = b""
  workdir_lib.claim(workdir, config_json(), _RESOLVED)
  with pytest.raises(UserError, match="seed: 0 -> 1"):
    workdir_lib.claim(workdir, config_json(seed=1), _RESOLVED)
  workdir_lib.claim(workdir, config_json(seed=1), _RESOLVED, ["seed"])
  assert workdir_lib.read_config(workdir)["config"]["seed"] == 1


def test_a_foreign_folder_is_refused(store, workdir):
  store.objects["runs/one/thesis.tex"] = b"all of it"
  with pytest.raises(UserError, match=r"holds files \(thesis.tex\)"):
    workdir_lib.claim(workdir, config_json(), _RESOLVED)
  assert list(store.objects) == ["runs/one/thesis.tex"]
  with pytest.raises(UserError, match="is not a workdir of train.py"):
    workdir_lib.read_config(workdir)


def test_what_others_write_is_seen(store, workdir):
  assert not (workdir / "a").exists()
  (workdir / "b").write_text("b")
  assert [p.name for p in workdir.iterdir()] == ["b"]
  store.objects["runs/one/a"] = b""
  assert sorted(p.name for p in workdir.iterdir()) == ["a", "b"]


def test_a_missing_bucket_is_told(store):
  path = workdir_lib.path("gs://misspelt/run")
  with pytest.raises(
    UserError, match="--workdir=gs://misspelt/run can't be"
  ) as e:
    workdir_lib.claim(path, config_json(), _RESOLVED)
  assert "does the bucket exist" in str(e.value)
  with pytest.raises(UserError, match="bucket does not exist"):
    lock.Lock(path).__enter__()
  assert not store.objects


def test_a_bucket_that_takes_nothing_is_told(store, workdir):
  store.fail = out_of_reach("runs/one")
  with pytest.raises(UserError, match="can't be written to .*Forbidden"):
    workdir_lib.claim(workdir, config_json(), _RESOLVED)
  with pytest.raises(
    UserError, match="can't be written to .*Permission denied"
  ):
    lock.Lock(workdir).__enter__()


@given(test_lock.moves_of_two(6))
@settings(
  max_examples=10,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_an_object_changes_only_under_who_knows_it(store, a_file, moves):
  store.objects.clear()
  test_lock.check_compare_and_swap(a_file, moves)


def record(store) -> dict:
  return json.loads(store.objects["runs/one/.owner.json"])


def test_the_lock(store, workdir):
  with lock.Lock(workdir) as held:
    assert record(store)["pid"] == os.getpid() and held.sentence == ""
    with pytest.raises(UserError, match="gs://bucket/runs/one is in use: proc"):
      lock.Lock(workdir).__enter__()
    held.check()
  assert not store.objects


@pytest.mark.parametrize("left", ["dead", "elsewhere"])
def test_a_lock_that_was_left(store, workdir, monkeypatch, left):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  monkeypatch.setattr(lock, "WATCH", 0.3)
  changes = {"dead": {"started": 1}, "elsewhere": {"host": "elsewhere"}}[left]
  content = json.dumps(owner.this_process() | changes).encode()
  store.put("runs/one/.owner.json", content, {})
  with lock.Lock(workdir) as held:
    assert held.sentence.endswith("its lock is taken over")
    before = record(store)["beats"]
    test_lock.until(lambda: record(store)["beats"] > before)
    held.check()
    store.put("runs/one/.owner.json", content, {})
    assert "was taken over by process" in test_lock.lost(held)
  assert store.objects["runs/one/.owner.json"] == content


def test_of_many_starts_at_once_one_wins(store, workdir):
  count, won, refused = 8, [], []
  barrier = threading.Barrier(count)

  def start():
    held = lock.Lock(workdir)
    barrier.wait()
    try:
      won.append(held.__enter__())
    except UserError as e:
      refused.append(str(e))
    barrier.wait()

  for _ in range(3):
    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(won) == 1 and len(refused) == count - 1
    won.pop().release()
    refused.clear()


def test_an_answer_that_got_lost_is_no_loss(store, workdir, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  put, lost = store.put, []

  def forgetful(name, data, query):
    found = put(name, data, query)
    if len(lost) < 2:
      lost.append(name)
      # The client tries again, and meets what it has itself written.
      raise object_store.Failure(503, "try again")
    return found

  monkeypatch.setattr(store, "put", forgetful)
  with lock.Lock(workdir) as held:
    before = record(store)["beats"]
    test_lock.until(lambda: record(store)["beats"] > before + 1)
    held.check()
  assert len(lost) == 2 and not store.objects


def jsonl(store) -> list[dict]:
  text = store.objects["runs/one/metrics.jsonl"].decode()
  found = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in r.items() if k != "check"} for r in found]


def test_metrics_are_there_after_a_flush(store, workdir, tmp_path):
  writer = metrics.Writer(workdir, 0)
  writer.write(1, {"train/loss": 2.0})
  writer.write(2, {"train/loss": 1.0})
  writer.flush()
  assert [r["step"] for r in jsonl(store)] == [1, 2]
  (board,) = [n for n in store.objects if "/tensorboard/" in n]
  (tmp_path / "board").write_bytes(store.objects[board])
  assert test_metrics.scalars(tmp_path / "board") == [
    (1, "train/loss", 2.0),
    (2, "train/loss", 1.0),
  ]
  requests = len(store.log)
  writer.flush()  # Nothing is new.
  assert len(store.log) == requests
  writer.write(3, {"train/loss": 0.5})
  writer.close()
  assert metrics.read(workdir) == writer.records == jsonl(store)


def test_going_on_drops_what_will_come_again(store, workdir):
  first = metrics.Writer(workdir, 0)
  for step in (1, 2, 3):
    first.write(step, {"train/loss": float(step)})
  first.close()
  again = metrics.Writer(workdir, 2)
  assert [r["step"] for r in again.records] == [1, 2]
  assert [r["step"] for r in again.dropped] == [3]
  again.write(3, {"train/loss": -1.0})
  again.close()
  assert [r["train/loss"] for r in jsonl(store)] == [1.0, 2.0, -1.0]
  assert len([n for n in store.objects if "/tensorboard/" in n]) == 2


def test_metrics_are_uploaded_now_and_then(store, workdir, monkeypatch):
  now = [1000.0]
  monkeypatch.setattr(uploading.time, "monotonic", lambda: now[0])
  writer = metrics.Writer(workdir, 0)
  for step in range(1, 100):
    writer.write(step, {"train/loss": 1.0})
  assert not store.objects  # Not every time.
  now[0] += uploading.EVERY + 1
  writer.write(100, {"train/loss": 1.0})
  monkeypatch.undo()
  test_lock.until(lambda: "runs/one/metrics.jsonl" in store.objects)
  assert len(jsonl(store)) == 100
  writer.close()


def test_an_upload_that_fails_is_told_by_the_next_flush(
  store, workdir, monkeypatch
):
  monkeypatch.setattr(uploading, "EVERY", -1.0)
  writer = metrics.Writer(workdir, 0)
  store.fail = out_of_reach("runs/one")
  for step in (1, 2, 3):
    writer.write(step, {"train/loss": 1.0})  # Bears it.
  with pytest.raises(UserError, match="can't be written to gs://.*denied") as e:
    writer.flush()
  assert "start the same command again" in str(e.value)
  store.fail = lambda method, name: None
  writer.flush()
  assert len(jsonl(store)) == 3
  store.fail = out_of_reach("runs/one")
  writer.write(4, {"train/loss": 1.0})
  writer.close()  # What came before it stays the error.
  assert len(jsonl(store)) == 3


def test_who_lost_the_workdir_overwrites_nothing(store, workdir):
  old = metrics.Writer(workdir, 0)
  old.write(1, {"train/loss": 1.0})
  old.flush()
  new = metrics.Writer(workdir, 0)
  new.write(1, {"train/loss": 2.0})
  new.close()
  old.write(2, {"train/loss": 1.0})
  with pytest.raises(UserError, match="another run writes there, too"):
    old.flush()
  old.close()
  assert [r["train/loss"] for r in jsonl(store)] == [2.0]


def test_a_store_that_refuses_is_one_sentence(store, workdir, capsys):
  # With no network, or no right, whatever asks for whatever.
  def refuse(method, name):
    raise object_store.Failure(403, "Permission denied on bucket")

  store.fail = refuse
  assert cli.run(lambda _: print(finding.committed(workdir))) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: Google Cloud Storage can't be used: ")
  assert "gcloud auth application-default login" in line


def test_without_gcsfs_it_is_said_how_to_get_it(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="needs gcsfs, .* make setup-gcs"):
    workdir_lib.path("gs://bucket/run")
  assert workdir_lib.path("/somewhere")


class Run:
  """train.py on the smoke config, as a process."""

  args = (
    "--config.total=60 steps",
    "--config.checkpoint_every=10 steps",
    "--config.log_every=1 steps",
  )

  def __init__(self, command, server, tmp_path):
    self._command, self._server = command, server
    self._tmp_path = tmp_path

  def start(self, workdir) -> subprocess.Popen:
    env = self._server.environment
    return self._command.start(workdir, *self.args, env=env)

  def finish(self, workdir) -> str:
    process = self.start(workdir)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out

  def copy(self, store) -> epath.Path:
    """The workdir as it lies in the store, on the disk."""
    root = self._tmp_path / "copied"
    for name, data in list(store.objects.items()):
      path = root / name.removeprefix("runs/one/")
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
    return root


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_a_disk(
  train_command, server, store, workdir, tmp_path
):
  """To the last bit, killed in the middle or not."""
  run = Run(train_command, server, tmp_path)
  run.finish(tmp_path / "local")
  process = run.start(workdir)
  committed = "runs/one/checkpoints/30/commit_success.txt"
  while committed not in store.objects and process.poll() is None:
    time.sleep(0.02)
  # A second run is kept out.
  second = run.start(workdir)
  _, err = second.communicate(timeout=300)
  assert second.returncode == 1 and "is in use" in err, err
  process.kill()
  process.communicate()
  out = run.finish(workdir)
  assert "its lock is taken over" in out
  assert "going on after step" in out
  assert "runs/one/.owner.json" not in store.objects
  test_train.assert_same_run(run.copy(store), tmp_path / "local")


def test_the_store_can_be_run_by_itself():
  process = subprocess.Popen(
    [sys.executable, "-m", "tests.object_store", "0"],
    cwd=conftest.ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout
  assert "STORAGE_EMULATOR_HOST" in json.loads(process.stdout.readline())
  process.kill()
  process.communicate()
