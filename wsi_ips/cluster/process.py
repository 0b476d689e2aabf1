"""A child process that runs one job after another, seen from the parent.

When a job kills the process, the result says why, and the next job gets a new process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Pipe
from typing import Any, Literal

from wsi_ips.cluster.machine import resident_mb
from wsi_ips.fence import Failure

CHECK_EVERY_S = 0.1
"""How often the memory and the time of a running job are checked."""
START_LIMIT_S = 120.0
STACK_DUMP_S = 0.5
MAX_ERROR_BYTES = 20_000
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""One process per core: more threads would compete for it."""
NUMBER = "WSI_IPS_PROCESS"
"""Environment variable with the number of the process among its siblings, from 0; it selects the GPU."""

Ending = Literal["done", "error", "crash", "timeout", "memory", "lost"]
"""``done`` and ``error``: the job ended; with the others, its process died or was stopped."""


@dataclass(frozen=True)
class Job:
    """A function call for another process."""

    name: str  # name in messages: the slide
    function: str  # ``package.module:function``; the other process imports it
    argument: Any  # its only argument; picklable
    timeout_s: float | None = None  # time limit in seconds; None: the one of :class:`Limits`


@dataclass(frozen=True)
class Limits:
    """When a job is stopped."""

    timeout_s: float  # time limit in seconds
    memory_mb: float | None = None  # limit of the process's resident memory, MB (10⁶ bytes); None: no limit


@dataclass(frozen=True)
class Usage:
    """Time and memory of a job."""

    wall_s: float = 0.0  # elapsed time in seconds
    cpu_s: float = 0.0  # CPU time in seconds
    peak_rss_mb: float = 0.0  # largest resident memory of its process so far, MB (10⁶ bytes)


@dataclass(frozen=True)
class JobResult:
    """Result of one attempt at a job."""

    ending: Ending  # see :data:`Ending`
    value: Any = None  # return value of the function; None unless ``done``
    failure: Failure | None = None  # why it failed; None where ``done``
    usage: Usage = field(default_factory=Usage)


class JobProcess:
    """A child process. One thread at a time may run a job in it; any thread may call :meth:`kill`.

    The child ends when its parent ends, even by `kill -9`. It is a plain subprocess, because `multiprocessing` imports
    the user's script again and refuses to start children beneath a Dask worker.

    Parameters
    ----------
    number
        Its number among its siblings, see :data:`NUMBER`.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self._connection, theirs = Pipe()
        self._started = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        path = os.pathsep.join(filter(None, sys.path))
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": path, NUMBER: str(number)}
        command = [sys.executable, "-m", "wsi_ips.cluster.child", str(theirs.fileno())]
        self._process = subprocess.Popen(  # noqa: S603
            command,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=environment,
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can take a job."""
        return self._process.poll() is None

    def run(self, job: Job, limits: Limits) -> JobResult:
        """Run a job and return its result, also when the process dies or is stopped."""
        self._errors.seek(0)  # parent and child share the position
        self._errors.truncate()
        began = time.monotonic()
        peak_mb = 0.0
        timeout_s = limits.timeout_s if job.timeout_s is None else job.timeout_s
        try:
            if not self._started:
                self._await()
                self._started = True
            self._connection.send(job)
            self._await()  # the time limit does not include imports
            began = time.monotonic()
            while not self._connection.poll(CHECK_EVERY_S):
                seconds, memory_mb = time.monotonic() - began, resident_mb(self.pid)
                peak_mb = max(peak_mb, memory_mb)
                usage = Usage(wall_s=seconds, peak_rss_mb=peak_mb)
                if seconds > timeout_s:
                    return self._stopped("timeout", _too_long(timeout_s), usage)
                if limits.memory_mb is not None and memory_mb > limits.memory_mb:
                    return self._stopped("memory", _too_large(memory_mb, limits.memory_mb), usage)
            result = self._connection.recv()
        except (EOFError, OSError):
            usage = Usage(wall_s=time.monotonic() - began, peak_rss_mb=peak_mb)
            code = self._process.wait()
            return JobResult("crash", failure=Failure(_died(code, peak_mb), self._last_words()), usage=usage)
        assert isinstance(result, JobResult)
        return result

    def kill(self) -> None:
        """End it at once; the result of its job is lost."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it and release its files."""
        self.kill()
        self._connection.close()
        self._errors.close()

    def _await(self) -> None:
        """Wait for a message of a process that starts or imports; kill it when none arrives."""
        if not self._connection.poll(START_LIMIT_S):
            self.kill()
        self._connection.recv()

    def _stopped(self, ending: Ending, reason: str, usage: Usage) -> JobResult:
        """Kill it after it has written its stack."""
        self._process.send_signal(signal.SIGCONT)  # a stopped process would not answer
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(STACK_DUMP_S)
        self.kill()
        return JobResult(ending, failure=Failure(reason, self._last_words()), usage=usage)

    def _last_words(self) -> str:
        """Return the end of its standard error, with the stacks of a crash."""
        descriptor = self._errors.fileno()
        size = os.fstat(descriptor).st_size
        start = max(0, size - MAX_ERROR_BYTES)
        return os.pread(descriptor, MAX_ERROR_BYTES, start).decode("utf-8", "replace")


def _too_long(timeout_s: float) -> str:
    return (
        f"took more than {timeout_s:g} s and was stopped; look whether its file can be read, then raise "
        "`compute.slide_timeout_s` or leave it out"
    )


def _too_large(memory_mb: float, limit_mb: float) -> str:
    return (
        f"out of memory: took {memory_mb:.0f} MB of the {limit_mb:.0f} MB a worker may take and was stopped; raise "
        "`compute.worker_memory_gb`, or lower `compute.workers`"
    )


def _died(code: int, memory_mb: float) -> str:
    """Explain an exit code."""
    seen = f"; {memory_mb:.0f} MB were last seen" if memory_mb else ""
    if code == -signal.SIGKILL:
        return (
            f"its process was killed (SIGKILL): by somebody, or by the system for lack of memory{seen}; if it happens "
            "again, lower `compute.workers`"
        )
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process crashed ({name}) while it was read{seen}; the file is probably damaged: copy it again"
    return f"its process ended by itself with exit code {code}{seen}; see its traceback file"
