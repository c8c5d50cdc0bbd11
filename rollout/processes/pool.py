"""Work in separate, killable processes with a deadline for every single job; never a fork of the caller.

Invariant: one answer per job, in order. A job that raises, hangs, or ends its process costs its own answer alone, which
then has ``error`` set; the pool starts another process and goes on.

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
from typing import Any

from cluster.errors import HoldfastError

JOBS_PER_MESSAGE = 32
START_DEADLINE_S = 120.0
MAX_ANSWER_BYTES = 100_000
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


class LimitedPool:
    """``num_processes`` processes that run ``answer(job) -> dict`` of the module ``work``, one of ours by its dotted name.

    ``memory_bytes`` bounds the address space of each (RLIMIT_AS). Threads that live as long as the pool start the
    processes: the kernel ends a child with the thread that started it.
    """

    unavailable = "process_unavailable"
    """The reason of the error where no process starts."""

    def __init__(
        self,
        work: str,
        num_processes: int = 1,
        deadline_s: float = 10.0,
        *,
        memory_bytes: int | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ):
        self._settings = {"work": work, "memory_bytes": memory_bytes, "max_answer_bytes": max_answer_bytes}
        self._deadline_s = deadline_s
        self._closed = False
        self._slots: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._live: set[_Process] = set()
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix=work)
        self._num_processes = num_processes
        for _ in range(num_processes):
            self._slots.put(None)
            self._threads.submit(self._run, ())  # starts the process ahead of the first use

    def run(self, jobs: Sequence[Any]) -> list[dict[str, Any]]:
        """The answers of ``jobs``, in order; ``{"error": <in words>}`` for a job that failed. Raises ``HoldfastError`` with
        reason ``unavailable`` if no process starts."""
        size = max(1, min(JOBS_PER_MESSAGE, math.ceil(len(jobs) / self._num_processes)))
        parts = [self._threads.submit(self._run, jobs[start : start + size]) for start in range(0, len(jobs), size)]
        return [answer for part in parts for answer in part.result()]

    def close(self) -> None:
        """End the processes, also one that is in the middle of a job, and wait for them."""
        self._closed = True
        for process in list(self._live):
            process.signal()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in list(self._live):
            process.end()
        self._live.clear()

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, jobs: Sequence[Any]) -> list[dict[str, Any]]:
        """One message's worth of jobs, on as many processes as it takes. Runs on a thread of the pool."""
        process, answers, useless = self._slots.get(), [], 0
        try:
            process = self._running(process)
            while len(answers) < len(jobs):
                process = self._running(process)
                found = process.run(jobs[len(answers) :], self._deadline_s)
                useless = 0 if found else useless + 1
                if useless == 2:
                    found = [{"error": "could not be read by a limited process"}]
                answers += found
        finally:
            self._slots.put(process)
        return answers

    def _running(self, process: _Process | None) -> _Process:
        if process is not None and process.alive:
            return process
        self._live.discard(process)
        if self._closed:
            raise HoldfastError("the pool is closed", reason=self.unavailable)
        process = _Process(self._settings)
        self._live.add(process)
        if not process.wait_until_ready():
            raise HoldfastError(f"a limited process did not start (exit code {process.end()})", reason=self.unavailable)
        return process


class _Process:
    """One limited process and the pipe to it."""

    def __init__(self, settings: dict[str, Any]):
        self.alive = True
        self._hung = False
        self._max_answer_bytes = settings["max_answer_bytes"]
        self._pipe, theirs = Pipe(duplex=True)
        settings = {**settings, "pipe": theirs.fileno(), "parent": os.getpid()}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rollout.processes.process", json.dumps(settings)],
            pass_fds=(theirs.fileno(),),
            env=_clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()

    def wait_until_ready(self) -> bool:
        return self._answer(START_DEADLINE_S) is not None

    def run(self, jobs: Sequence[Any], deadline_s: float) -> list[dict[str, Any]]:
        """Answers of the first jobs: all of them, or up to the one that cost the process its life; none where it was dead already."""
        try:
            self._pipe.send(list(jobs))
        except OSError:
            self.end()
            return []
        except Exception as error:  # a job that does not pickle; pickling tells many exceptions
            if len(jobs) == 1:
                return [{"error": f"cannot be sent to a limited process: {error}"}]
            return self.run(jobs[: len(jobs) // 2], deadline_s)
        received = self._answer(deadline_s)
        if received is None:
            self.end()
            return []
        if received.get("error"):
            return [{"error": received["error"]} for _ in jobs]
        answers: list[dict[str, Any]] = []
        for _ in jobs:
            answer = self._answer(deadline_s)
            if answer is None:
                return [*answers, {"error": self._end_of(deadline_s)}]
            answers.append(answer)
        return answers

    def _end_of(self, deadline_s: float) -> str:
        """End a process that did not answer; says which way it failed."""
        code = self.end()
        return f"was stopped after {deadline_s:g} s" if self._hung else f"ended its process (exit code {code})"

    def _answer(self, deadline_s: float) -> dict[str, Any] | None:
        """The next message; None where none comes in time, where the process is gone, or where it is not an answer."""
        try:
            self._hung = not self._pipe.poll(deadline_s)
            if self._hung:
                return None
            answer = json.loads(self._pipe.recv_bytes(self._max_answer_bytes))
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
