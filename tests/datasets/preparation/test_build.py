"""Preparing a data set from a source: what comes out, what is refused."""

import fcntl
import json
import os
import pathlib
import shutil
import tempfile

import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core import read_only_builder, registered

from mixer.datasets.preparation import build, build_files
from mixer.errors import UserError
from tests.datasets.preparation import build_fakes
from tests.datasets.preparation.build_fakes import Fake, Fakes, member, png

FOLDER = "fakes/1.0.0"
MEMBERS = [member(i) for i in range(60)]


def prepare(root, source=None, progress=lambda p: None, **options):
  options = {"workers": 0, "chunk_images": 8} | options
  builder = Fakes(
    source=Fake(MEMBERS) if source is None else source,
    options=build.Options(**options),
    data_dir=str(root),
  )
  return builder.prepare(progress)


def refusal(root, source=None, **options) -> str:
  with pytest.raises(UserError) as caught:
    prepare(root, source, **options)
  message = str(caught.value)
  assert message.endswith(".")
  assert not (root / FOLDER).exists()
  return message


def read(root, split: str) -> list[dict]:
  """A split's records, in order, as anyone reads them."""
  builder = read_only_builder.builder_from_files("fakes", data_dir=str(root))
  return list(
    builder.as_data_source(
      split, decoders={"image": tfds.decode.SkipDecoding()}
    )
  )


def names(root, split: str) -> list[str]:
  return [record["file_name"].decode() for record in read(root, split)]


def report_of(folder: pathlib.Path) -> list[list[str]]:
  lines = (folder / "report.tsv").read_text().splitlines()
  return [line.split("\t") for line in lines]


def test_tfds_reads_it(tmp_path):
  report = prepare(tmp_path, hold_out={"test": 10, "validation": 5})
  assert report.splits == {"train": 45, "test": 10, "validation": 5}
  assert report.data_dir == str(tmp_path / FOLDER) and not report.already
  assert report.source == "some images" and report.problems == {}
  by_name = {m.name: m for m in MEMBERS}
  seen = []
  for split in report.splits:
    for record in read(tmp_path, split):
      name = record["file_name"].decode()
      assert record["image"] == by_name[name].data
      assert build_fakes.CLASSES[record["label"]] == by_name[name].class_name
      seen.append(name)
  assert sorted(seen) == sorted(by_name)
  assert names(tmp_path, "train[10:20]") == names(tmp_path, "train")[10:20]
  assert names(tmp_path, "test[50%:]") == names(tmp_path, "test")[5:]
  builder = read_only_builder.builder_from_files(
    "fakes", data_dir=str(tmp_path)
  )
  assert builder.info.features["label"].names == list(build_fakes.CLASSES)
  assert builder.info.splits["train"].num_bytes > 45 * 100
  assert builder.info.description == "Noise."


def test_without_held_out_splits_the_order_is_the_sources(tmp_path):
  prepare(tmp_path)
  assert names(tmp_path, "train") == [m.name for m in MEMBERS]


def test_tfds_own_name_of_it(tmp_path):
  builder = Fakes(
    source=Fake(MEMBERS), options=build.Options(workers=0), data_dir=tmp_path
  )
  with pytest.raises(UserError, match="file_format is tfrecord; leave it out"):
    builder.download_and_prepare(file_format="tfrecord")
  builder.download_and_prepare(file_format="array_record")
  assert builder.info.splits["train"].num_examples == 60
  source = builder.as_data_source(
    "train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  assert source[7]["image"] == MEMBERS[7].data


def test_a_builders_config_is_the_sets_default(tmp_path):
  class Configured(build.ImageBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="one")]  # noqa: RUF012

    def _info(self):
      return self.image_info(build_fakes.CLASSES)

  builder = Configured(
    source=Fake(MEMBERS), options=build.Options(workers=0), data_dir=tmp_path
  )
  assert builder.prepare().data_dir == str(tmp_path / "configured/one/1.0.0")
  found = tmp_path / "configured" / ".config" / "metadata.json"
  assert json.loads(found.read_text()) == {"default_config_name": "one"}
  for name in ("configured", "configured/one"):
    found = read_only_builder.builder_from_files(name, data_dir=str(tmp_path))
    assert found.info.splits["train"].num_examples == 60


def test_splits_of_the_source_stay(tmp_path):
  members = [member(i, ("train", "test", "")[i % 3]) for i in range(30)]
  report = prepare(tmp_path, Fake(members), hold_out={"validation": 4})
  assert report.splits == {"train": 16, "test": 10, "validation": 4}
  assert set(names(tmp_path, "test")) == {m.name for m in members[1::3]}
  assert set(names(tmp_path, "validation")) < {m.name for m in members[2::3]}


def test_shuffled(tmp_path):
  hold_out = {"test": 7}
  prepare(tmp_path / "plain", hold_out=hold_out)
  plain = names(tmp_path / "plain", "train")

  def killed(progress: build.Progress):
    if progress.stage == "drawing":
      raise KeyboardInterrupt

  options = {"hold_out": hold_out, "shuffle": True}
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path / "a", progress=killed, **options)
  prepare(tmp_path / "a", **options)
  prepare(tmp_path / "b", Fake(MEMBERS[::-1], "b"), chunk_images=11, **options)
  shuffled = names(tmp_path / "a", "train")
  assert shuffled == names(tmp_path / "b", "train")
  assert shuffled != plain and sorted(shuffled) == sorted(plain)
  test = names(tmp_path / "plain", "test")
  assert test == names(tmp_path / "a", "test")
  again = prepare(tmp_path / "a", hold_out=hold_out)
  assert again.differs == ("shuffle (true then, null now)",)
  assert prepare(tmp_path / "plain", hold_out=hold_out).differs == ()


def test_a_set_without_training_images(tmp_path):
  members = [member(i, "test") for i in range(9)]
  assert prepare(tmp_path, Fake(members)).splits == {"test": 9}


def test_a_split_is_drawn_or_the_sources(tmp_path):
  members = [member(0), member(1, "test")]
  message = refusal(tmp_path, Fake(members), hold_out={"test": 1})
  assert "source has one of its own (bee/0001.png); leave it out" in message


def test_a_prepared_set_is_left_alone(tmp_path):
  first = prepare(tmp_path, seed=1)
  before = build_fakes.digests(tmp_path / FOLDER)
  source = Fake(MEMBERS)
  again = prepare(tmp_path, source, seed=1)
  assert again.already and again.differs == () and source.read == 0
  assert (again.splits, again.source) == (first.splits, first.source)
  assert prepare(tmp_path, seed=2).differs == ("seed (1 then, 2 now)",)
  assert build_fakes.digests(tmp_path / FOLDER) == before


def test_without_a_source_only_what_is_prepared(tmp_path):
  builder = Fakes(data_dir=tmp_path)
  with pytest.raises(UserError, match="no source is named.*--source"):
    builder.prepare()
  prepare(tmp_path)
  assert Fakes(data_dir=tmp_path).prepare().splits == {"train": 60}


def test_two_at_once(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, Fake(MEMBERS, stop_at=20))
  with open(tmp_path / "fakes/.preparing-1.0.0.lock") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    message = refusal(tmp_path)
    assert "Another process prepares" in message
    assert str(tmp_path / "fakes") in message
  assert prepare(tmp_path).splits == {"train": 60}


def test_what_is_unfinished_is_no_data_set(tmp_path, monkeypatch):
  # At the last moment, when all files have their last names.
  rename = os.rename

  def killed(old, new):
    if os.path.basename(new) == "1.0.0":
      raise KeyboardInterrupt
    rename(old, new)

  with monkeypatch.context() as patch:
    patch.setattr("os.rename", killed)
    with pytest.raises(KeyboardInterrupt):
      prepare(tmp_path)
  work = tmp_path / "fakes" / ".preparing-1.0.0"
  assert (work / "data" / "dataset_info.json").exists()
  for name in ("fakes", "fakes:1.0.0", "fakes:1.*.*"):
    with pytest.raises(registered.DatasetNotFoundError):
      read_only_builder.builder_from_files(name, data_dir=str(tmp_path))
  utils = tfds.core.utils
  assert list(utils.file_utils.list_datasets_in_data_dir(tmp_path)) == []
  assert utils.version.list_all_versions(tmp_path / "fakes") == []
  assert utils.file_utils.list_dataset_versions(tmp_path / "fakes") == []
  assert prepare(tmp_path).splits == {"train": 60}
  assert not work.exists()


def test_a_folder_that_is_no_data_set_is_refused(tmp_path):
  (tmp_path / FOLDER).mkdir(parents=True)
  (tmp_path / FOLDER / "something").touch()
  with pytest.raises(UserError, match="has no dataset_info.json.*remove it"):
    prepare(tmp_path)
  shutil.rmtree(tmp_path / FOLDER)
  assert prepare(tmp_path).splits == {"train": 60}


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"seed": 3}, "seed (0 then, 3 now)"),
    (
      {"hold_out": {"b": 2, "a": 2}},
      "hold_out (a=2,b=2 then, b=2,a=2 now)",
    ),
    ({"short_side": 256}, "short_side (0 then, 256 now)"),
    ({"drop_duplicates": True}, "drop_duplicates (false then, true now)"),
    ({"on_mislabelled": "skip"}, "on_mislabelled (keep then, skip now)"),
    ({"source": Fake(MEMBERS, "other")}, "the source (its place, or its fil"),
  ],
  ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_another_preparation_does_not_go_on(tmp_path, change, says):
  options = {"hold_out": {"a": 2, "b": 2}}
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, Fake(MEMBERS, stop_at=20), **options)
  message = refusal(tmp_path, **options | change)
  assert says in message and "--restart to discard it" in message
  assert str(tmp_path / "fakes/.preparing-1.0.0") in message
  report = prepare(tmp_path, **options | change | {"restart": True})
  assert report.splits["train"] == 56


def test_what_does_not_matter_may_change(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    prepare(
      tmp_path,
      Fake(MEMBERS, stop_at=20),
      on_bad="fail",
      on_mislabelled="fail",
      max_bad=0.5,
    )
  source = Fake(MEMBERS)
  prepare(tmp_path, source)
  assert source.read == 60 - 16  # Two chunks were committed.


SPOILED = [
  *MEMBERS[:10],
  member(10, data=b""),
  member(11, data=png(11)[:50]),
  build_fakes.Member("ant/a\tb.png", "ant", "", b"", "lies in a hole"),
  member(13, data=png(13, "JPEG")),
  member(14, data=png(2)),
  *MEMBERS[20:],
]


def test_problems_are_counted_and_listed(tmp_path):
  report = prepare(tmp_path, Fake(SPOILED), drop_duplicates=True)
  assert report.problems == {
    "empty": 1,
    "damaged": 1,
    "unreadable": 1,
    "mislabelled": 1,
    "duplicate": 1,
  }
  assert report.splits == {"train": 51}
  assert report.path == str(tmp_path / FOLDER / "report.tsv")
  rows = report_of(tmp_path / FOLDER)
  assert rows[0] == ["kind", "file", "what"]
  assert [row[:2] for row in rows[1:]] == [
    ["empty", "bee/0010.png"],
    ["damaged", "cat/0011.png"],
    ["unreadable", r"ant/a\tb.png"],
    ["mislabelled", "bee/0013.png"],
    ["duplicate", "cat/0014.png"],
  ]
  assert all(row[2] for row in rows)
  assert "bee/0013.png" in names(tmp_path, "train")


def test_the_report_can_be_read_while_working(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, Fake(SPOILED, stop_at=30))
  assert len(report_of(tmp_path / "fakes/.preparing-1.0.0")) == 5


def test_mislabelled_images_can_be_left_out(tmp_path):
  report = prepare(tmp_path, Fake(SPOILED), on_mislabelled="skip")
  assert report.problems["mislabelled"] == 1
  assert "bee/0013.png" not in names(tmp_path, "train")


@pytest.mark.parametrize(
  ("option", "name"),
  [("on_bad", "bee/0010.png"), ("on_mislabelled", "bee/0013.png")],
)
def test_a_problem_may_end_it(tmp_path, option, name):
  message = refusal(tmp_path, Fake(SPOILED), **{option: "fail"})
  assert message.startswith(f"{name} can't be used (")
  assert f"--{option}=skip" in message
  source = Fake(SPOILED)
  prepare(tmp_path, source, **{option: "skip"})
  assert source.read == len(SPOILED) - 8  # What was committed is kept.


def test_too_many_bad_files_end_it(tmp_path):
  members = [
    member(i % 7, data=b"x" if i % 5 == 0 else None) for i in range(2000)
  ]
  source = Fake(members)
  message = refusal(tmp_path, source, chunk_images=500)
  assert "files can't be used, such as ant/0000.png: not an image" in message
  assert "--max_bad=1" in message and 1000 <= source.read < 1100
  report = prepare(tmp_path, Fake(members), chunk_images=500, max_bad=0.25)
  assert report.splits == {"train": 1600}
  assert report.problems == {"not an image": 400}


def test_too_many_of_few_files_end_it_too(tmp_path):
  members = [member(i, data=b"" if i % 4 == 0 else None) for i in range(40)]
  message = refusal(tmp_path, Fake(members))
  assert "10 of the 40 files can't be used, such as ant/0000.png: " in message
  source = Fake(members)
  assert prepare(tmp_path, source, max_bad=0.25).splits == {"train": 30}
  assert source.read == 0  # The images so far were kept.


@pytest.mark.parametrize("data", [None, b""], ids=["none", "bad"])
def test_a_source_without_images_is_refused(tmp_path, data):
  source = Fake([] if data is None else [member(i, data=data) for i in (1, 2)])
  message = refusal(tmp_path, source)
  assert "There is no image to be used among the" in message
  assert "--source" in message


def test_an_unknown_class_is_refused(tmp_path):
  members = [*MEMBERS, build_fakes.Member("dog/1.png", "dog", "", png(1))]
  message = refusal(tmp_path, Fake(members))
  assert "dog/1.png is of the class 'dog'" in message


@pytest.mark.parametrize(
  ("hold_out", "says"),
  [
    ({"test": 61}, "asks for 61 images as test, and there are 60 left"),
    (
      {"test": 50, "validation": 20},
      "20 images as validation, and there are 10",
    ),
    ({"test": 60}, "hold_out takes all of the 60 images"),
    ({"test": 0.001}, "chance gave it none"),
  ],
  ids=["first", "second", "all", "fraction"],
)
def test_too_few_images_to_hold_out(tmp_path, hold_out, says):
  message = refusal(tmp_path, hold_out=hold_out)
  assert says in message and "hold_out" in message


@pytest.mark.parametrize(
  "hold_out",
  [
    {"test": 0},
    {"test": 1.5},
    {"test": 10, "validation": 0.1},
    {"a": 0.5, "b": 0.5},
    {"train": 10},
    {"test": -1},
    {"my split": 1},
  ],
  ids=str,
)
def test_what_cannot_be_held_out(hold_out):
  with pytest.raises(UserError, match="hold_out"):
    build.Options(hold_out=hold_out)


@pytest.mark.parametrize(
  "options",
  [
    {"workers": -1},
    {"short_side": -1},
    {"quality": 0},
    {"max_bad": 10},
    {"on_bad": "keep"},
    {"on_mislabelled": "drop"},
  ],
  ids=str,
)
def test_options_that_cannot_be(options):
  with pytest.raises(UserError, match=f"^{next(iter(options))} is .*; give "):
    build.Options(**options)


@pytest.mark.parametrize(
  "hold_out", [{"test": 7, "validation": 9}, {"test": 0.3}], ids=str
)
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(MEMBERS))
def test_the_order_of_the_source_does_not_matter(hold_out, order):
  made = []
  for members in (MEMBERS, order):
    with tempfile.TemporaryDirectory() as folder:
      root = pathlib.Path(folder)
      report = prepare(root, Fake(members), hold_out=hold_out)
      made.append({split: names(root, split) for split in report.splits})
  for split in hold_out:  # In order.
    assert made[0][split] == made[1][split]
  assert sorted(made[0]["train"]) == sorted(made[1]["train"])


def test_equal_images_of_a_split_come_once(tmp_path):
  members = [member(i, data=png(i % 20)) for i in range(60)]
  report = prepare(tmp_path, Fake(members), drop_duplicates=True)
  assert report.splits == {"train": 20}
  assert report.problems == {"duplicate": 40}
  assert names(tmp_path, "train") == [m.name for m in members[:20]]


def test_images_are_made_smaller(tmp_path):
  report = prepare(tmp_path, short_side=2)
  assert report.splits == {"train": 60}
  assert all(r["image"][:3] == b"\xff\xd8\xff" for r in read(tmp_path, "train"))


def test_the_sources_warnings_are_told(tmp_path):
  source = Fake(MEMBERS)
  source.warnings.append("It breaks off.")
  assert prepare(tmp_path, source).warnings == ("It breaks off.",)
  assert prepare(tmp_path, Fake(MEMBERS)).warnings == ("It breaks off.",)


def test_progress_is_told(tmp_path):
  told = []
  prepare(tmp_path, Fake(SPOILED), told.append, hold_out={"test": 5})
  reading = [p for p in told if p.stage == "reading"]
  assert (reading[0].bytes_done, reading[0].images) == (0, 0)
  done = [p.bytes_done for p in reading]
  assert done == sorted(done) and done[-1] == reading[-1].bytes_total
  assert (reading[-1].images, reading[-1].bad) == (52, 3)
  assert reading[-1].mislabelled == 1
  assert told[-1].stage == "drawing"
  assert told[-1].bytes_done == told[-1].bytes_total


def test_progress_goes_on_too(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, Fake(MEMBERS, stop_at=20))
  told = []
  prepare(tmp_path, progress=told.append)
  assert (told[0].bytes_done, told[0].images, told[0].resumed) == (
    16000,
    16,
    16,
  )


def test_little_room_is_told_before(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=900))
  source = Fake(MEMBERS)
  message = refusal(tmp_path, source)
  assert "has 900 bytes free, and the data set needs about 61.2 kB" in message
  assert str(tmp_path) in message and source.read == 0


def test_a_rate_that_is_worse_is_told_after_a_chunk(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)
  source = Fake(MEMBERS)
  source.total_bytes = 1000  # As if it were packed tightly...
  monkeypatch.setattr(shutil, "disk_usage", lambda p: usage._replace(free=1100))
  source.members = lambda start=0: (
    (m, 10 * (i + 1)) for i, m in enumerate(MEMBERS[start:], start)
  )
  message = refusal(tmp_path, source)  # ... and unpacks to more.
  assert "What was committed is kept" in message


def test_a_full_disk_is_told_and_the_work_is_kept(tmp_path, monkeypatch):
  real = build_files.array_record_module.ArrayRecordWriter
  left = 20

  class Full:
    def __init__(self, *args):
      self._real = real(*args)
      self.close = self._real.close

    def write(self, record):
      nonlocal left
      left -= 1
      if left < 0:
        raise RuntimeError("write() failed: No space left on device; writing x")
      self._real.write(record)

  with monkeypatch.context() as patch:
    patch.setattr(build_files.array_record_module, "ArrayRecordWriter", Full)
    message = refusal(tmp_path)
  assert f"disk of {tmp_path}/fakes/.preparing-1.0.0/shards is full" in message
  assert "it goes on after the last images" in message
  source = Fake(MEMBERS)
  assert prepare(tmp_path, source).splits == {"train": 60}
  assert source.read == 60 - 16


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="can't be written: .*Not a directory"):
    prepare(tmp_path / "file" / "data")


def test_a_shard_that_is_gone_is_told(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    prepare(tmp_path, Fake(MEMBERS, stop_at=20))
  shards = tmp_path / "fakes/.preparing-1.0.0/shards"
  next(shards.glob("00001-*")).unlink()
  message = refusal(tmp_path)
  assert "was committed with" in message and "--restart" in message


def test_what_it_was_made_of_is_on_record(tmp_path):
  prepare(tmp_path, hold_out={"test": 3})
  record = json.loads((tmp_path / FOLDER / "preparation.json").read_text())
  assert record["from"] == "some images"
  assert record["identity"]["hold_out"] == [["test", 3]]
