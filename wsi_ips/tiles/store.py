"""Stored tile indexes: Zarr v3 or HDF5, one schema, atomic per slide, local or behind a URL.

``tiles.zarr/<slide_id>/`` is a Zarr v3 group; ``tiles.h5/<slide_id>.h5`` is an HDF5 file. Either holds the columns of
:data:`wsi_ips.tiles.index.COLUMNS` and the attributes of :meth:`TileIndex.to_attributes`, with a checksum of the
columns and the slide's row of the table of states: an entry alone shows that its slide is done, and the result.

Every store of arrays of this program is checked in the same way (:func:`sealed`, :func:`require_whole`): Zarr reads a
missing chunk as zeros, and neither format notices a flipped bit. Attributes hold a checksum of themselves (``seal``),
and of arrays that are read whole (``checksum``). Indexes of versions without a seal are read without that check.

Slides share nothing, so any number of processes can write. On a disk, an entry is written to a temporary place and
renamed: a reader finds the old or the new one, never half of one. Object stores cannot rename: there an HDF5 file is
one object, written at once, and the attributes of a Zarr group are written last; without them it does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import h5py
import numpy as np
import zarr
from numpy.typing import NDArray

from wsi_ips.errors import FeaturesError, ScoresError, TileIndexError, WsiIpsError
from wsi_ips.provenance import atomic_folder, atomic_write_bytes
from wsi_ips.slides.source import is_url
from wsi_ips.tiles.index import COLUMNS, SCHEMA_VERSION, TileIndex

ROWS_PER_CHUNK = 65_536
SEAL = "seal"
COMMAND = "wsi-ips tile"
SHOWN = 200  # characters of another library's message
# What zarr, h5py, JSON and the code after them raise where bytes are not those that were written
DAMAGE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError),
    *(TypeError, ValueError),
)
Columns = Mapping[str, NDArray[Any]]


def sealed(attributes: Mapping[str, Any], arrays: Columns | None = None) -> dict[str, Any]:
    """Return attributes to store, as plain JSON: with checksum, types and shapes of the arrays, and with their seal."""
    stored = dict(attributes)
    if arrays is not None:
        stored |= {"checksum": _checksum(arrays), "arrays": _layout(arrays)}
    plain: dict[str, Any] = json.loads(json.dumps(stored))
    return plain | {SEAL: _seal(plain)}


def require_seal(attributes: Mapping[str, Any]) -> None:
    """Raise ValueError where stored attributes are not those that were written."""
    if attributes.get(SEAL) != _seal({name: value for name, value in attributes.items() if name != SEAL}):
        raise ValueError("its header is not the one that was written")


def require_whole(attributes: Mapping[str, Any], arrays: Columns) -> None:
    """Raise ValueError where stored arrays are not those that were written with these attributes."""
    found = _layout(arrays)
    if attributes.get("arrays", found) != found or _checksum(arrays) != attributes.get("checksum"):
        raise ValueError("its values are not those that were written")


@contextmanager
def damage_named(
    kind: type[WsiIpsError], what: str, root: Path | str, slide_id: str, *, command: str
) -> Iterator[None]:
    """Turn what reading an entry raises into one error of a kind: it names ``what``, the slide, and the remedy."""
    named = f"{what} of slide {slide_id}"
    try:
        yield
    except (TileIndexError, ScoresError, FeaturesError):
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise kind(f"{named}: none in {root}; run `{command}` first", slide_id=slide_id) from error
    except DAMAGE as error:
        how = " ".join(str(error).split())[:SHOWN] or type(error).__name__
        raise kind(
            f"{named} in {root}: damaged ({how}); run `{command}`, which notices it and replaces it", slide_id=slide_id
        ) from error


def write_index(root: Path | str, index: TileIndex, row: Mapping[str, Any] | None = None) -> None:
    """Write one slide's index."""
    columns = {name: values.astype(COLUMNS[name]) for name, values in index.columns().items()}
    attributes = sealed(index.to_attributes() | {"row": dict(row or {})}, columns)
    (_write_hdf5 if _is_hdf5(root) else write_zarr)(_entry(root, index.slide_id), columns, attributes)


def read_index(root: Path | str, slide_id: str) -> TileIndex:
    """Read one slide's index."""
    attributes = _checked_attributes(root, slide_id)
    with _named(root, slide_id):
        columns = _columns(root, slide_id)
        require_whole(attributes, columns)
        index = TileIndex.from_stored(attributes, columns)
        if {len(values) for values in columns.values()} != {attributes["tiles"]}:
            raise ValueError("columns of different length")
        return index


def read_header(root: Path | str, slide_id: str) -> TileIndex:
    """Read a slide's index without its tiles, from one small file instead of a dozen."""
    attributes = _checked_attributes(root, slide_id)
    none = {name: np.empty(0, kind) for name, kind in COLUMNS.items() if name != "tumour_fraction"}
    with _named(root, slide_id):
        return TileIndex.from_stored(attributes, none)


def stored_fingerprint(root: Path | str, slide_id: str, *, whole: bool = False) -> str | None:
    """Return the fingerprint of a slide's stored index, None where there is none that can be read.

    ``whole`` also reads the tiles: an index of which a tile is damaged then has none.
    """
    try:
        return (read_index if whole else read_header)(root, slide_id).fingerprint
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
    """Hash all columns."""
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(name.encode() + np.ascontiguousarray(columns[name]).tobytes())
    return digest.hexdigest()[:16]


def _layout(arrays: Columns) -> dict[str, list[Any]]:
    """Return type and shape of each array."""
    return {name: [str(values.dtype), *values.shape] for name, values in arrays.items()}


def _seal(attributes: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(attributes, sort_keys=True).encode()).hexdigest()[:16]


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
    with _named(root, slide_id):
        if _is_hdf5(root):
            with _opened(entry) as file, h5py.File(file, "r") as stored:
                attributes = dict(json.loads(str(stored.attrs["attributes"])))
        else:
            attributes = zarr_attributes(entry)
        if SEAL in attributes:
            require_seal(attributes)
        if attributes.get("slide_id", slide_id) != slide_id:
            raise ValueError(f"its tiles are those of slide {attributes['slide_id']}")
    if not attributes:  # still being written, or its writer was killed
        raise TileIndexError(
            f"tile index of slide {slide_id}: none in {root}; run `{COMMAND}` first", slide_id=slide_id
        )
    return attributes


def _columns(root: Path | str, slide_id: str) -> dict[str, NDArray[Any]]:
    entry = _entry(root, slide_id)
    if _is_hdf5(root):
        with _opened(entry) as file, h5py.File(file, "r") as stored:
            return {name: np.asarray(stored[name][:]) for name in COLUMNS if name in stored}
    return zarr_arrays(entry, COLUMNS)


def zarr_attributes(entry: Path | str) -> dict[str, Any]:
    """Read the attributes of a Zarr group from its one small file."""
    with _opened(entry / "zarr.json" if isinstance(entry, Path) else f"{entry}/zarr.json") as file:
        return dict(json.load(file)["attributes"])


def zarr_arrays(entry: Path | str, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Read those of some arrays that a Zarr group has."""
    group = zarr.open_group(entry, mode="r", zarr_format=3)
    return {name: np.asarray(group[name][:]) for name in names if name in group}  # type: ignore[index]


def _opened(entry: Path | str) -> AbstractContextManager[BinaryIO]:
    opened: AbstractContextManager[BinaryIO] = entry.open("rb") if isinstance(entry, Path) else fsspec.open(entry, "rb")
    return opened


def _named(root: Path | str, slide_id: str) -> AbstractContextManager[None]:
    return damage_named(TileIndexError, "tile index", root, slide_id, command=COMMAND)


def write_zarr(entry: Path | str, arrays: Columns, attributes: dict[str, Any]) -> None:
    """Write a Zarr group, in blocks of rows; its attributes last."""
    with atomic_folder(entry) if isinstance(entry, Path) else nullcontext(entry) as place:
        group = zarr.create_group(place, zarr_format=3, overwrite=not isinstance(entry, Path))
        for name, values in arrays.items():
            group.create_array(name, data=values, chunks=(_chunk_rows(values), *values.shape[1:]))
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
