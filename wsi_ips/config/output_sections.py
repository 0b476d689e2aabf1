"""Recipe sections about results and resources: prediction, heatmaps, hand-off, compute and tracking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from wsi_ips.config.choices import listed_in
from wsi_ips.config.key_types import Positive, RecipePath, Section, Share, once
from wsi_ips.labels import Split


class PredictSection(Section):
    """Which slides are predicted, and with which model."""

    splits: tuple[Split, ...] = Field(
        ("val", "test"), description="predict slides of these splits, and always slides without a split"
    )
    checkpoint: RecipePath | None = Field(None, description="folder of a trained model to use instead of training one")
    decision: Literal["pooled", "tiles"] = Field(
        "pooled",
        description="how a slide is classified: `pooled`, as the network learned it, from the kept tiles; "
        "`tiles`, by the mean log-odds of the 8 highest tiles of a class: better on slides of other donors where "
        "we compared them, but its probabilities must be calibrated on validation slides. A model from elsewhere "
        "keeps its own way",
    )


class HeatmapSection(Section):
    """Heatmap pictures of the slides."""

    splits: tuple[Split, ...] = Field(
        ("test",), description="draw slides of these splits, and always slides without a split"
    )
    mpp: Positive = Field(4.0, description="scale of the picture, µm/px (coarser for large tissue)")
    maps: Annotated[tuple[Annotated[str, listed_in("score_maps")], ...], Field(min_length=1), AfterValidator(once)] = (
        Field(("probability", "attention"), description="score maps to draw; the first one is the main map")
    )


class HandoffSection(Section):
    """Files per slide for the programs that pathologists use."""

    formats: Annotated[tuple[Annotated[str, listed_in("handoff_formats")], ...], AfterValidator(once)] = Field(
        ("overlays", "ome-tiff", "geojson", "asap", "lesions", "gallery"),
        description="files in the package of a slide; `[]` makes no package",
    )
    threshold: Share = Field(
        0.5, description="outline tiles from this probability on as lesions; a threshold for tiles, not for slides"
    )


class ComputeSection(Section):
    """Speed and memory; these keys change results by rounding at most."""

    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` ...")
    readers: Annotated[int, Field(ge=1)] = Field(2, description="reading threads")
    chunk_size: Annotated[int, Field(ge=1)] = Field(256, description="patches scored at a time (I)")
    prefetch_chunks: Annotated[int, Field(ge=1)] = Field(2, description="chunks read ahead")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="precision of the encoder in the scan: `auto` is bf16 on a GPU that has it, else fp32; "
        "bf16 rounds scores to about three digits",
    )
    scan_backend: Annotated[str, listed_in("scan_backends")] = Field("auto", description="runs the encoder in the scan")
    gradient_precision: Literal["fp32", "auto", "bf16", "fp16"] = Field(
        "fp32",
        description="precision of the encoder where it learns; weights, attention and loss stay in fp32; "
        "`auto`: bf16 on a GPU that has it",
    )
    slides_at_once: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="slides of a step that are scanned and learned from together; with fewer than "
        "`training.batch_slides` gradients are accumulated, which takes less memory; empty = all",
    )
    gpu_memory_gb: Positive = Field(
        4.0,
        description="memory for the activations of a step with gradient, GB (main memory where there is no GPU); a "
        "step that needs more computes its gradient in two passes, a few patches at a time",
    )
    scheduler: Annotated[str, Field(pattern=r"^(slurm|[a-z]+://.+)$")] | None = Field(
        None,
        description="Dask scheduler that distributes slides for tiling, `tcp://host:8786`, or `slurm`; empty = none",
    )
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="slides tiled at a time on this machine, each in its own process; empty = one per core, "
        "fewer if memory is short; 0 = one after another in the process of the command, which a crash or hang then "
        "stops; with `slurm`: number of SLURM jobs",
    )
    predict_workers: Annotated[int, Field(ge=0)] = Field(
        0,
        description="slides predicted at a time, each in its own process with its own copy of the network, "
        "GPUs assigned in turn; 0 = one after another in the process of the command; with `scheduler` any number "
        "sends them there, with `slurm` it is the number of SLURM jobs",
    )
    worker_memory_gb: Positive | None = Field(
        None,
        description="resident memory that the process of a slide may use, GB; above it the process is "
        "stopped and the slide fails; empty = an equal share of 80 % of this machine, or of the Dask worker's limit",
    )
    slide_timeout_s: Positive = Field(
        1800.0,
        description="time limit for tiling a slide, s, after which it fails; with `predict_workers`: for "
        "each 1 000 tiles",
    )
    remote_timeout_s: Positive = Field(30.0, description="time limit of one attempt to read a slide behind a URL, s")


class TrackingSection(Section):
    """Where the figures of each epoch go, besides `metrics.jsonl` and TensorBoard; changes no result."""

    mlflow: str | None = Field(
        None,
        description="`local`: an SQLite file in the run folder; else an MLflow address such as "
        "`sqlite:////data/mlflow.db` or `http://server:5000` (extra `mlflow`); empty = none",
    )
