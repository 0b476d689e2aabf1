"""Fingerprints that mean the same everywhere, and files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pydantic import BaseModel, ConfigDict

from wsi_ips.config import TilesSection, TissueSection
from wsi_ips.provenance import (
    atomic_folder,
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    fingerprint,
    peak_rss_mb,
    run_facts,
)


class Pair(NamedTuple):
    x: float
    y: float


class Part(BaseModel):
    model_config = ConfigDict(frozen=True)
    width: int = 3
    pair: Pair = Pair(0.25, 0.26)


class OtherPart(Part):
    pass


SPELLED = '["tiles",1,{"float":"0x1.999999999999ap-4"},null,true,["a","b"],{"map":{"a":2,"z":1}},{"path":"x/y"}]'
"""The parts below in canonical JSON; if this changes, every finished run is computed anew."""
PARTS = 'fingerprint("tiles", 1, 0.1, None, True, ["a", "b"], {"z": 1, "a": 2}, Path("x/y"))'


@pytest.mark.parametrize("hash_seed", ["0", "4711"])
def test_another_process_takes_the_same_fingerprint(hash_seed: str) -> None:
    code = f"from pathlib import Path; from wsi_ips.provenance import fingerprint; print({PARTS})"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == hashlib.sha256(SPELLED.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ((1, 2), [1, 2]),
        (Pair(1.0, 2.0), (1.0, 2.0)),
        (np.int32(7), 7),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("µ"), "µ"),
        (TilesSection(), TilesSection(mpp=0.5)),
    ],
)
def test_what_means_the_same_has_the_same_fingerprint(first: object, second: object) -> None:
    assert fingerprint(first) == fingerprint(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (1, 1.0),
        (1, True),
        (1, "1"),
        (None, "None"),
        (Path("a"), "a"),
        (0.1, np.nextafter(0.1, 1)),
        ([["a"], "b"], [["a", "b"]]),
        ({"a": {"b": 1}}, {"a": 1, "b": 1}),
        ({"float": "0x1.0000000000000p+0"}, 1.0),
        (Part(), OtherPart()),
        (Part(), Part(pair=Pair(0.26, 0.25))),
        (TilesSection(), TissueSection()),
    ],
)
def test_what_differs_has_another_fingerprint(first: object, second: object) -> None:
    assert fingerprint(first) != fingerprint(second)


def test_parts_are_not_run_together() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint("a", "b") != fingerprint(["a", "b"])


@pytest.mark.parametrize(
    "value",
    [{1, 2}, object(), np.zeros(2), {1: "a"}, b"x", np.longdouble(1), np.datetime64("2024-01-01"), [1, {2}]],
    ids=lambda value: type(value).__name__,
)
def test_a_type_without_one_spelling_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="fingerprint"):
        fingerprint("part", value)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    atomic_write_json(path, {"auc": 0.9})
    with pytest.raises(UnicodeEncodeError), atomic_path(path) as temporary:
        temporary.write_text("half, then µ", encoding="ascii")
    with pytest.raises(ValueError, match="JSON"):
        atomic_write_json(path, {"auc": float("nan")})
    assert json.loads(path.read_text()) == {"auc": 0.9}
    assert [f.name for f in path.parent.iterdir()] == ["summary.json"]


def test_text_and_bytes_arrive_as_they_are(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "a.txt", "0.25 µm\n")
    atomic_write_bytes(tmp_path / "b.png", b"\x89PNG\r\n")
    assert (tmp_path / "a.txt").read_bytes() == b"0.25 \xc2\xb5m\n"
    assert (tmp_path / "b.png").read_bytes() == b"\x89PNG\r\n"


def test_the_temporary_file_lies_beside_and_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "overlay.png") as temporary:
        assert temporary.parent == tmp_path  # a rename across file systems is no rename
        assert temporary.suffix == ".png"  # writers choose their format by it
        assert temporary.name.startswith(".")


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "tiles.zarr" / "slide"
    for name in ("old", "new"):
        with atomic_folder(path) as temporary:
            (temporary / name).write_text(name)
    assert [f.name for f in path.iterdir()] == ["new"]
    with pytest.raises(FileNotFoundError), atomic_folder(path) as temporary:
        (temporary / "no" / "such" / "folder").write_text("")
    assert [f.name for f in path.iterdir()] == ["new"]
    assert [f.name for f in path.parent.iterdir()] == ["slide"]


def test_a_folder_that_cannot_be_put_in_place_keeps_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slide"
    with atomic_folder(path) as temporary:
        (temporary / "old").write_text("")
    rename = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if target == path and (self / "new").exists():
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="No space"), atomic_folder(path) as temporary:
        (temporary / "new").write_text("")
    assert [f.name for f in path.iterdir()] == ["old"]
    assert [f.name for f in tmp_path.iterdir()] == ["slide"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    (tmp_path / "folder").mkdir()
    atomic_write_text(tmp_path / "ours", "")
    with atomic_folder(tmp_path / "our_folder"):
        pass
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert (tmp_path / "our_folder").stat().st_mode == (tmp_path / "folder").stat().st_mode


def test_run_facts_are_json_and_name_no_one() -> None:
    facts = json.loads(json.dumps(run_facts()))
    assert facts.keys() == {"time", "platform", "python", "cpu_count", "wsi_ips", "commit", "libraries"}
    assert facts["time"].endswith("+00:00")
    assert facts["libraries"]["numpy"] == np.__version__


def test_the_commit_is_that_of_the_checkout_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsi_ips import provenance

    monkeypatch.setattr(provenance, "CHECKOUT", tmp_path)
    assert run_facts()["commit"] is None  # installed, not a checkout
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert run_facts()["commit"] is None  # no commit yet
    (tmp_path / "file").write_text("a")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert run_facts()["commit"] == head
    (tmp_path / "file").write_text("b")
    assert run_facts()["commit"] == f"{head}-dirty"


def test_peak_memory_is_in_megabytes_and_never_falls() -> None:
    before = peak_rss_mb()
    block = np.ones(40_000_000, np.uint8)
    during = peak_rss_mb()
    del block
    assert 20 < before < 100_000
    assert before <= during <= peak_rss_mb()
