"""Every figure of a member, against values worked out by hand."""

from __future__ import annotations

import pytest

from cluster.spec.study import FIGURES, expand
from services.evaluation.plots.runs import run_of_report
from services.evaluation.studies import member_figures
from services.evaluation.studies.member_figures import figures_of_run
from tests.studies_report.made_records import answers, made_record, made_report, made_study, point

STAGES = [{"name": name, "domains": [name], "steps": 60} for name in ("arithmetic", "strings", "tool_call")]
DOMAINS = ["arithmetic", "strings", "tool_call", "suite-0"]
MEANS = [
    [0.20, 0.40, 0.10, 0.50],
    [0.60, 0.30, 0.20, 0.50],
    [0.70, 0.80, 0.25, 0.60],
    [0.40, 0.50, 0.05, 0.30],
]
DURING = [
    {"stage": stage, "stage_index": index, "step": step, "global_step": 60 * index + step, "domain": stage, "mean": mean, "truncation_rate": 0.0}
    for index, stage, means in ((0, "arithmetic", (0.3, 0.5)), (1, "strings", (0.5, 0.6)), (2, "tool_call", (0.35, 0.3)))
    for step, mean in zip((20, 40), means, strict=True)
]
PARAMETERS = [point(0, 60, 0.03, 0.03), point(1, 30, 0.04, 0.02), point(1, 60, 0.06, 0.05), point(2, 60, 0.09, 0.07)]
RESPONSES = [
    answers(0, 60, "arithmetic", 0.1, [0.99]),
    answers(1, 60, "strings", 0.2, [0.98]),
    answers(1, 60, "arithmetic", 5.0, [0.98], role="earlier"),
    answers(2, 30, "tool_call", 9.0, None),
    answers(2, 60, "tool_call", 0.6, [0.5, 0.1]),
    answers(2, 60, "arithmetic", 0.4, [0.9, 0.8], role="earlier"),
    answers(2, 60, "strings", 0.8, [0.7, 0.6], role="earlier"),
    answers(2, 60, "suite-0", 7.0, [0.0, 0.0], role="other"),
]
WARNINGS = [
    {"code": "ngrams_amplified", "raised": True, "stage": "strings", "step": 3},
    {"code": "ngrams_amplified", "raised": False, "stage": "strings", "step": 9},
    {"code": "score_falls", "raised": True, "stage": "tool_call", "step": 40},
    {"code": "domain_lost", "raised": True, "stage": "tool_call", "step": 60},
]
TRUNCATION = [[0.0] * 4, [0.0] * 4, [0.0] * 4, [0.1, 0.2, 0.3, 0.9]]
EXPECTED = {
    "gain": (0.4 + 0.5 - 0.2) / 3,
    "first_stage_gain": 0.4,
    "last_stage_gain": -0.2,
    "gain_change": -0.6,
    "early_gain": (0.1 + 0.2 + 0.1) / 3,
    "first_stage_early_gain": 0.1,
    "start_score": (0.2 + 0.3 + 0.25) / 3,
    "early_score": (0.3 + 0.5 + 0.35) / 3,
    "end_score": (0.6 + 0.8 + 0.05) / 3,
    "average_score": (0.4 + 0.5 + 0.05) / 3,
    "backward_transfer": (-0.2 - 0.3) / 2,
    "forgetting": (0.3 + 0.3) / 2,
    "forward_transfer": (-0.1 + 0.15) / 2,
    "out_of_domain_change": -0.2,
    "parameter_drift": 0.09,
    "stage_drift": 0.05,
    "spectral_drift": 0.009,
    "drift_at_matched_gain": None,
    "response_kl_own": 0.3,
    "response_kl_earlier": 0.6,
    "response_similarity": 0.65,
    "truncation_rate": 0.2,
    "collapse_warnings": 2.0,
    "amplification_warnings": 1.0,
    "lost_domains": 0.0,
    "collapsed_stages": 1 / 3,
}


@pytest.fixture(scope="module")
def study():
    return made_study(arms=1, seeds=1)


def _figures(study, means=MEANS, stages=STAGES, **parts):
    parts = {"during": DURING, "parameters": PARAMETERS, "responses": RESPONSES, "warnings": WARNINGS, "truncation": TRUNCATION} | parts
    return member_figures(made_record(study, expand(study)[0], made_report(stages, DOMAINS, means, **parts)), study)


def test_all_figures_are_known():
    assert set(EXPECTED) == set(FIGURES)


@pytest.mark.parametrize("name", list(FIGURES))
def test_a_figure_by_hand(study, name):
    assert _figures(study)[name] == (None if EXPECTED[name] is None else pytest.approx(EXPECTED[name]))


def test_what_was_not_measured_is_none(study):
    found = _figures(study, during=[], parameters=[], responses=[], warnings=None)
    missing = {name for name, value in found.items() if value is None}
    of_drift = {"parameter_drift", "stage_drift", "spectral_drift", "drift_at_matched_gain"}
    of_answers = {"response_kl_own", "response_kl_earlier", "response_similarity"}
    assert missing == {"early_gain", "first_stage_early_gain", "early_score", "collapse_warnings", "amplification_warnings"} | of_drift | of_answers


def test_a_mean_over_stages_needs_all_of_them(study):
    assert _figures(study, parameters=PARAMETERS[1:])["stage_drift"] is None  # the first stage's end is not there
    assert _figures(study, parameters=[*PARAMETERS[:-1], point(2, 40, 0.09, 0.07)])["parameter_drift"] is None  # not of the last weights
    assert _figures(study, during=DURING[:4])["early_gain"] is None


def test_a_run_that_did_not_get_through_has_only_its_first_stage(study):
    found = _figures(study, means=MEANS[:3])
    assert {name: value for name, value in found.items() if value is not None} == {"first_stage_gain": pytest.approx(0.4)}
    assert set(_figures(study, means=MEANS[:1]).values()) == {None}


def test_no_report_no_figures(study):
    record = made_record(study, expand(study)[0], None, status="failed")
    assert member_figures(record, study) == {name: None for name in FIGURES}


def test_a_stage_that_ends_below_half_of_its_best_inside_score_collapsed(study):
    during = [item | {"mean": 0.9} if item["stage_index"] == 1 else item for item in DURING]
    means = [*MEANS[:2], [0.7, 0.44, 0.25, 0.6], MEANS[3]]
    assert _figures(study, means=means, during=during)["collapsed_stages"] == pytest.approx(2 / 3)  # 0.44 < 0.9 / 2
    assert _figures(study, means=means, during=[])["collapsed_stages"] == pytest.approx(1 / 3)


def test_a_collapse_that_lasts_counts_in_every_stage(study):
    dead = [MEANS[0], *[[0.0] * 4] * 3]
    assert _figures(study, means=dead, during=[])["collapsed_stages"] == 1.0
    assert _figures(study, means=dead, during=[])["backward_transfer"] == 0.0  # why the average score stands beside it


def test_a_domain_is_lost_below_half_of_the_bases_score(study):
    ends = [0.09, 0.21, 0.04, 0.0]  # of 0.2, 0.4, 0.1; the fourth is a suite that no stage trains on
    assert _figures(study, means=[*MEANS[:3], ends])["lost_domains"] == pytest.approx(2 / 3)
    assert _figures(study, means=[MEANS[0], MEANS[1], MEANS[2], [0.1, 0.2, 0.05, 0.0]])["lost_domains"] == 0.0  # half is not below half


def test_a_run_that_failed_by_its_method_collapsed_where_it_has_no_row(study):
    report = made_report(STAGES, DOMAINS, MEANS[:2], during=[], parameters=[], responses=[], warnings=[])
    record = made_record(study, expand(study)[0], report, status="failed")
    assert member_figures({**record, "reason": "non_finite_loss"}, study)["collapsed_stages"] == pytest.approx(2 / 3)
    assert member_figures({**record, "reason": "learner_died"}, study)["collapsed_stages"] is None


def test_a_stage_that_prepares_counts_in_no_figure():
    stages = [{"name": "recorded", "domains": ["recorded"], "steps": 60}, *STAGES[:2]]
    means = [[0.2, 0.4, 0.2, 0.5], [0.2, 0.4, 0.2, 0.5], [0.6, 0.3, 0.6, 0.6], [0.5, 0.8, 0.5, 0.7]]
    report = made_report(stages, ["arithmetic", "strings", "recorded", "suite-0"], means, during=[], parameters=[point(1, 60, 0.03, 0.02), point(2, 60, 0.05, 0.04)], responses=[])
    run = run_of_report(report, arm="a", order="o", seed=1, setup=("recorded",))
    found = figures_of_run(run)
    assert found["gain"] == pytest.approx((0.4 + 0.5) / 2) and found["first_stage_gain"] == pytest.approx(0.4)
    assert found["backward_transfer"] == pytest.approx(-0.1) and found["stage_drift"] == pytest.approx(0.03)
    assert found["out_of_domain_change"] == pytest.approx(0.2)  # suite-0 alone: "recorded" holds the problems of a stage
    assert figures_of_run(run_of_report(report, arm="a", order="o", seed=1))["out_of_domain_change"] == pytest.approx(0.2)


def test_a_replayed_domain_is_not_the_stages_own(study):
    stages = [STAGES[0], STAGES[1] | {"replayed": ["arithmetic"]}, STAGES[2] | {"replayed": ["strings"]}]
    assert _figures(study, stages=stages)["gain"] == pytest.approx(EXPECTED["gain"])
    mixture = [STAGES[0], STAGES[1] | {"domains": ["strings", "arithmetic"]}, STAGES[2]]
    assert _figures(study, stages=mixture, during=[])["gain"] == pytest.approx((0.4 + (0.5 + 0.1) / 2 - 0.2) / 3)


def test_a_step_measured_again_counts_as_its_last_time(study):
    again = [DURING[0] | {"mean": 0.9}, *DURING[1:], DURING[0]]
    assert _figures(study, during=again)["early_gain"] == pytest.approx(EXPECTED["early_gain"])
