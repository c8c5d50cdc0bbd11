"""Verifiers in separate, killable processes with a deadline; never a fork of the caller.

A chunk of cheap verifications travels together. When a chunk fails or runs out of time its items are run again one by one,
so that one bad completion costs itself alone. What goes wrong is a verdict with ``error`` set, never an exception here.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager

from pebble import ProcessExpired, ProcessPool

from cluster.messages import Problem, Verdict
from rollout.domains.base import Domain

Task = tuple[Domain, Problem, str]

CHUNK = 32
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "HOME", "TMPDIR", "LD_LIBRARY_PATH")
PR_SET_PDEATHSIG = 1


class VerifierPool:
    """``verify`` keeps the order of its tasks."""

    def __init__(self, num_processes: int = 1, deadline_s: float = 10.0):
        self._deadline_s = deadline_s
        with _no_main_module():
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(
                max_workers=num_processes, context=context, initializer=_prepare_process, initargs=(os.getpid(),)
            )
            self._pool.schedule(_warm_up).result()

    def verify(self, tasks: Sequence[Task]) -> list[Verdict]:
        """One verdict per task. A verifier that raises, dies or runs out of time gives score 0 and an ``error``."""
        verdicts: list[Verdict] = []
        chunks = [tasks[start : start + CHUNK] for start in range(0, len(tasks), CHUNK)]
        with _no_main_module():
            pending = [self._pool.schedule(_verify_chunk, args=(chunk,), timeout=self._deadline_s) for chunk in chunks]
            for chunk, future in zip(chunks, pending, strict=True):
                try:
                    verdicts += future.result()
                except (FutureTimeout, ProcessExpired, Exception):  # noqa: B014 - pebble re-raises whatever the child raised
                    verdicts += [self._alone(task) for task in chunk]
        return verdicts

    def _alone(self, task: Task) -> Verdict:
        try:
            return self._pool.schedule(_verify_chunk, args=([task],), timeout=self._deadline_s).result()[0]
        except FutureTimeout:
            return _broken(f"the verifier of {task[1].problem_id} was stopped after {self._deadline_s:g} s")
        except ProcessExpired as error:
            return _broken(f"the verifier of {task[1].problem_id} ended its process (exit code {error.exitcode})")
        except Exception as error:  # a domain whose verdict does not pickle, say
            return _broken(f"the verifier of {task[1].problem_id} failed: {type(error).__name__}: {error}")

    def close(self) -> None:
        """End the processes and wait for them."""
        self._pool.stop()
        self._pool.join()


def _broken(message: str) -> Verdict:
    return Verdict(score=0.0, passed=False, error=message[:500])


def _verify_chunk(chunk: Sequence[Task]) -> list[Verdict]:
    return [_verify_one(*task) for task in chunk]


def _verify_one(domain: Domain, problem: Problem, text: str) -> Verdict:
    try:
        return domain.verify(problem, text)
    except Exception as error:  # a verifier's own fault is data
        return _broken(f"the verifier of {problem.problem_id} raised {type(error).__name__}: {error}")


def _warm_up() -> None:
    import rollout.domains  # noqa: F401 - so that the first deadline does not pay for imports


def _prepare_process(parent: int) -> None:
    """In the child: die with the parent, no secrets in the environment, no core dumps."""
    import resource

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for name in list(os.environ):
        if name not in KEPT_ENVIRONMENT:
            del os.environ[name]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def _no_main_module() -> Iterator[None]:
    """A spawned child runs its parent's main module again, which in a Ray worker is Ray's; hide it while children start."""
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
    main.__spec__ = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)
