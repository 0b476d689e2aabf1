"""The stream of stored features: as :class:`~wsi_ips.tiles.stream.PatchStream`, with a vector in place of a patch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from wsi_ips.tiles.features import FeatureTiles
from wsi_ips.tiles.stream import PatchChunk


class FeatureStream:
    """Iterates over chunks of features in the order of the requests; a chunk's memory is its own.

    Parameters
    ----------
    requests
        Slides and their tiles; all features have one width.
    chunk_size
        Tiles per chunk; the last one may be smaller.
    readers
        Reading threads.
    prefetch_chunks
        Chunks read ahead of the consumer.
    """

    def __init__(
        self, requests: Sequence[FeatureTiles], *, chunk_size: int, readers: int, prefetch_chunks: int
    ) -> None:
        self._requests, self._chunk_size, self._ahead = requests, chunk_size, prefetch_chunks
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="wsi-ips-features")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[PatchChunk]:
        """Chunks in order.

        Raises
        ------
        FeaturesError
            Features cannot be read; names the slide.
        """
        waiting: deque[Future[PatchChunk]] = deque()
        for plan in self._plans():
            waiting.append(self._pool.submit(_read, plan))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _plans(self) -> Iterator[list[FeatureTiles]]:
        """What each chunk holds: requests for a part of a slide each."""
        plan: list[FeatureTiles] = []
        room = self._chunk_size
        for request in self._requests:
            wanted, start = request.wanted, 0
            while start < len(wanted):
                part = wanted[start : start + room]
                plan.append(request.only(part))
                start, room = start + len(part), room - len(part)
                if not room:
                    yield plan
                    plan, room = [], self._chunk_size
        if plan:
            yield plan


def _read(plan: Sequence[FeatureTiles]) -> PatchChunk:
    counts = [len(request.wanted) for request in plan]
    return PatchChunk(
        np.concatenate([request.read() for request in plan]),
        np.repeat(np.array([request.slot for request in plan], np.int32), counts),
        np.concatenate([request.wanted for request in plan]),
    )
