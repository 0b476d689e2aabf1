"""Promises around the code: size limits, light imports, and documents that name what exists."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import typer

from benchmarks.house import GOALS, LIMITS, imported, offenders
from wsi_ips import registry as registries
from wsi_ips.config import load_recipe
from wsi_ips.errors import RecipeError
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.registry import HOMES, Entry, Registry, registry

if TYPE_CHECKING:
    import click

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIGHT = ["wsi_ips", "wsi_ips.cli", "wsi_ips.api", "wsi_ips.pipeline.tile_stage", "wsi_ips.pipeline.run_viewer"]
LIGHT += ["wsi_ips.pipeline.heatmap_stage", "wsi_ips.viewer.routes"]
"""Modules that start fast and work where PyTorch is not installed; import-linter checks those below them."""


def test_nothing_is_over_the_limits() -> None:
    assert offenders(ROOT / "wsi_ips") == {limit: [] for limit in LIMITS}


def test_recipe_keys_and_commands_stay_few() -> None:
    found = imported(ROOT)
    assert {name: found[name] <= GOALS[name] for name in ("recipe keys", "commands")} == {
        "recipe keys": True,
        "commands": True,
    }


def test_slides_are_tiled_and_commands_parsed_without_torch() -> None:
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({name!r}); print({name!r}, 'torch' in sys.modules)\n" for name in LIGHT
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} False" for name in LIGHT]


@pytest.mark.parametrize("plural", HOMES)
def test_every_entry_of_a_registry_can_be_loaded_and_explains_itself(plural: str) -> None:
    table = registry(plural)
    assert len(table) > 0
    assert table.group == f"wsi_ips.{plural}"
    for name, entry in table.items():
        assert entry.name == name
        assert entry.help
        assert f"`{name}`" in table.described()
        if not entry.extra:
            assert entry.load() is not None


def test_other_packages_add_entries_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Entry("mine", "builtins:max", "the largest")
    monkeypatch.setattr(registries, "MINE", mine, raising=False)
    point = EntryPoint("mine", "wsi_ips.registry:MINE", "wsi_ips.things")
    monkeypatch.setattr(registries, "entry_points", lambda group: [point] if group == "wsi_ips.things" else [])
    table = Registry("thing", [Entry("ours", "builtins:min", "the smallest")], group="wsi_ips.things")
    assert list(table) == ["ours", "mine"]
    assert table["mine"].load() is max
    with pytest.raises(RecipeError, match="there is no thing `mime`; did you mean `mine`"):
        table["mime"]
    with pytest.raises(RecipeError, match="exists already; rename it there"):
        list(Registry("thing", [mine], group="wsi_ips.things"))


def test_a_missing_library_names_its_extra() -> None:
    entry = Entry("x", "no_such_library:thing", "nothing", extra="lora")
    with pytest.raises(RecipeError, match=r"`x` needs no_such_library.*pip install 'wsi-ips\[lora\]'"):
        entry.load()


def test_types_are_shipped() -> None:
    assert (files("wsi_ips") / "py.typed").is_file()


def setup_cfg() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_core_dependencies_stay_few_and_every_extra_is_explained() -> None:
    required = setup_cfg()["options"]["install_requires"].splitlines()
    assert len([line for line in required if line and not line.startswith("#")]) <= GOALS["core dependencies"]
    extras = setup_cfg()["options.extras_require"].keys() - {"dev"}
    assert set(re.findall(r"^\| `(\w+)` \|", README.partition("| extra |")[2].partition("\n\n")[0], re.M)) == extras


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_an_old_python_is_refused_with_the_way_out(tmp_path: Path) -> None:
    old = tmp_path / "python3.10"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "-C", str(ROOT), f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", "test"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed; name one with: make PYTHON=" in done.stdout
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_documents_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert not [link for link in links if link and not (path.parent / link).exists()]
    assert "@@" not in text


def commands() -> dict[str, click.Command]:
    from wsi_ips.cli import app

    return cast("click.Group", typer.main.get_command(app)).commands


def test_the_documents_name_every_command_and_only_options_that_exist() -> None:
    assert set(re.findall(r"^\| `wsi-ips ([a-z-]+)", README, re.MULTILINE)) == commands().keys()
    groups = [command.commands.values() for command in commands().values() if hasattr(command, "commands")]
    every = [*commands().values(), *(command for group in groups for command in group)]
    known = {option for command in every for parameter in command.params for option in parameter.opts}
    for document in DOCUMENTS:
        if document.name in ("DECISIONS.md", "CHANGELOG.md", "RESULTS.md"):
            continue  # they also name what is gone
        text = document.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:^ *|`)wsi-ips ([a-z-]+)", text, re.MULTILINE)) <= commands().keys()
        for line in text.splitlines():
            if re.search(r"(^ *|`)wsi-ips ", line):
                assert set(re.findall(r"--[a-z][a-z-]*", line)) <= known, line


def test_the_readme_names_the_exit_codes() -> None:
    from wsi_ips.cli.console import EXIT_CONFIGURATION, EXIT_PARTIAL, EXIT_UNEXPECTED

    table = README.partition("| exit code |")[2].partition("\n\n")[0]
    named = {int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert {0, EXIT_CONFIGURATION, EXIT_PARTIAL, EXIT_UNEXPECTED} <= named


def test_the_guide_names_everything_in_a_run_folder() -> None:
    folder = RunFolder(Path("run"))
    places = [getattr(folder, name) for name in dir(folder) if not name.startswith("_")]
    places += [folder.tissue_picture("s"), folder.overlay("s", "attention"), folder.traceback("s")]
    tops = {place.relative_to("run").parts[0] for place in places if isinstance(place, Path) and place != folder.root}
    guide = (ROOT / "docs" / "cohorts.md").read_text(encoding="utf-8")
    table = guide.partition("| in the run folder |")[2].partition("\n\n")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    named = {
        name.split("/")[0] for row in rows for name in re.findall(r"`([\w./]+)`", row) if "." in name or "/" in name
    }
    assert tops <= named


def test_the_recipe_in_the_readme_is_one(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block
    (tmp_path / "recipe.yaml").write_text(re.sub(r"^   ", "", block[1], flags=re.MULTILINE), encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.output.parent == tmp_path.resolve() / "runs"


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_can_be_read_and_is_listed(path: Path) -> None:
    load_recipe(path)
    assert f"[{path.name}]({path.name})" in (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8")


def test_decisions_are_numbered_without_gaps() -> None:
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^## D(\d+)\b", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_what_ci_runs_is_what_the_readme_says_with_the_tests_last() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    made = [
        line.partition(" ||")[0] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("make ")
    ]
    assert made == ["make check", "make viewer", "make demo", "make test"]


def test_the_image_runs_as_an_ordinary_user() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^USER (?!root)\w+$", text.rpartition("FROM")[2], re.MULTILINE)


def test_public_names_can_be_imported_from_the_front_door() -> None:
    front = importlib.import_module("wsi_ips")
    assert all(getattr(front, name) is not None for name in front.__all__)
