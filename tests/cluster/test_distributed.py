"""Which processes there are; that they meet is in tests/reliability."""

import pytest

from mixer.cluster import distributed
from mixer.errors import UserError

Request = distributed.Request
_SLURM = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "n[1-4]",
  "SLURM_NTASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
}


@pytest.fixture
def environment(monkeypatch):
  """`environment(chips=4, NAME=...)`: a machine of that kind."""
  for name in (*_SLURM, *distributed._GKE, "TPU_SKIP_MDS_QUERY"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("JAX_PLATFORMS", "")

  def make(chips=0, libtpu=True, **variables):
    monkeypatch.setattr(
      distributed.hardware_utils,
      "num_available_tpu_chips_and_device_id",
      lambda: (chips, None),
    )
    monkeypatch.setattr(
      distributed.importlib.util,
      "find_spec",
      lambda name: object() if libtpu else None,
    )
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return make


@pytest.mark.parametrize(
  ("expected", "machine"),
  [
    ("none", {}),
    ("slurm", _SLURM),
    ("none", _SLURM | {"SLURM_NTASKS": "1"}),
    # A batch job that is not under srun.
    ("none", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}),
    ("tpu", {"chips": 4}),
    ("none", {"chips": 4, "libtpu": False}),
    ("none", {"chips": 4, "JAX_PLATFORMS": "cpu"}),
    ("none", {"chips": 4, "TPU_SKIP_MDS_QUERY": "1"}),
    ("gke", {"chips": 4, "TPU_WORKER_HOSTNAMES": "a,b"}),
    ("none", {"chips": 8, "TPU_WORKER_HOSTNAMES": "localhost"}),
    # Names without chips: a machine that only compiles.
    ("none", {"TPU_WORKER_HOSTNAMES": "a,b"}),
  ],
)
def test_the_kind_of_cluster_is_what_the_machine_says(
  environment, expected, machine
):
  environment(**machine)
  assert distributed.find(Request()) == expected


def test_an_address_goes_before_everything(environment):
  environment(chips=4, **_SLURM)
  assert distributed.find(Request(coordinator_address="a:1")) == "explicit"


def test_variables_stand_in_for_flags(monkeypatch):
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("JAX_PROCESS_ID", "0")
  assert distributed._filled(Request()) == Request("auto", "a:1", 4, 0)
  given = Request("auto", "b:2", 2, 1)
  assert distributed._filled(given) == given


@pytest.mark.parametrize(
  ("request_", "word"),
  [
    (Request("explicit"), "--coordinator_address=''"),
    (Request(coordinator_address="host"), "--coordinator_address='host'"),
    (Request(num_processes=2), "--coordinator_address=''"),
    (Request("auto", "a:1"), "--num_processes=0"),
    (Request("auto", "a:1", 2, 2), "--process_id=2"),
    (Request("auto", "a:1", 2), "--process_id=-1"),
  ],
)
def test_half_an_address_is_refused(environment, request_, word):
  environment()
  with pytest.raises(UserError, match=word):
    distributed.start(request_)


def test_a_variable_that_is_no_number_is_refused(monkeypatch):
  monkeypatch.setenv("JAX_PROCESS_ID", "first")
  with pytest.raises(UserError, match="JAX_PROCESS_ID='first'"):
    distributed.start(Request())


def test_a_single_process_starts_nothing(environment):
  environment()
  assert distributed.start(Request()) == "none"
  assert distributed.start(Request("none", "a:1", 2, 0)) == "none"
  distributed.end()
