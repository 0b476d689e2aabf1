"""Where everything of a run lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wsi_ips.config import Recipe


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder; nothing else in the package spells them."""

    root: Path
    tile_store: str = "zarr"
    tile_location: str | None = None
    shared: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """The folder of a recipe's run."""
        return cls(recipe.output, recipe.tiles.store, recipe.tiles.location, recipe.tiles.shared)

    @property
    def tiles(self) -> Path | str:
        """Tile indexes; a URL, or in another run folder, where the recipe puts them elsewhere."""
        name = f"tiles.{'zarr' if self.tile_store == 'zarr' else 'h5'}"
        return self.tile_location or (self.shared or self.root) / name

    @property
    def scores(self) -> Path:
        """Score tables."""
        return self.root / "scores.zarr"

    @property
    def features(self) -> Path:
        """What encoders made of the tiles, a folder per encoder."""
        return self.root / "features.zarr"

    @property
    def model(self) -> Path:
        """Checkpoint."""
        return self.root / "model"

    @property
    def last_model(self) -> Path:
        """Checkpoint of the last epoch, which need not be the best."""
        return self.root / "model_last"

    @property
    def training(self) -> Path:
        """A training at work: its state and the best checkpoint so far; gone when it is done."""
        return self.root / "training"

    @property
    def metrics(self) -> Path:
        """Figures per epoch, a JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same for TensorBoard."""
        return self.root / "tensorboard"

    @property
    def states(self) -> Path:
        """State of every slide."""
        return self.root / "slides.csv"

    @property
    def states_typed(self) -> Path:
        """The same as Parquet, with types."""
        return self.states.with_suffix(".parquet")

    @property
    def progress(self) -> Path:
        """How far a stage is, while it runs."""
        return self.root / "progress.json"

    @property
    def predictions(self) -> Path:
        """Prediction of every slide."""
        return self.root / "predictions.csv"

    @property
    def summary(self) -> Path:
        """The figures the command prints at its end."""
        return self.root / "summary.json"

    @property
    def evaluation(self) -> Path:
        """Figures of ``wsi-ips evaluate``."""
        return self.root / "evaluation.json"

    @property
    def facts(self) -> Path:
        """Provenance of the run."""
        return self.root / "run.json"

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.root / "report" / "index.html"

    @property
    def reviews(self) -> Path:
        """What reviewers said in the viewer (SQLite)."""
        return self.root / "reviews.sqlite"

    @property
    def tissue(self) -> Path:
        """Pictures, masks and facts of the tissue of each slide, and the contact sheet."""
        return self.root / "tissue"

    @property
    def handoffs(self) -> Path:
        """Hand-off packages, a folder per slide, and the tables of all of them."""
        return self.root / "handoff"

    @property
    def tissue_recall(self) -> Path:
        """What segmentation and tiling left of each annotated lesion."""
        return self.root / "tissue_recall.csv"

    def tissue_picture(self, slide_id: str) -> Path:
        """Thumbnail with the tissue outline and the tiles."""
        return self.tissue / f"{slide_id}.png"

    def tissue_outline(self, slide_id: str) -> Path:
        """Outline of the tissue as GeoJSON; where tiles are shared, tiling has left it in the other folder."""
        return (self.shared or self.root) / "tissue" / f"{slide_id}.geojson"

    def overlay(self, slide_id: str, kind: str) -> Path:
        """Heatmap picture; ``kind`` is ``probability``, ``attention`` ..."""
        return self.root / "heatmaps" / f"{slide_id}_{kind}.png"

    def handoff(self, slide_id: str) -> Path:
        """Folder with what is handed over of one slide."""
        return self.handoffs / slide_id

    def traceback(self, slide_id: str) -> Path:
        """Full traceback of a slide's last failure."""
        return self.root / "logs" / f"{slide_id}.txt"
