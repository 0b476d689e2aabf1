"""Small cohorts of real files, good and broken, and the command line that works on them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

from tests.pyramids import textured_pyramid, write_pyramid
from wsi_ips.config import Recipe, load_recipe
from wsi_ips.tiles.store import read_index, slide_ids

ROOT = Path(__file__).parents[2]
RECIPE = {
    "output": "out",
    "manifest": "manifest.csv",
    "tiles": {"mpp": 0.5, "patch_px": 64},
    "tissue": {"mpp": 2.0, "min_area_um2": 100.0},
    "compute": {"workers": 2},
}


def write_good(folder: Path, count: int) -> list[str]:
    """Good slides ``good_00.tif`` ...; their file names."""
    names = [f"good_{number:02d}.tif" for number in range(count)]
    for number, name in enumerate(names):
        write_pyramid(folder / name, textured_pyramid(number))
    return names


def write_cohort(folder: Path, names: list[str], **compute: object) -> Path:
    """Manifest and recipe of these files; the path of the recipe."""
    table = pd.DataFrame({"slide_id": [Path(n).stem for n in names], "path": names})
    table.to_csv(folder / "manifest.csv", index=False)
    recipe = RECIPE | {"compute": {"workers": 2, **compute}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder / "recipe.yaml"


def recipe_of(folder: Path, **overrides: object) -> Recipe:
    return load_recipe(folder / "recipe.yaml", {k.replace("__", "."): v for k, v in overrides.items()})


def write_huge_annotation(path: Path) -> None:
    """A file whose tree takes gigabytes, as a segmentation that was exported pixel by pixel does."""
    point = '<Coordinate Order="0" X="1.0" Y="2.0" />\n'
    head = '<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>\n'
    head += '<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor">'
    tail = "</Coordinates></Annotation></Annotations><AnnotationGroups></AnnotationGroups></ASAP_Annotations>\n"
    path.write_text(head + "<Coordinates>\n" + point * 1_200_000 + tail)


def started(*arguments: object) -> subprocess.Popen[str]:
    """The command line in a process of its own, with a process group of its own."""
    code = "from wsi_ips.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def digest(root: Path) -> dict[str, str]:
    """Every slide of a store: bytes of its files, as Zarr or as the columns and attributes of HDF5."""
    found = {}
    for name in slide_ids(root):
        total = hashlib.sha256()
        if root.suffix == ".zarr":
            for file in sorted(p for p in (root / name).rglob("*") if p.is_file()):
                total.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
        else:
            index = read_index(root, name)
            for column, values in sorted(index.columns().items()):
                total.update(column.encode() + values.tobytes())
            total.update(repr(index.to_attributes()).encode())
        found[name] = total.hexdigest()
    return found
