"""A process's share of a step: what it scans, and how its part of the loss becomes one with that of the others.

A slide that several processes scanned is selected from by its owner, from the logits of all, so the tiles kept are
those of a scan by one. The loss of a process is that of its own slides, but random numbers (dropout) are drawn for all
slides of the step, as a single process would: they do not depend on who learns from which slide.

Shapes: B slides of a step, b own slides, K ≤ M kept tiles, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.model.net import IpsNet
from wsi_ips.model.selection import Selection, merge
from wsi_ips.tiles import SlideTiles, read_tiles
from wsi_ips.training.plan import Deal, Piece
from wsi_ips.training.world import World


def piece_requests(pieces: Sequence[Piece], requests: Sequence[SlideTiles]) -> list[SlideTiles]:
    """The tiles of each piece, ready to stream at slots 0, 1, ...

    Parameters
    ----------
    pieces
        Of some slides.
    requests
        All slides of the step with the tiles to scan.
    """
    return [
        requests[p.slide].at_slot(slot).only(requests[p.slide].wanted[p.start : p.stop])
        for slot, p in enumerate(pieces)
    ]


def join_shared(
    world: World,
    shares: Deal,
    found: Mapping[Piece, Selection],
    requests: Sequence[SlideTiles],
    *,
    memory_size: int,
) -> dict[int, Selection]:
    """Selections of those own slides that several processes scanned, by number in the step.

    Logits travel, pixels do not: the owner reads those again which it lacks. All processes must call this where a slide
    is shared.

    Parameters
    ----------
    world, shares
        The processes, and who does what.
    found
        What this process selected from its pieces.
    requests
        All slides of the step with the tiles to scan.
    memory_size
        Tiles kept per slide (M).

    Raises
    ------
    Exception
        What a process failed with, in all of them.
    """
    if not shares.shared:
        return {}
    parts = [(p.slide, selection) for p, selection in found.items() if p.slide in shares.shared]
    told = world.swap([(slide, _without_pixels(part)) for slide, part in parts])
    joined = {}
    for slide in shares.shared:
        if shares.owners[slide] != world.rank:
            continue
        others = [some for rank, some in enumerate(told) if rank != world.rank and some is not None]
        shards = [part for number, part in parts if number == slide]
        shards += [part for some in others for number, part in some if number == slide]

        def read_again(tiles: NDArray[np.int64], request: SlideTiles = requests[slide]) -> NDArray[np.uint8]:
            return read_tiles(request.only(tiles.astype(np.int32)))

        joined[slide] = merge(shards, memory_size=memory_size, read_again=read_again)
    return joined


def _without_pixels(selection: Selection) -> Selection:
    return replace(selection, tiles=selection.tiles[:0], pixels=selection.pixels[:0], score=selection.score[:0])


def among_all(embeddings: Tensor, own: Sequence[int], counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Embeddings of own slides in a table of all slides of the step, zeros for the others, and the mask of that table.

    Parameters
    ----------
    embeddings
        Shape (b, K, D).
    own
        Numbers of the own slides in the step.
    counts
        Kept tiles of every slide of the step.

    Returns
    -------
    tuple of torch.Tensor
        Shapes (B, K, D) and (B, K); K of the whole step.
    """
    device = embeddings.device
    mask = (torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]).to(device)  # (B, K)
    table = embeddings.new_zeros(*mask.shape, embeddings.shape[2])
    if own:
        table[torch.tensor(own, device=device), : embeddings.shape[1]] = embeddings
    return table, mask


def no_slides(net: IpsNet) -> tuple[Tensor, Tensor]:
    """Embeddings and mask of a process that has no slide in a step, shapes (0, 1, D) and (0, 1)."""
    device = next(net.parameters()).device
    return torch.zeros(0, 1, net.encoder.width, device=device), torch.zeros(0, 1, dtype=torch.bool, device=device)


class StepTable:
    """Figures of the slides of a step. Each process fills the rows of its own slides; the sum is the whole.

    Attributes
    ----------
    losses
        Per slide; that of several slides learned together stands in the row of the first, shape (B,).
    logits
        Class logits, shape (B, C).
    entropy
        Of attention over the kept tiles, shape (B,).
    best
        The best tiles of the scan, best first, plus 1; 0 where there is none; exact below 2^24; shape (B, W).

    Parameters
    ----------
    slides, classes, width
        B, C and W.
    """

    def __init__(self, slides: int, *, classes: int, width: int) -> None:
        self._sizes = (1, classes, 1, width)
        self.figures = torch.zeros(slides, sum(self._sizes))

    def rows(self, part: slice) -> StepTable:
        """Some of its rows, to be filled."""
        _, classes, _, width = self._sizes
        some = StepTable(0, classes=classes, width=width)
        some.figures = self.figures[part]
        return some

    @property
    def losses(self) -> Tensor:
        """Column of figures; writing to it fills them in."""
        return self.figures[:, 0]

    @property
    def logits(self) -> Tensor:
        """As losses."""
        return self._columns(1)

    @property
    def entropy(self) -> Tensor:
        """As losses."""
        return self._columns(2)[:, 0]

    @property
    def best(self) -> Tensor:
        """As losses."""
        return self._columns(3)

    @property
    def loss(self) -> float:
        """Of all slides that are filled in."""
        return float(sum(self.losses.tolist()))

    def take(self, figures: Tensor) -> None:
        """Take over the sum of all processes."""
        self.figures = figures

    def add(self, own: Sequence[int], *, loss: Tensor, logits: Tensor, entropy: Tensor) -> None:
        """Fill in the own slides, of which ``loss`` is the sum; ``logits`` and ``entropy`` are those of all slides."""
        if own:
            rows = torch.tensor(own)
            self.losses[own[0]] += float(loss.detach())
            self.logits[rows] = logits.detach().float().cpu()[rows]
            self.entropy[rows] = entropy.detach().float().cpu()[rows]

    def keep_best(self, slide: int, tiles: NDArray[np.integer]) -> None:
        """Write down the best tiles of a slide."""
        shown = tiles[: self._sizes[3]]
        self.best[slide, : len(shown)] = torch.from_numpy(shown + 1).float()

    def best_of(self, slide: int) -> NDArray[np.int64]:
        """The best tiles of a slide, best first."""
        row = self.best[slide].numpy()
        return row[row > 0].astype(np.int64) - 1

    def _columns(self, number: int) -> Tensor:
        columns: Tensor = self.figures.split(self._sizes, dim=1)[number]
        return columns
