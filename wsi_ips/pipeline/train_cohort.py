"""The slides that a training learns from, collected and checked, and what its model card says about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from wsi_ips.config import LabelsSection, ModelSection, PlannedTraining, Recipe, planned
from wsi_ips.errors import FeaturesError, RegionReadError, TrainingError
from wsi_ips.evaluation.slide_evaluation import SITE_COLUMNS
from wsi_ips.inference.preparation import preparation_of
from wsi_ips.labels import Task
from wsi_ips.manifest.manifest_csv import read_rows
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.checkpoint_card import ModelCard, checkpoint_fingerprint
from wsi_ips.pipeline.feature_source import FeatureSource
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_outlines import uses_outlines, with_truth
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.provenance import fingerprint, run_facts
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.training.model_building import EncoderPlan, new_card, plan_encoder
from wsi_ips.training.processes import Processes
from wsi_ips.training.settings import LabelledSlide


@dataclass(frozen=True)
class TrainingCohort:
    """Slides of a training, and what its model card says about them."""

    slides: RunSlides
    train: Sequence[SlideRecord]
    val: Sequence[SlideRecord]
    features: FeatureSource | None  # stored features of the slides; None for pixels
    level0_mpp: Mapping[str, float]  # µm/px of level 0 by slide_id, 0 where unknown
    fingerprint: str  # of the training

    @property
    def records(self) -> list[SlideRecord]:
        """Slides of both splits."""
        return [*self.train, *self.val]

    def labelled(self, records: Sequence[SlideRecord], *views: FeatureSource) -> list[LabelledSlide]:
        """Return slides to learn from, with their pixels, or features: those given, in turn, else those of the run."""
        sources = views or (() if self.features is None else (self.features,))
        ways: list[Callable[[SlideRecord], SlideTiles]] = [*(source.tiles for source in sources)]
        ways = ways or [self.slides.tiles]
        return [
            LabelledSlide(ways[0](r), self.slides.targets[r.slide_id], tuple(way(r) for way in ways[1:]))
            for r in records
        ]

    def to_learn_from(
        self,
        training: PlannedTraining,
        tasks: Sequence[Task],
        note: Callable[[str], None],
        processes: Processes,
        *views: FeatureSource,
    ) -> list[LabelledSlide]:
        """Return the training slides, with what their outlines say of single tiles where that is asked for."""
        slides = self.labelled(self.train, *views)
        if not uses_outlines(training):
            return slides
        known = processes.attempt(
            partial(with_truth, slides, self.train, tasks, note, self.slides.tiling.tiles.annotation_classes)
        )
        processes.gather()  # an error is raised in all processes
        return known or []

    def encoder_plan(self, section: ModelSection) -> EncoderPlan:
        """Return how to build the encoder; that of imported features is another tool's."""
        plan = plan_encoder(section)
        if self.features is not None and self.features.files is not None:
            return plan.with_features_of(*self.features.of_one_encoder(self.records))
        return plan

    def card(self, recipe: Recipe, plan: EncoderPlan) -> ModelCard:
        """Return the card of the model to train."""
        return replace(
            new_card(recipe.model, recipe.tiles, recipe.labels.tasks, plan),
            model_id=f"{recipe.name}-{self.fingerprint[:8]}",
            fingerprint=self.fingerprint,
            preparation=preparation_of(recipe.tiling, imported=any(r.coordinates is not None for r in self.records)),
            training=training_facts(recipe, self),
        )


def training_cohort(
    recipe: Recipe,
    slides: RunSlides,
    features: FeatureSource | None,
    states: StateTable,
    progress: Progress,
    processes: Processes,
) -> TrainingCohort:
    """Collect the slides to learn from: labelled, with tiles (and features) that no earlier training failed to read."""

    def usable(split: str) -> list[SlideRecord]:
        tiled = states.with_tiles(r for r in slides.records if r.split == split and slides.has_label(r))
        readable = [r for r in tiled if states[r.slide_id].stage != "train"]
        return [r for r in readable if features is None or features.has(r)]

    train, val = usable("train"), usable("val")
    allowed = recipe.training.max_missing_share
    processes.attempt(partial(_require_enough, slides, train, allowed, progress.note))
    wanted = _fingerprint(recipe, slides, [*train, *val], features)
    scales = {r.slide_id: states[r.slide_id].mpp or 0 for r in (*train, *val)}
    wanted = processes.same(wanted, "training (recipe, labels or tiles)")
    return TrainingCohort(slides, train, val, features, scales, wanted)


def _require_enough(
    slides: RunSlides, train: Sequence[SlideRecord], allowed: float, note: Callable[[str], None]
) -> None:
    """Refuse a training where more than the ``allowed`` share of the slides yielded no tile."""
    listed = [r for r in slides.records if r.split == "train" and slides.has_label(r)]
    if not listed:
        raise TrainingError(
            f"manifest {slides.manifest}: no slide has split `train` and a label; fill both columns, or set "
            "`predict.checkpoint` to use a trained model"
        )
    missing = sorted({r.slide_id for r in listed} - {r.slide_id for r in train})
    share = len(missing) / len(listed)
    if missing:
        note(f"{len(missing)} of {len(listed)} training slides yielded no tile: {', '.join(missing[:10])}")
    if share > allowed:
        raise TrainingError(
            f"{len(missing)} of {len(listed)} training slides ({share:.0%}) yielded no tile, more than "
            f"`training.max_missing_share` allows ({allowed:.0%}): {', '.join(missing[:10])}; see `wsi-ips status` "
            "for the reasons, repair the slides or raise the limit"
        )


def _fingerprint(
    recipe: Recipe, slides: RunSlides, records: Sequence[SlideRecord], features: FeatureSource | None
) -> str:
    learned = [slides.header(r).fingerprint if features is None else features.wanted(r) for r in records]
    inputs = sorted(
        (r.slide_id, str(slides.targets[r.slide_id]), r.split, tiles, *([r.outlines] if r.outlines else []))
        for r, tiles in zip(records, learned, strict=True)
    )
    start = [checkpoint_fingerprint(recipe.model.start)] if recipe.model.start else []
    return fingerprint("train", recipe.model, recipe.training, recipe.labels, recipe.seed, inputs, *start)


def training_facts(recipe: Recipe, cohort: TrainingCohort) -> dict[str, Any]:
    """Return what the model card says about a model's slides and its training, as plain JSON.

    ``slides``: per split the number of slides, of patients (None if unknown) and, per task, of slides of each class;
    ``places``: per split and site column its values with their slides; ``level0_mpp``: µm/px of level 0 with their
    slides; ``made``: time, versions, commit; ``recipe``: sections model and training, seed.
    """
    rows = read_rows(cohort.slides.manifest, label_column=recipe.labels.column)
    cells = {row.cells["slide_id"]: row.cells for row in rows}
    splits, facts = {"train": cohort.train, "val": cohort.val}, run_facts()
    return {
        "slides": {name: _counted(recipe.labels, cohort.slides, records) for name, records in splits.items()},
        "places": {
            name: {
                column: dict(Counter(cells[r.slide_id][column] or "(empty)" for r in records))
                for column in SITE_COLUMNS
                if records and column in cells[records[0].slide_id]
            }
            for name, records in splits.items()
        },
        "level0_mpp": dict(Counter(f"{cohort.level0_mpp[r.slide_id]:.4g}" for r in cohort.records)),
        "made": {name: facts[name] for name in ("time", "wsi_ips", "commit", "python", "libraries")},
        "recipe": {
            "seed": recipe.seed,
            "model": recipe.model.model_dump(mode="json", exclude={"weights"}),
            "training": planned(recipe.training, len(cohort.train)).model_dump(mode="json"),
        },
    }


def _counted(labels: LabelsSection, slides: RunSlides, records: Sequence[SlideRecord]) -> dict[str, Any]:
    patients = {r.patient_id for r in records if r.patient_id}
    classes: dict[str, dict[str, int]] = {}
    for number, task in enumerate(labels.tasks):
        texts = [task.format(slides.targets[r.slide_id][number]) or "(not known)" for r in records]
        classes[task.name] = dict(sorted(Counter(texts).items()))
    return {"slides": len(records), "patients": len(patients) or None, "classes": classes}


def leave_out(
    error: RegionReadError | FeaturesError, states: StateTable, progress: Progress, processes: Processes
) -> None:
    """Mark the slide that cannot be read as failed, in all processes, so that training can start again without it."""
    if error.slide_id is None:
        raise error
    with processes.ahead() as is_first:
        if is_first:
            states.fail(error.slide_id, "train", error)
            states.save()
    if not is_first:
        states.reload()
    progress.note(f"slide {error.slide_id} cannot be read; training starts again without it: {error}")
