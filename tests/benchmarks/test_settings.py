import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import settings
from mixer import config as config_lib
from mixer.errors import UserError

KEYS = ("batch_size", "optimizer.learning_rate", "model.dtype", "report")


@given(
  st.fixed_dictionaries(
    {},
    optional={
      "batch_size": st.integers(),
      "optimizer.learning_rate": st.floats(allow_nan=False),
      "model.dtype": st.sampled_from(["bfloat16", "float32"]),
      "report": st.booleans(),
    },
  )
)
def test_what_is_written_is_read(changes):
  changes = {k: v for k, v in changes.items() if str(v) not in ("inf", "-inf")}
  assert settings.parse(settings.name(changes)) == changes
  config = config_lib.default()
  settings.apply(config, changes)
  flat = config_lib.flatten(config)
  assert {k: flat[k] for k in changes} == changes


@pytest.mark.parametrize(
  "text, told",
  [
    ("model.variant", "is no KEY=VALUE"),
    ("model.varint=S/32", "did you mean 'model.variant'"),
    ("batch_size=many", "not of type int"),
    ("model.dtype=3", "not of type str"),
  ],
)
def test_mistakes(text, told):
  with pytest.raises(UserError, match=told):
    settings.parse(text)
