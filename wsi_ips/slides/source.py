"""Where a slide's bytes lie: a file here, or an object behind a URL that is read by ranges.

A remote slide is never copied as a whole. Reads of a few bytes (a TIFF's directories) come from blocks that are
kept; reads of a tile ask for that tile and some of what follows, for neighbours in the slide are mostly neighbours
in the file.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import fsspec

from wsi_ips.errors import RegionReadError, SlideError, SlideNotFoundError, UnsupportedSlideError

BLOCK_BYTES = 256 * 1024
BLOCKS_KEPT = 64
"""16 MiB per remote slide."""
FIRST_PAUSE_S = 0.5
FINAL_STATUS = (400, 401, 403, 404, 405, 410, 416)
"""Answers that a second attempt does not change."""


class ByteSource(Protocol):
    """Bytes of a slide, by position; safe to use from several threads."""

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes; OSError where they cannot be had."""
        ...

    def close(self) -> None:
        """Release the file or the connection; a second time does nothing."""
        ...


def is_url(path: Path | str) -> bool:
    """Whether this is a URL (``https://``, ``s3://``, ``gs://`` ...) and no path of this machine."""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def slide_name(path: Path | str) -> str:
    """File name for messages; of a URL without its query, which may hold a signature."""
    if isinstance(path, str) and is_url(path):
        return urlsplit(path).path.rstrip("/").rsplit("/", 1)[-1] or path
    return Path(path).name


class LocalFile:
    """A file of this machine."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._file).st_size

    def read_at(self, offset: int, count: int) -> bytes:
        """See :class:`ByteSource`."""
        if self._file is None:
            raise OSError("read after it was closed")
        data = os.pread(self._file, count, offset)
        if len(data) != count:
            raise OSError(f"{count} bytes at {offset} go beyond the end of the file ({self.size} bytes)")
        return data

    def close(self) -> None:
        """See :class:`ByteSource`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class RemoteFile:
    """An object behind a URL, through fsspec.

    Parameters
    ----------
    url
        ``https://``, ``s3://``, ``gs://`` or any other that fsspec knows.
    timeout_s
        Seconds after which an attempt over HTTP is given up; other stores have limits of their own.
    attempts
        How often a read is tried, with growing pauses.

    Raises
    ------
    SlideNotFoundError
        There is no such object.
    UnsupportedSlideError
        No support for this kind of URL is installed, or the server does not serve ranges.
    RegionReadError
        The server does not answer, or refuses.
    """

    def __init__(self, url: str, *, timeout_s: float = 30.0, attempts: int = 3) -> None:
        self._url, self._attempts, self._timeout_s = url, attempts, timeout_s
        self.name = slide_name(url)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._fs, self._path = fsspec.core.url_to_fs(url, **_options(url, timeout_s))
        except (ImportError, ValueError) as error:
            raise UnsupportedSlideError(
                f"slide {self.name}: {urlsplit(url).scheme}:// cannot be read here ({error}); install the extra: "
                'pip install "wsi-ips[remote]"'
            ) from error
        stated = self._tried("its size", lambda: self._fs.info(self._path)).get("size")
        if not stated:
            raise UnsupportedSlideError(
                f"slide {self.name}: the server does not say how large it is, so that it cannot be read by ranges; "
                "copy the slide to a disk"
            )
        self.size = int(stated)

    def read_at(self, offset: int, count: int) -> bytes:
        """See :class:`ByteSource`."""
        if offset < 0 or offset + count > self.size:
            raise OSError(f"{count} bytes at {offset} go beyond the end of the file ({self.size} bytes)")
        first, last = offset // BLOCK_BYTES, (offset + count - 1) // BLOCK_BYTES
        blocks = {number: self._kept(number) for number in range(first, last + 1)}
        missing = [number for number, block in blocks.items() if block is None]
        if missing:
            blocks |= self._fetch(missing[0], missing[-1])
        whole = b"".join(block for _, block in sorted(blocks.items()) if block is not None)
        start = offset - first * BLOCK_BYTES
        return whole[start : start + count]

    def close(self) -> None:
        """See :class:`ByteSource`."""
        with self._lock:
            self._blocks.clear()

    def _kept(self, number: int) -> bytes | None:
        with self._lock:
            block = self._blocks.get(number)
            if block is not None:
                self._blocks.move_to_end(number)
            return block

    def _fetch(self, first: int, last: int) -> dict[int, bytes]:
        start, end = first * BLOCK_BYTES, min(self.size, (last + 1) * BLOCK_BYTES)
        data = self._tried(f"bytes {start}-{end - 1}", lambda: self._fs.cat_file(self._path, start=start, end=end))
        if len(data) > end - start:
            raise UnsupportedSlideError(
                f"slide {self.name}: the server sends the whole file where a range was asked for; copy the slide to a "
                "disk, or have the server answer range requests"
            )
        if len(data) < end - start:
            raise OSError(f"the server sent {len(data)} of {end - start} bytes at {start}")
        fetched = {
            number: bytes(data[(number - first) * BLOCK_BYTES : (number - first + 1) * BLOCK_BYTES])
            for number in range(first, last + 1)
        }
        with self._lock:
            self._blocks.update(fetched)
            while len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return fetched

    def _tried(self, what: str, ask: Callable[[], Any]) -> Any:
        """Ask, again where that may help, and say plainly why it did not."""
        for attempt in range(1, self._attempts + 1):
            try:
                return ask()
            except _network_errors() as error:
                final = self._final(error)
                if final is not None:
                    raise final from error
                if attempt == self._attempts:
                    raise RegionReadError(
                        f"slide {self.name}: {self._shown()} did not give {what} in {attempt} attempts of at most "
                        f"{self._timeout_s:g} s ({self._said(_cause(error))}); check network and server, then start "
                        "again: what is done is kept"
                    ) from error
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
        raise AssertionError("attempts is at least 1")

    def _final(self, error: BaseException) -> SlideError | None:
        """Our error, where another attempt would not help."""
        cause = _cause(error)
        status = getattr(cause, "status", None)
        if status == 404 or isinstance(cause, FileNotFoundError):
            return SlideNotFoundError(
                f"slide {self.name}: nothing at {self._shown()}; correct column `path` of the manifest"
            )
        if status in FINAL_STATUS or isinstance(cause, PermissionError):
            return RegionReadError(
                f"slide {self.name}: {self._shown()} refuses access ({self._said(cause)}); check the credentials"
            )
        return None

    def _said(self, error: BaseException) -> str:
        """What an error says, without secrets of the URL."""
        if getattr(error, "status", None):
            return f"HTTP {error.status} {getattr(error, 'message', '')}".strip()  # type: ignore[attr-defined]
        parts, text = urlsplit(self._url), str(error)
        secret = any(part and part in text for part in (parts.username, parts.password, parts.query))
        return type(error).__name__ if secret or not text else f"{type(error).__name__}: {text}"

    def _shown(self) -> str:
        """The URL without user, password and query."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def as_file(source: ByteSource, name: str) -> io.BufferedReader:
    """A source as a file object, for TIFF readers. Not to be shared between threads."""
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


def _options(url: str, timeout_s: float) -> dict[str, Any]:
    if urlsplit(url).scheme not in ("http", "https"):
        return {}
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_read=timeout_s)}}


def _cause(error: BaseException) -> BaseException:
    """What happened: over HTTP, fsspec calls every failure to learn a size a missing file."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _network_errors() -> tuple[type[BaseException], ...]:
    """What the file systems that are loaded raise when a store does not deliver; not all of it is an OSError."""
    foreign = (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"), ("gcsfs.retry", "HttpError"))
    return (OSError, *(getattr(sys.modules[module], name) for module, name in foreign if module in sys.modules))
