"""What a slide is, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wsi_ips.slides.opening import PATIENT, Remote, open_source
from wsi_ips.slides.source import ByteSource

BLOCK_BYTES = 65_536
BLOCKS = 16


def content_identity(path: Path | str, remote: Remote = PATIENT) -> str:
    """Identity of a slide's content: its size and sampled blocks, never its path.

    Sixteen blocks of 64 KiB, evenly spread with the first and the last, tell any two slides apart without
    reading gigabytes. MRXS keeps its pixels in a companion folder; the folder's files count too.

    Parameters
    ----------
    path
        The slide's file, or its URL.
    remote
        How patient to be with a URL.

    Raises
    ------
    SlideNotFoundError
        There is no such file.
    OSError
        The file cannot be read.
    """
    digest = hashlib.sha256()
    for file in _parts(path):
        _add_samples(digest, open_source(file, remote))
    return digest.hexdigest()


def content_bytes(path: Path | str, remote: Remote = PATIENT) -> int:
    """Bytes of a slide: its file, for MRXS its companion folder too.

    Raises
    ------
    SlideNotFoundError
        There is no such file.
    OSError
        The file cannot be read.
    """
    total = 0
    for file in _parts(path):
        source = open_source(file, remote)
        total += source.size
        source.close()
    return total


def _parts(path: Path | str) -> list[Path | str]:
    files: list[Path | str] = [path]
    if isinstance(path, Path) and path.suffix.lower() == ".mrxs":
        files += sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())
    return files


def _add_samples(digest: hashlib._Hash, source: ByteSource) -> None:
    digest.update(source.size.to_bytes(8, "big"))
    starts = {round(i * max(0, source.size - BLOCK_BYTES) / (BLOCKS - 1)) for i in range(BLOCKS)}
    try:
        for start in sorted(starts):
            digest.update(source.read_at(start, min(BLOCK_BYTES, source.size - start)))
    finally:
        source.close()
