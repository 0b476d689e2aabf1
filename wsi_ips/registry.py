"""Registries: the one table behind every choice that a recipe, a command or a page offers.

A registry is in a module next to its entries and loads nothing until an entry is used. Recipe validation,
``--help``, the documentation and the viewer's JSON read it. Adding a choice is one new file and one line in the table.
Other packages add theirs through entry points, without touching this one::

    [options.entry_points]
    wsi_ips.poolings =
        mine = my_package.pooling:ENTRY
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from wsi_ips.errors import RecipeError

HOMES = {
    "readers": "wsi_ips.slides.readers:READERS",
    "encoders": "wsi_ips.model.encoders:ENCODERS",
    "poolings": "wsi_ips.model.poolings:POOLINGS",
    "scan_backends": "wsi_ips.model.scan_backends:SCAN_BACKENDS",
    "starts": "wsi_ips.training.starts:STARTS",
    "score_maps": "wsi_ips.results.score_maps:SCORE_MAPS",
    "handoff_formats": "wsi_ips.results.handoff_formats:HANDOFF_FORMATS",
    "tissue_methods": "wsi_ips.tissue.methods:TISSUE_METHODS",
    "tile_formats": "wsi_ips.tiles.interop.tile_formats:TILE_FORMATS",
}  # recipe sections name registries without importing them


@dataclass(frozen=True)
class Entry:
    """One choice. Registries that need to know more subclass it."""

    name: str  # what a recipe or a command writes
    home: str  # ``module:attribute`` of the class or function that implements it; imported when the entry is used
    help: str  # one line for people, in ``--help`` and in the documentation
    label: str = ""  # title on pages and pictures; the name where it is empty
    extra: str = ""  # extra of this package to install first, as in ``pip install 'wsi-ips[int8]'``
    keys: tuple[str, ...] = ()  # recipe keys that only this choice reads

    @property
    def title(self) -> str:
        """The label, or the name where there is none."""
        return self.label or self.name

    def load(self) -> Any:
        """Import and return what implements the choice.

        Raises
        ------
        RecipeError
            A library is missing; names the extra to install.
        """
        module, _, attribute = self.home.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            if not self.extra:
                raise
            raise RecipeError(
                f"`{self.name}` needs {error.name}, which is not installed: pip install 'wsi-ips[{self.extra}]'"
            ) from error


E = TypeVar("E", bound=Entry)


class Registry(Mapping[str, E], Generic[E]):
    """Choices of one kind by name, in the order of the table; entries of other packages come last.

    ``kind`` is a singular name for messages (``pooling``). ``group`` is the entry-point group in which other packages
    register theirs (``wsi_ips.poolings``): each entry point names an :class:`Entry`, or a sequence of them.
    """

    def __init__(self, kind: str, entries: Iterable[E], *, group: str) -> None:
        self.kind, self.group = kind, group
        self._own = tuple(entries)

    @cached_property
    def _entries(self) -> dict[str, E]:
        entries = {entry.name: entry for entry in self._own}
        for point in entry_points(group=self.group):
            found: Any = point.load()
            several: list[E] = [found] if isinstance(found, Entry) else list(found)  # type: ignore[list-item]
            for entry in several:
                if entry.name in entries:
                    raise RecipeError(f"{self.kind} `{entry.name}` of {point.value} exists already; rename it there")
                entries[entry.name] = entry
        return entries

    def __getitem__(self, name: str) -> E:
        """Return an entry.

        Raises
        ------
        RecipeError
            No entry has this name; the message lists the known names.
        """
        try:
            return self._entries[name]
        except KeyError:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"choose one of {', '.join(self._entries)}"
            raise RecipeError(f"there is no {self.kind} `{name}`; {hint}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def described(self) -> str:
        """Names with their help, for a key's description: ```a`: ...; `b`: ...``."""
        return "; ".join(f"`{entry.name}`: {entry.help}" for entry in self.values())


def registry(plural: str) -> Registry[Any]:
    """Load a registry by its name in :data:`HOMES`."""
    module, _, attribute = HOMES[plural].partition(":")
    found: Registry[Any] = getattr(import_module(module), attribute)
    return found
