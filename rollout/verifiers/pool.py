"""Verifiers in separate, killable processes with a deadline for every single completion; never a fork of the caller.

Invariant: one verdict per job, in order. A verifier that raises, hangs, or ends its process costs its own job alone,
whose verdict then has ``error`` set; the pool starts another process and goes on.

The processes are started by ``subprocess``, not by a multiprocessing pool: a spawned multiprocessing child runs its
caller's main module again (in a Ray worker that is Ray's) and inherits its environment with whatever is secret in it.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Pipe

from cluster.errors import HoldfastError
from cluster.messages import Problem, Verdict
from rollout.domains.base import Domain

Job = tuple[Domain, Problem, str]

JOBS_PER_MESSAGE = 32
START_DEADLINE_S = 120.0
MAX_ANSWER_BYTES = 100_000
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


class VerifierPool:
    """``num_processes`` verifier processes. ``memory_bytes`` bounds the address space of each (RLIMIT_AS).

    Threads that live as long as the pool start the processes: the kernel ends a child with the thread that started it.
    """

    def __init__(self, num_processes: int = 1, deadline_s: float = 10.0, *, memory_bytes: int | None = None):
        self._deadline_s = deadline_s
        self._memory_bytes = memory_bytes
        self._closed = False
        self._slots: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._live: set[_Process] = set()
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="verifiers")
        self._num_processes = num_processes
        for _ in range(num_processes):
            self._slots.put(None)
            self._threads.submit(self._verify, ())  # starts the process ahead of the first use

    def verify(self, jobs: Sequence[Job]) -> list[Verdict]:
        """The verdicts of ``jobs``, in order. Raises ``HoldfastError`` ``verifier_unavailable`` if no process starts."""
        size = max(1, min(JOBS_PER_MESSAGE, math.ceil(len(jobs) / self._num_processes)))
        parts = [self._threads.submit(self._verify, jobs[start : start + size]) for start in range(0, len(jobs), size)]
        return [verdict for part in parts for verdict in part.result()]

    def close(self) -> None:
        """End the processes, also one that is in the middle of a verification, and wait for them."""
        self._closed = True
        for process in list(self._live):
            process.signal()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in list(self._live):
            process.end()
        self._live.clear()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _verify(self, jobs: Sequence[Job]) -> list[Verdict]:
        """One message's worth of jobs, on as many processes as it takes. Runs on a thread of the pool."""
        process, verdicts, useless = self._slots.get(), [], 0
        try:
            process = self._running(process)
            while len(verdicts) < len(jobs):
                process = self._running(process)
                found = process.verify(jobs[len(verdicts) :], self._deadline_s)
                useless = 0 if found else useless + 1
                if useless == 2:
                    found = [_failed(jobs[len(verdicts)], "could not be read by a verifier process")]
                verdicts += found
        finally:
            self._slots.put(process)
        return verdicts

    def _running(self, process: _Process | None) -> _Process:
        if process is not None and process.alive:
            return process
        self._live.discard(process)
        if self._closed:
            raise HoldfastError("the verifier pool is closed", reason="verifier_unavailable")
        process = _Process(self._memory_bytes)
        self._live.add(process)
        process.wait_until_ready()
        return process


class _Process:
    """One verifier process and the pipe to it."""

    def __init__(self, memory_bytes: int | None):
        self.alive = True
        self._hung = False
        self._pipe, theirs = Pipe(duplex=True)
        settings = {"pipe": theirs.fileno(), "parent": os.getpid(), "memory_bytes": memory_bytes}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rollout.verifiers.process", json.dumps(settings)],
            pass_fds=(theirs.fileno(),),
            env=_clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def wait_until_ready(self) -> None:
        if self._answer(START_DEADLINE_S) is None:
            code = self.end()
            raise HoldfastError(f"a verifier process did not start (exit code {code})", reason="verifier_unavailable")

    def verify(self, jobs: Sequence[Job], deadline_s: float) -> list[Verdict]:
        """Verdicts of the first jobs: all of them, or up to the one that cost the process its life; none where it was dead already."""
        try:
            self._pipe.send(list(jobs))
        except OSError:
            self.end()
            return []
        except Exception as error:  # a job that does not pickle; pickling tells many exceptions
            if len(jobs) == 1:
                return [_failed(jobs[0], f"cannot be sent to a verifier process: {error}")]
            return self.verify(jobs[: len(jobs) // 2], deadline_s)
        received = self._answer(deadline_s)
        if received is None:
            self.end()
            return []
        if received.get("error"):
            return [_failed(job, received["error"]) for job in jobs]
        verdicts: list[Verdict] = []
        for job in jobs:
            answer = self._answer(deadline_s)
            if answer is None:
                return [*verdicts, _failed(job, self._end_of(deadline_s))]
            verdicts.append(_checked(answer, job))
        return verdicts

    def _end_of(self, deadline_s: float) -> str:
        """End a process that did not answer; says which way it failed."""
        code = self.end()
        return f"was stopped after {deadline_s:g} s" if self._hung else f"ended its process (exit code {code})"

    def _answer(self, deadline_s: float) -> dict | None:
        """The next message; None where none comes in time, where the process is gone, or where it is not an answer."""
        try:
            self._hung = not self._pipe.poll(deadline_s)
            if self._hung:
                return None
            answer = json.loads(self._pipe.recv_bytes(MAX_ANSWER_BYTES))
        except (EOFError, OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def signal(self) -> None:
        """Kill the process and all of its group; safe from any thread, and twice."""
        if self._process.returncode is None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

    def end(self) -> int:
        """Kill and reap; the exit code."""
        self.alive = False
        self.signal()
        code = self._process.wait()
        self._pipe.close()
        return code


def _clean_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    return {**kept, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path), "OMP_NUM_THREADS": "1"}


def _checked(answer: dict, job: Job) -> Verdict:
    """What a process answered, as a verdict; an answer out of range is the verifier's failure."""
    score, error = answer.get("score"), answer.get("error")
    if error is not None:
        return _failed(job, str(error))
    if not isinstance(score, int | float) or not math.isfinite(score) or not 0.0 <= score <= 1.0:
        return _failed(job, f"gave the score {score}; allowed is 0 to 1")
    return Verdict(
        score=float(score), passed=answer["passed"] is True, feedback=str(answer["feedback"]), details=dict(answer["details"])
    )


def _failed(job: Job, what: str) -> Verdict:
    return Verdict(score=0.0, passed=False, error=f"the verifier of {job[1].problem_id} {what}")
