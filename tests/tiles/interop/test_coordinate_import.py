"""Tiles of other tools: found out whose, checked against the slide, contradictions named."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import shapely

from tests.tiles.interop import golden
from wsi_ips.errors import ResolutionError, TileIndexError
from wsi_ips.geometry import Box, Point, Pyramid, Scale, Size
from wsi_ips.slides import ArrayReader, open_slide, read_patch
from wsi_ips.slides.base import SlideInfo
from wsi_ips.tiles.index import IndexOrigin, TileIndex, TileRules
from wsi_ips.tiles.interop.coordinate_import import find_coordinates, imported_index, plan_footprint, read_foreign
from wsi_ips.tissue.mask import TissueMask

SIZE = (1031, 773)
WRITERS = {"clam": golden.clam, "trident": golden.trident, "wsinfer": golden.wsinfer, "atlaspatch": golden.atlaspatch}


def info(mpp: float = 0.25, *, bounds: Box | None = None, reader: str = "openslide") -> SlideInfo:
    """A slide of 1031 x 773 px with a second level of 515 x 386."""
    levels = (Size(*SIZE), Size(515, 386))
    return SlideInfo("ugly.svs", reader, levels, Scale(mpp, mpp), "openslide.mpp", bounds or Box(0, 0, *SIZE), {}, "")


def taken(path: Path, slide: SlideInfo | None = None, *, mpp: float, patch: int, region=None) -> TileIndex:
    slide = slide or info()
    mask = TissueMask(np.ones((4, 6), bool), Scale(SIZE[0] / 6, SIZE[1] / 4), 0.1, "drawn")
    return imported_index(
        read_foreign(path),
        slide,
        mask,
        TileRules(mpp, patch),
        IndexOrigin("s", "identity", "f"),
        tumour_region=region,
    )


@pytest.mark.parametrize("tool", WRITERS)
def test_each_tool_is_recognised_and_its_tiles_are_placed(tool, tmp_path):
    path = WRITERS[tool](tmp_path / "a.h5")
    patch, mpp = (256, 0.25) if tool == "clam" else (128, 0.5)
    index = taken(path, mpp=mpp, patch=patch)
    assert read_foreign(path).format == tool
    # Ordered by y, then x, whatever the order of the file.
    assert list(zip(index.x.tolist(), index.y.tolist(), strict=True)) == [(64, 32), (320, 32), (64, 288), (576, 288)]
    np.testing.assert_allclose(index.plan.footprint_px0, 256, atol=0.5)
    np.testing.assert_allclose(index.plan.effective_mpp, mpp, rtol=2e-3)
    assert index.plan.patch_size == (patch, patch)
    np.testing.assert_allclose(index.tissue_fraction, 1)
    assert index.tissue_method.startswith(f"4 of 4 tiles of {tool}")


def test_types_of_batch_runs_are_the_same_tiles(tmp_path):
    one, batch = golden.trident(tmp_path / "a.h5"), golden.trident(tmp_path / "b.h5", batch=True)
    np.testing.assert_array_equal(taken(one, mpp=0.5, patch=128).x, taken(batch, mpp=0.5, patch=128).x)


def test_an_empty_file_of_trident_is_an_empty_index(tmp_path):
    path = golden.trident(tmp_path / "a.h5", np.empty((0, 2)))
    assert len(taken(path, mpp=0.5, patch=128)) == 0


def test_tiles_of_a_coarse_level_of_clam(tmp_path):
    path = golden.clam(
        tmp_path / "a.h5",
        patch_size=np.int64(100),
        patch_level=np.int64(1),
        downsample=np.array([1031 / 515, 773 / 386]),
        level_dim=np.array([515, 386]),
    )
    plan = taken(path, mpp=0.5, patch=100).plan
    assert (plan.level, plan.read_size) == (1, (100, 100))


def test_forks_of_clam_that_shrink(tmp_path):
    path = golden.clam(tmp_path / "a.h5", custom_downsample=np.int64(2))
    plan = taken(path, mpp=0.5, patch=128).plan
    assert (plan.level, plan.read_size, plan.patch_size) == (0, (256, 256), (128, 128))


def test_annotated_tumour_is_measured_on_imported_tiles(tmp_path):
    index = taken(golden.wsinfer(tmp_path / "a.h5"), mpp=0.5, patch=128, region=shapely.box(64, 32, 192, 288))
    np.testing.assert_allclose(index.tumour_fraction, [0.5, 0, 0, 0], atol=2e-3)


CONTRADICTIONS = {
    "size of the slide": (golden.trident, {"level0_width": np.int64(1032)}, "1032 x 773 px, the slide has 1031 x 773"),
    "magnification and footprint": (golden.trident, {"level0_magnification": np.int64(20)}, "patch_size_level0 = 256"),
    "size of a level": (golden.clam, {"level_dim": np.array([1031, 774])}, "level 0 has 1031 x 774 px"),
    "downsample": (golden.clam, {"downsample": np.array([2.0, 2.0])}, "downsampled by 2 x 2, the slide by 1 x 1"),
    "no such level": (golden.clam, {"patch_level": np.int64(7)}, "level 7, but the slide has 2 levels"),
    "spacing": (golden.wsinfer, {"patch_spacing_um_px": 37.0}, "another scale for the slide"),
    "identity": (golden.clam, {"wsi_ips_slide_identity": "other"}, "of other content"),
    "size to read": (golden.atlaspatch, {"patch_size_level0": 512}, "256 px of level 0 cover 256"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_names_both_values(case, tmp_path):
    writer, changes, message = CONTRADICTIONS[case]
    path = writer(tmp_path / "a.h5", **changes)
    patch, mpp = (256, 0.25) if writer is golden.clam else (128, 0.5)
    with pytest.raises(TileIndexError, match=message) as error:
        taken(path, mpp=mpp, patch=patch)
    assert "ugly.svs" in str(error.value)


def test_the_recipe_is_contradicted_by_name_of_the_key(tmp_path):
    path = golden.clam(tmp_path / "a.h5")
    with pytest.raises(TileIndexError, match=r"256 px, but the recipe asks for 224; set `tiles.patch_px`"):
        taken(path, mpp=0.25, patch=224)
    with pytest.raises(TileIndexError, match=r"0.25 µm/px, but the recipe asks for 0.5 .* `tiles.mpp`"):
        taken(path, mpp=0.5, patch=256)


def test_tiles_that_begin_outside_belong_to_another_slide(tmp_path):
    with pytest.raises(TileIndexError, match=r"1 of 2 tiles begin outside .* of 1031 x 773 px, e\.g\. at \(1031, 0\)"):
        taken(golden.clam(tmp_path / "a.h5", [[0, 0], [1031, 0]]), mpp=0.25, patch=256)


def test_tiles_over_the_edge_and_doubles_are_left_out_and_counted(tmp_path):
    path = golden.clam(tmp_path / "a.h5", [[0, 0], [0, 0], [775, 517], [776, 0], [0, 518]])
    index = taken(path, mpp=0.25, patch=256)
    assert list(zip(index.x.tolist(), index.y.tolist(), strict=True)) == [(0, 0), (775, 517)]
    assert "1 listed twice; 2 left out" in index.tissue_method


def test_what_was_not_scanned_is_no_tile(tmp_path):
    path = golden.clam(tmp_path / "a.h5", [[0, 0], [100, 100]])
    slide = info(bounds=Box(100, 100, 400, 400))
    assert taken(path, slide, mpp=0.25, patch=256).x.tolist() == [100]


def test_levels_of_openslide_are_not_taken_for_those_of_another_reader(tmp_path):
    path = golden.clam(
        tmp_path / "a.h5", patch_level=np.int64(1), downsample=np.array([2.0, 2.0]), level_dim=np.array([515, 386])
    )
    with pytest.raises(TileIndexError, match="one of OpenSlide, but the slide is opened by tiffslide"):
        taken(path, info(reader="tiffslide"), mpp=0.5, patch=256)


def test_pixels_are_never_enlarged(tmp_path):
    changes = {"patch_size": np.int64(512), "target_magnification": np.int64(80)}
    with pytest.raises(ResolutionError, match="never upsampled"):
        taken(golden.trident(tmp_path / "a.h5", **changes), mpp=0.125, patch=512)


def test_a_slide_without_a_scale_is_refused(tmp_path):
    slide = SlideInfo("u.svs", "openslide", (Size(*SIZE),), None, "the file states none", Box(0, 0, *SIZE), {}, "")
    with pytest.raises(ResolutionError, match="column `mpp`"):
        taken(golden.trident(tmp_path / "a.h5", level0_width=np.int64(1031)), slide, mpp=0.5, patch=128)


def test_a_magnification_that_is_off_is_said(tmp_path):
    index = taken(golden.trident(tmp_path / "a.h5"), info(0.29), mpp=0.58, patch=128)
    assert "20x is taken for 0.5 µm/px, here it is 0.58 (+16%)" in index.tissue_method


def two_levels(path: Path) -> None:
    golden.write(path, [[0, 0, 256, 256, 0], [0, 0, 128, 128, 1]], "int32", {"patch_size_level0": 256}, on="file")


DAMAGED = {
    "no coords": (lambda p: h5py.File(p, "w").close(), "no dataset `coords`"),
    "not HDF5": (lambda p: p.write_bytes(b"no"), "cannot be read as HDF5"),
    "features of CLAM": (lambda p: golden.write(p, golden.CORNERS, "int32", {}), "give its folder `patches`"),
    "half pixels": (lambda p: golden.trident(p, np.array([[0.5, 0.0]]), batch=True), "not whole pixels"),
    "not a number": (lambda p: golden.trident(p, np.array([[np.nan, 0.0]]), batch=True), "not whole pixels"),
    "text": (lambda p: golden.clam(p, patch_size="256"), "`patch_size` = 256: a whole number"),
    "no patch": (lambda p: golden.clam(p, patch_size=np.int64(0)), "at least 1"),
    "one downsample": (lambda p: golden.clam(p, downsample=np.float64(1)), "two numbers"),
    "three columns": (lambda p: golden.clam(p, [[1, 2, 3]]), r"shape \(1, 3\)"),
    "two levels": (two_levels, "different size or level"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_with_what_is_wrong(case, tmp_path):
    make, message = DAMAGED[case]
    make(tmp_path / "a.h5")
    with pytest.raises(TileIndexError, match=message) as error:
        read_foreign(tmp_path / "a.h5")
    assert str(tmp_path / "a.h5") in str(error.value)


def test_a_footprint_is_read_from_the_coarsest_level_that_holds_it():
    pyramid = Pyramid((Size(8000, 6000), Size(2000, 1500), Size(500, 375)), Scale(0.25, 0.25))
    plan = plan_footprint(pyramid, Scale(1024, 1024), patch_px=256, target_mpp=1.0)
    assert (plan.level, plan.read_size) == (1, (256, 256))
    odd = plan_footprint(pyramid, Scale(1026, 1026), patch_px=256, target_mpp=1.0)  # 256.5 px of level 1: not whole
    assert (odd.level, odd.read_size) == (0, (1026, 1026))


def test_files_are_found_by_name_or_by_what_they_say(tmp_path):
    golden.trident(tmp_path / "20x" / "patches" / "a_patches.h5")
    golden.clam(tmp_path / "renamed.h5", name="b")
    golden.clam(tmp_path / "stranger.h5", name="who")
    features = golden.clam(tmp_path / "features" / "a.h5")
    with h5py.File(features, "a") as file:
        file["features"] = np.zeros((4, 8), "f4")
    found = find_coordinates(tmp_path, {"A": ["A", "a"], "b": ["b"], "c": ["c"]})
    assert {k: [p.name for p in v] for k, v in found.by_slide.items()} == {"A": ["a_patches.h5"], "b": ["renamed.h5"]}
    assert [path.name for path in found.unknown] == ["stranger.h5"]


REAL = [
    ("clam_run/CMU-1-Small-Region.h5", "CMU-1-Small-Region.svs", 0.5, 45, 50),
    ("clam_run/TCGA-CR-7395-01A-01-TS1.h5", "TCGA-CR-7395-01A-01-TS1.svs", 0.5, 161, 168),
    ("clam_run/demo_tumor_slide_level1.h5", "demo_tumor_slide.tif", 0.486, 123, 123),
    ("trident_run/CMU-1-Small-Region_patches.h5", "CMU-1-Small-Region.svs", 0.5, 53, 58),
    ("trident_run/TCGA-CR-7395-01A-01-TS1_patches.h5", "TCGA-CR-7395-01A-01-TS1.svs", 0.5, 172, 185),
    ("trident_run/demo_tumor_slide_patches.h5", "demo_tumor_slide.tif", 0.5, 175, 175),
]


@pytest.mark.parametrize(("file", "slide", "mpp", "inside", "all_tiles"), REAL)
def test_real_files_of_clam_and_trident(real_data, file, slide, mpp, inside, all_tiles):
    with open_slide(real_data / "slides" / slide, mpp_override=0.499 if "TCGA" in slide else None) as reader:
        foreign = read_foreign(real_data / "peers" / file)
        size = reader.info.size_px0
        mask = TissueMask(np.ones((8, 8), bool), Scale(size.width / 8, size.height / 8), 0.1, "drawn")
        index = imported_index(
            foreign,
            reader.info,
            mask,
            TileRules(mpp, 256),
            IndexOrigin("s"),
        )
        assert (len(index), len(foreign.corners_px0)) == (inside, all_tiles)
        ours = {(int(x), int(y)) for x, y in zip(index.x, index.y, strict=True)}
        assert ours <= {(int(x), int(y)) for x, y in foreign.corners_px0}
        # The last tile can be read, and it is what OpenSlide shows at that place and level.
        corner = Point(int(index.x[-1]), int(index.y[-1]))
        assert read_patch(reader, corner, index.plan).shape == (256, 256, 3)


def test_real_feature_files_of_clam_hold_no_geometry(real_data):
    with pytest.raises(TileIndexError, match="give its folder `patches`"):
        read_foreign(real_data / "peers" / "clam_run" / "CMU-1-Small-Region_features.h5")


def test_a_real_file_of_another_slide_is_refused(real_data):
    foreign = read_foreign(real_data / "peers" / "trident_run" / "demo_tumor_slide_patches.h5")
    reader = ArrayReader([np.zeros((773, 1031, 3), np.uint8)], Scale(0.25, 0.25))
    mask = TissueMask(np.ones((4, 6), bool), Scale(171.8, 193.2), 0.1, "drawn")
    with pytest.raises(TileIndexError, match="10240 x 7168 px, the slide has 1031 x 773"):
        imported_index(
            foreign,
            reader.info,
            mask,
            TileRules(0.5, 256),
            IndexOrigin("s"),
        )


def test_what_wsinfer_itself_writes_is_read():
    """``files/wsinfer.h5``: written by ``save_hdf5`` of WSInfer (Apache-2.0), which needs an older Zarr than we do."""
    index = taken(Path(__file__).parent / "files" / "wsinfer.h5", mpp=0.5, patch=128)
    assert list(zip(index.x.tolist(), index.y.tolist(), strict=True)) == [
        (x, y) for y in (32, 288) for x in (64, 320, 576)
    ]
