"""The viewer's server under load: time per tile, and memory while people pan.

A slide of 40 960 x 40 960 pixels (1.7 gigapixels, JPEG tiles, three levels) is made of real or synthetic texture. Eight
clients in one process (keep-alive, one request at a time each) view it as browsers do: a screen of tiles, then a step
aside, a zoom in or out; a client does not request a tile twice. Server and clients share the machine.

Latency: turns of the server and of the peer in one run. The peer is `openslide.deepzoom` in its usual form, in eight
threads of one process: `get_tile`, then JPEG of the same quality; no HTTP, no cache of encoded tiles, no client.

Panning: the server's resident memory every second, errors, and the share of requests with a response.

    python benchmarks/viewer.py [--quick] [--minutes 10] [--texture FOLDER] [--json FILE]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import math
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
import openslide
import tifffile
from openslide.deepzoom import DeepZoomGenerator
from support.reading_slides import _cut, _encode, texture_images

SIDE, TILE, VARIANTS = 40_960, 256, 400
CLIENTS, SCREEN = 8, (5, 4)
"""Tiles on a client's screen, columns and rows: 1280 x 1024 px."""
SEEN = 400
"""Tiles in a client's browser cache."""
QUALITY = 88
MAX_LEVEL = math.ceil(math.log2(SIDE))
Tile = tuple[int, int, int]


def write_slide(path: Path, folder: Path | None) -> None:
    """Write three levels of JPEG tiles, as scanners do."""
    rng = np.random.default_rng(1)
    images = texture_images(folder)
    stored = [_encode(_cut(images, TILE, rng), rgb=False, quality=80) for _ in range(VARIANTS)]
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for level, side in enumerate((SIDE, SIDE // 4, SIDE // 16)):
            tif.write(
                (stored[rng.integers(VARIANTS)] for _ in range((side // TILE) ** 2)),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                subfiletype=min(level, 1),
                resolution=(1e4 / 0.25 / 4**level, 1e4 / 0.25 / 4**level),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def walk(seed: int) -> Iterator[Tile]:
    """Yield tiles (level, column, row) that a client requests, without end."""
    rng = np.random.default_rng(seed)
    level = MAX_LEVEL - int(rng.integers(0, 4))
    x, y = rng.random(2)  # middle of the screen, share of the slide
    seen: OrderedDict[Tile, None] = OrderedDict()
    while True:
        side = 2 ** (level - MAX_LEVEL) * SIDE / TILE  # tiles along the slide
        for row in range(SCREEN[1]):
            for column in range(SCREEN[0]):
                place = (int(x * side) + column - SCREEN[0] // 2, int(y * side) + row - SCREEN[1] // 2)
                tile = (level, *place)
                if min(place) < 0 or max(place) >= math.ceil(side) or tile in seen:
                    continue
                seen[tile] = None
                if len(seen) > SEEN:
                    seen.popitem(last=False)
                yield tile
        action = rng.random()
        if action < 0.1:
            x, y = rng.random(2)
        elif action < 0.4:
            level = int(np.clip(level + rng.choice((-1, 1)), MAX_LEVEL - 7, MAX_LEVEL))
        else:
            x, y = np.clip(np.array([x, y]) + rng.normal(0, 2.0, 2) / max(side, 1), 0, 0.999)


@dataclass
class Seen:
    """Seconds per answered request, and errors."""

    seconds: list[float] = field(default_factory=list)
    asked: int = 0
    errors: list[str] = field(default_factory=list)

    def milliseconds(self, percent: float) -> float:
        """Return a percentile of the answered requests."""
        return float(np.percentile(self.seconds, percent)) * 1000 if self.seconds else math.nan


def in_parallel(ask_of: Callable[[int], Callable[[Tile], None]], *, seconds: float, seed: int) -> Seen:
    """Run clients in threads, each with its own walk and its own way to request tiles."""
    seen, lock, ends = Seen(), threading.Lock(), time.monotonic() + seconds

    def client(number: int) -> None:
        ask, own = ask_of(number), Seen()
        for tile in walk(seed * 1000 + number):
            began = time.monotonic()
            if began > ends:
                break
            own.asked += 1
            try:
                ask(tile)
                own.seconds.append(time.monotonic() - began)
            except Exception as error:  # noqa: BLE001 - counted
                own.errors.append(f"{type(error).__name__}: {error}")
        with lock:
            seen.seconds += own.seconds
            seen.asked += own.asked
            seen.errors += own.errors

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client, number) for number in range(CLIENTS)]:
            done.result()
    return seen


def over_http(port: int, slide: str) -> Callable[[int], Callable[[Tile], None]]:
    """Return a way to request tiles from the server, with one connection per client.

    Plain sockets: Python's HTTP client takes as long for a request as the server, and they share the cores.
    """

    def ask_of(_: int) -> Callable[[Tile], None]:
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        stream = connection.makefile("rb")

        def ask(tile: Tile) -> None:
            level, column, row = tile
            path = f"/slides/{quote(slide)}/dz/{level}/{column}_{row}.jpg"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            status = stream.readline()
            length = 0
            while (line := stream.readline().lower()) not in (b"\r\n", b""):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            body = stream.read(length)
            if b" 200 " not in status or len(body) != length or not body.startswith(b"\xff\xd8"):
                raise RuntimeError(f"{status!r} for {tile}")

        return ask

    return ask_of


def clients_process(port: int, slide: str, seconds: float, seed: int) -> Seen:
    """Run the clients in their own process, like browsers."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_clients, (port, slide, seconds, seed))


def _clients(port: int, slide: str, seconds: float, seed: int) -> Seen:
    return in_parallel(over_http(port, slide), seconds=seconds, seed=seed)


def with_deepzoom(path: Path) -> Callable[[int], Callable[[Tile], None]]:
    """Return the peer: one generator over one slide, shared by the threads as in its example server."""
    generator = DeepZoomGenerator(openslide.OpenSlide(path), TILE, overlap=0, limit_bounds=False)

    def ask(tile: Tile) -> None:
        level, column, row = tile
        image = generator.get_tile(level, (column, row))
        image.save(io.BytesIO(), "JPEG", quality=QUALITY)

    return lambda _: ask


def start_server(path: Path, cache_mb: int) -> tuple[subprocess.Popen[str], int]:
    """Start `wsi-ips view`; return the process and its port."""
    code = "from wsi_ips.cli import main; main()"
    options = ["--port", "0", "--no-browser", "--cache-mb", str(cache_mb)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "view", str(path), *options], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"viewer: http://127\.0\.0\.1:(\d+)/", line)
        if found:
            port = int(found[1])
            _wait_for(port)
            return process, port
    raise SystemExit("the server did not start")


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/api/worklist")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server does not answer")


def rss_mb(process: subprocess.Popen[str]) -> float:
    """Return the resident memory of a process, MB (10^6 bytes); Linux."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def pan(process: subprocess.Popen[str], port: int, slide: str, seconds: float) -> tuple[Seen, list[float]]:
    """Let clients pan for some seconds; return their requests and the server's memory every second."""
    memory: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            memory.append(rss_mb(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        seen = clients_process(port, slide, seconds, seed=77)
    finally:
        done.set()
        watcher.join()
    return seen, memory


def latency(port: int, slide: str, path: Path, *, turns: int, seconds: float) -> tuple[Seen, Seen]:
    """Measure the server and the peer in turns."""
    ours, theirs = Seen(), Seen()
    clients_process(port, slide, seconds / 2, seed=999)  # warm: slide open, code loaded
    for turn in range(turns):
        for total, found in (
            (ours, clients_process(port, slide, seconds, seed=turn)),
            (theirs, in_parallel(with_deepzoom(path), seconds=seconds, seed=turn)),
        ):
            total.seconds += found.seconds
            total.asked += found.asked
            total.errors += found.errors
    return ours, theirs


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="half a minute of panning, short turns")
    parser.add_argument("--minutes", type=float, help="panning; 10, with --quick 0.5")
    parser.add_argument("--texture", type=Path, help="folder of H&E images; synthetic texture where left out")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    minutes = given.minutes if given.minutes is not None else (0.5 if given.quick else 10.0)
    turns, seconds = (1, 6.0) if given.quick else (4, 15.0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gigapixel.tif"
        write_slide(path, given.texture)
        process, port = start_server(path, cache_mb=16 if given.quick else 128)
        try:
            ours, theirs = latency(port, path.name, path, turns=turns, seconds=seconds)
            panned, memory = pan(process, port, path.name, minutes * 60)
        finally:
            process.terminate()
            process.wait(20)
    rows = []
    peer = "openslide.deepzoom, in process"
    for percent in (50, 95, 99):
        mine, other = ours.milliseconds(percent), theirs.milliseconds(percent)
        rows.append({"case": f"tile, p{percent}", "ours": mine, "peer": other, "peer_name": peer, "unit": "ms"})
    rate = [len(seen.seconds) / (turns * seconds) for seen in (ours, theirs)]
    rows.append({"case": "tiles a second", "ours": rate[0], "peer": rate[1], "peer_name": peer, "unit": "1/s"})
    settled = memory[len(memory) // 5 :]
    first, last = settled[: max(1, len(settled) // 4)], settled[-max(1, len(settled) // 4) :]
    alone: list[tuple[str, float, str]] = [
        (f"panning {minutes:g} min: requests", panned.asked, ""),
        ("  answered", 100 * len(panned.seconds) / max(1, panned.asked), "%"),
        ("  p50", panned.milliseconds(50), "ms"),
        ("  p95", panned.milliseconds(95), "ms"),
        ("  memory after a fifth of the time", float(np.median(first)), "MB"),
        ("  memory at the end", float(np.median(last)), "MB"),
        ("  most memory", max(memory), "MB"),
    ]
    rows += [
        {"case": case.strip(), "ours": value, "peer": None, "peer_name": None, "unit": u} for case, value, u in alone
    ]
    for row in rows:
        row["ratio"] = None if row["peer"] is None else row["peer"] / row["ours"]
    print(f"{'':40}{'ours':>12}{'peer':>12}   (peer: {peer})")
    for row in rows:
        other = "" if row["peer"] is None else f"{row['peer']:.1f}"
        print(f"{row['case']:40}{row['ours']:>12.1f}{other:>12}   {row['unit']}")
    for error in (ours.errors + panned.errors)[:5]:
        print("error:", error)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
