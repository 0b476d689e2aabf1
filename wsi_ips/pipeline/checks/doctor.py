"""What this machine and this installation can do, what is wrong with them, and what to do about it.

Each finding is measured or asked of the library concerned, never guessed from a version number alone.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsi_ips.config import Recipe
from wsi_ips.errors import WsiIpsError

Verdict = Literal["ok", "note", "wrong"]

LIBRARIES = (
    "torch", "torchvision", "numpy", "scipy", "scikit-image", "scikit-learn", "pandas", "openslide-python",
    "openslide-bin", "tiffslide", "tifffile", "simplejpeg", "zarr", "h5py", "fsspec", "shapely", "pillow", "pydantic",
)  # fmt: skip
OPTIONAL = ("timm", "distributed", "dask-jobqueue", "peft", "onnxruntime", "aiohttp", "s3fs", "gcsfs")
LEAST_DISK_GB = 5.0
LEAST_MEMORY_GB = 4.0
SIMD_GAIN = 1.3
"""Decoding with vector instructions over decoding without; 1.9 here, more on other textures."""
FILES_PER_SLIDE = 4
SELF_TEST_PX = (512, 384)


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes
    ----------
    what
        What was looked at.
    verdict
        ``ok``, ``note`` (works, but worth knowing) or ``wrong`` (something will not work).
    found
        What was found.
    advice
        What to do; empty where nothing is to be done.
    """

    what: str
    verdict: Verdict
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        """As plain text, for JSON."""
        return asdict(self)


def examine(output: Path, recipe: Recipe | None = None) -> list[Finding]:
    """Look at everything that matters.

    Parameters
    ----------
    output
        Folder that results will go to; need not be there yet.
    recipe
        Its wishes are compared with what is there.
    """
    looks: list[Callable[[], Iterator[Finding]]] = [
        _versions,
        _openslide,
        _jpeg,
        _processor,
        _memory,
        _graphics,
        _open_files,
        lambda: _disk(output),
        _self_test,
    ]
    if recipe is not None:
        looks.append(lambda: _wishes(recipe))
    return [finding for look in looks for finding in _fenced(look)]


def _fenced(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Findings of one look; a library that cannot even be asked is a finding too."""
    try:
        return list(look())
    except Exception as error:  # noqa: BLE001 - a broken installation fails in ways that cannot be listed
        name = getattr(look, "__name__", "look").strip("_<>")
        advice = "install again: pip install --force-reinstall wsi-ips"
        return [Finding(name, "wrong", f"{type(error).__name__}: {error}", advice)]


def _versions() -> Iterator[Finding]:
    from wsi_ips import __version__

    yield Finding("wsi-ips", "ok", f"{__version__}, Python {platform.python_version()}, {platform.platform()}")
    needed = _requirements()
    missing = [name for name in LIBRARIES if _version(name) is None]
    for name in missing:
        yield Finding(name, "wrong", "not installed", f"pip install '{needed.get(name, name)}'")
    present = {name: str(_version(name)) for name in (*LIBRARIES, *OPTIONAL) if _version(name)}
    yield Finding("libraries", "ok", ", ".join(f"{name} {found}" for name, found in present.items()))
    for name, found in present.items():
        if name in needed and not _meets(needed[name], found):
            yield Finding(name, "wrong", f"{found} is older than needed", f"pip install '{needed[name]}'")
    absent = [name for name in OPTIONAL if name not in present]
    if absent:
        yield Finding(
            "extras", "note", f"not installed: {', '.join(absent)}", "only where a recipe needs them, see README"
        )


def _requirements() -> dict[str, str]:
    """What this package asks for, by name; empty where it is not installed as a package."""
    from packaging.requirements import Requirement

    try:
        lines = requires("wsi-ips") or []
    except PackageNotFoundError:
        return {}
    parsed = [Requirement(line) for line in lines]
    return {r.name: f"{r.name}{r.specifier}" for r in parsed if r.marker is None}


def _meets(requirement: str, found: str) -> bool:
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(found, prereleases=True)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _openslide() -> Iterator[Finding]:
    import openslide

    build = openslide.__library_version__
    bundled = _version("openslide-bin")
    where = f"from openslide-bin {bundled}" if bundled else "of the system"
    if int(build.split(".")[0]) < 4:
        yield Finding("OpenSlide", "wrong", f"{build} {where}: no DICOM", "pip install 'openslide-bin>=4.0'")
    else:
        yield Finding("OpenSlide", "ok", f"{build} {where}")


def _jpeg() -> Iterator[Finding]:
    """Decoding with and without vector instructions, each in a process of its own: the switch is read at the start."""
    fast, slow = _decoding_rate({}), _decoding_rate({"JSIMD_FORCENONE": "1"})
    text = f"simplejpeg {_version('simplejpeg')}: {fast:.0f} Mpx/s per core, {slow:.0f} without vector instructions"
    if fast < slow * SIMD_GAIN:
        advice = "pip install --force-reinstall simplejpeg (a wheel for this machine); unset JSIMD_FORCENONE"
        yield Finding("JPEG decoder", "note", f"{text}: libjpeg-turbo makes no use of them", advice)
    else:
        yield Finding("JPEG decoder", "ok", f"{text} (libjpeg-turbo with SIMD)")


def _decoding_rate(settings: dict[str, str]) -> float:
    code = "from wsi_ips.slides.speed import decoding_rate_mpx_s as r; print(max(r(0.1) for _ in range(3)))"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **settings},
    )
    return float(done.stdout)


def _processor() -> Iterator[Finding]:
    import torch

    from wsi_ips.cluster.machine import available_cores

    host, cores = os.cpu_count() or 1, available_cores()
    limit = "" if host <= cores else f" of {host} (limited by container or affinity)"
    yield Finding("cores", "ok", f"{cores}{limit}, PyTorch uses {torch.get_num_threads()}")
    if getattr(torch.cpu, "_is_vnni_supported", lambda: False)():
        extra = "" if _version("onnxruntime") else "; needs the extra `int8`"
        yield Finding("8-bit integers", "ok", f"possible (VNNI): `compute.scan_backend: int8`{extra}")
    else:
        yield Finding("8-bit integers", "note", "this CPU has no VNNI: `int8` is slower than fp32 here")


def _memory() -> Iterator[Finding]:
    from wsi_ips.cluster.machine import free_memory_bytes, installed_memory_bytes, memory_bytes

    total, free, limit = installed_memory_bytes(), free_memory_bytes(), memory_bytes()
    limited = "" if total - limit < 1e8 else f", limited to {limit / 1e9:.1f} GB by container or ulimit"
    text = f"{total / 1e9:.1f} GB, {free / 1e9:.1f} GB free{limited}"
    if min(free, limit) / 1e9 < LEAST_MEMORY_GB:
        advice = f"training wants {LEAST_MEMORY_GB:g} GB: close other programs, or lower `compute.chunk_size`"
        yield Finding("memory", "note", text, advice)
    else:
        yield Finding("memory", "ok", text)


def _graphics() -> Iterator[Finding]:
    import torch

    driver = _nvidia_smi()
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            name = f"{facts.name}, {facts.total_memory / 1e9:.1f} GB, compute capability {facts.major}.{facts.minor}"
            built = f"driver {driver or 'unknown'}, PyTorch for CUDA {torch.version.cuda}"
            architectures = torch.cuda.get_arch_list()
            if not _runs_on(number):
                advice = f"this PyTorch is built for {', '.join(architectures)}; install one for this GPU"
                yield Finding(f"GPU {number}", "wrong", f"{name}, {built}: a test kernel fails", advice)
            else:
                yield Finding(f"GPU {number}", "ok", f"{name}, {built}")
    elif driver:
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
        advice = "install a PyTorch for this driver (pytorch.org, `Get started`), or renew the driver"
        yield Finding("GPU", "wrong", f"driver {driver}, but PyTorch (for {built}) cannot use it", advice)
    else:
        yield Finding("GPU", "note", "none; everything runs on the CPU", "training on real slides wants one")


def _runs_on(number: int) -> bool:
    import torch

    try:
        one = torch.ones(8, device=f"cuda:{number}")
        return bool((one @ one).item() == 8)
    except RuntimeError:
        return False


def _nvidia_smi() -> str | None:
    """Version of the NVIDIA driver, None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def _open_files() -> Iterator[Finding]:
    from wsi_ips.slides.pool import MAX_OPEN

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MAX_OPEN * FILES_PER_SLIDE:
        advice = f"ulimit -n {min(hard, 4096) if hard > 0 else 4096}"
        yield Finding("open files", "note", f"{soft} at a time", advice)
    else:
        yield Finding("open files", "ok", f"{'no limit' if soft == resource.RLIM_INFINITY else soft} at a time")


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
    if usage.free / 1e9 < LEAST_DISK_GB:
        yield Finding(
            "output", "note", text, "indexes and scores take some MB a slide; make room, or choose another disk"
        )
    else:
        yield Finding("output", "ok", text)


def _self_test() -> Iterator[Finding]:
    """Write a slide, read it with each reader, store and read a tile index beside it."""
    from wsi_ips.geometry import Point, Size
    from wsi_ips.slides import open_slide

    pixels = []
    size = Size(*SELF_TEST_PX)
    with tempfile.TemporaryDirectory(prefix="wsi-ips-") as folder:
        path = Path(folder) / "self-test.svs"
        _write_slide(path, size)
        for name in ("openslide", "tiffslide", "direct"):
            try:
                with open_slide(path, reader=name) as reader:
                    pixels.append(reader.read_region(Point(0, 0), 0, size))
            except (WsiIpsError, OSError) as error:
                yield Finding("self-test", "wrong", f"{name}: {error}", "pip install --force-reinstall wsi-ips")
                return
    off = max(float(np.abs(one.astype(int) - pixels[0]).max()) for one in pixels)
    if off > 2:
        advice = (
            "two JPEG decoders disagree: report this with the versions above; `slides.reader: openslide` until then"
        )
        yield Finding("self-test", "wrong", f"readers differ by up to {off:.0f} grey levels", advice)
    else:
        yield Finding("self-test", "ok", "a slide written here is read alike by OpenSlide, TiffSlide and directly")


def _write_slide(path: Path, size: Any) -> None:
    from wsi_ips.slides.aperio import EncodedLevel, tile_counts, write_aperio
    from wsi_ips.slides.speed import sample_tile

    level = EncodedLevel(size, np.zeros(tile_counts(size), np.int32), [sample_tile()])
    write_aperio(path, [level], thumbnail=np.full((96, 128, 3), 240, np.uint8), mpp=0.5)


def _wishes(recipe: Recipe) -> Iterator[Finding]:
    """What the recipe asks for and this machine has not."""
    import torch

    if recipe.compute.device.startswith("cuda") and not torch.cuda.is_available():
        found = f"`compute.device: {recipe.compute.device}`, but PyTorch sees no GPU"
        yield Finding("recipe", "wrong", found, "set `compute.device: auto`, or see above for the GPU")
    if recipe.compute.scan_backend == "int8" and not _version("onnxruntime"):
        yield Finding("recipe", "wrong", "`compute.scan_backend: int8` needs an extra", "pip install 'wsi-ips[int8]'")
    if recipe.model.lora_rank and not _version("peft"):
        yield Finding("recipe", "wrong", "`model.lora_rank` needs an extra", "pip install 'wsi-ips[lora]'")
    if not recipe.manifest.exists():
        yield Finding("recipe", "wrong", f"no manifest at {recipe.manifest}", "correct key `manifest`")
