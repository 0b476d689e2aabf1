"""The gallery of a package shows the tiles it names."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.results.planted import maps_of, of_grid
from tests.results.scenes import scene
from wsi_ips.results.handoff_pictures import choose_tiles, draw_gallery


def test_the_gallery_shows_the_tiles_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda d, xy, text, *a, **k: said.append(text) or original(d, xy, text, *a, **k)
    )
    s = scene()
    score = np.random.default_rng(5).random(len(s.corners)).astype(np.float32)
    maps = maps_of(s, score)
    choice = choose_tiles(maps, 7)
    patches = s.patches(choice.tiles)
    page = np.asarray(draw_gallery(maps, choice, patches))
    assert score[choice.top].tolist() == sorted(score, reverse=True)[:7]
    assert score[choice.bottom].tolist() == sorted(score)[:7]
    assert {"Research use only" in text for text in said} == {True, False}
    for tile in choice.tiles.tolist():
        assert f"x {s.corners[tile][0]}  y {s.corners[tile][1]}" in said
    assert {"no. 1", "no. 7", f"no. {len(score)}", f"no. {len(score) - 6}"} <= set(said)
    shown = Image.fromarray(patches[0]).resize((200, 200), Image.Resampling.BICUBIC)
    assert any(np.array_equal(page[y : y + 200, 14:214], np.asarray(shown)) for y in range(page.shape[0] - 200))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_slide_of_few_tiles_shows_none_twice(count: int) -> None:
    maps = of_grid(np.linspace(0, 1, 5, dtype=np.float32)[None])
    choice = choose_tiles(maps, count)
    assert len(set(choice.tiles.tolist())) == len(choice.tiles) == min(2 * count, 5)
    assert draw_gallery(maps, choice, np.zeros((len(choice.tiles), 8, 8, 3), np.uint8)).width > 1000
