"""Paths of a run folder, and ``run.json``, which says what made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wsi_ips.config import Recipe
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.manifest.splits import Splits
from wsi_ips.provenance import atomic_write_json, run_facts


class InRoot:
    """Path of this name in the root of a run folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: Any, owner: type | None = None, /) -> Path:
        return Path(folder.root / self._name)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run folder; no other module builds them."""

    root: Path
    tile_store: str = "zarr"
    tile_location: str | None = None
    shared: Path | None = None

    database = InRoot("run.sqlite")  # state of every slide, and the reviews
    lock = InRoot("run.lock")  # who writes into the folder; only while somebody does
    states = InRoot("slides.csv")  # the states as a table, exported from the database
    states_typed = InRoot("slides.parquet")  # the same with types, where pyarrow is installed
    tissue = InRoot("tissue")  # picture, mask and figures of the tissue of each slide, and the contact sheet
    tissue_recall = InRoot("tissue_recall.csv")  # share of each annotated lesion that lies in tissue and in tiles
    features = InRoot("features.zarr")  # features of the tiles, a folder per encoder
    training = InRoot("training")  # state of a running training and its best checkpoint; removed when it is done
    metrics = InRoot("metrics.jsonl")  # metrics per epoch, one JSON object a line
    encoder = InRoot("encoder.safetensors")  # weights of an encoder that learned without labels
    start_metrics = InRoot("start_metrics.jsonl")  # the same of a start on features
    tensorboard = InRoot("tensorboard")  # the same metrics for TensorBoard
    model = InRoot("model")  # checkpoint of the best epoch
    last_model = InRoot("model_last")  # checkpoint of the last epoch
    scores = InRoot("scores.zarr")  # score tables
    predictions = InRoot("predictions.csv")  # prediction of every slide
    evaluation = InRoot("evaluation.json")  # results of ``wsi-ips evaluate``
    handoffs = InRoot("handoff")  # hand-off packages: a folder per slide, and tables of all slides
    report = InRoot("report/index.html")  # the page to open
    summary = InRoot("summary.json")  # the figures that the command prints at its end
    facts = InRoot("run.json")  # provenance of the run

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the folder of a recipe's run."""
        return cls(recipe.output, recipe.tiles.store, recipe.tiles.location, recipe.tiles.shared)

    @property
    def tiles(self) -> Path | str:
        """Tile indexes; a URL, or in another run folder, where the recipe says so."""
        name = f"tiles.{'zarr' if self.tile_store == 'zarr' else 'h5'}"
        return self.tile_location or (self.shared or self.root) / name

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


def write_facts(folder: RunFolder, recipe: Recipe, records: Sequence[SlideRecord]) -> dict[str, Any]:
    """Write ``run.json``, which is enough to open the run's folder again, and return its content."""
    parts = Splits(({r.slide_id: r.split for r in records if r.split is not None},))
    facts = {
        "run": run_facts(),
        "recipe": recipe.model_dump(mode="json"),
        "parts": {"hash": parts.hash, **parts.counts(0)},
    }
    atomic_write_json(folder.facts, facts)
    return facts
