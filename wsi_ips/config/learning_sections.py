"""Recipe sections about the model: architecture, stored features, augmentation and training."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsi_ips.config.key_types import AtLeast0, Below1, Count, ListedIn, Positive, RecipePath, Section, Share, Whole
from wsi_ips.registry import registry

START_SLIDES, START_TILES = 16, 4  # slides of a step of a start on random tiles, and tiles of each


class ModelSection(Section):
    """Encoder and cross-attention pooling."""

    input: Literal["pixels", "features"] = Field(
        "pixels",
        description="`pixels`: the encoder is trained; `features`: the unchanged encoder embeds every tile once and "
        "stores the result, so that training takes minutes",
    )
    start: RecipePath | None = Field(
        None,
        description="folder of a trained model to start from: encoder, projector, pooling, and heads if the tasks are "
        "the same. A model trained on imported features has no encoder; set `pretrained` or `weights` too",
    )
    encoder: Annotated[str, ListedIn("encoders")] = Field(
        "resnet18",
        description="patch encoder: `resnet18`, `resnet18-2` (its first two stages), `timm:NAME`, `preset:NAME` (see "
        "`wsi-ips check --encoders`) ...",
    )
    pretrained: bool = Field(False, description="start from published weights (needs the network)")
    weights: RecipePath | None = Field(
        None, description="file of encoder weights: .safetensors, or .bin, .pth, .pt that contain only tensors"
    )
    freeze: Literal["none", "all"] | Count = Field(
        "none", description="what to freeze: `none`, `all`, or the first N stages (blocks of a transformer)"
    )
    projector: Count | None = Field(
        None, description="width of a learned linear map before the pooling (512 in the CAMELYON16 paper); empty = none"
    )
    lora_rank: Whole = Field(
        0, description="rank of LoRA beside the frozen attention of a transformer (extra `lora`); 0 = none"
    )
    norm: Literal["auto", "batch", "group"] = Field(
        "auto",
        description="`auto`: frozen batch norm with pretrained weights, group norm from scratch; `batch`: batch norm "
        "that learns, as published: statistics of a step's kept tiles in training, their running mean in the scan",
    )
    memory_size: Count = Field(64, description="tiles kept per slide (M)")
    pooling: Annotated[str, ListedIn("poolings")] = Field("attention", description="how kept tiles are pooled")
    position: Literal["none", "sinusoidal"] = Field(
        "none", description="`sinusoidal`: add the position of a tile (µm) to its embedding"
    )
    heads: Count = Field(8, description="heads of `attention`; `abmil` has one")
    key_width: Count = Field(64, description="width of keys and values per head; of the gate of `abmil`")
    dropout: Below1 = Field(0.1, description="dropout in the pooling block")

    @model_validator(mode="after")
    def _one_way_to_freeze(self) -> Self:
        if self.lora_rank and self.freeze not in ("none", "all"):
            raise ValueError("`lora_rank` freezes the whole encoder; leave `freeze` out")
        return self

    @model_validator(mode="after")
    def _features_need_an_unchanged_encoder(self) -> Self:
        odd = {"freeze": self.freeze not in ("none", "all"), "lora_rank": self.lora_rank > 0}
        named = [f"`{key}`" for key, is_set in odd.items() if is_set]
        if self.input == "features" and named:
            raise ValueError(f"`input: features` uses the encoder unchanged; leave {', '.join(named)} out")
        return self


class FeaturesSection(Section):
    """Stored features of every tile: their folder, and the tool that computed them."""

    location: RecipePath | None = Field(
        None, description="folder for features that several runs share; empty = in the run folder"
    )
    imported: RecipePath | None = Field(
        None, description="folder with feature files of CLAM or TRIDENT to use; their encoder can be any"
    )


class AugmentSection(Section):
    """Augmentation of training tiles; drawn per (seed, epoch, slide, tile), the same in scan and gradient.

    `false` in place of the section changes nothing. The default strengths were the best of those tried on slides
    of other donors in one cohort (benchmarks/RESULTS.md, "Real textures").
    """

    turns: bool = Field(True, description="flips and right-angle turns")
    hed: Below1 = Field(
        0.2,
        description="haematoxylin, eosin and the rest: each density times 1 ± this, and ± this; imitates another stain "
        "or scanner; 0.05 is light, 0.2 strong",
    )
    brightness: Below1 = Field(0.1, description="factor 1 ± this")
    saturation: Below1 = Field(0.2, description="factor 1 ± this, about each pixel's grey")

    @classmethod
    def nothing(cls) -> Self:
        """Return a section that leaves tiles unchanged."""
        return cls(**{name: field.annotation is not bool and 0.0 for name, field in cls.model_fields.items()})

    @model_validator(mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else cls.nothing().model_dump()
        return value


class TrainingSection(Section):
    """Training of the model."""

    start: Annotated[str, ListedIn("starts")] = Field(
        "auto", description="what the network learns from before its attention selects tiles"
    )
    start_steps: Whole | None = Field(
        None,
        description="length of the start in optimiser steps; empty = as the start needs, of random tiles at most two "
        "thirds of `epochs`",
    )
    start_views: Count = Field(
        2,
        description="`start: features`: how often every training tile is encoded: once as it is, each further time "
        "with another augmentation",
    )
    epochs: Count | None = Field(
        None,
        description="passes over the training slides, those of a start on random tiles included; empty = 20 with "
        "selection, 6 after a start on features",
    )
    batch_slides: Count = Field(4, description="slides per step (B)")
    learning_rate: Positive = Field(3e-4, description="peak learning rate of AdamW")
    encoder_rate: Positive | None = Field(
        None,
        description="learning rate of the encoder divided by `learning_rate`; empty = 1 for an encoder trained from "
        "scratch, 0.3 for one with weights",
    )
    weight_decay: AtLeast0 = Field(0.1, description="weight decay; norms, biases and queries have none")
    decay_all: bool = Field(False, description="weight decay also of norms, biases and queries, as published")
    clip: AtLeast0 = Field(1.0, description="largest norm of a step's gradient, longer ones are shortened; 0 = none")
    warmup_steps: Whole = Field(20, description="linear learning-rate warm-up, optimiser steps; at most a fifth of all")
    tile_dropout: Below1 = Field(0.0, description="share of tiles left out of the scan, drawn again each epoch")
    exploration: Share = Field(
        0.5,
        description="after the start: share of the kept tiles drawn at random instead of by attention; falls "
        "linearly to 0 at the last epoch",
    )
    known_tiles: Share = Field(
        0.25,
        description="on slides with outlines: least share of the kept tiles that lie inside them, as far as there are "
        "any; those that selection missed replace the last of the others",
    )
    tile_loss: AtLeast0 = Field(
        1.0,
        description="weight of a loss on each kept tile alone (weighted by attention; evenly on slides with nothing to "
        "find, see `labels.background`), which trains the single-tile probability of the heatmap",
    )
    augment: AugmentSection = AugmentSection()
    grid_shift: bool = Field(
        False,
        description="move the tile grid of each slide by up to half a tile, drawn again each epoch, so that a lesion "
        "is cut differently; on plain images this is the shift augmentation",
    )
    balance: Literal["weights", "sampling", "none"] = Field(
        "weights",
        description="for rare classes: `weights` in the loss, inverse to the frequency of a class; `sampling`: visit "
        "slides of all classes of the label equally often; `none`",
    )
    weight_average: Below1 = Field(
        0.0,
        description="decay per step of an exponential moving average (EMA) of the weights, which is validated and "
        "saved instead of them; smaller in the first steps; 0 = none",
    )
    select: Literal["loss", "auc"] = Field(
        "loss", description="validation metric that chooses the epoch to keep and decides early stopping"
    )
    patience: Count | None = Field(
        None,
        description="early stopping: validated epochs without a better `select` before training stops; needs "
        "validation slides; empty = never",
    )
    max_missing_share: Share = Field(0.1, description="refuse training if more of its slides have no tile")

    @model_validator(mode="after")
    def _start_has_steps(self) -> Self:
        if self.start_steps and self.start == "none":
            raise ValueError("`start: none` has no steps; leave `start_steps` out, or change `start`")
        return self


class PlannedTraining(TrainingSection):
    """The section ``training`` with every value filled in for one start and a number of slides."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training slides")]
    start_epochs: Annotated[int, Field(ge=0, description="the first of them, without selection")] = 0


def planned(section: TrainingSection, slides: int) -> PlannedTraining:
    """Return the section with missing values filled in for its start and a number of training slides."""
    epochs, entry = section.epochs, registry("starts")[section.start]
    start_epochs = 0
    if entry.in_epochs:
        steps = entry.steps if section.start_steps is None else section.start_steps
        start_epochs = math.ceil(steps / math.ceil(slides / START_SLIDES))
        if epochs is not None and section.start_steps is None:
            start_epochs = min(start_epochs, epochs * 2 // 3)
    if epochs is None:
        epochs = start_epochs + entry.epochs
    return PlannedTraining(**section.model_dump() | {"epochs": epochs, "start_epochs": start_epochs})
