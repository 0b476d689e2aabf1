"""Tasks, their known labels, and the names of the splits: no tensors, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["single", "multi"]
SEPARATOR = ";"  # between the classes of one slide in a multi-label column
NONE = "none"  # no class of a multi-label column applies; an empty cell means unknown

Target: TypeAlias = int | tuple[bool, ...] | None
"""Known label of one slide in one task: class number, whether each class applies, or None where it is unknown."""

Split = Literal["train", "val", "test"]
Leak = Literal["patient", "content", "thumbnail"]  # why two slides must be in the same split


@dataclass(frozen=True)
class Task:
    """One classification task."""

    name: str  # in messages and in columns of tables
    classes: tuple[str, ...]  # (C_t)
    kind: Kind = "single"  # ``single``: exactly one class applies (softmax); ``multi``: each applies or not (sigmoid)

    @property
    def width(self) -> int:
        """Number of classes (C_t)."""
        return len(self.classes)

    def parse(self, text: str | None) -> Target:
        """Parse a label cell of the manifest; return None for an empty one.

        Raises
        ------
        ValueError
            The cell names something that is not a class.
        """
        if not text:
            return None
        named = [text] if self.kind == "single" else [part.strip() for part in text.split(SEPARATOR)]
        if self.kind == "multi" and named == [NONE]:
            return (False,) * self.width
        odd = [name for name in named if name not in self.classes]
        if odd:
            raise ValueError(f"`{odd[0]}` is not a class of the recipe ({', '.join(self.classes)})")
        return self.classes.index(text) if self.kind == "single" else tuple(c in named for c in self.classes)

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
        """Return whether the label is known to be the first class, or no class in a multi-label task."""
        return truth == 0 if isinstance(truth, int) else truth is not None and not any(truth)

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
