"""Bytes of a slide: a local file or an object behind a URL, and the identity of their content."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from wsi_ips.errors import SlideNotFoundError, UnsupportedSlideError
from wsi_ips.slides.tiff_header import read_tiff_header

WHOLE_BYTES = 2**24  # files up to this size are hashed whole
SAMPLE_BYTES, SAMPLES = 65_536, 32  # of larger files: blocks, evenly spread, and all header bytes
HEAD_BYTES = 2**20  # taken for the header where the file is no TIFF
SERIES_BYTES = 2**15  # of a DICOM file, in which the identity of its series is looked for
SERIES = re.compile(rb"\x20\x00\x0e\x00UI(.)\x00([0-9.]+)", re.DOTALL)  # (0020,000E) in explicit little endian


class Remote(NamedTuple):
    """Timeout and attempts for a slide behind a URL."""

    timeout_s: float = 30.0  # seconds after which an attempt over HTTP is given up
    attempts: int = 3  # attempts per read, with growing pauses


PATIENT = Remote()


class ByteSource(Protocol):
    """Bytes of a slide, by position; safe to use from several threads."""

    @property
    def size(self) -> int:
        """Number of bytes."""
        ...

    def read_at(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes, or raise OSError."""
        ...

    def close(self) -> None:
        """Release the file or the connection; a second call does nothing."""
        ...


def is_url(path: Path | str) -> bool:
    """Return whether this is a URL (``https://``, ``s3://``, ``gs://`` ...) and not a local path."""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def slide_name(path: Path | str) -> str:
    """Return the file name for messages; for a URL without its query, which may hold a signature."""
    if isinstance(path, str) and is_url(path):
        return urlsplit(path).path.rstrip("/").rsplit("/", 1)[-1] or path
    return Path(path).name


def open_source(path: Path | str, remote: Remote = PATIENT) -> ByteSource:
    """Open the bytes of a slide's file.

    Raises SlideNotFoundError where there is none, UnsupportedSlideError where it is empty or may not be opened, and
    RegionReadError where the server of a URL does not answer or refuses.
    """
    source: ByteSource
    if is_url(path):
        from wsi_ips.slides.remote_file import RemoteFile

        source = RemoteFile(str(path), remote)
    else:
        try:
            source = LocalFile(Path(path))
        except FileNotFoundError as error:
            raise SlideNotFoundError(f"slide {path}: no such file; correct column `path` of the manifest") from error
        except OSError as error:
            raise UnsupportedSlideError(f"slide {path}: cannot be opened ({error.strerror})") from error
    if source.size == 0:
        source.close()
        raise UnsupportedSlideError(f"slide {slide_name(path)}: the file is empty (0 bytes); copy it again")
    return source


class LocalFile:
    """A local file."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._file).st_size

    def read_at(self, offset: int, count: int) -> bytes:
        """See :class:`ByteSource`."""
        if self._file is None:
            raise OSError("read after it was closed")
        inside = offset >= 0 and 0 <= count <= self.size - offset
        data = os.pread(self._file, count, offset) if inside else b""
        if not inside or len(data) != count:
            raise OSError(f"{count} bytes at {offset} go beyond the end of the file ({self.size} bytes)")
        return data

    def close(self) -> None:
        """See :class:`ByteSource`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def as_file(source: ByteSource, name: str) -> io.BufferedReader:
    """Return a source as a file object, for TIFF readers; it must not be shared between threads."""
    return io.BufferedReader(_RawFile(source, name), 64 * 1024)


class _RawFile(io.RawIOBase):
    def __init__(self, source: ByteSource, name: str) -> None:
        self._source, self.name, self._at = source, name, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._source.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._source.size - self._at))
        if count:
            buffer[:count] = self._source.read_at(self._at, count)
            self._at += count
        return count


def content_identity(path: Path | str, remote: Remote = PATIENT) -> str:
    """Return the identity of a slide's content: a hash of its bytes, never of its path.

    A file of at most 16 MiB is hashed whole. Of a larger one, its size, all header bytes (every directory of a TIFF
    with its values, wherever it lies; the first MiB of other files) and 32 blocks of 64 KiB are hashed, evenly spread
    and including the first and the last. The byte counts of compressed tiles, which change with their pixels, are among
    the header bytes, so that this tells any two slides apart without reading gigabytes. Pixels of an uncompressed slide
    that change in place between the blocks are not noticed. The other files of a slide count too: the companion folder
    of MRXS, the files of the same folder and series of DICOM. Raises as :func:`open_source`, and OSError where the file
    cannot be read.
    """
    found = sorted(_file_identity(file, remote) for file in _parts(path))
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def _file_identity(file: Path | str, remote: Remote) -> str:
    with closing(open_source(file, remote)) as source:
        size = source.size
        digest = hashlib.sha256(size.to_bytes(8, "big"))
        ranges = [(0, size)]
        if size > WHOLE_BYTES:
            header = read_tiff_header(source)
            starts = (round(i * (size - SAMPLE_BYTES) / (SAMPLES - 1)) for i in range(SAMPLES))
            ranges = [(0, HEAD_BYTES)] if header is None else header.ranges
            ranges = [*ranges, *((start, start + SAMPLE_BYTES) for start in starts)]
        for begin, end in _united(ranges):
            for at in range(begin, end, HEAD_BYTES):
                digest.update(source.read_at(at, min(HEAD_BYTES, end - at)))
    return digest.hexdigest()


def _united(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same bytes as ranges that neither overlap nor touch, in order."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def content_bytes(path: Path | str, remote: Remote = PATIENT) -> int:
    """Return the size of a slide in bytes, with all its files; raises as :func:`open_source`."""
    total = 0
    for file in _parts(path):
        with closing(open_source(file, remote)) as source:
            total += source.size
    return total


def _parts(path: Path | str) -> list[Path | str]:
    """Return the files of a slide."""
    if isinstance(path, Path) and path.suffix.lower() == ".mrxs":
        return [path, *sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())]
    if isinstance(path, Path) and (series := _series(path)) is not None:
        siblings = (file for file in path.parent.iterdir() if file.suffix == path.suffix and file != path)
        return [path, *(file for file in siblings if file.is_file() and _series(file) == series)]
    return [path]


def _series(path: Path) -> bytes | None:
    """Return the series that a DICOM file belongs to, None for other files."""
    try:
        with closing(LocalFile(path)) as file:
            start = file.read_at(0, min(file.size, SERIES_BYTES))
    except OSError:
        return None
    found = SERIES.search(start) if start[128:132] == b"DICM" else None
    return None if found is None else found[2]
