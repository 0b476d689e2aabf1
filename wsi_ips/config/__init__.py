"""The recipe: everything that decides a run's result, in one YAML file.

A recipe has a section per stage. Sections are frozen, every field says its unit, an unknown key is an
error. A stage gets its section only; ``pipeline`` alone sees the whole. Section ``compute`` holds what
changes speed but no result, so it is in no fingerprint.
"""

from wsi_ips.config.data_sections import LabelsSection, SlidesSection, SplitSection, TilesSection, TissueSection
from wsi_ips.config.key_types import Section
from wsi_ips.config.learning_sections import AugmentSection, FeaturesSection, ModelSection, TrainingSection
from wsi_ips.config.loading import load_recipe
from wsi_ips.config.output_sections import (
    ComputeSection,
    HandoffSection,
    HeatmapSection,
    PredictSection,
    TrackingSection,
)
from wsi_ips.config.recipe import Recipe
from wsi_ips.config.training_length import PlannedTraining, planned
from wsi_ips.labels import Leak

__all__ = [
    "AugmentSection",
    "ComputeSection",
    "FeaturesSection",
    "HandoffSection",
    "HeatmapSection",
    "LabelsSection",
    "Leak",
    "ModelSection",
    "PlannedTraining",
    "PredictSection",
    "Recipe",
    "Section",
    "SlidesSection",
    "SplitSection",
    "TilesSection",
    "TissueSection",
    "TrackingSection",
    "TrainingSection",
    "load_recipe",
    "planned",
]
