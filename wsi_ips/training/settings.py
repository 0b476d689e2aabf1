"""What a training is given: its settings, its slides, and a listener."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    view: int = 0  # earlier visits in the same epoch; each view has other random tiles and augmentation

    @property
    def slide_id(self) -> str:
        """Identity of the slide."""
        return self.tiles.slide_id


@dataclass(frozen=True)
class Settings:
    """How to train: sections ``training`` and ``compute`` of the recipe, and what else decides."""

    section: PlannedTraining
    compute: ComputeSection
    memory_size: int  # tiles kept per slide (M)
    seed: int  # of slide order, tile dropout, random tiles and augmentation
    continues: bool = False  # an earlier training's network, whose embeddings are not standardised again
    gradient: Literal["auto", "plain", "two-pass"] = "auto"  # auto: one pass if it fits into `compute.gpu_memory_gb`
    micro_batch: int = 64  # patches at a time of the two-pass gradient; fewer where they do not fit


class Listener:
    """Hears how a training goes. Subclass it and override what you need; this one ignores everything."""

    def on_slides(self, count: int) -> None:
        """So many more training slides are done; called after each step."""

    def on_epoch(self, record: EpochRecord, net: IpsNet) -> None:
        """An epoch is done; ``net`` is the network to keep, with the weights of this epoch."""

    def on_resume(self, history: Sequence[EpochRecord]) -> None:
        """The training goes on after these epochs."""

    def note(self, text: str) -> None:
        """Say something to the user: the gradient is split into passes, or memory ran out."""
