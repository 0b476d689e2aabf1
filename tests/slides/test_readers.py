"""Readers of other packages: a class with two members and an entry, used by name and by ``auto``."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_ips.errors import RecipeError, UnsupportedSlideError
from wsi_ips.geometry import Point, ReadPlan, Scale, Size
from wsi_ips.registry import Registry
from wsi_ips.slides import ArrayReader, SlideReader, TileCache, open_slide, read_patch, readers
from wsi_ips.slides.readers import ReaderEntry, SlideFile


class Plain(SlideReader):
    """Defines ``info`` and ``read_region`` only."""

    def __init__(self) -> None:
        self.inner = ArrayReader([np.arange(48, dtype=np.uint8).reshape(4, 4, 3)], Scale(0.5, 0.5), name="plain")
        self.info = self.inner.info
        self.shared: TileCache | None = None

    def read_region(self, location_px0, level, size_px):
        return self.inner.read_region(location_px0, level, size_px)

    def share(self, cache):
        self.shared = cache


def open_plain(file: SlideFile) -> Plain:
    if file.source.read_at(0, 5) != b"plain":
        raise UnsupportedSlideError(f"slide {file.name}: not plain")
    return Plain()


@pytest.fixture
def path(tmp_path, monkeypatch):
    own = ReaderEntry("plain", f"{__name__}:open_plain", "a test's", tried=True)
    registry = Registry("reader", (*readers.READERS.values(), own), group="wsi_ips.none")
    monkeypatch.setattr(readers, "READERS", registry)
    path = tmp_path / "a.plain"
    path.write_bytes(b"plain" * 10)
    return path


@pytest.mark.parametrize("name", ["plain", "auto"])
def test_a_reader_of_another_package_is_opened_by_name_and_tried_by_auto(path, name):
    cache = TileCache()
    with open_slide(path, reader=name, cache=cache) as reader:
        assert isinstance(reader, Plain)
        assert reader.shared is cache
        whole = ReadPlan(0, Scale(1, 1), Size(2, 2), Size(2, 2), 0.5, Scale(0.5, 0.5))
        np.testing.assert_array_equal(read_patch(reader, Point(1, 1), whole)[0, 0], [15, 16, 17])
        assert not reader.shrinks(Point(0, 0), 0, Size(2, 2), 2)


def test_the_message_lists_what_every_reader_says(path):
    path.write_bytes(b"other" * 10)
    with pytest.raises(UnsupportedSlideError, match=r"not a format OpenSlide knows; .*; not plain\)"):
        open_slide(path)


def test_an_unknown_reader_is_named_with_the_known_ones(path):
    with pytest.raises(RecipeError, match=r"there is no reader `pla`; did you mean `plain`\?"):
        open_slide(path, reader="pla")
