"""Worker processes: in order, bounded, and gone when they should be."""

import multiprocessing
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.datasets.preparation import build_workers
from mixer.datasets.preparation.build_options import Options
from mixer.datasets.sources.member import Member
from mixer.errors import UserError
from tests.datasets.preparation import build_fakes
from tests.datasets.preparation.build_fakes import member


def cut(members, start=0, **options):
  pairs = [(m, i + 1) for i, m in enumerate(members)]
  return list(build_workers.batches(iter(pairs[start:]), Options(**options)))


def chunks_of(batches):
  chunks = [[]]
  for batch in batches:
    chunks[-1] += batch.members
    if batch.ends_chunk:
      chunks.append([])
  assert chunks.pop() == []
  return chunks


@given(
  st.lists(st.integers(0, 40), max_size=80),
  st.integers(1, 50),
  st.integers(1, 200),
)
def test_chunks_depend_on_the_source_alone(sizes, chunk_images, chunk_bytes):
  options = {"chunk_images": chunk_images, "chunk_bytes": chunk_bytes}
  members = [Member(str(i), "", "", bytes(n)) for i, n in enumerate(sizes)]
  chunks = chunks_of(cut(members, **options))
  assert [m for chunk in chunks for m in chunk] == members
  for chunk in chunks[:-1]:
    before = sum(len(m.data) for m in chunk[:-1])
    assert len(chunk) <= chunk_images and before < chunk_bytes
    whole = before + len(chunk[-1].data)
    assert len(chunk) == chunk_images or whole >= chunk_bytes
  start = 0
  for i, chunk in enumerate(chunks):
    assert chunks_of(cut(members, start, **options)) == chunks[i:]
    start += len(chunk)


def test_tasks_are_small_and_count_bytes():
  batches = cut([Member(str(i), "", "", b"") for i in range(100)])
  assert [len(b.members) for b in batches] == [32, 32, 32, 4]
  assert [b.bytes_done for b in batches] == [32, 64, 96, 100]
  assert [b.ends_chunk for b in batches] == [False] * 3 + [True]
  big = [Member(str(i), "", "", bytes(1 << 20)) for i in range(5)]
  assert [len(b.members) for b in cut(big)] == [2, 2, 1]


def test_workers_find_what_this_process_finds():
  members = [
    *build_fakes.MEMBERS[:120],
    Member("ant/none", "ant", "", b"", "unreadable"),
    member(7, data=b""),
  ]
  found = {}
  for workers in (0, 2):
    batches = cut(members, chunk_images=50)
    options = Options(workers=workers)
    found[workers] = list(build_workers.inspected(iter(batches), options))
  assert found[0] == found[2]
  assert sum(len(outcomes) for _, outcomes in found[2]) == 121
  kept = [o for _, outcomes in found[2] for o in outcomes if not o.problem]
  assert all(outcome.data is None for outcome in kept)


class Probe:
  """Batches of 1 MB; knows how many were taken and not given back."""

  def __init__(self, count: int):
    self.ahead = self.most = 0
    self._count = count

  def __iter__(self):
    for i in range(self._count):
      self.ahead += 1
      self.most = max(self.most, self.ahead)
      members = [Member(f"{i}", "", "", bytes(1_000_000))]
      yield build_workers.Batch(members, i, False)


def test_what_is_in_flight_is_bounded(monkeypatch):
  monkeypatch.setattr(build_workers, "IN_FLIGHT_BYTES", 5_500_000)
  probe = Probe(40)
  for i, (batch, _) in enumerate(
    build_workers.inspected(iter(probe), Options(workers=1))
  ):
    probe.ahead -= 1
    assert batch.bytes_done == i
  assert 3 <= probe.most <= 6


def alive_children() -> set[int]:
  return {p.pid for p in multiprocessing.active_children() if p.pid}


def test_a_killed_worker_is_a_sentence(monkeypatch):
  before = alive_children()
  monkeypatch.setattr(build_workers, "IN_FLIGHT_BYTES", 3_000_000)
  results = build_workers.inspected(iter(Probe(500)), Options(workers=1))
  with pytest.raises(UserError) as caught:
    for i, _ in enumerate(results):
      if i == 3:
        for pid in alive_children() - before:
          os.kill(pid, signal.SIGKILL)
  message = str(caught.value)
  assert "A worker process was killed" in message
  assert "fewer workers" in message and "goes on after" in message
  assert not alive_children() - before
