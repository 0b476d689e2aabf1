"""A process that does one job after another and may die of any of them, seen from outside.

Whoever dies takes nothing with it: the reason is told, and the next job gets a new process.
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

import psutil

from wsi_ips.fence import Failure

LOOK_EVERY_S = 0.1
"""How often memory and time of a job at work are looked at."""
START_LIMIT_S = 120.0
STACKS_TAKE_S = 0.5
MOST_ERROR_BYTES = 20_000
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""There is a process per core: threads beneath would fight for it."""
NUMBER = "WSI_IPS_PROCESS"
"""Environment variable: the process's number among those beneath one worker, from 0; it says which GPU is its own."""

Ending = Literal["done", "error", "crash", "timeout", "memory", "lost"]
"""``done`` and ``error``: the job came to its end; the others: its process did not."""


@dataclass(frozen=True)
class Job:
    """Something to be done in a process of its own.

    Attributes
    ----------
    name
        What it is called in messages: the slide.
    function
        ``package.module:function``; imported where the job is done.
    argument
        Its only argument.
    timeout_s
        Seconds it may take; None: as :class:`Limits` says.
    """

    name: str
    function: str
    argument: Any
    timeout_s: float | None = None


@dataclass(frozen=True)
class Limits:
    """When a job is stopped.

    Attributes
    ----------
    timeout_s
        Seconds it may take.
    memory_mb
        Resident memory that its process may take, MB (10⁶ bytes); None: no limit.
    """

    timeout_s: float
    memory_mb: float | None = None


@dataclass(frozen=True)
class Usage:
    """What a job took.

    Attributes
    ----------
    wall_s
        Seconds from beginning to end.
    cpu_s
        Seconds of CPU.
    queued_s
        Seconds it was ready but other programs had the cores; 0 where the system does not say.
    peak_rss_mb
        Largest resident memory of its process so far, MB (10⁶ bytes).
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    queued_s: float = 0.0
    peak_rss_mb: float = 0.0


@dataclass(frozen=True)
class JobResult:
    """How one attempt at a job ended.

    Attributes
    ----------
    ending
        See :data:`Ending`.
    value
        What the function returned; None unless ``done``.
    failure
        Why it did not end well; None where ``done``.
    usage
        What it took.
    """

    ending: Ending
    value: Any = None
    failure: Failure | None = None
    usage: Usage = field(default_factory=Usage)


class JobProcess:
    """One process beneath this one. Not to be shared between threads while a job runs; :meth:`kill` may come from any.

    It ends with the process that started it, however that ends.

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
        """Have a job done; whatever happens to the process is told in the result."""
        self._errors.seek(0)  # the position is shared with the process, which goes on writing from here
        self._errors.truncate()
        began = time.monotonic()
        peak_mb = 0.0
        timeout_s = limits.timeout_s if job.timeout_s is None else job.timeout_s
        try:
            if not self._started:
                self._await()
                self._started = True
            self._connection.send(job)
            self._await()  # imports are no part of a job's time
            began = time.monotonic()
            while not self._connection.poll(LOOK_EVERY_S):
                seconds, memory_mb = time.monotonic() - began, self._memory_mb()
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
        """End it at once; what it was doing is lost."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it and release what belongs to it."""
        self.kill()
        self._connection.close()
        self._errors.close()

    def _await(self) -> None:
        """Wait for a word of a process that starts or imports; one that says nothing is ended."""
        if not self._connection.poll(START_LIMIT_S):
            self.kill()
        self._connection.recv()

    def _memory_mb(self) -> float:
        try:
            return float(psutil.Process(self.pid).memory_info().rss / 1e6)
        except psutil.Error:
            return 0.0

    def _stopped(self, ending: Ending, reason: str, usage: Usage) -> JobResult:
        """Kill it, after it has written down where it was."""
        self._process.send_signal(signal.SIGCONT)  # a stopped process would not answer
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(STACKS_TAKE_S)
        self.kill()
        return JobResult(ending, failure=Failure(reason, self._last_words()), usage=usage)

    def _last_words(self) -> str:
        """End of what the process wrote to its standard error, with the stacks of a crash."""
        descriptor = self._errors.fileno()
        size = os.fstat(descriptor).st_size
        start = max(0, size - MOST_ERROR_BYTES)
        return os.pread(descriptor, MOST_ERROR_BYTES, start).decode("utf-8", "replace")


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
    """What a process died of, from its exit code."""
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
