"""The look of a slide: kept under stain, scale, margin, turns and mirrors; different for different slides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from wsi_ips.tissue.perceptual_hash import look_alikes, look_of


def node(seed: int, size: tuple[int, int] = (300, 420)) -> np.ndarray:
    """Pink tissue of random shape with dark spots on white glass."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    fine = Image.fromarray(rng.integers(0, 256, (30, 42), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    tissue = np.asarray(coarse.filter(ImageFilter.GaussianBlur(8))) > 118
    pixels = np.full((*size, 3), 243, np.uint8)
    stain = np.stack([np.full(size, 200), np.asarray(fine) // 2 + 50, np.full(size, 190)], axis=-1)
    pixels[tissue] = stain[tissue]
    return pixels


def distance(one: np.ndarray, other: np.ndarray) -> float | None:
    """Share of bits that differ, None beyond what counts as alike."""
    pairs = list(look_alikes({"a": look_of(one), "b": look_of(other)}))
    return pairs[0].distance if pairs else None


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(0, 3), st.booleans(), st.floats(0.6, 1.0), st.integers(0, 60), st.integers(0, 60)
)
def test_another_scan_of_the_same_slide_looks_alike(seed, turns, mirrored, scale, left, top):
    slide = node(seed)
    scan = np.pad(slide, ((top, 20), (left, 30), (0, 0)), constant_values=243)
    scan = (255 - (255 - scan.astype(float)) * [1.1, 0.9, 1.0]).clip(0, 255).astype(np.uint8)
    small = Image.fromarray(scan).resize((round(scan.shape[1] * scale), round(scan.shape[0] * scale)))
    turned = np.rot90(np.asarray(small), turns)
    assert distance(slide, turned[:, ::-1] if mirrored else turned) is not None


def test_right_angle_turns_and_mirrors_alone_cost_nothing():
    slide = node(4)
    for turns in range(4):
        for image in (np.rot90(slide, turns), np.rot90(slide, turns)[:, ::-1]):
            assert distance(slide, np.ascontiguousarray(image)) <= 0.02


def test_different_slides_do_not_look_alike():
    looks = {str(seed): look_of(node(seed)) for seed in range(60)}
    assert all(looks.values())
    assert not list(look_alikes(looks))


@pytest.mark.parametrize(
    "pixels", [np.full((200, 300, 3), 240, np.uint8), np.zeros((5, 5, 3), np.uint8)], ids=["glass", "five pixels"]
)
def test_where_there_is_nothing_to_recognise_nothing_is_alike(pixels):
    assert look_of(pixels) == ""
    assert not list(look_alikes({"a": "", "b": "", "c": look_of(node(1))}))


def test_pairs_are_told_once_also_beyond_one_block():
    looks = {str(seed): look_of(node(seed)) for seed in range(5)}
    many = {f"{name}-{copy}": look for copy in range(220) for name, look in looks.items()}  # 1100 slides, blocks of 512
    pairs = [(a, b) for a, b, _ in look_alikes(many)]
    assert len(pairs) == len(set(pairs)) == 5 * 220 * 219 // 2
