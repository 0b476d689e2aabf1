"""Whatever happens to the bytes of a stored entry, a reader gets what was written, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cohort import textured_slide
from wsi_ips.errors import FeaturesError, ScoresError, TileIndexError, WsiIpsError
from wsi_ips.inference.slide_scores import SlideScores, read_scores, write_scores
from wsi_ips.inference.slide_scores import stored_fingerprint as scores_fingerprint
from wsi_ips.labels import Task
from wsi_ips.tiles.feature_store import features_fingerprint, open_features, write_features
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.store import read_index, stored_fingerprint, write_index

SLIDE, TILES, WIDTH = "node 1", 2500, 8
RANDOM = np.random.default_rng(3)


def index() -> TileIndex:
    tiles = textured_slide(SLIDE, label=1, seed=0).index
    return replace(tiles, tissue_fraction=RANDOM.random(len(tiles)).astype(np.float32))


def scores() -> SlideScores:
    probability = RANDOM.random((TILES, 2)).astype(np.float32)
    return SlideScores(
        slide_id=SLIDE,
        attention_logits=RANDOM.normal(size=(TILES, 1, 2)).astype(np.float32),
        tile_probability=probability,
        kept=np.arange(5, 21, dtype=np.int32),
        kept_embeddings=RANDOM.normal(size=(16, 6)).astype(np.float32),
        tasks=(Task("label", ("normal", "tumor")),),
        probabilities=((0.25, 0.75),),
        seconds=1.5,
        fingerprint="made",
    )


INDEX, SCORES = index(), scores()
FEATURES = RANDOM.normal(size=(TILES, WIDTH)).astype(np.float16)


def index_values(root: Path) -> list[Any]:
    found = read_index(root, SLIDE)
    return [found.to_attributes(), *found.columns().values()]


def score_values(root: Path) -> list[Any]:
    found = read_scores(root, SLIDE)
    plain = found.slide_id, found.tasks, found.probabilities, found.seconds, found.fingerprint, found.check
    return [*plain, found.attention_logits, found.tile_probability, found.kept, found.kept_embeddings]


def feature_values(root: Path) -> list[Any]:
    found = open_features(root, SLIDE)
    return [found.encoder, found.fingerprint, found.tiles, found.rows(np.arange(TILES))]


@dataclass(frozen=True)
class Store:
    """A kind of store: how an entry is written, read whole, and found to be done."""

    write: Callable[[Path], None]
    read: Callable[[Path], list[Any]]
    done: Callable[[Path], str | None]
    error: type[WsiIpsError]
    command: str


TILES_COMMAND = "wsi-ips tile`"
STORES = {
    "tiles.zarr": Store(
        lambda root: write_index(root, INDEX, {"state": "ok"}),
        index_values,
        lambda root: stored_fingerprint(root, SLIDE, whole=True),
        TileIndexError,
        TILES_COMMAND,
    ),
    "scores.zarr": Store(
        lambda root: write_scores(root, SCORES),
        score_values,
        lambda root: scores_fingerprint(root, SLIDE, whole=True),
        ScoresError,
        "wsi-ips predict`",
    ),
    "features.zarr": Store(
        lambda root: write_features(root, SLIDE, [FEATURES], encoder="e", fingerprint="made", tiles=TILES),
        feature_values,
        lambda root: features_fingerprint(root, SLIDE),
        FeaturesError,
        "wsi-ips run --until features`",
    ),
}
STORES["tiles.h5"] = STORES["tiles.zarr"]


def flipped(data: bytes, at: float, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[min(int(at * len(data)), len(data) - 1)] ^= 1 << bit
    return bytes(changed)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "lost": lambda _: None,
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "last byte lost": lambda data: data[:-1],
    "first bit": lambda data: flipped(data, 0),
    "a bit in the middle": lambda data: flipped(data, 0.5, 3),
    "last bit": lambda data: flipped(data, 1, 7),
    "zeros": lambda data: bytes(len(data)),
    "zeros in the middle": lambda data: data[: len(data) // 3] + bytes(len(data) // 3) + data[2 * len(data) // 3 :],
    "text": lambda _: b"404 not found",
}
PARTS = ("values", "header of an array", "header")
CASES = [(kind, part, damage) for kind in STORES if kind != "tiles.h5" for part in PARTS for damage in DAMAGES]
CASES += [("tiles.h5", "file", damage) for damage in DAMAGES]


def same(found: list[Any], wanted: list[Any]) -> bool:
    return all(
        np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b for a, b in zip(found, wanted, strict=True)
    )


def outcome(read: Callable[[], list[Any]]) -> Any:
    """What is read, or the error; any other than the store's own makes the test fail."""
    try:
        return read()
    except WsiIpsError as error:
        return error


def part_of(root: Path, kind: str, part: str) -> Path:
    """The file to damage; of several the largest, so that values are those of tiles."""
    if kind == "tiles.h5":
        return root / f"{SLIDE}.h5"
    entry = root / SLIDE
    if part == "header":
        return entry / "zarr.json"
    headers = [path for path in entry.rglob("zarr.json") if path.parent != entry]
    values = [path for path in entry.rglob("*") if path.is_file() and path.name != "zarr.json"]
    files = values if part == "values" else headers
    return max(files, key=lambda path: (path.stat().st_size, path))


@pytest.mark.parametrize(("kind", "part", "damage"), CASES)
def test_a_damaged_entry_is_an_error_that_says_what_to_do_and_never_a_value(tmp_path, kind, part, damage):
    store, root = STORES[kind], tmp_path / kind
    store.write(root)
    wanted, path = store.read(root), part_of(root, kind, part)
    assert store.done(root) == wanted[0]["fingerprint"] if store is STORES["tiles.zarr"] else "made"
    changed = DAMAGES[damage](path.read_bytes())
    path.unlink() if changed is None else path.write_bytes(changed)
    found = outcome(lambda: store.read(root))
    if isinstance(found, store.error):
        assert f"of slide {SLIDE}" in str(found)
        assert store.command in str(found)
        assert len(str(found)) < 600
        # A changed block of features is noticed where it is read, all else where the entry is looked for.
        late = kind == "features.zarr" and part == "values" and damage not in ("lost", "empty", "half")
        assert late or store.done(root) is None
    else:  # the damage hit a byte that no reader needs
        assert part != "values"
        assert same(found, wanted)
    store.write(root)
    assert same(store.read(root), wanted)


@pytest.mark.parametrize("kind", STORES)
def test_no_flipped_bit_anywhere_changes_a_value_unnoticed(tmp_path, kind):
    store, root, random = STORES[kind], tmp_path / kind, np.random.default_rng(8)
    store.write(root)
    wanted, noticed = store.read(root), 0
    files = sorted(path for path in root.rglob("*") if path.is_file())
    for number in range(120):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.write_bytes(flipped(whole, random.random(), int(random.integers(8))))
        found = outcome(lambda: store.read(root))
        noticed += isinstance(found, store.error)
        assert isinstance(found, store.error) or same(found, wanted), path
        path.write_bytes(whole)
    assert noticed > 9  # most bytes of a small HDF5 file are not used
    assert same(store.read(root), wanted)


@pytest.mark.parametrize("kind", STORES)
def test_the_entry_of_another_slide_is_not_this_one(tmp_path, kind, monkeypatch):
    store, root = STORES[kind], tmp_path / kind
    store.write(root)
    (path,) = root.iterdir()
    path.rename(path.with_name(path.name.replace(SLIDE, "other")))
    monkeypatch.setattr(f"{__name__}.SLIDE", "other")
    with pytest.raises(store.error, match=r"of slide other in .*those of slide node 1"):
        store.read(root)
