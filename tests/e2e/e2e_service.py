"""A real installation as the end-to-end tests drive it, and the small job that they submit."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from api.client import HoldfastClient

ROOT = Path(__file__).resolve().parents[2]
HOLDFAST = Path(sys.executable).parent / "holdfast"


@dataclass
class Service:
    """One installation and how to reach it."""

    home: Path
    environment: dict[str, str]

    def command(self, *arguments: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [HOLDFAST, *arguments], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )

    def up(self) -> None:
        result = self.command("up")
        assert result.returncode == 0, result.stdout + result.stderr

    def down(self) -> None:
        result = self.command("down")
        assert result.returncode == 0, result.stdout + result.stderr

    def client(self) -> HoldfastClient:
        url = f"http://127.0.0.1:{self.environment['HOLDFAST_API_PORT']}"
        return HoldfastClient(url, (self.home / "api_key").read_text().strip())


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def job_file(name: str, **changes) -> dict:
    """A two-stage job of a few steps on the small model: a policy gradient, then self-distillation with an EMA teacher."""
    job = {
        "version": 1,
        "name": name,
        "model": {"path": str(ROOT / "deploy" / "models" / "pebble")},
        "seed": 11,
        "defaults": {
            "steps": 4,
            "problems_per_step": 8,
            "rollouts_per_problem": 4,
            "max_prompt_tokens": 160,
            "sampling": {"max_tokens": 32},
            "optimizer": {"lr": 3e-5},
        },
        "stages": [
            {"name": "arithmetic", "domain": {"kind": "arithmetic", "digits": 2}, "method": {"recipe": "grpo"}},
            {
                "name": "strings",
                "domain": {"kind": "strings", "operation": "sort", "length": [4, 6]},
                "method": {"recipe": "sdpo", "teacher": {"kind": "ema", "update_rate": 0.05}},
            },
        ],
        "evaluation": {"problems": 64, "every_steps": 2},
        "checkpoint": {"every_steps": 2},
        "compute": {"device": "cpu"},
    }
    job["defaults"] |= changes.pop("defaults", {})
    return job | changes
