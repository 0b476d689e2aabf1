"""Where pixels meet the network: stream the tiles of slides, score them all, keep the best.

Training and prediction both stand on this module; nothing below it knows both slides and tensors.

Shapes: n patches, B slides, K ≤ M kept tiles, T queries, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import ComputeSection
from wsi_ips.model.fused import scan_encoder
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.selection import Selection, SlideToScan, scan
from wsi_ips.tiles import PatchStream, SlideTiles, read_tiles

Prepare = Callable[[NDArray[np.uint8], NDArray[np.integer], NDArray[np.integer]], Tensor]
"""(pixels (n, h, w, 3), slot (n,), tile (n,)) -> float patches (n, 3, h, w) on the device."""


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def plain_patches(device: torch.device) -> Prepare:
    """Patches as they are, moved to the device as uint8 and converted there."""

    def prepare(pixels: NDArray[np.uint8], _: NDArray[np.integer], __: NDArray[np.integer]) -> Tensor:
        return to_float(torch.from_numpy(pixels).to(device, non_blocking=True))

    return prepare


@torch.inference_mode()
def scan_slides(
    net: IpsNet,
    requests: Sequence[SlideTiles],
    *,
    memory_size: int,
    compute: ComputeSection,
    prepare: Prepare,
    with_probability: bool = False,
    on_tiles: Callable[[int], None] = lambda _: None,
) -> list[Selection]:
    """Score all requested tiles of a batch of slides in one stream and keep the best of each.

    Parameters
    ----------
    net
        Switched to evaluation mode; its rule chooses the tiles to keep.
    requests
        Slides with slots 0 ... B-1 in order, each with at least one tile.
    memory_size
        Tiles kept per slide (M).
    compute
        Chunk size, reading threads, chunks read ahead.
    prepare
        Turns uint8 pixels into the network's input.
    with_probability
        Also score each tile alone.
    on_tiles
        Called with the number of tiles after each chunk.

    Raises
    ------
    RegionReadError
        A tile cannot be read.
    ScoresError
        A score is not finite.
    """
    net.eval()
    encode = scan_encoder(net.encoder)

    def score(
        pixels: NDArray[np.uint8], slot: NDArray[np.integer], tile: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        scores = net.score(prepare(pixels, slot, tile), with_probability=with_probability, encode=encode)
        on_tiles(len(tile))
        probability = None if scores.probability is None else scores.probability.float().cpu().numpy()
        return scores.logits.float().cpu().numpy(), probability

    def read_again(slot: int, tiles: NDArray[np.int64]) -> NDArray[np.uint8]:
        return read_tiles(requests[slot].only(tiles.astype(np.int32)))

    with PatchStream(
        requests,
        chunk_size=compute.chunk_size,
        readers=compute.readers,
        prefetch_chunks=compute.prefetch_chunks,
    ) as stream:
        return scan(
            stream,
            [SlideToScan(request.slide_id, len(request.index)) for request in requests],
            score_patches=score,
            memory_size=memory_size,
            read_again=read_again,
            rule=net.rule,
        )


class KeptTiles(Protocol):
    """Tiles of one slide to learn or classify from; a :class:`Selection` is one."""

    @property
    def tiles(self) -> NDArray[np.int64]:
        """Tile ids, shape (K,)."""
        ...

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """Their patches, shape (K, h, w, 3)."""
        ...


def embed_tiles(net: IpsNet, kept: Sequence[KeptTiles], prepare: Prepare) -> tuple[Tensor, Tensor]:
    """Encode the kept tiles of a batch; carries gradient where gradients are on.

    Returns
    -------
    embeddings
        Shape (B, K, D); zeros where there is no tile.
    mask
        bool, shape (B, K), True where a tile is.
    """
    counts = [len(entry.tiles) for entry in kept]
    slots = np.repeat(np.arange(len(kept)), counts)
    patches = prepare(
        np.concatenate([entry.pixels for entry in kept]),
        slots,
        np.concatenate([entry.tiles for entry in kept]),
    )
    embedded = net.encoder(patches)  # (sum K, D)
    mask = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]  # (B, K)
    mask = mask.to(embedded.device)
    padded = embedded.new_zeros(*mask.shape, embedded.shape[1])
    padded[mask] = embedded  # the mask's row-major order is the order of concatenation
    return padded, mask


@torch.inference_mode()
def slide_probabilities(net: IpsNet, kept: Sequence[KeptTiles], prepare: Prepare) -> Tensor:
    """Class probabilities of slides from their kept tiles, shape (B, C)."""
    net.eval()
    embeddings, mask = embed_tiles(net, kept, prepare)
    return net.probabilities(net(embeddings, mask))
