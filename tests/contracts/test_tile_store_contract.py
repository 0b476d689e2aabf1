"""What the store of tile indexes promises, run on both formats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.cohort import textured_slide
from wsi_ips.errors import TileIndexError
from wsi_ips.tiles import store
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.store import read_index, slide_ids, stored_fingerprint, stored_row, write_index


@pytest.fixture(params=["tiles.zarr", "tiles.h5", "memory://tiles.zarr", "memory://tiles.h5"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """A folder of this disk, or an address in fsspec's store in memory, which behaves as an object store does."""
    if "://" not in request.param:
        yield tmp_path / request.param
        return
    where = request.param.replace("://", "://bucket/some/")
    yield where
    fsspec.filesystem("memory").store.clear()


def files_of(root: Path | str) -> list[str]:
    """Every file or object of a store."""
    filesystem, path = fsspec.core.url_to_fs(str(root))
    return filesystem.find(path, withdirs=False) if filesystem.exists(path) else []


def change(root: Path | str, name: str, content: Callable[[bytes], bytes]) -> None:
    filesystem, _ = fsspec.core.url_to_fs(str(root))
    filesystem.pipe_file(name, content(filesystem.cat_file(name)))


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


def test_a_slide_without_tiles_is_stored_too(root, index):
    empty = replace(index, **{name: values[:0] for name, values in index.columns().items()})
    write_index(root, empty)
    assert len(read_index(root, index.slide_id)) == 0


def test_writing_again_replaces(root, index):
    write_index(root, index)
    write_index(root, replace(index, fingerprint="new"))
    assert stored_fingerprint(root, index.slide_id) == "new"
    assert slide_ids(root) == [index.slide_id]


def test_a_crash_while_writing_leaves_the_old_entry_or_none(root, index, monkeypatch):
    write_index(root, index)
    broken = replace(index, fingerprint="new", x=index.x[:2])
    monkeypatch.setattr("wsi_ips.tiles.store._chunk_rows", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_index(root, broken)
    monkeypatch.undo()
    if str(root).startswith("memory") and str(root).endswith(".zarr"):
        # No renaming there: what was begun does not count, and is written again.
        assert stored_fingerprint(root, index.slide_id) is None
        with pytest.raises(TileIndexError, match="none in"):
            read_index(root, index.slide_id)
        write_index(root, index)
    assert same(read_index(root, index.slide_id), index)
    assert not [name for name in files_of(root) if "/." in name]


def test_the_row_of_the_table_of_states_is_kept_beside(root, index):
    write_index(root, index, {"state": "ok", "tissue_mm2": 1.25})
    assert stored_row(root, index.slide_id) == {"state": "ok", "tissue_mm2": 1.25}
    with pytest.raises(TileIndexError, match="none in"):
        stored_row(root, "nobody")


def test_a_lost_chunk_is_damage_and_no_zeros(root, index):
    if not str(root).endswith(".zarr"):
        pytest.skip("an HDF5 file is whole or not there")
    write_index(root, index)
    filesystem, _ = fsspec.core.url_to_fs(str(root))
    filesystem.rm(next(name for name in files_of(root) if name.endswith("/y/c/0")))
    with pytest.raises(TileIndexError, match="not those that were written"):
        read_index(root, index.slide_id)


def test_one_changed_value_is_noticed(root, index):
    write_index(root, index)
    with monkey_row(root, index) as changed:
        write_index(root, changed)
    with pytest.raises(TileIndexError, match="not those that were written"):
        read_index(root, index.slide_id)


@contextmanager
def monkey_row(root, index):
    """Within it, the checksum that is written is that of another index."""
    right = store._checksum(index.columns())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_checksum", lambda _: right)
        x = index.x.copy()
        x[3] += 1
        yield replace(index, x=x)


def test_many_processes_write_at_a_time(root, index):
    if str(root).startswith("memory"):
        pytest.skip("this store is in the memory of one process")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_write_many, root, index, part) for part in (0, 1)]
        for job in jobs:
            job.result()
    assert slide_ids(root) == sorted([f"slide {n:02d}" for n in range(20)] + ["shared"])
    assert all(len(read_index(root, name)) == len(index) for name in slide_ids(root))


def _write_many(root: Path, index: TileIndex, part: int) -> None:
    for number in range(part, 20, 2):
        write_index(root, replace(index, slide_id=f"slide {number:02d}"))
        write_index(root, replace(index, slide_id="shared"))


def test_missing_says_what_to_run(root):
    with pytest.raises(TileIndexError, match=r"slide nobody.*wsi-ips tile"):
        read_index(root, "nobody")
    assert stored_fingerprint(root, "nobody") is None
    assert slide_ids(root) == []


def test_damage_names_the_slide(root, index):
    write_index(root, index)
    for name in files_of(root):
        change(root, name, lambda content: content[: len(content) // 2])
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
    with pytest.raises(TileIndexError, match="schema version 2, this program writes 99"):
        read_index(root, index.slide_id)
