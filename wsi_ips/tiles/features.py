"""Stored features: what an encoder made of every tile of a slide, once.

``features.zarr/<encoder>/<slide_id>`` is a Zarr v3 group: ``features`` float16 (N, F), not compressed (they hardly can
be), in blocks of 1024 rows. Attributes: schema version, slide id, encoder, fingerprint of encoder and tile index. Row i
is row i of the slide's tile index. An entry is written aside and renamed: it is there whole or not at all.

Shapes: N tiles of a slide, n of them, F width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError

from wsi_ips.errors import FeaturesError
from wsi_ips.provenance import atomic_folder
from wsi_ips.tiles.stream import SlideTiles

SCHEMA_VERSION = 1
ROWS_PER_CHUNK = 1024
Features = NDArray[np.float16]


@dataclass(frozen=True)
class StoredFeatures:
    """Features of one slide on disk; rows are read when they are asked for.

    Attributes
    ----------
    slide_id
        Identity of the slide.
    encoder
        Name of the encoder that made them.
    fingerprint
        Of encoder and tile index.
    tiles, width
        N and F.
    array
        The stored array.
    """

    slide_id: str
    encoder: str
    fingerprint: str
    tiles: int
    width: int
    array: Any

    def rows(self, tiles: NDArray[np.integer]) -> Features:
        """Features of some tiles, in their order, float16, shape (n, F).

        Raises
        ------
        FeaturesError
            They cannot be read; names the slide.
        """
        if not len(tiles):
            return np.empty((0, self.width), np.float16)
        first, last = int(tiles[0]), int(tiles[-1])
        try:
            if last - first == len(tiles) - 1 and (np.diff(tiles) == 1).all():
                return np.asarray(self.array[first : last + 1], np.float16)
            return np.asarray(self.array.oindex[np.asarray(tiles, np.int64)], np.float16)
        except (OSError, ValueError, RuntimeError) as error:
            raise FeaturesError(
                f"features of slide {self.slide_id}: cannot be read ({error}); delete them and run `wsi-ips features`",
                slide_id=self.slide_id,
            ) from error


@dataclass(frozen=True)
class FeatureTiles(SlideTiles):
    """Tiles of which stored features are read instead of pixels.

    Attributes
    ----------
    features
        Those of all tiles of the index.
    """

    features: StoredFeatures

    def read(self) -> Features:
        """Features of the wanted tiles, shape (n, F)."""
        return self.features.rows(self.wanted)


def write_features(
    root: Path, slide_id: str, parts: Iterable[NDArray[np.floating]], *, encoder: str, fingerprint: str, tiles: int
) -> None:
    """Write one slide's features as they come; memory is that of a part and of a block.

    Parameters
    ----------
    root
        Folder of the encoder.
    slide_id
        Identity of the slide.
    parts
        Features in the order of the tiles, shape (n, F) each, all F alike.
    encoder, fingerprint
        Stored beside.
    tiles
        Tiles of the slide (N), at least one.

    Raises
    ------
    FeaturesError
        Values that float16 cannot hold (beyond 65 504, or not finite), or not N rows.
    """
    with atomic_folder(root / slide_id) as folder:
        group = zarr.create_group(folder, zarr_format=3)
        array, done = None, 0
        for block in _blocks(parts):
            with np.errstate(over="ignore"):
                values = block.astype(np.float16)  # (n, F)
            if not np.isfinite(values).all():
                raise FeaturesError(
                    f"features of slide {slide_id}: {np.abs(block).max():.4g} does not fit into 16 bits, or is no "
                    "number; the encoder's weights are damaged, or not meant for these pixels",
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
    """One slide's features; no row is read yet.

    Raises
    ------
    FeaturesError
        Missing, damaged or of another schema.
    """
    try:
        group = zarr.open_group(root / slide_id, mode="r", zarr_format=3)
        attributes, array = dict(group.attrs), group["features"]
    except (FileNotFoundError, GroupNotFoundError) as error:
        raise FeaturesError(
            f"features of slide {slide_id}: none in {root}; run `wsi-ips features`", slide_id=slide_id
        ) from error
    except (KeyError, ValueError, OSError) as error:
        raise _damaged(root, slide_id, str(error)) from error
    if attributes.get("schema_version") != SCHEMA_VERSION:
        raise FeaturesError(
            f"features of slide {slide_id} in {root}: written by another version; run `wsi-ips features` again",
            slide_id=slide_id,
        )
    if not isinstance(array, zarr.Array) or array.ndim != 2:
        raise _damaged(root, slide_id, "no table of features")
    try:
        encoder, fingerprint = str(attributes["encoder"]), str(attributes["fingerprint"])
    except KeyError as error:
        raise _damaged(root, slide_id, f"no {error}") from error
    tiles, width = array.shape
    return StoredFeatures(slide_id, encoder, fingerprint, tiles, width, array)


def features_fingerprint(root: Path, slide_id: str) -> str | None:
    """Fingerprint of a slide's stored features, None where there are none that can be read."""
    try:
        return open_features(root, slide_id).fingerprint
    except FeaturesError:
        return None


def _blocks(parts: Iterable[NDArray[np.floating]]) -> Iterable[NDArray[np.floating]]:
    """The same rows in blocks as they are stored: a block that is written twice would be read in between."""
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


def _damaged(root: Path, slide_id: str, how: str) -> FeaturesError:
    return FeaturesError(
        f"features of slide {slide_id} in {root}: damaged ({how}); delete them and run `wsi-ips features`",
        slide_id=slide_id,
    )
