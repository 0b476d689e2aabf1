"""Listener of a training that reports each epoch and keeps the checkpoint of the best one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from wsi_ips.model.checkpoint import save_checkpoint
from wsi_ips.model.checkpoint_card import ModelCard
from wsi_ips.model.net import IpsNet
from wsi_ips.training.guessing import Figures
from wsi_ips.training.settings import Listener
from wsi_ips.training.tracking import EpochRecord, Tracking
from wsi_ips.training.validation import best_epoch


class CheckpointKeeper(Listener):
    """Reports each epoch of one phase of a training and keeps the checkpoint of the best one in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        tracking: Tracking,
        advance: Callable[[int], None],
        *,
        select: Literal["loss", "auc"],
        phase: str = "",
    ) -> None:
        self.folder, self.card, self.tracking = folder, card, tracking
        self._advance, self._select, self._phase = advance, select, phase
        self.history: list[EpochRecord] = []
        self.warn: Callable[[Sequence[Figures]], str] = lambda _: ""  # called after each epoch with the figures of all

    def begin(self) -> None:
        """Prepare the folder; trackers discard what another training left there."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.tracking.write(self.history)

    def note(self, text: str) -> None:
        """Show a message."""
        self.tracking.note(text)

    def on_slides(self, count: int) -> None:
        """Advance the progress bar."""
        self._advance(count)

    def on_resume(self, history: Sequence[EpochRecord]) -> None:
        """Restore the finished epochs."""
        self.history = list(history)
        self.tracking.write(self.history)
        self.note(f"{self._phase or 'training'} resumes in epoch {len(history) + 1}")

    def on_epoch(self, record: EpochRecord, net: IpsNet) -> None:
        """Report an epoch; keep its checkpoint if it is the best."""
        self.history.append(record)
        self.tracking.write(self.history)
        auc = "" if record.val_auc is None else f", AUC {record.val_auc:.3f}"
        validation = "" if record.val_loss is None else f", validation loss {record.val_loss:.3f}{auc}"
        phase = f"{self._phase}, " if self._phase else ""
        named = {"inside outlines": record.kept_in_outlines, "as at their last visit": record.selection_overlap}
        shares = [f"{value:.2f} {name}" for name, value in named.items() if value is not None]
        kept = f", kept tiles: {', '.join(shares)}" if shares and not self._phase else ""
        self.note(
            f"{phase}epoch {record.epoch}: loss {record.loss:.3f}, accuracy {record.accuracy:.2f}{kept}{validation}"
        )
        if warning := self.warn(self.figures):
            self.note(warning)
        if self.best is record:
            save_checkpoint(self.folder, net, self.card_of(record))

    @property
    def figures(self) -> list[Figures]:
        """The figures of the epochs so far."""
        return [asdict(record) for record in self.history]

    def what_is_left(self) -> str:
        """Describe the checkpoint left by a training that cannot continue."""
        if not self.history:
            return "no epoch was finished, so there is no checkpoint"
        return (
            f"the best checkpoint before, of epoch {self.best.epoch} (training loss {self.best.loss:.3g}), is in "
            f"{self.folder} until the next training, for `wsi-ips predict --checkpoint`"
        )

    @property
    def best(self) -> EpochRecord:
        """The best epoch so far."""
        return best_epoch(self.history, self._select)

    def card_of(self, record: EpochRecord) -> ModelCard:
        """Return the model card with the figures of an epoch."""
        left_out = ("seconds", "cost")
        figures = {k: float(v) for k, v in asdict(record).items() if v is not None and k not in left_out}
        return replace(self.card, metrics=figures)
