"""Stored tile indexes: Zarr v3 or HDF5, one schema, atomic per slide, local or behind a URL.

``tiles.zarr/<slide_id>/`` is a Zarr v3 group; ``tiles.h5/<slide_id>.h5`` is an HDF5 file. Either holds the columns of
:data:`wsi_ips.tiles.index.COLUMNS` and the attributes of :meth:`TileIndex.to_attributes`, with a checksum of the
columns and the slide's row of the table of states: an entry alone shows that its slide is done, and the result.

Slides share nothing, so any number of processes can write. On a disk, an entry is written to a temporary place and
renamed: a reader finds the old or the new one, never half of one. Object stores cannot rename: there an HDF5 file is
one object, written at once, and the attributes of a Zarr group are written last; without them it does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from wsi_ips.errors import TileIndexError
from wsi_ips.provenance import atomic_folder, atomic_write_bytes
from wsi_ips.slides.source import is_url
from wsi_ips.tiles.index import COLUMNS, SCHEMA_VERSION, TileIndex

ROWS_PER_CHUNK = 65_536
Columns = Mapping[str, NDArray[Any]]


def write_index(root: Path | str, index: TileIndex, row: Mapping[str, Any] | None = None) -> None:
    """Write one slide's index."""
    columns = {name: values.astype(COLUMNS[name]) for name, values in index.columns().items()}
    attributes = index.to_attributes() | {"checksum": _checksum(columns), "row": dict(row or {})}
    (_write_hdf5 if _is_hdf5(root) else _write_zarr)(_entry(root, index.slide_id), columns, attributes)


def read_index(root: Path | str, slide_id: str, rows: slice | None = None) -> TileIndex:
    """Read one slide's index."""
    attributes = _checked_attributes(root, slide_id)
    try:
        columns = _columns(root, slide_id, slice(None) if rows is None else rows)
        index = TileIndex.from_stored(attributes, columns)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise _damaged(root, slide_id, str(error)) from error
    if len({len(values) for values in columns.values()}) != 1:
        raise _damaged(root, slide_id, "columns of different length")
    if rows is None and (len(index) != attributes["tiles"] or _checksum(columns) != attributes.get("checksum")):
        raise _damaged(root, slide_id, "its columns are not those that were written")
    if rows is not None and _attributes(root, slide_id) != attributes:
        raise TileIndexError(f"tile index of slide {slide_id} in {root}: replaced while it was read; read it again")
    return index


def read_header(root: Path | str, slide_id: str) -> TileIndex:
    """Read a slide's index without its tiles, from one small file instead of a dozen."""
    attributes = _checked_attributes(root, slide_id)
    none = {name: np.empty(0, kind) for name, kind in COLUMNS.items() if name != "tumour_fraction"}
    try:
        return TileIndex.from_stored(attributes, none)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(root, slide_id, str(error)) from error


def stored_fingerprint(root: Path | str, slide_id: str) -> str | None:
    """Return the fingerprint of a slide's stored index, None where there is none that can be read."""
    try:
        return read_header(root, slide_id).fingerprint
    except TileIndexError:
        return None


def stored_row(root: Path | str, slide_id: str) -> dict[str, Any]:
    """Return the row of the table of states that was stored with the tiles; empty where none was."""
    return dict(_checked_attributes(root, slide_id).get("row", {}))


def slide_ids(root: Path | str) -> list[str]:
    """List the slides that have an entry, sorted."""
    filesystem, path = fsspec.core.url_to_fs(str(root))
    if not filesystem.isdir(path):
        return []
    names = (entry.rstrip("/").rpartition("/")[2] for entry in filesystem.ls(path, detail=False))
    if _is_hdf5(root):
        return sorted(name.removesuffix(".h5") for name in names if name.endswith(".h5") and name[0] != ".")
    return sorted(name for name in names if name[0] != "." and filesystem.isfile(f"{path}/{name}/zarr.json"))


def _is_hdf5(root: Path | str) -> bool:
    name = str(root).rstrip("/")
    if not name.endswith((".zarr", ".h5")):
        raise TileIndexError(f"tile store {root}: the name must end in .zarr or .h5")
    return name.endswith(".h5")


def _entry(root: Path | str, slide_id: str) -> Path | str:
    if not slide_id or slide_id.startswith(".") or Path(slide_id).name != slide_id:
        raise TileIndexError(f"slide_id {slide_id!r}: cannot be a file name; rename it in the manifest")
    name = f"{slide_id}.h5" if _is_hdf5(root) else slide_id
    return f"{str(root).rstrip('/')}/{name}" if is_url(root) else Path(root) / name


def _checksum(columns: Columns) -> str:
    """Hash all columns; Zarr reads a missing chunk as zeros, without an error."""
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(name.encode() + np.ascontiguousarray(columns[name]).tobytes())
    return digest.hexdigest()[:16]


def _checked_attributes(root: Path | str, slide_id: str) -> dict[str, Any]:
    attributes = _attributes(root, slide_id)
    found = attributes.get("schema_version")
    if found != SCHEMA_VERSION:
        raise TileIndexError(
            f"tile index of slide {slide_id} in {root}: schema version {found}, this program writes "
            f"{SCHEMA_VERSION}; run `wsi-ips tile` again"
        )
    return attributes


def _attributes(root: Path | str, slide_id: str) -> dict[str, Any]:
    entry = _entry(root, slide_id)
    missing = TileIndexError(f"tile index of slide {slide_id}: none in {root}; run `wsi-ips tile` first")
    try:
        if _is_hdf5(root):
            with _opened(entry) as file, h5py.File(file, "r") as stored:
                return dict(json.loads(str(stored.attrs["attributes"])))
        with _opened(entry / "zarr.json" if isinstance(entry, Path) else f"{entry}/zarr.json") as file:
            attributes = dict(json.load(file)["attributes"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing from error
    except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
        raise _damaged(root, slide_id, str(error)) from error
    if not attributes:
        raise missing  # still being written, or its writer was killed
    return attributes


def _columns(root: Path | str, slide_id: str, rows: slice) -> dict[str, NDArray[Any]]:
    entry = _entry(root, slide_id)
    if _is_hdf5(root):
        with _opened(entry) as file, h5py.File(file, "r") as stored:
            return {name: np.asarray(stored[name][rows]) for name in COLUMNS if name in stored}
    group = zarr.open_group(entry, mode="r", zarr_format=3)
    arrays = {name: group[name] for name in COLUMNS if name in group}
    return {name: np.asarray(array[rows]) for name, array in arrays.items()}  # type: ignore[index]


def _opened(entry: Path | str) -> AbstractContextManager[BinaryIO]:
    opened: AbstractContextManager[BinaryIO] = entry.open("rb") if isinstance(entry, Path) else fsspec.open(entry, "rb")
    return opened


def _damaged(root: Path | str, slide_id: str, how: str) -> TileIndexError:
    return TileIndexError(
        f"tile index of slide {slide_id} in {root}: damaged ({how}); delete it and run `wsi-ips tile`"
    )


def _write_zarr(entry: Path | str, columns: Columns, attributes: dict[str, Any]) -> None:
    with atomic_folder(entry) if isinstance(entry, Path) else nullcontext(entry) as place:
        group = zarr.create_group(place, zarr_format=3, overwrite=not isinstance(entry, Path))
        for name, values in columns.items():
            group.create_array(name, data=values, chunks=(_chunk_rows(values),))
        group.update_attributes(attributes)


def _write_hdf5(entry: Path | str, columns: Columns, attributes: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["attributes"] = json.dumps(attributes)
        for name, values in columns.items():
            file.create_dataset(name, data=values, chunks=(_chunk_rows(values),), maxshape=(None,))
    if isinstance(entry, Path):
        atomic_write_bytes(entry, buffer.getvalue())
        return
    filesystem, path = fsspec.core.url_to_fs(entry)
    filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    filesystem.pipe_file(path, buffer.getvalue())


def _chunk_rows(values: NDArray[Any]) -> int:
    return max(1, min(ROWS_PER_CHUNK, len(values)))
