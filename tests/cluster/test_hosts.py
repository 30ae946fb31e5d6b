"""What one process tells itself; several are in tests/reliability."""

import jax
import pytest

from mixer.cluster import hosts
from mixer.errors import UserError


def test_a_single_process_hears_itself():
  assert hosts.gather("name", {"a": (1, 2)}) == [{"a": [1, 2]}]
  assert hosts.broadcast("name", "x") == "x"
  assert hosts.on_first("name", lambda: 3) == 3
  assert hosts.board() is None
  assert not hosts.several()
  hosts.post_failure("nobody is there to hear it")


def test_what_may_come_of_another_ones_end(monkeypatch):
  monkeypatch.setattr(hosts, "several", lambda: True)
  error = jax.errors.JaxRuntimeError
  assert hosts.is_loss(error("UNAVAILABLE: connection closed by peer"))
  assert hosts.is_loss(hosts.HostsError("not all came"))
  assert not hosts.is_loss(error("RESOURCE_EXHAUSTED: Out of memory"))
  assert not hosts.is_loss(UserError("no data"))


def test_the_first_ones_error_is_everybodys():
  def refuse():
    raise UserError("no.")

  with pytest.raises(UserError, match=r"^no\.$"):
    hosts.on_first("name", refuse)
