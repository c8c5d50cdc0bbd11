"""What the stages cost elsewhere: sections of report.json and their text, from rows, points, events and entries made by hand."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from services.evaluation.report import build_report, render_text
from services.evaluation.report_side_effects import (
    collapse_figures,
    collapse_warnings,
    during,
    parameter_drift,
    response_drift,
    responses_from_points,
)

STAGES = [SimpleNamespace(name=name, index=index, steps=steps) for index, (name, steps) in enumerate((("add", 60), ("sort", 40)))]
SPEC = {
    "name": "demo",
    "model": {"path": "models/base"},
    "stages": [
        {"name": "add", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}, "steps": 60},
        {"name": "sort", "domain": {"kind": "strings"}, "method": {"recipe": "sdpo"}, "steps": 40},
    ],
    "evaluation": {"domains": [{"name": "tools", "domain": {"kind": "tool_call"}}]},
}
SCORES = {"add": (2, 6, 4), "sort": (2, 2, 6), "tools": (4, 4, 3)}
"""Of eight problems, by row."""


def rows() -> list[dict]:
    found = []
    for row in range(3):
        for domain, solved in SCORES.items():
            scores = [float(number < solved[row]) for number in range(8)]
            found.append({"row": row, "domain": domain, "at": "boundary", "scores": scores, "mean": solved[row] / 8, "truncation_rate": 0.0, "mean_tokens": 5.0})
    return found


def inside(stage_index: int, step: int, domain: str, mean: float) -> dict:
    return {"row": stage_index + 1, "stage_index": stage_index, "step": step, "domain": domain, "at": "during", "mean": mean, "truncation_rate": 0.25}


def point(key: str, stage: str | None, step: int, value: float, offset: int = 0) -> dict:
    return {"key": key, "stage": stage, "step": step, "global_step": step + offset, "value": value}


def entry(stage_index: int, step: int, domain: str, kl: float, *, at: str = "stage_end", role: str = "own") -> dict:
    return {
        "stage": STAGES[stage_index].name,
        "stage_index": stage_index,
        "step": step,
        "global_step": step + 60 * stage_index,
        "at": at,
        "domain": domain,
        "role": role,
        "num_prompts": 4,
        "base": {"kl_policy_base": kl, "kl_base_policy": 2 * kl, "similarity": {"mean": 0.9, "q25": 0.8, "median": 0.91, "q75": 0.95}},
        "start": {"kl_policy_start": kl / 10, "kl_start_policy": kl / 10},
    }


def sign(code: str, stage: str, step: int, *, level: float = 1.5, severity: str = "warning", ends: int | None = None) -> dict:
    """An event; ``ends``: the step whose episode is over."""
    evidence = {"level": level} if ends is None else {"level": level, "raised_at_step": ends}
    data = {"code": code, "severity": severity, "raised": ends is None, "message": f"{code} was seen", "evidence": evidence, "step": step, "stage": stage}
    return {"kind": "collapse.warning" if ends is None else "collapse.cleared", "stage": stage, "data": data}


def going_on(stage: str, step: int) -> dict:
    return {"kind": "stage.status", "stage": stage, "data": {"status": "running", "step": step}}


# -- sections ------------------------------------------------------------------------------------------------------------


def test_scores_inside_stages_are_by_stage_and_step_and_a_repeated_one_counts_once():
    measured = [inside(1, 20, "add", 0.5), inside(0, 40, "add", 0.4), inside(0, 20, "add", 0.1), inside(0, 20, "add", 0.2), *rows()]
    found = during(STAGES, measured)
    assert [(item["stage"], item["step"], item["global_step"], item["mean"]) for item in found] == [
        ("add", 20, 20, 0.2),
        ("add", 40, 40, 0.4),
        ("sort", 20, 80, 0.5),
    ]
    assert found[0]["truncation_rate"] == 0.25 and found[2]["stage_index"] == 1


def test_a_given_stage_takes_one_global_step():
    given = [SimpleNamespace(name="taken", index=0, steps=0), SimpleNamespace(name="sort", index=1, steps=40)]
    assert [item["global_step"] for item in during(given, [inside(1, 20, "sort", 0.5)])] == [21]


def test_drift_from_the_base_and_from_the_stages_start_are_kept_apart():
    points = [
        point("drift/base/relative_l2", "sort", 40, 0.03, 60),
        point("drift/stage/relative_l2", "sort", 40, 0.01, 60),
        point("drift/base/attention/relative_l2", "sort", 40, 0.04, 60),
        point("drift/base/relative_l2", "add", 40, 0.01),
        point("drift/base/relative_l2", "add", 20, 0.5),
        point("drift/base/relative_l2", "add", 20, 0.005),
        point("drift/seconds", "add", 20, 9.0),
    ]
    assert parameter_drift(STAGES, points) == [
        {"stage": "add", "stage_index": 0, "step": 20, "global_step": 20, "base": {"relative_l2": 0.005}, "start": {}},
        {"stage": "add", "stage_index": 0, "step": 40, "global_step": 40, "base": {"relative_l2": 0.01}, "start": {}},
        {
            "stage": "sort",
            "stage_index": 1,
            "step": 40,
            "global_step": 100,
            "base": {"relative_l2": 0.03, "attention/relative_l2": 0.04},
            "start": {"relative_l2": 0.01},
        },
    ]


def test_entries_of_two_stages_with_one_domain_stay_apart_and_the_last_measurement_counts():
    entries = [
        entry(1, 20, "add", 0.5, at="during", role="earlier"),
        entry(0, 60, "add", 0.1),
        entry(0, 20, "add", 9.0, at="during"),
        entry(0, 20, "add", 0.2, at="during"),
        entry(1, 20, "add", 0.7, at="stage_end", role="earlier"),
    ]
    found = response_drift(entries)
    assert [(item["stage"], item["step"], item["at"], item["base"]["kl_policy_base"]) for item in found] == [
        ("add", 20, "during", 0.2),
        ("add", 60, "stage_end", 0.1),
        ("sort", 20, "during", 0.5),
        ("sort", 20, "stage_end", 0.7),
    ]


def test_signs_are_in_order_with_their_end_and_other_events_are_not_among_them():
    events = [going_on("add", 0), sign("score_falls", "add", 30), {"kind": "warning", "data": {"reason": "non_finite_loss"}}, sign("score_falls", "add", 50, ends=30)]
    found = collapse_warnings(STAGES, [*events, going_on("sort", 0), sign("length_tail", "sort", 12)])
    assert [(item["code"], item["raised"], item["stage"], item["step"]) for item in found] == [
        ("score_falls", True, "add", 30),
        ("score_falls", False, "add", 50),
        ("length_tail", True, "sort", 12),
    ]


def test_a_sign_seen_again_after_a_restart_is_there_once():
    """Killed at step 55, taken up at 40: what was said at 30 stands, what was said at 50 is said again or was not so."""
    events = [going_on("add", 0), sign("score_falls", "add", 30), sign("length_tail", "add", 50), going_on("add", 40), sign("length_tail", "add", 51)]
    assert [(item["code"], item["step"]) for item in collapse_warnings(STAGES, events)] == [("score_falls", 30), ("length_tail", 51)]


def test_a_fall_back_to_an_earlier_stage_voids_the_later_ones_signs():
    events = [going_on("add", 0), sign("score_falls", "add", 30), going_on("sort", 0), sign("length_tail", "sort", 12), going_on("add", 40)]
    assert [item["code"] for item in collapse_warnings(STAGES, events)] == ["score_falls"]
    listed = [{"type": event["kind"], **{name: event[name] for name in ("stage", "data")}} for event in events]
    assert collapse_warnings(STAGES, listed) == collapse_warnings(STAGES, events), "events as the API gives them"


def test_collapse_figures_are_by_step_not_by_arrival():
    points = [point("collapse/distinct_2", "sort", step, value, 60) for step, value in ((2, 0.7), (1, 0.9), (3, 0.2), (4, 0.5))]
    points += [point("collapse/distinct_2", "add", 1, 0.4), point("policy/entropy_nats", "add", 1, 3.0), point("collapse/distinct_2", "sort", 4, 0.6, 60)]
    assert collapse_figures(STAGES, points) == {
        "add": {"distinct_2": {"first": 0.4, "last": 0.4, "min": 0.4, "max": 0.4}},
        "sort": {"distinct_2": {"first": 0.9, "last": 0.6, "min": 0.2, "max": 0.9}},
    }


def test_entries_are_found_again_in_the_metrics_of_a_job_under_way():
    values = {"kl_policy_base": 0.2, "kl_base_policy": 0.3, "kl_policy_start": 0.01, "kl_start_policy": 0.02, "similarity_median": 0.9, "entropy": 1.1}
    points = [point(f"responses/add/{name}", "sort", 20, value, 60) for name, value in values.items()]
    (found,) = responses_from_points(STAGES, {"add": ["add"], "sort": ["sort"]}, [*points, point("responses/seconds", "sort", 20, 1.0, 60)])
    assert (found["stage"], found["step"], found["global_step"], found["at"], found["role"]) == ("sort", 20, 80, "during", "earlier")
    assert found["base"] == {"kl_policy_base": 0.2, "kl_base_policy": 0.3, "similarity": {"median": 0.9}}
    assert found["start"] == {"kl_policy_start": 0.01, "kl_start_policy": 0.02} and found["policy"] == {"entropy": 1.1}


# -- the report and its text ----------------------------------------------------------------------------------------------


def whole_report() -> dict:
    points = []
    for stage, step, start, base in (("add", 60, 0.01, 0.01), ("sort", 20, 0.002, 0.011), ("sort", 40, 0.004, 0.013)):
        for reference, value in (("base", base), ("stage", start)):
            points += [point(f"drift/{reference}/{name}", stage, step, value * factor) for name, factor in (("relative_l2", 1), ("nss_median", 2))]
            points.append(point(f"drift/{reference}/bf16_unchanged_share", stage, step, 0.75))
    points += [point("collapse/active", stage, 1, 0.0) for stage in ("add", "sort")]
    roles = {"sort": "own", "add": "earlier", "tools": "other"}
    responses = [entry(0, 60, "add", 0.25), *(entry(1, 40, name, 0.125, role=role) for name, role in roles.items())]
    events = [sign("length_tail", "sort", 12, level=9.0), sign("score_falls", "sort", 20, severity="critical"), sign("length_tail", "sort", 31, ends=12)]
    mmd = {"add": {"sort": 0.5, "tools": 0.25}, "sort": {"add": 0.5, "tools": 0.125}, "tools": {"add": 0.25, "sort": 0.125}}
    job = {"id": "job_1", "name": "demo", "spec": SPEC}
    return build_report(job, rows(), [], points, events=events, responses=responses, domain_distances={"format": 1, "bandwidth": 0.7, "mmd_squared": mmd})


def line_of(text: str, *starts: str) -> list[str]:
    """The words of the one line that begins with these words."""
    (found,) = [line.split() for line in text.splitlines() if line.split()[: len(starts)] == list(starts)]
    return found


def test_the_report_has_the_sections_and_is_json():
    report = whole_report()
    assert report["format"] == 2 and report["drift"]["domain_distances"]["bandwidth"] == 0.7
    assert [item["step"] for item in report["drift"]["parameters"]] == [60, 20, 40] and len(report["drift"]["responses"]) == 4
    assert report["stages"][1]["earlier_change"]["value"] == pytest.approx(-0.25), "add alone; tools was never learned"
    assert [item["raised"] for item in report["collapse"]["warnings"]] == [True, True, False]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_job_that_measured_nothing_of_it_has_empty_sections():
    report = build_report({"id": "job_1", "name": "demo", "spec": SPEC}, rows(), [])
    assert report["during"] == [] and report["collapse"] == {"warnings": [], "stages": {}}
    assert report["drift"] == {"parameters": [], "responses": [], "domain_distances": None}
    text = render_text(report)
    assert "Signs of collapse" not in text and "KL" not in text and "NSS" not in text
    assert line_of(text, "sort", "add", "earlier")[3] == "-0.250", "what the scores say is there all the same"


def test_a_stage_that_learns_from_data_is_said_to_be_watched_by_its_evaluations():
    spec = {**SPEC, "stages": [SPEC["stages"][0], {**SPEC["stages"][1], "method": {"recipe": "sft"}}, *SPEC["stages"][2:]]}
    text = render_text(build_report({"id": "job_1", "name": "demo", "spec": spec}, rows(), []))
    assert "none in the evaluations, which alone were watched, of sort" in text and "none in add" not in text


def test_the_text_says_what_each_stage_cost_elsewhere():
    text = render_text(whole_report())
    section = text[text.index("What each stage cost elsewhere") :]
    line = next(line for line in section.splitlines() if line.startswith("sort"))
    assert line.split()[1] == "+0.500" and "-0.250 [" in line and "0.4 / 1.3" in line and "0.8 / 2.6" in line and "75 / 75" in line
    assert line_of(section, "sort", "add", "earlier")[3:] == ["-0.250", "[-0.625,", "+0.000]", "0.5", "0.125", "0.0125", "0.910", "[0.800,", "0.950]"]
    assert line_of(section, "sort", "tools", "other")[6] == "0.125"
    assert line_of(section, "add", "sort", "other")[-3:] == ["-", "-", "-"], "no probes of it then"
    assert "sort: length_tail at step 12 (over at 31), score_falls at step 20. The strongest, score_falls (critical):" in section
    assert "none in add" in section
    assert text.isascii() and max(map(len, section[: section.index("Change in percent")].splitlines())) <= 110
    retention_at, cost_at, percent_at = (text.index(words) for words in ("backward transfer", "What each stage cost", "Change in percent"))
    assert retention_at < cost_at < percent_at


def test_the_text_names_the_step_of_a_measurement_inside_a_stage():
    report = whole_report()
    report["drift"]["parameters"] = [item for item in report["drift"]["parameters"] if item["step"] != 40]
    assert "sort (step 20)" in render_text(report)


def test_the_distance_from_a_mixture_is_the_mean_over_its_domains():
    report = whole_report()
    report["stages"][1]["domains"] = ["sort", "add"]
    assert line_of(render_text(report), "sort", "tools", "other")[6] == "0.188"


def test_a_domain_without_a_distance_is_named_in_the_report_and_in_its_text():
    note = "'tools' has no distance from the other domains: too_few_prompts, it has 1 and the estimator needs 2 or more"
    distances = {"bandwidth": 0.7, "mmd_squared": {"add": {"sort": 0.5}, "sort": {"add": 0.5}, "tools": {}}, "notes": [note]}
    job = {"id": "job_1", "name": "demo", "spec": SPEC}
    report = build_report(job, rows(), [], domain_distances=distances)
    assert report["drift"]["domain_distances"] == distances
    text = render_text(report)
    assert f"Note: {note}" in " ".join(text.split()) and "distance of its prompts from the stage's own" in text
    none = build_report(job, rows(), [], domain_distances={"bandwidth": None, "mmd_squared": {"add": {}, "sort": {}, "tools": {}}, "notes": [note]})
    assert "too_few_prompts" in render_text(none) and "distance of its prompts" not in render_text(none)
    assert "Note:" not in render_text(build_report(job, [], [], domain_distances={"bandwidth": 0.7, "mmd_squared": distances["mmd_squared"]})), "a file of before"
