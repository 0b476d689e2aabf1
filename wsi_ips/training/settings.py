"""Input of a training: its settings, its slides, and a listener."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from wsi_ips.config import ComputeSection, PlannedTraining
from wsi_ips.labels import Target
from wsi_ips.tiles.stream import SlideTiles

if TYPE_CHECKING:
    from wsi_ips.model.net import IpsNet
    from wsi_ips.training.tracking import EpochRecord


@dataclass(frozen=True)
class LabelledSlide:
    """One slide to learn from: its tiles and its label in each task."""

    tiles: SlideTiles
    targets: tuple[Target, ...]
    others: tuple[SlideTiles, ...] = ()  # the same tiles as stored features of other augmentations, used in turn
    view: int = 0  # earlier visits in the same epoch; each view has other random tiles and augmentation

    def visited(self, epoch: int, view: int) -> LabelledSlide:
        """Return the slide as an epoch's visit number ``view`` uses it."""
        turns = (self.tiles, *self.others)
        return replace(self, tiles=turns[(epoch + view) % len(turns)], view=view)

    @property
    def slide_id(self) -> str:
        """Identity of the slide."""
        return self.tiles.slide_id


@dataclass(frozen=True)
class Settings:
    """Settings of a training: sections ``training`` and ``compute`` of the recipe, and further values."""

    section: PlannedTraining
    compute: ComputeSection
    memory_size: int  # tiles kept per slide (M)
    seed: int  # of slide order, tile dropout, random tiles and augmentation
    trunk_rate: float = 1.0  # learning rate of the encoder's trunk divided by that of the heads
    continues: bool = False  # an earlier training's network, whose embeddings are not standardised again
    gradient: Literal["auto", "plain", "two-pass"] = "auto"  # auto: one pass if it fits into `compute.gpu_memory_gb`
    micro_batch: int = 64  # patches at a time of the two-pass gradient; fewer where they do not fit


class Listener:
    """Progress listener of a training. Subclass it and override what you need; this one ignores everything."""

    def on_slides(self, count: int) -> None:
        """Called after each step with the number of training slides it used."""

    def on_epoch(self, record: EpochRecord, net: IpsNet) -> None:
        """Called after each epoch; ``net`` is the network to keep, with the weights of this epoch."""

    def on_resume(self, history: Sequence[EpochRecord]) -> None:
        """Called when the training resumes after these epochs."""

    def note(self, text: str) -> None:
        """Called with a message when the gradient is split into passes or memory runs out."""
