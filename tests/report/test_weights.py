"""Figures of weights: their pixels, against the weights themselves."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import smoke
from mixer import block, model, sharding
from mixer.insight import kernels
from mixer.report import weights
from tests import trained_files
from tests.report import test_thumbnails


def params_of(side=16, **changes):
  module = model.MlpMixer(4, 5, 8, 6, 12, num_classes=3)
  module = dataclasses.replace(module, **changes)
  return trained_files.random_params(module, side)


def tiles(figure, side):
  """The small pictures of a figure, without the gaps."""
  kind, pixels = test_thumbnails.decoded(figure["image"])
  assert kind == "PNG"
  assert pixels.shape == (figure["height"], figure["width"], 3)
  rows = range(0, figure["height"], side + 1)
  columns = range(0, figure["width"], side + 1)
  return [pixels[y : y + side, x : x + side] for y in rows for x in columns]


def drawn(params, config):
  return weights.figures(weights.gather(params, sharding.make_mesh()), config)


@pytest.fixture
def config():
  return smoke.get_config()


def test_gathers_no_more_than_is_shown():
  params = params_of()
  mesh = sharding.make_mesh(fsdp=4)
  cut = smoke.get_config()
  cut.sharding.min_size = 1
  placed = jax.device_put(params, sharding.weights(mesh, params, cut))
  got = weights.gather(placed, mesh)
  assert set(got) == {"stem", "MixerBlock_0", "MixerBlock_2", "MixerBlock_4"}
  for name in set(got) - {"stem"}:
    np.testing.assert_array_equal(
      got[name]["token_mixing"]["Dense_0"]["kernel"],
      params[name]["token_mixing"]["Dense_0"]["kernel"],
    )
  assert len(jax.tree.leaves(got)) == 4


def test_figures(config):
  params = params_of()
  got, notes = drawn(params, config)
  assert notes == []
  found = tiles(got["stem"], 4)
  assert len(found) == 8
  expected = kernels.stem_kernels(params)
  for tile, kernel in zip(found, expected, strict=True):
    np.testing.assert_array_equal(tile, np.round(kernel * 255).astype(np.uint8))
  assert [f["title"] for f in got["tokens"]] == [
    f"Token mixing, block {i}" for i in (0, 2, 4)
  ]
  units = kernels.token_units(params, 2, (4, 4), np.arange(16))
  found = tiles(got["tokens"][1], 4)
  assert len(found) == 6
  for tile, unit in zip(found, units, strict=True):
    # Red above 0, blue below.
    strong = np.abs(unit) > 0.2 * np.abs(unit).max()
    sign = np.sign(tile[..., 0].astype(int) - tile[..., 2])
    np.testing.assert_array_equal(sign[strong], np.sign(unit)[strong])
  assert "All 6 hidden units of block 2" in got["tokens"][1]["caption"]


def test_no_more_than_64(config):
  params = params_of(hidden_dim=100, tokens_mlp_dim=132)
  got, _ = drawn(params, config)
  assert "64 of 100 kernels" in got["stem"]["caption"]
  assert len(tiles(got["stem"], 4)) == 64
  figure = got["tokens"][0]
  assert "64 of 132 hidden units" in figure["caption"]
  units = kernels.token_units(params, 0, (4, 4), np.arange(16))
  found = tiles(figure, 4)
  all_of_them = kernels.montage(units, 132)
  places = []
  for tile in found:
    (place,) = [
      i for i in range(132) if (all_of_them[:, 5 * i : 5 * i + 4] == tile).all()
    ]
    places.append(place)
  # Pairs stay together, the first and the last one are in it.
  assert (places[0], places[62]) == (0, 130)
  assert places[1::2] == [place + 1 for place in places[::2]]


@pytest.mark.parametrize(
  ("mixing", "keys", "said"),
  [
    ({"untied": True}, {"token_mixing": "untied"}, "No token-mixing weights"),
    ({"groups": 2}, {"token_groups": 2}, "groups of channels"),
    (
      {"pyramid": ((1, 4),)},
      {"pyramid_blocks": (1,), "pyramid_tokens": (4,)},
      "units of block 2 read 4 numbers",
    ),
  ],
)
def test_other_mixings(config, mixing, keys, said):
  config.model.update(keys)
  params = params_of(mixing=block.TokenMixing(**mixing))
  got, notes = drawn(params, config)
  assert got["stem"] is not None
  assert any(said in note for note in notes)
  assert len(got["tokens"]) == ("pyramid" in mixing)


def test_weights_that_are_broken(config):
  params = params_of()
  params["stem"]["kernel"][0, 0, 0, 0] = np.nan
  params["MixerBlock_2"]["token_mixing"]["Dense_0"]["kernel"][1, 1] = np.inf
  got, notes = drawn(params, config)
  assert got["stem"] is None
  assert [f["title"][-1] for f in got["tokens"]] == ["0", "4"]
  assert len(notes) == 2


def test_permuted_images_are_told(config):
  config.data.permute = "patches"
  got, _ = drawn(params_of(), config)
  assert "permutes the patches" in got["tokens"][0]["caption"]
