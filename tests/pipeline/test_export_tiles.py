"""From a run to CLAM and TRIDENT and back; tiles of other tools all the way to the heatmap."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.small_cohort import NODE_SIZE, write_nodes
from tests.tiles.interop import golden
from wsi_ips.cli import app
from wsi_ips.config import load_recipe
from wsi_ips.pipeline import Run, run_pipeline
from wsi_ips.tiles.store import read_index


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "100"})


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Five slides and a recipe that tiles them at the scale of their only level."""
    write_nodes(tmp_path, 5, to_train=3)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "pattern"), [("clam", "patches/file*.h5"), ("trident", "20x_*/patches/file*_patches.h5")]
)
def test_exported_and_imported_are_the_same_tiles(cohort, kind, pattern):
    assert invoke("tile", cohort / "recipe.yaml").exit_code == 0
    result = invoke("export", "tiles", cohort / "recipe.yaml", "--format", kind, "--output", cohort / "there")
    assert result.exit_code == 0, result.output
    assert len(list((cohort / "there").glob(pattern))) == 5
    result = invoke("tile", cohort / "recipe.yaml", "--from", cohort / "there", "--set", "output=back")
    assert result.exit_code == 0, result.output
    for n in range(1, 6):
        ours, back = (read_index(cohort / out / "tiles.zarr", f"s{n}") for out in ("out", "back"))
        np.testing.assert_array_equal(ours.x, back.x)
        np.testing.assert_array_equal(ours.y, back.y)
        np.testing.assert_allclose(ours.tissue_fraction, back.tissue_fraction)
        assert (ours.plan, ours.stride_px) == (back.plan, back.stride_px)


def test_clam_gets_its_tables(cohort):
    invoke("tile", cohort / "recipe.yaml")
    invoke("export", "tiles", cohort / "recipe.yaml", "--format", "clam", "--output", cohort / "clam")
    assert (cohort / "clam" / "dataset.csv").read_text().splitlines()[:2] == [
        "case_id,slide_id,label",
        "p1,file1,tumor",
    ]
    assert (cohort / "clam" / "splits_0.csv").read_text().splitlines() == [
        ",train,val,test",
        "0,file1,,file4",
        "1,file2,,file5",
        "2,file3,,",
    ]


def test_an_export_that_cannot_be_is_a_row_and_exit_code_3(cohort):
    override = ["--set", "tiles.mpp=0.9", "--set", "tiles.patch_px=32"]
    assert invoke("tile", cohort / "recipe.yaml", *override).exit_code == 0
    result = invoke(
        "export", "tiles", cohort / "recipe.yaml", *override, "--format", "clam", "--output", cohort / "clam"
    )
    assert result.exit_code == 3
    assert "s1: slide s1: CLAM reads whole levels" in flat(result.output)
    assert "5 slides refused" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x"], "Missing option '--format'"),
        (["--format", "qupath", "--output", "x"], "--format qupath: write one of clam, trident"),
        (["--format", "clam"], "Missing option '--output'"),
        (["--format", "clam", "--output", "x"], "no slide is tiled yet"),
        (["nobody", "--format", "clam", "--output", "x"], "no slide `nobody`"),
    ],
)
def test_what_is_missing_is_said(cohort, arguments, message):
    result = invoke("export", "tiles", cohort / "recipe.yaml", *arguments)
    assert result.exit_code == 2
    assert message in flat(result.output)


def foreign(path: Path, coords: list[list[int]]) -> None:
    """A file of CLAM for a slide of this cohort."""
    golden.clam(path, coords, patch_size=np.int64(64), level_dim=np.array(NODE_SIZE), name=path.stem)


PIECES = [[x, y] for x in range(50, 400, 64) for y in range(31, 300, 64)] + [[x, 370] for x in range(421, 700, 64)]
"""Two grids that have nothing in common, as CLAM lays one per piece of tissue."""


def test_a_slide_that_fails_does_not_stop_the_others(cohort):
    for n in (1, 2, 3):
        foreign(cohort / "clam" / f"file{n}.h5", PIECES)
    foreign(cohort / "clam" / "file4.h5", [[2000, 0]])
    (cohort / "clam" / "file9.h5").write_bytes(b"stranger")
    result = invoke("tile", cohort / "recipe.yaml", "--from", cohort / "clam")
    text = flat(result.output)
    assert result.exit_code == 3
    assert f"s1: {len(PIECES)} of {len(PIECES)} tiles of clam" in text
    assert "begin outside the slide of 840 x 600 px" in text
    assert "s5: failed: coordinates" in text  # s5 has no file
    assert "file9.h5: belongs to no slide of the manifest" in text
    assert "3 imported, 2 failed" in text


def test_two_files_of_one_slide_are_a_question_for_people(cohort):
    foreign(cohort / "clam" / "a" / "file1.h5", PIECES)
    foreign(cohort / "clam" / "b" / "file1.h5", PIECES)
    result = invoke("tile", cohort / "recipe.yaml", "--from", cohort / "clam")
    assert result.exit_code == 2
    assert "2 files of slide s1: a/file1.h5, b/file1.h5; keep one" in flat(result.output)


def test_imported_tiles_go_all_the_way_to_the_heatmap(cohort):
    for n in range(1, 6):
        foreign(cohort / "clam" / f"file{n}.h5", PIECES)
    recipe = load_recipe(cohort / "recipe.yaml", {"tiles.imported": "clam"})
    outcome = run_pipeline(recipe)
    assert outcome.failed == 0
    assert [s.tiles for s in outcome.states] == [len(PIECES)] * 5
    facts = json.loads((cohort / "out" / "heatmaps" / "s4_probability.json").read_text())
    assert facts["alignment"] is None or facts["alignment"] > 0.7
    parts = json.loads((cohort / "out" / "run.json").read_text())["parts"]
    assert (parts["train"], parts["test"]) == (3, 2)
    assert run_pipeline(recipe).worked is False  # done means fingerprint equal
    foreign(cohort / "clam" / "file2.h5", PIECES[:10])
    slides = Run.open(recipe).slides
    assert not slides.is_tiled(*slides.named(["s2"]))


def test_a_manifest_may_name_the_coordinates_itself(cohort):
    foreign(cohort / "mine.h5", PIECES)
    lines = (cohort / "manifest.csv").read_text().splitlines()
    rows = [f"{lines[0]},coordinates", f"{lines[1]},mine.h5", *(f"{line}," for line in lines[2:])]
    (cohort / "manifest.csv").write_text("\n".join(rows))
    assert invoke("tile", cohort / "recipe.yaml").exit_code == 0
    assert len(read_index(cohort / "out" / "tiles.zarr", "s1")) == len(PIECES)
    assert "clam" not in read_index(cohort / "out" / "tiles.zarr", "s2").tissue_method


def test_real_runs_of_clam_and_trident(real_data, tmp_path):
    slides = {"CMU-1-Small-Region.svs": "", "TCGA-CR-7395-01A-01-TS1.svs": "0.499", "demo_tumor_slide.tif": ""}
    rows = [f"s{n},{real_data / 'slides' / name},{mpp}" for n, (name, mpp) in enumerate(slides.items())]
    (tmp_path / "manifest.csv").write_text("slide_id,path,mpp\n" + "\n".join(rows))
    (tmp_path / "recipe.yaml").write_text("output: out\nmanifest: manifest.csv\n")
    for tool in ("clam", "trident"):
        result = invoke(
            "tile", tmp_path / "recipe.yaml", "--from", real_data / "peers" / f"{tool}_run", "--set", f"output={tool}"
        )
        assert result.exit_code == 0, result.output
        assert "3 imported, 0 failed" in flat(result.output)


def test_the_tools_own_way_of_reading_finds_the_coordinates(cohort):
    """What CLAM and TRIDENT do with their files: dataset ``coords`` and its attributes, nothing else."""
    invoke("tile", cohort / "recipe.yaml")
    for kind in ("clam", "trident"):
        invoke("export", "tiles", cohort / "recipe.yaml", "--format", kind, "--output", cohort / kind)
        for path in (cohort / kind).rglob("*.h5"):
            with h5py.File(path) as file:
                stated = file["coords"].attrs
                assert file["coords"].ndim == 2
                footprint = stated.get("patch_size_level0", stated["patch_size"])
                assert (file["coords"][:] + footprint <= NODE_SIZE).all()
