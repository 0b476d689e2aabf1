"""Readers of other packages: a class with two members and an entry, used by name and by ``auto``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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


ARRAYS = """
import numpy as np
from wsi_ips.errors import UnsupportedSlideError
from wsi_ips.geometry import Scale
from wsi_ips.slides import ArrayReader
from wsi_ips.slides.readers import ReaderEntry

def open_array(file):
    if file.source.read_at(0, 6) != b"\\x93NUMPY":
        raise UnsupportedSlideError(f"slide {file.name}: no NumPy array")
    return ArrayReader([np.load(file.path)], file.mpp_override or Scale(0.5, 0.5), name=file.name)

ENTRY = ReaderEntry("npy", f"{__name__}:open_array", "arrays of NumPy", tried=True, suffixes=(".npy",))
"""


def install(folder: Path, module: str, code: str, name: str) -> None:
    """Lay a package with an entry point, as pip would, into a folder of ``sys.path``."""
    (folder / f"{module}.py").write_text(code)
    facts = folder / f"{module}-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[wsi_ips.readers]\n{name} = {module}:ENTRY\n")


def checked(target: Path, installed: Path) -> str:
    """What `wsi-ips check` prints where a package is installed."""
    paths = (str(installed), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, "-m", "wsi_ips", "check", str(target)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def test_an_installed_package_adds_a_format_by_its_entry_point_alone(tmp_path):
    """`check` finds the file in the folder by the package's suffix and opens it by the package's reader."""
    slides, installed = tmp_path / "slides", tmp_path / "site"
    slides.mkdir()
    installed.mkdir()
    install(installed, "wsi_ips_arrays", ARRAYS, "npy")
    np.save(slides / "a.npy", np.full((300, 500, 3), 240, np.uint8))
    text = checked(slides, installed)
    assert "a array 500 x 300 1 0.5" in text
    assert "1 slides: 1 usable" in text


def czi_reader() -> str:
    """The reader that the documentation prints."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return str(code)


def test_the_reader_in_the_documentation_reads_czi(tmp_path, monkeypatch):
    czi = pytest.importorskip("pylibCZIrw.czi")
    pixels = np.random.default_rng(0).integers(0, 255, (601, 903, 3), np.uint8)
    path = tmp_path / "a.czi"
    with czi.create_czi(str(path)) as file:
        file.write(pixels[..., ::-1].copy(), plane={"C": 0})
        file.write_metadata(document_name="a", scale_x=0.25e-6, scale_y=0.3e-6)
    space: dict[str, object] = {"__name__": "czi_reader"}
    exec(czi_reader(), space)
    entry = space["ENTRY"]
    monkeypatch.setattr(ReaderEntry, "load", lambda self: space["CziReader"])
    monkeypatch.setattr(readers, "READERS", Registry("reader", (entry,), group="wsi_ips.none"))
    with open_slide(path, reader="czi") as slide:
        assert slide.info.mpp == pytest.approx((0.25, 0.3))
        assert slide.info.level_sizes == (Size(903, 601), Size(451, 300))
        np.testing.assert_array_equal(slide.read_region(Point(13, 7), 0, Size(90, 50)), pixels[7:57, 13:103])
        assert slide.read_region(Point(0, 0), 1, Size(451, 300)).shape == (300, 451, 3)
