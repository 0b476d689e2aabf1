"""The model card: what a model is for, what it learned from, how well it does, and where nothing is known of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from wsi_ips.evaluation import Evaluation, Interval, Subgroup
from wsi_ips.inference.decision import DECIDING_TILES
from wsi_ips.model.card import ModelCard
from wsi_ips.model.card_text import licence_text, origin_text, training_text
from wsi_ips.pipeline.demo_slides import is_synthetic
from wsi_ips.pipeline.evaluation.evaluate import LARGEST_LESION, SITE_COLUMNS, manifest_cells
from wsi_ips.pipeline.prediction.scored import model_calibration
from wsi_ips.pipeline.run import Run
from wsi_ips.results import CardSection

FEW_OF_A_CLASS = 50
"""Fewer test slides of a class are told."""


def model_card(run: Run, card: ModelCard, evaluation: Evaluation | None, split: str) -> tuple[CardSection, ...]:
    """The card of a run's model, after Mitchell et al. (FAccT 2019), from what the run knows; nothing is made up."""
    return (
        CardSection("Intended use", _use(card)),
        CardSection("What it is", _what(run, card)),
        CardSection("What it learned from", _learned(run)),
        CardSection("How well it does", _figures(evaluation, split)),
        CardSection("Limits", _limits(run, evaluation, split)),
        CardSection("Licences", (licence_text(card),)),
    )


def _use(card: ModelCard) -> tuple[str, ...]:
    asked = "; ".join(f"{task.name} ({', '.join(task.classes)})" for task in card.tasks)
    return (
        f"Research on whole-slide images like those it learned from. It answers: {asked}.",
        "Research use only: not a medical device, not for diagnosis, not for decisions about a patient. What a "
        "pathologist sees comes first.",
        "Heatmaps show where the model reacts. They are no outlines of tumour; what is pale on them is not cleared.",
    )


def _what(run: Run, card: ModelCard) -> tuple[str, ...]:
    decision = model_calibration(run).tasks[0].decision
    rests = (
        f"the {card.memory_size} tiles of the highest score"
        if decision == "pooled"
        else f"the {DECIDING_TILES} tiles that speak most for a class, each alone (`predict.decision: tiles`)"
    )
    started = f", {origin}" if (origin := origin_text(card)) else ""
    return (
        f"Model {card.model_id}: encoder {card.encoder.name}{started}; pooling `{card.pooling}`, {card.heads} heads.",
        f"{training_text(card)}: the answer of a slide rests on {rests}.",
        f"Tiles of {card.patch_px} px at {card.patch_mpp:g} µm/px, {card.patch_px * card.patch_mpp:.0f} µm wide; "
        "slides are brought to this scale from a finer level, never from a coarser one.",
    )


def _learned(run: Run) -> tuple[str, ...]:
    if run.recipe.predict.checkpoint is not None:
        return ("It was trained elsewhere; this run does not know on what. See the card of its own training.",)
    lines = []
    task = run.recipe.labels.tasks[0]
    cells = manifest_cells(run)
    for name, what in (("train", "it learned from"), ("val", "that chose the epoch and fix the threshold")):
        part = [r for r in run.with_tiles() if r.split == name and any(t is not None for t in run.truths[r.slide_id])]
        if not part:
            lines.append(f"No slide of split {name}: the last epoch is kept." if name == "val" else "No slide.")
            continue
        labels = Counter(task.text(run.truth(r)) or "unlabelled" for r in part)
        patients = {r.patient_id for r in part if r.patient_id}
        text = f"{len(part)} slides {what}: {', '.join(f'{c} {n}' for n, c in sorted(labels.items()))}"
        lines.append(text + (f"; {len(patients)} patients named" if patients else "; patients not named") + ".")
        for column in SITE_COLUMNS:
            sites = Counter(cells[r.slide_id].get(column, "") for r in part) - Counter({"": len(part)})
            if sites:
                lines.append(f"By {column}: {', '.join(f'{n} ({c})' for n, c in sorted(sites.items()))}.")
    if is_synthetic(run.recipe.manifest):
        lines.append(
            "All slides are synthetic: drawn by a program, with planted tumour. Nothing follows for real tissue."
        )
    return tuple(lines)


def _figures(evaluation: Evaluation | None, split: str) -> tuple[str, ...]:
    if evaluation is None or (evaluation.slides is None and evaluation.localisation is None and not evaluation.tasks):
        return ("Not measured in this run.",)
    lines = []
    if (slides := evaluation.slides) is not None:
        m = slides.metrics
        lines = [
            f"Split {split}: area under the ROC curve {_text(m['auc'])}, {m['auc'].positives} slides with and "
            f"{m['auc'].negatives} without.",
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
    lines += [f"Task {t.name}: {_text(t.accuracy)} of {t.slides} slides wholly right." for t in evaluation.tasks]
    return tuple(lines)


def _limits(run: Run, evaluation: Evaluation | None, split: str) -> tuple[str, ...]:
    lines = []
    slides = evaluation.slides if evaluation else None
    if slides is not None:
        c = slides.confusion
        fewest = min(c.true_positive + c.false_negative, c.true_negative + c.false_positive)
        if fewest < FEW_OF_A_CLASS:
            lines.append(f"Measured on few slides, {fewest} of the rarer class: the intervals are wide, believe them.")
        if slides.threshold_from == "default":
            lines.append(
                "Too few validation slides to fix a threshold: that of 0.5 is a default and no recommendation."
            )
        if slides.patients is None:
            lines.append("Patients are not named: slides count as independent, and intervals may be too narrow.")
        lines += _untested_sizes(slides.subgroups)
    lines += _sites(run, split)
    if not is_synthetic(run.recipe.manifest) and not run.recipe.predict.checkpoint:
        lines.append("Whatever its training slides lack (stains, scanners, organs, treatment effects) it has not seen.")
    if evaluation is not None and evaluation.tissue and evaluation.tissue["lost"]:
        lost, lesions = evaluation.tissue["lost"], evaluation.tissue["lesions"]
        lines.append(f"{lost:.0f} of {lesions:.0f} annotated lesions never reach it: lost in segmentation or tiling.")
    return tuple(lines)


def _untested_sizes(groups: Sequence[Subgroup]) -> list[str]:
    sizes = {group.value for group in groups if group.name == LARGEST_LESION}
    untested = [name for name in ("ITC", "micro", "macro") if sizes and name not in sizes]
    return [f"No slide here has its largest lesion in class {', '.join(untested)}: not tested."] if untested else []


def _sites(run: Run, split: str) -> list[str]:
    cells, lines = manifest_cells(run), []
    for column in SITE_COLUMNS:
        by_part = {
            part: {cells[r.slide_id].get(column, "") for r in run.records if r.split == part} - {""}
            for part in ("train", split)
        }
        if not by_part[split]:
            continue
        new = sorted(by_part[split] - by_part["train"])
        if new:
            lines.append(f"By {column}, tested on some it did not learn from: {', '.join(new)}.")
        else:
            lines.append(f"By {column}, tested only on those it learned from: nothing is known of others.")
    return lines or ["The manifest names no centre or scanner: how it does on those of others is not known."]


def _text(found: Interval | None) -> str:
    return "–" if found is None else f"{found.value:.3f} (95 % {found.low:.3f} to {found.high:.3f})"
