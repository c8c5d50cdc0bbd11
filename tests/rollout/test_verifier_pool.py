"""Hostile and broken verifiers cost their own sample alone, and no process outlives its pool or its pool's process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hostile_domain import Hostile, Unpicklable, Unreadable, problem

from cluster.errors import HoldfastError
from cluster.spec.domains import ArithmeticDomain
from rollout.domains import build_domain
from rollout.verifiers.pool import VerifierPool

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(1, deadline_s=2.0) as made:
        yield made


def jobs(*texts, domain=None):
    return [(domain or Hostile(), problem(index), text) for index, text in enumerate(texts)]


def children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "rollout.processes.process" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_until(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_verdicts_come_in_order(pool):
    texts = [f"good:{index}" for index in range(100)]
    verdicts = pool.verify(jobs(*texts))
    assert [verdict.details["said"] for verdict in verdicts] == texts
    assert {verdict.details["pid"] for verdict in verdicts}.isdisjoint({os.getpid()})
    assert pool.verify([]) == []


def test_an_infinite_loop_is_killed_at_the_deadline_and_the_rest_is_right(pool):
    pool.verify(jobs("good"))
    start = time.monotonic()
    verdicts = pool.verify(jobs("good:a", "loop", "good:b", *["good:c"] * 40))
    seconds = time.monotonic() - start
    assert [verdict.passed for verdict in verdicts] == [True, False] + [True] * 41
    assert verdicts[1].error == "the verifier of hostile/train/1 was stopped after 2 s"
    assert verdicts[1].score == 0.0
    assert 2.0 <= seconds < 20.0
    assert len(children()) == 1


def test_the_deadline_is_for_each_item_and_not_for_the_batch(pool):
    verdicts = pool.verify(jobs(*["sleep:0.5"] * 5))
    assert [verdict.error for verdict in verdicts] == [None] * 5


def test_a_verifier_that_ends_its_process_costs_only_itself(pool):
    verdicts = pool.verify(jobs("good", "exit", "good", "exit", "good"))
    assert [verdict.passed for verdict in verdicts] == [True, False, True, False, True]
    assert verdicts[1].error == "the verifier of hostile/train/1 ended its process (exit code 7)"


def test_raising_and_nonsense_verdicts_are_marked_and_keep_the_process(pool):
    texts = ("good", "shout", "polite_exit", "not_a_number", "too_high", "nothing", "good")
    verdicts = pool.verify(jobs(*texts))
    errors = [verdict.error for verdict in verdicts]
    assert errors[0] is None and errors[-1] is None
    assert errors[1] == "the verifier of hostile/train/1 raised RuntimeError: the verifier is broken"
    assert "SystemExit" in errors[2] and "score nan" in errors[3] and "score 2.0" in errors[4] and "AttributeError" in errors[5]
    assert all(verdict.score == 0.0 and not verdict.passed for verdict in verdicts[1:-1])
    assert verdicts[0].details["pid"] == verdicts[-1].details["pid"]


def test_long_answers_are_cut(pool):
    verdict = pool.verify(jobs("long"))[0]
    assert len(verdict.feedback) == 2_000 and verdict.details == {"dropped": "details are too long"}


def test_jobs_that_do_not_travel_are_marked(pool):
    unreadable, unpicklable = Unreadable(), Unpicklable()
    mixed = [(domain, problem(index), "good") for index, domain in enumerate([Hostile(), unpicklable, Hostile()])]
    verdicts = pool.verify(mixed)
    assert [verdict.error is None for verdict in verdicts] == [True, False, True]
    assert "holds a socket" in verdicts[1].error
    assert "cannot be read" in pool.verify(jobs("good", domain=unreadable))[0].error
    assert pool.verify(jobs("good"))[0].passed


def test_a_process_that_was_killed_while_idle_is_replaced_without_a_mark(pool):
    pool.verify(jobs("good"))
    children()[0].kill()
    wait_until(lambda: all(child.status() == psutil.STATUS_ZOMBIE for child in children()))
    assert [verdict.passed for verdict in pool.verify(jobs("good", "good"))] == [True, True]


def test_the_process_is_clean(pool, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    with VerifierPool(1, deadline_s=10.0) as fresh:
        found = fresh.verify(jobs("look"))[0].details
    assert not [entry for entry in found["environ"] if "SECRET" in entry or "hunter2" in entry]
    assert {entry.split("=")[0] for entry in found["environ"] if entry} <= {
        "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS",
    }  # fmt: skip
    assert set(found["modules"]) & {"torch", "transformers", "vllm", "ray", "pytest", "sympy", "datasets"} == set()
    assert found["main"] == "rollout.processes.process"


def test_memory_limit():
    with VerifierPool(1, deadline_s=10.0, memory_bytes=2 << 30) as bounded:
        verdicts = bounded.verify(jobs("good", "eat", "good"))
    assert [verdict.passed for verdict in verdicts] == [True, False, True]
    assert "MemoryError" in verdicts[1].error


def test_128_cheap_verifications_are_fast_and_right(pool):
    domain = build_domain(ArithmeticDomain(), name="sums", seed=0)
    problems = [domain.problem("train", index) for index in range(128)]
    tasks = [(domain, one, one.solution if index % 2 else "x") for index, one in enumerate(problems)]
    pool.verify(tasks)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        verdicts = pool.verify(tasks)
        seconds.append(time.perf_counter() - start)
    assert [verdict.passed for verdict in verdicts] == [bool(index % 2) for index in range(128)]
    assert min(seconds) < 0.05


def test_several_processes_share_a_batch():
    with VerifierPool(2, deadline_s=10.0) as two:
        verdicts = two.verify(jobs(*["sleep:0.02", "good"] * 20))
    assert all(verdict.passed for verdict in verdicts)
    assert len({verdict.details["pid"] for verdict in verdicts if verdict.details}) == 2


def test_nothing_is_left_after_close():
    before = set(children())
    made = VerifierPool(2, deadline_s=10.0)
    made.verify(jobs("good"))
    assert len(set(children()) - before) >= 1
    made.close()
    assert set(children()) - before == set()
    made.close()
    with pytest.raises((HoldfastError, RuntimeError)):
        made.verify(jobs("good"))


def test_close_does_not_wait_for_a_verifier_that_hangs():
    from concurrent.futures import ThreadPoolExecutor

    made = VerifierPool(1, deadline_s=600.0)
    made.verify(jobs("good"))
    with ThreadPoolExecutor(1) as caller:
        hanging = caller.submit(made.verify, jobs("loop", "good"))
        time.sleep(0.3)
        start = time.monotonic()
        made.close()
        assert time.monotonic() - start < 10.0
        with pytest.raises(HoldfastError):
            hanging.result(timeout=10.0)


CALLER = """
import os, sys, time
sys.path[:0] = [{root!r}, {tests!r}]
from hostile_domain import Hostile, problem
from rollout.verifiers.pool import VerifierPool
print("main runs", flush=True)
pool = VerifierPool(1, deadline_s=600.0)
pids = pool.verify([(Hostile(), problem(0), "good")])[0].details["pid"]
print(pids, flush=True)
pool.verify([(Hostile(), problem(0), {text!r})])
time.sleep(600)
"""


@pytest.mark.parametrize("text", ["loop", "good"], ids=["while verifying", "while idle"])
def test_children_die_with_a_parent_that_is_killed(tmp_path, text):
    """The caller is a script without a main guard: it must not be run again by its verifier process."""
    script = tmp_path / "caller.py"
    script.write_text(CALLER.format(root=str(ROOT), tests=str(Path(__file__).parent), text=text))
    caller = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    try:
        assert caller.stdout.readline() == "main runs\n"
        child = psutil.Process(int(caller.stdout.readline()))
        time.sleep(0.2)
        assert child.is_running()
        os.kill(caller.pid, signal.SIGKILL)
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 10.0)
        assert "main runs" not in caller.stdout.read()
    finally:
        caller.kill()
        caller.wait()
        caller.stdout.close()
