"""Recipe sections about the model: architecture, stored features, augmentation and training."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsi_ips.config.choices import listed_in
from wsi_ips.config.key_types import Jitter, Positive, RecipePath, Section, Share
from wsi_ips.registry import registry


class ModelSection(Section):
    """Encoder and cross-attention pooling."""

    input: Literal["pixels", "features"] = Field(
        "pixels",
        description="what is learned from: `pixels`, and the encoder learns too; `features`, which the "
        "unchanged encoder computes once for every tile and stores, so that training takes minutes",
    )
    start: RecipePath | None = Field(
        None,
        description="folder of a trained model to start from: its encoder, projector and pooling, and its "
        "heads if the tasks are the same; this is how end-to-end training follows training on features. A model "
        "trained on imported features has no encoder: that comes from `encoder` with `pretrained` or `weights`",
    )
    encoder: Annotated[str, listed_in("encoders")] = Field(
        "resnet18",
        description="patch encoder, listed by `wsi-ips encoders`: `resnet18`, `resnet18-2` (its first two stages), "
        "`timm:NAME`, `preset:NAME` ...",
    )
    pretrained: bool = Field(False, description="start from published weights (needs the network)")
    weights: RecipePath | None = Field(
        None, description="encoder weights from a local file: .safetensors, or .bin, .pth, .pt with nothing but tensors"
    )
    freeze: Literal["none", "all"] | Annotated[int, Field(ge=1)] = Field(
        "none",
        description="part of the encoder that does not learn: `none`, `all`, or the number of its first "
        "stages (blocks of a transformer)",
    )
    projector: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="width of a learned linear map from embeddings to the pooling (512 in the published "
        "CAMELYON16 configuration); empty = none",
    )
    lora_rank: Annotated[int, Field(ge=0)] = Field(
        0,
        description="rank of the matrices that learn beside the frozen attention of a transformer (LoRA, "
        "extra `lora`); 0 = none",
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
    def _features_need_an_unchanged_encoder(self) -> Self:
        odd = {"freeze": self.freeze not in ("none", "all"), "lora_rank": self.lora_rank > 0}
        named = [f"`{key}`" for key, is_set in odd.items() if is_set]
        if self.input == "features" and named:
            raise ValueError(f"`input: features` uses the encoder unchanged; leave {', '.join(named)} out")
        return self


class FeaturesSection(Section):
    """Where the features that an encoder computed of every tile are stored, and who computed them."""

    location: RecipePath | None = Field(
        None, description="folder of the stored features, to share them between runs; empty = in the run folder"
    )
    imported: RecipePath | None = Field(
        None,
        description="folder with feature files of CLAM or TRIDENT, used instead of computing features; this "
        "package need not know their encoder",
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
        """Return a section that leaves tiles unchanged."""
        return cls(**{name: field.annotation is not bool and 0.0 for name, field in cls.model_fields.items()})

    @model_validator(mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return {} if value else cls.nothing().model_dump()
        return value


class TrainingSection(Section):
    """How the model is trained."""

    epochs: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="passes over the training slides, warm start included; empty = 20 after the warm start",
    )
    batch_slides: Annotated[int, Field(ge=1)] = Field(4, description="slides per step (B)")
    learning_rate: Positive = Field(3e-4, description="peak learning rate of AdamW")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.1, description="weight decay; norms, biases and queries have none"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(2.0, description="linear learning-rate warm-up, epochs")
    tile_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of a slide's tiles left out of the scan, drawn again each epoch"
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
        description="after the warm start: share of the kept tiles drawn at random instead of by attention; "
        "falls linearly to 0 at the last epoch",
    )
    tile_loss: Annotated[float, Field(ge=0)] = Field(
        1.0,
        description="weight of a second loss on each kept tile alone (weighted by attention; evenly on "
        "slides of the first class, which contain nothing else); it trains the single-tile probability of the "
        "heatmap",
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
        description="decay per step of an exponential moving average (EMA) of the weights, which is "
        "validated and saved instead of them; smaller in the first steps; 0 = none",
    )
    select: Literal["loss", "auc"] = Field(
        "loss", description="validation metric that chooses the epoch to keep and decides early stopping"
    )
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="early stopping: validated epochs without a better `select` before training stops; needs "
        "validation slides; empty = all epochs",
    )
    max_missing_share: Share = Field(
        0.1, description="refuse to train if a larger share of the training slides has no tile"
    )

    @model_validator(mode="after")
    def _start_has_epochs(self) -> Self:
        if self.warm_start_epochs and not registry("starts")[self.start].has_epochs:
            raise ValueError(
                f"`start: {self.start}` has no epochs; leave `warm_start_epochs` out, or take another start"
            )
        return self
