"""One writer per run folder: an advisory lock that names its owner. Readers take none and are never blocked.

``run.lock`` holds owner, host, process id and time of the writing command, which keeps the file locked (``flock``): the
system releases the lock when the process ends, however it ends, so a killed command blocks nobody on its machine. On a
disk that machines share, such a lock may count on its own machine only. So the owner also renews the time of the file:
where the file names another machine, this one waits until it is renewed (and gives up) or is not (and takes over).
"""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsi_ips.errors import RunLockedError
from wsi_ips.pipeline.run_folder import RunFolder
from wsi_ips.provenance import is_dead, remove_leftovers, storage_named

RENEW_EVERY_S = 20.0
SILENT_S = 90.0  # an owner on another machine that does not renew its lock for so long is gone
LONG_GONE_S = 3600.0  # older than any difference between the clocks of machines
LOOK_EVERY_S = 1.0
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class _Lock:
    """The lock of one folder, held by this process ``times`` over."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self._path, self.times = path, 0
        with storage_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _locked(path, note)
            text = json.dumps(_this_process(), indent=2).encode() + b"\n"
            os.truncate(self._file, 0)
            os.pwrite(self._file, text, 0)
        self._released = threading.Event()
        threading.Thread(target=self._renew, name="wsi-ips-lock", daemon=True).start()

    def release(self) -> None:
        """Remove the file, then let others take it."""
        self._released.set()
        with suppress(OSError):
            self._path.unlink()
        os.close(self._file)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_EVERY_S):
            with suppress(OSError):
                os.utime(self._path)


_held: dict[Path, _Lock] = {}
_guard = threading.Lock()


@contextmanager
def sole_writer(folder: RunFolder, note: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the lock of a run folder for a ``with`` block, and first remove what killed writers left there.

    A process that holds it may take it again, in any thread. ``note`` is called with a message where it has to wait.

    Raises
    ------
    RunLockedError
        Another process writes into the folder; the message names it.
    StorageError
        The folder cannot be written to.
    """
    path = folder.lock.absolute()
    with _guard:
        if path not in _held:
            _held[path] = _Lock(path, note)
            _clean(folder)
        _held[path].times += 1
    try:
        yield
    finally:
        with _guard:
            _held[path].times -= 1
            if not _held[path].times:
                _held.pop(path).release()


def _locked(path: Path, note: Callable[[str], None]) -> int:
    """Open and lock the file, made where there is none; return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
        try:
            supported = _system_lock(path, descriptor)
            if _is_at(path, descriptor):
                _await_silence(path, descriptor, note, supported=supported)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner has removed it since it was opened


def _system_lock(path: Path, descriptor: int) -> bool:
    """Lock an open file; return False where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _refusal(path, _owner(descriptor)) from error
        raise
    return True


def _await_silence(path: Path, descriptor: int, note: Callable[[str], None], *, supported: bool) -> None:
    """Return when the owner that a file names is gone; raise RunLockedError where it is at work."""
    owner = _owner(descriptor)
    renewed = os.fstat(descriptor).st_mtime
    here = owner.get("host") == platform.node()
    if not owner or time.time() - renewed > LONG_GONE_S or (here and (supported or is_dead(int(owner.get("pid", 0))))):
        return
    note(f"{path}: left by {_named(owner)}; waiting up to {SILENT_S:.0f} s for a sign of life of it")
    end = time.monotonic() + SILENT_S
    while time.monotonic() < end:
        time.sleep(LOOK_EVERY_S)
        if not _is_at(path, descriptor) or os.stat(path).st_mtime != renewed:
            raise _refusal(path, owner)


def _refusal(path: Path, owner: dict[str, Any]) -> RunLockedError:
    return RunLockedError(
        f"run folder {path.parent}: another command writes to it, {_named(owner)}; wait for it, stop it, or give this "
        "command another `output`"
    )


def _named(owner: dict[str, Any]) -> str:
    known = {name: owner.get(name, "unknown") for name in ("owner", "host", "pid", "since")}
    return "process {pid} of {owner} on {host}, since {since}".format_map(known)


def _owner(descriptor: int) -> dict[str, Any]:
    """Return who wrote the file; empty where nobody has, or where it cannot be understood."""
    try:
        found = json.loads(os.pread(descriptor, 10_000, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _this_process() -> dict[str, Any]:
    try:
        owner = getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        owner = str(os.getuid())
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"owner": owner, "host": platform.node(), "pid": os.getpid(), "since": since}


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _clean(folder: RunFolder) -> None:
    """Remove what killed writers left in the run folder.

    Tiles and features may be those of other runs too (`tiles.shared`, `features.location`), which write there without
    this lock: of them, only what a process of this machine left that is gone.
    """
    root, training = folder.root, folder.training
    pictures = folder.tissue, folder.overlay("", "").parent, folder.handoffs, folder.report.parent
    models = training, *training.glob("[!.]*"), folder.model, folder.last_model
    for place in (root, *pictures, *models, folder.scores, folder.traceback("").parent):
        remove_leftovers(place)
    for place in (root / "tiles.zarr", root / "tiles.h5", folder.features, *folder.features.glob("[!.]*")):
        remove_leftovers(place, of_the_dead=True)
