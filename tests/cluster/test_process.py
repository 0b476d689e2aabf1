"""Whatever a job does to its process, the reason is told and the next job is done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import psutil
import pytest

from wsi_ips.cluster.process import Job, JobProcess, Limits

JOBS = "tests.cluster.jobs_of_tests:"
PATIENT = Limits(timeout_s=60)


@pytest.fixture
def process():
    made = JobProcess()
    yield made
    made.close()


def job(name: str, argument: object = None) -> Job:
    return Job(name, JOBS + name, argument)


def test_the_process_does_one_job_after_another(process):
    results = [process.run(job("double", n), PATIENT) for n in range(3)]
    assert [r.value for r in results] == [(2 * n, process.pid) for n in range(3)]
    assert results[0].usage.wall_s < 5
    assert results[0].usage.peak_rss_mb > 5


def test_an_error_is_a_result_and_the_process_goes_on(process):
    result = process.run(job("refuse"), PATIENT)
    assert (result.ending, result.failure.reason) == ("error", "slide s: no reader opens it; copy it again")
    assert "UnsupportedSlideError" in result.failure.traceback
    assert process.run(job("double", 1), PATIENT).value[0] == 2


@pytest.mark.parametrize(
    ("name", "reason", "in_traceback"),
    [
        ("crash", r"crashed \(SIGSEGV\).*damaged", "string_at"),
        ("kill_itself", r"killed \(SIGKILL\).*lack of memory", ""),
        ("leave", "exited with code 7", ""),
    ],
)
def test_a_death_says_what_of(process, name, reason, in_traceback):
    result = process.run(job(name), PATIENT)
    assert result.ending == "crash"
    assert re.search(reason, result.failure.reason)
    assert in_traceback in result.failure.traceback
    assert not process.alive


def test_a_hang_in_open_is_stopped_and_says_where(process, tmp_path):
    os.mkfifo(tmp_path / "slide.svs")
    began = time.monotonic()
    result = process.run(job("open_fifo", str(tmp_path / "slide.svs")), Limits(timeout_s=0.5))
    assert time.monotonic() - began < 30
    assert result.ending == "timeout"
    assert "more than 0.5 s" in result.failure.reason
    assert "open_fifo" in result.failure.traceback
    assert not process.alive


def test_a_stopped_process_is_a_hang_too(process):
    assert process.run(job("stop_itself"), Limits(timeout_s=0.5)).ending == "timeout"
    assert not process.alive


def test_memory_has_a_limit(process):
    result = process.run(job("eat_memory"), Limits(timeout_s=60, memory_mb=300))
    assert result.ending == "memory"
    assert "of the 300 MB" in result.failure.reason
    assert 300 < result.usage.peak_rss_mb < 3000


def test_a_refused_allocation_is_out_of_memory_too(process):
    assert process.run(job("ask_for_too_much"), PATIENT).ending == "memory"
    assert process.alive


ORPHAN = """
import os, signal, sys, threading, time
from wsi_ips.cluster.process import Job, JobProcess, Limits
process = JobProcess()
process.run(Job("d", "tests.cluster.jobs_of_tests:double", 1), Limits(60))
hanging = Job("f", "tests.cluster.jobs_of_tests:open_fifo", sys.argv[1])
threading.Thread(target=process.run, args=(hanging, Limits(60))).start()
time.sleep(0.3)
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_ends_with_whoever_started_it(tmp_path):
    os.mkfifo(tmp_path / "f")
    command = [sys.executable, "-c", ORPHAN, str(tmp_path / "f")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pid = int(done.stdout)
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail("the process outlived its parent")
