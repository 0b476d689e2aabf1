"""The whole recipe, and how it is read from a YAML file."""

from __future__ import annotations

import difflib
import re
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

MOST_BYTES, MOST_VALUES = 200_000, 20_000  # of a recipe; the longest in pipelines/ have 4 000 bytes and 200 values
MOST_PROBLEMS, MOST_CHARACTERS = 20, 400  # in a message: problems, and characters of each part
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
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise RecipeError(f"recipe {path}: larger than {MOST_BYTES:,} bytes; a recipe is a short YAML file")
        values = parse_yaml(data.decode("utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path}: not UTF-8 text; a recipe is a YAML file") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe {path}: not valid YAML: {shown(str(error))}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path}: expected sections such as `tiles:` and `model:`, see pipelines/")
    for key, value in (overrides or {}).items():
        _set_dotted(values, key, value)
    try:
        return Recipe.model_validate(values, context={FOLDER: path.resolve().parent})
    except ValidationError as error:
        raise RecipeError(f"recipe {path}: {_explain(error)}") from error


def parse_yaml(text: str) -> Any:
    """Parse YAML with the numbers of YAML 1.2; raises yaml.YAMLError, also where it is nested or expands too far.

    YAML 1.1 reads ``1:30`` as 90, ``010`` as 8 and ``2024-01-01`` as a date. Here they stay text, like integers of more
    digits than anything needs, so that the message about them names their key.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # a tag such as `!!int` on another text
        raise yaml.YAMLError(f"a value does not fit its tag ({error})") from error


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses a key given twice (YAML would silently drop the first) and aliases that explode."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the document, whose values are few even if each alias is replaced by what it stands for."""
        root = super().get_single_node()
        whole = [] if root is None else [(root, root)]
        pairs = root.value if isinstance(root, yaml.MappingNode) else whole
        for key, node in pairs:
            count, waiting = 0, [node]
            while waiting:
                value = waiting.pop().value
                count += 1
                if count > MOST_VALUES:
                    name = f"key `{key.value}`" if isinstance(key, yaml.ScalarNode) else "it"
                    reason = f"{name} holds more than {MOST_VALUES:,} values, aliases replaced by what they stand for"
                    raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
                if isinstance(value, list):
                    waiting += [part for item in value for part in (item if isinstance(item, tuple) else (item,))]
        return root

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key `{name}` appears twice", key.start_mark)
            seen.update([name] if name else [])
        return super().construct_mapping(node, deep)


NUMBERS = {
    "int": r"[-+]?(0|[1-9][0-9_]{0,30})$",
    "float": r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}
# Others, such as `!!set` whose order is that of chance, have no place in a recipe.
_Loader.yaml_constructors = {
    tag: build
    for tag, build in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in (*NUMBERS, "map", "seq", "str", "bool", "null")
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] not in (*NUMBERS, "timestamp")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _rule in NUMBERS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_rule), list("-+.0123456789"))


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
    lines, problems = [], error.errors(include_url=False)
    for problem in problems[:MOST_PROBLEMS]:
        where = shown(".".join(str(part) for part in problem["loc"]))
        text = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = _keys_at(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key `{where}`; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"key `{where}` is missing; add it")
        else:
            lines.append(f"key `{where}`: {shown(text)} (got {shown(repr(problem['input']))})" if where else text)
    more = [f"and {len(problems) - MOST_PROBLEMS} more problems"] if len(problems) > MOST_PROBLEMS else []
    return "; ".join(lines + more)


def shown(text: str) -> str:
    """Return the first characters of a text for a message."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."


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
