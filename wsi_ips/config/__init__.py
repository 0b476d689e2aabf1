"""The recipe: everything that decides a run's result, in one YAML file.

A recipe has a section per stage. Sections are frozen, every field says its unit, an unknown key is an
error. A stage gets only its section; only ``pipeline`` sees the whole. Section ``compute``
changes speed but no result, so it is not part of any fingerprint.
"""

from wsi_ips.config.data_sections import NOT_OF_TILES, LabelsSection, SlidesSection, TilesSection, TissueSection
from wsi_ips.config.key_types import Section
from wsi_ips.config.learning_sections import AugmentSection, ModelSection, PlannedTraining, TrainingSection, planned
from wsi_ips.config.output_sections import ComputeSection, HandoffSection, HeatmapSection, PredictSection
from wsi_ips.config.recipe import Recipe, TilingSections, load_recipe

__all__ = [
    "NOT_OF_TILES",
    "AugmentSection",
    "ComputeSection",
    "HandoffSection",
    "HeatmapSection",
    "LabelsSection",
    "ModelSection",
    "PlannedTraining",
    "PredictSection",
    "Recipe",
    "Section",
    "SlidesSection",
    "TilesSection",
    "TilingSections",
    "TissueSection",
    "TrainingSection",
    "load_recipe",
    "planned",
]
