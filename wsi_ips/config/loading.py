"""Read a recipe file: YAML to sections, with errors that name the key and the remedy."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import ValidationError

from wsi_ips.config.key_types import FOLDER, Section
from wsi_ips.config.recipe import Recipe
from wsi_ips.errors import RecipeError

RECIPE_NAME = "recipe.yaml"
"""Name of the recipe in a run folder that `wsi-ips predict` made."""


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe file.

    Parameters
    ----------
    path
        YAML file, or a folder that holds ``recipe.yaml``.
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
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path}: not UTF-8 text; a recipe is a YAML file") from error
    try:
        values = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
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
                raise yaml.constructor.ConstructorError(None, None, f"key `{key.value}` is there twice", key.start_mark)
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
        if problem["type"] == "extra_forbidden":
            known = _keys_at(problem["loc"][:-1])
            near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key `{where}`; {hint}")
        elif problem["type"] == "missing":
            lines.append(f"key `{where}` is missing; add it")
        elif not problem["loc"]:
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            text = problem["msg"].removeprefix("Value error, ")
            lines.append(f"key `{where}`: {text} (got {problem['input']!r})")
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
