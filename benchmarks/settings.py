"""Changes of a config, as `--set KEY=VALUE` and `--compare` give them."""

import ast
import difflib
from collections.abc import Mapping
from typing import Any

from mixer import config as config_lib
from mixer.errors import UserError

_EXAMPLE = "as in --set model.remat=block"


def parse(text: str) -> dict[str, Any]:
  """`{"model.layout": "token_major"}` from "model.layout=token_major".

  Args:
    text: KEY=VALUE, several of them apart by spaces; "" for none.

  Raises:
    UserError: no such key, or a value of another type.
  """
  found = {}
  for word in text.split():
    key, equals, value = word.partition("=")
    if not equals:
      raise UserError(f"{word!r} is no KEY=VALUE, {_EXAMPLE}.")
    found[key] = _literal(value)
  apply(config_lib.default(), found)
  return found


def _literal(value: str) -> Any:
  """A number, a truth value or a tuple; else the words themselves."""
  try:
    return ast.literal_eval(value)
  except (SyntaxError, ValueError):
    return value


def apply(config: config_lib.Config, changes: Mapping[str, Any]) -> None:
  """Sets keys of a config.

  Args:
    config: is changed.
    changes: `{"model.layout": "token_major"}`.

  Raises:
    UserError: no such key, or a value of another type.
  """
  known = config_lib.flatten(config)
  for key, value in changes.items():
    if key not in known:
      close = difflib.get_close_matches(key, known, n=1)
      meant = f"did you mean {close[0]!r}? " if close else ""
      raise UserError(
        f"the config has no key {key!r}; {meant}mixer/config.py lists them all."
      )
    try:
      config.update_from_flattened_dict({key: value})
    except TypeError as e:
      raise UserError(
        f"{key}={value} is not of type {type(known[key]).__name__}; write it "
        f"as in {key}={known[key]}."
      ) from e


def name(changes: Mapping[str, Any]) -> str:
  """For people: "model.layout=token_major", or "" for no changes."""
  return " ".join(f"{k}={v}" for k, v in changes.items())
