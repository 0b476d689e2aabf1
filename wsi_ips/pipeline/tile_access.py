"""Access to the slides and the stored tiles of a run: open, read, and tell whether a tile index is up to date."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from wsi_ips.config import Recipe, SlidesSection, TilesSection, TissueSection
from wsi_ips.errors import SlideError, SlideNotFoundError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.provenance import fingerprint
from wsi_ips.slides import Remote, SlidePool, SlideReader, TileCache, content_identity, open_slide
from wsi_ips.tiles.index import SCHEMA_VERSION, TileIndex
from wsi_ips.tiles.store import read_header, read_index, stored_fingerprint
from wsi_ips.tiles.stream import SlideTiles

NOT_HASHED = {"store", "location", "imported", "shared"}
"""Keys of section ``tiles`` that say where tiles are, not which."""


@dataclass(frozen=True)
class TileAccess:
    """Slides and tiles, as three sections of the recipe describe them."""

    # sections of the recipe; all count in the fingerprint of a tile index
    slides: SlidesSection
    tissue: TissueSection
    tiles: TilesSection
    remote: Remote  # timeout and attempts for slides behind a URL
    store: Path | str  # the tile store: a folder or a URL
    pool: SlidePool = field(default_factory=SlidePool)

    @classmethod
    def of(cls, recipe: Recipe, pool: SlidePool) -> TileAccess:
        """Return the access that a recipe describes."""
        remote = Remote(recipe.compute.remote_timeout_s)
        return cls(recipe.slides, recipe.tissue, recipe.tiles, remote, RunFolder.of(recipe).tiles, pool)

    def opener(self, record: SlideRecord) -> Callable[[], AbstractContextManager[SlideReader]]:
        """Return a function that opens the slide, for a ``with`` block."""

        def opened(cache: TileCache) -> SlideReader:
            return open_slide(
                record.path, reader=self.slides.reader, mpp_override=record.mpp, cache=cache, remote=self.remote
            )

        return partial(self.pool.lease, record.slide_id, opened)

    def fingerprint(self, record: SlideRecord) -> str:
        """Return the fingerprint of an up-to-date tile index of the slide.

        Raises
        ------
        SlideNotFoundError
            The file of the slide, its annotation, its coordinates or its tissue mask is missing.
        """
        return fingerprint(
            "tiles",
            SCHEMA_VERSION,
            self.slides,
            self.tissue,
            self.tiles.model_dump(exclude=NOT_HASHED),
            record.mpp,
            content_identity(record.path, self.remote),
            _file_hash("annotation", record.annotation) if record.annotation else None,
            *([_file_hash("coordinates", record.coordinates)] if record.coordinates else []),
            record.tissue_method,
            record.tissue_min_saturation,
            _file_hash("tissue_mask", record.tissue_mask) if record.tissue_mask else None,
        )

    def is_current(self, record: SlideRecord) -> bool:
        """Return whether the stored tile index of the slide is up to date; False where the slide cannot be read."""
        try:
            wanted = self.fingerprint(record)
        except (OSError, SlideError):
            return False
        return stored_fingerprint(self.store, record.slide_id) == wanted

    def index(self, record: SlideRecord) -> TileIndex:
        """Read the stored tile index of the slide."""
        return read_index(self.store, record.slide_id)

    def header(self, record: SlideRecord) -> TileIndex:
        """Read the stored tile index without its tiles: facts of the slide, and the fingerprint."""
        return read_header(self.store, record.slide_id)

    def of_slide(self, record: SlideRecord) -> SlideTiles:
        """Return the tiles of the slide, to be streamed at slot 0."""
        return SlideTiles(
            slot=0, slide_id=record.slide_id, index=self.index(record), open=self.opener(record), tiles=None
        )


def _file_hash(column: str, path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        why = " (most tools write none for a slide without tiles: then leave the slide out)"
        raise SlideNotFoundError(
            f"{column} {path}: no such file; correct column `{column}` of the manifest"
            + (why if column == "coordinates" else "")
        ) from error
