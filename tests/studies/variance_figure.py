"""The picture of the variance study: one row per optimizer (curves, one policy for all, distances), closed forms below."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from torch import Tensor

from tests.studies.distillation import Outcome

matplotlib.use("Agg")
from matplotlib import pyplot

HORIZON_TITLES = {"on_policy": "the policy's own samples", "stale": "samples of an older policy"}


def draw(figures: dict[str, Any], outcomes: dict[str, Outcome], path: Path, *, reached: float, lost: float) -> None:
    rows = len(outcomes) + 1
    figure, axes = pyplot.subplots(rows, 3, figsize=(15, 3.7 * rows), squeeze=False)
    gammas = list(figures["horizon"]["variance"]["on_policy"])
    for row, (name, outcome) in zip(axes, outcomes.items(), strict=False):
        table = figures["by_optimizer"][name]
        kept = [index for index, gamma in enumerate(gammas) if not table[gamma]["diverged"]]
        curves(row[0], outcome.variances, gammas, kept, f"{name}: variance, each gamma on its own way")
        curves(
            row[1],
            outcome.same_policy_variances,
            gammas,
            range(len(gammas)),
            f"{name}: variance, all on the policy of gamma {gammas[0]}",
        )
        distances(row[2], figures, table, f"{name}: distance to the target at the end", reached, lost)
    for axis, (name, title) in zip(axes[-1], HORIZON_TITLES.items(), strict=False):
        growth(axis, figures["horizon"], name, title)
    axes[-1, 2].axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=60)
    pyplot.close(figure)


def curves(axis: Any, values: Tensor, gammas: list[str], shown: Any, title: str) -> None:
    """values [steps, G, S]: geometric mean of the seeds over windows, and their range."""
    window = max(1, len(values) // 40)
    logs = values.double().clamp(min=1e-30).log()[: len(values) // window * window]
    smooth = logs.reshape(-1, window, *logs.shape[1:]).mean(1)
    share = (np.arange(len(smooth)) + 0.5) / len(smooth)
    for index in shown:
        axis.semilogy(share, smooth[:, index].mean(-1).exp(), color=f"C{index}", label=f"gamma {gammas[index]}")
        axis.fill_between(
            share, smooth[:, index].min(-1).values.exp(), smooth[:, index].max(-1).values.exp(), color=f"C{index}", alpha=0.15
        )
    absent = [gammas[index] for index in range(len(gammas)) if index not in shown]
    axis.set(title=title + (f"\n(gamma {', '.join(absent)} diverged)" if absent else ""), xlabel="share of the training")
    axis.legend(fontsize=8)


def distances(axis: Any, figures: dict[str, Any], table: dict[str, Any], title: str, reached: float, lost: float) -> None:
    """One dot per task and seed; what is beyond ``lost`` sits at the upper edge."""
    for index, row in enumerate(table.values()):
        points = np.nan_to_num(np.ravel(row["final_distance_by_task_and_seed"]), nan=np.inf)
        outside = points > lost
        axis.scatter(np.full((~outside).sum(), index), points[~outside], s=18, color=f"C{index}")
        axis.scatter(np.full(outside.sum(), index), np.full(outside.sum(), lost), s=60, marker="^", color=f"C{index}")
    axis.axhline(reached, color="grey", linewidth=0.8, linestyle="--", label="counts as reached")
    axis.axhline(float(np.mean(figures["teacher_final_distance"])), color="black", linewidth=0.8, label="teachers")
    axis.set_xticks(range(len(table)), [f"gamma {gamma}" for gamma in table])
    axis.set_yscale("log")
    axis.set_ylim(0.05, 1.4 * lost)
    axis.set(title=title)
    axis.legend(fontsize=8)


def growth(axis: Any, table: dict[str, Any], name: str, title: str) -> None:
    for index, (gamma, values) in enumerate(table["variance"][name].items()):
        label = f"gamma {gamma}: T^{table['last_exponent'][name][gamma]:.2f}"
        axis.loglog(table["horizons"], values, marker="o", markersize=3, color=f"C{index}", label=label)
    axis.set(title=f"growth with the horizon, closed form:\n{title}", xlabel="horizon T", ylabel="variance")
    axis.legend(fontsize=8)
