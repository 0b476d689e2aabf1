"""Stage ``features``: store the embedding of every tile by the untrained or another tool's encoder.

Features are computed slide by slide in processes of the cluster (:func:`features_job`). Feature files of CLAM and
TRIDENT are read and written here too, also CLAM's bare tensors, which need torch.
"""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_ips.cluster.jobs import spread, timeout_s
from wsi_ips.cluster.process import Job
from wsi_ips.config import ComputeSection
from wsi_ips.errors import CheckpointError, FeaturesError
from wsi_ips.manifest.slide_record import SlideRecord
from wsi_ips.model.encoder import IMPORTED, Encoder
from wsi_ips.pipeline.feature_source import FeaturePlan, FeatureSource, feature_source
from wsi_ips.pipeline.progress import Progress
from wsi_ips.pipeline.read_cohort import slide_stem
from wsi_ips.pipeline.run_slides import RunSlides
from wsi_ips.pipeline.slide_states import StateTable
from wsi_ips.provenance import atomic_path
from wsi_ips.scanning import ChunkLimit, choose_device, embed_tiles
from wsi_ips.tiles.feature_store import write_features
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.interop.coordinate_import import read_foreign
from wsi_ips.tiles.interop.feature_tables import (
    TENSOR,
    ForeignFeatures,
    foreign_features,
    read_foreign_features,
    rows_of_tiles,
)
from wsi_ips.tiles.interop.tile_formats import write_foreign_features
from wsi_ips.tiles.stream import SlideTiles
from wsi_ips.training.model_building import encoder_fingerprint, frozen_encoder
from wsi_ips.training.tile_choice import augmented_patches

FEATURES_JOB = f"{__name__}:features_job"


def features_stage(
    plan: FeaturePlan,
    slides: RunSlides,
    states: StateTable,
    compute: ComputeSection,
    progress: Progress,
    names: Sequence[str] = (),
) -> int:
    """Store the features of all slides with tiles (or of some) that are not up to date; return the number worked on."""
    records = slides.named(names) or slides.records
    source = feature_source(plan, slides)
    records = states.with_tiles(records)
    for record in records:
        # A block with other bytes is noticed when it is read: by a stage that then failed on the slide.
        if states[record.slide_id].state == "failed" and source.has(record) and source.is_damaged(record):
            shutil.rmtree(source.folder / record.slide_id)
    due = [record for record in records if not source.has(record)]
    if due and source.files is not None:
        _import_files(source, due, states, progress)
    elif due:
        compute_features(source, due, states, compute, progress)
    if due:
        states.save()
    return len(due)


def _import_files(source: FeatureSource, due: Sequence[SlideRecord], states: StateTable, progress: Progress) -> None:
    """Bring features of another tool into the order of the tiles; a slide whose file does not fit fails alone."""
    with progress.stage("features of another tool", len(due), "slides") as advance:
        for record in due:

            def work(record: SlideRecord = record) -> None:
                # Earlier features came from another file: scores must not rest on them if this file is refused.
                shutil.rmtree(source.folder / record.slide_id, ignore_errors=True)
                index = source.slides.index(record)
                foreign = read_features_of(source.file(record), record)
                rows = rows_of_tiles(foreign, index)
                write_features(
                    source.folder,
                    record.slide_id,
                    [foreign.values[rows]],
                    encoder=f"{IMPORTED}{foreign.encoder}",
                    fingerprint=source.wanted(record),
                    tiles=len(index),
                )

            states.fence(record.slide_id, "features", work)
            advance(1)


def compute_features(
    source: FeatureSource, due: Sequence[SlideRecord], states: StateTable, compute: ComputeSection, progress: Progress
) -> None:
    """Compute features, the largest slides first, in processes that keep their encoder."""
    model, began = source.plan.model, time.monotonic()
    if not (model.pretrained or model.weights or model.start):
        progress.note(
            f"encoder {model.encoder} has no weights: these are features of an untrained network; set "
            "`model.pretrained`, `model.weights` or `model.start`"
        )
    ordered = sorted(due, key=lambda record: -(states[record.slide_id].tiles or 0))
    jobs, tiles = [], 0
    for record in ordered:
        task = FeaturesTask(replace(source, slides=source.slides.alone(record)), compute)
        limit = timeout_s(compute, states[record.slide_id].tiles or 0)
        jobs.append(Job(record.slide_id, FEATURES_JOB, task, timeout_s=limit))
    with (
        progress.stage("features", len(jobs), "slides") as advance,
        spread(_one_per_gpu(compute), jobs) as outcomes,
    ):
        for outcome in outcomes:
            if outcome is not None:
                states.record(outcome, "features")
                tiles += outcome.result.value or 0
                advance(1)
    seconds = time.monotonic() - began
    progress.note(f"features of {tiles} tiles in {seconds:.0f} s, {tiles / max(seconds, 1e-3):.0f} a second")


def _one_per_gpu(compute: ComputeSection) -> ComputeSection:
    """Return settings with one process for each GPU of this machine: several would each need its memory."""
    device = choose_device(compute.device)
    if compute.scheduler is not None or compute.workers is not None or device.type != "cuda":
        return compute
    return compute.model_copy(update={"workers": torch.cuda.device_count() if device.index is None else 1})


@dataclass(frozen=True)
class FeaturesTask:
    """One slide to compute."""

    source: FeatureSource  # of this slide alone
    compute: ComputeSection


def features_job(task: FeaturesTask) -> int:
    """Compute a slide's features unless they are stored already; return the number of tiles embedded."""
    source = task.source
    with source.slides as slides:
        (record,) = slides.records
        if source.has(record):
            return 0
        encoder, tiles = _encoder(task), slides.tiles(record)
        limit, device, prepare = ChunkLimit(task.compute.chunk_size), encoder.mean.device, None
        if (view := source.view) is not None:
            prepare = augmented_patches(view.strengths, device, lambda _, tiles: view.keys(record.slide_id, tiles))
        embedded = embed_tiles(encoder, tiles, compute=task.compute, limit=limit, prepare=prepare)
        write_features(
            source.folder,
            record.slide_id,
            _of_same_content(source.slides, record, tiles, embedded),
            encoder=encoder.spec.name,
            fingerprint=source.wanted(record),
            tiles=len(tiles.index),
        )
        return len(tiles.index)


def _of_same_content(
    slides: RunSlides, record: SlideRecord, tiles: SlideTiles, parts: Iterable[NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    """Yield the parts, and refuse the last where the slide's file has changed by then."""
    yield from parts
    slides.require_same_content(record, tiles.index.slide_identity)


_kept: dict[str, Encoder] = {}  # the encoder of this process by its fingerprint, kept for the next slide; one at most


def _encoder(task: FeaturesTask) -> Encoder:
    from wsi_ips.pipeline.predict_stage import own_device

    wanted, plan = task.source.encoder, task.source.plan
    if wanted not in _kept:
        _kept.clear()
        encoder = frozen_encoder(plan.model, seed=plan.seed, patch_px=plan.patch_px)
        if encoder_fingerprint(encoder) != wanted:
            raise CheckpointError(
                f"encoder {encoder.spec.name} has other weights here than where the command runs: install the same "
                "versions of torch and timm, and the same weights, where the workers run"
            )
        _kept[wanted] = encoder.to(own_device(task.compute.device))
    return _kept[wanted]


def read_features_of(path: Path, record: SlideRecord) -> ForeignFeatures:
    """Read the features of a slide from ``.h5`` of CLAM or TRIDENT, or ``.pt`` of CLAM, rows as in its coordinates."""
    if path.suffix != TENSOR:
        return read_foreign_features(path)
    if record.coordinates is None:
        raise FeaturesError(
            f"{path}: a bare tensor does not say which row is which tile; import the coordinates too "
            "(`tiles.imported`), or give CLAM's folder `h5_files`"
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise FeaturesError(f"{path}: cannot be read as a tensor ({error})") from error
    if not isinstance(values, torch.Tensor):
        raise FeaturesError(f"{path}: holds {type(values).__name__}; a bare tensor is expected, as CLAM writes it")
    return foreign_features(path, values.float().numpy(), read_foreign(record.coordinates).corners_px0)


def write_features_of(to: Path, record: SlideRecord, index: TileIndex, source: FeatureSource, kind: str) -> Path | None:
    """Write a slide's stored features for another tool; return the feature file, None where there is no tile."""
    if not len(index):
        return None
    if not source.has(record):
        raise FeaturesError(
            f"slide {record.slide_id}: no features of these tiles; run `wsi-ips run --until features`",
            slide_id=record.slide_id,
        )
    features = source.tiles(record).features
    values = features.rows(np.arange(features.tiles)).astype(np.float32)  # (N, F)
    path = write_foreign_features(to, index, values, kind=kind, name=slide_stem(record), encoder=source.key)
    if path is not None and kind == "clam":
        with atomic_path(path.parent.parent / "pt_files" / path.with_suffix(TENSOR).name) as temporary:
            torch.save(torch.from_numpy(values), temporary)
    return path
