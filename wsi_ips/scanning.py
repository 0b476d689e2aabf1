"""Where pixels meet the network: stream the tiles of slides, score them all, keep the best.

Training and prediction both stand on this module; nothing below it knows both slides and tensors.

Shapes: n patches, B slides, K ≤ M kept tiles, T queries, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import ComputeSection
from wsi_ips.errors import DeviceMemoryError
from wsi_ips.model.encoder import Encoder
from wsi_ips.model.fast import fast_encoder
from wsi_ips.model.fused import Encode
from wsi_ips.model.net import IpsNet, TileScores, to_float
from wsi_ips.model.selection import Selection, SlideToScan, scan
from wsi_ips.tiles import FeatureStream, FeatureTiles, PatchChunk, PatchStream, SlideTiles, read_tiles

Prepare = Callable[[Tensor, NDArray[np.integer], NDArray[np.integer]], Tensor]
"""(pixels, uint8 (n, h, w, 3), slot (n,), tile (n,)) -> float patches (n, 3, h, w) on the device."""


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def plain_patches(device: torch.device) -> Prepare:
    """Patches as they are, moved to the device as uint8 and converted there."""

    def prepare(pixels: Tensor, _: NDArray[np.integer], __: NDArray[np.integer]) -> Tensor:
        return to_float(pixels.to(device))

    return prepare


class StagedChunk(NamedTuple):
    """A chunk whose pixels are also on the device.

    Attributes
    ----------
    pixels, slot, tile
        As in ``PatchChunk``.
    on_device
        The pixels, uint8, shape (n, h, w, 3), or features, float16, shape (n, F).
    """

    pixels: NDArray[Any]
    slot: NDArray[np.int32]
    tile: NDArray[np.int32]
    on_device: Tensor


FEATURES_AT_A_TIME = 4096
"""Stored features read at once, at least: they are a hundredth of a patch."""

CHUNKS_STAGED = 2
"""Chunks in use at a time: one is computed, the next is on its way."""


def page_locked(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Memory from which CUDA copies without stopping the processor."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def staged(chunks: Iterable[PatchChunk], device: torch.device) -> Iterator[StagedChunk]:
    """Bring chunks to the device; on CUDA each is copied while the one before it is computed.

    ``chunks`` must leave the memory of :data:`CHUNKS_STAGED` chunks alone.
    """
    if device.type != "cuda":
        for chunk in chunks:
            yield StagedChunk(*chunk, torch.from_numpy(chunk.pixels))
        return
    copying = torch.cuda.Stream(device)
    ahead: StagedChunk | None = None
    for chunk in chunks:
        with torch.cuda.stream(copying):
            coming = StagedChunk(*chunk, torch.from_numpy(chunk.pixels).to(device, non_blocking=True))
            arrived = copying.record_event()
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_event(arrived)
        coming.on_device.record_stream(torch.cuda.current_stream(device))
        ahead = coming
    if ahead is not None:
        yield ahead


class ChunkLimit:
    """How many patches are scored at once: a chunk, and less from where memory ran out.

    Attributes
    ----------
    patches
        At most so many.
    """

    def __init__(self, chunk_size: int, note: Callable[[str], None] = lambda _: None) -> None:
        self.patches, self._note = chunk_size, note

    def parts(self, count: int) -> Iterator[slice]:
        """Ranges of at most ``patches`` that cover ``count``."""
        return (slice(start, min(start + self.patches, count)) for start in range(0, count, self.patches))

    def come_down(self, error: torch.cuda.OutOfMemoryError) -> None:
        """Half as many from here on, told once each time.

        Raises
        ------
        DeviceMemoryError
            Not even one patch fits.
        """
        if self.patches == 1:
            raise DeviceMemoryError(
                "memory of the device ran out with a single patch; free it from other programs, or take a smaller "
                "`model.encoder` or `tiles.patch_px`"
            ) from error
        self.patches //= 2
        self._note(
            f"memory of the device ran out: going on with {self.patches} patches at a time; `compute.chunk_size: "
            f"{self.patches}` spares the attempt"
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
    encode: Encode | None = None,
    limit: ChunkLimit | None = None,
    reading: Callable[[], AbstractContextManager[None]] = nullcontext,
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
        Precision of the encoder, chunk size, reading threads, chunks read ahead.
    prepare
        Turns uint8 pixels into the network's input.
    with_probability
        Also score each tile alone.
    on_tiles
        Called with the number of tiles after each chunk.
    encode
        In place of the encoder; None is the fastest way to run it that ``compute`` allows.
    limit
        Of the patches scored at once; comes down where the device's memory runs out. None starts from the chunk size.
    reading
        Makes a context that is entered while pixels are waited for; a clock, for instance.

    Raises
    ------
    DeviceMemoryError
        Not even one patch fits.
    RegionReadError
        A tile cannot be read.
    ScoresError
        A score is not finite.
    """
    net.eval()
    device = next(net.parameters()).device
    if encode is None:  # of stored features the encoder is a scale and a shift, and there is nothing to make faster
        features = isinstance(requests[0], FeatureTiles)
        fast = partial(fast_encoder, precision=compute.precision, compiling=compute.compile)
        encode = net.encoder if features else fast(net.encoder)

    places = _Places(net, requests)

    limit = limit or ChunkLimit(compute.chunk_size)

    def score_part(chunk: StagedChunk, part: slice) -> TileScores:
        slot, tile = chunk.slot[part], chunk.tile[part]
        patches = prepare(chunk.on_device[part], slot, tile)
        scores = net.score(patches, with_probability=with_probability, encode=encode, position=places(slot, tile))
        probability = None if scores.probability is None else scores.probability.float().cpu()
        return TileScores(scores.logits.float().cpu(), probability)

    def score(chunk: StagedChunk) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        while True:
            try:
                parts = [score_part(chunk, part) for part in limit.parts(len(chunk.tile))]
                break
            except torch.cuda.OutOfMemoryError as error:
                limit.come_down(error)
        on_tiles(len(chunk.tile))
        logits = torch.cat([part.logits for part in parts]).numpy()
        return logits, torch.cat([p.probability for p in parts]).numpy() if with_probability else None  # type: ignore[misc]

    def read_again(slot: int, tiles: NDArray[np.int64]) -> NDArray[Any]:
        with reading():
            return read_tiles(requests[slot].only(tiles.astype(np.int32)))

    with open_stream(requests, compute, device) as stream:
        return scan(
            staged(_waiting(stream, reading), device),
            [SlideToScan(request.slide_id, len(request.index)) for request in requests],
            score_chunk=score,
            memory_size=memory_size,
            read_again=read_again,
            rule=net.rule,
        )


def _waiting(chunks: Iterable[PatchChunk], reading: Callable[[], AbstractContextManager[None]]) -> Iterator[PatchChunk]:
    """The same chunks; each is waited for within a context."""
    iterator = iter(chunks)
    while True:
        with reading():
            chunk = next(iterator, None)
        if chunk is None:
            return
        yield chunk


def open_stream(
    requests: Sequence[SlideTiles], compute: ComputeSection, device: torch.device
) -> PatchStream | FeatureStream:
    """Stream of pixels, or of features where those are stored, for a ``with`` block."""
    if isinstance(requests[0], FeatureTiles):
        return FeatureStream(
            cast("Sequence[FeatureTiles]", requests),
            chunk_size=max(compute.chunk_size, FEATURES_AT_A_TIME),
            readers=compute.readers,
            prefetch_chunks=compute.prefetch_chunks,
        )
    return PatchStream(
        requests,
        chunk_size=compute.chunk_size,
        readers=compute.readers,
        prefetch_chunks=compute.prefetch_chunks,
        held_chunks=CHUNKS_STAGED if device.type == "cuda" else 1,
        allocate=page_locked if device.type == "cuda" else None,
    )


@torch.inference_mode()
def embed_tiles(
    encoder: Encoder, tiles: SlideTiles, *, compute: ComputeSection, limit: ChunkLimit
) -> Iterator[NDArray[np.float32]]:
    """Embeddings of all tiles of a slide, a chunk at a time, float32, shape (n, F).

    Parameters
    ----------
    encoder
        In evaluation mode, on the device.
    tiles
        The slide's tiles; at least one.
    compute
        Precision, chunk size, reading threads, chunks read ahead.
    limit
        Of the patches embedded at once; comes down where the device's memory runs out.
    """
    device = encoder.mean.device
    encode = fast_encoder(encoder, precision=compute.precision, compiling=compute.compile)
    prepare = plain_patches(device)
    with open_stream([tiles], compute, device) as stream:
        for chunk in staged(stream, device):
            while True:
                try:
                    parts = [
                        encode(prepare(chunk.on_device[part], chunk.slot[part], chunk.tile[part])).float().cpu()
                        for part in limit.parts(len(chunk.tile))
                    ]
                    break
                except torch.cuda.OutOfMemoryError as error:
                    limit.come_down(error)
            yield torch.cat(parts).numpy()


class _Places:
    """Position vectors of tiles, None where the network has no use for them."""

    def __init__(self, net: IpsNet, requests: Sequence[SlideTiles]) -> None:
        self._position = net.position
        self._centres_um = [] if net.position is None else [request.index.centres_um for request in requests]
        self._device = next(net.parameters()).device

    def __call__(self, slot: NDArray[np.integer], tile: NDArray[np.integer]) -> Tensor | None:
        """Shape (n, D)."""
        if self._position is None:
            return None
        centres = np.empty((len(tile), 2))
        for number, all_centres in enumerate(self._centres_um):
            rows = slot == number
            centres[rows] = all_centres[tile[rows]]
        vectors: Tensor = self._position(torch.from_numpy(centres).to(self._device, torch.float32))
        return vectors


class KeptTiles(Protocol):
    """Tiles of one slide to learn or classify from; a :class:`Selection` is one."""

    @property
    def tiles(self) -> NDArray[np.int64]:
        """Tile ids, shape (K,)."""
        ...

    @property
    def pixels(self) -> NDArray[Any]:
        """Their patches, shape (K, h, w, 3), or features, shape (K, F)."""
        ...


@dataclass(frozen=True)
class Winners:
    """Kept tiles of a batch of slides, one after the other.

    Attributes
    ----------
    pixels
        Patches of each slide, uint8, shape (K_b, h, w, 3), or features, float16, shape (K_b, F).
    slot, tile
        Slide and tile id of each, shape (n,).
    counts
        K_b.
    position
        Added to their embeddings, shape (n, D), or None.
    """

    pixels: Sequence[NDArray[Any]]
    slot: NDArray[np.int64]
    tile: NDArray[np.int64]
    counts: tuple[int, ...]
    position: Tensor | None = None

    @classmethod
    def of(cls, net: IpsNet, requests: Sequence[SlideTiles], kept: Sequence[KeptTiles]) -> Winners:
        """From the kept tiles of each requested slide."""
        counts = tuple(len(entry.tiles) for entry in kept)
        slot, tile = np.repeat(np.arange(len(kept)), counts), np.concatenate([entry.tiles for entry in kept])
        return cls([entry.pixels for entry in kept], slot, tile, counts, _Places(net, requests)(slot, tile))

    def __len__(self) -> int:
        return len(self.tile)

    def parts(self, size: int) -> list[tuple[int, int]]:
        """Half-open ranges of at most ``size`` winners that cover them all."""
        return [(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def patches(self, start: int, stop: int, prepare: Prepare) -> Tensor:
        """Winners ``start`` to ``stop`` as the network wants them; no copy of the others is made."""
        parts, first = [], 0
        for pixels in self.pixels:
            a, b = max(0, start - first), min(len(pixels), stop - first)
            if a < b:
                parts.append(pixels[a:b])
            first += len(pixels)
        together = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return prepare(torch.from_numpy(together), self.slot[start:stop], self.tile[start:stop])

    def padded(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (n, D), placed, as a table (B, K, D) with zeros where there is no tile, and its mask (B, K)."""
        embedded = embedded if self.position is None else embedded + self.position.to(embedded.dtype)
        mask = torch.arange(max(self.counts))[None] < torch.tensor(self.counts)[:, None]  # (B, K)
        mask = mask.to(embedded.device)
        table = embedded.new_zeros(*mask.shape, embedded.shape[1])
        table[mask] = embedded  # the mask's row-major order is the order of concatenation
        return table, mask


@torch.inference_mode()
def kept_embeddings(
    net: IpsNet, requests: Sequence[SlideTiles], kept: Sequence[KeptTiles], prepare: Prepare, *, chunk_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Embeddings of kept tiles, placed, shape (B, K, D), and their mask (B, K); ``chunk_size`` patches at a time."""
    net.eval()
    winners = Winners.of(net, requests, kept)
    embedded = torch.cat([net.encoder(winners.patches(a, b, prepare)) for a, b in winners.parts(chunk_size)])
    return winners.padded(embedded)


@torch.inference_mode()
def slide_logits(
    net: IpsNet, requests: Sequence[SlideTiles], kept: Sequence[KeptTiles], prepare: Prepare, *, chunk_size: int = 256
) -> Tensor:
    """Class logits of slides from their kept tiles, shape (B, C); ``chunk_size`` patches at a time."""
    logits: Tensor = net(*kept_embeddings(net, requests, kept, prepare, chunk_size=chunk_size))
    return logits


def slide_probabilities(
    net: IpsNet, requests: Sequence[SlideTiles], kept: Sequence[KeptTiles], prepare: Prepare, *, chunk_size: int = 256
) -> Tensor:
    """Class probabilities of slides, as :func:`slide_logits`."""
    return net.probabilities(slide_logits(net, requests, kept, prepare, chunk_size=chunk_size))
