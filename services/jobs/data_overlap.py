"""No problem that is evaluated may be trained on: the prompts of every data set's evaluation split against all training splits.

Invariant: prompts are compared as the model would see them, after the template, with runs of white space as one space; that is how
one data set's own splits are kept apart, too. Procedural domains are disjoint by construction and are not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.spec.domains import DatasetDomain
from cluster.spec.job import JobSpec
from services.jobs.data_sets import Where, data_sets
from services.jobs.faults import Fault, pointer, show

Prompts = dict[str, dict[str, None]]


def check_overlap(spec: JobSpec, base_dir: Path, memo: dict[Any, Any] | None = None) -> list[Fault]:
    """A fault for every evaluated data set that shares prompts with what a stage trains on; one for each pair.

    The data sets must have passed ``check_data_sets``. A stage's replay trains on what another stage names, so it is covered.
    """
    memo = {} if memo is None else memo
    found = list(data_sets(spec))
    if len({domain for _, domain in found}) < 2:
        return []
    faults = []
    for where, domain in found:
        evaluated = _prompts(domain, base_dir, memo)["evaluation"]
        for index, stage in enumerate(spec.stages):
            trained = [other for place, other in found if place[:2] == ("stages", index) and other != domain]
            for other in trained:
                rows = _prompts(other, base_dir, memo)["train"]
                shared = [text for text in evaluated if text in rows]
                if shared:
                    faults.append(_fault(where, stage.name, other, shared, len(evaluated)))
    return faults


def _fault(where: Where, stage: str, trained: DatasetDomain, shared: list[str], count: int) -> Fault:
    detail = (
        f"{len(shared)} of the {count} problems that this data set evaluates are training rows of stage {stage!r} "
        f"({show(trained.path or trained.id)}); the first is {show(shared[0])}. Scores on problems that were trained on say nothing: take "
        "them out of one of the two files"
    )
    return Fault(pointer(where), detail, "overlap")


def _prompts(domain: DatasetDomain, base_dir: Path, memo: dict[Any, Any]) -> Prompts:
    """The prompt texts of each split, in the file's order."""
    from rollout.domains.dataset import render, split_rows, wanted_columns
    from rollout.domains.rows import read_rows

    key = ("prompts", domain.model_dump_json(), base_dir)
    if key not in memo:
        splits, _ = split_rows(domain, read_rows(domain, wanted_columns(domain), base_dir))
        memo[key] = {
            name: dict.fromkeys(" ".join(render(domain.template, row, domain.columns.problem).split()) for row in rows) for name, rows in splits.items()
        }
    return memo[key]
