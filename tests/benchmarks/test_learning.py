"""Figures of the learning benchmarks by hand, and their table; a training that fails is named and leaves the others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch

from benchmarks.learning.needle import few_outlines
from benchmarks.learning.runs import cell, figures_of, in_own_process
from benchmarks.support.digit_encoder import DigitEncoder


def slide(*, truth: bool, score: float, tumour: list[int], tiles: list[float], kept: list[int]) -> dict[str, object]:
    is_tumour, values = np.array(tumour, bool), np.array(tiles)
    return {
        "truth": truth,
        "score": score,
        "tumour": is_tumour,
        "tiles": values,
        "by_tiles": float(values.mean()),
        "kept": is_tumour[kept],
    }


def test_figures_by_hand():
    rows = [
        slide(truth=True, score=0.9, tumour=[1, 1, 1, 0], tiles=[0.9, 0.8, 0.3, 0.2], kept=[0, 3]),  # one of two places
        slide(truth=True, score=0.1, tumour=[1, 0, 0, 0], tiles=[0.4, 0.7, 0.1, 0.1], kept=[1, 2]),  # missed
        slide(truth=False, score=0.2, tumour=[0, 0, 0, 0], tiles=[0.1, 0.1, 0.1, 0.1], kept=[0, 1]),
    ]
    found = figures_of(rows)
    assert found["slides"] == 3
    assert found["auc"] == pytest.approx(0.5)
    assert found["auc_by_tiles"] == 1.0
    assert found["selection_recall"] == pytest.approx((1 / 2 + 0 / 1) / 2)
    assert found["found"] == 0.5
    assert found["pointing"] == 0.5
    # Pairs of a tumour tile and another one that are ranked right: 8 + 8 + 7 + 7 of 4 x 8.
    assert found["tile_auc"] == pytest.approx(30 / 32)


def test_a_cell_is_the_mean_with_its_range_of_those_that_were_made():
    assert cell([{"auc": 0.5}, {"auc": 1.0}, None, {}], "auc", 2) == "0.75 (0.50–1.00)"
    assert cell([{"auc": 0.5}], "auc", 1) == "0.5"
    assert cell([None], "auc", 1) == ""


def test_a_process_is_run_once_and_one_that_fails_is_named(tmp_path, capfd):
    result = tmp_path / "one" / "figures.json"
    program = ["timeit", "-n", "1", "-r", "1", f"open({str(result)!r}, 'w').write('[4]')"]
    assert in_own_process(result, program) == [4]
    result.write_text(json.dumps([5]), encoding="utf-8")
    assert in_own_process(result, program) == [5]
    failed = tmp_path / "two" / "figures.json"
    assert in_own_process(failed, ["timeit", "-n", "1", "raise OSError('no disk')"]) is None
    assert "two failed" in capfd.readouterr().err
    assert "no disk" in (failed.parent / "log.txt").read_text(encoding="utf-8")


def test_the_encoder_of_the_digits_is_known_to_timm_and_sees_no_ground():
    encoder = timm.create_model("digit_encoder")
    assert isinstance(encoder, DigitEncoder)
    assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, encoder.num_features)
    with pytest.raises(RuntimeError, match="no published weights"):
        timm.create_model("digit_encoder", pretrained=True)


def test_few_outlines_are_a_quarter_of_the_tumour_slides_that_teach_and_all_that_are_tested(tmp_path):
    manifest = tmp_path / "manifest.csv"
    rows = [f"t{n},{split},t{n}.xml" for n, split in enumerate(["train"] * 8 + ["val"] * 2 + ["test"] * 3)]
    manifest.write_text("\n".join(["slide_id,split,annotation", *rows, "n0,train,"]) + "\n", encoding="utf-8")
    written = few_outlines(manifest).read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in written[1:] if line.split(",")[2]] == ["t0", "t1", "t10", "t11", "t12"]
