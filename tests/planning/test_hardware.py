"""The table of chips and slices."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer.errors import UserError
from mixer.planning import hardware

ALL = [name for names in hardware.names().values() for name in names]


@pytest.mark.parametrize(
  ("kind", "flops"),
  [  # As JAX names devices.
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA L4", 121e12),
    ("NVIDIA L40S", None),
    ("Tesla V100-SXM2-16GB", 125e12),
    ("cpu", None),
  ],
)
def test_peaks(kind, flops):
  assert hardware.peak(kind) == flops


@pytest.mark.parametrize("name", ALL)
def test_every_slice(name):
  found = hardware.parse(name)
  assert found.name == name
  if found.grid:
    assert math.prod(found.grid) == found.num_chips
    assert found.topology == f"{name.split('-')[0]}:" + "x".join(
      map(str, found.grid)
    )
  else:
    assert found.topology == ""
  assert found.num_devices % found.num_hosts == 0
  assert found.host_cores > 0


@pytest.mark.parametrize(
  ("name", "known"),
  [
    ("H100-8", "h100-8"),
    ("8xH100", "h100-8"),
    ("8 x H100", "h100-8"),
    ("H100:8", "h100-8"),
    ("h100x8", "h100-8"),
    ("NVIDIA A100-16", "a100-16"),
    ("v5litepod-64", "v5e-64"),
    ("TPU v5 lite-8", "v5e-8"),
    ("V6E-8", "v6e-8"),
    ("tpu-v6e-64", "v6e-64"),
    ("tpu-v5p:8", "v5p-8"),
  ],
)
def test_as_others_write_it(name, known):
  assert hardware.parse(name) == hardware.parse(known)


@pytest.mark.parametrize(
  ("name", "chips", "devices", "hosts"),
  [  # Google's tables of accelerator types; DGX for GPUs.
    ("v5e-1", 1, 1, 1),
    ("v5e-8", 8, 8, 1),
    ("v5e-16", 16, 16, 4),
    ("v5e-256", 256, 256, 64),
    ("v6e-8", 8, 8, 1),
    ("v5p-8", 4, 4, 1),
    ("v5p-128", 64, 64, 16),
    ("v4-32", 16, 16, 4),
    ("v3-8", 4, 8, 1),
    ("v3-128", 64, 128, 16),
    ("h100-8", 8, 8, 1),
    ("h100-32", 32, 32, 4),
  ],
)
def test_counts(name, chips, devices, hosts):
  found = hardware.parse(name)
  assert (found.num_chips, found.num_devices, found.num_hosts) == (
    chips,
    devices,
    hosts,
  )


@pytest.mark.parametrize(
  ("name", "what"),
  [
    ("", "--hardware= is not known"),
    ("v5e", "--hardware=v5e is not known; name a chip and how many"),
    ("v7-8", "v5e-1 to v5e-256"),
    ("v5e-0", "v5e-1 to v5e-256"),
    ("v5e-12", "v5e-1, v5e-4, v5e-8"),
    ("v5p-4", "they count TensorCores, two a chip"),
    ("v5p-9", "v5p-8, v5p-16"),
    ("h100-12", "h100-1, h100-2, h100-4, h100-8, h100-16 and further"),
  ],
)
def test_unknown_names(name, what):
  with pytest.raises(UserError) as caught:
    hardware.parse(name)
  assert what in str(caught.value)


@pytest.mark.parametrize(
  ("name", "seconds"),
  [  # A gigabyte, by hand.
    ("v5e-1", 0.0),
    # A line of 2 and one of 4: a link each.
    ("v5e-8", 2 * 7 / 8 / 100),
    ("v5e-64", 2 * 63 / 64 / 100),
    # Two rings of 16: two links each.
    ("v5e-256", 2 * 255 / 256 / 200),
    ("v6e-256", 2 * 255 / 256 / 400),
    # A cube is wired round in all three directions.
    ("v5p-128", 2 * 63 / 64 / 600),
    ("v5p-8", 2 * 3 / 4 / 200),
    ("h100-8", 2 * 7 / 8 / 450),
    ("h100-16", 2 * 7 / 8 / 450 + 2 * (1 / 8) * (1 / 2) / 50),
  ],
)
def test_seconds_of_a_sum(name, seconds):
  assert hardware.parse(name).all_reduce_seconds(1e9) == pytest.approx(seconds)


@given(st.sampled_from(ALL), st.floats(0, 1e12), st.floats(0, 1e12))
def test_sums_take_longer_with_more_bytes(name, a, b):
  found = hardware.parse(name)
  together = found.all_reduce_seconds(a + b)
  parts = found.all_reduce_seconds(a) + found.all_reduce_seconds(b)
  assert together == pytest.approx(parts)
