"""What a step of each recipe costs through the real service, against a GRPO step of the same tokens; generation apart.

GRPO drops rows of equal groups as dead, so its own steps have fewer tokens than others'. Its cost is therefore fitted as a line
over the tokens that go through the learner, from plain GRPO on three domains at three batch sizes, and every other recipe is
compared with that line at its own tokens.

    python tests/benchmarks/recipe_steps.py [--steps 8]

A service must be up in HOLDFAST_HOME (holdfast up). Prints seconds per step by phase and the ratio to GRPO.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from api.client import HoldfastClient
from api.job_paths import with_absolute_paths
from cluster.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
JOB_FILE = ROOT / "deploy" / "jobs" / "all-recipes.yaml"
GENERATION = ("rollout", "context_rollout", "verify")
PHASES = (*GENERATION, "context", "teacher", "reference", "pack", "policy_pass", "learner", "publish", "follow", "parity", "step")
WARM_UP_STEPS = 2
BASELINE = "baseline-"
BASELINE_PROBLEMS = (8, 16, 24)
OPTIONS = ("top_entropy", "reference_coefficient", "reason_first_tokens")
"""Left out: what the job file switches on beside a recipe's defaults, each with a forward pass or a generation of its own."""


def job(steps: int) -> dict[str, Any]:
    """Plain GRPO on each domain, then every recipe of the job file, on the demo's batch of 128 completions a step."""
    content = with_absolute_paths(yaml.safe_load(JOB_FILE.read_text()), ROOT)
    content["name"] = "recipe-steps"
    content["defaults"] |= {"steps": steps, "problems_per_step": 16, "rollouts_per_problem": 8}
    domains = {}
    for stage in content["stages"]:
        for field in ("steps", "problems_per_step", "rollouts_per_problem", "updates_per_batch"):
            stage.pop(field, None)
        for option in OPTIONS:
            stage["method"].pop(option, None)
        if len(stage["domains"]) == 1:
            domains.setdefault(stage["domains"][0]["name"], stage["domains"])
    baselines = [
        {"name": f"{BASELINE}{name.replace('_', '-')}-{size}", "domains": part, "method": {"recipe": "grpo"}, "problems_per_step": size}
        for name, part in domains.items()
        for size in BASELINE_PROBLEMS
    ]
    content["stages"] = baselines + content["stages"]
    content["evaluation"] = {"problems": 4}
    return content


def measure(client: HoldfastClient, job_id: str, stage: str) -> dict[str, float]:
    """Medians over the steps after the warm-up; ``cost`` is the step without generation."""
    values: dict[str, list[tuple[int, float]]] = {}
    for point in client.metrics(job_id, stage=stage)["data"]:
        values.setdefault(point["key"], []).append((point["step"], point["value"]))

    def median(key: str) -> float:
        points = [value for _, value in sorted(values.get(key, []))[WARM_UP_STEPS:]]
        return statistics.median(points) if points else 0.0

    found = {phase: median(f"seconds/{phase}") for phase in PHASES}
    found["tokens"] = median("tokens/trained")
    found["cost"] = found["step"] - sum(found[phase] for phase in GENERATION)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    content = job(parser.parse_args().steps)
    with HoldfastClient.from_settings(Settings()) as client:
        submitted = client.submit(content)
        ended = client.wait(submitted["id"], timeout_s=3600)
        if ended["status"] != "succeeded":
            raise SystemExit(f"the job ended {ended['status']}: {ended['reason']} {ended['message']}")
        rows = {stage["name"]: measure(client, submitted["id"], stage["name"]) for stage in content["stages"]}
    baselines = [row for name, row in rows.items() if name.startswith(BASELINE)]
    per_token, fixed = np.polyfit([row["tokens"] for row in baselines], [row["cost"] for row in baselines], 1)
    print(f"GRPO, generation apart: {fixed:.3f} s a step and {1e6 * per_token:.1f} us a token trained on")
    print(f"{'stage':<24}{'tokens':>8}{'step s':>8}{'rollout':>9}{'teacher':>9}{'learner':>9}{'other':>8}{'cost s':>8}{'x GRPO':>8}")
    for name, row in rows.items():
        other = row["cost"] - row["teacher"] - row["learner"]
        ratio = row["cost"] / (fixed + per_token * row["tokens"])
        print(
            f"{name:<24}{row['tokens']:>8.0f}{row['step']:>8.3f}{row['rollout']:>9.3f}{row['teacher']:>9.3f}{row['learner']:>9.3f}"
            f"{other:>8.3f}{row['cost']:>8.3f}{ratio:>8.2f}"
        )


if __name__ == "__main__":
    main()
