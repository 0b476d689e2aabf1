"""What is written is what CLAM and TRIDENT write, to the type of each attribute; what they cannot say is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_ips.errors import TileIndexError
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.slides.base import SlideInfo
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules, build_index
from wsi_ips.tiles.interop.coordinate_import import imported_index, read_foreign
from wsi_ips.tiles.interop.tile_formats import write_foreign
from wsi_ips.tissue.mask import TissueMask


def slide_of(size: Size, mpp: float, divisors: tuple[float, ...] = (1, 4)) -> SlideInfo:
    levels = tuple(Size(max(1, int(size.width / d)), max(1, int(size.height / d))) for d in divisors)
    return SlideInfo("slide.svs", "openslide", levels, Scale(mpp, mpp), "openslide.mpp", Box(0, 0, *size), {}, "")


def mask_of(info: SlideInfo, *, empty: bool = False) -> TissueMask:
    rng = np.random.default_rng(info.size_px0.width)
    mask = np.zeros((7, 9), bool) if empty else rng.random((7, 9)) < 0.6
    return TissueMask(mask, Scale(info.size_px0.width / 9, info.size_px0.height / 7), 0.1, "drawn")


def index_of(info: SlideInfo, *, mpp: float, patch: int, stride: int | None = None, empty: bool = False) -> TileIndex:
    return build_index(
        info,
        mask_of(info, empty=empty),
        TileRules(mpp, patch, stride or patch, 0.2),
        IndexOrigin("s", "identity", "f"),
    )


def back(path: Path, info: SlideInfo, *, mpp: float, patch: int) -> TileIndex:
    return imported_index(
        read_foreign(path),
        info,
        mask_of(info),
        TileRules(mpp, patch),
        IndexOrigin("s", "identity", "f"),
    )


def attributes(path: Path) -> dict[str, tuple[str, object]]:
    with h5py.File(path) as file:
        stated = file["coords"].attrs
        return {k: (str(getattr(v, "dtype", type(v))), v) for k, v in stated.items() if not k.startswith("wsi")}


def compared(real: Path, ours: Path) -> None:
    """Same datasets, types, chunks, and the same type and shape of each attribute as in a file of the tool itself."""
    with h5py.File(real) as a, h5py.File(ours) as b:
        assert list(a) == list(b) == ["coords"]
        one, other = a["coords"], b["coords"]
        assert (one.dtype, one.chunks, one.maxshape) == (other.dtype, other.chunks, other.maxshape)
        names = {name for name in other.attrs if not name.startswith("wsi_ips_")}
        assert names == set(one.attrs)
        for name in names:
            assert np.asarray(one.attrs[name]).dtype.kind == np.asarray(other.attrs[name]).dtype.kind, name
            assert np.shape(one.attrs[name]) == np.shape(other.attrs[name]), name


def test_clam_to_the_letter(tmp_path):
    info = slide_of(Size(4099, 3001), 0.5, (1, 2))
    path = write_foreign(tmp_path, index_of(info, mpp=1.0, patch=128), kind="clam", name="slide")
    assert path == tmp_path / "patches" / "slide.h5"
    stated = attributes(path)
    assert {k: str(np.asarray(v).tolist()) for k, (_, v) in stated.items()} == {
        "downsample": str([4099 / 2049, 3001 / 1500]),
        "downsampled_level_dim": "[2049, 1500]",
        "level_dim": "[2049, 1500]",
        "name": "slide",
        "patch_level": "1",
        "patch_size": "128",
        "save_path": "patches",
    }
    assert stated["patch_level"][0] == stated["patch_size"][0] == stated["level_dim"][0] == "int64"


def test_trident_to_the_letter(tmp_path):
    info = slide_of(Size(4099, 3001), 0.25)
    path = write_foreign(tmp_path, index_of(info, mpp=0.5, patch=128, stride=96), kind="trident", name="slide")
    assert path == tmp_path / "20x_128px_32px_overlap" / "patches" / "slide_patches.h5"
    assert {k: v for k, (_, v) in attributes(path).items()} == {
        "level0_height": 3001,
        "level0_magnification": 40,
        "level0_width": 4099,
        "name": "slide",
        "overlap": 32,
        "patch_size": 128,
        "patch_size_level0": 256,
        "savetodir": "20x_128px_32px_overlap",
        "target_magnification": 20,
    }


def test_as_the_real_files_of_clam_and_trident(real_data, tmp_path):
    info = slide_of(Size(4099, 3001), 0.5)
    index = index_of(info, mpp=0.5, patch=256)
    clam = write_foreign(tmp_path, index, kind="clam", name="slide")
    trident = write_foreign(tmp_path, index, kind="trident", name="slide")
    compared(real_data / "peers" / "clam_run" / "CMU-1-Small-Region.h5", clam)
    compared(real_data / "peers" / "trident_run" / "CMU-1-Small-Region_patches.h5", trident)


def test_no_tile_is_no_file_of_clam_and_an_empty_one_of_trident(tmp_path):
    info = slide_of(Size(4099, 3001), 0.25)
    full = index_of(info, mpp=0.25, patch=128)
    assert write_foreign(tmp_path, full, kind="clam", name="slide").exists()
    none = index_of(info, mpp=0.25, patch=128, empty=True)
    assert write_foreign(tmp_path, none, kind="clam", name="slide") is None
    assert not (tmp_path / "patches" / "slide.h5").exists()  # the older file would be a lie
    path = write_foreign(tmp_path, none, kind="trident", name="slide")
    assert len(back(path, info, mpp=0.25, patch=128)) == 0
    with h5py.File(path) as file:
        assert file["coords"].shape == (0, 2)


def test_a_scale_between_levels_is_no_tile_of_clam(tmp_path):
    info = slide_of(Size(4099, 3001), 0.25)
    with pytest.raises(TileIndexError, match=r"slide s: CLAM reads whole levels, and 0.5 µm/px is not a level"):
        write_foreign(tmp_path, index_of(info, mpp=0.5, patch=128), kind="clam", name="slide")
    assert not list(tmp_path.rglob("*.h5"))


def test_a_scale_that_is_no_magnification_is_no_tile_of_trident(tmp_path):
    info = slide_of(Size(4099, 3001), 0.25)
    with pytest.raises(TileIndexError, match=r"counts in magnifications: 128 px at 10x of a slide of 40x would be 512"):
        write_foreign(tmp_path, index_of(info, mpp=0.75, patch=128), kind="trident", name="slide")


def test_gaps_unequal_axes_and_foreign_levels_are_refused(tmp_path):
    info = slide_of(Size(4099, 3001), 0.25)
    with pytest.raises(TileIndexError, match="no gaps"):
        write_foreign(tmp_path, index_of(info, mpp=0.25, patch=128, stride=200), kind="trident", name="slide")
    unequal = replace(info, mpp=Scale(0.25, 0.125), level_sizes=info.level_sizes[:1])
    for kind in ("clam", "trident"):
        with pytest.raises(TileIndexError, match=r"differs between the axes|is not a level of this slide"):
            write_foreign(tmp_path, index_of(unequal, mpp=0.5, patch=128), kind=kind, name="slide")
    coarse = replace(index_of(info, mpp=1.0, patch=128), reader="tiffslide")
    with pytest.raises(TileIndexError, match="counts the levels of OpenSlide"):
        write_foreign(tmp_path, coarse, kind="clam", name="slide")


def same_tiles(one: TileIndex, other: TileIndex) -> None:
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.y, other.y)
    np.testing.assert_allclose(one.plan.footprint_px0, other.plan.footprint_px0, rtol=5e-3)
    np.testing.assert_allclose(one.plan.effective_mpp, other.plan.effective_mpp, rtol=5e-3)
    assert one.plan.patch_size == other.plan.patch_size


sizes = st.builds(Size, st.integers(2000, 6000), st.integers(2000, 6000))


@settings(max_examples=25, deadline=None)
@given(
    sizes, st.sampled_from([0.2431, 0.25, 0.2527, 0.499, 0.5]), st.sampled_from([0, 1]), st.sampled_from([64, 100, 128])
)
def test_to_clam_and_back_are_the_same_tiles(tmp_path_factory, size, mpp, level, patch):
    info = slide_of(size, mpp)
    target = mpp * (1, 4)[level]
    index = index_of(info, mpp=target, patch=patch)
    path = write_foreign(tmp_path_factory.mktemp("clam"), index, kind="clam", name="slide")
    if path is not None:
        again = back(path, info, mpp=target, patch=patch)
        same_tiles(index, again)
        assert (again.plan.level, again.plan.read_size) == (index.plan.level, index.plan.read_size)


@settings(max_examples=25, deadline=None)
@given(
    sizes,
    st.sampled_from([0.2431, 0.25, 0.2527, 0.499, 0.5]),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.sampled_from([64, 100, 128]),
    st.sampled_from([0, 16, 50]),
)
def test_to_trident_and_back_are_the_same_tiles(tmp_path_factory, size, mpp, target, patch, overlap):
    info = slide_of(size, mpp)
    if target < mpp * 0.95:
        return
    index = index_of(info, mpp=target, patch=patch, stride=patch - overlap)
    path = write_foreign(tmp_path_factory.mktemp("trident"), index, kind="trident", name="slide")
    same_tiles(index, back(path, info, mpp=target, patch=patch))
