"""Paths of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from wsi_ips.config import Recipe


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder; no other module spells them."""

    root: Path
    tile_store: str = "zarr"
    tile_location: str | None = None
    shared: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the folder of a recipe's run."""
        return cls(recipe.output, recipe.tiles.store, recipe.tiles.location, recipe.tiles.shared)

    @property
    def tiles(self) -> Path | str:
        """Tile indexes; a URL, or in another run folder, where the recipe says so."""
        name = f"tiles.{'zarr' if self.tile_store == 'zarr' else 'h5'}"
        return self.tile_location or (self.shared or self.root) / name

    @property
    def scores(self) -> Path:
        """Score tables."""
        return self.root / "scores.zarr"

    @property
    def features(self) -> Path:
        """Features of the tiles, a folder per encoder."""
        return self.root / "features.zarr"

    @property
    def model(self) -> Path:
        """Checkpoint."""
        return self.root / "model"

    @property
    def last_model(self) -> Path:
        """Checkpoint of the last epoch; `model` is that of the best."""
        return self.root / "model_last"

    @property
    def training(self) -> Path:
        """State of a running training and its best checkpoint so far; removed when it is done."""
        return self.root / "training"

    @property
    def metrics(self) -> Path:
        """Metrics per epoch, one JSON object a line."""
        return self.root / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The same metrics for TensorBoard."""
        return self.root / "tensorboard"

    @property
    def database(self) -> Path:
        """State of every slide, and the reviews (SQLite)."""
        return self.root / "run.sqlite"

    @property
    def states(self) -> Path:
        """State of every slide as a table, exported from the database."""
        return self.root / "slides.csv"

    @property
    def states_typed(self) -> Path:
        """The same table as Parquet, where pyarrow is installed."""
        return self.states.with_suffix(".parquet")

    @property
    def predictions(self) -> Path:
        """Prediction of every slide."""
        return self.root / "predictions.csv"

    @property
    def summary(self) -> Path:
        """The figures that the command prints at its end."""
        return self.root / "summary.json"

    @property
    def evaluation(self) -> Path:
        """Results of ``wsi-ips evaluate``."""
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
        """Reviews from the viewer: a table of the database."""
        return self.database

    @property
    def tissue(self) -> Path:
        """Picture, mask and figures of the tissue of each slide, and the contact sheet."""
        return self.root / "tissue"

    @property
    def handoffs(self) -> Path:
        """Hand-off packages: a folder per slide, and tables of all slides."""
        return self.root / "handoff"

    @property
    def tissue_recall(self) -> Path:
        """Share of each annotated lesion that lies in tissue and in tiles."""
        return self.root / "tissue_recall.csv"

    def tissue_picture(self, slide_id: str) -> Path:
        """Return the path of the thumbnail with tissue outline and tiles."""
        return self.tissue / f"{slide_id}.png"

    def tissue_outline(self, slide_id: str) -> Path:
        """Return the path of the tissue outline (GeoJSON); with shared tiles it is in the other run's folder."""
        return (self.shared or self.root) / "tissue" / f"{slide_id}.geojson"

    def overlay(self, slide_id: str, kind: str) -> Path:
        """Return the path of a heatmap picture; ``kind`` is ``probability``, ``attention`` ..."""
        return self.root / "heatmaps" / f"{slide_id}_{kind}.png"

    def handoff(self, slide_id: str) -> Path:
        """Return the folder with the hand-off package of one slide."""
        return self.handoffs / slide_id

    def traceback(self, slide_id: str) -> Path:
        """Return the path of the traceback of a slide's last failure."""
        return self.root / "logs" / f"{slide_id}.txt"
