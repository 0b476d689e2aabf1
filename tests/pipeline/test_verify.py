"""`status --verify`, `status --explain` and `run --retry` on a small cohort of real files."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.cohort import textured_slide
from tests.faults.slides import recipe_of, write_cohort, write_good
from wsi_ips.cli import app
from wsi_ips.database import transaction
from wsi_ips.errors import ManifestError
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.pipeline.explain import explain
from wsi_ips.pipeline.stages import retry
from wsi_ips.pipeline.verify import Verified, verify_tiles
from wsi_ips.tiles.index import geometry_mismatches
from wsi_ips.tiles.store import read_index, stored_row, write_index


@pytest.fixture
def cohort(tmp_path):
    """Three good slides and one that is none, tiled in this process."""
    names = write_good(tmp_path, 3)
    (tmp_path / "text.svs").write_text("not a slide")
    write_cohort(tmp_path, [*names, "text.svs"], workers=0)
    run_stage(recipe_of(tmp_path), "tile")
    return tmp_path


def opened(folder, **overrides) -> Run:
    return Run.open(recipe_of(folder, **overrides))


def verified(run: Run) -> Verified:
    return verify_tiles(run.slides, run.states, run.recipe.compute, run.progress)


def explained(run: Run, slide_id: str) -> list[tuple[str, str]]:
    return explain(run.slides, run.states, slide_id)


def changed(folder, name, **changes) -> None:
    """Write an index anew, with something else in it."""
    store = folder / "out" / "tiles.zarr"
    write_index(store, replace(read_index(store, name), **changes), stored_row(store, name))


def found(folder, **overrides) -> dict[str, str]:
    return {entry.slide_id: entry.what for entry in verified(opened(folder, **overrides)).mismatches}


def test_nothing_is_found_where_nothing_is_wrong(cohort):
    assert verified(opened(cohort)) == Verified(3, ())
    assert CliRunner().invoke(app, ["status", str(cohort / "recipe.yaml"), "--verify"]).exit_code == 0


def test_each_mismatch_is_told_by_name_with_exit_code_3(cohort):
    store = cohort / "out" / "tiles.zarr"
    x = read_index(store, "good_00").x.copy()
    x[-1] += 5
    changed(cohort, "good_00", x=x)
    (store / "good_01" / "y" / "c" / "0").unlink()
    with (cohort / "good_02.tif").open("ab") as file:
        file.write(b"one more byte")
    changed(cohort, "good_00", slide_id="stray")
    what = found(cohort)
    assert "beside the grid" in what["good_00"]
    assert "not those that were written" in what["good_01"]
    assert "not the one that was tiled" in what["good_02"]
    assert "no row of the manifest" in what["stray"]
    result = CliRunner().invoke(app, ["status", str(cohort / "recipe.yaml"), "--verify"], env={"COLUMNS": "200"})
    assert result.exit_code == 3
    assert "4 mismatches" in " ".join(result.output.split())


def test_another_recipe_and_another_count_are_mismatches(cohort):
    assert "another recipe" in found(cohort, tiles__patch_px=32)["good_00"]
    with transaction(cohort / "out" / "run.sqlite") as database:
        database.execute("UPDATE slides SET tiles = 1 WHERE slide_id = 'good_01'")
    assert "the states say ok with 1 tiles" in found(cohort)["good_01"]


def test_a_slide_that_hangs_does_not_hang_verify(cohort):
    (cohort / "good_00.tif").unlink()
    os.mkfifo(cohort / "good_00.tif")
    what = found(cohort, compute__workers=1, compute__slide_timeout_s=5)
    assert "more than 5 s" in what["good_00"]
    assert set(what) == {"good_00"}


def test_geometry_finds_what_contradicts_itself():
    index = textured_slide("s", label=0, seed=0).index
    assert list(geometry_mismatches(index)) == []
    swapped = replace(index, x=index.x[::-1].copy())
    assert any("not ordered" in what for what in geometry_mismatches(swapped))
    twice = replace(index, x=np.r_[index.x[:1], index.x[:-1]], y=np.r_[index.y[:1], index.y[:-1]])
    assert any("twice" in what for what in geometry_mismatches(twice))
    outside = replace(index, x=index.x + 32 * 7)
    assert any("outside" in what for what in geometry_mismatches(outside))
    wrong = replace(index, tissue_fraction=index.tissue_fraction + 1)
    assert any("tissue_fraction" in what for what in geometry_mismatches(wrong))


def test_explain_tells_what_is_known_and_what_to_do(cohort):
    lines = dict(explained(opened(cohort), "good_00"))
    assert lines["state"] == "ok"
    assert "64 x 64 px at" in lines["tiles"]
    assert lines["index"].endswith("up to date")
    assert lines["what to do"] == "nothing"
    lines = dict(explained(opened(cohort), "text"))
    assert lines["state"] == "failed"
    assert "no reader opens it" in lines["reason"]
    assert "wsi-ips run --retry" in lines["what to do"]
    assert "UnsupportedSlideError" in lines["traceback"]
    with pytest.raises(ManifestError, match="nobody"):
        explained(opened(cohort), "nobody")
    result = CliRunner().invoke(app, ["status", str(cohort / "recipe.yaml"), "--explain", "text"])
    assert result.exit_code == 0
    assert "no reader opens it" in " ".join(result.output.split())


def test_explain_says_when_a_file_does_not_answer(cohort, monkeypatch):
    (cohort / "good_00.tif").unlink()
    os.mkfifo(cohort / "good_00.tif")
    monkeypatch.setattr("wsi_ips.pipeline.explain.PATIENCE_S", 0.3)
    assert "does not answer" in dict(explained(opened(cohort), "good_00"))["index"]
    with contextlib.suppress(BrokenPipeError):  # whoever waited for the file may have it open only for a moment
        (cohort / "good_00.tif").write_bytes(b"let it go")


def test_retry_takes_failed_slides_only(cohort):
    done = (cohort / "out" / "tiles.zarr" / "good_00").stat().st_mtime_ns
    (cohort / "text.svs").write_bytes((cohort / "good_00.tif").read_bytes())
    with opened(cohort) as run:
        assert retry(run, reason="memory").tiled == ()
        assert retry(run, names=["good_00"]).tiled == ()
        assert retry(run).tiled == ("text",)
        assert (run.states["text"].state, run.states["text"].attempts) == ("ok", 2)
        with pytest.raises(ManifestError, match="nobody"):
            retry(run, names=["nobody"])
    assert (cohort / "out" / "tiles.zarr" / "good_00").stat().st_mtime_ns == done


def test_a_slide_that_failed_in_training_is_given_back_to_it(cohort):
    with opened(cohort) as run:
        before = run.states["good_01"]
        run.states.fail("good_01", "train", ValueError("a tile could not be read"))
        assert retry(run).restored == ("good_01",)
        after = run.states["good_01"]
    assert (after.state, after.stage, after.tiles, after.reason) == ("ok", "tile", before.tiles, "")


def test_a_lost_table_of_states_is_found_again_in_the_index(cohort):
    before = {row.slide_id: row for row in opened(cohort).states}
    for path in (cohort / "out").glob("slides.*"):
        path.unlink()
    stamps = {p: p.stat().st_mtime_ns for p in (cohort / "out" / "tiles.zarr").iterdir()}
    run = run_stage(recipe_of(cohort), "tile")
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    for row in run.states:
        old = before[row.slide_id]
        assert (row.state, row.tiles, row.tissue_mm2) == (old.state, old.tiles, old.tissue_mm2)


def test_the_index_may_lie_behind_a_url(cohort):
    import fsspec

    where = "memory://bucket/cohort.zarr"
    run = run_stage(recipe_of(cohort, tiles__location=where), "tile")
    assert run.states.count("ok") == 3
    assert json.loads(fsspec.filesystem("memory").cat_file("/bucket/cohort.zarr/good_00/zarr.json"))["attributes"]
    assert verified(run).mismatches == ()
    fsspec.filesystem("memory").store.clear()
