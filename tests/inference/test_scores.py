"""Scores of a slide are stored and read back whole."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import zarr

from tests.cohort import textured_slide
from wsi_ips.config import ComputeSection
from wsi_ips.errors import ScoresError
from wsi_ips.inference.slide_prediction import predict_slide
from wsi_ips.inference.slide_scores import SlideScores, read_scores, write_scores
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet
from wsi_ips.scanning import ScanOptions


@pytest.fixture(scope="module")
def scores() -> SlideScores:
    torch.manual_seed(2)
    net = IpsNet(
        build_encoder(encoder_spec("resnet18-1", norm="auto", has_weights=False)), NetSettings(heads=2, key_width=4)
    )
    with torch.no_grad():  # an untrained head gives 0.5 to everything
        net.head.weight.mul_(4)
    options = ScanOptions(9, ComputeSection(device="cpu", chunk_size=8))
    return predict_slide(net, textured_slide("s", label=1, seed=3), options, fingerprint="f")


def test_what_is_written_is_read_back(tmp_path, scores):
    write_scores(tmp_path, scores)
    again = read_scores(tmp_path, "s")
    for field in fields(SlideScores):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(scores, field.name))


def test_a_table_of_another_schema_or_without_an_array_is_refused(tmp_path, scores):
    write_scores(tmp_path, scores)
    group = zarr.open_group(tmp_path / "s", mode="r+")
    del group["kept_embeddings"]
    with pytest.raises(ScoresError, match="damaged"):
        read_scores(tmp_path, "s")
    group.attrs["schema_version"] = 3
    with pytest.raises(ScoresError, match="another version"):
        read_scores(tmp_path, "s")


def test_the_second_opinion_is_the_mean_of_the_sixteen_highest_tiles(scores):
    highest = sorted(scores.tile_probability[:, 1].tolist(), reverse=True)[:16]
    assert scores.highest_tiles == pytest.approx(np.mean(highest), abs=1e-6)
    few = replace(scores, tile_probability=scores.tile_probability[:3])
    assert few.highest_tiles == pytest.approx(scores.tile_probability[:3, 1].mean(), abs=1e-6)
