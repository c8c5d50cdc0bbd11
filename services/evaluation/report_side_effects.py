"""What the stages cost elsewhere, as report.json has it: scores inside stages, drift of weights and answers, signs of collapse.

Pure over a job's rows, points, events and files; nothing is measured here. Invariants: what was measured again (a step that was
redone after a restart) counts once, the last time; what a restart undid and did not repeat counts not at all; everything is in the
order of the job, and a job that measured nothing of it has empty lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

BASE_PREFIX, STAGE_PREFIX = "drift/base/", "drift/stage/"
RESPONSES_PREFIX = "responses/"
COLLAPSE_PREFIX = "collapse/"
WARNING_KINDS = ("collapse.warning", "collapse.cleared")
STAGE_KIND = "stage.status"
REPORTED_KINDS = (*WARNING_KINDS, STAGE_KIND)
"""Kinds of events that ``collapse`` reads."""
AFTER = {"during": 0, "stage_end": 1}
"""Order of two measurements at the same step."""
Point = Mapping[str, Any]
"""key, value, stage, step, global_step."""


class StagePlace(Protocol):
    """Of a stage; ``cluster.spec.job.ResolvedStage`` is one."""

    name: str
    index: int
    steps: int


def side_effects(
    stages: Sequence[StagePlace],
    evaluations: Iterable[Mapping[str, Any]],
    points: Iterable[Point],
    events: Iterable[Mapping[str, Any]],
    responses: Iterable[Mapping[str, Any]],
    domain_distances: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Sections ``during``, ``drift`` and ``collapse``. ``points`` without values that are not finite."""
    points = list(points)
    return {
        "during": during(stages, evaluations),
        "drift": {
            "parameters": parameter_drift(stages, points),
            "responses": response_drift(responses),
            "domain_distances": distances(domain_distances),
        },
        "collapse": {"warnings": collapse_warnings(stages, events), "stages": collapse_figures(stages, points)},
    }


def during(stages: Sequence[StagePlace], evaluations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Scores inside stages, by stage, step and the order in which the domains were recorded."""
    cells = {(item["stage_index"], item["step"], item["domain"]): item for item in evaluations if item["at"] == "during"}
    return [
        {
            "stage": stages[index].name,
            "stage_index": index,
            "step": step,
            "global_step": sum(max(1, stage.steps) for stage in stages[:index]) + step,  # a given stage has one of its own
            "domain": domain,
            "mean": item["mean"],
            "truncation_rate": item.get("truncation_rate"),
        }
        for (index, step, domain), item in sorted(cells.items(), key=lambda cell: cell[0][:2])
    ]


def parameter_drift(stages: Sequence[StagePlace], points: Iterable[Point]) -> list[dict[str, Any]]:
    """One item per measurement: figures against the base model and against the stage's first weights."""
    index_of = {stage.name: stage.index for stage in stages}
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for point in points:
        prefix = next((prefix for prefix in (BASE_PREFIX, STAGE_PREFIX) if point["key"].startswith(prefix)), None)
        if prefix is None or point["stage"] not in index_of:
            continue
        index, step = index_of[point["stage"]], point["step"]
        empty = {"stage": point["stage"], "stage_index": index, "step": step, "global_step": point["global_step"], "base": {}, "start": {}}
        item = found.setdefault((index, step), empty)
        item["base" if prefix == BASE_PREFIX else "start"][point["key"].removeprefix(prefix)] = point["value"]
    return [item for _, item in sorted(found.items())]


def response_drift(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The stages' own entries, one per measurement and domain."""
    newest = {(item["stage_index"], item["step"], item["at"], item["domain"]): dict(item) for item in entries}
    return [item for _, item in sorted(newest.items(), key=lambda pair: (*pair[0][:2], AFTER[pair[0][2]]))]


def distances(content: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """As the job measured them; ``notes`` name the domains without one, and why."""
    return None if content is None else {"bandwidth": content["bandwidth"], "mmd_squared": content["mmd_squared"], "notes": list(content.get("notes", ()))}


def collapse_warnings(stages: Sequence[StagePlace], events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Data of the events that raise and clear a sign, oldest first.

    Events are never taken back. A stage that says at which step it goes on voids what its watch had said after that step, and
    everything of later stages: those steps are done again.
    """
    index_of = {stage.name: stage.index for stage in stages}
    kept: list[dict[str, Any]] = []
    for event in events:
        kind, data = event.get("kind") or event.get("type"), event.get("data") or {}
        if kind in WARNING_KINDS:
            kept.append(dict(data))
        elif kind == STAGE_KIND and data.get("status") == "running" and event.get("stage") in index_of:
            here = (index_of[event["stage"]], data.get("step", 0))
            kept = [item for item in kept if (index_of.get(item["stage"], 0), item["step"]) <= here]
    return kept


def collapse_figures(stages: Sequence[StagePlace], points: Iterable[Point]) -> dict[str, dict[str, dict[str, float]]]:
    """By stage and metric: the first, last, least and greatest value."""
    series: dict[str, dict[str, dict[int, float]]] = {}
    for point in points:
        if point["key"].startswith(COLLAPSE_PREFIX) and point["stage"] is not None:
            of_metric = series.setdefault(point["stage"], {}).setdefault(point["key"].removeprefix(COLLAPSE_PREFIX), {})
            of_metric[point["step"]] = point["value"]
    names = [stage.name for stage in stages if stage.name in series]
    return {name: {metric: _range(values) for metric, values in series[name].items()} for name in names}


def _range(values: Mapping[int, float]) -> dict[str, float]:
    """By step."""
    return {"first": values[min(values)], "last": values[max(values)], "min": min(values.values()), "max": max(values.values())}


# -- a job that has not ended ------------------------------------------------------------------------------------------


def responses_from_points(stages: Sequence[StagePlace], own: Mapping[str, Sequence[str]], points: Iterable[Point]) -> list[dict[str, Any]]:
    """Entries of ``response_drift`` from metric points, where the files are not at hand: without cosines of single prompts.

    ``own``: the domains of each stage that are its own.
    """
    index_of = {stage.name: stage for stage in stages}
    entries: dict[tuple[str, int, str], dict[str, Any]] = {}
    for point in points:
        if point["key"].startswith(RESPONSES_PREFIX) and point["key"].count("/") == 2 and point["stage"] in index_of:
            _, domain, figure = point["key"].split("/")
            entry = entries.setdefault((point["stage"], point["step"], domain), _empty_entry(index_of[point["stage"]], own, point, domain))
            _put(entry, figure, point["value"])
    return list(entries.values())


def role_of(domain: str, stage: str, own: Mapping[str, Sequence[str]]) -> str:
    """``own``, ``earlier`` or ``other``; ``own`` by stage, in the order of the stages."""
    if domain in own[stage]:
        return "own"
    names = list(own)
    return "earlier" if any(domain in own[name] for name in names[: names.index(stage)]) else "other"


def _empty_entry(stage: StagePlace, own: Mapping[str, Sequence[str]], point: Point, domain: str) -> dict[str, Any]:
    return {
        "stage": stage.name,
        "stage_index": stage.index,
        "step": point["step"],
        "global_step": point["global_step"],
        "at": "stage_end" if point["step"] >= stage.steps else "during",
        "domain": domain,
        "role": role_of(domain, stage.name, own),
        "base": {"similarity": {}},
        "start": {},
        "policy": {},
    }


def _put(entry: dict[str, Any], figure: str, value: float) -> None:
    """The place in an entry that a metric's last word stands for."""
    if figure.startswith("similarity_"):
        entry["base"]["similarity"][figure.removeprefix("similarity_")] = value
    elif figure.startswith("kl_"):
        entry["start" if figure.endswith("_start") or figure.startswith("kl_start") else "base"][figure] = value
    else:
        entry["policy"][figure] = value
