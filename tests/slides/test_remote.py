"""Slides behind a URL: the same tiles, by ranges, from a real HTTP server; and what is said when it fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.pyramids import HEIGHT, WIDTH, textured_pyramid, write_jpeg_pyramid, write_pyramid
from tests.slides.range_server import Behaviour, serving
from wsi_ips.errors import RegionReadError, SlideNotFoundError, UnsupportedSlideError
from wsi_ips.geometry import Point, Size
from wsi_ips.slides import Remote, content_identity, open_slide, remote_file

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
SOON = Remote(timeout_s=0.5, attempts=2)
DESCRIPTION = "Aperio Image Library\n1031x773|MPP = 0.25"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_jpeg_pyramid(folder / "a slide.svs", textured_pyramid()[:1], quality=80, description=DESCRIPTION)
    write_pyramid(folder / "deflate.tif", textured_pyramid())
    return folder


@pytest.fixture
def server(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Behaviour]]:
    monkeypatch.setattr(remote_file, "FIRST_PAUSE_S", 0.01)
    with serving(files) as running:
        yield running


@pytest.mark.parametrize(("name", "pixels_by"), [("a slide.svs", "direct"), ("deflate.tif", "tiffslide")])
def test_the_same_pixels_as_the_file_here(server, files, name, pixels_by):
    url, _ = server
    with open_slide(f"{url}/{name}", mpp_override=0.25) as there, open_slide(files / name, mpp_override=0.25) as here:
        assert there.info.name == name
        assert there.info.pixels_by.startswith(pixels_by)
        assert there.info.level_sizes == here.info.level_sizes
        for level, size in enumerate(here.info.level_sizes):
            np.testing.assert_array_equal(
                there.read_region(Point(0, 0), level, size), here.read_region(Point(0, 0), level, size)
            )


def test_scale_and_identity_are_those_of_the_file(server, files):
    url, _ = server
    with open_slide(f"{url}/a slide.svs") as reader:
        assert reader.info.mpp == (0.25, 0.25)
    assert content_identity(f"{url}/a slide.svs") == content_identity(files / "a slide.svs")


def test_only_what_is_needed_is_fetched(server, files, monkeypatch):
    monkeypatch.setattr(remote_file, "BLOCK_BYTES", 8 * 1024)
    url, behaviour = server
    whole = (files / "a slide.svs").stat().st_size
    with open_slide(f"{url}/a slide.svs") as reader:
        behaviour.requests.clear()
        reader.read_region(Point(300, 200), 0, Size(64, 64))
        assert 0 < sum(count for _, count in behaviour.requests) < whole / 4
        behaviour.requests.clear()
        reader.read_region(Point(300, 200), 0, Size(64, 64))
        assert behaviour.requests == []


@pytest.mark.parametrize("trouble", ["fail_next", "cut_next"])
def test_a_hiccup_is_tried_again(server, files, trouble):
    url, behaviour = server
    with open_slide(f"{url}/a slide.svs") as reader, open_slide(files / "a slide.svs") as here:
        reader._source._blocks.clear()
        setattr(behaviour, trouble, 2)
        np.testing.assert_array_equal(
            reader.read_region(Point(0, 0), 0, Size(WIDTH, HEIGHT)),
            here.read_region(Point(0, 0), 0, Size(WIDTH, HEIGHT)),
        )
        assert getattr(behaviour, trouble) == 0


def test_a_server_that_stays_down_is_named_with_attempts_and_advice(server):
    url, behaviour = server
    with open_slide(f"{url}/a slide.svs", remote=SOON) as reader:
        reader._source._blocks.clear()
        behaviour.fail_next = 99
        with pytest.raises(
            RegionReadError, match=r"a slide\.svs.*did not give bytes \d+-\d+ in 2 attempts.*start again"
        ):
            reader.read_region(Point(0, 0), 0, Size(64, 64))


def test_a_server_that_does_not_answer_in_time_is_given_up(server):
    url, behaviour = server
    with open_slide(f"{url}/a slide.svs", remote=SOON) as reader:
        reader._source._blocks.clear()
        behaviour.wait_s = 1.5
        with pytest.raises(RegionReadError, match=r"2 attempts of at most 0\.5 s"):
            reader.read_region(Point(0, 0), 0, Size(64, 64))


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, SlideNotFoundError, "nothing at http://127.0.0.1"),
        (403, RegionReadError, "refuses access"),
        (500, RegionReadError, "in 2 attempts"),
    ],
)
def test_refusals_on_opening(server, status, error, message):
    url, behaviour = server
    behaviour.status = status
    with pytest.raises(error, match=message):
        open_slide(f"{url}/a slide.svs", remote=SOON)


def test_nobody_there(server):
    with pytest.raises(RegionReadError, match=r"slide s\.svs: http://127\.0\.0\.1:9/s\.svs did not give its size"):
        open_slide("http://127.0.0.1:9/s.svs", remote=SOON)


def test_a_server_without_ranges_is_refused_and_not_downloaded_again_and_again(server):
    url, behaviour = server
    behaviour.ranges = False
    with pytest.raises(UnsupportedSlideError, match="range"):
        open_slide(f"{url}/deflate.tif", remote=SOON)


def test_a_secret_in_the_url_is_not_shown(server):
    url, behaviour = server
    behaviour.status = 403
    secret = url.replace("http://", "http://user:hunter2@") + "/a slide.svs?signature=geheim"
    with pytest.raises(RegionReadError) as caught:
        open_slide(secret, remote=SOON)
    assert "hunter2" not in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_what_only_openslide_reads_must_be_here(server, files):
    url, _ = server
    (files / "other.mrxs").write_bytes(b"not a TIFF" * 20)
    with pytest.raises(UnsupportedSlideError, match="behind a URL only slides that `tiffslide` or `image` opens"):
        open_slide(f"{url}/other.mrxs", remote=SOON)
    with pytest.raises(UnsupportedSlideError, match="copy the slide to a disk"):
        open_slide(f"{url}/a slide.svs", reader="openslide")
