"""Stored features: whole or not at all, every row its tile's, whatever the chunks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.cohort import textured_slide
from wsi_ips.errors import FeaturesError
from wsi_ips.tiles.feature_store import FeatureStream, FeatureTiles, features_fingerprint, open_features, write_features
from wsi_ips.tiles.stream import read_tiles

WIDTH = 5


def values(tiles: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tiles, WIDTH)).astype(np.float16)


def store(root, slide_id: str, table: np.ndarray, part: int = 256) -> None:
    parts = [table[a : a + part].astype(np.float32) for a in range(0, len(table), part)]
    write_features(root, slide_id, parts, encoder="e", fingerprint=f"of {slide_id}", tiles=len(table))


@pytest.mark.parametrize("part", [1, 300, 1024, 3000])
@pytest.mark.parametrize("tiles", [1, 1023, 1024, 2500])
def test_every_row_comes_back_as_float16(tmp_path, tiles, part):
    table = values(tiles)
    store(tmp_path, "s", table, max(part, tiles // 50))
    found = open_features(tmp_path, "s")
    assert (found.tiles, found.width, found.encoder, found.fingerprint) == (tiles, WIDTH, "e", "of s")
    np.testing.assert_array_equal(found.rows(np.arange(tiles)), table)
    some = np.random.default_rng(1).permutation(tiles)[:40]
    np.testing.assert_array_equal(found.rows(some), table[some])
    assert found.rows(some).dtype == np.float16


@pytest.mark.parametrize(
    ("odd", "message"),
    [(70_000.0, "7e\\+04 does not fit into 16 bits"), (np.nan, "is not a number"), (-np.inf, "16 bits")],
)
def test_what_16_bits_cannot_hold_is_refused_and_nothing_is_stored(tmp_path, odd, message):
    table = np.zeros((10, WIDTH), np.float32)
    table[3, 2] = odd
    with pytest.raises(FeaturesError, match=message) as caught:
        write_features(tmp_path, "s", [table], encoder="e", fingerprint="f", tiles=10)
    assert caught.value.slide_id == "s"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rows", [9, 11])
def test_a_table_of_another_length_is_refused(tmp_path, rows):
    with pytest.raises(FeaturesError, match=f"{rows} for 10 tiles"):
        write_features(tmp_path, "s", [values(rows)], encoder="e", fingerprint="f", tiles=10)
    assert features_fingerprint(tmp_path, "s") is None


def test_an_interrupted_slide_leaves_the_older_features_whole(tmp_path):
    store(tmp_path, "s", values(30))

    def breaking():
        yield values(10, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(tmp_path, "s", breaking(), encoder="e", fingerprint="new", tiles=30)
    assert features_fingerprint(tmp_path, "s") == "of s"
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_missing_damaged_and_other_versions_are_told_apart(tmp_path):
    with pytest.raises(FeaturesError, match="none in"):
        open_features(tmp_path, "s")
    store(tmp_path, "s", values(30))
    header = tmp_path / "s" / "zarr.json"
    stored = json.loads(header.read_text())
    stored["attributes"]["schema_version"] = 99
    header.write_text(json.dumps(stored))
    with pytest.raises(FeaturesError, match="written by another version"):
        open_features(tmp_path, "s")
    header.write_text("{")
    with pytest.raises(FeaturesError, match="slide s"):
        open_features(tmp_path, "s")


def requests(root) -> tuple[list[FeatureTiles], list[np.ndarray]]:
    """Three slides, of one of them every other tile in another order."""
    tables, found = [], []
    for slot in range(3):
        tiles = textured_slide(f"s{slot}", label=0, seed=slot)
        tables.append(values(len(tiles.index), slot))
        store(root, f"s{slot}", tables[-1])
        wanted = None if slot != 1 else np.arange(len(tiles.index), dtype=np.int32)[::-2].copy()
        features = open_features(root, f"s{slot}")
        found.append(FeatureTiles(slot, f"s{slot}", tiles.index, tiles.open, wanted, features))
    return found, tables


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("chunk_size", [1, 7, 28, 1000])
def test_a_stream_gives_the_rows_in_order_whatever_the_chunks(tmp_path, chunk_size, readers):
    slides, tables = requests(tmp_path)
    with FeatureStream(slides, chunk_size=chunk_size, readers=readers, prefetch_chunks=2) as stream:
        chunks = list(stream)
    assert {len(chunk.tile) for chunk in chunks[:-1]} <= {chunk_size}
    slot, tile = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("slot", "tile"))
    np.testing.assert_array_equal(tile, np.concatenate([slide.wanted for slide in slides]))
    expected = np.stack([tables[s][t] for s, t in zip(slot, tile, strict=True)])
    np.testing.assert_array_equal(np.concatenate([chunk.pixels for chunk in chunks]), expected)


def test_tiles_are_read_at_once_as_pixels_are(tmp_path):
    slides, tables = requests(tmp_path)
    np.testing.assert_array_equal(read_tiles(slides[0].only(np.array([5, 2], np.int32))), tables[0][[5, 2]])
    assert read_tiles(slides[0].only(np.empty(0, np.int32))).shape == (0, WIDTH)


def test_a_damaged_block_names_its_slide(tmp_path):
    slides, _ = requests(tmp_path)
    block = next(path for path in (tmp_path / "s2" / "features").rglob("*") if path.is_file() and path.suffix == "")
    block.write_bytes(block.read_bytes()[:7])
    with (
        pytest.raises(FeaturesError, match=r"features of slide s2 in .*damaged") as caught,
        FeatureStream(slides, chunk_size=8, readers=2, prefetch_chunks=1) as stream,
    ):
        list(stream)
    assert caught.value.slide_id == "s2"
