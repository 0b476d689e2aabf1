"""Stored features: one vector per tile of a slide, computed once by an encoder, and how they are streamed.

``features.zarr/<encoder>/<slide_id>`` is a Zarr v3 group: ``features`` float16 (N, F), not compressed (features hardly
compress), in blocks of 1024 rows. Attributes: schema version, slide id, encoder, fingerprint of encoder and tile index.
Row i belongs to row i of the slide's tile index. An entry is written to a temporary folder and renamed, so it is
complete or absent.

Shapes: N tiles of a slide, n some of them, F width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError

from wsi_ips.errors import FeaturesError
from wsi_ips.provenance import atomic_folder
from wsi_ips.tiles.stream import PatchChunk, SlideTiles

SCHEMA_VERSION = 1
ROWS_PER_CHUNK = 1024
Features = NDArray[np.float16]
REMEDY = "run `wsi-ips run --until features`"


@dataclass(frozen=True)
class StoredFeatures:
    """Features of one slide on disk; rows are read on demand."""

    slide_id: str
    encoder: str  # name of the encoder that made them
    fingerprint: str  # of encoder and tile index
    tiles: int  # N
    width: int  # F
    array: Any  # the stored array

    def rows(self, tiles: NDArray[np.integer]) -> Features:
        """Read the features of some tiles, in their order: float16, shape (n, F)."""
        if not len(tiles):
            return np.empty((0, self.width), np.float16)
        first, last = int(tiles[0]), int(tiles[-1])
        try:
            if last - first == len(tiles) - 1 and (np.diff(tiles) == 1).all():
                return np.asarray(self.array[first : last + 1], np.float16)
            return np.asarray(self.array.oindex[np.asarray(tiles, np.int64)], np.float16)
        except (OSError, ValueError, RuntimeError) as error:
            raise FeaturesError(
                f"features of slide {self.slide_id}: cannot be read ({error}); delete them and {REMEDY}",
                slide_id=self.slide_id,
            ) from error


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
                array = group.create_array("features", shape=shape, dtype="float16", chunks=chunks, compressors=None)
            if done + len(values) <= tiles:
                array[done : done + len(values)] = values
            done += len(values)
        if done != tiles:
            raise FeaturesError(f"features of slide {slide_id}: {done} for {tiles} tiles", slide_id=slide_id)
        group.update_attributes(
            {"schema_version": SCHEMA_VERSION, "slide_id": slide_id, "encoder": encoder, "fingerprint": fingerprint}
        )


def open_features(root: Path, slide_id: str) -> StoredFeatures:
    """Open one slide's features; no row is read yet."""
    try:
        group = zarr.open_group(root / slide_id, mode="r", zarr_format=3)
        attributes, array = dict(group.attrs), group["features"]
        if attributes.get("schema_version") != SCHEMA_VERSION:
            raise FeaturesError(
                f"features of slide {slide_id} in {root}: written by another version; {REMEDY} again", slide_id=slide_id
            )
        if not isinstance(array, zarr.Array) or array.ndim != 2:
            raise ValueError("no table of features")
        encoder, fingerprint = str(attributes["encoder"]), str(attributes["fingerprint"])
        tiles, width = array.shape
        return StoredFeatures(slide_id, encoder, fingerprint, tiles, width, array)
    except (FileNotFoundError, GroupNotFoundError) as error:
        raise FeaturesError(f"features of slide {slide_id}: none in {root}; {REMEDY}", slide_id=slide_id) from error
    except (KeyError, ValueError, OSError) as error:
        raise FeaturesError(
            f"features of slide {slide_id} in {root}: damaged ({error}); delete them and {REMEDY}", slide_id=slide_id
        ) from error


def features_fingerprint(root: Path, slide_id: str) -> str | None:
    """Return the fingerprint of a slide's stored features, None where there are none that can be read."""
    try:
        return open_features(root, slide_id).fingerprint
    except FeaturesError:
        return None


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
