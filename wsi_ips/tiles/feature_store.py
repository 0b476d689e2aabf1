"""Stored features: one vector per tile of a slide, computed once by an encoder, and how they are streamed.

``features.zarr/<encoder>/<slide_id>`` is a Zarr v3 group: ``features`` float16 (N, F), not compressed (features hardly
compress), in blocks of 1024 rows. Attributes: schema version, slide id, encoder, fingerprint of encoder and tile index,
N, F, and a checksum of these. Row i belongs to row i of the slide's tile index. An entry is written to a temporary
folder and renamed, so it is complete or absent.

Rows are read on demand, so every block has a checksum of its own (CRC-32C), which Zarr checks whenever it reads the
block. A missing block is read as NaN, which no stored feature is.

Shapes: N tiles of a slide, n some of them, F width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from wsi_ips.errors import FeaturesError
from wsi_ips.provenance import atomic_folder
from wsi_ips.tiles.store import damage_named, require_seal, sealed, zarr_attributes
from wsi_ips.tiles.stream import PatchChunk, SlideTiles

SCHEMA_VERSION = 2
VALUES_VERSION = 1  # of what the numbers mean; a new layout of the files makes no training out of date
CHECKSUM_BYTES = 4  # behind every block
ROWS_PER_CHUNK = 1024
Features = NDArray[np.float16]
COMMAND = "wsi-ips run --until features"


@dataclass(frozen=True)
class StoredFeatures:
    """Features of one slide on disk; rows are read on demand."""

    slide_id: str
    encoder: str  # name of the encoder that made them
    fingerprint: str  # of encoder and tile index
    tiles: int  # N
    width: int  # F
    folder: Path  # where they are stored
    array: Any  # the stored array

    def rows(self, tiles: NDArray[np.integer]) -> Features:
        """Read the features of some tiles, in their order: float16, shape (n, F)."""
        if not len(tiles):
            return np.empty((0, self.width), np.float16)
        first, last = int(tiles[0]), int(tiles[-1])
        with _named(self.folder.parent, self.slide_id):
            if last - first == len(tiles) - 1 and (np.diff(tiles) == 1).all():
                found = np.asarray(self.array[first : last + 1], np.float16)
            else:
                found = np.asarray(self.array.oindex[np.asarray(tiles, np.int64)], np.float16)
            if not np.isfinite(found).all():
                raise ValueError("a block is missing")
            return found

    def require_blocks(self) -> None:
        """Raise FeaturesError where a block is missing or was cut off; reads none."""
        rows, width = self.array.chunks
        size = rows * width * np.dtype(np.float16).itemsize + CHECKSUM_BYTES
        with _named(self.folder.parent, self.slide_id):
            for number in range(-(-self.tiles // rows)):
                if (self.folder / "features" / "c" / str(number) / "0").stat().st_size != size:
                    raise ValueError(f"block {number} was cut off")

    def require_values(self) -> None:
        """Raise FeaturesError where a value is not the one that was written; reads all of them, block by block."""
        for start in range(0, self.tiles, ROWS_PER_CHUNK):
            self.rows(np.arange(start, min(start + ROWS_PER_CHUNK, self.tiles)))


@dataclass(frozen=True)
class FeatureTiles(SlideTiles):
    """Tiles whose stored features (``features``, of all tiles of the index) are read instead of pixels."""

    features: StoredFeatures

    def read(self) -> Features:
        """Read the features of the wanted tiles, shape (n, F)."""
        return self.features.rows(self.wanted)


def write_features(
    root: Path, slide_id: str, parts: Iterable[NDArray[np.floating]], *, encoder: str, fingerprint: str, tiles: int
) -> None:
    """Write one slide's features from parts (n, F) in the order of its tiles; memory is that of a part and a block."""
    with atomic_folder(root / slide_id) as folder:
        group = zarr.create_group(folder, zarr_format=3)
        array, done = None, 0
        for block in _blocks(parts):
            with np.errstate(over="ignore"):
                values = block.astype(np.float16)  # (n, F)
            if not np.isfinite(values).all():
                raise FeaturesError(
                    f"features of slide {slide_id}: {np.abs(block).max():.4g} does not fit into 16 bits, or is not "
                    "a number; the encoder's weights are damaged, or not meant for these pixels",
                    slide_id=slide_id,
                )
            if array is None:
                shape = (tiles, values.shape[1])
                chunks = (max(1, min(ROWS_PER_CHUNK, tiles)), values.shape[1])
                array = group.create_array(
                    "features",
                    shape=shape,
                    dtype="float16",
                    chunks=chunks,
                    compressors=(Crc32cCodec(),),
                    fill_value=np.nan,
                )
            if done + len(values) <= tiles:
                array[done : done + len(values)] = values
            done += len(values)
        if done != tiles:
            raise FeaturesError(f"features of slide {slide_id}: {done} for {tiles} tiles", slide_id=slide_id)
        width = 0 if array is None else array.shape[1]
        facts = {"slide_id": slide_id, "encoder": encoder, "fingerprint": fingerprint, "tiles": tiles, "width": width}
        group.update_attributes(sealed({"schema_version": SCHEMA_VERSION} | facts))


def open_features(root: Path, slide_id: str) -> StoredFeatures:
    """Open one slide's features; no row is read yet."""
    folder = root / slide_id
    with _named(root, slide_id):
        facts = zarr_attributes(folder)
        if facts.get("schema_version") != SCHEMA_VERSION:
            raise FeaturesError(
                f"features of slide {slide_id} in {root}: written by another version; run `{COMMAND}`",
                slide_id=slide_id,
            )
        require_seal(facts)
        array = zarr.open_group(folder, mode="r", zarr_format=3)["features"]
        tiles, width = facts["tiles"], facts["width"]
        if not isinstance(array, zarr.Array) or array.shape != (tiles, width) or array.dtype != np.float16:
            raise ValueError("its table has another shape or type than was written")
        if facts["slide_id"] != slide_id:
            raise ValueError(f"they are those of slide {facts['slide_id']}")
        return StoredFeatures(slide_id, facts["encoder"], facts["fingerprint"], tiles, width, folder, array)


def features_fingerprint(root: Path, slide_id: str) -> str | None:
    """Return the fingerprint of a slide's stored features, None where there are none that can be read.

    A missing or cut-off block is noticed here; a block with other bytes only when it is read.
    """
    try:
        found = open_features(root, slide_id)
        found.require_blocks()
    except FeaturesError:
        return None
    return found.fingerprint


def _named(root: Path, slide_id: str) -> AbstractContextManager[None]:
    return damage_named(FeaturesError, "features", root, slide_id, command=COMMAND)


class FeatureStream:
    """Iterates over chunks of features in the order of the requests; each chunk has its own memory."""

    def __init__(
        self, requests: Sequence[FeatureTiles], *, chunk_size: int, readers: int, prefetch_chunks: int
    ) -> None:
        self._requests, self._chunk_size, self._ahead = requests, chunk_size, prefetch_chunks
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="wsi-ips-features")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[PatchChunk]:
        """Yield chunks in order."""
        waiting: deque[Future[PatchChunk]] = deque()
        for plan in self._plans():
            waiting.append(self._pool.submit(_read, plan))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _plans(self) -> Iterator[list[FeatureTiles]]:
        """Yield the content of each chunk: requests for parts of slides."""
        plan: list[FeatureTiles] = []
        room = self._chunk_size
        for request in self._requests:
            wanted, start = request.wanted, 0
            while start < len(wanted):
                part = wanted[start : start + room]
                plan.append(request.only(part))
                start, room = start + len(part), room - len(part)
                if not room:
                    yield plan
                    plan, room = [], self._chunk_size
        if plan:
            yield plan


def _read(plan: Sequence[FeatureTiles]) -> PatchChunk:
    counts = [len(request.wanted) for request in plan]
    return PatchChunk(
        np.concatenate([request.read() for request in plan]),
        np.repeat(np.array([request.slot for request in plan], np.int32), counts),
        np.concatenate([request.wanted for request in plan]),
    )


def _blocks(parts: Iterable[NDArray[np.floating]]) -> Iterable[NDArray[np.floating]]:
    """Regroup the rows into stored blocks, so that no block is read back and written twice."""
    waiting: list[NDArray[np.floating]] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count >= ROWS_PER_CHUNK:
            rows = np.concatenate(waiting)
            whole = count - count % ROWS_PER_CHUNK
            yield from np.split(rows[:whole], whole // ROWS_PER_CHUNK)
            waiting, count = [rows[whole:]], count - whole
    if count:
        yield np.concatenate(waiting)
