"""The doctor: says what is there, what is wrong and what to do; never falls over itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wsi_ips.cli import app
from wsi_ips.config import load_recipe
from wsi_ips.pipeline.checks import doctor
from wsi_ips.pipeline.checks.doctor import Finding, examine


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def findings(tmp_path_factory) -> list[Finding]:
    return examine(tmp_path_factory.mktemp("out") / "not" / "there" / "yet")


def test_this_machine_is_fit_to_run_the_tests(findings):
    assert [f for f in findings if f.verdict == "wrong"] == []
    assert {"wsi-ips", "libraries", "OpenSlide", "JPEG decoder", "cores", "memory", "output", "self-test"} <= {
        f.what for f in findings
    }


def test_versions_and_measurements_are_real(findings):
    import openslide
    import torch

    found = {f.what: f.found for f in findings}
    assert f"torch {torch.__version__.split('+')[0]}" in found["libraries"]
    assert openslide.__library_version__ in found["OpenSlide"]
    assert "Mpx/s per core" in found["JPEG decoder"]
    assert "GB free" in found["output"]


def test_whatever_is_not_in_order_comes_with_advice(findings):
    assert all(f.advice for f in findings if f.verdict == "wrong")


def test_json_and_exit_code():
    result = invoke("doctor", "--json")
    assert result.exit_code == 0
    assert {"what", "verdict", "found", "advice"} == json.loads(result.output)[0].keys()


def recipe_file(folder: Path, text: str) -> Path:
    (folder / "manifest.csv").write_text("slide_id,path\na,a.svs\n")
    (folder / "recipe.yaml").write_text("output: out\nmanifest: manifest.csv\n" + text)
    return folder / "recipe.yaml"


def test_a_recipe_that_asks_for_more_is_told(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has what the recipe asks for")
    path = recipe_file(tmp_path, "compute: {device: cuda}\n")
    result = invoke("doctor", path)
    assert result.exit_code == 2
    assert "PyTorch sees no GPU" in " ".join(result.output.split())
    assert "1 wrong" in result.output


def test_an_output_that_cannot_be_used(tmp_path):
    (tmp_path / "out").write_text("a file")
    wrong = {
        f.what: f for f in examine(tmp_path / "out", load_recipe(recipe_file(tmp_path, ""))) if f.verdict == "wrong"
    }
    assert "is a file" in wrong["output"].found


def test_a_decoder_without_vector_instructions_is_noticed(monkeypatch):
    monkeypatch.setenv("JSIMD_FORCENONE", "1")  # both processes then decode alike, but for what a busy machine does
    assert doctor._decoding_rate({}) > 0
    monkeypatch.setattr(doctor, "_decoding_rate", lambda settings: 100.0)
    (finding,) = doctor._jpeg()
    assert finding.verdict == "note"
    assert "JSIMD_FORCENONE" in finding.advice


def test_a_library_that_is_too_old_or_missing_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "_requirements", lambda: {"zarr": "zarr>=99", "pandas": "pandas>=2.2"})
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "pandas" else "1.5")
    wrong = {f.what: f.advice for f in doctor._versions() if f.verdict == "wrong"}
    assert wrong == {"zarr": "pip install 'zarr>=99'", "pandas": "pip install 'pandas>=2.2'"}


def test_a_broken_library_is_a_finding_and_no_crash(monkeypatch):
    def broken():
        raise ImportError("libfoo.so.1: cannot open shared object file")
        yield

    monkeypatch.setattr(doctor, "_openslide", broken)
    wrong = [f for f in examine(Path.cwd()) if f.verdict == "wrong"]
    assert [f.found for f in wrong] == ["ImportError: libfoo.so.1: cannot open shared object file"]
