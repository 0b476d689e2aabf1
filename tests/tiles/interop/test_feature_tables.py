"""Features of CLAM and TRIDENT: real and golden files, taken only where tiles and slide agree with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.cohort import textured_slide
from tests.tiles.interop import golden
from wsi_ips.errors import FeaturesError, TileIndexError
from wsi_ips.geometry import Size
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.interop.coordinate_import import find_coordinates, read_foreign
from wsi_ips.tiles.interop.feature_tables import find_features, foreign_features, read_foreign_features, rows_of_tiles
from wsi_ips.tiles.interop.tile_formats import write_foreign_features

WIDTH = 6


@pytest.fixture
def index() -> TileIndex:
    """7 x 4 tiles of 32 px at 0.5 µm/px."""
    return textured_slide("s", label=0, seed=0).index


def corners(index: TileIndex) -> np.ndarray:
    return np.stack([index.x, index.y], axis=1).astype(np.int64)


def features(rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)


def write(path: Path, coords: np.ndarray, values: np.ndarray | None, **attributes: object) -> Path:
    """A feature file as CLAM writes it, or with attributes as TRIDENT does."""
    if attributes:
        golden.write(path, coords, "int64", attributes)
    with h5py.File(path, "a") as file:
        if not attributes:
            file["coords"] = coords.astype(np.int32)
        if values is not None:
            file["features"] = values
            if attributes:
                file["features"].attrs["encoder"] = "uni_v1"
    return path


TRIDENT = {
    "patch_size": np.int64(32),
    "patch_size_level0": np.float64(32),
    "level0_magnification": np.int64(20),
    "target_magnification": np.float64(20),
    "overlap": np.int64(0),
    "name": "s",
    "level0_width": np.int64(224),
    "level0_height": np.int64(128),
}


@pytest.mark.parametrize("attributes", [{}, TRIDENT])
def test_rows_follow_their_coordinates_and_not_the_files_order(tmp_path, index, attributes):
    order = np.random.default_rng(3).permutation(len(index))
    coords = np.concatenate([corners(index)[order], [[200, 100]], corners(index)[:1]])  # a further tile, and one twice
    values = features(len(coords))
    foreign = read_foreign_features(write(tmp_path / "s.h5", coords, values, **attributes))
    rows = rows_of_tiles(foreign, index)
    np.testing.assert_array_equal(foreign.corners_px0[rows], corners(index))
    np.testing.assert_array_equal(foreign.values[rows][order], values[: len(order)])
    assert foreign.encoder == ("uni_v1" if attributes else "unnamed")


@pytest.mark.parametrize(
    ("attributes", "coords", "message"),
    [
        ({}, [[0, 0], [32, 0]], "none for 26 of 28 tiles, e.g. the one at (64, 0)"),
        ({}, [[0, 0], [224, 0]], "begin outside the slide"),
        (TRIDENT | {"level0_width": 300}, [[0, 0], [32, 0]], "level 0 has 300 x 128 px, the slide has 224 x 128"),
        (TRIDENT | {"patch_size_level0": 64, "patch_size": 64}, [[0, 0], [32, 0]], "64 level-0 px, the run's are 32"),
        (TRIDENT | {"wsi_ips_slide_identity": "other"}, [[0, 0], [32, 0]], "slide file of other content"),
    ],
)
def test_what_contradicts_tiles_or_slide_is_refused(tmp_path, index, attributes, coords, message):
    path = write(tmp_path / "s.h5", np.array(coords), features(2), **attributes)
    with pytest.raises(FeaturesError) as caught:
        rows_of_tiles(read_foreign_features(path), index)
    assert message in str(caught.value)
    assert "slide s" in str(caught.value)


def test_what_is_no_feature_file_is_refused(tmp_path, index):
    with pytest.raises(FeaturesError, match="no dataset `features`"):
        read_foreign_features(write(tmp_path / "a.h5", corners(index), None))
    with pytest.raises(FeaturesError, match=r"shape \(2, 3, 1\)"):
        read_foreign_features(write(tmp_path / "b.h5", np.zeros((2, 2)), np.zeros((2, 3, 1))))
    with pytest.raises(FeaturesError, match="3 rows of features for 2 coordinates"):
        read_foreign_features(write(tmp_path / "c.h5", np.zeros((2, 2)), features(3)))
    (tmp_path / "d.h5").write_bytes(b"no")
    with pytest.raises(FeaturesError, match="cannot be read as HDF5"):
        read_foreign_features(tmp_path / "d.h5")
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["coords"], file["features"] = np.full((2, 2), 0.4), features(2)
    with pytest.raises(TileIndexError, match="not whole pixels"):
        read_foreign_features(tmp_path / "e.h5")
    with pytest.raises(FeaturesError, match="floats expected"):
        foreign_features(tmp_path / "f.pt", np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64))


def test_features_are_found_by_the_rule_of_coordinates(tmp_path, index):
    named = write(tmp_path / "one_patches.h5", corners(index), features(len(index)))
    stated = write(tmp_path / "x1.h5", corners(index), features(len(index)), name="two")
    names = {"one": ["one"], "two": ["two"]}
    assert find_features(tmp_path, names) == {"one": named, "two": stated}
    assert find_coordinates(tmp_path, names).by_slide == {"one": (named,), "two": (stated,)}


def test_files_of_stamp_and_wsidata_are_named(tmp_path):
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["feats"], file["coords"] = np.zeros((2, 3)), np.zeros((2, 2))
    with pytest.raises(FeaturesError, match=r"one\.h5: features of STAMP"):
        find_features(tmp_path, {"one": ["one"]})
    with pytest.raises(TileIndexError, match="features of STAMP"):
        read_foreign(tmp_path / "one.h5")
    (tmp_path / "zarr" / "one.zarr").mkdir(parents=True)
    with pytest.raises(FeaturesError, match="wsidata"):
        find_features(tmp_path / "zarr", {"one": ["one"]})
    with pytest.raises(TileIndexError, match="wsidata"):
        find_coordinates(tmp_path / "zarr", {"one": ["one"]})


def test_files_are_found_by_the_slides_names(tmp_path, index):
    for folder in ("h5_files", "pt_files"):
        (tmp_path / folder).mkdir()
    table = write(tmp_path / "h5_files" / "slide1.h5", corners(index), features(len(index)))
    (tmp_path / "pt_files" / "slide1.pt").write_bytes(b"")
    (tmp_path / "pt_files" / "two.pt").write_bytes(b"")
    write(tmp_path / "h5_files" / "stranger.h5", corners(index), features(len(index)))
    golden.clam(tmp_path / "patches" / "slide1.h5")  # coordinates are no features
    names = {"one": ["one", "slide1"], "two": ["two"], "three": ["three"]}
    assert find_features(tmp_path, names) == {"one": table, "two": tmp_path / "pt_files" / "two.pt"}
    write(tmp_path / "one.h5", corners(index), features(len(index)))
    with pytest.raises(FeaturesError, match=r"2 feature files of slide one: h5_files/slide1.h5, one.h5"):
        find_features(tmp_path, names)
    with pytest.raises(FeaturesError, match="no such folder"):
        find_features(tmp_path / "nowhere", names)
    with pytest.raises(FeaturesError, match="no feature file"):
        find_features(tmp_path / "patches", names)


@pytest.mark.parametrize(
    ("kind", "path"), [("clam", "h5_files/n.h5"), ("trident", "20x_32px_0px_overlap/features_enc/n.h5")]
)
def test_what_is_written_is_laid_out_as_theirs_and_read_back(tmp_path, index, kind, path):
    index = replace(index, size_px0=Size(224, 128))
    values = features(len(index))
    written = write_foreign_features(tmp_path, index, values, kind=kind, name="n", encoder="enc")
    assert written == tmp_path / path
    with h5py.File(written) as file:
        ours = {name: (d.dtype.str, d.chunks, d.maxshape) for name, d in file.items()}
        assert ours["features"] == ("<f4", (1, WIDTH), (None, WIDTH))
        assert ours["coords"] == ("<i4" if kind == "clam" else "<i8", (1, 2), (None, 2))
        if kind == "clam":
            assert not file["coords"].attrs
            assert not file["features"].attrs
        else:
            assert file["features"].attrs["encoder"] == "enc"
    foreign = read_foreign_features(written)
    np.testing.assert_array_equal(foreign.values[rows_of_tiles(foreign, index)], values)


def test_our_files_have_all_that_the_real_ones_have(real_data, tmp_path, index):
    """Names, types and layout of files that CLAM and TRIDENT wrote."""
    index = replace(index, size_px0=Size(224, 128))
    for kind, name in (
        ("clam", "clam_run/CMU-1-Small-Region_features.h5"),
        ("trident", "trident_run/CMU-1-Small-Region_features_resnet18_random.h5"),
    ):
        ours = write_foreign_features(tmp_path, index, features(len(index)), kind=kind, name="n", encoder="e")
        with h5py.File(ours) as mine, h5py.File(real_data / "peers" / name) as theirs:
            assert set(mine) == set(theirs)
            for part in theirs:
                assert (mine[part].dtype, len(mine[part].chunks)) == (theirs[part].dtype, len(theirs[part].chunks))
                assert mine[part].chunks[0] == theirs[part].chunks[0] == 1
                assert mine[part].maxshape[0] is theirs[part].maxshape[0] is None
                for attribute, value in theirs[part].attrs.items():
                    assert type(mine[part].attrs[attribute]) is type(value), (part, attribute)
