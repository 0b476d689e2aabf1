"""Read plans: a table of literal cases and properties that must hold for any slide."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from wsi_ips.errors import ResolutionError
from wsi_ips.geometry import Box, Point, Pyramid, ReadPlan, Scale, Size, plan_read
from wsi_ips.slides import SlideInfo, level0_position, level_pixel

CASES = [
    # level sizes, mpp, target, patch -> level, read size, effective mpp
    ([(40_000, 30_000)], (0.25, 0.25), 0.25, 256, 0, (256, 256), (0.25, 0.25)),
    ([(40_000, 30_000)], (0.25, 0.25), 0.5, 256, 0, (512, 512), (0.5, 0.5)),
    ([(40_000, 30_000), (10_000, 7_500)], (0.25, 0.25), 0.5, 256, 0, (512, 512), (0.5, 0.5)),
    ([(40_000, 30_000), (10_000, 7_500)], (0.25, 0.25), 1.0, 256, 1, (256, 256), (1.0, 1.0)),
    ([(40_000, 30_000), (10_000, 7_500)], (0.25, 0.25), 1.04, 256, 1, (256, 256), (1.0, 1.0)),
    ([(40_000, 30_000), (10_000, 7_500)], (0.25, 0.25), 1.10, 256, 1, (282, 282), (1.1015625, 1.1015625)),
    ([(40_001, 30_003), (10_000, 7_500)], (0.25, 0.25), 2.0, 64, 1, (128, 128), (2.00005, 2.0002)),
    ([(40_000, 30_000), (20_000, 15_000)], (0.23, 0.26), 0.5, 100, 0, (217, 192), (0.4991, 0.4992)),
    ([(1_000, 2_000)], (0.499, 0.499), 0.5, 224, 0, (224, 224), (0.499, 0.499)),
    # A whole multiple of a level within 5 % of the target is taken as it is: 2 x 0.2520, 2 x 0.243, 4 x 0.2628.
    ([(40_000, 30_000)], (0.252, 0.252), 0.5, 256, 0, (512, 512), (0.504, 0.504)),
    ([(40_000, 30_000)], (0.243, 0.243), 0.5, 256, 0, (512, 512), (0.486, 0.486)),
    ([(40_000, 30_000)], (0.2628, 0.2628), 1.0, 256, 0, (974, 974), (0.99988, 0.99988)),
    ([(40_000, 30_000)], (0.2275, 0.2275), 0.5, 256, 0, (563, 563), (0.50032, 0.50032)),
    # Anisotropic: either both axes are near a whole multiple or neither is.
    ([(40_000, 30_000)], (0.245, 0.26), 0.5, 100, 0, (200, 200), (0.49, 0.52)),
    ([(40_000, 30_000)], (0.245, 0.27), 0.5, 100, 0, (204, 185), (0.4998, 0.4995)),
    # A level of 3.9998: near 1.0 although 40 000 / 10 000.5 is not 4.
    ([(40_000, 30_000), (10_001, 7_501)], (0.25, 0.25), 1.0, 256, 1, (256, 256), (0.9999, 0.99987)),
    # A level is missing (1, 4, 32): 2.0 is read from level 1 by two, 8.0 is level 2 itself, 4.0 is level 1 by four.
    ([(64_000, 32_000), (16_000, 8_000), (2_000, 1_000)], (0.25, 0.25), 2.0, 128, 1, (256, 256), (2.0, 2.0)),
    ([(64_000, 32_000), (16_000, 8_000), (2_000, 1_000)], (0.25, 0.25), 4.0, 128, 1, (512, 512), (4.0, 4.0)),
    ([(64_000, 32_000), (16_000, 8_000), (2_000, 1_000)], (0.25, 0.25), 8.0, 128, 2, (128, 128), (8.0, 8.0)),
    # One level only, far from the target.
    ([(5_001, 3_003)], (0.1, 0.1), 2.0, 64, 0, (1280, 1280), (2.0, 2.0)),
]


@pytest.mark.parametrize(("sizes", "mpp", "target", "patch", "level", "read", "effective"), CASES)
def test_literal_cases(sizes, mpp, target, patch, level, read, effective):
    pyramid = Pyramid(tuple(Size(*size) for size in sizes), Scale(*mpp))
    plan = plan_read(pyramid, target_mpp=target, patch_size=Size(patch, patch))
    assert plan.level == level
    assert plan.read_size == read
    assert plan.effective_mpp == pytest.approx(effective, rel=1e-4)


def test_pixels_are_never_upsampled():
    pyramid = Pyramid((Size(1000, 900),), Scale(0.5, 0.5))
    with pytest.raises(ResolutionError, match=r"0.5 x 0.5 µm/px.*never upsampled"):
        plan_read(pyramid, target_mpp=0.25, patch_size=Size(64, 64))


pyramids = st.builds(
    lambda width, height, factors, x, y: Pyramid(
        (Size(width, height), *[Size(int(width / f), int(height / f)) for f in sorted(factors)]), Scale(x, y)
    ),
    st.integers(5_000, 120_000),
    st.integers(5_000, 120_000),
    st.lists(st.floats(1.05, 40), max_size=4),
    st.floats(0.1, 1.0),
    st.floats(0.1, 1.0),
)


@given(pyramids, st.floats(0.1, 16), st.integers(16, 1024))
def test_what_is_delivered_is_what_was_asked_for(pyramid, target, patch):
    assume(max(pyramid.mpp) <= target)
    plan = plan_read(pyramid, target_mpp=target, patch_size=Size(patch, patch))
    for axis in (0, 1):
        # Off by the tolerance where the level is taken as it is, by half a read pixel where it is resampled.
        allowed = max(0.05, 0.5 / plan.read_size[axis]) + 1e-9
        assert abs(plan.effective_mpp[axis] / target - 1) <= allowed
        # What a patch covers in µm is the same through level pixels and through patch pixels.
        covered = plan.footprint_px0[axis] * pyramid.mpp[axis]
        assert covered == pytest.approx(patch * plan.effective_mpp[axis])
    if plan.resamples:
        assert min(a / b for a, b in zip(plan.read_size, plan.patch_size, strict=True)) > 1 / 1.06


@given(pyramids, st.floats(0.1, 16), st.integers(16, 1024))
def test_a_whole_factor_is_one_on_both_axes(pyramid, target, patch):
    assume(max(pyramid.mpp) <= target)
    plan = plan_read(pyramid, target_mpp=target, patch_size=Size(patch, patch))
    if plan.whole_factor is not None:
        assert plan.read_size == (patch * plan.whole_factor, patch * plan.whole_factor)
    assert plan.resamples == (plan.whole_factor != 1)


@given(pyramids, st.floats(0.1, 16))
def test_a_plan_survives_storage(pyramid, target):
    assume(max(pyramid.mpp) <= target)
    plan = plan_read(pyramid, target_mpp=target, patch_size=Size(64, 48))
    assert ReadPlan.from_dict(plan.to_dict()) == plan


def info_of(pyramid: Pyramid) -> SlideInfo:
    return SlideInfo("s", "array", pyramid.level_sizes, pyramid.mpp, "", Box(0, 0, *pyramid.size_px0), {}, "")


@given(pyramids, st.floats(0, 1), st.floats(0, 1))
@example(Pyramid((Size(5000, 6534), Size(2628, 3434)), Scale(1.0, 1.0)), 0.0, 0.245595911619722)
def test_level_0_to_level_and_back_is_off_by_half_a_pixel_at_most_wherever_it_is(pyramid, across, down):
    width, height = pyramid.size_px0
    at = Point(int(across * (width - 1)), int(down * (height - 1)))
    for level in range(len(pyramid.level_sizes)):
        downsample = pyramid.downsample(level)
        there = level_pixel(info_of(pyramid), at, level, Size(1, 1))
        inside = pyramid.level_sizes[level]
        assert 0 <= there.x < inside.width
        assert 0 <= there.y < inside.height
        for axis in (0, 1):
            # At the far edge the last pixel is taken, which may be half a pixel further.
            edge = there[axis] == inside[axis] - 1
            assert abs(there[axis] * downsample[axis] - at[axis]) <= downsample[axis] * (1 if edge else 0.5) + 1e-6
        back = level0_position(info_of(pyramid), there, level)
        assert level_pixel(info_of(pyramid), back, level, Size(1, 1)) == there


def test_boxes_are_half_open():
    box = Box(2, 3, 10, 20)
    assert (box.right, box.bottom) == (12, 23)
    assert box.contains(Box(2, 3, 10, 20))
    assert not box.contains(Box(3, 3, 10, 20))
