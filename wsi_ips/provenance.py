"""Fingerprints, atomic writes, and the versions and machine of a run.

A result is up to date when its stored fingerprint equals that of its inputs; a file's existence means nothing. Every
write goes to a temporary sibling, which is then renamed in one step.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

FINGERPRINT_DIGITS = 16
CHECKOUT = Path(__file__).parents[1]  # a git checkout during development, else the installed packages
LIBRARIES = (
    *("torch", "torchvision", "timm", "numpy", "scikit-image", "openslide-python", "openslide-bin", "tiffslide"),
    *("zarr", "h5py", "onnxruntime", "peft"),
)


def fingerprint(*parts: Any) -> str:
    """Return a fingerprint of values, the same in every process and on every machine: 16 hexadecimal digits.

    Parts are None, bool, numbers, text, paths, numpy scalars, pydantic models, and lists, tuples and mappings of them.
    Floats count to their last bit; a tuple equals a list.

    Raises
    ------
    TypeError
        A part is of another type.
    """
    text = json.dumps(_canonical(list(parts)), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:FINGERPRINT_DIGITS]


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):
        return _canonical(value.item())
    if isinstance(value, Path):
        return {"path": value.as_posix()}
    if isinstance(value, BaseModel):
        fields = {name: _canonical(getattr(value, name)) for name in type(value).model_fields}
        return {"model": type(value).__name__, "fields": fields}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"map": {key: _canonical(item) for key, item in value.items()}}
    raise TypeError(f"a fingerprint cannot be taken of {type(value).__name__}: {value!r}")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write to, which becomes ``path`` if the block succeeds, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which becomes ``path`` if the block succeeds, and is removed otherwise.

    An older folder at ``path`` is moved aside first and deleted last, so a reader finds the old one, the new one, or
    for an instant none; never a mixture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _sibling(path), _sibling(path)
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.replace(old)
        try:
            temporary.replace(path)
        except OSError:
            if old.exists() and not path.exists():
                old.replace(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sibling(path: Path) -> Path:
    """Return a free hidden name beside ``path`` with the same suffix."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file, which appears whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as :func:`atomic_write_bytes` does."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any) -> None:
    """Write JSON, indented; NaN is refused."""
    atomic_write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the object in a JSON text; raises ValueError where it is anything else, or nested too deeply."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"an object `{{...}}` is expected, not {type(value).__name__}")
    return value


def run_facts() -> dict[str, Any]:
    """Return time, platform and versions of a run; no user name, no machine name, no path."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "wsi_ips": _version("wsi-ips"),
        "commit": _commit(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def peak_rss_mb() -> float:
    """Return the largest resident memory of this process so far, MB (10⁶ bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout, with ``-dirty`` where files differ; None when installed."""
    if not (CHECKOUT / ".git").exists():
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
