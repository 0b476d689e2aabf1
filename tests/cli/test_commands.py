"""Commands: help people understand, one clear message per mistake, exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from tests.pyramids import gradient_pyramid, write_pyramid
from wsi_ips import __version__
from wsi_ips.cli import app
from wsi_ips.model.encoders import PRESETS

PANELS = {
    "Start": ("demo", "check"),
    "Cohort": ("split", "tile", "status"),
    "Model": ("run", "train", "cross-validate", "predict"),
    "Results": ("heatmap", "evaluate", "view", "export"),
    "Other tools": ("draw", "score"),
}
COMMANDS = [
    *(command for commands in PANELS.values() for command in commands if command != "export"),
    *("export tiles", "export qupath", "export dicom"),
]


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "250"})


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples_that_parse(command):
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    explanation = flat(result.output.partition("Examples:")[0])
    assert len(explanation) > 150
    calls = [line.split() for line in result.output.partition("Examples:")[2].splitlines() if line.strip()]
    assert calls
    for call in calls:
        at = call.index("wsi-ips" if "wsi-ips" in call else "wsi_ips") + 1
        assert call[at : at + len(command.split())] == command.split()
        assert {word for word in call[at:] if word.startswith("--")} <= set(re.findall(r"--[a-z0-9-]+", explanation))


def test_the_list_of_commands_is_divided_into_panels():
    text = invoke().output
    assert len(COMMANDS) - 2 == 15
    for panel, commands in PANELS.items():
        shown = text.partition(f"─ {panel} ─")[2].partition("╰")[0]
        assert tuple(re.findall(r"^│ ([a-z][a-z-]*)", shown, re.MULTILINE)) == commands


def test_the_version_is_printed():
    result = invoke("--version")
    assert (result.exit_code, result.output.strip()) == (0, __version__)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A manifest of one good slide and five that are not, and a recipe."""
    write_pyramid(tmp_path / "good.tif", gradient_pyramid())
    write_pyramid(tmp_path / "default scale.tif", gradient_pyramid(), mpp=(352.778, 352.778))
    (tmp_path / "text.svs").write_text("not a slide")
    (tmp_path / "nothing.svs").write_bytes(b"")
    Image.fromarray(np.zeros((300, 400), np.uint8)).save(tmp_path / "grey.tif")
    names = ["good.tif", "default scale.tif", "text.svs", "nothing.svs", "grey.tif", "missing.svs"]
    table = pd.DataFrame({"slide_id": [Path(n).stem for n in names], "path": names})
    table.to_csv(tmp_path / "manifest.csv", index=False)
    recipe = {"output": "out", "manifest": "manifest.csv", "tiles": {"mpp": 0.5, "patch_px": 64}}
    recipe["tissue"] = {"mpp": 2.0, "min_area_um2": 100.0}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


REASONS = {
    "default scale": "not the scale of a slide",
    "text": "no reader opens it",
    "nothing": "0 bytes",
    "grey": "a plain image states none",
    "missing": "no such file",
}


def test_check_names_what_is_wrong_with_each_slide(cohort):
    result = invoke("check", cohort / "manifest.csv")
    assert result.exit_code == 3
    assert "1 usable" in result.output
    for reason in REASONS.values():
        assert reason in flat(result.output)


def test_tile_finishes_the_good_slides_and_exits_partial(cohort):
    result = invoke("tile", cohort / "recipe.yaml")
    assert result.exit_code == 3
    states = pd.read_csv(cohort / "out" / "slides.csv").set_index("slide_id")
    assert states.loc["good", "state"] == "ok"
    for name, reason in REASONS.items():
        assert states.loc[name, "state"] == "failed"
        assert reason in states.loc[name, "reason"]
    assert "Traceback" not in result.output


def test_status_shows_every_slide(cohort):
    invoke("tile", cohort / "recipe.yaml")
    result = invoke("status", cohort / "recipe.yaml")
    assert result.exit_code == 0
    assert all(name in result.output for name in ("good", *REASONS))


def test_a_scale_in_the_manifest_mends_a_slide_without_one(cohort):
    table = pd.read_csv(cohort / "manifest.csv")
    table["mpp"] = ["", "0.25", "", "", "", ""]
    table.head(2).to_csv(cohort / "manifest.csv", index=False)
    assert invoke("tile", cohort / "recipe.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("output: out\nmanifest: manifest.csv\ntilez: {mpp: 1}\n", ["unknown key `tilez`", "`tiles`"]),
        ("output: out\nmanifest: manifest.csv\ntiles: {mppp: 1}\n", ["tiles.mppp", "`mpp`"]),
        ("output: out\nmanifest: manifest.csv\ntiles: {mpp: -1}\n", ["tiles.mpp", "greater than 0"]),
        ("output: out\nmanifest: nowhere.csv\n", ["nowhere.csv"]),
        ("{", ["not valid YAML"]),
    ],
)
def test_a_bad_recipe_is_one_message_and_exit_code_2(cohort, text, messages):
    (cohort / "bad.yaml").write_text(text)
    result = invoke("run", cohort / "bad.yaml")
    assert result.exit_code == 2
    assert all(message in flat(result.output) for message in messages)
    assert "Traceback" not in result.output


def test_debug_shows_the_traceback(cohort):
    (cohort / "bad.yaml").write_text("output: out\n")
    assert "Traceback" in invoke("run", cohort / "bad.yaml", "--debug").output


def test_set_needs_a_key_and_a_value(cohort):
    result = invoke("tile", cohort / "recipe.yaml", "--set", "tiles.mpp")
    assert result.exit_code == 2
    assert "KEY=VALUE" in result.output


def test_run_without_training_slides_says_what_to_fill_in(cohort):
    result = invoke("run", cohort / "recipe.yaml")
    assert result.exit_code == 2
    assert "split `train`" in flat(result.output)


def test_stages_can_be_named_one_by_one(cohort):
    pd.read_csv(cohort / "manifest.csv").head(1).to_csv(cohort / "manifest.csv", index=False)
    result = invoke("run", cohort / "recipe.yaml", "--until", "tile", "--workers", 0)
    assert result.exit_code == 0, result.output
    assert (cohort / "out" / "tiles.zarr" / "good").exists()
    for arguments, message in (
        (["--until", "paint"], "choose one of tile, features, train, predict, heatmap"),
        (["good"], "good: slides can only be named with --retry or --until"),
        (["--reason", "memory"], "--reason: only with --retry"),
    ):
        result = invoke("run", cohort / "recipe.yaml", *arguments)
        assert result.exit_code == 2
        assert message in flat(result.output)


def test_the_demo_can_make_slides_only_and_check_accepts_them(tmp_path):
    settings = ["size_px0=[4096,3072]", "tissue_mm2=[0.5,0.6]", "lesion_mm=[0.2,0.3]", "blur=1.0", "pen=1.0"]
    arguments = [a for s in settings for a in ("--set", s)]
    made = invoke("demo", "--slides-only", tmp_path / "cohort", "--slides", 2, "--seed", 3, *arguments)
    assert made.exit_code == 0, made.output
    result = invoke("check", tmp_path / "cohort" / "manifest.csv")
    assert result.exit_code == 0
    assert "2 usable" in result.output


def test_check_lists_every_encoder_preset_with_licence_access_and_reason():
    result = invoke("check", "--encoders")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert set(PRESETS) <= rows.keys()
    assert rows["uni"].split() == ["uni", "1024", "0.5", "cls", "gated", "no", "CC-BY-NC-ND-4.0"]
    assert rows["virchow"].split() == ["virchow", "2560", "0.5", "cls+mean", "gated", "yes", "Apache-2.0"]
    assert "card" in rows["kaiko-s16"].split()


def test_a_folder_becomes_a_manifest(cohort):
    folder = cohort / "slides"
    folder.mkdir()
    write_pyramid(folder / "one.tif", gradient_pyramid())
    result = invoke("check", folder, "--output", cohort / "found.csv")
    assert result.exit_code == 0
    assert pd.read_csv(cohort / "found.csv")["slide_id"].tolist() == ["one"]
