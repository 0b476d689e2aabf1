"""Check this machine and installation, and what a recipe needs of them; every finding is measured."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from wsi_ips.config import Recipe

Verdict = Literal["ok", "note", "wrong"]  # note: it works, but is worth knowing; wrong: something will not work

LEAST_DISK_GB = 5.0
LEAST_MEMORY_GB = 4.0
REINSTALL = "install again: pip install --force-reinstall wsi-ips"


@dataclass(frozen=True)
class Finding:
    """A finding: what was checked, the verdict, the result, and what to do (empty if nothing)."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def check_machine(output: Path, recipe: Recipe | None = None) -> list[Finding]:
    """Check libraries, cores, memory, GPU, the disk of a folder for results, and what a recipe needs."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "memory, cores": _memory,
        "GPU": _graphics,
        "output": partial(_disk, output),
    }
    if recipe is not None:
        checks["recipe"] = partial(_recipe_needs, recipe)
    return [finding for name, check in checks.items() for finding in _fenced(name, check)]


def _fenced(name: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return the findings of a check; a library that fails to load is a finding too."""
    try:
        return list(check())
    except Exception as error:  # noqa: BLE001 - a broken installation fails in ways that cannot be listed
        return [Finding(name, "wrong", f"{type(error).__name__}: {error}", REINSTALL)]


def _versions() -> Iterator[Finding]:
    import openslide

    from wsi_ips import __version__

    needed = _requirements()
    core = needed.pop("", [])
    present = {r.name: found for r in core if (found := _version(r.name))}
    yield Finding("wsi-ips", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    libraries = {"OpenSlide": openslide.__library_version__} | present
    yield Finding("libraries", "ok", ", ".join(f"{name} {found}" for name, found in libraries.items()))
    for wanted in core:
        advice = f"pip install '{wanted.name}{wanted.specifier}'"
        if wanted.name not in present:
            yield Finding(wanted.name, "wrong", "not installed", advice)
        elif not wanted.specifier.contains(present[wanted.name], prereleases=True):
            yield Finding(wanted.name, "wrong", f"{present[wanted.name]} is older than needed", advice)
    absent = [extra for extra, names in needed.items() if not all(_version(r.name) for r in names)]
    if absent:
        advice = "only needed if a recipe or a command asks for it: pip install 'wsi-ips[EXTRA]'"
        yield Finding("extras", "note", f"not installed: {', '.join(absent)}", advice)


def _requirements() -> dict[str, list[Requirement]]:
    """Return the requirements of this package by extra (its own under ""); none if it is not installed."""
    found: dict[str, list[Requirement]] = {}
    try:
        lines = requires("wsi-ips") or []
    except PackageNotFoundError:
        return found
    for wanted in map(Requirement, lines):
        extra = re.search(r'extra == "(.+?)"', str(wanted.marker or ""))
        if extra is None or extra[1] != "dev":
            found.setdefault(extra[1] if extra else "", []).append(wanted)
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _memory() -> Iterator[Finding]:
    from wsi_ips.cluster.machine import available_cores, free_memory_bytes, installed_memory_bytes, memory_bytes

    total, free, limit = installed_memory_bytes(), free_memory_bytes(), memory_bytes()
    limited = "" if total - limit < 1e8 else f", limited to {limit / 1e9:.1f} GB"
    text = f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB free{limited}; {available_cores()} cores"
    advice = ""
    if min(free, limit) / 1e9 < LEAST_MEMORY_GB:
        advice = f"training needs {LEAST_MEMORY_GB:g} GB: close other programs, or lower `compute.chunk_size`"
    yield Finding("memory, cores", "note" if advice else "ok", text, advice)


def _graphics() -> Iterator[Finding]:
    import torch

    driver = _nvidia_driver()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            text = (
                f"{facts.name}, {facts.total_memory / 1e9:.1f} GB, compute capability {facts.major}.{facts.minor}, "
                f"driver {driver or 'unknown'}, PyTorch for CUDA {torch.version.cuda}"
            )
            if _runs_on(number):
                yield Finding(f"GPU {number}", "ok", text)
            else:
                advice = f"this PyTorch is built for {', '.join(torch.cuda.get_arch_list())}; install one for this GPU"
                yield Finding(f"GPU {number}", "wrong", f"{text}: a test computation fails", advice)
    elif driver:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
        advice = "install a PyTorch for this driver (pytorch.org, `Get started`), or update the driver"
        yield Finding("GPU", "wrong", f"driver {driver}, but PyTorch (for {built}) cannot use it", advice)
    else:
        yield Finding("GPU", "note", "none; everything runs on the CPU", "use a GPU to train on real slides")


def _runs_on(number: int) -> bool:
    import torch

    try:
        one = torch.ones(8, device=f"cuda:{number}")
        return bool((one @ one).item() == 8)
    except RuntimeError:
        return False


def _nvidia_driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def _disk(output: Path) -> Iterator[Finding]:
    place = next((p for p in (output, *output.parents) if p.exists()), Path("/"))
    if not place.is_dir():
        yield Finding("output", "wrong", f"{place} is a file", "give a folder")
        return
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".wsi-ips-"):
            pass
    except OSError as error:
        yield Finding("output", "wrong", f"{place}: cannot be written to ({error.strerror})", "choose another `output`")
        return
    usage = shutil.disk_usage(place)
    text = f"{place}: {usage.free / 1e9:.1f} GB free of {usage.total / 1e9:.1f}"
    advice = ""
    if usage.free / 1e9 < LEAST_DISK_GB:
        advice = "tile indexes and scores need some MB per slide; free some space, or choose another disk"
    yield Finding("output", "note" if advice else "ok", text, advice)


def _recipe_needs(recipe: Recipe) -> Iterator[Finding]:
    import torch

    if recipe.compute.device.startswith("cuda") and not torch.cuda.is_available():
        found = f"`compute.device: {recipe.compute.device}`, but PyTorch finds no GPU"
        yield Finding("recipe", "wrong", found, "set `compute.device: auto`, or see the line `GPU`")
    if recipe.compute.scan_backend == "int8" and not _version("onnxruntime"):
        yield Finding("recipe", "wrong", "`compute.scan_backend: int8` needs an extra", "pip install 'wsi-ips[int8]'")
    if recipe.model.lora_rank and not _version("peft"):
        yield Finding("recipe", "wrong", "`model.lora_rank` needs an extra", "pip install 'wsi-ips[lora]'")
