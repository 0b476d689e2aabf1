"""Split files: read back as they were written, and refused where they were changed."""

from __future__ import annotations

import json

import pytest

from tests.manifest.test_make_splits import cohort
from wsi_ips.errors import ManifestError
from wsi_ips.manifest.make_splits import fixed_splits, k_folds
from wsi_ips.manifest.splits import Splits, read_splits, write_splits


@pytest.mark.parametrize("ending", ["json", "csv"])
@pytest.mark.parametrize("folds", [1, 3])
def test_written_and_read_back(tmp_path, ending, folds):
    members = cohort(20)
    splits = k_folds(members, 3, 0.1, seed=1) if folds > 1 else fixed_splits(members, (0.7, 0.1, 0.2), seed=1)
    path = tmp_path / f"splits.{ending}"
    write_splits(path, splits)
    again = read_splits(path)
    assert again.folds == splits.folds
    assert again.hash == splits.hash
    assert splits.hash in path.read_text()


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_a_file_that_was_changed_is_refused_until_its_hash_is_taken_out(tmp_path, ending):
    path = tmp_path / f"splits.{ending}"
    write_splits(path, Splits(({"a": "train", "b": "test"},)))
    text = path.read_text().replace("test", "train")
    path.write_text(text)
    with pytest.raises(ManifestError, match="changed since they were saved"):
        read_splits(path)
    path.write_text(text.replace(Splits(({"a": "train", "b": "test"},)).hash, ""))
    assert read_splits(path).folds == ({"a": "train", "b": "train"},)


def test_a_csv_from_elsewhere(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("slide_id,split,comment\na,train,x\nb,,y\nc,test,z\n")
    assert read_splits(path).folds == ({"a": "train", "c": "test"},)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("s.json", "{}", "not made by"),
        ("s.json", "no", "not made by"),
        ("s.json", '{"folds": []}', "no fold"),
        ("s.json", '{"folds": [{"a": "training"}]}', "slide `a`: 'training' is not a split"),
        ("s.json", '[{"folds": [{"a": "train"}]}]', "an object"),
        ("s.json", '{"folds": [{"a": ["train"]}]}', "not made by"),
        ("s.json", '{"folds": [["a"]]}', "not made by"),
        ("s.json", "[" * 100_000, "nested too deeply"),
        ("s.json", '{"folds": [{"a": ' + "9" * 6000 + "}]}", "not made by"),
        ("s.csv", "a,b\n1,2\n", "column `slide_id` is missing"),
        ("s.csv", "slide_id,part\na,train\n", "columns `slide_id` and `split`"),
        ("s.csv", "slide_id,split\na,train\n\na,test\n", "row 4, column `slide_id`: `a` is already in row 2"),
        ("s.csv", "slide_id,split\na,train\n,test\n", "row 3, column `slide_id`: empty"),
        ("s.csv", "slide_id,split\na,tests\n", "row 2, column `split`: 'tests' is none of train, val, test"),
    ],
)
def test_files_that_are_no_splits(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message) as error:
        read_splits(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_file_and_another_ending(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read"):
        read_splits(tmp_path / "none.json")
    with pytest.raises(ManifestError, match=r"\.json or \.csv"):
        write_splits(tmp_path / "s.txt", Splits(({"a": "train"},)))


def test_settings_are_kept(tmp_path):
    path = tmp_path / "s.json"
    write_splits(path, k_folds(cohort(12), 3, 0.1, seed=7))
    assert json.loads(path.read_text())["settings"] == {"folds": 3, "val": 0.1, "seed": 7}
    assert read_splits(path).settings["seed"] == 7
