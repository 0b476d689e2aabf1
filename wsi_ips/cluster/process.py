"""A child process that runs one job after another.

When a job kills the process, the result says why, and the next job gets a new process.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from typing import Any, Literal

from wsi_ips.cluster.machine import resident_mb
from wsi_ips.errors import Failure, StorageError, fenced
from wsi_ips.provenance import peak_rss_mb

CHECK_EVERY_S = 0.1  # how often the memory and the time of a running job are checked
START_LIMIT_S = 120.0
STACK_DUMP_S = 0.5
MAX_ERROR_BYTES = 20_000
# One process per core: more threads would compete for it.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
NUMBER = "WSI_IPS_PROCESS"  # variable with the number of the process among its siblings, from 0; it selects the GPU
CHILD = f"from {__name__} import run_child; run_child({{}})"

Ending = Literal["done", "error", "storage", "crash", "timeout", "memory", "lost"]
"""Outcome of a job. ``done`` and ``error``: it ended; ``storage``: the disk is full; else its process died or was
stopped."""


@dataclass(frozen=True)
class Job:
    """A function call for another process."""

    name: str  # name in messages: the slide
    function: str  # ``package.module:function``; the other process imports it
    argument: Any  # its only argument; picklable
    timeout_s: float | None = None  # time limit in seconds; None: the one of :class:`Limits`


@dataclass(frozen=True)
class Limits:
    """Limits at which a job is stopped."""

    timeout_s: float  # time limit in seconds
    memory_mb: float | None = None  # limit of the process's resident memory, MB (10⁶ bytes); None: no limit


@dataclass(frozen=True)
class Usage:
    """Time and memory of a job."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_mb: float = 0.0  # largest resident memory of its process so far, MB (10⁶ bytes)


@dataclass(frozen=True)
class JobResult:
    """Result of one attempt at a job."""

    ending: Ending
    value: Any = None  # return value of the function; None unless ``done``
    failure: Failure | None = None  # why it failed; None where ``done``
    usage: Usage = field(default_factory=Usage)


class JobProcess:
    """A child process, seen from its parent. One thread at a time may run a job in it; any thread may kill it.

    The child ends when its parent ends, even by `kill -9`. It is a plain subprocess, because `multiprocessing` imports
    the user's script again and refuses to start child processes in a Dask worker.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        self._connection, theirs = Pipe()
        self._started = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", CHILD.format(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env=os.environ | ONE_THREAD | {"PYTHONPATH": path, NUMBER: str(number)},
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
                    return self._stopped("timeout", TOO_LONG.format(timeout_s), usage)
                if limits.memory_mb is not None and memory_mb > limits.memory_mb:
                    return self._stopped("memory", TOO_LARGE.format(memory_mb, limits.memory_mb), usage)
            result: JobResult = self._connection.recv()
        except (EOFError, OSError):
            usage = Usage(wall_s=time.monotonic() - began, peak_rss_mb=peak_mb)
            code = self._process.wait()
            return JobResult("crash", failure=Failure(_died(code, peak_mb), self._last_words()), usage=usage)
        return result

    def kill(self) -> None:
        """Kill the process; the result of its job is lost."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process and release its files."""
        self.kill()
        self._connection.close()
        self._errors.close()

    def _await(self) -> None:
        """Wait for a message while the process starts or imports; kill it if none arrives."""
        if not self._connection.poll(START_LIMIT_S):
            self.kill()
        self._connection.recv()

    def _stopped(self, ending: Ending, reason: str, usage: Usage) -> JobResult:
        """Kill the process after it has written its stack."""
        self._process.send_signal(signal.SIGCONT)  # a stopped process would not answer
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(STACK_DUMP_S)
        self.kill()
        return JobResult(ending, failure=Failure(reason, self._last_words()), usage=usage)

    def _last_words(self) -> str:
        """Return the end of its standard error, with the stacks of a crash."""
        descriptor = self._errors.fileno()
        start = max(0, os.fstat(descriptor).st_size - MAX_ERROR_BYTES)
        return os.pread(descriptor, MAX_ERROR_BYTES, start).decode("utf-8", "replace")


TOO_LONG = (
    "took more than {:g} s and was stopped; check that its file can be read, then raise `compute.slide_timeout_s` or "
    "leave it out"
)
TOO_LARGE = (
    "out of memory: took {:.0f} MB of the {:.0f} MB a worker may take and was stopped; raise "
    "`compute.worker_memory_gb`, or lower `compute.workers`"
)


def _died(code: int, memory_mb: float) -> str:
    """Explain an exit code."""
    seen = f"; it last used {memory_mb:.0f} MB" if memory_mb else ""
    if code == -signal.SIGKILL:
        return (
            f"its process was killed (SIGKILL): by a person, or by the system for lack of memory{seen}; if it happens "
            "again, lower `compute.workers`"
        )
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process crashed ({name}) while it was read{seen}; the file is probably damaged: copy it again"
    return f"its process exited with code {code}{seen}; see its traceback file"


def do_job(job: Job, on_begin: Callable[[], object] = bool) -> JobResult:
    """Run a job in this process and return its result; call ``on_begin`` after the imports."""
    module, _, name = job.function.partition(":")
    function = fenced(lambda: getattr(import_module(module), name))
    on_begin()
    began, cpu = time.monotonic(), time.process_time()
    try:
        result = function if isinstance(function, Failure) else fenced(partial(function, job.argument))
    except StorageError as error:
        return JobResult("storage", failure=Failure.of(error))
    usage = Usage(time.monotonic() - began, time.process_time() - cpu, peak_rss_mb())
    if isinstance(result, Failure):
        memory = "MemoryError" in result.reason.partition(":")[0]
        return JobResult("memory" if memory else "error", failure=result, usage=usage)
    return JobResult("done", value=result, usage=usage)


def run_child(descriptor: int) -> None:
    """Run the jobs of the parent until it is gone; the main function of the child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    connection = Connection(descriptor)
    jobs = queue.SimpleQueue[Job]()
    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    connection.send("ready")
    while True:
        connection.send(do_job(jobs.get(), partial(connection.send, "began")))


def _receive(connection: Connection, jobs: queue.SimpleQueue[Job]) -> None:
    """Receive jobs; exit at once when the parent is gone, even in the middle of a job."""
    try:
        while True:
            jobs.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)
