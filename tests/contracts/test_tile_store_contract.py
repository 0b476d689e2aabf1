"""What the store of tile indexes promises, run on both formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.cohort import textured_slide
from wsi_ips.errors import TileIndexError
from wsi_ips.tiles import TileIndex, read_index, slide_ids, stored_fingerprint, write_index


@pytest.fixture(params=["tiles.zarr", "tiles.h5"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.fixture
def index() -> TileIndex:
    made = textured_slide("slide (1) µ", label=1, seed=0).index
    return replace(made, tumour_fraction=np.linspace(0, 1, len(made)).astype(np.float32))


def same(one: TileIndex, other: TileIndex) -> bool:
    columns = one.columns().keys() == other.columns().keys()
    arrays = all(np.array_equal(one.columns()[k], other.columns()[k]) for k in one.columns())
    types = all(one.columns()[k].dtype == other.columns()[k].dtype for k in one.columns())
    return columns and arrays and types and one.to_attributes() == other.to_attributes()


def test_comes_back_as_it_was(root, index):
    write_index(root, index)
    assert same(read_index(root, index.slide_id), index)


def test_an_unannotated_slide_has_no_tumour_column(root, index):
    write_index(root, replace(index, tumour_fraction=None))
    assert read_index(root, index.slide_id).tumour_fraction is None


def test_rows_can_be_read_alone(root, index):
    write_index(root, index)
    part = read_index(root, index.slide_id, rows=slice(3, 8))
    np.testing.assert_array_equal(part.x, index.x[3:8])


def test_a_slide_without_tiles_is_stored_too(root, index):
    empty = replace(index, **{name: values[:0] for name, values in index.columns().items()})
    write_index(root, empty)
    assert len(read_index(root, index.slide_id)) == 0


def test_writing_again_replaces(root, index):
    write_index(root, index)
    write_index(root, replace(index, fingerprint="new"))
    assert stored_fingerprint(root, index.slide_id) == "new"
    assert slide_ids(root) == [index.slide_id]


def test_a_crash_while_writing_leaves_the_old_entry(root, index, monkeypatch):
    write_index(root, index)
    broken = replace(index, fingerprint="new", x=index.x[:2])
    monkeypatch.setattr("wsi_ips.tiles.store._chunk_rows", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_index(root, broken)
    assert same(read_index(root, index.slide_id), index)
    assert [p for p in root.iterdir() if p.name.startswith(".")] == []


def test_missing_says_what_to_run(root):
    with pytest.raises(TileIndexError, match=r"slide nobody.*wsi-ips tile"):
        read_index(root, "nobody")
    assert stored_fingerprint(root, "nobody") is None
    assert slide_ids(root) == []


def test_damage_names_the_slide(root, index):
    write_index(root, index)
    for path in root.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(TileIndexError, match=r"slide \(1\) µ"):
        read_index(root, index.slide_id)
    assert stored_fingerprint(root, index.slide_id) is None


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", ""])
def test_a_slide_id_never_leaves_the_store(root, index, name):
    with pytest.raises(TileIndexError, match="cannot be a file name"):
        write_index(root, replace(index, slide_id=name))


def test_another_schema_is_refused(root, index, monkeypatch):
    write_index(root, index)
    monkeypatch.setattr("wsi_ips.tiles.store.SCHEMA_VERSION", 99)
    with pytest.raises(TileIndexError, match="schema version 1"):
        read_index(root, index.slide_id)
