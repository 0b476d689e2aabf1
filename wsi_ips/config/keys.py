"""List every recipe key with its default, description and choices, for ``--help`` and the documentation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from wsi_ips.config.key_types import ListedIn, Section
from wsi_ips.config.recipe import Recipe
from wsi_ips.registry import registry


@dataclass(frozen=True)
class RecipeKey:
    """One key of a recipe."""

    name: str  # dotted, such as `tiles.mpp`; NAME stands for a name that the user chooses
    default: Any  # None for a required key, and if empty is the default
    is_required: bool
    description: str  # meaning and unit; if a registry lists the choices, their help follows
    choices: tuple[str, ...]  # empty if the key takes other values than names


def recipe_keys(section: type[Section] = Recipe) -> list[RecipeKey]:
    """Return every key of a recipe, or of one section, in order."""
    return list(_keys_of(section, ""))


def _keys_of(section: type[Section], prefix: str) -> Iterator[RecipeKey]:
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None:
            yield _key(f"{prefix}{name}", field)
        else:
            user_names = "NAME." if get_origin(field.annotation) is dict else ""
            yield from _keys_of(inner, f"{prefix}{name}.{user_names}")


def _key(name: str, field: FieldInfo) -> RecipeKey:
    marks = [*field.metadata, *_marks_in(field.annotation)]
    plural = next((mark.plural for mark in marks if isinstance(mark, ListedIn)), None)
    description, choices = field.description or "", _literals_in(field.annotation)
    if plural:
        description, choices = f"{description}: {registry(plural).described()}", tuple(registry(plural))
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    return RecipeKey(name, default, field.is_required(), description, choices)


def _section_in(annotation: Any) -> type[Section] | None:
    """Return the section that an annotation holds, also as ``Section | None`` and ``dict[str, Section]``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _marks_in(annotation: Any) -> Iterator[Any]:
    """Yield the metadata of every ``Annotated`` inside an annotation."""
    yield from getattr(annotation, "__metadata__", ())
    for part in get_args(annotation):
        yield from _marks_in(part)


def _literals_in(annotation: Any) -> tuple[str, ...]:
    """Return the names an annotation allows; nothing if it also allows other values."""
    if get_origin(annotation) is Literal:
        return tuple(str(name) for name in get_args(annotation))
    parts = [part for part in get_args(annotation) if part not in (type(None), Ellipsis)]
    found = [_literals_in(part) for part in parts]
    return () if not all(found) else tuple(name for names in found for name in names)
