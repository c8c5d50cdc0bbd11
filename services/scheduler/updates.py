"""The optimizer steps of one batch of rollouts: usually one, or several on parts of it.

Invariant: every rank makes the same updates. A teacher that follows every optimizer step sees the weights of each of them,
written as a snapshot; engines are given the last ones only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cluster.messages import BatchShard, StepReport
from services.scheduler.phases import Phases

if TYPE_CHECKING:
    from services.scheduler.stage_loop import World


def run_updates(world: World, shards: Sequence[BatchShard], phases: Phases, *, follow_each: bool) -> tuple[StepReport, int]:
    """Train on the shards in order; the report of all, and how many updates were applied."""
    reports: list[StepReport] = []
    applied = 0
    for number, shard in enumerate(shards):
        with phases("learner"):
            report = world.learner.step(shard)
        reports.append(report)
        applied += int(report.applied)
        if follow_each and report.applied and number + 1 < len(shards):
            with phases("follow"):
                _follow_snapshot(world, applied)
    return merged(reports), applied


def _follow_snapshot(world: World, applied: int) -> None:
    path = world.publisher.snapshot(world.progress.next_version())
    updates = world.progress.cursor.updates + applied
    world.ranks.from_lead(lambda: world.lead.follow(updates, path, after=updates - 1, ends_batch=False))


def merged(reports: Sequence[StepReport]) -> StepReport:
    """One report of several updates: means over those that had a live sample; finite if all are, applied if any is."""
    if len(reports) == 1:
        return reports[0]
    everyone, reports = reports, [report for report in reports if report.metrics.get("samples/live", 1.0) > 0] or reports
    names = dict.fromkeys(name for report in reports for name in report.metrics)
    metrics: dict[str, Any] = {}
    for name in names:
        values = [report.metrics[name] for report in reports if name in report.metrics]
        combine = sum if name.startswith(("seconds/", "rows/", "samples/", "tokens/")) else max if name.endswith("_max") else _mean
        metrics[name] = combine(values)
    return replace(
        reports[-1],
        loss=_mean([report.loss for report in reports]),
        gradient_norm=_mean([report.gradient_norm for report in reports]),
        applied=any(report.applied for report in everyone),
        finite=all(report.finite for report in everyone),
        metrics={**metrics, "step/updates_applied": float(sum(report.applied for report in everyone))},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
