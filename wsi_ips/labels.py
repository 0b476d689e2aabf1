"""Questions to a slide and what is known of their answers: numbers and names, no tensors, no files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["single", "multi"]
SEPARATOR = ";"
"""Between the classes of one slide in a multi-label column."""
NONE = "none"
"""In a multi-label column: no class holds. An empty cell means that it is not known."""

Truth: TypeAlias = int | tuple[bool, ...] | None
"""What is known of one slide in one task: number of its class, which classes hold, or nothing."""


@dataclass(frozen=True)
class Task:
    """One question to a slide.

    Attributes
    ----------
    name
        For messages and columns of figures.
    classes
        Names of its classes (C_t).
    kind
        ``single``: exactly one class holds (softmax); ``multi``: each class holds or not (sigmoid).
    """

    name: str
    classes: tuple[str, ...]
    kind: Kind = "single"

    @property
    def width(self) -> int:
        """Number of its classes (C_t)."""
        return len(self.classes)

    def truth(self, text: str | None) -> Truth:
        """What a cell of the manifest says; None where it is empty.

        Raises
        ------
        ValueError
            It names something that is no class.
        """
        if not text:
            return None
        named = [text] if self.kind == "single" else [part.strip() for part in text.split(SEPARATOR)]
        if self.kind == "multi" and named == [NONE]:
            return (False,) * self.width
        odd = [name for name in named if name not in self.classes]
        if odd:
            raise ValueError(f"`{odd[0]}` is no class of the recipe ({', '.join(self.classes)})")
        return self.classes.index(text) if self.kind == "single" else tuple(c in named for c in self.classes)

    def text(self, truth: Truth) -> str | None:
        """What a manifest would say; the opposite of :meth:`truth`."""
        if truth is None:
            return None
        if isinstance(truth, int):
            return self.classes[truth]
        return SEPARATOR.join(c for c, holds in zip(self.classes, truth, strict=True) if holds) or NONE

    def is_positive(self, truth: Truth) -> bool:
        """Whether the last class holds, the positive one of the heatmap."""
        return truth == self.width - 1 if isinstance(truth, int) else truth is not None and truth[-1]

    def is_negative(self, truth: Truth) -> bool:
        """Whether it is known that nothing but the first class holds, or no class at all where several may."""
        return truth == 0 if isinstance(truth, int) else truth is not None and not any(truth)

    def answer(self, probability: tuple[float, ...], thresholds: tuple[float, ...] = ()) -> str:
        """The most probable class; where several may hold, all from 0.5 on, as a manifest has them.

        Parameters
        ----------
        probability
            Of each class.
        thresholds
            In place of 0.5: one for the last of two classes, or one per class where several may hold.
        """
        if self.kind == "multi":
            least = thresholds or (0.5,) * self.width
            named = (c for c, p, t in zip(self.classes, probability, least, strict=True) if p >= t)
            return SEPARATOR.join(named) or NONE
        if thresholds:
            (threshold,) = thresholds
            return self.classes[probability[-1] >= threshold]
        return self.classes[max(range(self.width), key=probability.__getitem__)]
