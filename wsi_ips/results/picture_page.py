"""Page layout around a heatmap: header, legend, scale bar, fonts. Knows nothing about scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsi_ips.geometry import Box, Size

INK, SOFT_INK, PAPER, HAIRLINE = (25, 25, 28), (95, 95, 100), (255, 255, 255), (200, 202, 208)
HATCH = (60, 95, 170)
RESEARCH = "Research use only"
SCALE_BARS_UM = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class Frame:
    """Layout of a page; lengths in page pixels.

    Text grows with the map, so that it stays readable when the page is shown small.
    """

    map_size: Size  # size of the map on the page

    def px(self, length: float) -> int:
        """Scale a length that is given for a map 1000 px wide."""
        return round(length * max(1.0, self.map_size.width / 1000, self.map_size.height / 1400))

    @property
    def page_size(self) -> Size:
        """Size of the whole page."""
        width = max(self.px(560), self.map_size.width + 2 * self.px(16))
        return Size(width, self.px(84) + self.map_size.height + self.px(88))

    @property
    def map_box(self) -> Box:
        """Place of the map: centred between the edges."""
        return Box((self.page_size.width - self.map_size.width) // 2, self.px(84), *self.map_size)

    def blank(self) -> Image.Image:
        """Return an empty page with a hairline around the map."""
        page = Image.new("RGB", self.page_size, PAPER)
        box = self.map_box
        ImageDraw.Draw(page).rectangle([box.x - 1, box.y - 1, box.right, box.bottom], outline=HAIRLINE)
        return page


def probability_text(probability: float) -> str:
    """Format a probability with three digits, without rounding it to 0 or 1."""
    if 0.9995 <= probability < 1:
        return "> 0.999"
    return "< 0.001" if 0 < probability < 0.0005 else f"{probability:.3f}"


def verdict_text(class_name: str, probability: float | None) -> str:
    """Return what a slide is called, empty where its probability is not known."""
    return "" if probability is None else f"slide: {class_name} {probability_text(probability)}"


def draw_header(page: Image.Image, frame: Frame, rows: Sequence[tuple[str, str]]) -> None:
    """Draw three rows of text, left and right, above the map; a left part that does not fit is cut."""
    draw, margin = ImageDraw.Draw(page), frame.px(16)
    tops, sizes, inks = (10, 38, 60), (20, 15, 12), (INK, INK, SOFT_INK)
    for (left, right), top, size, ink in zip(rows, tops, sizes, inks, strict=True):
        letters = font(frame.px(size), bold=top == tops[0])
        room = page.width - 2 * margin - letters.getlength(right) - frame.px(16)
        draw.text((margin, frame.px(top)), fitted(left, room, letters), ink, letters)
        draw.text((page.width - margin, frame.px(top)), right, ink, letters, anchor="ra")


def draw_legend(page: Image.Image, frame: Frame, title: str, bar: NDArray[np.uint8], marks: Sequence[str]) -> None:
    """Draw the colour bar (n, 3) below the map, lowest first; ``marks`` are spaced evenly along it."""
    draw, left, top, letters = ImageDraw.Draw(page), frame.px(16), frame.map_box.bottom, font(frame.px(12))
    width, height = frame.px(250), frame.px(14)
    draw.text((left, top + frame.px(10)), title, INK, letters)
    upper = top + frame.px(32)
    page.paste(Image.fromarray(np.ascontiguousarray(bar[None])).resize((width, height)), (left, upper))
    draw.rectangle([left - 1, upper - 1, left + width, upper + height], outline=SOFT_INK)
    anchors = ("la", *["ma"] * (len(marks) - 2), "ra")
    for position, mark, anchor in zip(np.linspace(0, width, len(marks)), marks, anchors, strict=True):
        draw.text((left + position, upper + height + frame.px(5)), mark, INK, letters, anchor=anchor)


def draw_scale_bar(page: Image.Image, frame: Frame, um_per_px: float) -> None:
    """Draw the longest round length that fits a quarter of the map, below its right corner."""
    draw, right, top = ImageDraw.Draw(page), page.width - frame.px(16), frame.map_box.bottom + frame.px(34)
    room = min(frame.px(200), max(frame.px(40), frame.map_size.width / 4))
    fitting = [um for um in SCALE_BARS_UM if um / um_per_px <= room]
    length_um = fitting[-1] if fitting else SCALE_BARS_UM[0]
    length, half = length_um / um_per_px, frame.px(3)
    draw.rectangle([right - round(length), top - half, right - 1, top + half - 1], INK)
    text = f"{length_um} µm" if length_um < 1000 else f"{length_um // 1000} mm"
    draw.text((right - length / 2, top + frame.px(7)), text, INK, font(frame.px(12)), anchor="ma")


Key = tuple[str, Callable[[Image.Image, Frame, Box], None]]  # text of a sign; draws a sample of it into a box


def draw_keys(page: Image.Image, frame: Frame, keys: Sequence[Key]) -> None:
    """Draw the key of outlines and hatching, each sample followed by its text; right-aligned below the map."""
    draw, letters = ImageDraw.Draw(page), font(frame.px(12))
    right, y = page.width - frame.px(16), frame.map_box.bottom + frame.px(16)
    for text, sample in keys:
        draw.text((right, y), text, INK, letters, anchor="rm")
        start = right - math.ceil(letters.getlength(text)) - frame.px(32)
        sample(page, frame, Box(start, y - frame.px(6), frame.px(24), frame.px(12)))
        right = start - frame.px(14)


def draw_line_sample(page: Image.Image, frame: Frame, box: Box) -> None:
    """Draw a piece of an outline."""
    y = box.y + box.height // 2
    draw_outline(ImageDraw.Draw(page), [(box.x, y), (box.right, y)], frame)


def draw_hatch_sample(page: Image.Image, frame: Frame, box: Box) -> None:
    """Draw a hatched box."""
    sample = Image.new("RGB", (box.width, box.height), PAPER)
    hatch(sample, np.ones((box.height, box.width), bool), frame)
    page.paste(sample, (box.x, box.y))
    ImageDraw.Draw(page).rectangle([box.x - 1, box.y - 1, box.right, box.bottom], outline=HATCH)


def hatch(picture: Image.Image, where: NDArray[np.bool_], frame: Frame) -> None:
    """Draw thin diagonal lines over some pixels (bool, shape of the picture); pixels between lines stay as they are."""
    rows, columns = np.arange(where.shape[0])[:, None], np.arange(where.shape[1])[None]
    lines = (rows + columns) % frame.px(9) < max(1, frame.px(1))
    picture.paste(HATCH, mask=Image.fromarray(where & lines))


def draw_outline(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], frame: Frame) -> None:
    """Draw a thin black line with a light edge, visible on dark and on pale tissue."""
    draw.line(points, (255, 255, 255), frame.px(1) + 2, joint="curve")
    draw.line(points, (0, 0, 0), frame.px(1), joint="curve")


def fitted(text: str, width: float, letters: ImageFont.FreeTypeFont) -> str:
    """Cut a text to a width with an ellipsis."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@lru_cache(32)
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which Matplotlib ships and which has a µ."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties, fallback_to_default=True), size)
