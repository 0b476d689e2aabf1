"""Writer of tiled JPEG pyramids in Aperio form (BigTIFF, ``.svs``).

Tiles are passed as encoded bytes, and a tile that appears at many places of a level is stored once. So a slide of
gigapixels, most of them glass or repeated texture, is written quickly.

Layout of the file: directory 0 is level 0, directory 1 the thumbnail (TiffSlide expects it there), further directories
are the coarser levels. Sources: TIFF 6.0, the BigTIFF note, and the needs of OpenSlide's Aperio driver (a tiled first
directory whose description begins with "Aperio").
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_ips.geometry import Size
from wsi_ips.provenance import atomic_path
from wsi_ips.slides.base import RGB

TILE_PX = 256
JPEG_QUALITY = 80
JPEG_COMPRESSION, YCBCR = 7, 6

SHORT, LONG, ASCII, LONG8 = 3, 4, 2, 16
FORMATS = {SHORT: "H", LONG: "I", LONG8: "Q"}

Entry = tuple[int, int, Sequence[int] | bytes]
"""Tag, type, values."""


@dataclass(frozen=True)
class EncodedLevel:
    """One level of a pyramid."""

    size: Size  # size in pixels
    place: NDArray[np.int32]  # index in `tiles` of the tile at each place, shape (tile rows, tile columns)
    tiles: Sequence[bytes]  # JPEG streams of 256 x 256 px


def encode_jpeg(pixels: RGB, *, quality: int = JPEG_QUALITY) -> bytes:
    """Encode a self-contained baseline JPEG, YCbCr with 4:2:0 subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def tile_counts(size: Size) -> tuple[int, int]:
    """Return the numbers of tile rows and columns that cover a level."""
    return -(-size.height // TILE_PX), -(-size.width // TILE_PX)


def write_aperio(path: Path, levels: Sequence[EncodedLevel], *, thumbnail: RGB, mpp: float) -> None:
    """Write a slide, complete or not at all: levels from the finest, and a small image of the whole slide."""
    first = levels[0].size
    header = (
        f"Aperio Image Library v12.0.0 (wsi-ips synthetic)\r\n{first.width}x{first.height} "
        f"[0,0 {first.width}x{first.height}] ({TILE_PX}x{TILE_PX}) JPEG/YCC Q={JPEG_QUALITY}"
    )
    facts = f"|AppMag = {round(10 / mpp)}|MPP = {mpp:.6g}"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        directories = [_tiled(file, levels[0], header + facts)]
        directories.append(_thumbnail(file, thumbnail, f"{header} -> thumbnail{facts}"))
        directories += [
            _tiled(file, level, f"{header} -> {level.size.width}x{level.size.height} JPEG/YCC{facts}")
            for level in levels[1:]
        ]
        _write_directories(file, directories)


def _tiled(file: BinaryIO, level: EncodedLevel, description: str) -> list[Entry]:
    """Write a level's tiles, each once, and return its directory."""
    starts = np.empty(len(level.tiles), np.uint64)
    for number, tile in enumerate(level.tiles):
        starts[number] = file.tell()
        file.write(tile)
    lengths = np.array([len(tile) for tile in level.tiles], np.uint64)
    places = level.place.ravel()
    return _directory(
        level.size,
        description,
        [
            (322, SHORT, [TILE_PX]),
            (323, SHORT, [TILE_PX]),
            (324, LONG8, starts[places].tolist()),
            (325, LONG8, lengths[places].tolist()),
        ],
    )


def _thumbnail(file: BinaryIO, thumbnail: RGB, description: str) -> list[Entry]:
    start, data = file.tell(), encode_jpeg(thumbnail)
    file.write(data)
    strips: list[Entry] = [
        (273, LONG8, [start]),
        (278, LONG, [thumbnail.shape[0]]),
        (279, LONG8, [len(data)]),
    ]
    return _directory(Size(thumbnail.shape[1], thumbnail.shape[0]), description, strips)


def _directory(size: Size, description: str, layout: list[Entry]) -> list[Entry]:
    common: list[Entry] = [
        (254, LONG, [0]),
        (256, LONG, [size.width]),
        (257, LONG, [size.height]),
        (258, SHORT, [8, 8, 8]),
        (259, SHORT, [JPEG_COMPRESSION]),
        (262, SHORT, [YCBCR]),
        (270, ASCII, description.encode("ascii") + b"\0"),
        (277, SHORT, [3]),
        (284, SHORT, [1]),
        (530, SHORT, [2, 2]),
    ]
    return sorted(common + layout)


def _write_directories(file: BinaryIO, directories: Sequence[list[Entry]]) -> None:
    """Append the directories; the header links to the first, and each to the next."""
    link = 8
    for entries in directories:
        packed = [(tag, kind, *_pack(kind, values)) for tag, kind, values in entries]
        places = []
        for _, _, _, data in packed:
            places.append(file.tell())
            if len(data) > 8:
                file.write(data + b"\0" * (len(data) % 2))
        start = file.tell()
        file.write(struct.pack("<Q", len(packed)))
        for (tag, kind, count, data), place in zip(packed, places, strict=True):
            inline = data.ljust(8, b"\0") if len(data) <= 8 else struct.pack("<Q", place)
            file.write(struct.pack("<HHQ", tag, kind, count) + inline)
        next_link = file.tell()
        file.write(struct.pack("<Q", 0))
        end = file.tell()
        file.seek(link)
        file.write(struct.pack("<Q", start))
        file.seek(end)
        link = next_link


def _pack(kind: int, values: Sequence[int] | bytes) -> tuple[int, bytes]:
    """Return count and bytes of a tag's values."""
    if isinstance(values, bytes):
        return len(values), values
    return len(values), struct.pack(f"<{len(values)}{FORMATS[kind]}", *values)
