"""Figures: all of them, without warnings, from a single job to many arms; one look per arm over all figures."""

from __future__ import annotations

import warnings

import pytest

from services.evaluation.plots import figure_png, figure_svg, job_figures
from services.evaluation.plots.style import arm_styles, shortened
from services.evaluation.studies import build_study_report, study_figures
from tests.studies_report.made_records import made_report, made_study, simulated_records

HYPOTHESIS = {"name": "drifts", "claim": "c", "figure": "gain", "arm": "arm-1", "against": "arm-0", "expect": "higher"}


def _drawn(figures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {key: figure_png(figure) for key, figure in figures.items()}


@pytest.fixture(scope="module")
def report(small_study, small_records):
    return build_study_report(small_study, small_records)


@pytest.fixture(scope="module")
def figures(report):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return study_figures(report)


def test_every_figure_of_a_study(figures):
    keys = ("score_by_stage", "gain_and_retention", "drift_by_stage", "similarity_by_stage", "forgetting_by_distance", "retention")
    assert set(figures) == {"hypotheses"} | {f"{key}-order-{order}" for key in keys for order in (0, 1)}
    once = {key: figure for key, figure in figures.items() if not key.endswith("order-1")}
    assert all(png.startswith(b"\x89PNG") and len(png) > 10_000 for png in _drawn(once).values())


def test_an_arm_has_the_same_line_in_every_panel(figures):
    for key in ("drift_by_stage-order-0", "score_by_stage-order-1"):
        for axes in figures[key].axes:
            colours = {line.get_color() for line in axes.get_lines() if len(line.get_xdata()) > 2}
            assert {style.colour for style in arm_styles({"arm-0": "a", "arm-1": "b"}).values()} <= colours


@pytest.mark.parametrize("order", ["order-0", "order-1"])
def test_the_clouds_of_gain_and_distance_are_of_one_order(report, figures, order):
    own = [item["figures"] for item in report["members"] if item["order"] == order]
    axes = figures[f"gain_and_retention-{order}"].axes[0]
    small = [point for line in axes.get_lines() if line.get_markersize() == 4 for point in zip(*line.get_data(), strict=True)]
    assert sorted(small) == sorted((item["gain"], item["backward_transfer"]) for item in own)
    points = [point for point in report["series"]["distance"]["points"] if point["order"] == order]
    drawn = [value for axes in figures[f"forgetting_by_distance-{order}"].axes for line in axes.get_lines() if line.get_linestyle() == "None" for value in line.get_ydata()]
    assert sorted(drawn) == sorted(point["change"] for point in points)


def test_the_score_panel_shades_where_a_domain_is_trained_and_draws_the_means(report, figures):
    second = next(axes for axes in figures["score_by_stage-order-0"].axes if axes.get_title(loc="left") == "strings")
    (shade,) = [patch for patch in second.patches if patch.get_width() == pytest.approx(1.0)]
    assert shade.get_x() == pytest.approx(1.0)
    line = next(line for line in report["series"]["scores"] if (line["order"], line["domain"], line["arm"]) == ("order-0", "strings", "arm-0"))
    drawn = next(drawn for drawn in second.get_lines() if len(drawn.get_xdata()) == len(line["points"]))
    assert list(drawn.get_ydata()) == [point["mean"] for point in line["points"]]


@pytest.mark.parametrize(("arms", "stages", "seeds"), [(1, 1, 1), (3, 2, 2)])
def test_small_studies_are_drawn_too(arms, stages, seeds):
    study = made_study(arms=arms, stages=stages, seeds=seeds, hypotheses=(HYPOTHESIS,) if arms > 1 else ())
    figures = study_figures(build_study_report(study, simulated_records(study)))
    assert "score_by_stage" in _drawn(figures) and ("hypotheses" in figures) == (arms > 1)


@pytest.mark.parametrize("title", [r"rate $\lr$", "costs $5, not $6", r"\$1 _x_ ^2"])
def test_the_title_of_an_arm_is_no_formula(title):
    study = made_study(arms=2, stages=2, seeds=2, hypotheses=({**HYPOTHESIS, "arm": "arm-0", "against": "arm-1"},))
    arms = tuple(arm.model_copy(update={"title": title}) if arm.name == "arm-0" else arm for arm in study.arms)
    study = study.model_copy(update={"arms": arms})
    figures = study_figures(build_study_report(study, simulated_records(study)))
    drawn = _drawn(figures)
    assert {"hypotheses", "score_by_stage", "similarity_by_stage", "retention", "gain_and_retention", "forgetting_by_distance"} <= set(drawn)
    for figure in figures.values():
        shown = [text for text in figure.findobj(lambda item: hasattr(item, "get_parse_math")) if title in text.get_text()]
        assert shown and not any(text.get_parse_math() for text in shown)


def test_a_study_without_records_has_its_hypotheses_alone():
    study = made_study(hypotheses=(HYPOTHESIS,))
    assert list(_drawn(study_figures(build_study_report(study, [])))) == ["hypotheses"]


def test_the_figures_of_a_job(small_records):
    figures = job_figures(small_records[0]["report"])
    assert list(_drawn(figures)) == ["score_by_stage", "drift_by_step", "similarity_by_stage", "forgetting_by_distance"]
    assert figure_svg(figures["score_by_stage"]).startswith("<?xml")


def test_a_job_of_which_little_was_measured():
    stages = [{"name": "one", "domains": ["one"], "steps": 4}, {"name": "two", "domains": ["two", "one"], "steps": 4}]
    report = made_report(stages, ["one", "two"], [[0.1, 0.2], [0.5, 0.2], [0.4, 0.6]], warnings=None) | {"drift": None}
    assert list(_drawn(job_figures(report))) == ["score_by_stage"]
    assert job_figures(made_report(stages, ["one", "two"], [])) == {}


def test_intervals_of_a_job_are_drawn_where_the_report_has_them():
    stages = [{"name": "one", "domains": ["one"], "steps": 4}]
    report = made_report(stages, ["one"], [[0.1], [0.5]])
    report["score_matrix"] |= {"low": [[0.05], [0.4]], "high": [[0.2], [0.55]]}
    (axes,) = job_figures(report)["score_by_stage"].axes
    segments = [segment.tolist() for bars in axes.collections for segment in bars.get_segments()]
    assert segments == [[[0.0, pytest.approx(0.05)], [0.0, pytest.approx(0.2)]], [[1.0, pytest.approx(0.4)], [1.0, pytest.approx(0.55)]]]


def test_sixteen_arms_look_different():
    styles = arm_styles({f"arm-{i}": f"Arm {i}" for i in range(16)}).values()
    assert len({(style.colour, style.line) for style in styles}) == 16 and len({(style.colour, style.marker) for style in styles}) == 16


def test_long_names_are_cut_in_the_middle():
    assert shortened("abcdefghij", 10) == "abcdefghij" and shortened("abcdefghijk", 8) == "abc..ijk"
