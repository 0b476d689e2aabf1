"""Leakage between splits: slides of one patient, of the same content or of similar appearance in two of them.

The model is then measured on what it has learned. Patients are compared when the manifest is read. Content and
appearance are known once a slide is tiled, so these are compared before training.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from wsi_ips.errors import ManifestError
from wsi_ips.labels import Leak
from wsi_ips.manifest.slide_record import SlideRecord

SHOWN = 10
REASONS: Mapping[Leak, str] = {
    "patient": "are of one patient",
    "content": "have the same content",
    "thumbnail": "look alike (turned or mirrored, perhaps)",
}


@dataclass(frozen=True)
class RelatedSlides:
    """Two slides that must be in the same split.

    Attributes
    ----------
    kind
        Why.
    first, second
        Their slide_ids.
    detail
        The patient, or how much the perceptual hashes differ.
    """

    kind: Leak
    first: str
    second: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.first} and {self.second} {REASONS[self.kind]}" + (f" ({self.detail})" if self.detail else "")


def related_slides(
    records: Sequence[SlideRecord],
    contents: Mapping[str, str],
    similar: Iterable[tuple[str, str, float]],
    *,
    across: bool = False,
) -> list[RelatedSlides]:
    """Find slides that belong together; for a patient with many slides, pair each with the first."""
    splits = {r.slide_id: r.split for r in records} if across else None
    return [
        *_equal("patient", ((r.slide_id, r.patient_id) for r in records), splits),
        *_equal("content", contents.items(), splits),
        *(
            RelatedSlides("thumbnail", first, second, f"{distance:.0%} of the hash differs")
            for first, second, distance in similar
            if contents.get(first, "") != contents.get(second, "-")  # equal contents are listed above
            and _counts(splits, first, second)
        ),
    ]


def require_no_leaks(
    records: Sequence[SlideRecord],
    contents: Mapping[str, str],
    similar: Iterable[tuple[str, str, float]],
    allow: Collection[Leak],
) -> None:
    """Refuse related slides in different splits, unless ``allow`` names the reason; see :func:`related_slides`."""
    leaks = [pair for pair in related_slides(records, contents, similar, across=True) if pair.kind not in allow]
    if not leaks:
        return
    splits = {r.slide_id: r.split for r in records}
    lines = [f"{pair} and are in {splits[pair.first]} and {splits[pair.second]}" for pair in leaks[:SHOWN]]
    more = [f"and {len(leaks) - SHOWN} more"] if len(leaks) > SHOWN else []
    kinds = ", ".join(dict.fromkeys(pair.kind for pair in leaks))
    raise ManifestError(
        "slides of different splits belong together, so the model would be measured on what it has learned:\n  "
        + "\n  ".join([*lines, *more])
        + f"\nput them into one split (`wsi-ips split` does), or allow it: `split.allow: [{kinds}]`"
    )


def _equal(
    kind: Leak, values: Iterable[tuple[str, str | None]], splits: Mapping[str, str | None] | None
) -> Iterator[RelatedSlides]:
    groups: dict[str, list[str]] = {}
    for name, value in values:
        if value:
            groups.setdefault(value, []).append(name)
    for value, names in groups.items():
        pairs = combinations(names, 2) if splits is not None else ((names[0], other) for other in names[1:])
        detail = value if kind == "patient" else ""
        yield from (RelatedSlides(kind, a, b, detail) for a, b in pairs if _counts(splits, a, b))


def _counts(splits: Mapping[str, str | None] | None, first: str, second: str) -> bool:
    if splits is None:
        return True
    one, other = splits.get(first), splits.get(second)
    return one is not None and other is not None and one != other
