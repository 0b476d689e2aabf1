"""A small, fixed part of ``benchmarks/mutations.py``: damaged slides end in a reason or in OpenSlide's pixels."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mutations import BAD, mutate, outcome, use
from tests.pyramids import textured_pyramid, write_jpeg_pyramid, write_pyramid


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    levels = [level[::2, ::2].copy() for level in textured_pyramid()]
    return [
        write_jpeg_pyramid(folder / "ycbcr.tif", levels, quality=80),
        write_jpeg_pyramid(folder / "tables.tif", levels, quality=80, components="rgb", shared_tables=True),
        write_pyramid(folder / "deflate.tif", levels),
    ]


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_slide_is_read_or_refused_with_a_reason(tmp_path, slides, seed):
    source = slides[seed % len(slides)]
    way, data = mutate(source, seed)
    path = tmp_path / source.name
    path.write_bytes(data)
    result, detail = use(path, source if way == "truncate" else None)
    assert result not in BAD, detail


def test_it_is_the_same_damage_every_time_and_a_process_of_its_own_tells_what_came_of_it(tmp_path, slides):
    assert mutate(slides[0], 5) == mutate(slides[0], 5) != mutate(slides[0], 6)
    found = outcome(slides[0], 5, tmp_path)
    assert found.result in ("read", "refused")
    assert list(tmp_path.iterdir()) == []
