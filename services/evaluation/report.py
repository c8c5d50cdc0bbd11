"""The report of a job: what report.json holds, and the same as text for people.

Invariant: the report is a function of the job's row, its evaluations, its checkpoints, its metrics, its events and what its stages
left of answers; nothing is measured here, and every figure is a JSON value (None where it was not measured).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cluster.spec.job import JobSpec, ResolvedStage, evaluation_domains, own_domains
from services.evaluation.report_comparisons import comparable, comparisons, inside_that_compare, pass_at, render_comparisons
from services.evaluation.report_side_effects import side_effects
from services.evaluation.retention import CONFIDENCE, RetentionReport, retention
from services.evaluation.side_effects_text import render_side_effects
from services.evaluation.text_tables import retention_lines, share, signed, table

REPORT_FORMAT = 2
"""2: with ``during``, ``drift``, ``collapse``; a stage's ``domains`` without those that it only replays."""
PARITY_KEY = "parity/max_abs_nats"
SECONDS_PREFIX = "seconds/"
STEP_SECONDS_KEY = "seconds/step"
TOKENS_PER_S_KEY = "throughput/completion_tokens_per_s"
SCORE_KEY = "rollout/score_mean"


def build_report(
    job: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
    checkpoints: Sequence[Mapping[str, Any]],
    metrics: Iterable[Mapping[str, Any]] = (),
    *,
    mlflow: Mapping[str | None, str] | None = None,
    events: Iterable[Mapping[str, Any]] = (),
    responses: Iterable[Mapping[str, Any]] = (),
    domain_distances: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of report.json.

    ``evaluations``, ``checkpoints`` and ``events`` are the store's rows as dicts, oldest first (of the events those of
    ``REPORTED_KINDS`` are read); ``metrics`` are points with key, value, stage, step and global_step; ``mlflow`` are links by
    stage name, the job's own under None; ``responses`` and ``domain_distances`` are what the files of the run folder hold.
    """
    spec = JobSpec.model_validate(job["spec"])
    stages = spec.resolved_stages()
    cells = {(item["row"], item["domain"]): item for item in evaluations if item["at"] == "boundary"}
    domains = [suite.name for suite in evaluation_domains(spec)]
    rows = _complete_rows(cells, domains, most=len(stages) + 1)
    num_rows, notes = comparable(cells, domains, len(rows))
    inside, left_out = inside_that_compare(evaluations, cells, num_rows, num_rows < len(rows), [stage.name for stage in stages])
    rows, names = rows[:num_rows], ["base", *(stage.name for stage in stages)][:num_rows]
    stage_domains = trained_domains(spec)
    figures = retention(rows, stage_domains) if rows else None
    points = _by_key(metrics)
    models = _models(stages, checkpoints)
    links = dict(mlflow or {})
    return {
        "format": REPORT_FORMAT,
        "job": {"id": job["id"], "name": job["name"], "seed": spec.seed, "spec_hash": job.get("spec_hash")},
        "score_matrix": _matrix(domains, names, cells, figures) | {"notes": notes + left_out},
        "retention": _retention(figures),
        "comparisons": comparisons(rows, names, stage_domains) if len(rows) > 1 else None,
        "pass_at": pass_at(cells, domains, num_rows, spec.evaluation.pass_at),
        "stages": [_stage(stage, own, figures, models, links, points) for stage, own in zip(stages, stage_domains, strict=True)],
        **side_effects(stages, inside, chain.from_iterable(points.values()), events, responses, domain_distances),
        "models": models,
        "parity": _parity(points),
        "seconds_per_step": {key.removeprefix(SECONDS_PREFIX): _mean(of_key) for key, of_key in points.items() if key.startswith(SECONDS_PREFIX)},
        "steps": len(points.get(STEP_SECONDS_KEY, [])),
        "completion_tokens_per_s": _mean(points.get(TOKENS_PER_S_KEY, [])),
        "mlflow": mlflow_section(links),
    }


def trained_domains(spec: JobSpec) -> list[list[str]]:
    """Per stage the names of its own domains: one that is only replayed belongs to the stage that learned it, so that a job with
    replay has figures of the same meaning as one without."""
    return [[part.name for part in own_domains(stage)] for stage in spec.stages]


def mlflow_section(links: Mapping[str | None, str]) -> dict[str, Any]:
    """Links by stage name, the job's own under None, as the report has them."""
    return {"job": links.get(None), "stages": {name: link for name, link in links.items() if name is not None}}


def _complete_rows(cells: Mapping[tuple[int, str], Mapping[str, Any]], domains: list[str], *, most: int) -> list[dict[str, Sequence[float]]]:
    """Scores by domain for every row that is whole, from the base model on."""
    rows: list[dict[str, Sequence[float]]] = []
    while len(rows) < most and all((len(rows), name) in cells for name in domains):
        rows.append({name: cells[len(rows), name]["scores"] for name in domains})
    return rows


def _matrix(domains: list[str], rows: list[str], cells, figures: RetentionReport | None) -> dict[str, Any]:
    estimates = figures.score_matrix if figures else []

    def column(field: str) -> list[list[Any]]:
        return [[cells[row, name].get(field) for name in domains] for row in range(len(rows))]

    return {
        "rows": rows,
        "domains": domains,
        "means": [[cell.value for cell in row] for row in estimates],
        "low": [[cell.low for cell in row] for row in estimates],
        "high": [[cell.high for cell in row] for row in estimates],
        "num_problems": figures.num_problems if figures else {},
        "truncation_rate": column("truncation_rate"),
        "mean_tokens": column("mean_tokens"),
        "samples_per_problem": column("samples_per_problem"),
        "problems_digest": column("problems_digest"),
        "confidence": CONFIDENCE,
    }


def _retention(figures: RetentionReport | None) -> dict[str, Any] | None:
    """Every figure but the cells, which the score matrix has; None before the first stage has its row."""
    if figures is None or len(figures.score_matrix) < 2:
        return None
    return {key: value for key, value in figures.to_dict().items() if key not in ("score_matrix", "domains", "num_problems")}


def _stage(stage: ResolvedStage, own: list[str], figures: RetentionReport | None, models: Mapping[str, str], links, points) -> dict[str, Any]:
    known = figures.to_dict() if figures else {"stage_gains": [], "earlier_changes": []}
    gain, earlier = (dict(enumerate(known[name])).get(stage.index) for name in ("stage_gains", "earlier_changes"))
    rewards = [point["value"] for point in points.get(SCORE_KEY, []) if point.get("stage") == stage.name]
    return {
        "index": stage.index,
        "name": stage.name,
        "recipe": stage.recipe,
        "experience": stage.composition.experience.kind,
        "teacher": stage.composition.teacher.kind if stage.composition.teacher else None,
        "domains": own,
        "replayed": [part.name for part in stage.domains if part.name not in own],
        "steps": stage.steps,
        "gain": gain,
        "earlier_change": earlier,
        "first_reward": rewards[0] if rewards else None,
        "last_reward": rewards[-1] if rewards else None,
        "model": models.get(stage.name),
        "mlflow": links.get(stage.name),
    }


def _models(stages: Sequence[ResolvedStage], checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Hugging Face folders by stage; they lie beside the checkpoints of the job's run folder."""
    folders = {}
    for item in checkpoints:
        if item["kind"] == "stage":
            stage = stages[item["stage_index"]]
            folders[stage.name] = str(Path(item["path"]).parents[1] / "stages" / f"{stage.index}-{stage.name}" / "policy")
    return folders


def _by_key(metrics: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Points in order; a value that was not finite (None) is left out."""
    points: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for point in metrics:
        if point["value"] is not None and math.isfinite(point["value"]):
            points[point["key"]].append(point)
    return points


def _parity(points: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    """The largest difference between engine and learner after any publication."""
    values = [point["value"] for point in points.get(PARITY_KEY, [])]
    return {"max_abs_nats": max(values, default=None), "num_probes": len(values)}


def _mean(points: Sequence[Mapping[str, Any]]) -> float | None:
    return sum(point["value"] for point in points) / len(points) if points else None


# -- for people ------------------------------------------------------------------------------------------------------


def render_text(report: Mapping[str, Any]) -> str:
    """The report as plain text: matrix, gains, retention, models, speed."""
    blocks = [_render_matrix(report["score_matrix"]), _render_stages(report["stages"])]
    if report["retention"] is not None:
        blocks.append(table(retention_lines(report["retention"])))
    blocks += render_side_effects(report)
    blocks += render_comparisons(report)
    blocks.append(_render_speed(report))
    return "\n\n".join([f"Job {report['job']['name']} ({report['job']['id']})", *blocks])


def _render_matrix(matrix: Mapping[str, Any]) -> str:
    if not matrix["rows"]:
        return "No evaluation is complete yet."
    lines = [["after", *(f"{name} (n={matrix['num_problems'][name]})" for name in matrix["domains"])]]
    for row, name in enumerate(matrix["rows"]):
        cells = zip(*(matrix[key][row] for key in ("means", "low", "high", "truncation_rate")), strict=True)
        lines.append([name, *(f"{mean:.3f} [{low:.3f}, {high:.3f}] cut {share(cut)}" for mean, low, high, cut in cells)])
    return f"Scores, mean [{matrix['confidence']:.0%} interval], share of completions cut at the limit\n" + table(lines)


def _render_stages(stages: Sequence[Mapping[str, Any]]) -> str:
    lines = [["stage", "recipe", "teacher", "steps", "gain on its own domain", "model"]]
    for stage in stages:
        lines.append(
            [
                stage["name"],
                stage["recipe"],
                stage["teacher"] or "-",
                str(stage["steps"]),
                signed(stage["gain"]),
                stage["model"] or "-",
            ]
        )
    return table(lines)


def _render_speed(report: Mapping[str, Any]) -> str:
    lines = []
    if report["parity"]["max_abs_nats"] is not None:
        lines.append(["largest engine-learner difference", f"{report['parity']['max_abs_nats']:.2e} nats in {report['parity']['num_probes']} probes"])
    if report["completion_tokens_per_s"] is not None:
        lines.append(["rollout", f"{report['completion_tokens_per_s']:,.0f} completion tokens/s"])
    seconds = sorted(report["seconds_per_step"].items(), key=lambda item: -item[1])
    lines += [[f"seconds per step, {name}", f"{value:.3f}"] for name, value in seconds]
    links = {"the job": report["mlflow"]["job"], **report["mlflow"]["stages"]}
    lines += [[f"MLflow, {name}", link] for name, link in links.items() if link]
    return table(lines) if lines else "No steps were recorded."
