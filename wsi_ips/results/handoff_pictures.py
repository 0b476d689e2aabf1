"""Pictures of a hand-off package: copies of the overlays, and a gallery of the highest and lowest tiles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsi_ips.results.handoff_package import PackageContent, PackageFile
from wsi_ips.results.overlay import (
    HAIRLINE,
    INK,
    PAPER,
    RESEARCH,
    SOFT_INK,
    fitted,
    font,
    probability_text,
    verdict_text,
)
from wsi_ips.results.score_raster import ScoreMaps
from wsi_ips.slides import RGB

GALLERY_TILES = 12  # highest tiles of a gallery, and as many lowest ones
COLUMNS, TILE_PX, GAP_PX, TEXT_PX, TITLE_PX, HEADER_PX = 6, 200, 14, 42, 40, 92


class Choice(NamedTuple):
    """Rows of the tiles of a gallery, most extreme first; no tile is in both."""

    top: NDArray[np.int64]
    bottom: NDArray[np.int64]

    @property
    def tiles(self) -> NDArray[np.int32]:
        """Rows of all tiles, top first."""
        return np.concatenate([self.top, self.bottom]).astype(np.int32)


def write_overlays(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Copy the overlays and their sidecars, which hold the figure of the self-test."""
    files = []
    for picture in content.material.overlays:
        sidecar = picture.with_suffix(".json")
        alignment = json.loads(sidecar.read_text(encoding="utf-8")).get("alignment")
        check = {"correlation_with_tiles_read_again": alignment}
        copied, beside = (Path(shutil.copyfile(source, folder / source.name)) for source in (picture, sidecar))
        files.append(PackageFile(copied, "picture of a map over the tissue", check))
        files.append(PackageFile(beside, "places the picture on level 0"))
    return files


def write_gallery(folder: Path, content: PackageContent) -> list[PackageFile]:
    """Write ``<slide_id>_gallery.png``; nothing where no tile can be read."""
    maps, material = content.maps, content.material
    rows = np.arange(len(maps), dtype=np.int32) if material.readable is None else material.readable
    if material.read_tiles is None or not len(rows):
        return []
    seen = maps.only(rows)
    choice = choose_tiles(seen, GALLERY_TILES)
    path = folder / f"{maps.slide_id}_gallery.png"
    draw_gallery(seen, choice, material.read_tiles(rows[choice.tiles])).save(path, "PNG")
    return [PackageFile(path, "tiles with the highest and the lowest scores")]


def choose_tiles(maps: ScoreMaps, count: int) -> Choice:
    """Choose the ``count`` highest and lowest tiles of the first map; where tiles are few, the top gets more."""
    order = maps.best_first()
    top = order[:count]
    return Choice(top, order[len(top) :][::-1][:count])


def draw_gallery(maps: ScoreMaps, choice: Choice, patches: NDArray[np.uint8]) -> Image.Image:
    """Return the page; ``patches`` are the pixels of ``choice.tiles``, shape (k, h, w, 3)."""
    top, bottom = patches[: len(choice.top)], patches[len(choice.top) :]
    score_name = next(iter(maps.scores))
    parts = (
        (f"Highest {score_name} of {len(maps)} tiles", choice.top, top, 1, 1),
        (f"Lowest {score_name}", choice.bottom, bottom, len(maps), -1),
    )
    shown = [part for part in parts if len(part[1])]
    width = COLUMNS * (TILE_PX + GAP_PX) + GAP_PX
    page = Image.new("RGB", (width, HEADER_PX + sum(_height(len(tiles)) for _, tiles, *_ in shown)), PAPER)
    _header(page, maps)
    y = HEADER_PX
    for title, tiles, pixels, first, step in shown:
        ImageDraw.Draw(page).text((GAP_PX, y + 10), title, INK, font(17, bold=True))
        _rows(page, y + TITLE_PX, maps, tiles, pixels, range(first, first + step * len(tiles), step))
        y += _height(len(tiles))
    return page


def _height(tiles: int) -> int:
    return TITLE_PX + -(-tiles // COLUMNS) * (TILE_PX + TEXT_PX)


def _header(page: Image.Image, maps: ScoreMaps) -> None:
    draw, (width, height) = ImageDraw.Draw(page), maps.footprint_px0.times(maps.mpp)
    said = verdict_text(maps.class_name, maps.probability)
    said += " · " if said else ""
    lines = (
        (maps.slide_id, 20, INK, True),
        (f"{said}each tile {width:.0f} x {height:.0f} µm · x, y: its upper left corner, level-0 px", 14, INK, False),
        (f"model {maps.model_id} · {RESEARCH}", 12, SOFT_INK, False),
    )
    for top, (text, size, ink, bold) in zip((10, 40, 64), lines, strict=True):
        letters = font(size, bold=bold)
        draw.text((GAP_PX, top), fitted(text, page.width - 2 * GAP_PX, letters), ink, letters)


def _rows(
    page: Image.Image, top: int, maps: ScoreMaps, tiles: NDArray[np.int64], pixels: Sequence[RGB] | RGB, ranks: range
) -> None:
    draw, letters = ImageDraw.Draw(page), font(12)
    for place, (tile, patch, rank) in enumerate(zip(tiles.tolist(), pixels, ranks, strict=True)):
        x = GAP_PX + place % COLUMNS * (TILE_PX + GAP_PX)
        y = top + place // COLUMNS * (TILE_PX + TEXT_PX)
        page.paste(Image.fromarray(patch).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC), (x, y))
        draw.rectangle([x - 1, y - 1, x + TILE_PX, y + TILE_PX], outline=HAIRLINE)
        draw.text((x, y + TILE_PX + 4), f"no. {rank}", SOFT_INK, letters)
        draw.text((x + TILE_PX, y + TILE_PX + 4), probability_text(float(maps.score[tile])), INK, letters, anchor="ra")
        draw.text((x, y + TILE_PX + 20), f"x {maps.x[tile]}  y {maps.y[tile]}", SOFT_INK, letters)
