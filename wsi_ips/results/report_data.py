"""Content of the report as plain data, and how it follows from the slides of a cohort."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from wsi_ips.evaluation.localisation import SIZES
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.results.contact_sheet import SheetEntry
from wsi_ips.results.report_plots import History
from wsi_ips.tiles.recall import NotAnalysed

Outcome = Literal["", "missed", "false alarm"]


@dataclass(frozen=True)
class Figure:
    """A headline figure: name, value, and in a few words what it is based on."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class TopTile:
    """One tile of a gallery."""

    jpeg: bytes
    probability: float  # of the positive class for this tile alone
    x_px0: int  # top-left corner
    y_px0: int


@dataclass(frozen=True)
class MapPicture:
    """A heatmap of a slide: its title, and a JPEG of about 1000 px on the longer side."""

    title: str
    jpeg: bytes


@dataclass(frozen=True)
class SlideEntry:
    """One slide of the worklist."""

    slide_id: str
    state: str
    reason: str
    label: str  # empty where not given, like the split
    split: str
    probability: float | None  # of the positive class; None where the slide was not predicted
    predicted: str
    tiles: int | None
    tissue_mm2: float | None
    not_analysed: NotAnalysed | None = None  # tissue that no tile covers; None where it was not measured
    positive: bool | None = None  # whether the label is positive; None where it is unknown
    # ``missed``: labelled positive, called negative, in the split that is reported on; ``false alarm``: the opposite
    outcome: Outcome = ""
    stage: str = ""  # last stage that worked on the slide
    is_tiled: bool = True  # with tiles or without
    has_label: bool = True  # whether the truth of any task is known
    overlays: tuple[MapPicture, ...] = ()  # heatmaps; empty where not drawn, or where the page would become too large
    top: tuple[TopTile, ...] = ()  # tiles with the highest probability
    tile_um: float = 0.0  # side of a tile, µm
    thumbnail: bytes | None = None  # small JPEG for the worklist


@dataclass(frozen=True)
class Loss:
    """Slides lost at one step, by slide_id, and why."""

    reason: str
    slides: tuple[str, ...]


@dataclass(frozen=True)
class FlowStep:
    """One step of the cohort on its way to the figures."""

    name: str
    slides: int  # slides left
    lost: tuple[Loss, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class RecallRow:
    """Annotated lesions of one size class."""

    size: str  # ``ITC``, ``micro``, ``macro``, or ``all``
    lesions: int  # numbers of lesions
    lost_to_segmentation: int
    lost_to_tiling: int
    lost_to_flags: int
    in_tissue: float  # share of their area
    in_tiles: float


@dataclass(frozen=True)
class LostLesion:
    """A lesion with less than half of its area in tiles; its position in level-0 pixels."""

    slide_id: str
    x_px0: int
    y_px0: int
    diameter_um: float
    size: str
    lost_to: str


@dataclass(frozen=True)
class CardSection:
    """A part of the model card: title and sentences."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows."""

    title: str
    positive_class: str
    model_id: str
    split: str  # that the figures are based on
    figures: tuple[Figure, ...]  # headline figures
    slides: tuple[SlideEntry, ...]  # all slides of the cohort
    facts: tuple[tuple[str, str], ...]  # name and value of how the run was made
    recipe: str  # as YAML
    evaluation: Evaluation | None = None  # None where nothing is labelled
    flow: tuple[FlowStep, ...] = ()  # from the manifest to the figures
    history: History | None = None  # None where the model was trained elsewhere
    recall: tuple[RecallRow, ...] = ()  # what segmentation and tiling left of the annotated lesions
    lost_lesions: tuple[LostLesion, ...] = ()
    card: tuple[CardSection, ...] = ()
    warning: str = ""  # shown first: why the model must not be used; empty for none
    has_background: bool = True  # whether slides of the first class hold nothing to find


def outcome_of(positive: bool | None, probability: float | None, threshold: float | None) -> Outcome:
    """Return how a slide was called wrongly; empty where it was not, or where something is unknown."""
    if positive is None or probability is None or threshold is None or positive == (probability >= threshold):
        return ""
    return "missed" if positive else "false alarm"


def cohort_flow(
    slides: Sequence[SlideEntry], split: str, *, predict_splits: Collection[str], trained_here: bool
) -> tuple[FlowStep, ...]:
    """Return the steps from all slides of the manifest to those of ``split`` that the figures are based on."""
    flow = _Flow(slides)
    flow.keep("readable", lambda s: s.is_tiled, _failure)
    flow.keep("with tissue", lambda s: bool(s.tissue_mm2 or s.tiles), lambda _: "without tissue")
    flow.keep("with tiles", lambda s: bool(s.tiles), lambda _: "with tissue but no tile of it")
    learning = [s for s in flow.left if s.split == "train"]
    if trained_here and learning:
        training = _Flow(learning)
        training.keep("labelled", lambda s: s.has_label, lambda _: "without a label")
        training.keep("read", lambda s: s.stage != "train", lambda _: "whose tiles could not be read")
        lost = tuple(loss for step in training.steps for loss in step.lost)
        flow.steps.append(FlowStep("for training (split train)", len(training.left), lost, label_counts(training.left)))
    flow.left = [s for s in flow.left if s.split in {*predict_splits, ""} or s.probability is not None]
    flow.keep(
        "predicted",
        lambda s: s.probability is not None,
        lambda s: _failure(s) if s.state == "failed" else "not predicted yet",
    )
    flow.left = [s for s in flow.left if s.split == split]
    if flow.left:
        note = label_counts(flow.left)
        flow.keep(f"measured (split {split})", lambda s: bool(s.label), lambda _: "without a label", note)
    return tuple(flow.steps)


class _Flow:
    """Slides that are left, and the steps so far."""

    def __init__(self, slides: Sequence[SlideEntry]) -> None:
        self.left = list(slides)
        self.steps = [FlowStep("in the manifest", len(self.left), note=_split_counts(self.left))]

    def keep(
        self, name: str, stays: Callable[[SlideEntry], bool], why: Callable[[SlideEntry], str], note: str = ""
    ) -> None:
        """Add a step that some slides pass; ``why`` gives the reason for the others."""
        gone: dict[str, list[str]] = {}
        for slide in self.left:
            if not stays(slide):
                gone.setdefault(why(slide), []).append(slide.slide_id)
        self.left = [slide for slide in self.left if stays(slide)]
        losses = tuple(Loss(reason, tuple(names)) for reason, names in gone.items())
        self.steps.append(FlowStep(name, len(self.left), losses, note or _split_counts(self.left)))


def _failure(slide: SlideEntry) -> str:
    return "not processed yet" if slide.state == "pending" else f"failed in stage {slide.stage or 'tile'}"


def _split_counts(slides: Sequence[SlideEntry]) -> str:
    """Return a text like ``30 train, 6 val, 24 test``."""
    counts = Counter(s.split or "without a split" for s in slides)
    return ", ".join(f"{counts[name]} {name}" for name in ("train", "val", "test", "without a split") if counts[name])


def label_counts(slides: Sequence[SlideEntry]) -> str:
    """Return a text like ``15 normal, 15 tumor``."""
    counts = Counter(s.label or "unlabelled" for s in slides)
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def lesion_recall(sheet: Sequence[SheetEntry]) -> tuple[tuple[RecallRow, ...], tuple[LostLesion, ...]]:
    """Return the annotated lesions by size, and the lost ones, largest first."""
    lesions = [(entry.slide_id, lesion) for entry in sheet for lesion in entry.lesions]
    rows = []
    for size in (*SIZES, "all"):
        here = [lesion for _, lesion in lesions if size in (lesion["size_class"], "all")]
        area = math.fsum(lesion["area_um2"] for lesion in here)
        if not here or not area:
            continue
        shares = [math.fsum(le["area_um2"] * le[name] for le in here) / area for name in ("in_tissue", "in_tiles")]
        lost = Counter(le["lost_to"] for le in here if le["lost_to"])
        segmented, tiled = lost["segmentation"], lost["tiling"]
        rows.append(RecallRow(size, len(here), segmented, tiled, lost.total() - segmented - tiled, *shares))
    gone = sorted((pair for pair in lesions if pair[1]["lost_to"]), key=lambda pair: -pair[1]["diameter_um"])
    return tuple(rows), tuple(
        LostLesion(name, le["x_px0"], le["y_px0"], le["diameter_um"], le["size_class"], le["lost_to"])
        for name, le in gone
    )
