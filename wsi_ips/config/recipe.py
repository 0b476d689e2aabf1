"""The whole recipe, and how it is read from a YAML file."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple, Self, get_origin

import yaml
from pydantic import Field, ValidationError, model_validator

from wsi_ips.config.data_sections import LabelsSection, SlidesSection, SplitSection, TilesSection, TissueSection
from wsi_ips.config.key_types import FOLDER, RecipePath, Section, Seed
from wsi_ips.config.learning_sections import FeaturesSection, ModelSection, TrainingSection
from wsi_ips.config.output_sections import (
    ComputeSection,
    HandoffSection,
    HeatmapSection,
    PredictSection,
    TrackingSection,
)
from wsi_ips.errors import RecipeError
from wsi_ips.registry import registry

RECIPE_NAME = "recipe.yaml"  # in a run folder that `wsi-ips predict` made


class TilingSections(NamedTuple):
    """Sections that decide which tiles a slide has, and which pixels they show."""

    slides: SlidesSection
    tissue: TissueSection
    tiles: TilesSection


class Recipe(Section):
    """A whole run. `wsi-ips run RECIPE` executes it."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="name of the run")
    output: RecipePath = Field(..., description="run folder, relative to the recipe file")
    manifest: RecipePath = Field(
        ...,
        description="manifest CSV, relative to the recipe file; or a folder of slides (also CAMELYON16 or 17), which "
        "each command searches again",
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

    @property
    def tiling(self) -> TilingSections:
        """Sections that decide about tiles and their pixels."""
        return TilingSections(self.slides, self.tissue, self.tiles)

    @model_validator(mode="after")
    def _annotations_are_of_known_classes(self) -> Self:
        known = {"tumor", "exclude", *(name.lower() for task in self.labels.tasks for name in task.classes)}
        odd = {name for name in self.tiles.annotation_classes.values() if name and name.lower() not in known}
        if odd:
            raise ValueError(f"`tiles.annotation_classes`: {', '.join(odd)} is none of {', '.join(sorted(known))}")
        return self

    @model_validator(mode="after")
    def _features_are_not_pixels(self) -> Self:
        if self.model.input == "pixels":
            if self.features.imported is not None:
                raise ValueError("`features.imported` is for `model.input: features`; set it, or leave the folder out")
            return self
        if registry("starts")[self.training.start].trains_encoder:
            raise ValueError(f"`training.start: {self.training.start}` needs pixels; set `model.input: pixels`")
        if "augment" in self.training.model_fields_set:
            raise ValueError("`training.augment` changes pixels, and there are none with `model.input: features`")
        if self.training.grid_shift:
            raise ValueError("`training.grid_shift` reads other pixels, and there are none with `input: features`")
        backend = self.compute.scan_backend
        if registry("scan_backends")[backend].is_calibrated:
            raise ValueError(f"`compute.scan_backend: {backend}` needs pixels; leave it out with `input: features`")
        return self


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file.

    Parameters
    ----------
    path
        YAML file, or a folder that contains ``recipe.yaml``.
    overrides
        Dotted keys with values that replace those of the file, such as ``{"training.epochs": 3}``.

    Returns
    -------
    Recipe
        Relative paths, also those of ``overrides``, are resolved against the folder of the file.

    Raises
    ------
    RecipeError
        The file is missing or not YAML, or a key is unknown, doubled or out of range; names the key.
    """
    if (path / RECIPE_NAME).is_file():
        path = path / RECIPE_NAME
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path}: not UTF-8 text; a recipe is a YAML file") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path}: expected sections such as `tiles:` and `model:`, see pipelines/")
    for key, value in (overrides or {}).items():
        _set_dotted(values, key, value)
    try:
        return Recipe.model_validate(values, context={FOLDER: path.resolve().parent})
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_explain(error)}") from error


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses a key given twice; YAML would silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key.value}` appears twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"recipe key {key}: `{parent}` is not a section")
        values = inner
    values[last] = value


def _explain(error: ValidationError) -> str:
    """Describe each problem: the dotted key, what is wrong, and the nearest known key."""
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _keys_at(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key `{where}`; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"key `{where}` is missing; add it")
        else:
            lines.append(f"key `{where}`: {text} (got {problem['input']!r})" if where else text)
    return "; ".join(lines)


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the known keys of the section at a location of the recipe."""
    fields, is_name = Recipe.model_fields, False
    for part in location:
        if is_name:  # a name that the user chose for a section, as in `labels.further`
            is_name = False
            continue
        annotation: Any = fields[str(part)].annotation
        options = getattr(annotation, "__args__", (annotation,))
        is_name = get_origin(annotation) is dict
        fields = next(o for o in options if isinstance(o, type) and issubclass(o, Section)).model_fields
    return list(fields)
