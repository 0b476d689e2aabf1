"""Stored tile indexes: Zarr v3 or HDF5, one schema, atomic per slide.

``tiles.zarr/<slide_id>/`` is a Zarr v3 group; ``tiles.h5/<slide_id>.h5`` is an HDF5 file. Either holds the columns of
:data:`wsi_ips.tiles.index.COLUMNS` and the attributes of :meth:`TileIndex.to_attributes`. A slide's
entry is written aside and renamed: a reader finds the old one or the new one, never half.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError

from wsi_ips.errors import TileIndexError
from wsi_ips.provenance import atomic_folder, atomic_path
from wsi_ips.tiles.index import COLUMNS, SCHEMA_VERSION, TileIndex

ROWS_PER_CHUNK = 65_536


def write_index(root: Path, index: TileIndex) -> None:
    """Write one slide's index; the suffix of ``root`` (``.zarr`` or ``.h5``) decides the format."""
    columns = {name: values.astype(COLUMNS[name]) for name, values in index.columns().items()}
    if _is_hdf5(root):
        _write_hdf5(_entry(root, index.slide_id), columns, index.to_attributes())
    else:
        _write_zarr(_entry(root, index.slide_id), columns, index.to_attributes())


def read_index(root: Path, slide_id: str, rows: slice | None = None) -> TileIndex:
    """Read one slide's index.

    Parameters
    ----------
    root
        The store.
    slide_id
        Identity of the slide.
    rows
        Only these tiles; the others are not loaded.

    Raises
    ------
    TileIndexError
        Missing, damaged, or of another schema.
    """
    selection = slice(None) if rows is None else rows
    try:
        attributes, columns = _load(root, slide_id, selection)
        index = TileIndex.from_stored(attributes, columns)
    except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
        if isinstance(error, TileIndexError):
            raise
        raise TileIndexError(
            f"tile index of slide {slide_id} in {root}: damaged ({error}); delete it and run `wsi-ips tile`"
        ) from error
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1 or (rows is None and len(index) != attributes["tiles"]):
        raise TileIndexError(
            f"tile index of slide {slide_id} in {root}: columns of different length; delete it and run `wsi-ips tile`"
        )
    return index


def stored_fingerprint(root: Path, slide_id: str) -> str | None:
    """Fingerprint of a slide's stored index, None where there is none that can be read."""
    try:
        return str(_load(root, slide_id, slice(0, 0))[0]["fingerprint"])
    except (TileIndexError, KeyError, OSError, ValueError, RuntimeError):
        return None


def slide_ids(root: Path) -> list[str]:
    """Slides that have an entry, sorted."""
    if not root.is_dir():
        return []
    names = (path for path in root.iterdir() if not path.name.startswith("."))
    if _is_hdf5(root):
        return sorted(path.name.removesuffix(".h5") for path in names if path.suffix == ".h5")
    return sorted(path.name for path in names if (path / "zarr.json").is_file())


def _is_hdf5(root: Path) -> bool:
    if root.suffix not in (".zarr", ".h5"):
        raise TileIndexError(f"tile store {root}: the name must end in .zarr or .h5")
    return root.suffix == ".h5"


def _entry(root: Path, slide_id: str) -> Path:
    if not slide_id or slide_id.startswith(".") or Path(slide_id).name != slide_id:
        raise TileIndexError(f"slide_id {slide_id!r}: cannot be a file name; rename it in the manifest")
    return root / (f"{slide_id}.h5" if _is_hdf5(root) else slide_id)


def _load(root: Path, slide_id: str, rows: slice) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    path = _entry(root, slide_id)
    missing = TileIndexError(f"tile index of slide {slide_id}: none in {root}; run `wsi-ips tile` first")
    if not path.exists():
        raise missing
    if _is_hdf5(root):
        with h5py.File(path, "r") as file:
            attributes = json.loads(str(file.attrs["attributes"]))
            _check_schema(root, slide_id, attributes)
            return attributes, {name: np.asarray(file[name][rows]) for name in COLUMNS if name in file}
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
    except (FileNotFoundError, GroupNotFoundError) as error:
        raise missing from error
    attributes = dict(group.attrs)
    _check_schema(root, slide_id, attributes)
    arrays = {name: group[name] for name in COLUMNS if name in group}
    return attributes, {name: np.asarray(array[rows]) for name, array in arrays.items()}  # type: ignore[index]


def _check_schema(root: Path, slide_id: str, attributes: Mapping[str, Any]) -> None:
    found = attributes.get("schema_version")
    if found != SCHEMA_VERSION:
        raise TileIndexError(
            f"tile index of slide {slide_id} in {root}: schema version {found}, this program writes "
            f"{SCHEMA_VERSION}; run `wsi-ips tile` again"
        )


def _write_zarr(path: Path, columns: Mapping[str, NDArray[Any]], attributes: dict[str, Any]) -> None:
    with atomic_folder(path) as folder:
        group = zarr.create_group(store=folder, zarr_format=3, attributes=attributes)
        for name, values in columns.items():
            group.create_array(name, data=values, chunks=(_chunk_rows(values),))


def _write_hdf5(path: Path, columns: Mapping[str, NDArray[Any]], attributes: dict[str, Any]) -> None:
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["attributes"] = json.dumps(attributes)
        for name, values in columns.items():
            file.create_dataset(name, data=values, chunks=(_chunk_rows(values),), maxshape=(None,))


def _chunk_rows(values: NDArray[Any]) -> int:
    return max(1, min(ROWS_PER_CHUNK, len(values)))
