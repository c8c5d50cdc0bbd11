"""A domain whose verifier does what its completion says; imported by verifier processes too."""

from __future__ import annotations

import os
import signal
import sys
import time

from cluster.messages import Problem, Verdict


class Hostile:
    name = "hostile"

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        return getattr(self, completion_text.split(":")[0])(completion_text)

    def good(self, text):
        return Verdict(score=1.0, passed=True, details={"said": text, "pid": os.getpid()})

    def loop(self, text):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass

    def sleep(self, text):
        time.sleep(float(text.split(":")[1]))
        return Verdict(score=1.0, passed=True)

    def exit(self, text):
        os._exit(7)

    def polite_exit(self, text):
        sys.exit(0)

    def shout(self, text):
        raise RuntimeError("the verifier is broken")

    def not_a_number(self, text):
        return Verdict(score=float("nan"), passed=True)

    def too_high(self, text):
        return Verdict(score=2.0, passed=True)

    def nothing(self, text):
        return None

    def long(self, text):
        return Verdict(score=0.0, passed=False, feedback="x" * 1_000_000, details={"rest": "y" * 1_000_000})

    def eat(self, text):
        return Verdict(score=float(len(bytearray(3 << 30)) > 0), passed=True)

    def look(self, text):
        with open("/proc/self/environ") as file:
            inherited = file.read().split("\0")
        modules = sorted({name.split(".")[0] for name in sys.modules})
        return Verdict(score=1.0, passed=True, details={"environ": inherited, "modules": modules, "main": sys.modules["__main__"].__spec__.name})


class Unreadable(Hostile):
    """Pickles, and cannot be read back."""

    def __reduce__(self):
        return int, ("no number",)


class Unpicklable(Hostile):
    def __getstate__(self):
        raise TypeError("holds a socket")


def problem(index: int) -> Problem:
    return Problem(
        problem_id=f"hostile/train/{index}", domain="hostile", messages=({"role": "user", "content": "?"},), solution="good"
    )
