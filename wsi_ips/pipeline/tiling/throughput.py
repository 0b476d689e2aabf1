"""How fast a cohort goes, when it will be done, and what it waits for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi_ips.cluster import Usage
from wsi_ips.provenance import atomic_write_json

WRITE_EVERY_S, NOTE_EVERY_S = 2.0, 60.0
IDLE, READING = 0.6, 0.5


class Throughput:
    """Counts what the slides of a stage took, and says so in ``progress.json`` while they are worked on.

    Parameters
    ----------
    sizes
        Bytes of each slide that is due, by slide_id; 0 where nobody knows.
    workers
        Slides worked on at a time.
    path
        The file for `wsi-ips status`.
    few_for_memory
        Whether there are fewer workers than cores because memory does not suffice for more.
    """

    def __init__(self, sizes: Mapping[str, int], *, workers: int, path: Path, few_for_memory: bool = False) -> None:
        self._sizes, self._path, self._few = sizes, path, few_for_memory
        self.workers = workers
        self._began = self._written = self._noted = time.monotonic()
        self._wall = self._cpu = self._queued = self._megapixels = 0.0
        self._bytes = self.slides = self.failed = self.killed = 0
        self._peak_rss_mb = 0.0

    def ended(self, slide_id: str, usage: Usage, *, megapixels: float, failed: bool) -> None:
        """Count a slide."""
        self.slides += 1
        self.failed += failed
        self._bytes += self._sizes.get(slide_id, 0)
        self._megapixels += megapixels
        self._wall += usage.wall_s
        self._cpu += usage.cpu_s
        self._queued += usage.queued_s
        self._peak_rss_mb = max(self._peak_rss_mb, usage.peak_rss_mb)

    def figures(self) -> dict[str, Any]:
        """All that is known now, as plain values with their unit in the name."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        return {
            "slides_due": len(self._sizes),
            "slides_done": self.slides,
            "slides_failed": self.failed,
            "seconds": round(seconds, 1),
            "seconds_left": self._seconds_left(seconds),
            "slides_per_s": round(self.slides / seconds, 3),
            "megapixels_per_s": round(self._megapixels / seconds, 1),
            "workers": self.workers,
            "busy_share": round(min(1.0, self._wall / (self.workers * seconds)), 3),
            "cpu_share": round(self._cpu / max(self._wall, 1e-9), 3),
            "queued_share": round(self._queued / max(self._wall, 1e-9), 3),
            "peak_rss_mb": round(self._peak_rss_mb, 1),
            "bound_by": self._bound(seconds),
        }

    def tick(self) -> str | None:
        """Write the file when it is time to; a line for people once a minute."""
        now = time.monotonic()
        if now - self._written > WRITE_EVERY_S:
            self.write()
        if now - self._noted > NOTE_EVERY_S:
            self._noted = now
            return self.line()
        return None

    def write(self) -> None:
        """Write the file now."""
        self._written = time.monotonic()
        atomic_write_json(self._path, self.figures() | {"time": time.time()})

    def close(self) -> None:
        """Take the file away: nothing is going on any more."""
        self._path.unlink(missing_ok=True)

    def line(self) -> str:
        """The figures as one line."""
        return figures_line(self.figures())

    def _seconds_left(self, seconds: float) -> float | None:
        """By the slides done and by their bytes, evenly: some of the work is per slide, some per pixel."""
        whole = sum(self._sizes.values())
        shares = [self.slides / len(self._sizes)] + ([self._bytes / whole] if whole else [])
        done = sum(shares) / len(shares)
        return round(seconds * (1 - done) / done, 1) if done else None

    def _bound(self, seconds: float) -> str:
        """What more of would help: memory, slides, faster reading, or cores.

        The time of a slide is CPU, waiting for a core, and the rest: waiting for bytes.
        """
        if not self._wall:
            return ""
        if self._wall < IDLE * self.workers * seconds:
            return "too few slides at a time"
        if 1 - (self._cpu + self._queued) / self._wall > READING:
            return "reading"
        return "memory" if self._few else "cpu"


def figures_line(figures: Mapping[str, Any]) -> str:
    """Figures of :meth:`Throughput.figures` as one line for people."""
    failed = f" ({figures['slides_failed']} failed)" if figures["slides_failed"] else ""
    left = figures["seconds_left"]
    bound = f"; bound by {figures['bound_by']}" if figures["bound_by"] else ""
    return (
        f"{figures['slides_done']} of {figures['slides_due']} slides{failed} in {_span(figures['seconds'])}"
        + (f", {_span(left)} left" if left else "")
        + f": {figures['slides_per_s']:.3g} slides/s, {figures['megapixels_per_s']:.0f} Mpx/s on {figures['workers']} "
        f"workers, {figures['busy_share']:.0%} busy, {figures['cpu_share']:.0%} of that on the CPU{bound}"
    )


def read_progress(path: Path) -> dict[str, Any] | None:
    """What a running stage last said of itself; None where nothing is going on."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
