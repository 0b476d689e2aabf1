"""Memory of a training step: against the tiles of a slide (N), the tiles kept (M) and the slides of a step (B).

A step is a whole one: scan, pixels of the winners, gradient, optimiser. Every case runs in a process of its own. The
peer of the N rows reads all tiles of the slide into one array before it scans; the peer of the M and B rows is the same
step with the gradient in one pass. The slide is a row of noise repeated, so it takes no memory itself.

    python benchmarks/step_memory.py [--quick] [--json FILE]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}. Units: `MB peak RSS` of the
process, most of which is PyTorch; `MB for the step`, what of it came with slides and step; `MB saved` for the
backward pass at the worst moment, counted exactly; `MB CUDA` where there is a GPU (`torch.cuda.max_memory_allocated`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_ips.config import ComputeSection, PlannedTraining
from wsi_ips.geometry import Scale
from wsi_ips.provenance import peak_rss_mb
from wsi_ips.slides import ArrayReader
from wsi_ips.tiles.index import IndexOrigin, TileRules, build_index
from wsi_ips.tiles.stream import SlideTiles, read_tiles
from wsi_ips.tissue.mask import TissueMask

PATCH_PX, MICRO_BATCH, CHUNK = 32, 16, 64
UNITS = {"rss": "MB peak RSS", "step": "MB for the step", "saved": "MB saved", "cuda": "MB CUDA"}
How = Literal["two-pass", "plain", "all tiles in memory"]


@dataclass(frozen=True)
class Case:
    """One step: N tiles in each slide, M kept, B slides; ``varied`` is the letter that its row is about."""

    varied: str
    tiles: int
    kept: int
    slides: int
    how: How = "two-pass"

    @property
    def peer(self) -> Case:
        """What it is compared with."""
        return replace(self, how="all tiles in memory" if self.varied == "N" else "plain")

    def __str__(self) -> str:
        return f"{self.varied}: step of {self.slides} x {self.tiles} tiles, {self.kept} kept"


def cases(*, quick: bool) -> Iterator[Case]:
    """N, then M, then B; numbers of tiles are squares."""
    for tiles in (1_024, 4_096) if quick else (1_024, 4_096, 16_384, 65_536):
        yield Case("N", tiles, 64, 1)
    for kept in (16, 64, 256) if quick else (16, 64, 256, 1_024, 4_096):
        yield Case("M", 1_024 if quick else 4_096, kept, 1)
    for slides in (1, 4) if quick else (1, 2, 4, 8, 16):
        yield Case("B", 256, 64, slides)


def striped_slide(number: int, tiles: int) -> SlideTiles:
    """A square slide of so many tiles."""
    side = round(tiles**0.5)
    row = np.random.default_rng(number).integers(90, 220, (1, side * PATCH_PX, 3), np.uint8)
    reader = ArrayReader([np.broadcast_to(row, (side * PATCH_PX, side * PATCH_PX, 3))], Scale(0.5, 0.5))
    index = build_index(
        reader.info,
        TissueMask(np.ones((side, side), bool), Scale(PATCH_PX, PATCH_PX), threshold=0.0, method="all"),
        TileRules(0.5, PATCH_PX, PATCH_PX, 0.5),
        IndexOrigin(str(number)),
    )
    return SlideTiles(slot=0, slide_id=str(number), index=index, open=lambda: _Open(reader), tiles=None)


class _Open:
    """Lends a reader and never closes it."""

    def __init__(self, reader: ArrayReader) -> None:
        self.reader = reader

    def __enter__(self) -> ArrayReader:
        return self.reader

    def __exit__(self, *_: object) -> None:
        pass


def in_memory(slide: SlideTiles) -> SlideTiles:
    """The same slide, its tiles read into one array."""
    pixels, side = read_tiles(slide), round(len(slide.index) ** 0.5)
    grid = pixels.reshape(side, side, PATCH_PX, PATCH_PX, 3)
    whole = np.ascontiguousarray(grid.swapaxes(1, 2)).reshape(side * PATCH_PX, side * PATCH_PX, 3)
    reader = ArrayReader([whole], Scale(0.5, 0.5))
    return replace(slide, open=lambda: _Open(reader))


def measure(case: Case) -> dict[str, float]:
    """In a process of its own: the peak of two steps by unit; of a third step the bytes saved."""
    import torch

    from wsi_ips.model.checkpoint_card import NetSettings
    from wsi_ips.model.encoder_families import build_encoder, encoder_spec
    from wsi_ips.model.net import IpsNet
    from wsi_ips.scanning import choose_device
    from wsi_ips.training.gradient import SavedBytes
    from wsi_ips.training.loop import Trainer
    from wsi_ips.training.settings import LabelledSlide, Settings

    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = choose_device("auto")
    spec = encoder_spec("resnet18-2", norm="auto", has_weights=False)
    net = IpsNet(build_encoder(spec), NetSettings(heads=4, key_width=32)).to(device)
    settings = Settings(
        PlannedTraining(epochs=2, batch_slides=case.slides, start_epochs=0),
        ComputeSection(chunk_size=CHUNK, readers=1),
        memory_size=case.kept,
        seed=0,
        gradient="plain" if case.how == "plain" else "two-pass",
        micro_batch=MICRO_BATCH,
    )
    trainer = Trainer(net, settings)
    before = resident_mb()
    made = [striped_slide(number, case.tiles) for number in range(case.slides)]
    if case.how == "all tiles in memory":
        made = [in_memory(slide) for slide in made]
    batch = [LabelledSlide(slide, (number % 2,)) for number, slide in enumerate(made)]
    optimiser = torch.optim.AdamW(net.parameters())
    weights = [torch.ones(2, device=device)]
    step: Callable[[], Any] = lambda: trainer.step.learn(batch, 1, weights, optimiser)  # noqa: E731
    for _ in range(1 if case.varied == "N" else 2):
        step()
    found = {"rss": peak_rss_mb(), "step": peak_rss_mb() - before}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.max_memory_allocated() / 1e6
    if case.varied != "N":
        with SavedBytes() as saved:
            step()
        found["saved"] = saved.peak / 1e6
    return found


def resident_mb() -> float:
    """Resident memory of this process now, MB; Linux only, elsewhere its peak so far."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6 if statm.exists() else peak_rss_mb()


def in_process(case: Case) -> dict[str, float]:
    """Figures of a case, measured in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def rows_of(case: Case) -> list[dict[str, Any]]:
    """A row per unit."""
    ours, peer = in_process(case), in_process(case.peer)
    return [
        {
            "case": str(case),
            "ours": round(ours[key], 1),
            "peer": round(peer[key], 1),
            "peer_name": "one pass" if case.peer.how == "plain" else case.peer.how,
            "ratio": round(ours[key] / peer[key], 3),
            "unit": unit,
        }
        for key, unit in UNITS.items()
        if key in ours
    ]


def growth(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How far the largest case of a letter and unit stands above the smallest, ours and the peer."""

    def kind(row: dict[str, Any]) -> tuple[str, str]:
        return row["case"][0], row["unit"]

    for (letter, unit), group in groupby(sorted(rows, key=kind), kind):
        found = list(group)
        by = ", ".join(
            f"{name} {max(row[who] for row in found) / min(row[who] for row in found) - 1:+.1%}"
            for who, name in (("ours", "ours"), ("peer", found[0]["peer_name"]))
        )
        yield f"{letter}, {unit}, largest against smallest: {by}"


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers only, about three minutes")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        sys.stdout.write(json.dumps(measure(Case(**json.loads(options.measure)))))
        return
    rows = []
    for case in cases(quick=options.quick):
        for row in rows_of(case):
            rows.append(row)
            print("{case:42} ours {ours:8.1f}  {peer_name} {peer:8.1f}  ratio {ratio:.2f}  {unit}".format(**row))
    for line in growth(rows):
        print(line)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
