"""Sets in their makers' layouts, and as hubs and people keep labels."""

import csv
import gzip
import io
import json

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from scipy import io as scipy_io

from configs import scratch
from mixer import cli
from mixer.datasets import split as split_lib
from mixer.datasets.prepare import request as request_lib
from mixer.datasets.prepare import sets, straight
from tests.datasets import forms


def prepare(root, *words):
  """Runs the command; its exit code."""
  return cli.main(["prepare", *map(str, words), f"--data_dir={root / 'data'}"])


def read(root, name, split):
  """[(class, file name, encoded image)] of a prepared split."""
  found = split_lib.open_split(name, split, str(root / "data"))
  return [
    (found.class_names[r["label"]], r["file_name"], r["image"]) for r in found
  ]


def pixels(encoded):
  return np.asarray(Image.open(io.BytesIO(encoded)))


def cifar(root, name, per_file=4):
  """The binary archive of CIFAR-10 or CIFAR-100, and its rows by split."""
  rng, fine = np.random.default_rng(0), name == "cifar100"
  names = [f"class_{k:03}" for k in range(100 if fine else 10)]
  parts = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)]}
  parts |= {"test": ["test_batch.bin"]}
  if fine:
    parts = {"train": ["train.bin"], "test": ["test.bin"]}
  rows, content = {"train": [], "test": []}, {}
  for split, own in parts.items():
    for file in own:
      data = b""
      for _ in range(per_file):
        label = int(rng.integers(len(names)))
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        rows[split].append((names[label], image))
        labels = bytes([7, label]) if fine else bytes([label])
        data += labels + image.transpose(2, 0, 1).tobytes()
      content[f"top/{file}"] = data
  listed = "fine_label_names.txt" if fine else "batches.meta.txt"
  # Archives have their files in any order.
  content = dict(reversed([*content.items()]))
  content[f"top/{listed}"] = ("\n".join(names) + "\n\n").encode()
  packed = gzip.compress(forms.tar(content))
  base = "cifar-100" if fine else "cifar-10"
  forms.write(root, {f"{base}-binary.tar.gz": packed} | content)
  return root / f"{base}-binary.tar.gz", rows


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(tmp_path, name, capsys):
  path, rows = cifar(tmp_path / "in", name)
  assert prepare(tmp_path, name, f"--source={path}") == 0
  for split, wanted in rows.items():
    found = read(tmp_path, name, split)
    assert sorted(file for _, file, _ in found) == [
      f"{split}/{i:05}.png" for i in range(len(wanted))
    ]
    for class_name, file, image in found:
      label, array = wanted[int(file[-9:-4])]
      assert class_name == label
      np.testing.assert_array_equal(pixels(image), array)
  # In an order of chance, as VTAB takes the first ones.
  assert [f for _, f, _ in read(tmp_path, name, "train")] != sorted(
    f for _, f, _ in read(tmp_path, name, "train")
  )
  folder = tmp_path / "folder"
  assert prepare(folder, name, f"--source={path.parent / 'top'}") == 0
  assert read(folder, name, "train") == read(tmp_path, name, "train")
  capsys.readouterr()
  (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
  for source, words in (
    ("cifar-10-python.tar.gz", "pickles"),
    (
      "in/top/test.bin" if name == "cifar100" else "in/top/test_batch.bin",
      "no",
    ),
  ):
    bad = f"--source={tmp_path / source}"
    assert prepare(tmp_path / "bad", name, bad) == 1
    assert words in capsys.readouterr().err


def pets(root):
  """Its two archives in a folder; files by name, lists by theirs."""
  breeds = ["Abyssinian", "american_bulldog", "Bengal"]
  files, lists = {}, {"trainval": [], "test": []}
  for k, breed in enumerate(breeds, 1):
    for i in range(6):
      files[f"images/{breed}_{i}.jpg"] = forms.image(10 * k + i)
      part = lists["test" if i > 3 else "trainval"]
      part.append(f"{breed}_{i} {k} {1 + (k == 2)} {k}")
  files |= {"images/Bengal_9.jpg": b"in no list", "images/x.mat": b"no image"}
  annotations = {
    f"annotations/{k}.txt": "\n".join(v).encode() for k, v in lists.items()
  }
  source = forms.write(
    root,
    {
      "images.tar.gz": gzip.compress(forms.tar(files)),
      "annotations.tar.gz": gzip.compress(forms.tar(annotations)),
    },
  )
  return source, files, lists


def test_pets(tmp_path, capsys):
  source, files, lists = pets(tmp_path / "in")
  assert prepare(tmp_path, "oxford_iiit_pet", f"--source={source}") == 0
  assert "3 classes: Abyssinian, american_bulldog, B" in capsys.readouterr().out
  for split, part in (("train", "trainval"), ("test", "test")):
    found = read(tmp_path, "oxford_iiit_pet", split)
    assert {(c, f) for c, f, _ in found} == {
      (line.split()[0].rpartition("_")[0], f"{line.split()[0]}.jpg")
      for line in lists[part]
    }
    assert all(files[f"images/{file}"] == image for _, file, image in found)
  (source / "annotations.tar.gz").unlink()
  assert prepare(tmp_path / "b", "oxford_iiit_pet", f"--source={source}") == 1
  assert "has no annotations" in capsys.readouterr().err


def flowers(root):
  """Its archive and two .mat files in a folder."""
  labels = np.array([[1, 102, 77, 1, 2, 102]], np.uint8)
  files = {f"jpg/image_{i:05}.jpg": forms.image(i) for i in range(1, 7)}
  packed = gzip.compress(forms.tar(files))
  source = forms.write(root, {"102flowers.tgz": packed})
  scipy_io.savemat(source / "imagelabels.mat", {"labels": labels})
  sets = {"trnid": [1, 2], "valid": [3], "tstid": [4, 5, 6]}
  scipy_io.savemat(source / "setid.mat", sets)
  return source


def test_flowers(tmp_path, capsys):
  source = flowers(tmp_path / "in")
  assert prepare(tmp_path, "oxford_flowers102", f"--source={source}") == 0
  found = {
    split: sorted(f"{c}: {f}" for c, f, _ in read(tmp_path, name, split))
    for name in ["oxford_flowers102"]
    for split in ("train", "validation", "test")
  }
  assert found == {
    "train": [
      "blackberry lily: image_00002.jpg",
      "pink primrose: image_00001.jpg",
    ],
    "validation": ["passion flower: image_00003.jpg"],
    "test": [
      "blackberry lily: image_00006.jpg",
      "hard-leaved pocket orchid: image_00005.jpg",
      "pink primrose: image_00004.jpg",
    ],
  }
  (source / "setid.mat").write_bytes(b"MATLAB?")
  bad = tmp_path / "b"
  assert prepare(bad, "oxford_flowers102", f"--source={source}") == 1
  assert "no whole files of MATLAB" in capsys.readouterr().err


def shards(root):
  """ImageNet-21k as on the hub: WordNet ids in the keys, one split."""
  wnids = "n01440764", "n02084071"
  for s in range(2):
    files = {}
    for k in range(20):
      key = f"{wnids[k % 2]}_{s}{k}"
      files[f"{key}.jpg"] = forms.image(100 * s + k)
      files[f"{key}.cls"] = b"17"
    forms.write(root, {f"imagenet12k-train-{s:04}.tar": forms.tar(files)})
  return root


def test_webdataset(tmp_path, capsys):
  """Labels by .cls, JSON, WordNet ids, and by what a key begins with."""

  def shard(name, files):
    forms.write(tmp_path / "in", {name: forms.tar(files)})

  for k in range(2):
    shard(
      f"set-train-{k:04}.tar",
      {
        f"{k}a.png": forms.image(k),
        f"{k}a.cls": b"1\n",
        f"{k}b.json": json.dumps({"label": 0}).encode(),
        f"{k}b.jpg": forms.image(10 + k),
        f"{k}b.seg.png": b"another image",
      },
    )
  shard("set-val-0000.tar", {"c.webp": forms.image(3), "c.cls": b"10"})
  flags = "folder", "--name=mine", f"--source={tmp_path / 'in'}"
  assert prepare(tmp_path, *flags) == 0
  found = {s: read(tmp_path, "mine", s) for s in ("train", "validation")}
  assert sorted((c, f) for c, f, _ in found["train"]) == [
    *(("0", "0b.jpg"), ("0", "1b.jpg"), ("1", "0a.png"), ("1", "1a.png")),
  ]
  assert [(c, f, i) for c, f, i in found["validation"]] == [
    ("10", "c.webp", forms.image(3))
  ]
  # Names in place of numbers; classes in the order of their numbers.
  names = tmp_path / "names.txt"
  names.write_text("\n".join(f"name {k}" for k in range(11)))
  assert prepare(tmp_path / "n", *flags, f"--classes={names}") == 0
  found = read(tmp_path / "n", "mine", "train")
  assert {c for c, _, _ in found} == {"name 0", "name 1"}
  # One split, of which parts are held out.
  shards(tmp_path / "w21")
  flags = "imagenet21k", f"--source={tmp_path / 'w21'}"
  assert prepare(tmp_path, *flags, "--hold_out=validation=30%") == 0
  train = read(tmp_path, "imagenet21k", "train")
  assert {c for c, _, _ in train} == {"n01440764", "n02084071"}
  assert 0 < len(read(tmp_path, "imagenet21k", "validation")) < 40
  # A shard that is cut off.
  path = tmp_path / "w21" / "imagenet12k-train-0001.tar"
  path.write_bytes(path.read_bytes()[:5000])
  capsys.readouterr()
  assert prepare(tmp_path / "cut", *flags, "--hold_out=none") == 1
  assert "no whole tar archive" in capsys.readouterr().err


def test_parquet(tmp_path, capsys):
  names = ["cat", "dog", "eel"]
  about = {"info": {"features": {"label": {"names": names}}}}

  def write(file, rows, metadata=about):
    images = [{"bytes": forms.image(i), "path": f"{i}.png"} for i, _ in rows]
    table = pyarrow.table(
      {"image": images, "label": [label for _, label in rows]}
    )
    if metadata:
      table = table.replace_schema_metadata(
        {"huggingface": json.dumps(metadata)}
      )
    (tmp_path / "in" / "data").mkdir(parents=True, exist_ok=True)
    path = tmp_path / "in" / "data" / file
    parquet.write_table(table, path, row_group_size=2)
    return path

  write("train-00000-of-00002.parquet", [(k, k % 3) for k in range(5)])
  write("train-00001-of-00002.parquet", [(5, 2)])
  path = write("test-00000-of-00001.parquet", [(7, 2), (8, -1)])
  flags = "folder", "--name=mine", f"--source={tmp_path / 'in'}"
  assert prepare(tmp_path, *flags, "--max_bad=0.2") == 0
  found = read(tmp_path, "mine", "train")
  assert sorted((c, f, i) for c, f, i in found) == sorted(
    (names[k % 3], f"train-0000{k // 5}-of-00002/{k}.png", forms.image(k))
    for k in range(6)
  )
  # A row without a label is reported.
  assert [c for c, _, _ in read(tmp_path, "mine", "test")] == ["eel"]
  assert "1 files are left out" in capsys.readouterr().out
  # Strings are classes, and a hidden part is drawn of a single file.
  alone = write("some.parquet", [(k, "ab"[k % 2]) for k in range(40)], None)
  flags = "folder", "--name=strings", f"--source={alone}"
  assert prepare(tmp_path, *flags, "--hold_out=20%") == 0
  both = [read(tmp_path, "strings", s) for s in ("train", "validation")]
  assert {c for part in both for c, _, _ in part} == {"a", "b"}
  assert len(both[0]) + len(both[1]) == 40
  for content, words in (
    (path.read_bytes()[:-9], "no whole parquet file"),
    (b"", "no whole parquet file"),
  ):
    path.write_bytes(content)
    assert (
      prepare(tmp_path / "b", "folder", "--name=x", f"--source={path}") == 1
    )
    assert words in capsys.readouterr().err


def test_a_stopped_pass_goes_on_anywhere(tmp_path):
  """What comes from member k on is the same, whatever was read before."""
  rows = [{"bytes": forms.image(k), "path": f"{k}.png"} for k in range(9)]
  table = pyarrow.table({"image": rows, "label": ["b", "a", "c"] * 3})
  for part in range(2):
    path = tmp_path / f"part-{part:04}.parquet"
    parquet.write_table(table, path, row_group_size=4)
  cifar10, _ = cifar(tmp_path / "c", "cifar10")
  for name, source in (
    ("folder", tmp_path),
    ("imagenet21k", shards(tmp_path / "w")),
    ("cifar10", cifar10),
    ("oxford_iiit_pet", pets(tmp_path / "p")[0]),
    ("oxford_flowers102", flowers(tmp_path / "f")),
  ):
    request = request_lib.Request(name, "", [source])
    whole = [member for member, _ in sets.open_source(request).members()]
    assert len(whole) > 4
    for start in (1, 4, len(whole) - 1, len(whole)):
      found = sets.open_source(request).members(start)
      assert [member for member, _ in found] == whole[start:]


def test_a_table(tmp_path, capsys):
  """As Kaggle has them: ids without suffixes, images in a folder beside."""
  root = forms.write(
    tmp_path / "in",
    {f"train/{k:02}.ppm": forms.image(k) for k in range(20)}
    | {"train/rest.ppm": forms.image(99)},
  )
  rows = [(f"{k:02}", ["cat", "dog"][k % 2]) for k in range(20)]
  with open(root / "labels.csv", "w", newline="") as f:
    csv.writer(f).writerows(
      [("id", "breed"), *rows, ("00", "dog"), ("gone", "cat")]
    )
  flags = "folder", "--name=mine", f"--source={root / 'labels.csv'}"
  assert prepare(tmp_path, *flags, "--hold_out=20%") == 0
  out, err = capsys.readouterr()
  assert "labels.csv (id, breed)" in out + err
  assert "rows name an image again; its first row counts: 00" in out + err
  assert "are not in the table and are left out: train/rest.ppm" in out + err
  assert "1 files are left out" in out
  both = [read(tmp_path, "mine", s) for s in ("train", "validation")]
  assert sorted((f, c) for part in both for c, f, _ in part) == rows
  assert len(both[1]) == 4
  # Columns by name, a split, tabs.
  table = [("what", "where", "part"), *(
    (label, f"train/{name}.ppm", ["train", "test"][k > 15])
    for k, (name, label) in enumerate(rows)
  )]  # fmt: skip
  text = "".join("\t".join(row) + "\n" for row in table)
  (root / "labels.tsv").write_text(text, "utf-8-sig")
  flags = "folder", "--name=tabs", f"--source={root / 'labels.tsv'}"
  assert prepare(tmp_path, *flags, "--columns=where,what,part") == 0
  assert len(read(tmp_path, "tabs", "train")) == 16
  assert {f for _, f, _ in read(tmp_path, "tabs", "test")} == {
    f"train/{k}.ppm" for k in range(16, 20)
  }
  capsys.readouterr()
  assert prepare(tmp_path / "b", *flags) == 1
  assert "has the columns what, where, part" in capsys.readouterr().err


def test_a_folder_straight(tmp_path, capsys):
  """Prepared on first use, known the next time, anew where it has changed."""
  root = forms.write(
    tmp_path / "my photos",
    {f"cat/{k}.ppm": forms.image(k) for k in range(9)}
    | {f"dog/{k}.ppm": forms.image(20 + k) for k in range(9)},
  )

  def opened():
    straight.folder.cache_clear()  # As in another process.
    name = f"folder:{root}"
    found = split_lib.open_split(name, "auto", str(tmp_path / "data"))
    assert found.class_names == ("cat", "dog")
    return len(found), found.identity, capsys.readouterr().err

  first, again = opened(), opened()
  assert first[0] == 2 and "preparing folders of images" in first[2]
  assert again == (*first[:2], "")
  (root / "dog" / "9.ppm").write_bytes(forms.image(77))
  _, identity, said = opened()
  assert "has changed since it was prepared: prepared anew" in said
  assert identity != first[1]
  config = scratch.get_config(f"dataset={root},size=32")
  assert config.data.name == f"folder:{root}"
  assert scratch.get_config("dataset=birds").data.name == "birds"
