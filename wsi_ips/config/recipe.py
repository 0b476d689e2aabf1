"""The whole recipe."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from wsi_ips.config.data_sections import LabelsSection, SlidesSection, SplitSection, TilesSection, TissueSection
from wsi_ips.config.key_types import RecipePath, Section, Seed
from wsi_ips.config.learning_sections import FeaturesSection, ModelSection, TrainingSection
from wsi_ips.config.output_sections import (
    ComputeSection,
    HandoffSection,
    HeatmapSection,
    PredictSection,
    TrackingSection,
)
from wsi_ips.registry import registry


class Recipe(Section):
    """A whole run. `wsi-ips run RECIPE` executes it."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="name of the run")
    output: RecipePath = Field(..., description="run folder, relative to the recipe file")
    manifest: RecipePath = Field(
        ...,
        description="manifest CSV, relative to the recipe file; or a folder of slides (also CAMELYON16 or "
        "17), which each command searches again",
    )
    seed: Seed = Field(0, description="seed of all random numbers")
    slides: SlidesSection = SlidesSection()
    tissue: TissueSection = TissueSection()
    tiles: TilesSection = TilesSection()
    labels: LabelsSection = LabelsSection()
    split: SplitSection = SplitSection()
    model: ModelSection = ModelSection()
    features: FeaturesSection = FeaturesSection()
    training: TrainingSection = TrainingSection()
    predict: PredictSection = PredictSection()
    heatmap: HeatmapSection = HeatmapSection()
    handoff: HandoffSection = HandoffSection()
    compute: ComputeSection = ComputeSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _features_are_no_pixels(self) -> Self:
        if self.model.input == "pixels":
            if self.features.imported is not None:
                raise ValueError("`features.imported` is for `model.input: features`; set it, or leave the folder out")
            return self
        if "augment" in self.training.model_fields_set:
            raise ValueError("`training.augment` changes pixels, and there are none with `model.input: features`")
        backend = self.compute.scan_backend
        if registry("scan_backends")[backend].is_calibrated:
            raise ValueError(
                f"`compute.scan_backend: {backend}` scans pixels; leave it out with `model.input: features`"
            )
        return self
