"""Presets: what is said when one is used."""

from __future__ import annotations

import pytest

from wsi_ips.model.encoders import PRESETS
from wsi_ips.model.encoders import encoder_remarks as remarks


def test_a_licence_without_commercial_use_is_said_with_its_page():
    said = remarks("preset:uni", mpp=0.5, patch_px=224)
    assert len(said) == 1
    assert "CC-BY-NC-ND-4.0 does not allow commercial use" in said[0]
    assert "https://huggingface.co/MahmoodLab/uni" in said[0]


def test_a_licence_that_is_not_known_is_said_too():
    assert "may not allow" in remarks("preset:kaiko-s16")[0]


@pytest.mark.parametrize(
    "name", ["preset:virchow", "preset:h-optimus-0", "preset:resnet50", "resnet18", "timm:resnet10t"]
)
def test_nothing_is_said_of_what_is_in_order(name):
    assert remarks(name, mpp=0.5, patch_px=224) == []


@pytest.mark.parametrize(("mpp", "said"), [(0.5, 0), (0.46, 0), (0.44, 1), (0.56, 1), (1.0, 1), (None, 0)])
def test_tiles_of_another_scale_are_said(mpp, said):
    lines = remarks("preset:virchow", mpp=mpp, patch_px=224)
    assert len(lines) == said
    assert all("made for 0.5 µm/px" in line and "`tiles.mpp` to 0.5" in line for line in lines)


@pytest.mark.parametrize(("mpp", "said"), [(0.25, 0), (0.5, 0), (1.0, 1)])
def test_a_range_of_scales(mpp, said):
    assert sum("0.25-0.5 µm/px" in line for line in remarks("preset:lunit-s8", mpp=mpp)) == said


def test_patches_of_another_size_are_said_but_for_networks_that_take_any():
    assert "224 px, the recipe's have 256 px" in remarks("preset:virchow", mpp=0.5, patch_px=256)[0]
    assert remarks("preset:resnet50", mpp=2.0, patch_px=64) == []


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.key)
def test_every_preset_is_whole(preset):
    assert preset.key == preset.key.lower()
    assert preset.licence
    assert preset.model.startswith(("resnet", "timm:hf-hub:"))
    assert preset.page or not preset.model.startswith("timm:")
