"""What each stage cost elsewhere, as plain text: over all earlier domains and in the weights, domain by domain, signs of collapse.

Reads report.json alone, of a finished job or of one under way; a column that holds nothing is left out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from services.evaluation.report_side_effects import role_of
from services.evaluation.text_tables import change, short, table, without_empty_columns

WIDTH = 108
ROLES = ("own", "earlier", "other")
Report = Mapping[str, Any]
Stage = Mapping[str, Any]


def render_side_effects(report: Report) -> list[str]:
    """Blocks of text; none for a report of before there were such sections."""
    if "drift" not in report:
        return []
    blocks = [_render_stages(report), _render_domains(report), _render_notes(report), _render_collapse(report)]
    return [block for block in blocks if block]


# -- a line for each stage ---------------------------------------------------------------------------------------------


def _render_stages(report: Report) -> str:
    lines = [["stage", "own gain", "earlier domains", "L2, %", "NSS, %", "unchanged, %"]]
    for stage in report["stages"]:
        drift = _last([item for item in report["drift"]["parameters"] if item["stage"] == stage["name"]])
        if drift or stage["gain"]:
            weights = [_both(drift, figure) for figure in ("relative_l2", "nss_median", "bf16_unchanged_share")]
            lines.append([_label(stage, drift), change(stage["gain"]), change(stage.get("earlier_change")), *weights])
    if len(lines) == 1:
        return ""
    title = "What each stage cost elsewhere: change of the mean score of earlier stages' domains"
    if report["drift"]["parameters"]:
        title += (
            ";\nweights against the stage's first / the base's: relative L2, NSS (median of matrices), unchanged in bf16"
        )
    return title + "\n" + table(without_empty_columns(lines))


def _both(drift: Mapping[str, Any] | None, figure: str) -> str:
    """Of a share, in percent: against the stage's start, against the base."""
    values = [(drift or {}).get(reference, {}).get(figure) for reference in ("start", "base")]
    return "-" if values == [None, None] else " / ".join(short(value, 100.0) for value in values)


def _last(items: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    return max(items, key=lambda item: (item["step"], item.get("at") == "stage_end"), default=None)


def _label(stage: Stage, measured: Mapping[str, Any] | None) -> str:
    """The stage's name, with the step where it is not the last one that was measured."""
    return stage["name"] if measured is None or measured["step"] >= stage["steps"] else f"{stage['name']} (step {measured['step']})"


# -- a line for each stage and domain ------------------------------------------------------------------------------------


def _render_domains(report: Report) -> str:
    lines = [["stage", "domain", "role", "score change", "MMD^2", "KL base", "KL start", "cosine to base"]]
    own = {stage["name"]: stage["domains"] for stage in report["stages"]}
    for row, stage in enumerate(report["stages"], start=1):
        entries = [item for item in report["drift"]["responses"] if item["stage"] == stage["name"]]
        if not entries and row >= len(report["score_matrix"]["rows"]):
            continue
        roles = {name: role_of(name, stage["name"], own) for name in _domains(report, entries)}
        for name in sorted(roles, key=lambda name: ROLES.index(roles[name])):
            entry, moved = _last([item for item in entries if item["domain"] == name]), _score_change(report, row, name)
            if entry is None and moved is None:
                continue  # nothing of it yet
            distance = None if roles[name] == "own" else _distance(report["drift"]["domain_distances"], name, stage["domains"])
            lines.append([_label(stage, entry), name, roles[name], change(moved), short(distance), *_answers(entry)])
    if len(lines) == 1:
        return ""
    title = "Over each stage, by domain: change of the score"
    if any((report["drift"]["domain_distances"] or {}).get("mmd_squared", {}).values()):
        title += "; distance of its prompts from the stage's own"
    if report["drift"]["responses"]:
        title += ";\nanswers: KL of the policy to the base, to the stage's start, nats per token; cosine, median [quartiles]"
    return title + "\n" + table(without_empty_columns(lines))


def _render_notes(report: Report) -> str:
    """Which domains have no distance from the others, and why."""
    notes = (report["drift"]["domain_distances"] or {}).get("notes", [])
    return "\n".join(textwrap.fill(f"Note: {note}", WIDTH, subsequent_indent="  ") for note in notes)


def _domains(report: Report, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys([*report["score_matrix"]["domains"], *(item["domain"] for item in entries)]))


def _score_change(report: Report, row: int, domain: str) -> Mapping[str, float] | float | None:
    """Of the row after the stage against the row before it."""
    for test in (report.get("comparisons") or {}).get("paired_tests", []):
        if test["rows"] == [row - 1, row] and test["domain"] == domain:
            return test["difference"]
    matrix = report["score_matrix"]
    if row >= len(matrix["rows"]) or domain not in matrix["domains"]:
        return None
    before, after = (matrix["means"][index][matrix["domains"].index(domain)] for index in (row - 1, row))
    return None if before is None or after is None else float(after - before)


def _distance(distances: Mapping[str, Any] | None, domain: str, own: Sequence[str]) -> float | None:
    """Mean over the stage's own domains of MMD squared."""
    if distances is None:
        return None
    known = distances["mmd_squared"]
    found = [value for name in own if (value := known.get(domain, {}).get(name, known.get(name, {}).get(domain))) is not None]
    return sum(found) / len(found) if found else None


def _answers(entry: Mapping[str, Any] | None) -> list[str]:
    base, start = ((entry or {}).get(reference) or {} for reference in ("base", "start"))
    similarity = base.get("similarity") or {}
    cosine = "-"
    if similarity.get("median") is not None:
        cosine = f"{similarity['median']:.3f} [{similarity['q25']:.3f}, {similarity['q75']:.3f}]"
    return [short(base.get("kl_policy_base")), short(start.get("kl_policy_start")), cosine]


# -- signs of collapse ---------------------------------------------------------------------------------------------------


def _render_collapse(report: Report) -> str:
    """A stage that learns from data has no completions of its own to be watched: its evaluations are."""
    collapse, scored = report["collapse"], {item["stage"] for item in report["during"]} | set(report["score_matrix"]["rows"][1:])
    paragraphs, quiet, by_evaluations = [], [], []
    from_data = {stage["name"] for stage in report["stages"] if stage.get("experience", "policy") != "policy"}
    for stage in (stage["name"] for stage in report["stages"]):
        said = [item for item in collapse["warnings"] if item["stage"] == stage]
        if any(item["raised"] for item in said):
            paragraphs.append(textwrap.fill(_words(stage, said), WIDTH, subsequent_indent="  "))
        elif stage in collapse["stages"]:
            quiet.append(stage)
        elif stage in scored & from_data:
            by_evaluations.append(stage)
    for words, names in (("none in", quiet), ("none in the evaluations, which alone were watched, of", by_evaluations)):
        if names:
            paragraphs.append(textwrap.fill(f"{words} {', '.join(names)}", WIDTH, subsequent_indent="  "))
    return "\n".join(["Signs of collapse", *paragraphs]) if paragraphs else ""


def _words(stage: str, said: Sequence[Mapping[str, Any]]) -> str:
    """Every sign with its steps, and the strongest one's evidence."""
    raised = [item for item in said if item["raised"]]
    over = {(item["code"], item["evidence"].get("raised_at_step")): item["step"] for item in said if not item["raised"]}
    signs = []
    for item in raised:
        end = over.get((item["code"], item["step"]))
        signs.append(f"{item['code']} at step {item['step']}" + ("" if end is None else f" (over at {end})"))
    strongest = max(raised, key=lambda item: (item["severity"] == "critical", item["evidence"].get("level", 0.0)))
    return f"{stage}: {', '.join(signs)}. The strongest, {strongest['code']} ({strongest['severity']}): {strongest['message']}."
