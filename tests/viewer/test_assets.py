"""OpenSeadragon is pinned, found, installed or asked for; the page's files are in the package."""

from __future__ import annotations

import json
import os
import re
from configparser import ConfigParser
from fnmatch import fnmatch
from pathlib import Path

import pytest

from wsi_ips.errors import ViewerError
from wsi_ips.results.score_maps import SCORE_MAPS
from wsi_ips.viewer import assets

ROOT = Path(__file__).parents[2]
VIEWER = ROOT / "wsi_ips" / "viewer"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without OpenSeadragon, and with nothing on its path."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(assets, "places", lambda: (cache,))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return cache


def put_npm(folder: Path, script: str) -> None:
    path = folder / "bin" / "npm"
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


def test_without_npm_people_are_told_exactly_what_to_do(nowhere):
    with pytest.raises(ViewerError, match=r"npm ci.*make viewer.*copy the file to .*openseadragon\.min\.js"):
        assets.ensure_library(lambda _: None)


def test_npm_installs_the_pinned_version_once(nowhere, tmp_path):
    put_npm(
        tmp_path,
        f'test "$1" = ci && test -f package.json && test -f package-lock.json && echo "$@" > called\n'
        f"mkdir -p {assets.LIBRARY.parent} && echo '// library' > {assets.LIBRARY}",
    )
    said: list[str] = []
    assert assets.ensure_library(said.append) == nowhere / assets.LIBRARY
    assert "installing" in said[0]
    assert "--ignore-scripts" in (nowhere / "called").read_text()
    (tmp_path / "bin" / "npm").unlink()
    assert assets.ensure_library(said.append) == nowhere / assets.LIBRARY
    assert len(said) == 1


def test_what_npm_says_is_passed_on(nowhere, tmp_path):
    put_npm(tmp_path, "echo 'npm error network ENOTFOUND' >&2; exit 1")
    with pytest.raises(ViewerError, match=r"ENOTFOUND.*npm ci"):
        assets.ensure_library(lambda _: None)


def test_the_cache_of_the_user_is_a_place(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.places() == (VIEWER, tmp_path / "wsi-ips" / "viewer")


def test_the_lock_pins_one_library_by_its_hash_and_names_no_server():
    wanted = json.loads((VIEWER / "package.json").read_text())["dependencies"]
    lock = json.loads((VIEWER / "package-lock.json").read_text())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert list(packages) == ["node_modules/openseadragon"]
    entry = packages["node_modules/openseadragon"]
    assert wanted == {"openseadragon": entry["version"]}
    assert entry["integrity"].startswith("sha512-")
    assert "resolved" not in entry


def test_every_file_of_the_page_is_in_the_package():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = config["options.package_data"]["wsi_ips.viewer"].split()
    files = [str(path.relative_to(VIEWER)) for path in (VIEWER / "page").iterdir()]
    files += ["package.json", "package-lock.json", str(assets.LIBRARY), "node_modules/openseadragon/LICENSE.txt"]
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
    assert {path.name for path in (VIEWER / "page").iterdir()} == set(assets.page_files())


def test_every_module_and_file_the_page_loads_is_there():
    known = set(assets.page_files()) | {"openseadragon.js"}
    for path in assets.page_files().values():
        text = path.read_text(encoding="utf-8")
        named = re.findall(r'from "\./([\w.]+)"', text) + re.findall(r'/assets/([\w.]+)"', text)
        assert set(named) <= known, path.name


def test_the_page_names_no_map_so_that_a_new_one_needs_no_javascript():
    for path in assets.page_files().values():
        text = path.read_text(encoding="utf-8")
        assert not [kind for kind in (*SCORE_MAPS, "truth", "tissue") if f'"{kind}"' in text], path.name


def test_openseadragon_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert "node_modules/" in ignored


def test_the_library_that_is_installed_is_the_pinned_one():
    library = assets.find_library()
    if library is None:
        pytest.skip("OpenSeadragon is not installed; run `make viewer`")
    wanted = json.loads((VIEWER / "package.json").read_text())["dependencies"]["openseadragon"]
    assert f"openseadragon {wanted}" in library.read_text(encoding="utf-8")[:200]
    assert os.path.getsize(library) < 1_000_000
