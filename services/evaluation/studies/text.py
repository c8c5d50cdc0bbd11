"""The report of a study as plain text, for a terminal. Invariant: a function of the report; says n wherever it says a mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.evaluation.text_tables import table

MATCHED_HEADS = ("same gain: the one", "the other", "difference", "same steps: the one", "the other", "difference")
COMPARED = "Compared after the runs, not judged"
WORDS = {"seen": "seen", "not_seen": "not seen", "contradicted": "contradicted", "no_data": "no data"}
NAMED = 4
"""Members that are named one by one where some are left out."""
MAIN_FIGURES = (
    "gain",
    "average_score",
    "backward_transfer",
    "forgetting",
    "out_of_domain_change",
    "parameter_drift",
    "response_kl_own",
    "collapse_warnings",
)
"""Of the table over all orders; every figure by order is in the report's JSON and its page."""


def render_text(report: Mapping[str, Any]) -> str:
    """Progress, hypotheses, the main figures per arm, drift at matched gain, what failed, cost, notes."""
    blocks = [f"Study {report['study']['name']}", _progress(report["progress"]), _hypotheses(report["hypotheses"]), _figures(report)]
    blocks += [_comparisons(report["comparisons"]), _matched(report["matched"]), _failed(report["failed"]), _cost(report)]
    blocks += ["Notes\n" + "\n".join(f"- {note}" for note in report["notes"])] if report["notes"] else []
    return "\n\n".join(block for block in blocks if block)


def figure_text(value: float | None) -> str:
    """Four significant digits; ``-`` where there is none."""
    return "-" if value is None else f"{value:.4g}"


def estimate_text(of: Mapping[str, Any], sign: str = "") -> str:
    """Mean and interval; the mean alone where there is one value."""
    if of["mean"] is None:
        return "-"
    shown = f"{of['mean']:{sign}.4g}"
    return shown if of["low"] is None else f"{shown} [{of['low']:{sign}.4g}, {of['high']:{sign}.4g}]"


def seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def counts_text(progress: Mapping[str, Any]) -> str:
    parts = [f"{progress['succeeded']} of {progress['planned']} members finished"]
    parts += [f"{progress[status]} {status}" for status in ("failed", "cancelled", "missing") if progress[status]]
    return ", ".join(parts)


def pairs_text(n: Mapping[str, int]) -> str:
    """``6 pairs (3 seeds, 2 orders)``"""
    return "{} ({}, {})".format(*(f"{n[key]} {key[:-1] if n[key] == 1 else key}" for key in ("pairs", "seeds", "orders")))


def _progress(progress: Mapping[str, Any]) -> str:
    lines = [["arm", "order", "finished", "failed", "cancelled", "missing"]]
    lines += [[row["arm"], row["order"], str(len(row["succeeded"])), _seeds(row["failed"]), _seeds(row["cancelled"]), _seeds(row["missing"])] for row in progress["rows"]]
    return counts_text(progress) + "\n" + table(lines)


def _seeds(seeds: Sequence[int]) -> str:
    return "seed " + ", ".join(map(str, seeds)) if seeds else "-"


def _hypotheses(hypotheses: Sequence[Mapping[str, Any]]) -> str:
    if not hypotheses:
        return ""
    lines = [["hypothesis", "verdict", "figure", "difference [95% interval]", "by order", "expected", "p", "p (Holm)", "n"]]
    for item in hypotheses:
        arms = item["arm"] + (f" - {item['against']}" if item["against"] else "")
        lines.append([item["name"], WORDS[item["verdict"]], f"{item['figure']}: {arms}", estimate_text(item["difference"], "+"), by_order_text(item), expected_text(item), figure_text(item["p_value"]), figure_text(item["p_value_holm"]), pairs_text(item["n"])])
    left_out = [f"{item['name']} {text}" for item in hypotheses if (text := left_out_text(item))]
    left_out += [f"{item['name']}: average scores after the last stage {scores_text(item)}" for item in hypotheses if item["average_scores"]]
    return "Hypotheses\n" + table(lines) + "".join(f"\n{line}" for line in left_out)


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    if not comparisons:
        return ""
    lines = [["comparison", "figure", "difference [95% interval]", "by order", "n"]]
    lines += [[item["name"], f"{item['figure']}: {item['arm']}" + (f" - {item['against']}" if item["against"] else ""), estimate_text(item["difference"], "+"), by_order_text(item), pairs_text(item["n"])] for item in comparisons]
    left_out = [f"{item['name']} {text}" for item in comparisons if (text := left_out_text(item))]
    left_out += [f"{item['name']}: average scores after the last stage {scores_text(item)}" for item in comparisons if item["average_scores"]]
    return COMPARED + "\n" + table(lines) + "".join(f"\n{line}" for line in left_out)


def by_order_text(item: Mapping[str, Any]) -> str:
    """``first +0.1, second -0.02``; nothing of a single order."""
    return ", ".join(f"{order} {mean:+.4g}" for order, mean in item["by_order"].items()) if len(item["by_order"]) > 1 else ""


def left_out_text(item: Mapping[str, Any]) -> str:
    """What of a hypothesis or comparison could not be counted; nothing where all was."""
    parts = [f"leaves out {few_text(item['left_out'])} (not finished, the figure was not measured, or not on the same problems)"] if item["left_out"] else []
    count = item["stages_left_out"]
    parts += [f"leaves out {count} stage{'' if count == 1 else 's'}, where a run gained too little to be matched"] if count else []
    return "; ".join(parts)


def few_text(names: Sequence[str]) -> str:
    """The first of many names, and how many more."""
    return ", ".join(names) if len(names) <= NAMED else f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"


def scores_text(item: Mapping[str, Any]) -> str:
    """``grpo 0.81, sft 0.60``"""
    return ", ".join(f"{name} {score:.3f}" for name, score in zip((item["arm"], item["against"]), item["average_scores"], strict=False))


def expected_text(item: Mapping[str, Any]) -> str:
    """``higher by more than 0.02``"""
    if item["expect"] == "similar":
        return f"within +-{item['margin']:g}"
    return item["expect"] + (f" by more than {item['margin']:g}" if item["margin"] else "")


def _figures(report: Mapping[str, Any]) -> str:
    """A table for every order that has a value, and one over those that all arms run in where these are several."""
    tables = {of["figure"]: of["rows"] for of in report["figures"]}
    blocks = [_figures_of(report, tables, order) for order in (*(order["name"] for order in report["study"]["orders"]), None)]
    return "\n\n".join(block for block in blocks if block) or "No figure has a value yet."


def _figures_of(report: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]], order: str | None) -> str:
    rows = {name: {row["arm"]: row for row in tables[name] if row["order"] == order} for name in MAIN_FIGURES}
    shown = [name for name in MAIN_FIGURES if any(row["n"] for row in rows[name].values())]
    if not shown:
        return ""
    lines = [["arm", *shown]]
    for arm in report["study"]["arms"]:
        if arm["name"] in rows[shown[0]]:
            cells = [rows[name][arm["name"]] for name in shown]
            lines.append([arm["name"], *(f"{estimate_text(cell)} n={cell['n']}" for cell in cells)])
    return f"Mean over seeds{' and the orders of all arms' if order is None else f', order {order}'} [95% interval]\n" + table(lines)


def _matched(matched: Sequence[Mapping[str, Any]]) -> str:
    lines = [["arms", "at the same gain", "difference", "at the same steps", "difference", "stages (left out)", "n"]]
    for item in matched:
        if item["pairs"]:
            gain, steps = item["at_gain"], item["at_steps"]
            both = [f"{figure_text(of['arm']['mean'])} - {figure_text(of['against']['mean'])}" for of in (gain, steps)]
            lines.append([f"{item['arm']} - {item['against']}", both[0], estimate_text(gain["difference"], "+"), both[1], estimate_text(steps["difference"], "+"), f"{gain['num_stages']} ({gain['num_left_out']})", str(gain["difference"]["n"])])
    return "Drift from a stage's start (relative L2)\n" + table(lines) if len(lines) > 1 else ""


def _failed(failed: Sequence[Mapping[str, Any]]) -> str:
    if not failed:
        return ""
    lines = [["member", "status", "reason", "stages done", "collapse warnings", "message"]]
    for item in failed:
        lines.append([f"{item['arm']}/{item['order']}-{item['seed']}", item["status"], item["reason"] or "-", stages_text(item), warnings_text(item), (item["message"] or "-")[:100]])
    return "Members that did not succeed\n" + table(lines)


def stages_text(item: Mapping[str, Any]) -> str:
    return "-" if item["stages_done"] is None else f"{item['stages_done']} of {item['num_stages']}"


def warnings_text(item: Mapping[str, Any]) -> str:
    found = item["collapse_warnings"]
    return "-" if found is None else ", ".join(f"{code} {count}" for code, count in found.items()) or "none"


def _cost(report: Mapping[str, Any]) -> str:
    cost = report["cost"]
    if not cost["num_jobs"]:
        return ""
    machines = "; ".join(machine_text(item) for item in report["machines"]) or "not recorded"
    return f"{seconds_text(cost['total_seconds'])} in all, {seconds_text(cost['mean_seconds'])} a job ({cost['num_jobs']} jobs). Machine: {machines}."


def machine_text(item: Mapping[str, Any]) -> str:
    parts = [f"{name} {value}" for name, value in item.items() if name != "num_members"]
    return ", ".join(parts) + f" ({item['num_members']} members)"
