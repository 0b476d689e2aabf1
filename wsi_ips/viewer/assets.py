"""Files of the page: our own, and OpenSeadragon, which npm installs; the browser never loads it from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from wsi_ips.errors import ViewerError

HERE = Path(__file__).parent
PAGE = HERE / "page"
LIBRARY = Path("node_modules", "openseadragon", "build", "openseadragon", "openseadragon.min.js")
PACKAGE = ("package.json", "package-lock.json")
MEDIA_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
NPM_TIMEOUT_S = 300


def page_files() -> dict[str, Path]:
    """Return the files of the page by name, without OpenSeadragon."""
    return {path.name: path for path in sorted(PAGE.iterdir()) if path.suffix in MEDIA_TYPES}


def places() -> tuple[Path, ...]:
    """Return the folders that may hold OpenSeadragon: that of this file (wheel, `make viewer`), the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (HERE, cache / "wsi-ips" / "viewer")


def find_library() -> Path | None:
    """Return the path of OpenSeadragon, None where it is not installed."""
    return next((place / LIBRARY for place in places() if (place / LIBRARY).is_file()), None)


def ensure_library(say: Callable[[str], None]) -> Path:
    """Return the path of OpenSeadragon; npm installs the pinned version where it is missing; raises ViewerError."""
    if found := find_library():
        return found
    folder, npm = places()[-1], shutil.which("npm")
    try:
        if npm is None:
            raise FileNotFoundError("npm is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        for name in PACKAGE:
            shutil.copyfile(HERE / name, folder / name)
        say(f"installing OpenSeadragon with npm into {folder} (once) ...")
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=NPM_TIMEOUT_S
        )
        if done.returncode or not (folder / LIBRARY).is_file():
            raise OSError(" ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ViewerError(
            f"the page needs OpenSeadragon, and npm could not get it ({error}): run `npm ci` in {HERE} (in a checkout: "
            f"`make viewer`), here or on a machine with a network, and copy the file to {folder / LIBRARY}; after that "
            "no network is needed"
        ) from error
    return folder / LIBRARY
