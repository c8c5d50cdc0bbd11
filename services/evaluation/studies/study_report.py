"""The report of a study, from its file and the records of whatever has finished.

Invariant: a function of the study and the records, JSON values alone. Every member of the study is in ``progress``; one that
failed is listed with its reason; a record that does not count is named in ``notes``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

import yaml

from cluster.spec.study import FIGURES, Member, StudySpec
from services.evaluation.plots.intervals import mean_interval, stratified_interval
from services.evaluation.plots.runs import Run
from services.evaluation.plots.series import all_series
from services.evaluation.studies.hypotheses import comparisons, verdicts
from services.evaluation.studies.matched_gain import matched_gain, matched_steps
from services.evaluation.studies.member_figures import PAIRWISE, figures_of_run
from services.evaluation.studies.members import Key, Record, alike, matched_records, problem_digests, run_of, words_of
from services.jobs.study_records import failed_by_its_method

STUDY_REPORT_FORMAT = 1
SUCCEEDED = "succeeded"


def build_study_report(study: StudySpec, records: Sequence[Record]) -> dict[str, Any]:
    """The report; ``records`` are the study's records as read from their files, in any number."""
    members, found, notes = matched_records(study, records)
    runs = {key: run for key, record in found.items() if (run := run_of(record, study)) is not None}
    figures = {key: figures_of_run(run, failed_by_its_method(found[key])) for key, run in runs.items()}
    if found and not runs:
        notes.append("no record has a report yet")
    return {
        "format": STUDY_REPORT_FORMAT,
        "study": _about(study),
        "progress": _progress(members, found),
        "hypotheses": verdicts(study, list(members), figures, runs),
        "comparisons": comparisons(study, list(members), figures, runs),
        "figures": _figure_tables(study, members, figures),
        "members": [{"arm": key[0], "order": key[1], "seed": key[2], "figures": figures[key]} for key in runs],
        "matched": _matched(study, runs),
        "series": all_series(list(runs.values())),
        "failed": [_failure(key, record, runs.get(key)) for key, record in found.items() if record["status"] != SUCCEEDED],
        "cost": _cost(found),
        "machines": _counted(record.get("machine") for record in found.values()),
        "software": _counted(record.get("software") for record in found.values() if record.get("software")),
        "span": _span(found),
        "notes": notes,
    }


def _about(study: StudySpec) -> dict[str, Any]:
    return {
        "name": study.name,
        "description": study.description,
        "arms": [{"name": arm.name, "title": arm.title or arm.name, "set": arm.model_dump(mode="json")["set"]} for arm in study.arms],
        "orders": [{"name": order.name, "stages": list(order.stages), "seeds": list(order.seeds)} for order in study.all_orders()],
        "labels": dict(study.labels),
        "file": yaml.safe_dump(study.model_dump(mode="json", exclude_unset=True), sort_keys=False, width=110),
    }


def _progress(members: Mapping[Key, Member], found: Mapping[Key, Record]) -> dict[str, Any]:
    """Counts, and the seeds of every arm and order by what became of them."""
    rows: dict[tuple[str, str], dict[str, list[int]]] = {}
    for arm, order, seed in members:
        status = found[arm, order, seed]["status"] if (arm, order, seed) in found else "missing"
        rows.setdefault((arm, order), {"succeeded": [], "failed": [], "cancelled": [], "missing": []})[status].append(seed)
    totals = {status: sum(len(seeds[status]) for seeds in rows.values()) for status in ("succeeded", "failed", "cancelled", "missing")}
    return {
        "planned": len(members),
        **totals,
        "rows": [{"arm": arm, "order": order, **seeds} for (arm, order), seeds in rows.items()],
        "missing_members": [words_of(key) for key in members if key not in found],
    }


def _figure_tables(study: StudySpec, members: Mapping[Key, Member], figures: Mapping[Key, Mapping[str, float | None]]) -> list[dict[str, Any]]:
    """Per figure a row for every arm and order, and one over all orders that every arm runs in (order None), where those are
    several: over others arms would not compare. A row of an arm that was planned but has no value yet has n = 0."""
    rows: list[tuple[str, str | None]] = list(dict.fromkeys((arm, order) for arm, order, _ in members))
    common = [order.name for order in study.all_orders() if all((arm.name, order.name) in rows for arm in study.arms)]
    if len(common) > 1:
        rows += [(arm.name, None) for arm in study.arms]
    return [
        {"figure": name, "meaning": meaning, "rows": [_row(name, arm, common if order is None else [order], order, figures) for arm, order in rows]}
        for name, meaning in FIGURES.items()
        if name not in PAIRWISE
    ]


def _row(name: str, arm: str, orders: Sequence[str], order: str | None, figures: Mapping[Key, Mapping[str, float | None]]) -> dict[str, Any]:
    of_arm = {key: found for key, found in figures.items() if key[0] == arm and key[1] in orders}
    values = {key: found[name] for key, found in of_arm.items() if found[name] is not None}
    return {"arm": arm, "order": order, **mean_interval(list(values.values())), "seeds": len({key[2] for key in values}), "values": {words_of(key): value for key, value in values.items()}}


def _matched(study: StudySpec, runs: Mapping[Key, Run]) -> list[dict[str, Any]]:
    """Drift against where a stage began, at matched gain and at matched steps, for every two arms whose drift a hypothesis or a
    comparison compares, in the orders of the first that does."""
    found = []
    compared: dict[tuple[str, str], Any] = {}
    for item in (*study.hypotheses, *study.comparisons):
        if item.against and "drift" in item.figure:
            compared.setdefault((item.arm, item.against), item.orders)
    for (one, other), orders in compared.items():
        pairs = [
            (run, runs[other, order, seed])
            for (arm, order, seed), run in runs.items()
            if arm == one and (other, order, seed) in runs and (orders is None or order in orders)
        ]
        pairs = [(run, against) for run, against in pairs if run.is_whole and against.is_whole and alike(*(problem_digests(one.report) for one in (run, against)))]
        at_gain, at_steps = ([rule(*pair) for pair in pairs] for rule in (matched_gain, matched_steps))
        orders_of = [run.order for run, _ in pairs]
        found.append({"arm": one, "against": other, "orders": list(dict.fromkeys(orders_of)), "at_gain": _pooled(at_gain, orders_of), "at_steps": _pooled(at_steps, orders_of), "pairs": [{"order": pair[0].order, "seed": pair[0].seed, "at_gain": asdict(gain), "at_steps": asdict(steps)} for pair, gain, steps in zip(pairs, at_gain, at_steps, strict=True)]})
    return found


def _pooled(of_pairs: Sequence[Any], orders: Sequence[str]) -> dict[str, Any]:
    """As a hypothesis does it: the mean of the orders' means."""

    def interval(value: Callable[[Any], float]) -> dict[str, Any]:
        known = [(order, value(item)) for order, item in zip(orders, of_pairs, strict=True) if item.one is not None]
        return stratified_interval([[found for of, found in known if of == order] for order in dict.fromkeys(orders)])

    return {
        "arm": interval(lambda item: item.one),
        "against": interval(lambda item: item.other),
        "difference": interval(lambda item: item.one - item.other),
        "num_stages": sum(item.num_stages for item in of_pairs),
        "num_left_out": sum(item.num_left_out for item in of_pairs),
    }


def _failure(key: Key, record: Record, run: Run | None) -> dict[str, Any]:
    """What is known of a member that did not succeed: how far it came, and what the collapse watch had said."""
    warnings = run.warnings() if run else None
    return {
        **dict(zip(("arm", "order", "seed"), key, strict=True)),
        **{name: record.get(name) for name in ("status", "reason", "message", "job_id", "seconds")},
        "stages_done": max(0, run.num_rows - 1) if run else None,
        "num_stages": len(run.stages) if run else None,
        "collapse_warnings": None if warnings is None else dict(Counter(item["code"] for item in warnings)),
    }


def _cost(found: Mapping[Key, Record]) -> dict[str, Any]:
    seconds = {key: record["seconds"] for key, record in found.items() if record.get("seconds") is not None}
    by_arm = {arm: [value for key, value in seconds.items() if key[0] == arm] for arm in dict.fromkeys(key[0] for key in seconds)}
    return {
        "total_seconds": sum(seconds.values()) if seconds else None,
        "mean_seconds": fmean(seconds.values()) if seconds else None,
        "num_jobs": len(seconds),
        "by_arm": {arm: {"mean_seconds": fmean(values), "num_jobs": len(values)} for arm, values in by_arm.items()},
    }


def _counted(items: Any) -> list[dict[str, Any]]:
    """Different values (dicts) with how many members have each, the commonest first."""
    counts = Counter(json.dumps(item, sort_keys=True) for item in items if item)
    return [{**json.loads(item), "num_members": count} for item, count in counts.most_common()]


def _span(found: Mapping[Key, Record]) -> dict[str, Any]:
    starts, ends = ([str(record[name]) for record in found.values() if record.get(name)] for name in ("started_at", "finished_at"))
    return {"first_started_at": min(starts, default=None), "last_finished_at": max(ends, default=None)}
