"""Packages that may be missing."""

import json
import os

import pytest

from mixer.errors import UserError
from mixer.exporting import packages


def test_those_that_are_there():
  assert packages.load("json") is json
  assert packages.load("json", "os") == (json, os)


def test_those_that_are_not():
  with pytest.raises(packages.MissingError) as caught:
    packages.load("no_such_a", "json", "no_such_b.inner")
  assert isinstance(caught.value, UserError)
  said = str(caught.value)
  assert said.startswith("no_such_a and no_such_b can't be imported (No module")
  assert said.endswith("pip install no_such_a no_such_b")


def test_one_that_does_not_start(tmp_path, monkeypatch):
  (tmp_path / "broken_one.py").write_text("raise RuntimeError('no nms')")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(packages.MissingError, match=r"imported \(no nms\)"):
    packages.load("broken_one")
