"""The report of a study as Markdown tables, to stand in a repository beside what its author writes about them.

Invariant: a function of the report; every text that comes from a study or a record is escaped; says n wherever it says a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.spec.study import FIGURES
from services.evaluation.studies.text import (
    COMPARED,
    MATCHED_HEADS,
    WORDS,
    by_order_text,
    counts_text,
    estimate_text,
    expected_text,
    figure_text,
    left_out_text,
    machine_text,
    pairs_text,
    scores_text,
    seconds_text,
    stages_text,
    warnings_text,
)

GROUPS = (
    ("Learned and kept", ("gain", "early_gain", "gain_change", "average_score", "backward_transfer", "forgetting", "forward_transfer", "out_of_domain_change")),
    ("Moved", ("stage_drift", "parameter_drift", "spectral_drift", "response_kl_own", "response_kl_earlier", "response_similarity")),
    ("Signs of collapse", ("collapsed_stages", "collapse_warnings", "amplification_warnings", "truncation_rate")),
)
"""Tables of an order and their figures; what each means stands below all tables."""


def render_markdown(report: Mapping[str, Any]) -> str:
    """Progress, hypotheses, the figures of every order, drift at matched gain, what failed, cost."""
    blocks = [f"# {_escaped(report['study']['name'])}: the figures", counts_text(report["progress"]) + ".", _hypotheses(report["hypotheses"]), _comparisons(report["comparisons"])]
    blocks += [_order(report, order["name"]) for order in report["study"]["orders"]]
    blocks += [_matched(report["matched"]), _failed(report["failed"]), _notes(report["notes"]), _cost(report), _meanings(report)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown already."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _hypotheses(hypotheses: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for item in hypotheses:
        rows.append([_escaped(item["claim"]), f"`{item['name']}`", _compared(item), expected_text(item), estimate_text(item["difference"], "+"), by_order_text(item), f"**{WORDS[item['verdict']]}**", f"{figure_text(item['p_value'])} ({figure_text(item['p_value_holm'])})", pairs_text(item["n"]), _beside(item)])
    heads = ["claim", "hypothesis", "figure", "expected", "difference [95 %]", "by order", "verdict", "p (Holm)", "n", "beside it"]
    return "## Hypotheses\n\n" + _table(heads, rows) if rows else ""


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    rows = [[_escaped(item["claim"]), f"`{item['name']}`", _compared(item), estimate_text(item["difference"], "+"), by_order_text(item), pairs_text(item["n"]), _beside(item)] for item in comparisons]
    heads = ["about", "comparison", "figure", "difference [95 %]", "by order", "n", "beside it"]
    return f"## {COMPARED}\n\n" + _table(heads, rows) if rows else ""


def _compared(item: Mapping[str, Any]) -> str:
    return f"{item['figure']}: `{item['arm']}`" + (f" - `{item['against']}`" if item["against"] else "")


def _beside(item: Mapping[str, Any]) -> str:
    """What a reader of the difference has to know too."""
    scores = f"average score: {scores_text(item)}" if item["average_scores"] else ""
    return "; ".join(part for part in (scores, left_out_text(item)) if part)


def _order(report: Mapping[str, Any], order: str) -> str:
    tables = [_figures(report, title, names, order) for title, names in GROUPS]
    tables = [table for table in tables if table]
    return f"## Order {_escaped(order)}: mean over seeds [95 % t interval]\n\n" + "\n\n".join(tables) if tables else ""


def _figures(report: Mapping[str, Any], title: str, names: Sequence[str], order: str) -> str:
    by_name = {of["figure"]: {row["arm"]: row for row in of["rows"] if row["order"] == order} for of in report["figures"]}
    shown = [name for name in names if any(row["n"] for row in by_name[name].values())]
    rows = []
    for arm in report["study"]["arms"]:
        cells = [by_name[name].get(arm["name"]) for name in shown]
        n = max((cell["n"] for cell in cells if cell), default=0)
        if n:
            rows.append([_escaped(arm["title"]), str(n), *(_cell(cell, n) for cell in cells)])
    return f"{title}\n\n" + _table(["arm", "n", *shown], rows) if rows else ""


def _cell(cell: Mapping[str, Any], n: int) -> str:
    return estimate_text(cell) + (f" (n = {cell['n']})" if 0 < cell["n"] != n else "")


def _matched(matched: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for item in matched:
        if item["pairs"]:
            cells = [cell for of in (item["at_gain"], item["at_steps"]) for cell in (estimate_text(of["arm"]), estimate_text(of["against"]), estimate_text(of["difference"], "+"))]
            rows.append([f"`{item['arm']}` - `{item['against']}`", _escaped(", ".join(item["orders"])), *cells, f"{item['at_gain']['num_stages']} ({item['at_gain']['num_left_out']})", str(item["at_gain"]["difference"]["n"])])
    heads = ["arms", "orders", *MATCHED_HEADS, "stages (left out)", "n"]
    return "## Drift from a stage's first weights, at the same gain and at the same steps (relative L2)\n\n" + _table(heads, rows) if rows else ""


def _failed(failed: Sequence[Mapping[str, Any]]) -> str:
    rows = [[f"`{item['arm']}/{item['order']}-{item['seed']}`", item["status"], item["reason"] or "-", stages_text(item), warnings_text(item), _escaped(item["message"] or "-")] for item in failed]
    return "## Members that did not succeed\n\n" + _table(["member", "status", "reason", "stages done", "collapse warnings", "message"], rows) if rows else ""


def _notes(notes: Sequence[str]) -> str:
    return "## Notes\n\n" + "\n".join(f"- {_escaped(note)}" for note in notes) if notes else ""


def _cost(report: Mapping[str, Any]) -> str:
    cost, span = report["cost"], report["span"]
    if not cost["num_jobs"]:
        return ""
    machines = "; ".join(machine_text(item) for item in report["machines"]) or "not recorded"
    return f"## Cost\n\n{seconds_text(cost['total_seconds'])} of jobs in all, {seconds_text(cost['mean_seconds'])} a job ({cost['num_jobs']} jobs), from {span['first_started_at']} to {span['last_finished_at']}. Machine: {_escaped(machines)}."


def _meanings(report: Mapping[str, Any]) -> str:
    shown = {name for _, names in GROUPS for name in names} | {item["figure"] for item in (*report["hypotheses"], *report["comparisons"])}
    return "## What the figures are\n\n" + "\n".join(f"- `{name}`: {_escaped(meaning)}" for name, meaning in FIGURES.items() if name in shown)
