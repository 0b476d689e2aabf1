"""A manifest whose slides lie behind a URL."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.pyramids import textured_pyramid, write_jpeg_pyramid
from tests.slides.range_server import serving
from wsi_ips.config import load_recipe
from wsi_ips.pipeline.stages import run_stage
from wsi_ips.tiles.store import read_index
from wsi_ips.tiles.stream import read_tiles

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")


def test_slides_behind_a_url_are_tiled_and_read_like_those_here(tmp_path):
    (tmp_path / "slides").mkdir()
    write_jpeg_pyramid(
        tmp_path / "slides" / "a.svs",
        textured_pyramid()[:1],
        quality=80,
        description="Aperio Image Library\n1031x773|MPP = 0.25",
    )
    with serving(tmp_path / "slides") as (url, _):
        rows = {"slide_id": ["here", "there", "gone"], "path": ["slides/a.svs", f"{url}/a.svs", f"{url}/b.svs"]}
        pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
        recipe = {"output": "out", "manifest": "manifest.csv", "tiles": {"mpp": 0.5, "patch_px": 64}}
        recipe["tissue"] = {"mpp": 2.0, "min_area_um2": 100.0, "min_saturation": 0.01}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        run = run_stage(load_recipe(tmp_path / "recipe.yaml"), "tile")
        states = {state.slide_id: state for state in run.states}
        assert [states[name].state for name in rows["slide_id"]] == ["ok", "ok", "failed"]
        assert "nothing at http://127.0.0.1" in states["gone"].reason
        here, there = (read_index(run.folder.tiles, name) for name in ("here", "there"))
        assert here.slide_identity == there.slide_identity
        np.testing.assert_array_equal(here.x, there.x)
        records = {record.slide_id: record for record in run.slides.records}
        np.testing.assert_array_equal(*(read_tiles(run.slides.tiles(records[name])) for name in ("here", "there")))
        run.slides.pool.close()
