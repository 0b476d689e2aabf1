"""The schema file, the example and the reader say the same."""

from __future__ import annotations

import csv
from pathlib import Path

import jsonschema
import pytest

from wsi_ips.errors import ManifestError
from wsi_ips.manifest.manifest_csv import read_manifest
from wsi_ips.manifest.slide_record import SlideRecord, manifest_schema, write_schema

FOLDER = Path(__file__).parents[2] / "slides_manifest"
ROW = {"slide_id": "a", "path": "a.svs", "label": "", "patient_id": "", "split": "", "mpp": "", "annotation": ""}


def test_the_stored_schema_is_up_to_date(tmp_path: Path) -> None:
    write_schema(tmp_path / "fresh.json")
    stored = (FOLDER / "manifest.schema.json").read_text(encoding="utf-8")
    assert stored == (tmp_path / "fresh.json").read_text(encoding="utf-8"), "run `make schema`"


def test_the_schema_is_one_and_describes_every_column() -> None:
    schema = manifest_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == list(SlideRecord.model_fields)
    assert all(entry["description"] for entry in schema["properties"].values())


def test_the_example_is_read_and_fits_the_schema() -> None:
    path = FOLDER / "example.csv"
    assert len(read_manifest(path).records) >= 4
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(SlideRecord.model_fields) <= set(rows[0])
    for row in rows:
        jsonschema.validate(row, manifest_schema())


@pytest.mark.parametrize(
    ("column", "text", "good"),
    [
        ("slide_id", "test3-DAPI-2-(387)", True),
        ("slide_id", "😐", True),
        ("slide_id", "", False),
        ("slide_id", "a/b", False),
        ("slide_id", "a\\b", False),
        ("slide_id", ".a", False),
        ("slide_id", "__a", False),
        ("slide_id", "a.", False),
        ("slide_id", "a" * 121, False),
        ("path", "", False),
        ("split", "train", True),
        ("split", "training", False),
        ("slide_id", "com1.x", False),
        ("slide_id", "Nul", False),
        ("slide_id", "console", True),
        ("slide_id", "=1+1", False),
        ("slide_id", "a\u200bb", False),
        ("mpp", "0.25", True),
        ("mpp", "0.25,0.26", True),
        ("mpp", "0,25", False),
        ("mpp", "a", False),
    ],
)
def test_schema_and_reader_agree(tmp_path: Path, column: str, text: str, good: bool) -> None:
    row = {**ROW, column: text}
    path = tmp_path / "manifest.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        writer.writeheader()
        writer.writerow(row)
    if good:
        jsonschema.validate(row, manifest_schema())
        assert len(read_manifest(path).records) == 1
    else:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(row, manifest_schema())
        with pytest.raises(ManifestError):
            read_manifest(path)


def test_every_column_is_explained_in_the_readme() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in SlideRecord.model_fields)
