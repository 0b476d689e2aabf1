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
    npm = shutil.which("npm")
    if npm is None:
        raise ViewerError(f"the page needs OpenSeadragon, and npm is not installed to get it: {_advice()}")
    folder = _writable(places())
    if folder != HERE:
        for name in PACKAGE:
            shutil.copyfile(HERE / name, folder / name)
    say(f"installing OpenSeadragon with npm into {folder} (once) ...")
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=NPM_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ViewerError(f"the page needs OpenSeadragon, and npm could not get it ({error}): {_advice()}") from error
    library = folder / LIBRARY
    if done.returncode or not library.is_file():
        said = " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"
        raise ViewerError(f"the page needs OpenSeadragon, and npm could not get it ({said}): {_advice()}")
    return library


def _advice() -> str:
    return (
        f"run `npm ci` in {HERE} (in a checkout: `make viewer`), here or on a machine with a network, and copy the "
        f"file to {places()[-1] / LIBRARY}; after that no network is needed"
    )


def _writable(folders: tuple[Path, ...]) -> Path:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise ViewerError(f"the page needs OpenSeadragon, and no folder to install it can be written to: {_advice()}")
