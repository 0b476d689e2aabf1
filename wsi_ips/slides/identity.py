"""What a slide is, whatever it is called and wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

from wsi_ips.errors import SlideNotFoundError

BLOCK_BYTES = 65_536
BLOCKS = 16


def content_identity(path: Path) -> str:
    """Identity of a slide's content: its size and sampled blocks, never its path.

    Sixteen blocks of 64 KiB, evenly spread with the first and the last, tell any two slides apart without
    reading gigabytes. MRXS keeps its pixels in a companion folder; the folder's files count too.

    Raises
    ------
    SlideNotFoundError
        There is no such file.
    OSError
        The file cannot be read.
    """
    if not path.exists():
        raise SlideNotFoundError(f"slide {path}: no such file; correct column `path` of the manifest")
    digest = hashlib.sha256()
    files = [path]
    if path.suffix.lower() == ".mrxs":
        files += sorted(file for file in path.with_suffix("").rglob("*") if file.is_file())
    for file in files:
        _add_samples(digest, file)
    return digest.hexdigest()


def _add_samples(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "big"))
    starts = {round(i * max(0, size - BLOCK_BYTES) / (BLOCKS - 1)) for i in range(BLOCKS)}
    with path.open("rb") as file:
        for start in sorted(starts):
            file.seek(start)
            digest.update(file.read(BLOCK_BYTES))
