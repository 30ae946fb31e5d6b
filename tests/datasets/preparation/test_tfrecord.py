"""TFRecord files, and their checksums."""

import random

import pytest

from mixer.datasets.preparation import tfrecord
from mixer.errors import UserError
from tests.datasets.preparation import tfrecords


def test_checksum_of_the_standard():
  assert tfrecord.crc32c(b"123456789") == 0xE3069283
  assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4.
  assert tfrecord.crc32c(b"\xff" * 32) == 0x62A8AB43
  assert tfrecord.crc32c(bytes(range(32))) == 0x46DD794E


# Around what one lane of the vectorized sum holds, and shorter than its start.
@pytest.mark.parametrize(
  "size", [0, 1, 3, 4, 5, 8, 1023, 1024, 1025, 1027, 1028, 2048, 5001]
)
def test_checksum_of_any_size(size):
  data = random.Random(size).randbytes(size)
  assert tfrecord.crc32c(data) == tfrecords.slow_crc32c(data)


def test_records_are_read(tmp_path):
  path = tmp_path / "x.tfrecord"
  records = [b"", b"a", bytes(3000), random.Random(0).randbytes(1500)]
  tfrecords.write(path, records)
  assert list(tfrecord.read(path)) == records
  path.write_bytes(b"")
  assert list(tfrecord.read(path)) == []


@pytest.fixture
def damaged(tmp_path):
  """Writes three records with a change; returns what reading says."""

  def read(change) -> str:
    path = tmp_path / "x.tfrecord"
    content = bytearray(b"".join(map(tfrecords.framed, [b"abc", b"de", b"f"])))
    path.write_bytes(change(content))
    with pytest.raises(UserError) as caught:
      list(tfrecord.read(path))
    assert str(caught.value).startswith(f"{path} is damaged at record ")
    return str(caught.value).removeprefix(f"{path} is damaged at ")

  return read


@pytest.mark.parametrize("cut", [1, 4, 5, 8, 16])
def test_a_cut_file(damaged, cut):
  text = damaged(lambda content: content[:-cut])
  assert text.startswith("record 2 (counted from 0): the file ends within it.")


def test_a_cut_file_after_a_header(damaged):
  text = damaged(lambda content: content[:22])
  assert text.startswith("record 1 (counted from 0): the file ends within it.")


@pytest.mark.parametrize(
  ("place", "what"),
  [
    (0, "record 0 (counted from 0): its length has a wrong checksum"),
    (9, "record 0 (counted from 0): its length has a wrong checksum"),
    (13, "record 0 (counted from 0): its data has a wrong checksum"),
    (32, "record 1 (counted from 0): its data has a wrong checksum"),
    (33, "record 1 (counted from 0): its data has a wrong checksum"),
  ],
)
def test_a_flipped_bit(damaged, place, what):
  def flip(content):
    content[place] ^= 4
    return content

  assert damaged(flip).startswith(what)


def test_a_length_that_cannot_be_takes_no_memory(damaged):
  length = (2**62).to_bytes(8, "little")
  text = damaged(lambda content: length + tfrecords.masked(length) + content)
  assert "record 0 (counted from 0): the file ends within it" in text


def test_another_file_is_none(damaged):
  assert "length has a wrong checksum" in damaged(
    lambda _: b"PK\3\4" + bytes(99)
  )
