"""The head of every benchmark's output: software, machine, date, command. Imported from beside the benchmarks."""

from __future__ import annotations

import os
import platform
import sys
from datetime import date
from pathlib import Path

import torch


def header(threads: int) -> str:
    """Three lines."""
    return "\n".join(
        (
            f"torch {torch.__version__}, {platform.system()} {platform.machine()}, {_processor()}, {threads} threads",
            f"{date.today().isoformat()}, load average at the start {os.getloadavg()[0]:.1f}",
            " ".join(["python", *sys.argv]),
        )
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"
