"""Damaged copies of small slides: every one must end in a reason or in OpenSlide's pixels, and within a minute.

    python benchmarks/mutations.py SLIDE_OR_FOLDER ... [--files 500] [--seed 0] [--jobs 2] [--json FILE]

Each copy is damaged in one of four ways (:data:`WAYS`), and every seed damages it in its own way. A copy is then used
as a stage uses a slide: identity, header, thumbnail and regions of every level, with each reader, in a process of its
own that is ended after 60 s. Counted are copies that were read, refused with one of our errors, ended in any other
exception (``unnamed``), took too long (``slow``), ended the process (``crashed``), or gave pixels that differ by more
than rounding from OpenSlide's where OpenSlide reads them or, of a file that was cut short, from those of the whole
file (``differs``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wsi_ips.errors import RegionReadError, SlideError
from wsi_ips.geometry import Point, Scale, Size
from wsi_ips.slides import SlideReader, content_identity, level0_position, open_slide, read_overview
from wsi_ips.slides.source import LocalFile
from wsi_ips.slides.tiff_header import read_tiff_header

LARGEST_BYTES = 4 * 2**20  # larger slides are left out
LIMIT_S, MEMORY_BYTES = 60, 8 * 2**30
READERS = ("auto", "direct", "openslide", "tiffslide", "image")
REGION_PX, PLACES = 400, 6
ROUNDING = 3  # grey levels by which decoders may differ in a pixel
BAD = ("unnamed", "slow", "crashed", "differs")


class Outcome(NamedTuple):
    """What became of a damaged copy."""

    source: str
    way: str
    seed: int
    result: str  # `read`, `refused` or one of BAD
    detail: str
    seconds: float


def flip_bits(data: bytearray, rng: random.Random, _: list[tuple[int, int]]) -> None:
    """Flip one to twenty bits anywhere."""
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random, _: list[tuple[int, int]]) -> None:
    """Cut the end off."""
    del data[rng.randrange(len(data)) :]


def overwrite_header(data: bytearray, rng: random.Random, header: list[tuple[int, int]]) -> None:
    """Overwrite one to four header bytes with others, of which extremes are likely."""
    for _ in range(rng.randint(1, 4)):
        begin, end = rng.choice(header)
        data[min(rng.randrange(begin, end), len(data) - 1)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))


def blank_block(data: bytearray, rng: random.Random, _: list[tuple[int, int]]) -> None:
    """Zero a block, as a disk or a copy that lost a sector does."""
    begin = rng.randrange(len(data))
    size = min(rng.choice((16, 512, 4096, 65_536)), len(data) - begin)
    data[begin : begin + size] = bytes(size)


WAYS: tuple[Callable[[bytearray, random.Random, list[tuple[int, int]]], None], ...] = (
    flip_bits,
    truncate,
    overwrite_header,
    overwrite_header,  # headers are small and matter most
    blank_block,
)


def mutate(source: Path, seed: int) -> tuple[str, bytes]:
    """Return a damaged copy of a file, and how it was damaged."""
    rng, data = random.Random(seed), bytearray(source.read_bytes())
    way = rng.choice(WAYS)
    header = read_tiff_header(LocalFile(source))
    way(data, rng, header.ranges if header else [(0, min(len(data), 4096))])
    return way.__name__, bytes(data)


def use(path: Path, whole: Path | None = None) -> tuple[str, str]:
    """Use a slide with every reader; return the worst that happened. It was cut short where ``whole`` is given."""
    content_identity(path)
    found = [_used(path, reader, whole) for reader in READERS]
    order = ("differs", "read", "refused")
    return min(found, key=lambda entry: order.index(entry[0]))


def _used(path: Path, reader: str, whole: Path | None) -> tuple[str, str]:
    try:
        with open_slide(path, reader=reader, mpp_override=Scale(0.5, 0.5)) as slide:
            worst = max(_differences(slide, whole or path, reader if whole else "openslide"), default=0.0)
            if worst <= ROUNDING:
                read_overview(slide, 16.0)
                return "read", reader
    except SlideError as error:
        return "refused", f"{reader}: {error}"
    return "differs", f"{reader}: {worst:.0f} grey levels"


def _differences(slide: SlideReader, path: Path, reader: str) -> Iterator[float]:
    """Yield the largest difference from another reading in regions of every level that both show."""
    try:
        plain = open_slide(path, reader=reader, mpp_override=Scale(0.5, 0.5))
    except SlideError:
        return
    with plain:
        rng = random.Random(0)
        for level, size in enumerate(slide.info.level_sizes):
            if size not in plain.info.level_sizes:
                continue
            theirs_at = plain.info.level_sizes.index(size)
            part = Size(min(REGION_PX, size.width), min(REGION_PX, size.height))
            for n in range(PLACES if theirs_at == 0 else 1):  # OpenSlide renders between pixels far from the origin
                x, y = rng.randint(0, size.width - part.width), rng.randint(0, size.height - part.height)
                at = level0_position(slide.info, Point(x, y) if n else Point(0, 0), level)
                try:
                    ours, theirs = slide.read_region(at, level, part), plain.read_region(at, theirs_at, part)
                except RegionReadError:
                    continue
                yield float(np.abs(ours.astype(np.int16) - theirs).max())


def _in_process(path: Path, whole: Path | None, report: Connection) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        report.send(use(path, whole))
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        report.send(("unnamed", f"{type(error).__name__}: {error}"))


def outcome(source: Path, seed: int, folder: Path) -> Outcome:
    """Damage a slide and use the copy in a process of its own."""
    way, data = mutate(source, seed)
    path = folder / f"{seed}{source.suffix}"
    path.write_bytes(data)
    context = get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(path, source if way == "truncate" else None, sender))
    began = time.perf_counter()
    process.start()
    sender.close()
    try:
        result, detail = receiver.recv() if receiver.poll(LIMIT_S) else ("slow", f"more than {LIMIT_S} s")
    except EOFError:
        process.join()
        result, detail = "crashed", f"exit code {process.exitcode}"
    seconds = time.perf_counter() - began
    process.kill()
    process.join()
    path.unlink()
    return Outcome(source.name, way, seed, result, detail.replace(str(path), path.name), round(seconds, 2))


def small_slides(paths: list[Path]) -> list[Path]:
    """Return the slides to damage, in a fixed order; files that do not open undamaged are left out."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    found = []
    for file in files:
        if file.is_file() and 0 < file.stat().st_size <= LARGEST_BYTES:
            with contextlib.suppress(SlideError), open_slide(file):
                found.append(file)
    return found


def main() -> int:
    """Damage, use and count; the exit code says whether anything bad was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sources = small_slides(options.slides)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        seeds = range(options.seed, options.seed + options.files)
        done = list(pool.map(lambda seed: outcome(sources[seed % len(sources)], seed, Path(folder)), seeds))
    for entry in (entry for entry in done if entry.result in BAD):
        print(*entry, sep="  ")
    count = Counter(entry.result for entry in done)
    figures: dict[str, Any] = {name: count[name] for name in ("read", "refused", *BAD)}
    figures |= {"files": len(done), "slides": len(sources), "slowest_s": max(entry.seconds for entry in done)}
    print(json.dumps(figures))
    if options.json:
        options.json.write_text(
            json.dumps({"figures": figures, "files": [entry._asdict() for entry in done]}, indent=1)
        )
    return int(any(count[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
