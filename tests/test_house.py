"""The promises around the code: light imports, and documents that name what is there."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import typer

from wsi_ips.config import Recipe, load_recipe
from wsi_ips.pipeline.run_folder import InRoot, RunFolder

if TYPE_CHECKING:
    import click

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "DECISIONS.md")] + [
    ROOT / "pipelines" / "README.md",
    ROOT / "slides_manifest" / "README.md",
]
LIGHT = [
    "wsi_ips",
    "wsi_ips.manifest",
    "wsi_ips.config",
    "wsi_ips.annotations",
    "wsi_ips.slides",
    "wsi_ips.tissue",
    "wsi_ips.tiles",
    "wsi_ips.evaluation",
    "wsi_ips.results",
    "wsi_ips.viewer",
    "wsi_ips.pipeline.run_viewer",
    "wsi_ips.pipeline.heatmap_stage",
    "wsi_ips.pipeline.handoff_stage",
    "wsi_ips.cluster.jobs",
    "wsi_ips.pipeline.tile_stage",
    "wsi_ips.pipeline.verify",
    "wsi_ips.cli",
]
"""Modules that work, and start fast, where PyTorch is not installed."""

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_slides_are_tiled_and_commands_parsed_without_torch() -> None:
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({name!r}); print({name!r}, 'torch' in sys.modules)\n" for name in LIGHT
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} False" for name in LIGHT]


def test_types_are_shipped() -> None:
    assert (files("wsi_ips") / "py.typed").is_file()
    assert "py.typed" in setup_cfg()["options.package_data"]["wsi_ips"]


def setup_cfg() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def targets() -> dict[str, str]:
    """Targets of the Makefile that are for people, with what they say of themselves."""
    return dict(re.findall(r"^([a-z]+):.*?## (.+)$", MAKEFILE, re.MULTILINE))


def test_every_target_is_phony_and_explained() -> None:
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)
    assert phony
    assert phony[1].split() == list(targets())
    assert {"help", "demo", "test", "check", "format", "bench", "schema"} <= targets().keys()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_shows_the_targets() -> None:
    done = subprocess.run(["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=True)
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines()] == [list(t) for t in targets().items()]


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
def test_every_make_target_named_is_there(path: Path) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets().keys()


def paths_in(text: str) -> Iterator[str]:
    """Targets of links, and what stands in backticks and looks like a path of the repository."""
    tops = "|".join(re.escape(entry.name) for entry in ROOT.iterdir() if entry.is_dir())
    yield from (link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http"))
    yield from re.findall(rf"`((?:{tops})/[\w./-]*|[A-Z]+\.md|\.ci/run|setup\.cfg|Makefile|Dockerfile)`", text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_named_is_there(path: Path) -> None:
    named = [name for name in paths_in(path.read_text(encoding="utf-8")) if not name.startswith("runs/")]
    assert not [name for name in named if not (path.parent / name).exists() and not (ROOT / name).exists()]


def commands() -> dict[str, click.Command]:
    from wsi_ips.cli import app

    return cast("click.Group", typer.main.get_command(app)).commands


def test_the_readme_names_every_command_and_no_other() -> None:
    assert set(re.findall(r"^\| `wsi-ips ([a-z-]+)", README, re.MULTILINE)) == commands().keys()
    assert set(re.findall(r"(?:^ *|`)wsi-ips ([a-z-]+)", README, re.MULTILINE)) <= commands().keys()


def test_the_readme_names_only_options_that_exist() -> None:
    groups = [command.commands.values() for command in commands().values() if hasattr(command, "commands")]
    every = [*commands().values(), *(command for group in groups for command in group)]
    known = {option for command in every for parameter in command.params for option in parameter.opts}
    for line in README.splitlines():
        if "wsi-ips" in line and "docker" not in line:
            assert set(re.findall(r"--[a-z]+", line)) <= known
    assert {"--set", "--debug"} <= known


def test_the_readme_names_the_exit_codes() -> None:
    from wsi_ips.cli.console import EXIT_CONFIGURATION, EXIT_PARTIAL, EXIT_UNEXPECTED

    said = README[README.lower().index("exit code") :].partition("\n\n")[0]
    table = README.partition("| exit code |")[2].partition("\n\n")[0]
    assert {0, EXIT_CONFIGURATION, EXIT_PARTIAL, EXIT_UNEXPECTED} <= {int(n) for n in re.findall(r"\d+", said + table)}


def test_the_readme_names_everything_in_a_run_folder() -> None:
    folder = RunFolder(Path("run"))
    places = [getattr(folder, name) for name, value in vars(RunFolder).items() if isinstance(value, property | InRoot)]
    places += [folder.tissue_picture("s"), folder.overlay("s", "attention"), folder.traceback("s")]
    tops = {place.relative_to("run").parts[0] for place in places}
    table = README.partition("| in the run folder |")[2].partition("\n\n")[0]
    first_cells = "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    named = {name.split("/")[0] for name in re.findall(r"`([^`]+)`", first_cells)} - {"tiles.h5"}
    assert named == tops


def test_the_recipe_in_the_readme_is_one(tmp_path: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert block
    (tmp_path / "recipe.yaml").write_text(block[1], encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.output.parent == tmp_path.resolve() / "runs"


def test_what_the_documents_import_is_there() -> None:
    for block in re.findall(
        r"```python\n(.*?)```", "".join(d.read_text(encoding="utf-8") for d in DOCUMENTS), re.DOTALL
    ):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_number_is_left_to_be_filled_in(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"@@\w*@@|PLACEHOLDER|TODO|TBD|to be measured", text)


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_can_be_read_and_is_listed(path: Path) -> None:
    load_recipe(path)
    assert f"[{path.name}]({path.name})" in (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8")


def test_every_section_of_a_recipe_is_listed() -> None:
    text = (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8")
    sections = {name for name, field in Recipe.model_fields.items() if "Section" in str(field.annotation)}
    rows = "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("| `"))
    assert sections <= set(re.findall(r"`([a-z]+)`", rows))


def test_the_changelog_begins_with_the_version_in_work() -> None:
    headings = re.findall(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in ("Unreleased", setup_cfg()["metadata"]["version"])


def test_decisions_are_numbered_without_gaps() -> None:
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^(?:## D|\*\*)(\d+)\b", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_what_ci_runs_is_what_the_readme_says_with_the_tests_last() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    made = [line.partition(" ||")[0] for line in lines if line.startswith("make ")]
    assert made == ["make check", "make viewer", "make demo", "make test"]


def test_the_licence_is_the_published_text() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"


def test_the_image_runs_as_an_ordinary_user() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert text.count("\nFROM ") == 3
    assert re.search(r"^USER (?!root)\w+$", text.rpartition("FROM")[2], re.MULTILINE)
    assert 'CMD ["--help"]' in text
