"""The slides of a run: their labels, how they are opened, and their stored tiles."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

from wsi_ips.config import NOT_OF_TILES, TilingSections
from wsi_ips.errors import ManifestError, SlideError, SlideNotFoundError
from wsi_ips.labels import Target
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.provenance import fingerprint
from wsi_ips.slides import Remote, SlidePool, SlideReader, TileCache, content_identity, open_slide
from wsi_ips.tiles.index import SCHEMA_VERSION, TileIndex
from wsi_ips.tiles.store import read_header, read_index, stored_fingerprint
from wsi_ips.tiles.stream import SlideTiles


@dataclass(frozen=True)
class RunSlides:
    """Slides of a run; leaving its ``with`` block closes those that are open."""

    manifest: Path
    records: Sequence[SlideRecord]  # rows of the manifest, in order
    targets: Mapping[str, tuple[Target, ...]]  # known labels by slide_id: an entry per task
    tiling: TilingSections
    store: Path | str  # tile indexes
    remote: Remote  # timeout for slides behind a URL
    pool: SlidePool = field(default_factory=SlidePool)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.close()

    def alone(self, record: SlideRecord) -> Self:
        """Return one slide without its labels, to send to a worker process."""
        return replace(self, records=(record,), targets={}, pool=SlidePool(max_open=1))

    def named(self, names: Sequence[str]) -> list[SlideRecord]:
        """Return the slides of these slide_ids, in their order; refuse a name that is not in the manifest."""
        known = {record.slide_id: record for record in self.records}
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ManifestError(
                f"manifest {self.manifest}: no slide_id {', '.join(unknown)}; check the spelling with "
                "`wsi-ips status`, or add a row"
            )
        return [known[name] for name in dict.fromkeys(names)]

    def target(self, record: SlideRecord) -> Target:
        """Return the known label of the slide (the first task)."""
        return self.targets[record.slide_id][0]

    def has_label(self, record: SlideRecord) -> bool:
        """Return whether the slide's label is known, in any task."""
        return any(truth is not None for truth in self.targets[record.slide_id])

    def opener(self, record: SlideRecord) -> Callable[[], AbstractContextManager[SlideReader]]:
        """Return a function that opens the slide, for a ``with`` block."""
        reader, remote = self.tiling.slides.reader, self.remote

        def opened(cache: TileCache) -> SlideReader:
            return open_slide(record.path, reader=reader, mpp_override=record.mpp, cache=cache, remote=remote)

        return partial(self.pool.lease, record.slide_id, opened)

    def tiles_fingerprint(self, record: SlideRecord) -> str:
        """Return the fingerprint of an up-to-date tile index of the slide."""
        return fingerprint(
            "tiles",
            SCHEMA_VERSION,
            self.tiling.slides,
            self.tiling.tissue,
            self.tiling.tiles.model_dump(exclude=set(NOT_OF_TILES)),
            record.mpp,
            content_identity(record.path, self.remote),
            _file_hash("annotation", record.annotation) if record.annotation else None,
            *([classes] if record.annotation and (classes := self.tiling.tiles.annotation_classes) else []),
            *([_file_hash("coordinates", record.coordinates)] if record.coordinates else []),
            *([_file_hash("tissue.model", self.tiling.tissue.model)] if self.tiling.tissue.model else []),
            record.tissue_method,
            record.tissue_min_saturation,
            _file_hash("tissue_mask", record.tissue_mask) if record.tissue_mask else None,
        )

    def require_same_content(self, record: SlideRecord, identity: str) -> None:
        """Refuse a slide whose file is not, or no longer, the one of this content identity."""
        if content_identity(record.path, self.remote) != identity:
            raise SlideError(
                f"slide {record.slide_id}: its file changed while it was read, or after it was tiled; once it is "
                "complete, run `wsi-ips tile` and then this again"
            )

    def is_tiled(self, record: SlideRecord) -> bool:
        """Return whether the slide's stored tile index is whole and up to date; False where it cannot be read."""
        try:
            wanted = self.tiles_fingerprint(record)
        except (OSError, SlideError):
            return False
        return stored_fingerprint(self.store, record.slide_id, whole=True) == wanted

    def index(self, record: SlideRecord) -> TileIndex:
        """Read the stored tile index of the slide."""
        return read_index(self.store, record.slide_id)

    def header(self, record: SlideRecord) -> TileIndex:
        """Read the stored tile index without its tiles: facts of the slide, and the fingerprint."""
        return read_header(self.store, record.slide_id)

    def tiles(self, record: SlideRecord) -> SlideTiles:
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
            f"{column} {path}: no such file; correct "
            + (f"key `{column}`" if "." in column else f"column `{column}` of the manifest")
            + (why if column == "coordinates" else "")
        ) from error
