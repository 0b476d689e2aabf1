"""How far the looks of altered copies of a slide are apart, and those of different slides.

``WSI_IPS_DATA=... python benchmarks/looks.py [--quick] [--json FILE]``: synthetic slides made on the spot and the
real slides and thumbnails of the data folder; each is altered four times (margin of glass, stain, scale, turn, mirror).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from wsi_ips.errors import SlideError
from wsi_ips.pipeline.demo_slides import DEMO, make_slides
from wsi_ips.slides import open_slide, read_thumbnail
from wsi_ips.tissue.perceptual_hash import LARGEST_DISTANCE, look_alikes, look_of

COPIES = 4


def thumbnails(synthetic: int) -> dict[str, np.ndarray]:
    """Pictures by name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        plan = replace(DEMO, slides=synthetic, size_px0=(10_240, 8_192), tissue_mm2=(1.5, 3.0), lesion_mm=(0.4, 0.8))
        make_slides(Path(folder), plan)
        files = sorted(Path(folder).rglob("*.svs"))
        data = Path(os.environ.get("WSI_IPS_DATA", "none"))
        files += sorted(p for p in (data / "slides").glob("*") if p.suffix in (".svs", ".tif", ".dcm", ".ndpi"))
        for path in files:
            try:
                with open_slide(path, mpp_override=0.5) as reader:
                    scale = 32.0 if reader.info.size_px0.width > 4000 else 8.0
                    found[path.name] = read_thumbnail(reader, scale)[0]
            except SlideError:
                continue  # masks and other files that are no slide
        for path in sorted((data / "thumbnails").glob("*.png")):
            image = Image.open(path).convert("RGB")
            image.thumbnail((600, 600))
            found[path.name] = np.asarray(image)
    return found


def altered(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same slide as another scan would show it."""
    height, width = (round(side * rng.uniform(1.05, 1.3)) for side in pixels.shape[:2])
    scan = np.full((height, width, 3), 240.0)
    y, x = rng.integers(0, height - pixels.shape[0] + 1), rng.integers(0, width - pixels.shape[1] + 1)
    scan[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    scan = (255 - (255 - scan) * rng.uniform(0.8, 1.2, 3)).clip(0, 255)
    scale = rng.uniform(0.5, 1.0)
    size = (max(8, int(width * scale)), max(8, int(height * scale)))
    image = np.rot90(
        np.asarray(Image.fromarray(scan.astype(np.uint8)).resize(size, Image.Resampling.BOX)), rng.integers(4)
    )
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image)


def row(case: str, distances: list[float], *, worst: float) -> dict[str, object]:
    """Figures of one case."""
    within = np.mean(np.array(distances) <= LARGEST_DISTANCE)
    return {
        "case": case,
        "number": len(distances),
        "within_limit": round(float(within), 4),
        "median": round(float(np.median(distances)), 3),
        "worst": worst,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    pictures = thumbnails(8 if arguments.quick else 40)
    looks = {name: look for name, pixels in pictures.items() if (look := look_of(pixels))}
    copies = []
    for name, look in looks.items():
        for _ in range(COPIES):
            pair = {"slide": look, "copy": look_of(altered(pictures[name], rng))}
            copies += [next(iter(look_alikes(pair, largest_distance=1.0))).distance] if pair["copy"] else [1.0]
    others = [pair.distance for pair in look_alikes(looks, largest_distance=1.0)]
    rows = [
        row("altered copies", copies, worst=max(copies)),
        row("different slides", others, worst=min(others)),
    ]
    print(f"{len(pictures)} pictures, {len(looks)} with something to recognise")
    for line in rows:
        print("  ".join(f"{name} {value}" for name, value in line.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
