"""Recipe sections about results and resources: prediction, heatmaps, hand-off, compute and tracking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wsi_ips.config.key_types import Count, ListedIn, Once, Positive, RecipePath, Section, Share, Whole
from wsi_ips.labels import Split


class PredictSection(Section):
    """Slides to predict, and the model to use."""

    splits: tuple[Split, ...] = Field(("val", "test"), description="splits to predict, plus slides without a split")
    checkpoint: RecipePath | None = Field(None, description="folder of a trained model to use instead of training one")
    decision: Literal["pooled", "tiles"] = Field(
        "pooled",
        description="how a slide is classified: `pooled`, as the network learned it, from the kept tiles; `tiles`, by "
        "the mean log-odds of the 8 highest tiles of a class: better on slides of other donors where we compared them, "
        "but must be calibrated on validation slides. A model from elsewhere keeps its own rule",
    )


class HeatmapSection(Section):
    """Heatmap pictures of the slides."""

    splits: tuple[Split, ...] = Field(("test",), description="splits to draw, plus slides without a split")
    mpp: Positive = Field(4.0, description="scale of the picture, µm/px (coarser for large tissue)")
    maps: Annotated[tuple[Annotated[str, ListedIn("score_maps")], ...], Field(min_length=1), Once] = Field(
        ("probability", "attention"), description="score maps to draw; the first one is the main map"
    )


class HandoffSection(Section):
    """Files per slide for the programs that pathologists use."""

    formats: Annotated[tuple[Annotated[str, ListedIn("handoff_formats")], ...], Once] = Field(
        ("overlays", "ome-tiff", "geojson", "asap", "lesions", "gallery"),
        description="files in the package of a slide; `[]` makes no package",
    )
    threshold: Share = Field(0.5, description="lowest probability of a lesion's tiles; not the slides' threshold")


class ComputeSection(Section):
    """Speed and memory; these keys change results by rounding at most."""

    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` ...")
    readers: Count = Field(2, description="reading threads")
    chunk_size: Count = Field(256, description="patches scored at a time (I)")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of the encoder in the scan; `auto`: bf16 if the GPU supports it, else fp32; bf16 rounds scores to "
        "about three digits",
    )
    scan_backend: Annotated[str, ListedIn("scan_backends")] = Field("auto", description="runs the encoder in the scan")
    gradient_precision: Literal["fp32", "auto", "bf16", "fp16"] = Field(
        "fp32",
        description="of the encoder in training; the rest stays in fp32; `auto`: bf16 on a GPU that has it",
    )
    slides_at_once: Count | None = Field(
        None,
        description="slides of a step processed together; fewer than `training.batch_slides` take less memory, and "
        "gradients are accumulated; empty = all",
    )
    gpu_memory_gb: Positive = Field(
        4.0,
        description="memory for the activations of a training step, GB (main memory without a GPU); a step that needs "
        "more computes its gradient in two passes, a few patches at a time",
    )
    scheduler: Annotated[str, Field(pattern=r"^(slurm|[a-z]+://.+)$")] | None = Field(
        None, description="distributes slides: a Dask scheduler (`tcp://host:8786`), or `slurm`; empty = none"
    )
    workers: Whole | None = Field(
        None,
        description="slides tiled at a time, each in its own process; empty = one per core, fewer if memory is short; "
        "0 = one by one in the process of the command, which a crash or hang then stops; with `slurm`: number of jobs",
    )
    predict_workers: Whole = Field(
        0,
        description="slides predicted at a time, each in its own process with its own copy of the network, GPUs "
        "assigned in turn; 0 = one by one in the process of the command; with `slurm`: number of jobs; with another "
        "`scheduler`: any number sends them there",
    )
    worker_memory_gb: Positive | None = Field(
        None,
        description="memory that the process of a slide may use, GB; a slide that needs more fails; empty = an equal "
        "share of 80 % of this machine, or of the Dask worker's limit",
    )
    slide_timeout_s: Positive = Field(
        1800.0, description="time limit for tiling a slide, s; with `predict_workers`: for each 1 000 tiles"
    )
    remote_timeout_s: Positive = Field(30.0, description="time limit of one attempt to read a slide behind a URL, s")


class TrackingSection(Section):
    """Trackers for the figures of each epoch, besides `metrics.jsonl` and TensorBoard; changes no result."""

    mlflow: str | None = Field(
        None,
        description="`local`: an SQLite file in the run folder; else an MLflow address such as "
        "`sqlite:////data/mlflow.db` or `http://server:5000` (extra `mlflow`); empty = none",
    )
