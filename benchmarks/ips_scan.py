"""One step of Iterative Patch Selection, ours against the published loop: speed, and what is selected.

Both get the same encoder, weights, queries and real pixels, in memory, in one process on one thread, by turns. The
peer is the loop of Bergner et al., 2023, algorithm 1, written here from its description: float tensors of all patches
(made before the clock starts; ours starts from uint8), M first patches as buffer, I at a time encoded without
gradient, softmax per head inside buffer and chunk, mean over heads, top-M; then encode, pool and learn from the M.
Queries are scaled so that logits of a head deviate by 2, as those of a network that has learned something.

    python benchmarks/ips_scan.py [--quick] [--json FILE]

Prints a table; with --json also writes rows {case, ours, peer, peer_name, ratio, unit}. Pixels: H&E textures in
$WSI_IPS_DATA/textures, else a synthetic slide.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from wsi_ips.config import ComputeSection
from wsi_ips.geometry import Scale, Size
from wsi_ips.model.checkpoint_card import NetSettings
from wsi_ips.model.encoder_families import build_encoder, encoder_spec
from wsi_ips.model.net import IpsNet, to_float
from wsi_ips.model.scan_encoders import auto
from wsi_ips.model.selection import best_tiles
from wsi_ips.scanning import ScanOptions, Winners, plain_patches, scan_slides
from wsi_ips.slides import ArrayReader
from wsi_ips.slides.synthetic_slide import write_synthetic_slide
from wsi_ips.slides.synthetic_textures import Stain
from wsi_ips.slides.synthetic_tissue import PlannedBlob, SyntheticSlide
from wsi_ips.tiles.index import IndexOrigin, TileRules, build_index
from wsi_ips.tiles.stream import SlideTiles, read_tiles
from wsi_ips.tissue.mask import TissueMask

DEVICE = torch.device("cpu")
LOGIT_DEVIATION = 2.0
PEER = "published loop"
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """An encoder and the sizes of a slide: N tiles of so many pixels, M kept, I at a time, H heads."""

    encoder: str
    norm: Literal["batch", "group"]
    patch_px: int
    tiles: int
    memory: int
    chunk: int
    heads: int = 8

    def __str__(self) -> str:
        return f"{self.encoder} {self.norm} norm, {self.patch_px} px, N {self.tiles}, M {self.memory}, I {self.chunk}"


CASES = (
    Case("resnet18", "batch", 256, 96, 8, 32),
    Case("resnet50", "batch", 224, 48, 4, 16),
    Case("resnet18", "group", 256, 96, 8, 32),
    Case("resnet18-2", "group", 64, 1024, 32, 256),
    Case("resnet18", "batch", 64, 1024, 32, 256),
)
QUICK = (Case("resnet18", "batch", 256, 48, 4, 16), Case("resnet18-2", "group", 64, 512, 16, 128))


def pictures() -> list[Pixels]:
    """Real H&E where there is some, else tissue of a synthetic slide."""
    root = Path(os.environ.get("WSI_IPS_DATA") or Path(__file__).parents[2] / "shared" / "data") / "textures"
    files = sorted(f for kind in ("lymphoid", "normal", "tumor") for f in (root / kind).glob("*.*"))
    if files:
        return [np.asarray(Image.open(f).convert("RGB")) for f in files]
    with tempfile.TemporaryDirectory() as name:
        stain = Stain(1.0, 1.0, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), (240, 239, 242))
        plan = SyntheticSlide("s", 1, Size(6144, 5120), 0.5, 4.0, (PlannedBlob("tumour", 0.8),), stain)
        write_synthetic_slide(plan, Path(name) / "s.svs")
        with Image.open(Path(name) / "s.svs") as picture:
            middle = picture.convert("RGB").crop((1536, 1024, 4608, 4096))
            return [np.asarray(middle)]


def slide_of(pixels: list[Pixels], case: Case) -> SlideTiles:
    """A slide in memory whose tiles are random crops of pictures."""
    rng, px, columns = np.random.default_rng(0), case.patch_px, 16
    rows = -(-case.tiles // columns)
    mosaic = np.empty((rows * px, columns * px, 3), np.uint8)
    for tile in range(rows * columns):
        picture = pixels[rng.integers(len(pixels))]
        top, left = (rng.integers(side - px + 1) for side in picture.shape[:2])
        crop = np.rot90(picture[top : top + px, left : left + px], rng.integers(4))
        y, x = (tile // columns) * px, (tile % columns) * px
        mosaic[y : y + px, x : x + px] = crop
    scale = Scale(0.5, 0.5)

    def opened() -> ArrayReader:
        return ArrayReader([mosaic], scale, name="mosaic")

    mask = TissueMask(np.ones((rows, columns), bool), Scale(px, px), 0.0, "all")
    with opened() as reader:
        index = build_index(
            reader.info,
            mask,
            TileRules(0.5, px, px, 0.5),
            IndexOrigin("mosaic"),
        )
    return SlideTiles(slot=0, slide_id="mosaic", index=index, open=opened, tiles=None)


@torch.no_grad()
def network(case: Case, some: Tensor) -> IpsNet:
    """A network whose embeddings and logits deviate as those of a trained one."""
    torch.manual_seed(0)
    spec = encoder_spec(case.encoder, norm="auto", has_weights=case.norm == "batch")
    net = IpsNet(build_encoder(spec), NetSettings(heads=case.heads, dropout=0.0)).eval()
    net.encoder.start(some)
    deviation = net.pooling.logits(net.encoder(some)).std(0).mean()
    net.pooling.queries.mul_(LOGIT_DEVIATION / deviation)
    return net


class PublishedLoop:
    """The peer: one slide, all its patches a float tensor, shape (1, N, 3, h, w)."""

    def __init__(self, net: IpsNet, case: Case) -> None:
        self.net, self.case = copy.deepcopy(net), case
        self.net.encoder.trunk.to(memory_format=torch.contiguous_format)

    def attention(self, embeddings: Tensor) -> Tensor:
        """Softmax over the tiles given, mean over heads, then queries; (1, n, D) to (1, n)."""
        block = self.net.pooling
        query = block.to_query(block.queries).view(1, -1, block.heads, block.key_width).transpose(1, 2)
        key = block.to_key(embeddings).view(1, embeddings.shape[1], block.heads, block.key_width).transpose(1, 2)
        scores = torch.matmul(query / block.key_width**0.5, key.transpose(2, 3)).softmax(-1)  # (1, H, T, n)
        return scores.mean(1).transpose(1, 2).mean(-1)

    @torch.no_grad()
    def select(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """The M kept patches, (1, M, 3, h, w), and their numbers, (1, M)."""
        memory, chunk, tiles = self.case.memory, self.case.chunk, patches.shape[1]
        self.net.eval()
        kept = self.net.encoder(patches[:, :memory].flatten(0, 1)).view(1, memory, -1)
        numbers = torch.arange(tiles)[None]
        kept_numbers = numbers[:, :memory]
        for start in range(memory, tiles, chunk):
            stop = min(start + chunk, tiles)
            new = self.net.encoder(patches[:, start:stop].flatten(0, 1)).view(1, stop - start, -1)
            both = torch.cat((kept, new), 1)  # (1, M + I, D)
            both_numbers = torch.cat((kept_numbers, numbers[:, start:stop]), 1)
            top = self.attention(both).topk(memory, dim=-1).indices  # (1, M)
            kept = both.gather(1, top[..., None].expand(-1, -1, both.shape[2]))
            kept_numbers = both_numbers.gather(1, top)
        index = kept_numbers.view(1, -1, 1, 1, 1).expand(-1, -1, *patches.shape[2:])
        return patches.gather(1, index), kept_numbers

    def step(self, patches: Tensor, optimiser: torch.optim.Optimizer) -> None:
        """Selection and one update."""
        kept, _ = self.select(patches)
        self.net.train()
        embeddings = self.net.encoder(kept.flatten(0, 1)).view(1, kept.shape[1], -1)
        probability = self.net(embeddings, torch.ones(embeddings.shape[:2], dtype=torch.bool)).softmax(-1)
        loss = functional.nll_loss(torch.log(probability + 1e-6), torch.tensor([1]))
        update(loss, optimiser)


def our_step(net: IpsNet, slide: SlideTiles, case: Case, optimiser: torch.optim.Optimizer) -> None:
    """Selection and one update, as the training loop does it."""
    winners = Winners.of(net, [slide], our_scan(net, slide, case))
    net.train()
    embedded = net.encoder(winners.patches(0, len(winners), plain_patches(DEVICE)))
    loss = functional.cross_entropy(net(*winners.padded(embedded)), torch.tensor([1]))
    update(loss, optimiser)


def our_scan(net: IpsNet, slide: SlideTiles, case: Case):
    """Scan of the library, its own stream included."""
    compute = ComputeSection(device="cpu", chunk_size=case.chunk, readers=1)
    return scan_slides(net, [slide], plain_patches(DEVICE), ScanOptions(case.memory, compute))


def update(loss: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """Backward pass and step."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()


def by_turns(repeats: int, **runs: Callable[[], object]) -> dict[str, float]:
    """Shortest time of each, in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in seconds.items()}


def measure(case: Case, pixels: list[Pixels], repeats: int) -> list[dict[str, object]]:
    """All rows of one case."""
    slide = slide_of(pixels, case)
    raw = read_tiles(slide)[: case.tiles]
    slide = slide.only(np.arange(case.tiles, dtype=np.int32))
    floats = to_float(torch.from_numpy(raw))  # (N, 3, h, w), channels last
    net = network(case, floats[:: max(1, case.tiles // 64)])
    peer = PublishedLoop(net, case)
    patches = floats.contiguous()[None]  # (1, N, 3, h, w), as data loaders give them
    with torch.no_grad():
        logits = torch.cat([net.pooling.logits(net.encoder(part)) for part in floats.split(case.chunk)]).numpy()
    true = best_tiles(logits, case.memory)
    ours_kept = our_scan(net, slide, case)[0].tiles
    recall = [len(np.intersect1d(kept, true)) / len(true) for kept in (ours_kept, peer.select(patches)[1][0].numpy())]

    @torch.inference_mode()
    def bare() -> None:
        encode = auto(net.encoder.eval())
        for part in floats.split(case.chunk):
            encode(part)

    scan = by_turns(
        repeats,
        ours=lambda: our_scan(net, slide, case),
        peer=lambda: peer.select(patches),
        bare=bare,
    )
    optimisers = [torch.optim.AdamW(n.parameters(), lr=1e-6) for n in (net, peer.net)]
    step = by_turns(
        repeats,
        ours=lambda: our_step(net, slide, case, optimisers[0]),
        peer=lambda: peer.step(patches, optimisers[1]),
    )
    rate = {name: case.tiles / seconds for name, seconds in scan.items()}
    return [
        row(case, "scan", rate["ours"], rate["peer"], PEER, "tiles/s"),
        row(case, "step", case.tiles / step["ours"], case.tiles / step["peer"], PEER, "tiles/s"),
        row(case, "scan, bare encoder", rate["ours"], rate["bare"], "encoder alone", "tiles/s"),
        row(case, "true best M kept", *recall, PEER, "share"),
    ]


def row(case: Case, what: str, ours: float, peer: float, peer_name: str, unit: str) -> dict[str, object]:
    """One row of the table."""
    return {
        "case": f"{what}: {case}",
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "peer_name": peer_name,
        "ratio": round(ours / peer, 3),
        "unit": unit,
    }


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small cases, one repetition")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pixels, rows = pictures(), []
    for case in QUICK if options.quick else CASES:
        for entry in measure(case, pixels, repeats=1 if options.quick else 3):
            rows.append(entry)
            print(
                "{case:82} ours {ours:8.3f}  {peer_name} {peer:8.3f}  ratio {ratio:.2f}  {unit}".format(**entry),
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
