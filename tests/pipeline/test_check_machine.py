"""`wsi-ips check` of the machine: what is there, what is wrong, what to do; it never crashes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wsi_ips.cli import app
from wsi_ips.config import load_recipe
from wsi_ips.pipeline import check_machine as module
from wsi_ips.pipeline.check_machine import Finding, check_machine


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> list[Finding]:
    return check_machine(tmp_path_factory.mktemp("out") / "not" / "there" / "yet")


def test_this_machine_is_fit_to_run_the_tests(findings):
    assert [f for f in findings if f.verdict == "wrong"] == []
    assert {"wsi-ips", "libraries", "memory, cores", "output"} <= {f.what for f in findings}


def test_versions_and_measurements_are_real(findings):
    import openslide
    import torch

    found = {f.what: f.found for f in findings}
    assert f"torch {torch.__version__.split('+')[0]}" in found["libraries"]
    assert f"OpenSlide {openslide.__library_version__}" in found["libraries"]
    assert "GB free" in found["output"]


def broken_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A machine on which every check finds something wrong; returns an output that cannot be used."""
    import torch

    monkeypatch.setattr(module, "requires", lambda _: ["numpy>=99", "nothing-like-it>=1"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "_nvidia_driver", lambda: "550.1")
    (folder / "out").write_text("a file")
    return folder / "out"


def test_everything_that_is_wrong_comes_with_advice(monkeypatch, tmp_path):
    wrong = [f for f in check_machine(broken_machine(monkeypatch, tmp_path)) if f.verdict == "wrong"]
    assert {f.what for f in wrong} == {"numpy", "nothing-like-it", "GPU", "output"}
    assert [f.what for f in wrong if not f.advice] == []


def test_json_and_exit_code(monkeypatch, tmp_path):
    result = invoke("check", "--json")
    assert result.exit_code == 0
    assert {"what", "verdict", "found", "advice"} == json.loads(result.output)["machine"][0].keys()
    broken_machine(monkeypatch, tmp_path)
    assert invoke("check").exit_code == 2


def recipe_file(folder: Path, text: str) -> Path:
    (folder / "manifest.csv").write_text("slide_id,path\na,a.svs\n")
    (folder / "recipe.yaml").write_text("output: out\nmanifest: manifest.csv\n" + text)
    return folder / "recipe.yaml"


def test_a_recipe_that_asks_for_more_is_told(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has what the recipe asks for")
    path = recipe_file(tmp_path, "compute: {device: cuda}\n")
    result = invoke("check", path)
    assert result.exit_code == 2
    assert "PyTorch finds no GPU" in " ".join(result.output.split())
    assert "1 wrong" in result.output


def test_an_output_that_cannot_be_used(tmp_path):
    (tmp_path / "out").write_text("a file")
    findings = check_machine(tmp_path / "out", load_recipe(recipe_file(tmp_path, "")))
    wrong = {f.what: f for f in findings if f.verdict == "wrong"}
    assert "is a file" in wrong["output"].found


def test_a_library_that_is_too_old_or_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "requires", lambda _: ["zarr>=99", "nothing-like-it>=1", 'other; extra == "lora"'])
    found = {f.what: f for f in check_machine(tmp_path)}
    wrong = {name: f.advice for name, f in found.items() if f.verdict == "wrong"}
    assert wrong == {"zarr": "pip install 'zarr>=99'", "nothing-like-it": "pip install 'nothing-like-it>=1'"}
    assert (found["extras"].verdict, found["extras"].found) == ("note", "not installed: lora")


def test_a_broken_library_is_a_finding_and_no_crash(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openslide", None)  # as if the library could not be loaded
    (wrong,) = [f for f in check_machine(tmp_path) if f.verdict == "wrong"]
    assert wrong.what == "versions"
    assert "openslide" in wrong.found
    assert wrong.advice
