"""What may differ between two starts of a run, and what is said of it."""

import pytest

from configs import smoke
from mixer import config as config_lib
from mixer import drift
from mixer.errors import UserError

_SET = {
  "class_names": "ant, bee",
  "examples": {"train": 103, "test": 20},
  "fingerprint": "a1",
}


def start(resolved=(), **changes):
  """A start as config.json has it, with `optimizer__name=...`."""
  keys = {key.replace("__", "."): value for key, value in changes.items()}
  config = config_lib.changed(smoke.get_config(), keys)
  known = {"total": 60, "warmup": 6, "train_examples": 103, "data_set": _SET}
  return {
    "config": config_lib.to_json(config),
    "resolved": known | dict(resolved),
  }


def check(old, new, *allow, step=20):
  return drift.check("runs/x", old, new, allow, step)


def refusal(old, new, *allow, step=20) -> str:
  with pytest.raises(UserError) as caught:
    check(old, new, *allow, step=step)
  return str(caught.value)


def test_the_same_start_goes_on_silently():
  assert check(start(), start()) == []


@pytest.mark.parametrize(
  ("change", "line"),
  [
    ({"class_names": "ant, cat"}, "class_names: 'ant, bee' -> 'ant, cat'"),
    ({"examples": {"train": 137, "test": 20}}, "examples.train: 103 -> 137"),
    ({"examples": {"train": 103}}, "examples.test: 20 -> '(absent)'"),
    ({"fingerprint": "b2"}, "fingerprint: 'a1' -> 'b2'"),
  ],
)
def test_another_data_set_is_refused_unless_it_is_allowed_itself(change, line):
  examples = (_SET | change)["examples"]["train"]
  new = start({"data_set": _SET | change, "train_examples": examples})
  message = refusal(start(), new)
  assert message == (
    "--workdir=runs/x was made with another data set:\n  "
    f"data_set.{line}\nUse the old one, or another --workdir; to go on with "
    "the new values all the same, add --allow_change=data_set."
  )
  # Another key doesn't let it through.
  longer = start(new["resolved"] | {"total": 80}, total="80 steps")
  message = refusal(start(), longer, "total")
  assert f"data_set.{line}" in message and "total:" not in message
  assert message.endswith("add --allow_change=total,data_set.")
  assert check(start(), new, "data_set") == []
  assert len(check(start(), longer, "total", "data_set")) == 1  # The rate.


def test_a_fingerprint_that_is_not_known_is_not_compared():
  unknown = start({"data_set": _SET | {"fingerprint": ""}})
  assert check(start(), unknown) == check(unknown, start()) == []


def test_the_set_of_the_few_shot_evaluation_counts():
  few, other = (_SET | {"fingerprint": f} for f in "xy")
  old = start({"data_set": _SET | {"fewshot": few}})
  new = start({"data_set": _SET | {"fewshot": other}})
  assert "data_set.fewshot.fingerprint: 'x' -> 'y'" in refusal(old, new)
  assert check(start(), new) == check(old, start()) == []


def test_a_workdir_that_is_older_than_the_identity_goes_on():
  old = start()
  del old["resolved"]["data_set"]
  (sentence,) = check(old, start())
  assert sentence.endswith("is taken for it, and is compared from now on.")
  assert "resolved.train_examples: 103 -> 99" in refusal(
    old, start({"train_examples": 99})
  )


@pytest.mark.parametrize("allow", [(), ("total",)])
def test_an_end_that_lies_behind_is_refused(allow):
  new = start({"total": 6}, total="6 steps")
  old = start() if allow else new
  message = refusal(old, new, *allow, step=12)
  assert message == (
    "total='6 steps' comes to 6 steps, and the run in --workdir=runs/x has "
    "done 12. Make it longer, or start another --workdir."
  )
  assert drift.check("x", new, new, (), 6) == []


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("optimizer.name", "adamw"),
    ("optimizer.train", "head"),
    ("optimizer.ema_decay", 0.9),
    ("optimizer.clip_norm", 0.0),
    ("optimizer.lr_factors", (("head/.*", 0.0),)),
  ],
)
def test_an_optimizer_of_another_state_names_itself(key, value):
  old = start(optimizer__name="sgd", optimizer__ema_decay=0.0)
  flat = dict(optimizer__name="sgd", optimizer__ema_decay=0.0)
  new = start(**flat | {key.replace(".", "__"): value})
  message = refusal(old, new, key)
  assert message.startswith(f"{key} can't change in --workdir=runs/x: ")
  assert "--config.init_from=runs/x --config.init_head=keep." in message


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("optimizer.ema_decay", 0.5),
    ("optimizer.clip_norm", 0.5),
    ("optimizer.b1", 0.5),
    ("optimizer.lr_factors", (("head/.*", 10.0),)),
  ],
)
def test_other_values_of_the_same_state_go_on(key, value):
  old = start(optimizer__ema_decay=0.9, optimizer__clip_norm=1.0)
  flat = dict(optimizer__ema_decay=0.9, optimizer__clip_norm=1.0)
  new = start(**flat | {key.replace(".", "__"): value})
  assert check(old, new, key) == []


def test_a_rate_that_jumps_is_told():
  flat = dict(optimizer__learning_rate=0.5, schedule__decay="linear")
  old = start(total="60 steps", **flat)
  new = start({"total": 114}, total="114 steps", **flat)
  # After the schedule's end: it had come to 0.
  assert check(old, new, "total", step=60) == [
    "the learning rate after step 60 is 0.25, and would be 0 with the values "
    "of before."
  ]
  same = dict(flat, schedule__decay="constant")
  new = start({"total": 114}, total="114 steps", **same)
  assert check(start(**same), new, "total", step=60) == []


def test_epochs_that_are_counted_anew_are_told():
  flat = dict(schedule__decay="constant")
  old, new = start(batch_size=32, **flat), start(batch_size=64, **flat)
  (sentence,) = check(old, new, "batch_size", step=20)
  assert sentence.startswith("batch_size: 32 -> 64: batches are counted as if")
  assert "goes on at epoch 12.43 of the examples' order; it was at 6.21" in (
    sentence
  )
