"""Directories of a TIFF, BigTIFF or NDPI file, read in bounded time whatever the file says.

Two things need more than the libraries give: a chain of directories that points back at itself keeps tifffile busy
until memory runs out, and the identity of a slide's content must cover all directories, wherever they lie in the file.

Sources: TIFF 6.0, Technical Note 1 (SubIFDs), the BigTIFF note; NDPI is a TIFF with 64-bit offsets whose upper halves
follow each directory (as OpenSlide and tifffile read it).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_ips.geometry import Size

if TYPE_CHECKING:
    from wsi_ips.slides.source import ByteSource

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION = 256, 257, 258, 259, 262, 270
STRIP_OFFSETS, SAMPLES, STRIP_ROWS, STRIP_COUNTS, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS, SUB_DIRECTORIES = 322, 323, 324, 325, 330
EXTRA_SAMPLES, SAMPLE_FORMAT, JPEG_TABLES, TILE_DEPTH, NDPI = 338, 339, 347, 32997, 65420

JPEG = 7  # compression
APERIO_YCBCR = 33003  # compression: JPEG 2000 of YCbCr, which the codestream does not say
COMPRESSIONS = {
    1: "not compressed",
    5: "LZW",
    6: "old JPEG",
    8: "DEFLATE",
    32773: "PackBits",
    32946: "DEFLATE",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    50000: "ZSTD",
    50001: "WebP",
    50002: "JPEG XL",
}
RGB_COMPONENTS, YCBCR_COMPONENTS = 2, 6  # photometric
ASSOCIATED, UNASSOCIATED = 1, 2  # kinds of extra sample: colours are multiplied by alpha, or not

MOST_DIRECTORIES, MOST_TAGS, MOST_NESTED = 10_000, 4096, 4
MOST_VALUE_BYTES = 2**26
NUMPY = {1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8"}
TYPE_BYTES = {**{kind: int(name[1]) for kind, name in NUMPY.items()}, 5: 8, 10: 8, 11: 4, 12: 8}
KINDS = {1: "uint", 2: "int", 3: "float"}  # of a sample


class Tag(NamedTuple):
    """Where the values of a tag lie."""

    kind: int  # TIFF's number of the type
    values: int
    offset: int
    high: int = 0  # upper half of a single NDPI value


@dataclass(frozen=True)
class Directory:
    """One image of a TIFF: its tags; values are read when they are asked for. Raises OSError where they cannot be."""

    source: ByteSource
    order: str  # `<` or `>`
    offset: int  # of the directory in the file
    tags: dict[int, Tag]
    children: tuple[Directory, ...] = ()  # SubIFDs: the coarser levels of an OME-TIFF

    def data(self, tag: int) -> bytes:
        """Return the bytes of a tag, none where the directory lacks it."""
        found = self.tags.get(tag)
        return b"" if found is None else self.source.read_at(found.offset, found.values * TYPE_BYTES[found.kind])

    def numbers(self, tag: int) -> NDArray[np.int64]:
        """Return the whole numbers of a tag, none where the directory lacks it."""
        found = self.tags.get(tag)
        if found is None or found.kind not in NUMPY:
            return np.zeros(0, np.int64)
        return np.frombuffer(self.data(tag), self.order + NUMPY[found.kind]).astype(np.int64) + (found.high << 32)

    def number(self, tag: int, default: int = 0) -> int:
        """Return the first number of a tag."""
        found = self.numbers(tag)
        return int(found[0]) if len(found) else default

    @property
    def size(self) -> Size:
        """Size in pixels."""
        return Size(self.number(WIDTH), self.number(HEIGHT))

    @property
    def is_tiled(self) -> bool:
        """Whether the pixels are stored in tiles, not in strips."""
        return TILE_WIDTH in self.tags

    @property
    def chunk(self) -> Size:
        """Size of a tile, or of a strip."""
        if self.is_tiled:
            return Size(self.number(TILE_WIDTH), self.number(TILE_HEIGHT))
        width, height = self.size
        return Size(width, min(height, self.number(STRIP_ROWS, height)))

    @property
    def chunk_offsets(self) -> NDArray[np.int64]:
        """Position of each tile or strip in the file."""
        return self.numbers(TILE_OFFSETS if self.is_tiled else STRIP_OFFSETS)

    @property
    def chunk_bytes(self) -> NDArray[np.int64]:
        """Length of each tile or strip; 0 where it is missing."""
        return self.numbers(TILE_COUNTS if self.is_tiled else STRIP_COUNTS)

    @property
    def pixel_kind(self) -> str:
        """Samples of a pixel, such as ``3 x uint8``."""
        kind = KINDS.get(self.number(SAMPLE_FORMAT, 1), "unknown")
        return f"{self.number(SAMPLES, 1)} x {kind}{self.number(BITS, 1)}"


@dataclass
class TiffHeader:
    """All directories of a file, and the bytes they take."""

    directories: list[Directory] = field(default_factory=list)  # the main chain
    loops: bool = False  # whether a chain comes back to a directory it has passed
    ranges: list[tuple[int, int]] = field(default_factory=list)  # begin and end of all header bytes


def read_tiff_header(source: ByteSource) -> TiffHeader | None:
    """Read the directories of a TIFF as far as they can be read; None where the file is no TIFF."""
    start = source.read_at(0, min(16, source.size))
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None or len(start) < 16:
        return None
    version, low, long = *struct.unpack(order + "HI", start[2:8]), struct.unpack(order + "Q", start[4:12])[0]
    if version not in (42, 43):
        return None
    header = TiffHeader(ranges=[(0, 16)])
    walk = _Walk(source, order, header, is_big=version == 43)
    first = struct.unpack(order + "Q", start[8:16])[0] if walk.is_big else low
    if not walk.is_big and (there := walk.directory(long)) is not None and NDPI in there[0]:
        walk.is_ndpi, first = True, long
    header.directories = walk.chain(first, frozenset(), nested=0)
    return header


class _Walk:
    """Follows chains of directories."""

    def __init__(self, source: ByteSource, order: str, header: TiffHeader, *, is_big: bool) -> None:
        self.source, self.order, self.header, self.is_big, self.is_ndpi = source, order, header, is_big, False
        self.left = MOST_DIRECTORIES

    def chain(self, offset: int, above: frozenset[int], *, nested: int) -> list[Directory]:
        """Return a directory, those that follow it, and their children."""
        found, passed = [], set(above)
        while offset and self.left > 0:
            if offset in passed:
                self.header.loops = True
                break
            passed.add(offset)
            self.left -= 1
            read = self.directory(offset)
            if read is None:
                break
            tags, following, ranges = read
            self.header.ranges += ranges
            alone = Directory(self.source, self.order, offset, tags)
            children: dict[int, Directory] = {}  # by offset: the first may point to the second, which is named too
            if SUB_DIRECTORIES in tags and nested < MOST_NESTED:
                for child in self._numbers(alone, SUB_DIRECTORIES):
                    chain = self.chain(child, frozenset(passed), nested=nested + 1)
                    children = {there.offset: there for there in chain} | children
            in_order = tuple(sorted(children.values(), key=lambda there: -there.size.width)) if children else ()
            found.append(replace(alone, children=in_order))
            offset = following
        return found

    def directory(self, offset: int) -> tuple[dict[int, Tag], int, list[tuple[int, int]]] | None:
        """Return a directory's tags, the offset of the next and the bytes of both; None where it cannot be read."""
        count_at, entry, word = ("Q", 20, "Q") if self.is_big else ("H", 12, "I")
        width = struct.calcsize(word)
        try:
            head = self.source.read_at(offset, struct.calcsize(self.order + count_at))
            (number,) = struct.unpack(self.order + count_at, head)
            if number > MOST_TAGS:
                return None
            begin = offset + len(head)
            body = self.source.read_at(begin, number * entry)
            end = begin + len(body)
        except OSError:
            return None
        following = self._read(end, 8 if self.is_ndpi else width)
        high = self._read(end + 8, 4 * number) if self.is_ndpi else b""
        tags: dict[int, Tag] = {}
        ranges = [(offset, end + len(following) + len(high))]
        for n in range(number):
            tag, kind, count = struct.unpack_from(f"{self.order}HH{word}", body, n * entry)
            if kind not in TYPE_BYTES or count * TYPE_BYTES[kind] > min(self.source.size, MOST_VALUE_BYTES):
                continue
            at = begin + n * entry + 4 + width
            above = struct.unpack_from(self.order + "I", high, 4 * n)[0] if len(high) >= 4 * (n + 1) else 0
            is_inline = count * TYPE_BYTES[kind] <= width
            if not is_inline:
                at = struct.unpack_from(self.order + word, body, n * entry + 4 + width)[0] + (above << 32)
                if at + count * TYPE_BYTES[kind] > self.source.size:
                    continue
                ranges.append((at, at + count * TYPE_BYTES[kind]))
            tags[tag] = Tag(kind, count, at, above if is_inline and count == 1 else 0)
        after = "Q" if len(following) == 8 else "I"
        return tags, struct.unpack(self.order + after, following)[0] if following else 0, ranges

    def _read(self, offset: int, count: int) -> bytes:
        try:
            return self.source.read_at(offset, count)
        except OSError:
            return b""

    @staticmethod
    def _numbers(directory: Directory, tag: int) -> list[int]:
        try:
            return [int(number) for number in directory.numbers(tag)[:MOST_DIRECTORIES]]
        except OSError:
            return []
