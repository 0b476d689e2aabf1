"""Tasks, their known labels, and the names of the splits: no tensors, no files."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind = Literal["single", "multi"]
SEPARATOR = ";"  # between the classes of one slide in a multi-label column
NONE = "none"  # no class of a multi-label column applies; an empty cell means unknown

Target: TypeAlias = int | tuple[bool, ...] | None
"""Known label of one slide in one task: class number, whether each class applies, or None where it is unknown."""

# Classes whose slides hold nothing to find, in lower case, with spaces for `_` and `-`
BACKGROUND_NAMES = frozenset(("normal", "negative", "neg", "benign", "healthy", "unremarkable", "control")) | frozenset(
    ("background", "none", "nothing", "no", "0", "absent", "false", "tumor free", "tumour free")
)

Split = Literal["train", "val", "test"]
Leak = Literal["patient", "content", "thumbnail"]  # why two slides must be in the same split


def matched(text: str, known: Collection[str]) -> str:
    """Return the known word that a cell means: the same word, else the only one that differs in case or Unicode form.

    Blanks around the text do not count. A text that means no known word, or two of them, is returned stripped.
    """
    word = text.strip()
    if word in known:
        return word
    alike = [name for name in known if _folded(name) == _folded(word)]
    return alike[0] if len(alike) == 1 else word


def _folded(word: str) -> str:
    return unicodedata.normalize("NFC", word).casefold()


@dataclass(frozen=True)
class Task:
    """One classification task."""

    name: str  # in messages and in columns of tables
    classes: tuple[str, ...]  # (C_t)
    kind: Kind = "single"  # ``single``: exactly one class applies (softmax); ``multi``: each applies or not (sigmoid)
    # whether slides of the first class (``multi``: of no class) hold nothing to find; None: see `has_background`. Not
    # compared, because tasks that differ only in this fit the same weights
    background: bool | None = field(default=None, compare=False)

    @property
    def width(self) -> int:
        """Number of classes (C_t)."""
        return len(self.classes)

    @property
    def has_background(self) -> bool:
        """Whether all tiles of a slide of the first class (``multi``: of no class) are examples of it.

        Where it is not stated, the name of the class decides: ``normal``, ``no metastasis`` ...; ``multi``: always.
        """
        if self.background is not None:
            return self.background
        first = self.classes[0].lower().replace("_", " ").replace("-", " ")
        return self.kind == "multi" or first in BACKGROUND_NAMES or first.startswith(("no ", "without "))

    def parse(self, text: str | None) -> Target:
        """Parse a label cell of the manifest; return None for an empty one.

        Raises
        ------
        ValueError
            The cell names something that is not a class.
        """
        if not text:
            return None
        multi = self.kind == "multi"
        known = (*self.classes, NONE) if multi else self.classes
        named = [matched(part, known) for part in (text.split(SEPARATOR) if multi else [text])]
        if multi and named == [NONE]:
            return (False,) * self.width
        odd = [name for name in named if name not in self.classes]
        if odd:
            raise ValueError(f"`{odd[0]}` is not a class of the recipe ({', '.join(self.classes)})")
        return tuple(c in named for c in self.classes) if multi else self.classes.index(named[0])

    def format(self, truth: Target) -> str | None:
        """Return the manifest cell for a known label; the inverse of :meth:`parse`."""
        if truth is None:
            return None
        if isinstance(truth, int):
            return self.classes[truth]
        return SEPARATOR.join(c for c, holds in zip(self.classes, truth, strict=True) if holds) or NONE

    def is_positive(self, truth: Target) -> bool:
        """Return whether the last class applies, which is the positive class of the heatmap."""
        return truth == self.width - 1 if isinstance(truth, int) else truth is not None and truth[-1]

    def is_negative(self, truth: Target) -> bool:
        """Return whether the slide is known to hold nothing to find; never True in a task without background."""
        nothing = truth == 0 if isinstance(truth, int) else truth is not None and not any(truth)
        return self.has_background and nothing

    def answer(self, probability: tuple[float, ...], thresholds: tuple[float, ...] = ()) -> str:
        """Return the predicted label, written as in a manifest.

        That is the most probable class, or every class at or above its threshold in a multi-label task. There is one
        threshold for the last of two classes, or one per class in a multi-label task, where 0.5 is the default.
        """
        if self.kind == "multi":
            least = thresholds or (0.5,) * self.width
            named = (c for c, p, t in zip(self.classes, probability, least, strict=True) if p >= t)
            return SEPARATOR.join(named) or NONE
        if thresholds:
            (threshold,) = thresholds
            return self.classes[probability[-1] >= threshold]
        return self.classes[max(range(self.width), key=probability.__getitem__)]
