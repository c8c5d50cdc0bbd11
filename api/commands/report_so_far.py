"""What is known of a job that has not written its report: scores, drift and signs of collapse, from its own routes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

MAX_POINTS = 10_000
"""Of all metrics together; thinned evenly beyond it, but the last point of every series is kept, and the text shows last points."""
EVENTS_PER_PAGE = 500


def so_far(service: Any, job: str) -> dict[str, Any]:
    """The evaluations of the job with ``stages`` and report.json's sections ``during``, ``drift`` and ``collapse``.

    ``during`` has the scores that compare with the matrix; ``data`` has all.
    """
    from cluster.spec.job import JobSpec, own_domains
    from services.evaluation.report_side_effects import responses_from_points, side_effects

    evaluations, spec = service.evaluations(job), JobSpec.model_validate(service.spec(job))
    stages = spec.resolved_stages()
    own = {stage.name: [part.name for part in own_domains(stage)] for stage in spec.stages}
    points = [point for point in service.metrics(job, max_points=MAX_POINTS)["data"] if point["value"] is not None and math.isfinite(point["value"])]
    known = evaluations.get("retention") or {}
    gains, changes = (dict(enumerate(known.get(name) or [])) for name in ("stage_gains", "earlier_changes"))
    described = [
        {
            "index": stage.index,
            "name": stage.name,
            "experience": stage.composition.experience.kind,
            "domains": own[stage.name],
            "steps": stage.steps,
            "gain": gains.get(stage.index),
            "earlier_change": changes.get(stage.index),
        }
        for stage in stages
    ]
    responses = responses_from_points(stages, own, points)
    compared = [item for item in evaluations["data"] if item["comparable"]]
    return evaluations | {"stages": described} | side_effects(stages, compared, points, _events(service, job), responses, distances(points))


def _events(service: Any, job: str) -> Iterator[dict[str, Any]]:
    """All of them, the oldest first."""
    after, more = 0, True
    while more:
        page = service.events(job, after=after, limit=EVENTS_PER_PAGE)
        yield from page["data"]
        more = bool(page["has_more"] and page["data"])
        after = page["data"][-1]["seq"] if more else after


def distances(points: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the domains' prompts, from metrics ``domains/mmd_squared/<domain>/<domain>``; the kernel's bandwidth is not among them."""
    found: dict[str, dict[str, float]] = {}
    for point in points:
        words = point["key"].split("/")
        if words[:2] == ["domains", "mmd_squared"] and len(words) == 4:
            found.setdefault(words[2], {})[words[3]] = point["value"]
    return {"bandwidth": None, "mmd_squared": found} if found else None


def text_so_far(found: dict[str, Any]) -> str:
    """Scores without intervals, which come with the report; all else in its words. What does not compare is in its notes alone."""
    from services.evaluation.report_comparisons import render_comparisons
    from services.evaluation.side_effects_text import render_side_effects
    from services.evaluation.text_tables import retention_lines, table

    rows = [*zip(found["rows"], found["score_matrix"], found["truncation_rate"], strict=True), *_inside(found)]
    if not rows:
        return "Nothing has been evaluated yet."
    lines = [["after", *found["domains"]]]
    lines += [[name, *(_cell(*cell) for cell in zip(means, cuts, strict=True))] for name, means, cuts in rows]
    blocks = ["The job has not ended; scores so far, share of completions cut at the limit\n" + table(lines)]
    if found["retention"]:
        blocks.append(table(retention_lines(found["retention"])))
    notes = [*found["notes"], *([found["retention_note"]] if found["retention_note"] else [])]
    like_report = found | {"score_matrix": {"rows": found["rows"], "domains": found["domains"], "means": found["score_matrix"], "notes": notes}}
    return "\n\n".join([*blocks, *render_side_effects(like_report), *render_comparisons(like_report)])


def _cell(mean: float | None, cut: float | None) -> str:
    from services.evaluation.text_tables import share

    return "-" if mean is None else f"{mean:.3f} cut {share(cut)}"


def _inside(found: dict[str, Any]) -> list[tuple[str, list[float | None], list[float | None]]]:
    """The newest scores inside the stage that is under way, and their truncation rates; none where its end is scored already."""
    running = [item for item in found.get("during", []) if item["stage_index"] + 1 >= len(found["rows"])]
    if not running:
        return []
    last = running[-1]
    newest = {item["domain"]: item for item in running if (item["stage"], item["step"]) == (last["stage"], last["step"])}
    scores, cuts = ([newest.get(name, {}).get(field) for name in found["domains"]] for field in ("mean", "truncation_rate"))
    return [(f"{last['stage']} (step {last['step']})", scores, cuts)]
