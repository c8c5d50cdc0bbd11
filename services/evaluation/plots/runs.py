"""One run, read for figures and plots: scores by row and domain, evaluations inside stages, drift, answers.

Invariant: nothing is made up. What the report does not hold is an empty list or None. Stages count from 0, rows from 0 (the base):
stage j is trained between row j and row j + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """A job's report and where it stands in a study; ``own[j]`` names the domains that stage j is about (replayed ones are not)."""

    arm: str
    order: str
    seed: int
    report: Mapping[str, Any]
    own: tuple[tuple[str, ...], ...]
    setup: frozenset[str] = frozenset()
    """Domains of stages that only prepare something; such a stage has no own domains and counts in no figure."""

    @property
    def counted(self) -> list[int]:
        """Stages that count, by index."""
        return [stage for stage, names in enumerate(self.own) if names]

    @property
    def stages(self) -> list[Mapping[str, Any]]:
        return self.report["stages"]

    @property
    def domains(self) -> list[str]:
        return self.report["score_matrix"]["domains"]

    @property
    def num_rows(self) -> int:
        return len(self.report["score_matrix"]["means"])

    @property
    def is_whole(self) -> bool:
        """Whether every stage has its row."""
        return bool(self.stages) and self.num_rows == len(self.stages) + 1

    @property
    def trained(self) -> list[str]:
        """Domains that some stage is about, in the order of the matrix."""
        names = {name for of_stage in self.own for name in of_stage}
        return [name for name in self.domains if name in names]

    def score(self, row: int, domain: str) -> float:
        return self.report["score_matrix"]["means"][row][self.domains.index(domain)]

    def own_score(self, row: int, stage: int) -> float:
        """Mean over the domains of one stage."""
        return fmean(self.score(row, name) for name in self.own[stage])

    def truncation_rate(self, row: int, domain: str) -> float | None:
        return self.report["score_matrix"]["truncation_rate"][row][self.domains.index(domain)]

    def inside(self, stage: int) -> list[tuple[int, dict[str, float]]]:
        """(step, mean by domain) of the evaluations inside a stage, by step; a step that was measured again counts as its last time."""
        found: dict[int, dict[str, float]] = {}
        for entry in self.report.get("during") or []:
            if entry["stage_index"] == stage and entry["mean"] is not None:
                found.setdefault(entry["step"], {})[entry["domain"]] = entry["mean"]
        end = self.stages[stage]["steps"]
        return [(step, found[step]) for step in sorted(found) if step < end]

    def own_inside(self, stage: int) -> list[tuple[int, float]]:
        """(step, own score) of those evaluations that have all domains of the stage."""
        names = self.own[stage]
        return [(step, fmean(means[name] for name in names)) for step, means in self.inside(stage) if set(names) <= set(means)]

    def drift(self, stage: int, reference: str, figure: str = "relative_l2") -> list[tuple[int, float]]:
        """(step, figure) of the weights against the ``base`` or against the stage's ``start``, by step."""
        found = {}
        for entry in (self.report.get("drift") or {}).get("parameters") or []:
            value = (entry.get(reference) or {}).get(figure)
            if entry["stage_index"] == stage and value is not None:
                found[entry["step"]] = value
        return sorted(found.items())

    def end_drift(self, stage: int, reference: str, figure: str = "relative_l2") -> float | None:
        """At the stage's last step."""
        points = self.drift(stage, reference, figure)
        return points[-1][1] if points and points[-1][0] >= self.stages[stage]["steps"] else None

    def responses(self, stage: int, at: str | None = None) -> list[Mapping[str, Any]]:
        """Measurements of the answers in a stage, in order; ``at`` is ``during`` or ``stage_end``."""
        entries = (self.report.get("drift") or {}).get("responses") or []
        return [entry for entry in entries if entry["stage_index"] == stage and at in (None, entry["at"])]

    def distance(self, one: str, other: str) -> float | None:
        """MMD^2 between the prompts of two domains."""
        table = ((self.report.get("drift") or {}).get("domain_distances") or {}).get("mmd_squared") or {}
        value = table.get(one, {}).get(other)
        return value if value is not None else table.get(other, {}).get(one)

    def warnings(self) -> list[Mapping[str, Any]] | None:
        """Collapse warnings that were raised; None where no watch is recorded."""
        watch = self.report.get("collapse")
        return None if watch is None else [item for item in watch.get("warnings") or [] if item.get("raised")]


def run_of_report(report: Mapping[str, Any], *, arm: str, order: str, seed: int, setup: Sequence[str] = ()) -> Run | None:
    """None where the report has no stage. Its ``domains`` are the stages' own ones; replayed ones stand beside them. ``setup``
    names the stages that count in no figure."""
    stages = report.get("stages")
    if not stages:
        return None
    own = tuple(() if stage["name"] in setup else tuple(stage["domains"]) for stage in stages)
    trained = {name for of_stage in own for name in of_stage}
    prepared = {name for stage in stages if stage["name"] in setup for name in stage["domains"]}
    return Run(arm, order, seed, report, own, frozenset(prepared - trained))
