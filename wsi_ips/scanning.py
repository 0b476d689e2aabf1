"""Scan slides: stream their tiles, score them all with the network, keep the best.

Training and prediction use this module. No module below it handles both slides and tensors.

Shapes: n patches, B slides, K ≤ M kept tiles, T queries, H heads, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_ips.config import ComputeSection
from wsi_ips.errors import DeviceMemoryError
from wsi_ips.model.encoder import Encode, Encoder
from wsi_ips.model.net import IpsNet, TileScores, to_float
from wsi_ips.model.scan_backends import SCAN_BACKENDS
from wsi_ips.model.selection import Selection, SlideToScan, scan
from wsi_ips.tiles.feature_store import FeatureStream, FeatureTiles
from wsi_ips.tiles.stream import PatchChunk, PatchStream, SlideTiles, read_tiles

# (pixels, uint8 (n, h, w, 3), slot (n,), tile (n,)) -> float patches (n, 3, h, w) on the device
Prepare = Callable[[Tensor, NDArray[np.integer], NDArray[np.integer]], Tensor]

Result = TypeVar("Result")

FEATURES_AT_A_TIME = 4096  # stored features read at once, at least: one is a hundredth of the size of a patch

CHUNKS_STAGED = 2  # chunks in use at a time: one is computed while the next is copied
PREFETCH_CHUNKS = 2  # chunks read ahead


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``auto`` is CUDA where available, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def plain_patches(device: torch.device) -> Prepare:
    """Return a function that moves patches to the device as uint8 and converts them there, without augmentation."""

    def prepare(pixels: Tensor, _: NDArray[np.integer], __: NDArray[np.integer]) -> Tensor:
        return to_float(pixels.to(device))

    return prepare


class StagedChunk(NamedTuple):
    """A ``PatchChunk`` whose pixels, uint8 (n, h, w, 3), or features, float16 (n, F), are also on the device."""

    pixels: NDArray[Any]
    slot: NDArray[np.int32]
    tile: NDArray[np.int32]
    on_device: Tensor


def page_locked(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Allocate memory from which CUDA copies asynchronously."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def staged(chunks: Iterable[PatchChunk], device: torch.device) -> Iterator[StagedChunk]:
    """Copy chunks to the device; on CUDA each is copied while the previous one is computed.

    ``chunks`` must not reuse the memory of the last :data:`CHUNKS_STAGED` chunks.
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
    """Limit on the patches scored at once; it halves when the device runs out of memory."""

    def __init__(self, chunk_size: int, note: Callable[[str], None] = lambda _: None) -> None:
        self.patches, self._note = chunk_size, note

    def run(self, count: int, work: Callable[[slice], Result]) -> list[Result]:
        """Call `work` on ranges of at most `patches` that cover `count`; where memory runs out, on smaller ones."""
        while True:
            try:
                return [work(slice(at, min(at + self.patches, count))) for at in range(0, count, self.patches)]
            except torch.cuda.OutOfMemoryError as error:
                self.halve(error)

    def halve(self, error: torch.cuda.OutOfMemoryError) -> None:
        """Halve the limit permanently, with a message; raise a `DeviceMemoryError` where not even one patch fits."""
        if self.patches == 1:
            raise DeviceMemoryError(
                "memory of the device ran out with a single patch; free it from other programs, or take a smaller "
                "`model.encoder` or `tiles.patch_px`"
            ) from error
        self.patches //= 2
        self._note(
            f"memory of the device ran out: continuing with {self.patches} patches at a time; `compute.chunk_size: "
            f"{self.patches}` avoids the attempt"
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class ScanOptions:
    """Settings of a scan."""

    memory_size: int  # tiles kept per slide (M)
    compute: ComputeSection  # backend and precision of the encoder, chunk size, reading threads
    limit: ChunkLimit | None = None  # on patches at once, shared by several scans; None starts from the chunk size
    with_probability: bool = False  # also score each tile alone
    encode: Encode | None = None  # replaces the encoder; None uses the scan backend of `compute`
    on_tiles: Callable[[int], None] = lambda _: None  # called with the number of tiles after each chunk
    # Makes a context that is entered while the scan waits for pixels; a clock, for instance
    reading: Callable[[], AbstractContextManager[None]] = nullcontext


@torch.inference_mode()
def scan_slides(net: IpsNet, requests: Sequence[SlideTiles], prepare: Prepare, options: ScanOptions) -> list[Selection]:
    """Score all requested tiles of a batch of slides in one stream and keep the best of each.

    Requests have slots 0 ... B-1 in order, and at least one tile each.

    Raises
    ------
    DeviceMemoryError
        Not even one patch fits.
    RegionReadError
        A tile cannot be read.
    ScoresError
        A score is not finite.
    """
    device = next(net.parameters()).device
    score = _ChunkScorer(net.eval(), requests, prepare, options)

    def read_again(slot: int, tiles: NDArray[np.int64]) -> NDArray[Any]:
        with options.reading():
            return read_tiles(requests[slot].only(tiles.astype(np.int32)))

    with open_stream(requests, options.compute, device) as stream:
        return scan(
            staged(_waiting(stream, options.reading), device),
            [SlideToScan(request.slide_id, len(request.index)) for request in requests],
            score_chunk=score,
            memory_size=options.memory_size,
            read_again=read_again,
        )


class _ChunkScorer:
    """Scores the tiles of a chunk, called as ``score(chunk)``: logits (n, T, H) and probabilities (n, C) or None."""

    def __init__(self, net: IpsNet, requests: Sequence[SlideTiles], prepare: Prepare, options: ScanOptions) -> None:
        self.net, self.prepare, self.options = net, prepare, options
        self.centres_um = _centres_um(net, requests)
        self.limit = options.limit or ChunkLimit(options.compute.chunk_size)
        # With stored features the encoder is only a scale and a shift: no backend can make it faster.
        has_features = isinstance(requests[0], FeatureTiles)
        self.encode = options.encode or (net.encoder if has_features else fast_encoder(net.encoder, options.compute))

    def __call__(self, chunk: StagedChunk) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        parts = self.limit.run(len(chunk.tile), partial(self._part, chunk))
        self.options.on_tiles(len(chunk.tile))
        logits = torch.cat([part.logits for part in parts]).numpy()
        probabilities = [part.probability for part in parts if part.probability is not None]
        return logits, torch.cat(probabilities).numpy() if probabilities else None

    def _part(self, chunk: StagedChunk, part: slice) -> TileScores:
        slot, tile = chunk.slot[part], chunk.tile[part]
        scores = self.net.score(
            self.prepare(chunk.on_device[part], slot, tile),
            with_probability=self.options.with_probability,
            encode=self.encode,
            position=_positions(self.net, self.centres_um, slot, tile),
        )
        probability = None if scores.probability is None else scores.probability.float().cpu()
        return TileScores(scores.logits.float().cpu(), probability)


def fast_encoder(encoder: Encoder, compute: ComputeSection) -> Encode:
    """Return the encoder as the scan backend runs it; ``auto`` where the backend must be calibrated on a slide."""
    backend = SCAN_BACKENDS[compute.scan_backend]
    exact = SCAN_BACKENDS["auto"] if backend.is_calibrated else backend
    encode: Encode = exact.load()(encoder, compute.precision)
    return encode


def _waiting(chunks: Iterable[PatchChunk], reading: Callable[[], AbstractContextManager[None]]) -> Iterator[PatchChunk]:
    """Yield chunks, each fetched within the context."""
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
    """Open a stream of pixels, or of features where those are stored, for a ``with`` block."""
    if isinstance(requests[0], FeatureTiles):
        return FeatureStream(
            cast("Sequence[FeatureTiles]", requests),
            chunk_size=max(compute.chunk_size, FEATURES_AT_A_TIME),
            readers=compute.readers,
            prefetch_chunks=PREFETCH_CHUNKS,
        )
    return PatchStream(
        requests,
        chunk_size=compute.chunk_size,
        readers=compute.readers,
        prefetch_chunks=PREFETCH_CHUNKS,
        held_chunks=CHUNKS_STAGED if device.type == "cuda" else 1,
        allocate=page_locked if device.type == "cuda" else None,
    )


@torch.inference_mode()
def embed_tiles(
    encoder: Encoder, tiles: SlideTiles, *, compute: ComputeSection, limit: ChunkLimit, prepare: Prepare | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield the embeddings of all tiles of a slide, a chunk at a time, float32, shape (n, F).

    The encoder is in evaluation mode; ``limit`` bounds the patches embedded at once; ``prepare`` augments them.
    """
    device = encoder.mean.device
    encode, prepare = fast_encoder(encoder, compute), prepare or plain_patches(device)

    def embed(chunk: StagedChunk, part: slice) -> Tensor:
        return encode(prepare(chunk.on_device[part], chunk.slot[part], chunk.tile[part])).float().cpu()

    with open_stream([tiles], compute, device) as stream:
        for chunk in staged(stream, device):
            yield torch.cat(limit.run(len(chunk.tile), partial(embed, chunk))).numpy()


def _centres_um(net: IpsNet, requests: Sequence[SlideTiles]) -> list[NDArray[np.floating]]:
    return [request.index.centres_um for request in requests] if net.position else []


def _positions(
    net: IpsNet, centres_um: Sequence[NDArray[np.floating]], slot: NDArray[np.integer], tile: NDArray[np.integer]
) -> Tensor | None:
    """Return the position vectors of tiles, shape (n, D), None where the network uses none."""
    if net.position is None:
        return None
    centres = np.empty((len(tile), 2))
    for number, all_centres in enumerate(centres_um):
        rows = slot == number
        centres[rows] = all_centres[tile[rows]]
    vectors: Tensor = net.position(torch.from_numpy(centres).to(net.position.frequency))
    return vectors


class KeptTiles(Protocol):
    """Tiles of one slide to train on or classify from; a :class:`Selection` is one."""

    @property
    def tiles(self) -> NDArray[np.int64]:
        """Tile ids, shape (K,)."""

    @property
    def pixels(self) -> NDArray[Any]:
        """Their patches, shape (K, h, w, 3), or features, shape (K, F)."""


@dataclass(frozen=True)
class Winners:
    """Kept tiles of a batch of slides, concatenated."""

    # Patches of each slide, uint8, shape (K_b, h, w, 3), or features, float16, shape (K_b, F)
    pixels: Sequence[NDArray[Any]]
    slot: NDArray[np.int64]  # slide of each, (n,)
    tile: NDArray[np.int64]  # tile id of each, (n,)
    counts: tuple[int, ...]  # number of tiles of each slide, K_b
    position: Tensor | None = None  # added to their embeddings, shape (n, D), or None

    @classmethod
    def of(cls, net: IpsNet, requests: Sequence[SlideTiles], kept: Sequence[KeptTiles]) -> Winners:
        """Concatenate the kept tiles of the requested slides."""
        counts = tuple(len(entry.tiles) for entry in kept)
        slot, tile = np.repeat(np.arange(len(kept)), counts), np.concatenate([entry.tiles for entry in kept])
        position = _positions(net, _centres_um(net, requests), slot, tile)
        return cls([entry.pixels for entry in kept], slot, tile, counts, position)

    def __len__(self) -> int:
        return len(self.tile)

    def parts(self, size: int) -> list[tuple[int, int]]:
        """Return half-open ranges of at most ``size`` winners that cover them all."""
        return [(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def patches(self, start: int, stop: int, prepare: Prepare) -> Tensor:
        """Prepare winners ``start`` to ``stop`` for the network, without a copy of the others."""
        parts, first = [], 0
        for pixels in self.pixels:
            a, b = max(0, start - first), min(len(pixels), stop - first)
            if a < b:
                parts.append(pixels[a:b])
            first += len(pixels)
        together = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return prepare(torch.from_numpy(together), self.slot[start:stop], self.tile[start:stop])

    def padded(self, embedded: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions to embeddings (n, D) and pad them to a table (B, K, D); return it and its mask (B, K)."""
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
    """Return the embeddings of kept tiles with positions, (B, K, D), and their mask, (B, K)."""
    net.eval()
    winners = Winners.of(net, requests, kept)
    embedded = torch.cat([net.encoder(winners.patches(a, b, prepare)) for a, b in winners.parts(chunk_size)])
    return winners.padded(embedded)


@torch.inference_mode()
def slide_logits(
    net: IpsNet, requests: Sequence[SlideTiles], kept: Sequence[KeptTiles], prepare: Prepare, *, chunk_size: int = 256
) -> Tensor:
    """Return the class logits of slides from their kept tiles, shape (B, C)."""
    logits: Tensor = net(*kept_embeddings(net, requests, kept, prepare, chunk_size=chunk_size))
    return logits
