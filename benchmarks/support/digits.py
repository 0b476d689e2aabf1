"""Megapixel digits: large canvases with a few handwritten digits among many strokes, plain grey images.

After megapixel MNIST (Katharopoulos and Fleuret, 2019; Bergner et al., 2023), with the digits of scikit-learn
(8 x 8 px, magnified): five digits, three of one class, and 50 noise strokes, white on black, on 1500 x 1500 px.

    python -m benchmarks.support.digits FOLDER [--canvases 400] [--side 1500] [--noise 50] [--seed 0]

Writes ``FOLDER/manifest.csv`` with four tasks: ``label`` (the class of three of the digits), ``max`` (the highest
digit), ``top`` (the digit nearest the top), ``multi`` (all classes that occur, ``0;3;7``), and outlines of the digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from wsi_ips.annotations import write_asap
from wsi_ips.provenance import atomic_path

Ink = NDArray[np.float32]
"""Share of ink, 0-1, shape (h, w)."""
Part = Literal["train", "val", "test"]

DIGITS, ALIKE = 5, 3
"""Digits on a canvas, and how many of them are of one class."""
DIGIT_PX = 28


@dataclass(frozen=True)
class DigitsPlan:
    """What a cohort is made of; the same plan gives the same files.

    Attributes
    ----------
    canvases
        Number of canvases.
    side_px0
        Side of a canvas, level-0 px.
    noise
        Strokes on a canvas.
    split
        Shares of train, val and test, of canvases and of digit images: no image is in two parts.
    canvas_split
        Shares of the canvases where they are not those of the images.
    seed
        Seed of everything.
    parts
        What is written of it.
    """

    canvases: int = 400
    side_px0: int = 1500
    noise: int = 50
    split: tuple[float, float, float] = (0.7, 0.05, 0.25)
    canvas_split: tuple[float, float, float] | None = None
    seed: int = 0
    parts: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Digit:
    """A digit on a canvas: its image in scikit-learn's set, its class, its upper left corner in level-0 px."""

    image: int
    value: int
    x_px0: int
    y_px0: int


@dataclass(frozen=True)
class Canvas:
    """Plan of one canvas.

    Attributes
    ----------
    slide_id, part
        Identity and split.
    digits
        ``DIGITS`` of them, the ``ALIKE`` of one class first.
    strokes
        Upper left corner of each noise stroke, shape (n, 2): x, y in level-0 px.
    seed
        Of the shapes of the strokes.
    """

    slide_id: str
    part: Part
    digits: tuple[Digit, ...]
    strokes: NDArray[np.int64]
    seed: int

    @property
    def tasks(self) -> dict[str, str]:
        """Label of each task, by manifest column."""
        values = [digit.value for digit in self.digits]
        return {
            "label": str(values[0]),
            "max": str(max(values)),
            "top": str(min(self.digits, key=lambda digit: digit.y_px0).value),
            "multi": ";".join(str(value) for value in sorted(set(values))),
        }


def plan_canvases(plan: DigitsPlan) -> list[Canvas]:
    """Plans of all canvases; classes of the majority in turn within each part."""
    rng = np.random.default_rng([plan.seed, 11])
    pools = image_pools(plan)
    shares = plan.canvas_split or plan.split
    counts = np.diff(np.rint(np.cumsum((0, *shares)) / sum(shares) * plan.canvases).astype(int))
    canvases = []
    for part, count in zip(pools, counts, strict=True):
        majorities = rng.permutation(np.arange(count) % 10)
        for majority in majorities.tolist():
            canvases.append(_plan_canvas(f"canvas_{len(canvases):04d}", part, majority, pools[part], plan, rng))
    return canvases


def image_pools(plan: DigitsPlan) -> dict[Part, NDArray[np.int64]]:
    """Digit images of each part; every class is divided alike, no image is in two."""
    rng = np.random.default_rng([plan.seed, 12])
    shares = np.cumsum(plan.split)[:-1] / sum(plan.split)
    pieces: dict[Part, list[NDArray[np.int64]]] = {"train": [], "val": [], "test": []}
    for value in range(10):
        images = rng.permutation(np.flatnonzero(_digits()[1] == value))
        for part, piece in zip(
            pieces.values(), np.split(images, np.rint(shares * len(images)).astype(int)), strict=True
        ):
            part.append(piece)
    return {part: np.concatenate(found) for part, found in pieces.items()}


def _plan_canvas(
    slide_id: str, part: Part, majority: int, pool: NDArray[np.int64], plan: DigitsPlan, rng: Generator
) -> Canvas:
    values = _digits()[1][pool]
    alike = rng.choice(pool[values == majority], ALIKE, replace=False)
    others = rng.choice(pool[values != majority], DIGITS - ALIKE, replace=False)
    places = _apart(DIGITS + plan.noise, plan.side_px0, rng)
    digits = tuple(
        Digit(image, int(_digits()[1][image]), x, y)
        for image, (x, y) in zip(np.concatenate([alike, others]).tolist(), places[:DIGITS].tolist(), strict=True)
    )
    return Canvas(slide_id, part, digits, places[DIGITS:], int(rng.integers(2**31)))


def _apart(count: int, side_px0: int, rng: Generator) -> NDArray[np.int64]:
    """Upper left corners of things of ``DIGIT_PX`` that do not touch, shape (count, 2)."""
    places = np.empty((0, 2), np.int64)
    while len(places) < count:
        place = rng.integers(0, side_px0 - DIGIT_PX + 1, 2)
        if (np.abs(places - place).max(1, initial=0) > DIGIT_PX).all():
            places = np.vstack([places, place])
    return places


def paint(canvas: Canvas, side_px0: int) -> NDArray[np.uint8]:
    """The pixels of a canvas, grey, shape (side, side)."""
    pixels = np.zeros((side_px0, side_px0), np.uint8)
    rng = np.random.default_rng([canvas.seed, 13])
    pieces = [(_digits()[0][digit.image], digit.x_px0, digit.y_px0) for digit in canvas.digits]
    pieces += [(noise_stroke(rng), x, y) for x, y in canvas.strokes.tolist()]
    for ink, x, y in pieces:
        pixels[y : y + DIGIT_PX, x : x + DIGIT_PX] = np.rint(255 * _magnified(ink))
    return pixels


def noise_stroke(rng: Generator) -> Ink:
    """A bent line from border to border, as coarse as the digits, shape (8, 8)."""
    fine = Image.new("L", (64, 64))
    angle = rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    t = np.linspace(-1, 1, 33)[:, None]
    bend, shift = rng.uniform(-14, 14, 2)
    line = 32 + 40 * t * along + (bend * (1 - t**2) + shift) * across  # (33, 2)
    ImageDraw.Draw(fine).line([tuple(point) for point in line.tolist()], fill=255, width=int(rng.integers(8, 14)))
    return np.asarray(fine.reduce(8), np.float32) / 255


def _magnified(small: Ink) -> Ink:
    """From 8 x 8 to ``DIGIT_PX``, smooth."""
    large = Image.fromarray(small).resize((DIGIT_PX, DIGIT_PX), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(large), 0, 1)


@lru_cache(1)
def _digits() -> tuple[Ink, NDArray[np.int64]]:
    """Images as shares of ink, shape (1797, 8, 8), and their classes, shape (1797,)."""
    found = load_digits()
    return (found.images / 16).astype(np.float32), found.target


def make_digits(folder: Path, plan: DigitsPlan) -> Path:
    """Write all canvases, their outlines and the manifest; the manifest's path."""
    rows = []
    for canvas in (canvas for canvas in plan_canvases(plan) if canvas.part in plan.parts):
        image, outline = f"images/{canvas.slide_id}.png", f"annotations/{canvas.slide_id}.xml"
        for name in (image, outline):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(canvas, plan.side_px0)).save(folder / image)
        write_asap(folder / outline, list(outlines(canvas.digits)))
        rows.append(
            {"slide_id": canvas.slide_id, "path": image, "split": canvas.part, "annotation": outline} | canvas.tasks
        )
    manifest = folder / "manifest.csv"
    with atomic_path(manifest) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False, lineterminator="\n")
    return manifest


def outlines(digits: Sequence[Digit]) -> Iterator[NDArray[np.float64]]:
    """The square of each digit, shape (4, 2): x, y in level-0 px."""
    square = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], float) * DIGIT_PX
    for digit in digits:
        yield square + np.array([digit.x_px0, digit.y_px0])


def main() -> None:
    """Write a cohort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    defaults = asdict(DigitsPlan())
    for name in ("canvases", "side_px0", "noise", "seed"):
        parser.add_argument(f"--{name.removesuffix('_px0')}", dest=name, type=int, default=defaults[name])
    arguments = vars(parser.parse_args())
    print(make_digits(arguments.pop("folder"), DigitsPlan(**arguments)))


if __name__ == "__main__":
    main()
