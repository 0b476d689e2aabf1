"""The identity of a slide's content notices what matters, wherever it lies, and nothing else."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pydicom
import tifffile

from tests.faults.slides import recipe_of, write_cohort, write_good
from tests.pyramids import textured_pyramid, write_jpeg_pyramid, write_pyramid
from wsi_ips.pipeline import Run, run_stage
from wsi_ips.slides import content_identity, source

LEVELS = textured_pyramid()


def with_directory_in_the_middle(path: Path) -> tuple[int, ...]:
    """A TIFF of 26 MB whose directory and resolution lie where no sample is taken; the positions of the resolution."""
    pixels = np.random.default_rng(0).integers(0, 255, (1536, 2048, 3), np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None, resolution=(5000, 5000))
    raw = bytearray(path.read_bytes())
    raw += bytes(-len(raw) % 2)
    (start,) = struct.unpack_from("<I", raw, 4)
    (count,) = struct.unpack_from("<H", raw, start)
    directory, values, moved = bytearray(raw[start : start + 6 + 12 * count]), bytearray(), len(raw) + 1_000_000
    places = []
    for n in range(count):
        tag, _, _, where = struct.unpack_from("<HHII", directory, 2 + 12 * n)
        if tag in (282, 283):
            places.append(moved + len(directory) + len(values))
            struct.pack_into("<I", directory, 2 + 12 * n + 8, places[-1])
            values += raw[where : where + 8]
    raw += bytes(moved - len(raw)) + directory + values
    struct.pack_into("<I", raw, 4, moved)
    path.write_bytes(raw + np.random.default_rng(1).bytes(16_000_000))
    return tuple(places)


def test_a_scale_corrected_in_place_in_the_middle_of_a_large_file_is_noticed(tmp_path):
    path = tmp_path / "a.tif"
    places = with_directory_in_the_middle(path)
    size = path.stat().st_size
    assert size > source.WHOLE_BYTES
    step = (size - source.SAMPLE_BYTES) / (source.SAMPLES - 1)
    sampled = [round(n * step) for n in range(source.SAMPLES)]
    assert not any(start <= at < start + source.SAMPLE_BYTES for start in sampled for at in places)
    before = content_identity(path)
    with path.open("r+b") as file:
        for at in places:
            file.seek(at)
            file.write(struct.pack("<II", 10_000, 1))
    assert content_identity(path) != before


def test_other_tiles_of_the_same_size_are_noticed_in_a_large_file_by_their_byte_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(source, "SAMPLE_BYTES", 16)
    path = write_jpeg_pyramid(tmp_path / "a.tif", LEVELS, quality=80)
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages.first.tags
        offsets, counts, places = tags[324].value, tags[325].value, tags[325].valueoffset
    before = content_identity(path)
    data = bytearray(path.read_bytes())
    data[offsets[3] + 40 : offsets[3] + counts[3]] = bytes(counts[3] - 40)
    struct.pack_into("<I", data, places + 12, counts[3] - 1)
    path.write_bytes(data)
    assert content_identity(path) != before


def test_any_byte_of_a_small_file_counts_and_its_name_does_not(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", LEVELS)
    before = content_identity(path)
    shutil.copy(path, tmp_path / "b.tif")
    assert content_identity(tmp_path / "b.tif") == before
    data = bytearray(path.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), 20).tolist():
        changed = data.copy()
        changed[at] ^= 1
        path.write_bytes(changed)
        assert content_identity(path) != before


def test_all_files_of_a_dicom_series_count_and_no_others(tmp_path, real_data):
    def save(name: str, series: str, columns: int) -> Path:
        found = pydicom.dcmread(real_data / "slides" / "w2d_jpeg.dcm")
        found.SeriesInstanceUID, found.TotalPixelMatrixColumns = series, columns
        found.save_as(tmp_path / name)
        return tmp_path / name

    fine, coarse = save("a.dcm", "1.2.3.4", 957), save("b.dcm", "1.2.3.4", 478)
    other = save("c.dcm", "1.2.3.44", 957)
    (tmp_path / "d.dcm").write_bytes(b"no DICOM")
    whole = content_identity(fine)
    assert content_identity(coarse) == whole
    assert source.content_bytes(fine) == fine.stat().st_size + coarse.stat().st_size
    other.unlink()
    assert content_identity(fine) == whole
    coarse.unlink()
    assert content_identity(fine) != whole


def test_a_slide_that_changes_while_it_is_tiled_fails_with_the_reason(tmp_path, monkeypatch):
    write_cohort(tmp_path, write_good(tmp_path, 1), workers=0)
    from wsi_ips.pipeline import tile_slide

    plain = tile_slide.read_overview

    def overwriting(*arguments, **named):
        found = plain(*arguments, **named)
        write_pyramid(tmp_path / "good_00.tif", textured_pyramid(7))
        return found

    monkeypatch.setattr(tile_slide, "read_overview", overwriting)
    run_stage(recipe_of(tmp_path), "tile")
    run = Run.open(recipe_of(tmp_path))
    assert run.states["good_00"].state == "failed"
    assert "its file changed while it was read" in run.states["good_00"].reason
