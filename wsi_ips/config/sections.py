"""The recipe's sections, one per stage: every key with its meaning, unit and default."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from wsi_ips.config.choices import listed_in
from wsi_ips.config.key_types import RecipePath
from wsi_ips.labels import NONE, SEPARATOR, Task
from wsi_ips.registry import registry

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Jitter = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Split = Literal["train", "val", "test"]
Leak = Literal["patient", "content", "thumbnail"]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SlidesSection(Section):
    """How slides are opened."""

    reader: Annotated[str, listed_in("readers")] = Field("auto", description="how slides are opened and decoded")


class TissueSection(Section):
    """How tissue is told from glass on a thumbnail."""

    mpp: Positive = Field(8.0, description="scale of the thumbnail, µm/px")
    min_saturation: Share = Field(0.06, description="lowest saturation (0-1) that counts as stain, whatever Otsu finds")
    min_area_um2: Annotated[float, Field(ge=0)] = Field(
        40_000.0, description="tissue pieces below this area are dropped, µm²"
    )
    max_hole_um2: Annotated[float, Field(ge=0)] = Field(20_000.0, description="holes up to this area are filled, µm²")
    method: Literal["auto", "otsu", "adaptive", "stain"] = Field(
        "auto",
        description="`auto`: Otsu on saturation, then the noise of the slide's own glass, then density, the first that "
        "can be trusted; else only that one",
    )

    def segmentation(self) -> dict[str, Any]:
        """Return the keyword arguments of :class:`wsi_ips.tissue.TissueRules`."""
        return self.model_dump(exclude={"mpp"})


class TilesSection(Section):
    """Where tiles lie and at what scale their pixels are read."""

    mpp: Positive = Field(0.5, description="scale of the patches, µm/px; never upsampled")
    patch_px: Annotated[int, Field(ge=8, le=4096)] = Field(256, description="side of a patch, px")
    stride_px: Annotated[int, Field(ge=1)] | None = Field(
        None, description="step between tiles in patch px; empty = patch_px (no overlap)"
    )
    min_tissue_fraction: Share = Field(0.25, description="tiles with less tissue are left out")
    exclude_flags: tuple[Literal["pen", "blur", "fold", "bubble"], ...] = Field(
        ("pen",), description="tiles with one of these flags are left out of the index"
    )
    store: Literal["zarr", "hdf5"] = Field("zarr", description="format of the tile index")
    imported: RecipePath | None = Field(
        None,
        description="folder with tile coordinates of another tool, used instead of our own tiles; `mpp` and `patch_px` "
        "must be theirs",
    )
    shared: RecipePath | None = Field(
        None, description="another run folder, whose tiles are used and completed instead of making them again"
    )
    location: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://.+\.(zarr|h5)$")] | None = Field(
        None,
        description="URL of the tile index (`s3://bucket/cohort.zarr`, or `.h5`); empty = in the run folder",
    )

    @property
    def stride(self) -> int:
        """Step between tiles in patch pixels."""
        return self.patch_px if self.stride_px is None else self.stride_px


class Question(Section):
    """What is asked of a slide: its classes, and whether one or several of them hold."""

    classes: tuple[str, ...] = Field(..., description="all classes")
    kind: Literal["single", "multi"] = Field(
        "single",
        description="`single`: one class holds; `multi`: any of them, written `a;b` in the manifest, `none` where none "
        "holds",
    )

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        least = 2 if self.kind == "single" else 1
        if len(self.classes) < least or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"needs at least {least} class name{'s' * (least - 1)}, all different")
        if not all(name.strip() == name != "" for name in self.classes):
            raise ValueError("class names are neither empty nor begin or end with a blank")
        if self.kind == "multi" and any(SEPARATOR in name or name == NONE for name in self.classes):
            raise ValueError(f"with `kind: multi` no class is called `{NONE}` or holds `{SEPARATOR}`")
        return self


class FurtherTask(Question):
    """One more question to the same slides; it has a query of its own."""

    column: str | None = Field(None, description="manifest column; empty = the task's name")


class LabelsSection(Question):
    """Which manifest column is learned, and the order of its classes."""

    column: str = Field("label", description="manifest column with the slide label")
    classes: tuple[str, ...] = Field(
        ("normal", "tumor"), description="all classes; the last one is the positive class of the heatmap"
    )
    further: dict[TaskName, FurtherTask] = Field(
        default_factory=dict, description="more tasks, learned together with the label: name, then `classes`, `kind`"
    )
    map: dict[str, str | None] = Field(
        default_factory=dict,
        description="what a label of the manifest counts as, where it is no class itself: `{itc: null, micro: tumor}`; "
        "null = not known, so the slide is only predicted",
    )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The label, then the further tasks in order."""
        further = (Task(name, task.classes, task.kind) for name, task in self.further.items())
        return (Task("label", self.classes, self.kind), *further)

    @property
    def columns(self) -> tuple[str, ...]:
        """Manifest column of each task."""
        return (self.column, *(task.column or name for name, task in self.further.items()))

    def meaning(self, label: str | None) -> str | None:
        """A label of the manifest as `map` has it."""
        return label if label is None else self.map.get(label, label)

    @model_validator(mode="after")
    def _mapped_to_classes(self) -> Self:
        odd = [f"{name}: {to}" for name, to in self.map.items() if to is not None and to not in self.classes]
        if odd:
            raise ValueError(f"`map`: {', '.join(odd)} is no class; they are {', '.join(self.classes)}")
        return self

    @model_validator(mode="after")
    def _label_is_taken(self) -> Self:
        if "label" in self.further:
            raise ValueError("`further`: the first task is called `label` already; give another name")
        return self


class SplitSection(Section):
    """Which slides are learned from and which are only measured."""

    file: RecipePath | None = Field(
        None, description="splits made by `wsi-ips split` (.json, .csv); empty = column `split` of the manifest"
    )
    fold: Annotated[int, Field(ge=0)] = Field(0, description="which fold of the file, from 0")
    val_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of the training slides that validates instead, whole patients, labels in proportion; only "
        "where no slide has split `val`",
    )
    allow: tuple[Leak, ...] = Field(
        (),
        description="what may be in two parts without an error: slides of one `patient`, files of the same `content`, "
        "slides whose `thumbnail` looks alike",
    )


class ModelSection(Section):
    """Encoder and cross-attention pooling."""

    input: Literal["pixels", "features"] = Field(
        "pixels",
        description="what is learned from: `pixels`, and the encoder learns too; `features`, what the encoder as it "
        "comes makes of every tile, computed once and stored, so that training takes minutes",
    )
    start: RecipePath | None = Field(
        None,
        description="folder of a trained model that this one starts from: its encoder, projector and pooling, and its "
        "heads where the tasks are the same; so end to end after features. One trained on imported features brings no "
        "encoder: that comes from `encoder` with `pretrained` or `weights`",
    )
    encoder: Annotated[str, listed_in("encoders")] = Field(
        "resnet18",
        description="patch encoder, listed by `wsi-ips encoders`: `resnet18`, `resnet18-2` (its first two stages), "
        "`timm:NAME`, `preset:NAME` ...",
    )
    pretrained: bool = Field(False, description="start from published weights (needs the network)")
    weights: RecipePath | None = Field(
        None, description="encoder weights from a local file: .safetensors, or .bin, .pth, .pt that hold tensors only"
    )
    freeze: Literal["none", "all"] | Annotated[int, Field(ge=1)] = Field(
        "none",
        description="what of the encoder does not learn: `none`, `all`, or so many of its first stages (blocks of a "
        "transformer)",
    )
    projector: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="width that a learned map brings embeddings to before the pooling (512 in the published CAMELYON16 "
        "configuration); empty = none",
    )
    lora_rank: Annotated[int, Field(ge=0)] = Field(
        0,
        description="rank of the matrices that learn beside the frozen attention of a transformer (LoRA, extra "
        "`lora`); 0 = none",
    )
    norm: Literal["auto", "batch", "group"] = Field(
        "auto", description="`auto`: frozen batch norm with pretrained weights, group norm from scratch"
    )
    memory_size: Annotated[int, Field(ge=1)] = Field(64, description="tiles kept per slide (M)")
    pooling: Annotated[str, listed_in("poolings")] = Field(
        "attention", description="how the kept tiles become one vector"
    )
    position: Literal["none", "sinusoidal"] = Field(
        "none", description="`sinusoidal`: add the place of a tile (µm) to its embedding"
    )
    heads: Annotated[int, Field(ge=1)] = Field(8, description="heads of `attention`; `abmil` has one")
    key_width: Annotated[int, Field(ge=1)] = Field(
        64, description="width of keys and values per head; of the gate of `abmil`"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="dropout in the pooling block")

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> Self:
        if self.lora_rank and self.freeze not in ("none", "all"):
            raise ValueError("`lora_rank` freezes the whole encoder; leave `freeze` out")
        return self

    @model_validator(mode="after")
    def _features_are_of_the_encoder_as_it_comes(self) -> Self:
        odd = {"freeze": self.freeze not in ("none", "all"), "lora_rank": self.lora_rank > 0}
        named = [f"`{key}`" for key, is_set in odd.items() if is_set]
        if self.input == "features" and named:
            raise ValueError(f"`input: features` takes the encoder as it comes; leave {', '.join(named)} out")
        return self


class FeaturesSection(Section):
    """What an encoder made of every tile: where it is stored, and whose it is."""

    location: RecipePath | None = Field(
        None, description="folder of the stored features, for several runs together; empty = in the run folder"
    )
    imported: RecipePath | None = Field(
        None,
        description="folder with feature files of CLAM or TRIDENT, taken instead of computing them; their encoder need "
        "not be known here",
    )


class AugmentSection(Section):
    """How training tiles are changed; drawn per (seed, epoch, slide, tile), alike in scan and gradient.

    `false` in place of the section changes nothing. The strengths are those that did best, of what was tried, on slides
    of other donors, on one cohort (benchmarks/RESULTS.md, "Real textures").
    """

    turns: bool = Field(True, description="flips and right-angle turns")
    hed: Jitter = Field(
        0.2,
        description="haematoxylin, eosin and the rest are each multiplied by 1 ± this and shifted by ± this (optical "
        "density); another stain or scanner; 0.05 is light, 0.2 strong",
    )
    brightness: Jitter = Field(0.1, description="factor 1 ± this")
    saturation: Jitter = Field(0.2, description="factor 1 ± this, about each pixel's grey")

    @classmethod
    def nothing(cls) -> Self:
        """Tiles stay as they are."""
        return cls(**{name: field.annotation is not bool and 0.0 for name, field in cls.model_fields.items()})

    @model_validator(mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else cls.nothing().model_dump()
        return value


class TrainingSection(Section):
    """The optimiser's loop."""

    epochs: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="passes over the training slides, the warm start's among them; empty = 20 after the warm start",
    )
    batch_slides: Annotated[int, Field(ge=1)] = Field(4, description="slides per step (B)")
    learning_rate: Positive = Field(3e-4, description="peak learning rate of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="of weights; norms, biases and queries have none"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(2.0, description="linear warm-up, epochs")
    tile_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of a slide's tiles left out of the scan, drawn anew each epoch"
    )
    start: Annotated[str, listed_in("starts")] = Field(
        "auto", description="what the network learns from before its attention selects tiles"
    )
    warm_start_epochs: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="epochs of the start phase; empty = as many as show 16 000 tiles, at least 10, and at most two "
        "thirds of `epochs`",
    )
    exploration: Share = Field(
        0.5,
        description="after the warm start: share of the kept tiles that is drawn at random instead of by "
        "attention; falls linearly to 0 at the last epoch",
    )
    tile_loss: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="weight of a second loss on each kept tile alone (by attention; evenly on slides of the first "
        "class, which hold nothing else); it teaches the single-tile probability of the heatmap",
    )
    augment: AugmentSection = AugmentSection()
    balance: Literal["weights", "sampling", "none"] = Field(
        "weights",
        description="how rare classes are made up for: `weights` in the loss, inverse to a class's frequency; "
        "`sampling`, visits of an epoch spread evenly over the classes of the label, so slides of rare classes come "
        "several times, with other augmentation; `none`",
    )
    weight_average: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="decay per step of a running average of the weights (EMA), which is then validated and saved in "
        "their place; less in the first steps; 0 = none",
    )
    select: Literal["loss", "auc"] = Field(
        "loss", description="figure of the validation slides that chooses the epoch to keep and stops early"
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="stop after so many validated epochs without a better `select`; needs validation slides; empty = "
        "all epochs",
    )
    max_missing_share: Share = Field(
        0.1, description="refuse to train when a larger share of the training slides yielded no tile"
    )

    @model_validator(mode="after")
    def _start_has_epochs(self) -> Self:
        if self.warm_start_epochs and not registry("starts")[self.start].has_epochs:
            raise ValueError(
                f"`start: {self.start}` has no epochs; leave `warm_start_epochs` out, or take another start"
            )
        return self


class PredictSection(Section):
    """Which slides are predicted, and by which model."""

    splits: tuple[Split, ...] = Field(
        ("val", "test"), description="slides of these splits; slides without a split always are"
    )
    checkpoint: RecipePath | None = Field(None, description="folder of a trained model to use instead of training one")
    decision: Literal["pooled", "tiles"] = Field(
        "pooled",
        description="how a slide is classified: `pooled`, as the network learned it, from the tiles it keeps; `tiles`, "
        "by the 8 tiles that speak most for a class, each alone: better on slides of another donor where it was "
        "compared, but its probabilities need validation slides to be calibrated on. A model from elsewhere decides "
        "as its folder says",
    )


class HeatmapSection(Section):
    """Pictures per slide."""

    splits: tuple[Split, ...] = Field(
        ("test",), description="slides of these splits; slides without a split are always drawn"
    )
    mpp: Positive = Field(4.0, description="scale of the picture, µm/px (coarser for large tissue)")
    maps: Annotated[tuple[Annotated[str, listed_in("score_maps")], ...], Field(min_length=1), AfterValidator(_once)] = (
        Field(("probability", "attention"), description="score maps to draw; the first one is the main map")
    )


class HandoffSection(Section):
    """Files per slide for the programs of pathologists."""

    formats: Annotated[tuple[Annotated[str, listed_in("handoff_formats")], ...], AfterValidator(_once)] = Field(
        ("overlays", "ome-tiff", "geojson", "asap", "lesions", "gallery"),
        description="files in the package of a slide; `[]` makes no package",
    )
    threshold: Share = Field(
        0.5, description="tiles from this probability on are outlined as lesions; of tiles, not of slides"
    )


class ComputeSection(Section):
    """What changes speed and memory, never a result beyond rounding."""

    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1` ...")
    readers: Annotated[int, Field(ge=1)] = Field(2, description="reading threads")
    chunk_size: Annotated[int, Field(ge=1)] = Field(256, description="patches scored at a time (I)")
    prefetch_chunks: Annotated[int, Field(ge=1)] = Field(2, description="chunks read ahead")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="of the encoder in the scan: `auto`, bf16 on a GPU that has it, else fp32; bf16 rounds scores to "
        "some three digits",
    )
    scan_backend: Annotated[str, listed_in("scan_backends")] = Field("auto", description="runs the encoder in the scan")
    gradient_precision: Literal["fp32", "auto", "bf16", "fp16"] = Field(
        "fp32",
        description="of the encoder where it learns; weights, attention and loss stay in fp32; `auto`: bf16 on a GPU "
        "that has it",
    )
    slides_at_once: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="slides of a step scanned and learned from together; with fewer than `training.batch_slides` the "
        "step's gradient is accumulated, for less memory; empty = all",
    )
    gpu_memory_gb: Positive = Field(
        4.0,
        description="memory for the activations of a step with gradient, GB (main memory where there is no GPU); a "
        "step that needs more computes its gradient in two passes, a few patches at a time",
    )
    scheduler: Annotated[str, Field(pattern=r"^(slurm|[a-z]+://.+)$")] | None = Field(
        None,
        description="who spreads the slides to tile: a Dask scheduler, `tcp://host:8786`, or `slurm`; empty = nobody",
    )
    workers: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="slides tiled at a time on this machine, each in a process of its own; empty = one per core, fewer "
        "where memory is short; 0 = one after another in the process of the command, which a crash or a hang then "
        "ends; with `slurm`: SLURM jobs",
    )
    predict_workers: Annotated[int, Field(ge=0)] = Field(
        0,
        description="slides predicted at a time, each in a process of its own with its own copy of the network, GPUs "
        "dealt in turn; 0 = one after another in the process of the command; with `scheduler`: any number sends them "
        "there, with `slurm` it is that of the SLURM jobs",
    )
    worker_memory_gb: Positive | None = Field(
        None,
        description="resident memory a slide's process may take, GB; above it is stopped and the slide fails; empty = "
        "an equal share of 80 % of this machine, or of the Dask worker's limit",
    )
    slide_timeout_s: Positive = Field(
        1800.0,
        description="time a slide may take to be tiled, s; then it fails; in `predict_workers`: for each 1 000 tiles",
    )
    remote_timeout_s: Positive = Field(30.0, description="slides behind https://: an attempt is given up after it, s")


class TrackingSection(Section):
    """Where the figures of each epoch go, besides `metrics.jsonl` and TensorBoard; changes no result."""

    mlflow: str | None = Field(
        None,
        description="`local`: an SQLite file in the run folder; else an MLflow address such as "
        "`sqlite:////data/mlflow.db` or `http://server:5000` (extra `mlflow`); empty = none",
    )


class Recipe(Section):
    """A whole run. `wsi-ips run RECIPE` executes it."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="name of the run")
    output: RecipePath = Field(..., description="run folder, relative to the recipe file")
    manifest: RecipePath = Field(
        ...,
        description="manifest CSV, relative to the recipe file; or a folder of slides (also CAMELYON16 or 17), which "
        "each command searches anew",
    )
    seed: Seed = Field(0, description="seed of everything random")
    slides: SlidesSection = SlidesSection()
    tissue: TissueSection = TissueSection()
    tiles: TilesSection = TilesSection()
    labels: LabelsSection = LabelsSection()
    split: SplitSection = SplitSection()
    model: ModelSection = ModelSection()
    features: FeaturesSection = FeaturesSection()
    training: TrainingSection = TrainingSection()
    predict: PredictSection = PredictSection()
    heatmap: HeatmapSection = HeatmapSection()
    handoff: HandoffSection = HandoffSection()
    compute: ComputeSection = ComputeSection()
    tracking: TrackingSection = TrackingSection()

    @model_validator(mode="after")
    def _features_are_no_pixels(self) -> Self:
        if self.model.input == "pixels":
            if self.features.imported is not None:
                raise ValueError("`features.imported` is for `model.input: features`; set it, or leave the folder out")
            return self
        if "augment" in self.training.model_fields_set:
            raise ValueError("`training.augment` changes pixels, and there are none with `model.input: features`")
        backend = self.compute.scan_backend
        if registry("scan_backends")[backend].is_calibrated:
            raise ValueError(
                f"`compute.scan_backend: {backend}` scans pixels; leave it out with `model.input: features`"
            )
        return self
