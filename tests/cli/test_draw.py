"""`wsi-ips draw`: another model's scores over the real slide, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import uniform_filter
from typer.testing import CliRunner

from tests.pyramids import gradient_pyramid, write_pyramid
from wsi_ips.cli import app
from wsi_ips.errors import ScoresError
from wsi_ips.results.draw_scores import map_kind, picture_names
from wsi_ips.results.slide_heatmaps import page_position


def run(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, ["draw", *map(str, arguments)])
    return found.exit_code, " ".join(found.output.split())


@pytest.fixture
def blockmap(tmp_path, real_data) -> Path:
    """CLAM's attention on CMU-1, highest in one tile."""
    with h5py.File(real_data / "peers" / "clam_run" / "CMU-1-Small-Region.h5") as file:
        coords = file["coords"][()]
    path = tmp_path / "CMU-1-Small-Region_blockmap.h5"
    with h5py.File(path, "w") as file:
        file["coords"] = coords
        file["attention_scores"] = np.where(np.arange(len(coords)) == 17, 5.0, -2.0).astype(np.float32)[:, None]
    return path


def test_the_highest_tile_of_a_blockmap_is_seen_at_its_place(tmp_path, real_data, blockmap):
    patches = real_data / "peers" / "clam_run" / "CMU-1-Small-Region.h5"
    slide = real_data / "slides" / "CMU-1-Small-Region.svs"
    code, text = run(blockmap, slide, "--output", tmp_path / "maps", "--patches", patches)
    assert code == 0, text
    assert "attention_scores rank" in text
    package = json.loads((tmp_path / "maps" / "CMU-1-Small-Region_attention_scores" / "package.json").read_text())
    assert not any(entry["name"].endswith((".xml", ".csv", ".gz")) for entry in package["files"])
    assert any(entry["name"].endswith("_maps.ome.tif") for entry in package["files"])
    picture = np.asarray(Image.open(tmp_path / "maps" / "CMU-1-Small-Region_attention_scores.png").convert("RGB"))
    facts = json.loads((tmp_path / "maps" / "CMU-1-Small-Region_attention_scores.json").read_text())
    assert facts["alignment"] > 0.9
    assert facts["score_range"] == [-2, 5]
    assert facts["slide_probability"] is None
    with h5py.File(blockmap) as file:
        x, y = file["coords"][17]
    left, top = page_position(facts, x, y)
    right, bottom = page_position(facts, x + 256, y + 256)
    box_x, box_y, width, height = facts["map_box_px"]
    yellow = picture[..., 0].astype(np.float64) - picture[..., 2]  # cividis ends in yellow
    inside = yellow[box_y : box_y + height, box_x : box_x + width]
    mean = uniform_filter(inside, (round(bottom - top), round(right - left)), mode="constant", cval=-255)
    row, column = np.unravel_index(mean.argmax(), mean.shape)
    off = np.array([column + 0.5 + box_x - (left + right) / 2, row + 0.5 + box_y - (top + bottom) / 2])
    assert np.abs(off).max() < (right - left) / 8


def test_wsinfers_probabilities_are_drawn_as_they_are(tmp_path, real_data):
    output, table = tmp_path / "maps", real_data / "peers" / "other" / "wsinfer_purple.csv"
    slide = real_data / "slides" / "demo_tumor_slide.tif"
    code, text = run(table, slide, "--output", output, "--column", "prob_Tumor")
    assert code == 0, text
    assert sorted(p.name for p in output.iterdir()) == [
        "demo_tumor_slide_prob_Tumor",
        "demo_tumor_slide_prob_Tumor.json",
        "demo_tumor_slide_prob_Tumor.png",
    ]
    package = json.loads((output / "demo_tumor_slide_prob_Tumor" / "package.json").read_text())
    endings = {entry["name"].removeprefix("demo_tumor_slide_prob_Tumor") for entry in package["files"]}
    assert {"_maps.ome.tif", ".geojson.gz", "_lesions.xml", "_lesions.csv", "_gallery.png", ".png"} <= endings
    facts = json.loads((output / "demo_tumor_slide_prob_Tumor.json").read_text())
    assert (facts["kind"], facts["colour_range"], facts["tiles"]) == ("probability", [0, 1], 144)


def test_a_slide_without_scale_needs_one(tmp_path, real_data):
    table = tmp_path / "s.csv"
    table.write_text("x,y,p\n0,0,0.5\n512,512,0.25\n")
    slide = real_data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    arguments = [table, slide, "--output", tmp_path, "--tile-px0", 512]
    code, text = run(*arguments)
    assert code == 2
    assert "no µm/px" in text
    assert run(*arguments, "--mpp", "0.5")[0] == 0


def test_what_is_odd_is_one_message_and_nothing_is_drawn(tmp_path):
    slide = write_pyramid(tmp_path / "s.tif", gradient_pyramid())
    table = tmp_path / "s.csv"
    table.write_text("x,y,p\n0,0,0.5\n128,0,2\n")
    there = [table, slide, "--tile-px0", 128]
    for arguments, message in (
        ([*there], "Missing option '--output'"),
        ([table, "--output", tmp_path / "o"], "Missing argument 'SLIDE'"),
        ([*there, "--output", tmp_path / "o", "--as", "colour"], "choose one of auto, probability, rank"),
        ([*there, "--output", tmp_path / "o", "--as", "probability"], "ranges from 0.5 to 2: no probability"),
        ([*there, "--output", tmp_path / "o", "--set", "tiles.mpp=1"], "only takes keys of sections heatmap"),
    ):
        code, text = run(*arguments)
        assert code == 2, text
        assert message in text
    assert not (tmp_path / "o").exists()
    assert run(*there, "--output", tmp_path / "o")[0] == 0


def test_tiles_that_hang_over_the_edge_and_overlap_are_drawn_and_handed_over(tmp_path):
    slide = write_pyramid(tmp_path / "s.tif", gradient_pyramid())
    x, y = (a.ravel() for a in np.meshgrid(np.arange(0, 1031, 64), np.arange(0, 773, 64)))
    rows = "\n".join(f"{a},{b},{(a + b) / 2000:.4f}" for a, b in zip(x, y, strict=True))
    table = tmp_path / "s.csv"
    table.write_text(f"x,y,p\n{rows}\n")
    code, text = run(table, slide, "--tile-px0", 128, "--output", tmp_path / "o")
    assert code == 0, text
    assert "tiles hang over the slide's edge" in text
    facts = json.loads((tmp_path / "o" / "s_p.json").read_text())
    assert (facts["cell_px0"], facts["tile_px0"]) == ([64, 64], [128, 128])
    assert (tmp_path / "o" / "s_p" / "package.json").exists()


def test_attention_is_never_drawn_as_a_probability_unless_asked():
    weights = np.array([0.1, 0.9])
    assert map_kind("prob_tumour", weights, "auto") == "probability"
    assert map_kind("attention_scores", weights, "auto") == "attention"
    assert map_kind("logit", weights * 4, "auto") == "attention"
    assert map_kind("attn", weights, "probability") == "probability"
    assert map_kind("prob_tumour", weights, "rank") == "attention"


def test_names_of_columns_make_safe_and_different_file_names():
    assert picture_names(["P(tumour)/µ", "b"], "s") == {"P(tumour)/µ": "s_P-tumour", "b": "s_b"}
    with pytest.raises(ScoresError, match="would have the same file name"):
        picture_names(["a b", "a/b"], "s")
