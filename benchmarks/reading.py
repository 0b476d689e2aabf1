"""Rate of reading patches: ours against OpenSlide's ``read_region`` to RGB, and others where they are installed.

All contenders of a case read the same patches of the same slide, a few hundred at a time, in turns, on one core (but
for the cases that say otherwise). A ratio is the median over the turns of rate / OpenSlide's rate in the same turn.

    python benchmarks/reading.py [--quick] [--only one-core|threads] [--texture DIR] [--json FILE]

``--texture`` takes a folder of H&E images (default: ``textures`` in ``WSI_IPS_DATA``, else the texture of synthetic
slides). Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.reading_contenders import (
    MPP,
    Contender,
    Corners,
    bare_decoder,
    grid,
    installed,
    ours,
    plan_of,
    with_openslide,
)
from support.reading_slides import write_slide, write_uncompressed

from wsi_ips.geometry import Point, ReadPlan
from wsi_ips.slides import SlidePool, open_slide, read_patch
from wsi_ips.tiles.index import TileIndex
from wsi_ips.tiles.stream import PatchStream, SlideTiles


def rates(contenders: dict[str, Contender], corners: Corners, *, turns: int, per_turn: int) -> dict[str, list[float]]:
    """Patches per second of each contender in each turn; all read the same corners of a turn."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        start = turn * per_turn % max(1, len(corners) - per_turn + 1)
        part = corners[start : start + per_turn]
        for name, contender in contenders.items():
            began = time.perf_counter()
            contender(part)
            found[name].append(len(part) / (time.perf_counter() - began))
    return found


def ratio(found: dict[str, list[float]], name: str, peer: str) -> float:
    """Median over the turns."""
    return statistics.median(a / b for a, b in zip(found[name], found[peer], strict=True))


class Table:
    """Rows as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, case: str, ours: float, peer: float, peer_name: str, ratio: float, unit: str = "patches/s") -> None:
        """One row; printed at once."""
        self.rows.append(
            {"case": case, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ratio, "unit": unit}
        )
        print(f"{case:<44} {ours:>9.0f} {peer:>9.0f}  {peer_name:<22} {ratio:>6.2f}  {unit}", flush=True)

    def add_all(self, case: str, found: dict[str, list[float]]) -> None:
        """A row for each peer."""
        mean = {name: statistics.median(values) for name, values in found.items()}
        for name in found:
            if name != "ours":
                self.add(case, mean["ours"], mean[name], name, ratio(found, "ours", name))


def compare(table: Table, case: str, path: Path, plan: ReadPlan, corners: Corners, size: argparse.Namespace) -> None:
    """One case on one core; the bare decoder joins where a patch is a stored tile."""
    contenders = {"openslide": with_openslide(path, plan), "ours": ours(path, plan)}
    if case.startswith("aligned"):
        contenders["bare decoder"] = bare_decoder(path)
    contenders |= installed(path, plan, corners)
    table.add_all(case, rates(contenders, corners, turns=size.turns, per_turn=size.per_turn))


def in_two_threads(one: Contender, other: Contender) -> Contender:
    """Each reads half of the patches."""

    def read(part: Corners) -> None:
        threads = [
            threading.Thread(target=contender, args=(half,))
            for contender, half in zip((one, other), np.array_split(part, 2), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return read


def two_threads(table: Table, path: Path, plan: ReadPlan, corners: Corners, size: argparse.Namespace) -> None:
    """One reader shared by two threads against one thread; the same with the bare decoder, which is the limit."""
    reader = open_slide(path, mpp_override=MPP)

    def read(part: Corners) -> None:
        out = np.empty((plan.patch_size.height, plan.patch_size.width, 3), np.uint8)
        for x, y in part:
            read_patch(reader, Point(int(x), int(y)), plan, out)

    contenders = {
        "one thread": read,
        "ours": in_two_threads(read, read),
        "one bare": bare_decoder(path),
        "two bare": in_two_threads(bare_decoder(path), bare_decoder(path)),
    }
    found = rates(contenders, corners, turns=3 * size.turns, per_turn=2 * size.per_turn)
    median = {name: statistics.median(values) for name, values in found.items()}
    for case, name, peer in (
        ("two threads, aligned 256 px", "ours", "one thread"),
        ("two bare decoders, the limit", "two bare", "one bare"),
        ("two threads against two bare decoders", "ours", "two bare"),
    ):
        table.add(case, median[name], median[peer], peer, ratio(found, name, peer))


def index_of(path: Path, plan: ReadPlan, corners: Corners) -> TileIndex:
    """An index of all corners, without tissue."""
    with open_slide(path, mpp_override=MPP) as reader:
        info = reader.info
    return TileIndex(
        slide_id=path.stem,
        x=np.ascontiguousarray(corners[:, 0]),
        y=np.ascontiguousarray(corners[:, 1]),
        tissue_fraction=np.ones(len(corners), np.float32),
        tumour_fraction=None,
        flags=np.zeros(len(corners), np.uint8),
        size_px0=info.size_px0,
        bounds=info.bounds,
        mpp=info.pyramid.mpp,
        mpp_source=info.mpp_source,
        reader=info.reader,
        plan=plan,
        stride_px=plan.patch_size.width,
        tissue_method="none",
        slide_identity="",
        fingerprint="",
    )


def streaming(table: Table, case: str, path: Path, plan: ReadPlan, corners: Corners, size: argparse.Namespace) -> None:
    """The stream with one reading thread, feeding a consumer that does nothing, against the bare reader."""
    index, pool = index_of(path, plan, corners), SlidePool()
    request = SlideTiles(
        0, path.stem, index, lambda: pool.lease(path, lambda c: open_slide(path, mpp_override=MPP, cache=c)), None
    )
    every = np.arange(len(corners), dtype=np.int32)
    lookup = {tuple(corner): number for number, corner in enumerate(corners.tolist())}

    def stream(part: Corners) -> None:
        first = lookup[tuple(part[0].tolist())]
        wanted = request.only(every[first : first + len(part)])
        with PatchStream([wanted], chunk_size=256, readers=1, prefetch_chunks=2) as chunks:
            assert sum(len(chunk.tile) for chunk in chunks) == len(part)

    found = rates({"reader": ours(path, plan), "ours": stream}, corners, turns=size.turns, per_turn=10 * size.per_turn)
    table.add_all(case, found)


def rss_mb() -> float:
    """Resident memory of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def many_slides(table: Table, path: Path, plan: ReadPlan, corners: Corners, slides: int) -> None:
    """Resident memory while so many slides are streamed, each under its own name: after ten, and at the end."""
    index, pool = index_of(path, plan, corners), SlidePool()
    names = []
    for number in range(slides):
        link = path.with_name(f"slide_{number}{path.suffix}")
        link.hardlink_to(path)
        names.append(link)
    few = np.arange(0, len(corners), max(1, len(corners) // 400), dtype=np.int32)

    def opener(link: Path) -> Callable[[], object]:
        return lambda: pool.lease(link, lambda c: open_slide(link, mpp_override=MPP, cache=c))

    requests = [SlideTiles(n, link.stem, index, opener(link), few) for n, link in enumerate(names)]  # type: ignore[arg-type]
    after: dict[int, float] = {}
    with PatchStream(requests, chunk_size=256, readers=2, prefetch_chunks=2) as stream:
        for chunk in stream:
            after[int(chunk.slot[-1])] = rss_mb()
    table.add(
        f"RSS after {slides} slides",
        after[slides - 1],
        after[10],
        "after 10 slides",
        after[slides - 1] / after[10],
        "MB",
    )


def shrink_difference(path: Path, plan: ReadPlan, corners: Corners) -> str:
    """Grey levels between decoding at half scale and the mean of 2 x 2 pixels."""
    direct, plain = open_slide(path, mpp_override=MPP), open_slide(path, reader="openslide", mpp_override=MPP)
    differences = []
    for x, y in corners[:: max(1, len(corners) // 200)]:
        where = Point(int(x), int(y))
        differences.append(read_patch(direct, where, plan).astype(float) - read_patch(plain, where, plan))
    all_ = np.stack(differences)
    rms = float(np.sqrt((all_**2).mean()))
    mean, bias, psnr = np.abs(all_).mean(), all_.mean(), 20 * np.log10(255 / rms)
    return f"mean |difference| {mean:.2f} grey levels, bias {bias:+.2f}, PSNR {psnr:.1f} dB"


def one_core(table: Table, ycbcr: Path, rgb: Path, deflate: Path, size: argparse.Namespace) -> None:
    """The cases on one core."""
    plan = plan_of(ycbcr, 256)
    compare(table, "aligned 256 px, YCbCr 4:2:0", ycbcr, plan, grid(ycbcr, plan), size)
    plan = plan_of(rgb, 240)
    compare(table, "aligned 240 px, RGB", rgb, plan, grid(rgb, plan), size)
    plan = plan_of(ycbcr, 224)
    compare(table, "full grid of 224 px off the tiles, YCbCr", ycbcr, plan, grid(ycbcr, plan, 3), size)
    plan = plan_of(ycbcr, 256, 0.5)
    compare(table, "0.5 µm/px from 0.25, 256 px, YCbCr", ycbcr, plan, grid(ycbcr, plan), size)
    print(f"  half-scale decoding against area averaging: {shrink_difference(ycbcr, plan, grid(ycbcr, plan))}")
    plan = plan_of(deflate, 256)
    found = rates(
        {"openslide": with_openslide(deflate, plan), "ours": ours(deflate, plan)},
        np.tile(grid(deflate, plan), (10, 1)),
        turns=size.turns,
        per_turn=size.per_turn // 2,
    )
    table.add_all("not direct: deflate, 256 px", found)


def main() -> None:
    """Write the slides, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small slides and few turns: that it runs, not how fast")
    parser.add_argument("--only", choices=("one-core", "threads"), help="half of the cases")
    parser.add_argument("--texture", type=Path, help="folder of H&E images")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    data = os.environ.get("WSI_IPS_DATA")
    texture = arguments.texture or (Path(data) / "textures" if data else None)
    size = argparse.Namespace(turns=3, per_turn=50) if arguments.quick else argparse.Namespace(turns=9, per_turn=300)
    side, slides = (3840, 12) if arguments.quick else (23_040, 200)
    table = Table()
    print(f"texture: {texture or 'synthetic'}; one core but for threads; {os.cpu_count()} cores here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ycbcr, rgb, deflate = folder / "ycbcr.svs", folder / "rgb.svs", folder / "deflate.tif"
        write_slide(ycbcr, side=side, tile=256, rgb=False, quality=80, mpp=MPP, folder=texture)
        write_slide(rgb, side=side, tile=240, rgb=True, quality=70, mpp=MPP, folder=texture)
        write_uncompressed(deflate, side=3840, tile=256, mpp=MPP, folder=texture)
        print(f"{'case':<44} {'ours':>9} {'peer':>9}  {'peer':<22} {'ratio':>6}")
        cores = os.sched_getaffinity(0)
        if arguments.only != "threads":
            os.sched_setaffinity(0, {min(cores)})
            one_core(table, ycbcr, rgb, deflate, size)
            os.sched_setaffinity(0, cores)
        if arguments.only != "one-core":
            plan = plan_of(ycbcr, 256)
            two_threads(table, ycbcr, plan, grid(ycbcr, plan), size)
            streaming(table, "stream, one reading thread, aligned 256 px", ycbcr, plan, grid(ycbcr, plan), size)
            many_slides(table, ycbcr, plan, grid(ycbcr, plan), slides)
    if arguments.json:
        arguments.json.write_text(json.dumps(table.rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
