"""Slides behind a URL: an object of a store that is read by ranges, through fsspec.

A remote slide is never copied as a whole. Small reads (a TIFF's directories) come from blocks that are kept; a read of
a tile fetches that tile and some of what follows, because neighbours in the slide are mostly neighbours in the file.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import fsspec

from wsi_ips.errors import RegionReadError, SlideError, SlideNotFoundError, UnsupportedSlideError
from wsi_ips.slides.source import Remote, slide_name

BLOCK_BYTES = 256 * 1024
BLOCKS_KEPT = 64  # 16 MiB per remote slide
FIRST_PAUSE_S = 0.5
FINAL_STATUS = (400, 401, 403, 404, 405, 410, 416)  # HTTP status codes that a second attempt does not change


class RemoteFile:
    """An object behind a URL that fsspec knows: a :class:`ByteSource`.

    Raises SlideNotFoundError where there is none, UnsupportedSlideError where support for such URLs is not installed or
    the server does not serve ranges, and RegionReadError where it does not answer or refuses.
    """

    def __init__(self, url: str, remote: Remote) -> None:
        self._url, self._remote = url, remote
        self.name = slide_name(url)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._fs, self._path = fsspec.core.url_to_fs(url, **_options(url, remote.timeout_s))
        except (ImportError, ValueError) as error:
            raise UnsupportedSlideError(
                f"slide {self.name}: {urlsplit(url).scheme}:// cannot be read here ({error}); install the extra: "
                'pip install "wsi-ips[remote]"'
            ) from error
        stated = self._tried("its size", lambda: self._fs.info(self._path)).get("size")
        if not stated:
            raise UnsupportedSlideError(
                f"slide {self.name}: the server does not say how large it is; copy the slide to a disk"
            )
        self.size = int(stated)

    def read_at(self, offset: int, count: int) -> bytes:
        """See :class:`ByteSource`."""
        if offset < 0 or offset + count > self.size:
            raise OSError(f"{count} bytes at {offset} go beyond the end of the file ({self.size} bytes)")
        first, last = offset // BLOCK_BYTES, (offset + count - 1) // BLOCK_BYTES
        numbers = range(first, last + 1)
        with self._lock:
            blocks = {number: self._blocks[number] for number in numbers if number in self._blocks}
            for number in blocks:
                self._blocks.move_to_end(number)
        if missing := [number for number in numbers if number not in blocks]:
            blocks |= self._fetch(missing[0], missing[-1])
        whole = b"".join(blocks[number] for number in numbers)
        start = offset - first * BLOCK_BYTES
        return whole[start : start + count]

    def close(self) -> None:
        """See :class:`ByteSource`."""
        with self._lock:
            self._blocks.clear()

    def _fetch(self, first: int, last: int) -> dict[int, bytes]:
        start, end = first * BLOCK_BYTES, min(self.size, (last + 1) * BLOCK_BYTES)
        data = self._tried(f"bytes {start}-{end - 1}", lambda: self._fs.cat_file(self._path, start=start, end=end))
        if len(data) > end - start:
            raise UnsupportedSlideError(
                f"slide {self.name}: the server does not answer range requests but sends the whole file; copy the "
                "slide to a disk"
            )
        if len(data) < end - start:
            raise OSError(f"the server sent {len(data)} of {end - start} bytes at {start}")
        parts = range(0, len(data), BLOCK_BYTES)
        fetched = {first + n: bytes(data[at : at + BLOCK_BYTES]) for n, at in enumerate(parts)}
        with self._lock:
            self._blocks.update(fetched)
            while len(self._blocks) > BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        return fetched

    def _tried(self, what: str, ask: Callable[[], Any]) -> Any:
        """Call ``ask``, repeat it where that may help, and raise our own error where it does not."""
        attempt = 0
        while True:
            attempt += 1
            try:
                return ask()
            except _network_errors() as error:
                final = self._final(error)
                if final is None and attempt == self._remote.attempts:
                    final = RegionReadError(
                        f"slide {self.name}: {self._shown()} did not give {what} in {attempt} attempts of at most "
                        f"{self._remote.timeout_s:g} s ({self._said(_cause(error))}); check network and server, then "
                        "start again: finished work is kept"
                    )
                if final is not None:
                    raise final from error
            time.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))

    def _final(self, error: BaseException) -> SlideError | None:
        """Return the error to raise where another attempt would not help, else None."""
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
        """Return an error's text, without secrets of the URL."""
        if getattr(error, "status", None):
            return f"HTTP {error.status} {getattr(error, 'message', '')}".strip()  # type: ignore[attr-defined]
        parts, text = urlsplit(self._url), str(error)
        secret = any(part and part in text for part in (parts.username, parts.password, parts.query))
        return type(error).__name__ if secret or not text else f"{type(error).__name__}: {text}"

    def _shown(self) -> str:
        """Return the URL without user, password and query."""
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _options(url: str, timeout_s: float) -> dict[str, Any]:
    if urlsplit(url).scheme not in ("http", "https"):
        return {}
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, connect=timeout_s, sock_read=timeout_s)}}


def _cause(error: BaseException) -> BaseException:
    """Return the real cause: over HTTP, fsspec reports any failure to learn a size as a missing file."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _network_errors() -> tuple[type[BaseException], ...]:
    """Return what the loaded file systems raise when a store fails; not all of these are OSErrors."""
    foreign = (("aiohttp", "ClientError"), ("botocore.exceptions", "BotoCoreError"), ("gcsfs.retry", "HttpError"))
    return (OSError, *(getattr(sys.modules[module], name) for module, name in foreign if module in sys.modules))
