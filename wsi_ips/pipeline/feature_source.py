"""Which features the tiles of a run have, where they are, and whether they are up to date; loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from wsi_ips.config import AugmentSection, ModelSection, Recipe
from wsi_ips.errors import FeaturesError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.pipeline.read_cohort import names_of
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.provenance import fingerprint
from wsi_ips.slides import content_identity
from wsi_ips.tiles.feature_store import VALUES_VERSION, FeatureTiles, features_fingerprint, open_features
from wsi_ips.tiles.interop.feature_tables import find_features
from wsi_ips.tiles.store import stored_fingerprint

if TYPE_CHECKING:
    from wsi_ips.model.encoder import Encoder

IMPORTED_KEY = "imported"
SHOWN = 5
VIEW_EPOCHS = 2**40  # random numbers of views are those of epochs that no training reaches


@dataclass(frozen=True)
class FeaturePlan:
    """What decides which features the tiles of a run have, and where they are stored."""

    root: Path  # has a folder per encoder
    imported: Path | None  # folder with files of another tool, whose features take the place of the encoder's
    model: ModelSection
    seed: int  # of an encoder without weights
    patch_px: int

    @classmethod
    def of(cls, recipe: Recipe, folder: RunFolder) -> Self:
        """Return the plan of a recipe."""
        section = recipe.features
        root = section.location or folder.features
        return cls(root, section.imported, recipe.model, recipe.seed, recipe.tiles.patch_px)

    @property
    def imported_folder(self) -> Path | None:
        """Folder of the stored features of another tool; None where there are none."""
        return None if self.imported is None else self.root / IMPORTED_KEY


@dataclass(frozen=True)
class FeatureView:
    """An augmentation of the tiles before they are embedded."""

    number: int  # from 1
    strengths: AugmentSection
    seed: int

    def keys(self, slide_id: str, tiles: NDArray[np.integer]) -> NDArray[np.uint64]:
        """Return the random numbers of a slide's tiles."""
        from wsi_ips.training.augment import tile_keys

        return tile_keys(seed=self.seed, epoch=VIEW_EPOCHS + self.number, slide_id=slide_id, tiles=tiles)


@dataclass(frozen=True)
class FeatureSource:
    """Stored features of the slides of a run by one encoder."""

    plan: FeaturePlan
    slides: RunSlides
    key: str  # folder of the encoder
    encoder: str  # fingerprint of the encoder; empty for another tool's encoder
    files: dict[str, Path] | None = None  # feature files of another tool, by slide_id
    view: FeatureView | None = None  # the augmentation of the tiles; None where there is none

    @property
    def folder(self) -> Path:
        """Folder of these features."""
        return self.plan.root / self.key

    def wanted(self, record: SlideRecord) -> str:
        """Return the fingerprint that a slide's features must have to be up to date."""
        tiles = stored_fingerprint(self.slides.store, record.slide_id)
        if self.files is None:
            view = [] if self.view is None else [asdict(self.view) | {"strengths": self.view.strengths.model_dump()}]
            return fingerprint("features", VALUES_VERSION, self.encoder, tiles, *view)
        return fingerprint("imported features", VALUES_VERSION, content_identity(self.file(record)), tiles)

    def seen_in(self, view: FeatureView) -> Self:
        """Return the features of augmented tiles."""
        return replace(self, key=f"{self.key}-view{view.number}", view=view)

    def file(self, record: SlideRecord) -> Path:
        """Return the feature file of a slide that another tool wrote."""
        found = (self.files or {}).get(record.slide_id)
        if found is None:
            raise FeaturesError(
                f"slide {record.slide_id}: no feature file of it in {self.plan.imported}; files are named like the "
                "slide (.h5, .pt)",
                slide_id=record.slide_id,
            )
        return found

    def has(self, record: SlideRecord) -> bool:
        """Return whether a slide's features are stored and up to date."""
        try:
            return features_fingerprint(self.folder, record.slide_id) == self.wanted(record)
        except (FeaturesError, OSError):
            return False

    def is_damaged(self, record: SlideRecord) -> bool:
        """Return whether a value of a slide's features is not the one that was written; reads all of them."""
        try:
            open_features(self.folder, record.slide_id).require_values()
        except FeaturesError:
            return True
        return False

    def tiles(self, record: SlideRecord) -> FeatureTiles:
        """Return the slide's tiles at slot 0, with features in place of pixels."""
        tiles, features = self.slides.tiles(record), open_features(self.folder, record.slide_id)
        if features.tiles != len(tiles.index):
            raise FeaturesError(
                f"features of slide {record.slide_id}: {features.tiles} for {len(tiles.index)} tiles; run `wsi-ips "
                "run --until features` again",
                slide_id=record.slide_id,
            )
        return FeatureTiles(tiles.slot, tiles.slide_id, tiles.index, tiles.open, tiles.tiles, features)

    def of_one_encoder(self, records: Sequence[SlideRecord]) -> tuple[str, int]:
        """Return name and width of the encoder of all these slides."""
        seen: dict[tuple[str, int], str] = {}
        for record in records:
            features = open_features(self.folder, record.slide_id)
            seen.setdefault((features.encoder, features.width), record.slide_id)
        if len(seen) != 1:
            found = [f"{slide}: {name}, {width} wide" for (name, width), slide in list(seen.items())[:SHOWN]]
            raise FeaturesError(f"features of several encoders cannot be used together ({'; '.join(found)})")
        return next(iter(seen))


def feature_source(plan: FeaturePlan, slides: RunSlides, encoder: Encoder | None = None) -> FeatureSource:
    """Return the features of slides: those of another tool, else of an encoder; None: the recipe's, untrained."""
    from wsi_ips.training.model_building import encoder_fingerprint, encoder_key, frozen_encoder

    if plan.imported is not None:
        files = find_features(plan.imported, names_of(slides.records))
        return FeatureSource(plan, slides, IMPORTED_KEY, "", files)
    encoder = encoder or frozen_encoder(plan.model, seed=plan.seed, patch_px=plan.patch_px)
    return FeatureSource(plan, slides, encoder_key(encoder), encoder_fingerprint(encoder))
