"""The way of a cohort from the manifest to the figures, with what was lost on it and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from wsi_ips.manifest import SlideRecord
from wsi_ips.pipeline.run import Run
from wsi_ips.results import FlowStep, Loss


def cohort_flow(run: Run, predicted: Collection[str], split: str) -> tuple[FlowStep, ...]:
    """Steps from all slides of the manifest to those that figures rest on.

    Parameters
    ----------
    run
        After prediction.
    predicted
        Ids of the slides that were predicted.
    split
        Slides that figures rest on.
    """
    left = list(run.records)
    steps = [FlowStep("in the manifest", len(left), note=_parts(left))]

    def step(
        name: str, stays: Callable[[SlideRecord], bool], why: Callable[[SlideRecord], str], note: str = ""
    ) -> None:
        nonlocal left
        gone: dict[str, list[str]] = {}
        for record in left:
            if not stays(record):
                gone.setdefault(why(record), []).append(record.slide_id)
        left = [record for record in left if stays(record)]
        losses = tuple(Loss(reason, tuple(names)) for reason, names in gone.items())
        steps.append(FlowStep(name, len(left), losses, note or _parts(left)))

    def failed(record: SlideRecord) -> str:
        state = run.states[record.slide_id]
        return "not worked on yet" if state.state == "pending" else f"failed in stage {state.stage or 'tile'}"

    step("readable", run.is_done, failed)
    step("with tissue", lambda r: bool(run.states[r.slide_id].tissue_mm2 or _tiles(run, r)), lambda _: "without tissue")
    step("with tiles", lambda r: _tiles(run, r) > 0, lambda _: "with tissue but no tile of it")
    steps.extend(_learned(run, left))
    wanted = (*run.recipe.predict.splits, None)
    left = [r for r in left if r.split in wanted or r.slide_id in predicted]
    step(
        "predicted",
        lambda r: r.slide_id in predicted,
        lambda r: failed(r) if run.states[r.slide_id].state == "failed" else "not predicted yet",
    )
    left = [r for r in left if r.split == split]
    if left:
        step(
            f"measured (split {split})",
            lambda r: run.truth(r) is not None,
            lambda _: "without a label",
            note=_labels(run, left),
        )
    return tuple(steps)


def _tiles(run: Run, record: SlideRecord) -> int:
    return run.states[record.slide_id].tiles or 0


def _learned(run: Run, records: Sequence[SlideRecord]) -> list[FlowStep]:
    """Slides the model learned from; none where it was trained elsewhere."""
    if run.recipe.predict.checkpoint is not None:
        return []
    train = [r for r in records if r.split == "train"]
    labelled = [r for r in train if any(truth is not None for truth in run.truths[r.slide_id])]
    used = [r for r in labelled if run.states[r.slide_id].stage != "train"]
    losses = []
    if len(labelled) < len(train):
        names = tuple(r.slide_id for r in train if r not in labelled)
        losses.append(Loss("without a label", names))
    if len(used) < len(labelled):
        losses.append(Loss("whose tiles could not be read", tuple(r.slide_id for r in labelled if r not in used)))
    return [FlowStep("learned from (split train)", len(used), tuple(losses), _labels(run, used))] if train else []


def _parts(records: Sequence[SlideRecord]) -> str:
    """``30 train, 6 val, 24 test``."""
    counts: Counter[str] = Counter(r.split or "without a split" for r in records)
    order = ("train", "val", "test", "without a split")
    return ", ".join(f"{counts[name]} {name}" for name in order if counts[name])


def _labels(run: Run, records: Sequence[SlideRecord]) -> str:
    """``15 normal, 15 tumor``."""
    task = run.recipe.labels.tasks[0]
    counts = Counter(task.text(run.truth(r)) or "unlabelled" for r in records)
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
