"""The model card: what a model is for, what it was trained on, how well it does, and what is not known.

After Mitchell et al. (FAccT 2019). Each statement follows from the run; nothing is assumed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wsi_ips.evaluation.classification import Interval
from wsi_ips.evaluation.localisation import SIZES
from wsi_ips.evaluation.slide_evaluation import LARGEST_LESION, SITE_COLUMNS, SlideEvaluation
from wsi_ips.evaluation.summary import Evaluation
from wsi_ips.model.checkpoint_card import ModelCard, licence_text, origin_text, training_text
from wsi_ips.results.report_data import CardSection, SlideEntry, label_counts

FEW_OF_A_CLASS = 50  # fewer test slides of a class than this are stated as a limit


@dataclass(frozen=True)
class CardFacts:
    """Facts that the card is made from."""

    card: ModelCard  # the checkpoint's own card
    decision: str  # what the answer of a slide is based on, in words
    trained_here: bool
    slides: Sequence[SlideEntry]  # all slides of the cohort
    split: str  # that the figures are based on
    # Site by column of the manifest, then slide_id; empty where unknown.
    sites: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)  # known ones, by slide_id
    evaluation: Evaluation | None = None  # None where nothing is labelled
    is_synthetic: bool = False


def model_card(facts: CardFacts) -> tuple[CardSection, ...]:
    """Write the model card of a run's model."""
    return (
        CardSection("Intended use", _use(facts.card)),
        CardSection("What it is", _what(facts)),
        CardSection("What it was trained on", _training_slides(facts)),
        CardSection("How well it does", _figures(facts.evaluation, facts.split)),
        CardSection("Limits", _limits(facts)),
        CardSection("Licences", (licence_text(facts.card),)),
    )


def _use(card: ModelCard) -> tuple[str, ...]:
    asked = "; ".join(f"{task.name} ({', '.join(task.classes)})" for task in card.tasks)
    return (
        f"Research on whole-slide images like those it was trained on. It predicts: {asked}.",
        "Research use only: not a medical device, not for diagnosis, not for decisions about a patient. The "
        "pathologist's own reading comes first.",
        "Heatmaps show where the model reacts. They do not outline tumour, and a pale area is not proven free of it.",
        *(
            ()
            if card.tasks[0].has_background
            else (
                "No class stands for “nothing found”: a tile that shows none of them, such as stroma, has a "
                "probability too, which means nothing.",
            )
        ),
    )


def _what(facts: CardFacts) -> tuple[str, ...]:
    card = facts.card
    started = f", {origin}" if (origin := origin_text(card)) else ""
    return (
        f"Model {card.model_id}: encoder {card.encoder.name}{started}; pooling `{card.pooling}`, {card.heads} heads.",
        f"{training_text(card)}. The prediction of a slide is based on {facts.decision}.",
        f"Tiles of {card.patch_px} px at {card.patch_mpp:g} µm/px, {card.patch_px * card.patch_mpp:.0f} µm wide; "
        "slides are read at this scale or reduced to it from a finer level, never enlarged from a coarser one.",
    )


def _training_slides(facts: CardFacts) -> tuple[str, ...]:
    if not facts.trained_here:
        return ("It was trained elsewhere, on slides unknown to this run. See the card of its own training.",)
    lines = []
    tiled = [s for s in facts.slides if s.state == "ok" or (s.state == "failed" and s.stage != "tile")]
    for split, purpose in (("train", "for training"), ("val", "that chose the epoch and set the threshold")):
        part = [s for s in tiled if s.split == split and s.has_label]
        if not part:
            lines.append("No slide of split val: the last epoch is kept." if split == "val" else "No slide.")
            continue
        patients = {facts.patients[s.slide_id] for s in part if s.slide_id in facts.patients}
        known = f"{len(patients)} known patients" if patients else "patients unknown"
        lines.append(f"{len(part)} slides {purpose}: {label_counts(part)}; {known}.")
        for column, site in facts.sites.items():
            counts = Counter(site[s.slide_id] for s in part if site[s.slide_id])
            if counts:
                lines.append(f"By {column}: {', '.join(f'{n} ({c})' for n, c in sorted(counts.items()))}.")
    if facts.is_synthetic:
        lines.append("All slides are synthetic (drawn by a program): the figures say nothing about real tissue.")
    return tuple(lines)


def _figures(evaluation: Evaluation | None, split: str) -> tuple[str, ...]:
    if evaluation is None or (evaluation.slides is None and evaluation.localisation is None and not evaluation.tasks):
        return ("Not measured in this run.",)
    lines = []
    if (slides := evaluation.slides) is not None:
        m = slides.metrics
        lines = [
            f"Split {split}: area under the ROC curve {_text(m['auc'])}, {m['auc'].positives} positive and "
            f"{m['auc'].negatives} negative slides.",
            f"At the threshold {slides.threshold:.3g} ({slides.threshold_from}): sensitivity "
            f"{_text(m['sensitivity'])}, specificity {_text(m['specificity'])}.",
        ]
        with_auc = [g for g in slides.subgroups if g.auc is not None]
        if len(with_auc) > 1:
            worst = min(with_auc, key=lambda g: g.auc.value if g.auc else 1.0)
            lines.append(f"Lowest of its groups: {worst.name} {worst.value}, area {_text(worst.auc)}.")
    if (where := evaluation.localisation) is not None and where.lesions_by_peaks is not None:
        curve = where.lesions_by_peaks
        lines.append(f"Lesions: FROC score {curve.score:.3f} on {curve.lesions} lesions of {curve.slides} slides.")
    lines += [f"Task {t.name}: {_text(t.accuracy)} of {t.slides} slides entirely right." for t in evaluation.tasks]
    return tuple(lines)


def _limits(facts: CardFacts) -> tuple[str, ...]:
    evaluation = facts.evaluation
    lines = _limits_of_figures(evaluation.slides) if evaluation and evaluation.slides else []
    lines += _limits_of_sites(facts)
    if facts.trained_here and not facts.is_synthetic:
        lines.append("It has not seen stains, scanners, organs or treatment effects that its training slides lack.")
    if evaluation and evaluation.tissue and evaluation.tissue["lost"]:
        lost, lesions = evaluation.tissue["lost"], evaluation.tissue["lesions"]
        lines.append(f"{lost:.0f} of {lesions:.0f} annotated lesions never reach it: lost in segmentation or tiling.")
    return tuple(lines)


def _limits_of_figures(slides: SlideEvaluation) -> list[str]:
    lines, c = [], slides.confusion
    fewest = min(c.true_positive + c.false_negative, c.true_negative + c.false_positive)
    if fewest < FEW_OF_A_CLASS:
        lines.append(f"Measured on few slides, {fewest} of the rarer class: read every figure with its wide interval.")
    if slides.threshold_from == "default":
        lines.append("Too few validation slides to set a threshold: 0.5 is a default, not a recommendation.")
    if slides.patients is None:
        lines.append("Patients are unknown: slides count as independent, and intervals may be too narrow.")
    sizes = {group.value for group in slides.subgroups if group.name == LARGEST_LESION}
    untested = [name for name in SIZES if sizes and name not in sizes]
    if untested:
        lines.append(f"No slide here has its largest lesion in class {', '.join(untested)}: not tested.")
    return lines


def _limits_of_sites(facts: CardFacts) -> list[str]:
    lines = []
    for column in (name for name in SITE_COLUMNS if name in facts.sites):
        site = facts.sites[column]
        trained, tested = (
            {site[s.slide_id] for s in facts.slides if s.split == split} - {""} for split in ("train", facts.split)
        )
        if not tested:
            continue
        new = sorted(tested - trained)
        lines.append(
            f"By {column}, tested also on some it was not trained on: {', '.join(new)}."
            if new
            else f"By {column}, tested only on those it was trained on: its performance on others is unknown."
        )
    return lines or ["The manifest names no centre or scanner: performance on slides of others is unknown."]


def _text(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:.3f} (95 % {found.low:.3f} to {found.high:.3f})"
