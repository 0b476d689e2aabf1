"""Leakage between the parts of a cohort: one patient, one content or one look in two of them.

A model is then measured on what it has learned from. Patients are compared when the manifest is read; content and look
are known once a slide is tiled, so these are compared before training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from wsi_ips.config import Leak
from wsi_ips.errors import ManifestError
from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.tissue import look_alikes

SHOWN = 10
WHAT: Mapping[Leak, str] = {
    "patient": "are of one patient",
    "content": "have the same content",
    "thumbnail": "look alike (turned or mirrored, perhaps)",
}


@dataclass(frozen=True)
class Kin:
    """Two slides that belong together.

    Attributes
    ----------
    kind
        Why.
    first, second
        Their slide_id's.
    detail
        The patient, or how far the looks are apart.
    """

    kind: Leak
    first: str
    second: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.first} and {self.second} {WHAT[self.kind]}" + (f" ({self.detail})" if self.detail else "")


def kin(
    records: Sequence[SlideRecord], identities: Mapping[str, str], looks: Mapping[str, str], *, across: bool = False
) -> list[Kin]:
    """Slides that belong together; of a patient with many slides, each with the first.

    Parameters
    ----------
    records
        Rows of the manifest.
    identities
        Content identity by slide_id, where known.
    looks
        Look by slide_id, where known.
    across
        Only slides of different parts; slides without one count to none.
    """
    parts = {r.slide_id: r.split for r in records}
    return [
        *_equal("patient", ((r.slide_id, r.patient_id) for r in records), parts, across),
        *_equal("content", identities.items(), parts, across),
        *(
            Kin("thumbnail", pair.first, pair.second, f"{pair.distance:.0%} of the hash differs")
            for pair in look_alikes(looks)
            if identities.get(pair.first, "") != identities.get(pair.second, "-")  # those are named already
            and _counts(parts, pair.first, pair.second, across)
        ),
    ]


def require_no_leak(run: Run) -> None:
    """Refuse slides of different parts with the same content or look, unless `split.allow` names it.

    Raises
    ------
    ManifestError
        Names the slides, their parts and the ways out.
    """
    parted = [r for r in run.with_tiles() if r.split is not None]
    headers = {r.slide_id: run.header(r) for r in parted}
    found = kin(
        parted,
        {name: header.slide_identity for name, header in headers.items()},
        {name: header.look for name, header in headers.items()},
        across=True,
    )
    leaks = [k for k in found if k.kind != "patient" and k.kind not in run.recipe.split.allow]
    if not leaks:
        return
    parts = {r.slide_id: r.split for r in parted}
    lines = [f"{k} and are in {parts[k.first]} and {parts[k.second]}" for k in leaks[:SHOWN]]
    more = [f"and {len(leaks) - SHOWN} more"] if len(leaks) > SHOWN else []
    kinds = ", ".join(dict.fromkeys(k.kind for k in leaks))
    raise ManifestError(
        "slides of different parts that are one and the same would be learned from and measured:\n  "
        + "\n  ".join([*lines, *more])
        + f"\nput them into one part (`wsi-ips split` does), or allow it: `split.allow: [{kinds}]`"
    )


def _equal(
    kind: Leak, values: Iterable[tuple[str, str | None]], parts: Mapping[str, str | None], across: bool
) -> Iterator[Kin]:
    groups: dict[str, list[str]] = {}
    for name, value in values:
        if value:
            groups.setdefault(value, []).append(name)
    for value, names in groups.items():
        pairs = combinations(names, 2) if across else ((names[0], other) for other in names[1:])
        detail = value if kind == "patient" else ""
        yield from (Kin(kind, a, b, detail) for a, b in pairs if _counts(parts, a, b, across))


def _counts(parts: Mapping[str, str | None], first: str, second: str, across: bool) -> bool:
    one, other = parts.get(first), parts.get(second)
    return not across or (one is not None and other is not None and one != other)
