"""Scores of other models: read from what those tools write, checked against the slide."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from wsi_ips.errors import ScoresError, TileIndexError
from wsi_ips.geometry import Box, Scale, Size
from wsi_ips.slides import SlideInfo
from wsi_ips.tiles.interop.scored_tiles import place_scores, read_scored, with_footprint

SIZE = Size(5000, 3000)


def info(size: Size = SIZE) -> SlideInfo:
    return SlideInfo("s.svs", "openslide", (size,), Scale(0.25, 0.26), "test", Box(0, 0, *size), {}, "test")


def table(folder: Path, text: str, name: str = "scores.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def placed(path: Path, size: Size = SIZE, tile_px0: float | None = None, patches: Path | None = None, **how):
    scored = with_footprint(read_scored(path, **how), tile_px0=tile_px0, patches=patches)
    return place_scores(scored, info(size), slide_id="s", fingerprint="f")


def test_wsinfers_table_says_everything_itself(real_data):
    found = placed(real_data / "peers" / "other" / "wsinfer_purple.csv", Size(4200, 4200))
    assert list(found.columns) == ["prob_Other", "prob_Tumor"]
    assert found.index.plan.footprint_px0 == (350, 350)
    assert found.index.stride_px0 == (350, 350)
    assert len(found.index) == 144
    np.testing.assert_allclose(found.columns["prob_Other"] + found.columns["prob_Tumor"], 1, atol=1e-6)


@pytest.mark.parametrize("names", ["x,y", "X, Y", "minx,miny", "coord_x,coord_y", "x_px0,y_px0", "left,top"])
def test_each_score_stays_with_its_tile_whatever_the_columns_are_called(tmp_path, names):
    rows = "512,256,0.3\n0,256,0.2\n0,0,0.1\n"
    found = placed(table(tmp_path, f"{names},p\n{rows}"), tile_px0=256)
    assert found.index.x.tolist() == [0, 0, 512]
    assert found.index.y.tolist() == [0, 256, 256]
    assert found.columns["p"].tolist() == [0.1, 0.2, 0.3]


def test_texts_and_numbers_that_are_no_scores_are_not_drawn(tmp_path):
    path = table(tmp_path, "tile_id,x,y,width,height,name,p\n7,0,0,64,64,a,0.5\n")
    assert list(read_scored(path).columns) == ["p"]
    assert list(read_scored(path, columns=["tile_id"]).columns) == ["tile_id"]


def test_of_a_table_of_several_slides_the_rows_of_this_one_are_taken(tmp_path):
    path = table(tmp_path, "slide_id,x,y,p\na,0,0,0.1\ns,0,0,0.2\ns,64,0,oops\n")
    with pytest.raises(ScoresError, match="row 4, column `p`: 'oops' is not a number"):
        read_scored(path, columns=["p"], slide_names=["s", "s.svs"])
    path = table(tmp_path, "slide_id,x,y,p\na,0,0,0.1\ns,0,0,0.2\n")
    assert read_scored(path, slide_names=["s"]).columns["p"].tolist() == [0.2]
    with pytest.raises(ScoresError, match="names a, s, none of them this slide"):
        read_scored(path, slide_names=["t"])


def test_clams_blockmap_gets_its_geometry_from_the_patches_file(tmp_path, real_data):
    patches = real_data / "peers" / "clam_run" / "demo_tumor_slide_level1.h5"
    with h5py.File(patches) as file:
        coords = file["coords"][()]
    path = tmp_path / "blockmap.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = coords[::-1]
        file["attention_scores"] = np.arange(len(coords), dtype=np.float32)[::-1, None]
    with pytest.raises(ScoresError, match="--tile-px0"):
        placed(path, Size(10240, 7168))
    found = placed(path, Size(10240, 7168), patches=patches)
    assert found.index.plan.footprint_px0 == (512, 512)
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    np.testing.assert_array_equal(found.columns["attention_scores"], order)
    with h5py.File(path, "a") as file:
        file["coords"][3] += 1
    with pytest.raises(ScoresError, match=r"1 of 123 tiles are not in demo_tumor_slide_level1.h5, e.g. row 3 "):
        placed(path, Size(10240, 7168), patches=patches)


def test_tridents_file_says_size_of_tile_and_slide(tmp_path, real_data):
    source = real_data / "peers" / "trident_run" / "demo_tumor_slide_patches.h5"
    path = tmp_path / "scores.h5"
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "a") as file:
        count = len(file["coords"])
        file["risk"] = np.stack([np.arange(count), -np.arange(count)], axis=1)
        file["features"] = np.zeros((count, 4))
    found = placed(path, Size(10240, 7168))
    assert list(found.columns) == ["risk_0", "risk_1"]
    assert found.index.plan.footprint_px0 == (512, 512)
    assert found.index.stride_px0 == (448, 448)  # 32 of 256 px overlap at half the resolution
    with pytest.raises(TileIndexError, match=r"level 0 has 10240 x 7168 px, slide s\.svs has 5000 x 3000"):
        placed(path)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("x,p\n0,1\n", ScoresError, "no columns for the corner of a tile; known are x, y;"),
        ("x,y\n0,0\n", ScoresError, "no column of scores; it has nothing but coordinates"),
        ("x,y,p\n", ScoresError, "no rows"),
        ("x,y,p\n0,0,0.5\n64,,0.5\n", ScoresError, "row 3, column `y`: empty"),
        (
            "x,y,p\n0,0,0.5\n64,0,\n",
            ScoresError,
            r"`p` is missing or not finite in 1 of 2 tiles, first in row 3 \(x = 64",
        ),
        ("x,y,p\n0,0,0.5\n64,0,inf\n", ScoresError, "not finite in 1 of 2 tiles, first in row 3"),
        ("x,y,p\n0,0,0.5\n5000,0,1\n", TileIndexError, r"1 of 2 tiles begin outside slide s.svs .* row 3 \(x = 5000"),
        ("x,y,p\n0,0,0.5\n-1,0,1\n", TileIndexError, "row 3"),
        ("x,y,p\n0,0,0.5\n0.4,0,1\n", TileIndexError, "not whole pixels"),
        ("x,y,p\n0,0,0.5\n0,0,0.6\n", ScoresError, "row 3 .*: the tile is listed twice with different `p`"),
        ("x,y,width,height,p\n0,0,64,64,1\n64,0,32,64,1\n", TileIndexError, "several sizes"),
        ("x,y,p\n0,0,1\n0,0,1,2\n", ScoresError, "row 3: 4 cells where the header has 3"),
        ("x,y,p\n0,0,1,2\n", ScoresError, "row 2: 4 cells where the header has 3"),
    ],
)
def test_what_cannot_be_drawn_is_named(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        placed(table(tmp_path, text), tile_px0=64)


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path):
    path = table(tmp_path, "x,y,p\n0,0,1\n")
    with pytest.raises(ScoresError, match="no column `q`; it has p"):
        read_scored(path, columns=["q"])
    with pytest.raises(ScoresError, match="no such file"):
        read_scored(tmp_path / "no.csv")
    with pytest.raises(ScoresError, match=r"scores are read from \.csv"):
        read_scored(table(tmp_path, "", "scores.json"))
    many = ",".join(f"f{k}" for k in range(30))
    with pytest.raises(ScoresError, match="30 columns of numbers; name the scores with --column"):
        read_scored(table(tmp_path, f"x,y,{many}\n0,0{',1' * 30}\n"))


def test_the_same_row_twice_is_taken_once_and_told(tmp_path):
    found = placed(table(tmp_path, "x,y,p\n64,0,0.5\n0,0,0.1\n64,0,0.5\n"), tile_px0=64)
    assert found.columns["p"].tolist() == [0.1, 0.5]
    assert found.notes == ("1 tiles are listed twice, with the same scores",)


def test_tiles_over_the_edge_are_kept_and_told(tmp_path):
    found = placed(table(tmp_path, "x,y,p\n4992,0,0.5\n0,0,0.1\n"), tile_px0=64)
    assert len(found.index) == 2
    assert found.notes == ("1 of 2 tiles hang over the slide's edge",)


def test_hdf5_without_places_or_scores_says_so(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["attention_scores"] = np.ones((3, 1))
    with pytest.raises(ScoresError, match="no dataset `coords`"):
        read_scored(path)
    with h5py.File(path, "a") as file:
        file["coords"] = np.zeros((4, 2), int)
    with pytest.raises(ScoresError, match="no column of scores"):
        read_scored(path)
    path.write_bytes(b"no HDF5")
    with pytest.raises(ScoresError, match="cannot be read as HDF5"):
        read_scored(path)
