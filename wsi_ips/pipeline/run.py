"""A run: one recipe applied to one cohort. It opens everything that stages need; no stage takes the whole of it."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from wsi_ips.config import Recipe
from wsi_ips.errors import RecipeError
from wsi_ips.pipeline.feature_source import FeaturePlan
from wsi_ips.pipeline.heatmap_stage import RunMaps
from wsi_ips.pipeline.progress import Progress, Silent
from wsi_ips.pipeline.read_cohort import read_cohort, read_targets
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.pipeline.run_lock import sole_writer
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_predictions import RunPredictions
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.slides import Remote


@dataclass(frozen=True)
class Run:
    """One recipe applied to one cohort; leaving its ``with`` block closes the slides.

    A run that ``writes`` is the only writer of its folder within the block.
    """

    recipe: Recipe
    slides: RunSlides
    states: StateTable
    progress: Progress = field(default_factory=Silent)
    writes: bool = False
    _opened: ExitStack = field(default_factory=ExitStack, repr=False)

    @classmethod
    def open(cls, recipe: Recipe, progress: Progress | None = None, *, writes: bool = False) -> Self:
        """Read the manifest, and the states of an earlier run in the same folder."""
        if recipe.output.exists() and not recipe.output.is_dir():
            raise RecipeError(f"key `output`: {recipe.output} is a file; give a folder")
        manifest = read_cohort(recipe)
        recipe = recipe.model_copy(update={"manifest": manifest.path})  # where the recipe names a folder of slides
        folder, records = RunFolder.of(recipe), tuple(manifest.records)
        states = StateTable.read(folder, [r.slide_id for r in records])
        targets, remote = read_targets(manifest, recipe.labels), Remote(recipe.compute.remote_timeout_s)
        slides = RunSlides(manifest.path, records, targets, recipe.tiling, folder.tiles, remote)
        return cls(recipe, slides, states, progress or Silent(), writes)

    def __enter__(self) -> Self:
        if self.writes:
            self._opened.enter_context(sole_writer(self.folder, self.progress.note))
            self.states.reload()  # another writer may have changed them before it let go
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        self.slides.pool.close()

    @property
    def folder(self) -> RunFolder:
        """Where everything is written to."""
        return self.states.folder

    @property
    def features(self) -> FeaturePlan:
        """The features that its tiles have."""
        return FeaturePlan.of(self.recipe, self.folder)

    @property
    def predictions(self) -> RunPredictions:
        """Its stored predictions."""
        recipe, imported = self.recipe, self.features.imported_folder
        how = recipe.predict, recipe.labels, recipe.compute.scan_backend
        return RunPredictions(self.slides, self.states, *how, imported, self.progress)

    @property
    def maps(self) -> RunMaps:
        """Maps of its predicted slides."""
        return RunMaps(self.predictions, self.recipe.heatmap, self.recipe.handoff)
