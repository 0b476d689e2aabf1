"""A slide whose scanned part does not begin at the corner: Leica SCN, opened by OpenSlide's own driver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.pyramids import HEIGHT, TILE_HEIGHT, TILE_WIDTH, WIDTH, encode, jpeg_tiles, textured_pyramid
from wsi_ips.geometry import Box, Point, Size, plan_read
from wsi_ips.slides import open_slide, read_area, read_patch
from wsi_ips.tiles.index import tile_grid

LEFT, TOP, NM = 300, 200, 250
SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c" uuid="1" sizeX="{whole_x}"
sizeY="{whole_y}"><barcode/>{images}</collection></scn>"""
IMAGE = """<image name="{name}" uuid="{name}"><creationDate>2020</creationDate><device model="m" version="1"/>
<pixels sizeX="{sizes[0][0]}" sizeY="{sizes[0][1]}">{dimensions}</pixels><view sizeX="{view[2]}" sizeY="{view[3]}"
offsetX="{view[0]}" offsetY="{view[1]}" spacingZ="0"/><scanSettings><objectiveSettings><objective>40</objective>
</objectiveSettings><illuminationSettings><numericalAperture>0.7</numericalAperture><illuminationSource>brightfield
</illuminationSource></illuminationSettings></scanSettings></image>"""
DIMENSION = '<dimension sizeX="{0}" sizeY="{1}" r="{2}" ifd="{3}"/>'


def image_xml(name: str, sizes: list[tuple[int, int]], first: int, view: tuple[int, int, int, int]) -> str:
    dimensions = "".join(DIMENSION.format(*size, n, first + n) for n, size in enumerate(sizes))
    return IMAGE.format(name=name, sizes=sizes, dimensions=dimensions, view=view).replace(
        "brightfield\n", "brightfield"
    )


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole slide is 700 x 500 px larger than what was scanned, which begins at (300, 200)."""
    levels = textured_pyramid()
    scanned, macro = levels[:2], levels[2]
    whole = ((WIDTH + 700) * NM, (HEIGHT + 500) * NM)
    images = image_xml("macro", [(macro.shape[1], macro.shape[0])], 0, (0, 0, *whole)) + image_xml(
        "main", [(p.shape[1], p.shape[0]) for p in scanned], 1, (LEFT * NM, TOP * NM, WIDTH * NM, HEIGHT * NM)
    )
    path = tmp_path_factory.mktemp("bounds") / "leica.scn"
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for number, pixels in enumerate([macro, *scanned]):
            tif.write(
                iter([encode(tile, rgb=False, quality=90) for tile in jpeg_tiles(pixels)]),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(TILE_HEIGHT, TILE_WIDTH),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=(2, 2),
                description=SCN.format(whole_x=whole[0], whole_y=whole[1], images=images) if number == 0 else None,
                resolution=(1e7 / NM, 1e7 / NM),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def test_bounds_are_those_of_the_file_and_the_size_is_the_whole_slides(slide):
    with open_slide(slide) as reader:
        assert reader.info.size_px0 == Size(WIDTH + 700, HEIGHT + 500)
        assert reader.info.bounds == Box(LEFT, TOP, WIDTH, HEIGHT)
        assert reader.info.mpp == pytest.approx((0.25, 0.25))
        assert reader.info.pixels_by == "openslide: leica places tiles by its own rules"


def test_coordinates_are_of_the_full_slide(slide):
    level0 = textured_pyramid()[0]
    with open_slide(slide) as reader:
        pixels = reader.read_region(Point(LEFT + 40, TOP + 30), 0, Size(60, 50))
        off = {
            (x, y): np.abs(level0[30 + y : 80 + y, 40 + x : 100 + x].astype(int) - pixels).mean()
            for x in (-1, 0, 1)
            for y in (-1, 0, 1)
        }
        assert min(off, key=off.__getitem__) == (0, 0)  # a pixel off would be seen
        outside = reader.read_region(Point(0, 0), 0, Size(100, 100))
    assert (outside == 255).all()


def test_the_grid_begins_at_the_bounds_and_stays_inside(slide):
    with open_slide(slide) as reader:
        plan = plan_read(reader.info.pyramid, target_mpp=0.5, patch_size=Size(64, 64))
        grid = tile_grid(reader.info.bounds, plan, stride_px=64)
        assert tuple(grid[0]) == (LEFT, TOP)
        assert (grid + plan.footprint_px0 <= (LEFT + WIDTH, TOP + HEIGHT)).all()
        for x, y in grid:
            assert not (read_patch(reader, Point(int(x), int(y)), plan) == 255).all()
        area, _ = read_area(reader, reader.info.bounds, 1.0)
    assert (area.min((0, 1)) < 200).all()
    assert not (area == 255).all(2).any(0).all()
