"""Fingerprints, atomic writes, and the versions and machine of a run.

A result is up to date when its stored fingerprint equals that of its inputs; a file's existence means nothing. Every
write goes to a temporary sibling, which is then renamed in one step.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import resource
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from wsi_ips.errors import StorageError

FINGERPRINT_DIGITS = 16
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# What libraries say that raise errors of their own: safetensors, HDF5 and SQLite
STORAGE_NUMBER = re.compile(r"(?:os error|errno =|Os \{ code:) (\d+)")
STORAGE_TEXTS = {
    "No space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
}
# Names of temporary siblings; those of earlier versions tell no process
LEFTOVER = re.compile(r"\..+\.(?:(?P<machine>[0-9a-f]{6})-(?P<pid>\d+)-)?[0-9a-f]{8}(?:\.[A-Za-z0-9]+)?")
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
def storage_named(path: Path | None = None, temporary: Path | None = None, *, needs: int = 0) -> Iterator[None]:
    """Turn a full or read-only disk into a `StorageError` that names path and space.

    ``temporary`` is what the block writes to, which tells how much was needed so far; ``needs`` the bytes, where known.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        reason = _storage_trouble(error, path)
        if not reason:
            raise
        where = path or Path(str(getattr(error, "filename", None) or "."))
        needs = max(needs, _bytes_in(temporary))
        needed = f" It needs at least {_in_words(needs)};" if needs else ""
        free = _in_words(_free_bytes(where))
        raise StorageError(
            f"{where}: cannot be written ({reason}).{needed} {free} are free there. Free some space, or make "
            "the folder writable, and run the same command again: finished work is kept"
        ) from error


def _storage_trouble(error: BaseException | None, path: Path | None) -> str:
    """Return why the disk refused to write, in the words of the system; empty where an error is about another thing."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        denied = number in (errno.EACCES, errno.EPERM) and path is not None
        if denied and path is not None and str(getattr(error, "filename", "")).startswith(str(path.parent)):
            return os.strerror(number or 0)
        if number in STORAGE_ERRORS:
            return os.strerror(number or 0)
        text = str(error)
        said = [number for words, number in STORAGE_TEXTS.items() if words in text]
        said += [int(digits) for digits in STORAGE_NUMBER.findall(text)]
        if said and said[0] in STORAGE_ERRORS:
            return os.strerror(said[0])
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


def _bytes_in(path: Path | None) -> int:
    """Return the size of a file, or of all files in a folder."""
    total = 0
    with suppress(OSError):
        files = [] if path is None else [path] if path.is_file() else path.rglob("*")
        total = sum(file.stat().st_size for file in files if file.is_file())
    return total


def _in_words(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _free_bytes(path: Path) -> int:
    """Return the free space where a path is or would be."""
    for place in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


@contextmanager
def atomic_path(path: Path, *, needs: int = 0) -> Iterator[Path]:
    """Yield a temporary sibling to write to, which becomes ``path`` if the block succeeds, and is removed otherwise.

    ``needs`` is the number of bytes to come, where it is known, for the message of a `StorageError`.
    """
    temporary = _sibling(path)
    try:
        with storage_named(path, temporary, needs=needs):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)
            yield temporary
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which becomes ``path`` if the block succeeds, and is removed otherwise.

    An older folder at ``path`` is moved aside first and deleted last, so a reader finds the old one, the new one, or
    for an instant none; never a mixture.
    """
    temporary, old = _sibling(path), _sibling(path)
    try:
        with storage_named(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
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
    """Return a free hidden name beside ``path`` with the same suffix; it tells which process made it."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")


@cache
def _machine() -> str:
    """Return a name of this machine; of this container, where process ids are counted on their own."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:6]


def remove_leftovers(folder: Path, *, of_the_dead: bool = False) -> None:
    """Remove temporary files and folders that killed processes left in a folder; the caller is its only writer.

    ``of_the_dead`` only removes those of processes of this machine that are gone, for folders with other writers.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            made = LEFTOVER.fullmatch(entry.name)
            if made is None or (of_the_dead and not (made["machine"] == _machine() and is_dead(int(made["pid"])))):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)


def is_dead(pid: int) -> bool:
    """Return whether no process of this machine has an id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is somebody else's
        return False
    return False


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file, which appears whole or not at all."""
    with atomic_path(path, needs=len(data)) as temporary:
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
