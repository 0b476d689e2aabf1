"""Make manifests from folders: any folder of slides, CAMELYON16 and CAMELYON17. Files left out are reported."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_ips.manifest.camelyon import discover_camelyon16, discover_camelyon17, is_camelyon16, is_camelyon17
from wsi_ips.manifest.folder_files import SLIDE_SUFFIXES, Discovery, all_files, few, slide_table

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def discover(folder: Path) -> Discovery:
    """Find the slides of a folder: as CAMELYON16 or 17 where it looks like one of them, else every slide file."""
    if is_camelyon17(folder):
        return discover_camelyon17(folder)
    return discover_camelyon16(folder) if is_camelyon16(folder) else discover_folder(folder)


def discover_slides(folder: Path) -> pd.DataFrame:
    """Return the manifest that :func:`discover` makes of a folder, and log the files left out."""
    found = discover(folder)
    if found.left_out:
        kinds = Counter(file.suffix.lower() or "no ending" for file in found.left_out)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        names = few([str(file.relative_to(folder.resolve())) for file in found.left_out])
        log.warning("folder %s: files that are in no row of the manifest: %s (%s)", folder, counts, names)
    return found.table


def discover_folder(folder: Path) -> Discovery:
    """Find every slide file of a folder and its subfolders; the slide_id is the name without its ending."""
    files = all_files(folder)
    slides = [file for file in files if file.suffix.lower() in SLIDE_SUFFIXES]
    table = slide_table([{"slide_id": file.stem, "path": file} for file in slides], folder)
    return Discovery(table, tuple(file for file in files if file not in set(slides)))
