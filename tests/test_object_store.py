"""A workdir in an object store: the same as on a disk."""

import json
import os
import threading
import time

import pytest
from etils import epath

from mixer import checkpoints, cli, lock, metrics
from mixer import workdir as workdir_lib
from mixer.errors import UserError
from tests import object_store, test_lock, test_train

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


def refuse(method, name):
  """No retry helps, so none is made."""
  if method != "GET" and name.startswith("runs/one"):
    raise object_store.Failure(403, "Permission denied on bucket")


def jsonl(store) -> list[dict]:
  text = store.objects.get("runs/one/metrics.jsonl", b"").decode()
  found = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in r.items() if k != "check"} for r in found]


def test_whose_it_is(store, workdir):
  config, resolved = {"seed": 0}, {"total": 60}
  assert workdir_lib.check(workdir, config, resolved) == ""
  assert not store.objects
  store.objects["runs/one/thesis.tex"] = b"all of it"  # Seen at once.
  with pytest.raises(UserError, match=r"holds files \(thesis.tex\)"):
    workdir_lib.check(workdir, config, resolved)
  workdir_lib.write_config(workdir, config, resolved)
  store.objects["runs/one/checkpoints/3/commit_success.txt"] = b""
  assert checkpoints.committed(workdir) == [3]
  with pytest.raises(UserError, match="seed: 0 -> 1"):
    workdir_lib.check(workdir, {"seed": 1}, resolved, (), 3)


def test_what_is_missing_or_refused_is_told(
  store, workdir, capsys, monkeypatch
):
  missing = workdir_lib.path("gs://misspelt/run")
  store.fail = refuse
  for path, why in ((missing, "bucket does not exist"), (workdir, "denied")):
    with pytest.raises(UserError, match=f"can't be written: .*{why}.*bucket"):
      lock.Lock(path).__enter__()

  def all_refused(method, name):
    raise object_store.Failure(403, "Permission denied on bucket")

  store.fail = all_refused  # Whatever asks for whatever.
  assert cli.run(lambda _: checkpoints.committed(workdir) and None) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: Google Cloud Storage can't be used: ")
  assert "gcloud auth application-default login" in line
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(UserError, match="needs gcsfs, .* make setup-gcs"):
    workdir_lib.path("gs://bucket/run")


def test_the_lock(store, workdir, monkeypatch, capsys):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  monkeypatch.setattr(lock, "WATCH", 0.3)
  name, content = "runs/one/.owner.json", b'{"name": "process 99 on elsewhere"}'
  put, failed = store.put, []

  def forgetful(name, data, query):
    found = put(name, data, query)
    if len(failed) < 2:
      failed.append(name)
      # The client tries again, and meets what it has itself written.
      raise object_store.Failure(503, "try again")
    return found

  monkeypatch.setattr(store, "put", forgetful)
  put(name, content, {})
  with lock.Lock(workdir) as held:
    out = capsys.readouterr().out
    assert "watching for 0.3 s whether process 99 on elsewhere" in out
    assert "process 99 on elsewhere no longer runs" in out
    who = json.loads(store.objects[name])["name"]
    assert f"process {os.getpid()} on" in who
    before = int(store.generation(name))
    test_lock.until(lambda: int(store.generation(name)) > before + 1)
    with pytest.raises(UserError, match="gs://bucket/runs/one is in use: proc"):
      lock.Lock(workdir).__enter__()
    held.check()
    put("runs/one/config.json", b"", {})
    put(name, content, {})
    test_lock.until(lambda: not held._held.is_ours())
    with pytest.raises(lock.LostError, match="was taken over by another run"):
      held.check()
  assert store.objects[name] == content and len(failed) == 2


def test_of_many_starts_at_once_one_wins(store, workdir):
  count, won, refused = 4, [], []
  barrier = threading.Barrier(count)

  def start():
    held = lock.Lock(workdir)
    barrier.wait()
    try:
      won.append(held.__enter__())
    except UserError as e:
      refused.append(str(e))
    barrier.wait()

  threads = [threading.Thread(target=start) for _ in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(won) == 1 and len(refused) == count - 1
  won[0].release()
  assert not store.objects


def test_metrics_are_uploaded(store, workdir):
  first = metrics.Writer(workdir, 0)
  for step in (1, 2, 3):
    first.write(step, {"train/loss": float(step)})
  assert not store.objects  # Not every time.
  first.flush()
  first._every = -1.0
  first.write(4, {"train/loss": 4.0})
  assert len(jsonl(store)) == 4
  first._every, store.fail = 1e6, refuse
  first.write(5, {"train/loss": 1.0})
  with pytest.raises(UserError, match="can't be written to gs://.*denied.*sta"):
    first.flush()
  first._every, first._flushed = 30.0, -1e6
  first.write(6, {"train/loss": 1.0})  # Bears it.
  store.fail = lambda method, name: None
  again = metrics.Writer(workdir, 2)
  assert [r["step"] for r in again.dropped] == [3, 4]
  again.write(3, {"train/loss": -1.0})
  again.close()
  # Who has lost the workdir overwrites nothing.
  with pytest.raises(UserError, match="another run writes there, too"):
    first.flush()
  first.close()
  assert [r["train/loss"] for r in jsonl(store)] == [1.0, 2.0, -1.0]
  assert metrics.read(workdir) == again.records == jsonl(store)
  assert len([n for n in store.objects if "/tensorboard/" in n]) == 2


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_a_disk(
  train_command, server, store, workdir, tmp_path
):
  """To the last bit, killed in the middle or not."""
  args = (
    "--config.total=400 steps",
    "--config.eval_every=",
    "--config.checkpoint_every=20 steps",
    "--config.log_every=10 steps",
    "--profile=398:400",
  )
  assert train_command(tmp_path / "local", *args).returncode == 0

  def start():
    return train_command.start(workdir, *args, env=server.environment)

  process = start()
  while "runs/one/config.json" not in store.objects:
    time.sleep(0.02)
  second = start()  # It is kept out.
  _, err = second.communicate(timeout=300)
  assert second.returncode == 1 and "is in use" in err, err
  assert process.poll() is None and checkpoints.committed(workdir)
  process.kill()
  process.communicate()
  third = start()
  out, err = third.communicate(timeout=300)
  assert third.returncode == 0, err
  assert "workdir is taken over" in out and "going on after step" in out
  assert "runs/one/.owner.json" not in store.objects
  (traced,) = (n for n in store.objects if n.endswith(".xplane.pb"))
  assert traced.startswith("runs/one/profile/plugins/profile/updates_398_400/")
  for name, data in store.objects.items():
    path = tmp_path / "copied" / name.removeprefix("runs/one/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  test_train.assert_same_run(tmp_path / "copied", tmp_path / "local")
