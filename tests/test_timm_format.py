"""Weights in timm's format: of the hub, of a folder, of a file; and published.

tests/test_export_torch.py compares with timm itself.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
import safetensors.numpy
import scipy.special
from huggingface_hub import constants
from PIL import Image

from configs import finetune
from mixer import cli, export_timm, initial, model, released, trained, weights
from mixer import config as config_lib
from mixer.datasets import wordnet
from mixer.errors import UserError
from tests import hub_server, reference, trained_files

NAME = "timm/mixer_s4_8.test"
MODULE = model.MlpMixer(4, 2, 8, 6, 12, num_classes=5, gelu="exact")
PARAMS = trained_files.random_params(MODULE, 8)
FIXED = {
  "tag": "a",
  "input_size": [3, 8, 8],
  "interpolation": "bicubic",
  "crop_pct": 0.875,
  "crop_mode": "center",
  "mean": [0.5] * 3,
  "std": [0.5] * 3,
}


def write(folder, params=PARAMS, config=(), fixed=()):
  """A folder as timm's `save_for_hf` writes it."""
  folder.mkdir(parents=True, exist_ok=True)
  arrays = export_timm.state_dict(params)
  file = folder / "model.safetensors"
  safetensors.numpy.save_file(arrays, file, {"format": "pt"})
  k = len(params["head"]["bias"]) if "head" in params else 0
  about = {"architecture": "mixer_s4_8", "num_classes": k, **dict(config)}
  about["pretrained_cfg"] = FIXED | {"num_classes": k} | dict(fixed)
  (folder / "config.json").write_text(json.dumps(about))
  return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """A hub with the model, a damaged one and a gated one; its cache is empty."""
  write(tmp_path / "hub" / NAME)
  write(tmp_path / "hub" / "me" / "gated")
  bad = write(tmp_path / "hub" / "me" / "bad") / "model.safetensors"
  bad.write_bytes(bad.read_bytes()[:-9])
  monkeypatch.setenv("no_proxy", "*")
  monkeypatch.setenv("MIXER_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
  with hub_server.serving(tmp_path / "hub", ("me/gated",)) as server:
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    path = "/{repo_id}/resolve/{revision}/{filename}"
    where = f"{server.endpoint}{path}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", where)
    yield server


def exact_mlp(x, p):
  x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
  x = x * scipy.special.ndtr(x)
  return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def logits(path, images):
  found = trained.load(str(path))
  x = images.astype(np.float32) / 127.5 - 1
  return np.asarray(model.apply(found.module, found.params, x))


def pictures(count=3):
  rng = np.random.default_rng(3)
  return rng.integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_every_form_gives_the_same_model(hub, tmp_path, monkeypatch):
  folder = write(tmp_path / "made")
  one, bare = tmp_path / "one", tmp_path / "bare"
  for other in (one, bare):
    other.mkdir()
    shutil.copy(folder / "model.safetensors", other / "w.safetensors")
  shutil.copy(folder / "config.json", one)
  forms = [folder, f"{folder}/model.safetensors", one / "w.safetensors"]
  forms += [NAME, f"hf-hub:{NAME}", f"hf-hub:{NAME}@main"]
  for form in [*forms, bare / "w.safetensors"]:
    found = trained.load(str(form))
    assert found.module == MODULE and found.image_size == (8, 8)
    digest = weights.digest(PARAMS)
    assert found.origin == (
      f"{form} (exact GELU, as timm computes it; SHA-256 of its parameters "
      f"{digest})"
    )
    assert weights.digest(found.params) == digest  # Identity, of mean 0.5.
    way = "" if "bare" in str(form) else "pillow_bicubic"
    assert (found.short_side, found.interpolation) == (9, way)
    assert "outputs are, so they are numbers" in found.unnamed
  monkeypatch.setattr(reference, "_mlp", exact_mlp)
  images = pictures()
  wanted = reference.forward(PARAMS, images / 127.5 - 1)
  np.testing.assert_allclose(logits(folder, images), wanted, atol=1e-5)
  # It is fetched once; what the cache has serves without a network.
  assert len([r for r in hub.requests if r.endswith("safetensors")]) <= 8
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  assert trained.load(NAME).module == MODULE
  assert "SHA-256" in initial.load(config_of(NAME), []).message


def config_of(path, **changes):
  """The recipe of fine-tuning from weights."""
  c = finetune.get_config(f"model={path},dataset=cifar10")
  return config_lib.changed(c, {"image_size": 8, **changes})


def test_fine_tuning_takes_the_exact_gelu_along(hub):
  c = config_of(NAME)
  assert (c.model.variant, c.model.gelu, c.model.num_blocks) == (
    *("S/4", "exact", 2),
  )
  assert config_lib.image_size(c) == (8, 8)
  assert model.from_config(c, 5).gelu == "exact"
  with pytest.raises(UserError, match=r"exact form .*--config.model.gelu=exac"):
    initial.load(config_of(NAME, **{"model.gelu": "tanh"}), [])


@pytest.mark.parametrize(
  ("mean", "std"),
  [([0.0] * 3, [1.0] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
)
def test_another_mean_and_std(tmp_path, monkeypatch, mean, std):
  folder = write(tmp_path / "made", fixed={"mean": mean, "std": std})
  monkeypatch.setattr(reference, "_mlp", exact_mlp)
  images = pictures()
  wanted = reference.forward(PARAMS, (images / 255 - mean) / std)
  found = logits(folder, images)
  np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_classes(tmp_path):
  labels = [f"n{k}" for k in range(5)]
  texts = {k: f"kind {k}" for k in labels}
  both = {"label_names": labels, "label_descriptions": texts}
  for config, fixed in ((both, {}), ({}, both)):
    found = trained.load(str(write(tmp_path / "a", PARAMS, config, fixed)))
    assert found.class_ids == tuple(labels)
    assert found.class_names == tuple(texts.values())
  by_number = {"label_names": {str(k): v for k, v in enumerate(labels)}}
  found = trained.load(
    str(write(tmp_path / "a", PARAMS, by_number, {"crop_pct": None}))
  )
  assert found.short_side == 9
  assert found.class_ids == found.class_names == tuple(labels)
  for tag, name in (
    ("goog_in21k", "head"),
    ("miil_in21k", "fall11_p"),
    ("goog_in21k_ft_in1k", "imagenet1k"),
  ):
    ids = wordnet.classes(name)
    params = trained_files.random_params(MODULE.clone(num_classes=len(ids)), 8)
    found = trained.load(str(write(tmp_path / "b", params, (), {"tag": tag})))
    assert found.class_ids == ids and found.class_names == wordnet.names(ids)
  headless = trained_files.random_params(MODULE.clone(num_classes=0), 8)
  found = trained.load(str(write(tmp_path / "c", headless)))
  assert found.num_classes == 0 and found.class_ids is None


def test_what_cannot_be_honoured_is_refused(tmp_path):
  args = {"model_args": {"img_size": 8, "stem_norm": True, "nlhb": True}}
  for config, fixed, sentence in (
    ({"architecture": "resmlp_12_224"}, {}, "architecture resmlp_12_224"),
    ({"architecture": "gmixer_12_224"}, {}, "architecture gmixer_12_224"),
    (args, {}, "not supported: model_args nlhb, stem_norm"),
    ({"model_args": {"global_pool": ""}}, {}, "another pooling than avg"),
    ({}, {"crop_mode": "border"}, "crop_mode border"),
    ({}, {"crop_pct": 0.9, "crop_mode": "squash"}, "squash, crop_pct 0.9"),
    ({}, {"interpolation": "lanczos"}, "interpolation lanczos"),
    ({}, {"input_size": [3, 4, 16]}, "crop_pct 0.875 for 4 x 16 px"),
    ({}, {"input_size": [3, 16, 16]}, r"another size than \(16, 16\)"),
    ({}, {"input_size": None}, "damaged, or no config of a timm model: Type"),
    ({}, {"mean": None}, "damaged, or no config"),
    ({"num_classes": 7}, {}, "5 outputs, but config.json .* 7 classes"),
    ({"label_names": ["a"]}, {}, "5 classes, not 1. It must be exported"),
  ):
    folder = write(tmp_path / "made", PARAMS, config, fixed)
    with pytest.raises(UserError, match=sentence):
      trained.load(str(folder))
  (folder / "config.json").write_text("{")
  with pytest.raises(
    UserError, match="config.json is no JSON of timm's config"
  ):
    trained.load(str(folder))
  write(folder, PARAMS | {"stem": {"kernel": PARAMS["stem"]["kernel"]}})
  with pytest.raises(UserError, match="whole MLP-Mixer: stem/bias .* missing"):
    trained.load(str(folder))
  (folder / "model.safetensors").write_bytes(b"junk")
  with pytest.raises(UserError, match="no .safetensors file, or it is damaged"):
    trained.load(str(folder))


def test_what_the_hub_refuses(hub, monkeypatch):
  for name, sentence in (
    ("hf-hub:me/none", "can't be fetched.*folder, and name that folder"),
    ("hf-hub:me/gated", "hf auth login"),
    ("hf-hub:me/bad", r"damaged .*Remove .*/blobs/.* downloaded anew"),
  ):
    with pytest.raises(UserError, match=sentence):
      trained.load(name)
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(
    UserError, match=f"Without a network.*huggingface.co/{NAME}"
  ):
    trained.load(NAME)


def test_a_released_name_falls_back_to_its_copy(hub, monkeypatch, capsys):
  monkeypatch.setenv("MIXER_RELEASED_URL", f"{hub.endpoint}/no")  # 404.
  name, copy = "imagenet1k/Mixer-B_16", "timm/mixer_b16_224.goog_in21k_ft_in1k"
  with pytest.raises(UserError, match=f"404.* Nor is its copy .*{copy} can't"):
    trained.load(name)
  params = trained_files.random_params(MODULE.clone(num_classes=1000), 8)
  write(pathlib.Path(hub.folder) / copy, params)
  found = trained.load(name)
  assert found.module.gelu == "tanh"  # As they were trained.
  assert found.class_ids == wordnet.classes("imagenet1k")
  assert (found.short_side, found.interpolation) == (9, "")
  assert f"{name} (copy {copy}; tanh GELU; SHA" in found.origin
  assert f"Instead, {copy} on the Hugging" in capsys.readouterr().err
  with pytest.raises(UserError, match="404"):  # Nobody has a copy.
    released.load("sam/Mixer-B_16")


def test_without_the_extra(tmp_path, monkeypatch):
  folder = write(tmp_path / "made")
  monkeypatch.setitem(sys.modules, "safetensors", None)
  with pytest.raises(UserError, match="make setup-hub, or pip install"):
    trained.load(str(folder))


def test_published_and_read_back(hub, tmp_path, capsys):
  """By the command, to the hub, and from there: classes, GELU, pixels too."""
  labels = {"label_names": list("abcde")}
  write(
    tmp_path / "miil", PARAMS, labels, {"mean": [0.0] * 3, "std": [1.0] * 3}
  )
  file = tmp_path / "own.npz"  # Of ours, with the tanh form.
  trained_files.npz(file, 5, classes=list("vwxyz"))
  picture = tmp_path / "a.png"
  Image.fromarray(pictures(1)[0]).resize((31, 20)).save(picture)
  for source, gelu in ((tmp_path / "miil", "exact"), (file, "tanh")):
    target = pathlib.Path(hub.folder) / "me" / gelu
    words = [f"--checkpoint={source}", "--to=hf", f"--output={target}"]
    assert cli.main(["export", *words]) == 0
    assert f"hf upload OWNER/NAME {target}" in capsys.readouterr().out
    old, new = trained.load(str(source)), trained.load(f"hf-hub:me/{gelu}")
    assert new.module == old.module and new.module.gelu == gelu
    for name in ("class_ids", "short_side", "interpolation", "image_size"):
      assert getattr(new, name) == getattr(old, name), name
    assert weights.digest(new.params) == weights.digest(old.params)
    answers = []
    for path in (source, f"hf-hub:me/{gelu}"):
      words = [f"--checkpoint={path}", str(picture), "--format=csv"]
      assert cli.main(["predict", *words]) == 0
      answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    card = (target / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert ("act_layer" in card) == (gelu == "tanh")
    assert 'mixer.load("hf-hub:OWNER/NAME")' in card
  words = [f"--checkpoint={tmp_path}/miil", f"--output={tmp_path}/a.onnx"]
  assert cli.main(["export", *words, "--to=onnx"]) == 0  # The exact GELU too.
