"""On-policy distillation on a toy, by future coupling gamma: the gradient's variance, and whether the targets are reached.

The toy of 2603.25562, appendix C: one policy learns two mirror tasks from two teachers in turn, for five gammas and three
seeds (``distillation.py``, ``toy_control.py``). Beside it closed forms of the variance's growth with the horizon
(``horizon.py``).

    python -m tests.studies.opd_variance                          # minutes on one core; writes results/
    python -m tests.studies.opd_variance --quick --output FOLDER  # seconds, few iterations; its figures mean nothing
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.studies.distillation import QUICK, Outcome, Settings, distil, final_distances, train_teachers
from tests.studies.horizon import ON_POLICY, STALE, gradient_variance
from tests.studies.toy_control import WEIGHT_SHAPES
from tests.studies.variance_figure import draw

DATE = "2026-11-21"
NAME = f"opd_variance_{DATE}"
RESULTS = Path(__file__).parent / "results"
HORIZONS = (4, 8, 16, 32, 64, 128, 256)
TARGET_REACHED = 0.5
"""A policy reaches a target where it ends within this of it, on average; the start is 5 away."""
LOST = 10.0
"""Beyond this a run has diverged: its units saturate, and a variance of nearly nothing says nothing."""
LAST_SHARE = 0.1
"""Share of the iterations over which the end of the curves is averaged."""


def run_study(settings: Settings) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """All figures of the study, and the curves by optimizer."""
    began = time.process_time()
    teachers = train_teachers(settings)
    teacher_distances = torch.stack([final_distances(teacher, settings)[task] for task, teacher in enumerate(teachers)])
    outcomes = {f"{name} {rate:g}": distil(settings, teachers, name, rate) for name, rate in settings.optimizers}
    figures = {
        "date": DATE,
        "settings": asdict(settings),
        "parameters": sum(math.prod(shape) for shape in WEIGHT_SHAPES.values()),
        "teacher_final_distance": _rounded(teacher_distances),
        "by_optimizer": {name: _by_gamma(settings, outcome) for name, outcome in outcomes.items()},
        "horizon": horizon_table(settings.gammas),
        "processor_seconds": round(time.process_time() - began, 1),
    }
    return figures, outcomes


def _by_gamma(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    table = {}
    last = max(1, round(settings.iterations * LAST_SHARE))
    for index, gamma in enumerate(settings.gammas):
        own, distances = outcome.variances[:, index], outcome.final_distances[:, index]
        lost = bool((~(distances < LOST)).any())
        table[f"{gamma:g}"] = {
            "variance": None if lost else _rounded(geometric_mean(own)),
            "variance_last": None if lost else _rounded(geometric_mean(own[-last:])),
            "variance_on_the_first_gammas_policy": _rounded(geometric_mean(outcome.same_policy_variances[:, index])),
            "final_distance": None if lost else _rounded(distances.mean()),
            "final_distance_by_task_and_seed": _rounded(distances),
            "targets_reached": int((distances < TARGET_REACHED).sum()),
            "targets": distances.numel(),
            "diverged": lost,
        }
    return table


def geometric_mean(values: Tensor) -> Tensor:
    """Over iterations and seeds: variances fall by orders of magnitude, and each order counts the same."""
    return values.double().clamp(min=1e-30).log().mean().exp()


def _rounded(values: Tensor) -> Any:
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.5g}"))


def horizon_table(gammas: tuple[float, ...]) -> dict[str, Any]:
    """Closed-form variances by horizon, on the policy's own samples and on stale ones."""
    cases = {"on_policy": ON_POLICY, "stale": STALE}
    table = {
        name: {f"{gamma:g}": [gradient_variance(tokens, horizon, gamma) for horizon in HORIZONS] for gamma in gammas}
        for name, tokens in cases.items()
    }
    exponents = {
        name: {gamma: round(math.log2(values[-1] / values[-2]), 3) for gamma, values in of_case.items()}
        for name, of_case in table.items()
    }
    return {"horizons": list(HORIZONS), "variance": table, "last_exponent": exponents}


def report(figures: dict[str, Any]) -> str:
    def shown(value: float | None, width: int) -> str:
        return f"{'diverged' if value is None else f'{value:.4g}':>{width}}"

    lines = [
        f"teachers end {np.mean(figures['teacher_final_distance']):.3f} from their targets; {figures['parameters']} parameters"
    ]
    for name, rows in figures["by_optimizer"].items():
        lines += [
            "",
            f"{name}",
            "gamma  variance  in the last tenth  on the policy of gamma 0  distance at the end  targets reached",
        ]
        lines += [
            f"{gamma:<5}  {shown(row['variance'], 8)}  {shown(row['variance_last'], 17)}  "
            f"{shown(row['variance_on_the_first_gammas_policy'], 24)}  {shown(row['final_distance'], 19)}  "
            f"{row['targets_reached']} of {row['targets']}"
            for gamma, row in rows.items()
        ]
    lines += ["", "growth of the variance with the horizon, closed form, from 128 to 256"]
    for name, exponents in figures["horizon"]["last_exponent"].items():
        lines.append(f"{name}: " + ", ".join(f"gamma {gamma} T^{value:.2f}" for gamma, value in exponents.items()))
    return "\n".join([*lines, "", f"{figures['processor_seconds']} s of one core"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Variance of on-policy distillation by future coupling")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; its figures mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON and the PNG")
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.output == RESULTS:
        parser.error("--quick needs --output, so that its figures do not replace the full ones")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        figures, outcomes = run_study(QUICK if parsed.quick else Settings())
    finally:
        torch.set_num_threads(threads)
    parsed.output.mkdir(parents=True, exist_ok=True)
    (parsed.output / f"{NAME}.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(figures, outcomes, parsed.output / f"{NAME}.png", reached=TARGET_REACHED, lost=LOST)
    print(report(figures))


if __name__ == "__main__":
    main()
