"""The report of a study, whole, in parts and with records that do not belong; its text and its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from cluster.spec.study import FIGURES, expand
from services.evaluation.studies import build_study_report, member_figures, render_text, write_html
from tests.studies_report.made_records import (
    COMPARISONS,
    HYPOTHESES,
    made_record,
    made_study,
    simulated_records,
    simulated_report,
)

VOID = {"meta", "br", "img"}


@pytest.fixture(scope="module")
def report(small_study, small_records):
    return build_study_report(small_study, small_records)


def test_a_whole_study(report, small_study, small_records):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    progress = report["progress"]
    assert (progress["planned"], progress["succeeded"], progress["missing"], report["notes"]) == (12, 12, 0, [])
    assert {item["name"]: item["verdict"] for item in report["hypotheses"]} == {"denser-drifts": "seen", "wrong-way": "contradicted", "matched": "seen", "no-warnings": "seen"}
    assert report["cost"] == {"total_seconds": 12 * 100.0 + 66, "mean_seconds": 105.5, "num_jobs": 12, "by_arm": report["cost"]["by_arm"]}
    assert report["machines"] == [{"cpus": 2, "gpus": 0, "platform": "Linux-x86_64", "num_members": 12}]
    assert {of["figure"] for of in report["figures"]} == set(FIGURES) - {"drift_at_matched_gain"}


def test_a_table_is_the_mean_over_its_members(report, small_study, small_records):
    rows = next(of["rows"] for of in report["figures"] if of["figure"] == "gain")
    row = next(row for row in rows if (row["arm"], row["order"]) == ("arm-1", "order-1"))
    values = [member_figures(record, small_study)["gain"] for record in small_records if (record["arm"], record["order"]) == ("arm-1", "order-1")]
    assert row["mean"] == pytest.approx(sum(values) / 3) and row["n"] == row["seeds"] == 3 and row["low"] < row["mean"] < row["high"]
    over_all = next(row for row in rows if row["order"] is None)
    assert (over_all["n"], over_all["seeds"]) == (6, 3)


def test_arms_are_pooled_over_the_orders_that_all_run_in(small_study, small_records):
    arms = [arm.model_copy(update={"orders": ("order-0",)}) if arm.name == "arm-1" else arm for arm in small_study.arms]
    fewer = small_study.model_copy(update={"arms": tuple(arms)})
    rows = next(of["rows"] for of in build_study_report(fewer, small_records)["figures"] if of["figure"] == "gain")
    assert [(row["arm"], row["order"], row["n"]) for row in rows] == [("arm-0", "order-0", 3), ("arm-1", "order-0", 3), ("arm-0", "order-1", 3)]


def test_drift_at_the_same_gain_weighs_orders_as_its_hypothesis_does(small_study, small_records):
    members = expand(small_study)
    fewer = [record for record, member in zip(small_records, members, strict=True) if (member.order, member.seed) != ("order-1", 3)]
    report = build_study_report(small_study, fewer)
    hypothesis = next(item for item in report["hypotheses"] if item["name"] == "matched")
    (table,) = (item for item in report["matched"] if (item["arm"], item["against"]) == ("arm-1", "arm-0"))
    assert hypothesis["n"]["pairs"] == 5 and table["at_gain"]["difference"] == {**hypothesis["difference"], "n": 5}


def test_series_hold_rows_and_points_inside_stages(report, small_records):
    line = next(line for line in report["series"]["scores"] if (line["order"], line["domain"], line["arm"]) == ("order-0", "arithmetic", "arm-0"))
    assert [point["x"] for point in line["points"]] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3]
    of_arm = [record["report"]["score_matrix"]["means"][1][0] for record in small_records if (record["arm"], record["order"]) == ("arm-0", "order-0")]
    assert line["points"][4]["mean"] == pytest.approx(sum(of_arm) / 3) and line["points"][4]["n"] == 3


def test_forgetting_is_set_against_distance(report):
    points = [point for point in report["series"]["distance"]["points"] if (point["arm"], point["order"], point["seed"]) == ("arm-0", "order-0", 1)]
    assert [(point["domain"], point["stage"], point["mmd_squared"]) for point in points] == [
        ("arithmetic", "strings", pytest.approx(0.05)),
        ("arithmetic", "tool_call", pytest.approx(0.1)),
        ("strings", "tool_call", pytest.approx(0.05)),
    ]
    fits = report["series"]["distance"]["fits"]
    assert [(fit["order"], fit["arm"]) for fit in fits] == [(order, arm) for order in ("order-0", "order-1") for arm in ("arm-0", "arm-1")]
    assert all(fit["n"] == 9 and fit["num_pairs"] == 3 for fit in fits)  # three seeds, an order's own three pairs of domains


def test_what_has_not_finished_is_counted_and_what_failed_is_listed(small_study, small_records):
    members = expand(small_study)
    failed = made_record(small_study, members[0], simulated_report(small_study, members[0], stages_done=1), status="failed", reason="non_finite_loss", message="step 9")
    report = build_study_report(small_study, [failed, *small_records[1:7]])
    assert {key: report["progress"][key] for key in ("planned", "succeeded", "failed", "missing")} == {"planned": 12, "succeeded": 6, "failed": 1, "missing": 5}
    assert len(report["progress"]["missing_members"]) == 5
    (entry,) = report["failed"]
    assert (entry["arm"], entry["reason"], entry["stages_done"], entry["num_stages"]) == (members[0].arm, "non_finite_loss", 1, 3)
    drifts = report["hypotheses"][0]
    assert drifts["n"]["pairs"] == 2 and f"{members[0].arm}/{members[0].order}-{members[0].seed}" in drifts["left_out"]
    assert "non_finite_loss" in render_text(report)


def test_nothing_finished_yet(small_study):
    report = build_study_report(small_study, [])
    assert report["progress"]["missing"] == 12 and {item["verdict"] for item in report["hypotheses"]} == {"no_data"}
    assert "No figure has a value yet" in render_text(report)


def test_records_that_do_not_belong_are_named(small_study, small_records):
    members = expand(small_study)
    strangers = [
        small_records[0] | {"digest": "0" * 64},
        small_records[1] | {"arm": "elsewhere"},
        small_records[2] | {"study": "another"},
        small_records[3] | {"format": 9},
    ]
    report = build_study_report(small_study, [*strangers, *small_records[4:]])
    assert report["progress"]["succeeded"] == 8 and len(report["notes"]) == 4
    assert "digest 000000000000" in report["notes"][0] and f"{members[0].arm}/{members[0].order}-{members[0].seed}" in report["notes"][0]


def test_members_of_other_problems_are_not_compared_and_named(small_study, small_records):
    changed = json.loads(json.dumps(small_records[0]))
    for row in changed["report"]["score_matrix"]["problems_digest"]:
        row[changed["report"]["score_matrix"]["domains"].index("arithmetic")] = "other"
    report = build_study_report(small_study, [changed, *small_records[1:]])
    (note,) = report["notes"]
    assert note.startswith("evaluations_not_comparable: in order order-0 domain arithmetic was measured with 2 different sets of problems")
    assert report["progress"]["succeeded"] == 12
    of_drift, matched, alone = report["hypotheses"][0], report["hypotheses"][2], report["hypotheses"][3]
    for item in (of_drift, matched):
        assert item["left_out"] == ["arm-0/order-0-1", "arm-1/order-0-1"] and item["n"]["pairs"] == 5
    assert alone["left_out"] == [] and alone["n"]["pairs"] == 6, "an arm against 0 needs no other member"
    (table,) = (item for item in report["matched"] if (item["arm"], item["against"]) == ("arm-1", "arm-0"))
    assert table["at_gain"]["difference"]["n"] == 5


def test_a_second_record_of_a_member_does_not_count_twice(small_study, small_records):
    failed_first = small_records[0] | {"status": "failed", "report": None}
    report = build_study_report(small_study, [failed_first, *small_records, failed_first])
    assert (report["progress"]["succeeded"], report["progress"]["failed"]) == (12, 0) and len(report["notes"]) == 2


def test_the_text_has_the_figures(report):
    text = render_text(report)
    row = next(row for row in next(of["rows"] for of in report["figures"] if of["figure"] == "gain") if (row["arm"], row["order"]) == ("arm-1", None))
    assert f"{row['mean']:.4g} [{row['low']:.4g}, {row['high']:.4g}] n=6" in text
    assert "12 of 12 members finished" in text and re.search(r"wrong-way +contradicted", text) and "6 pairs (3 seeds, 2 orders)" in text


class _Page(HTMLParser):
    """Open tags must close in order; sources must lie inside the file."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.texts, self.images = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        assert all(not value.startswith(("http:", "https:", "//")) for name, value in values.items() if name in ("src", "href"))
        if tag == "img":
            self.images.append(values)
        if tag == "th":
            assert values["scope"] in ("row", "col")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def page_of_some(tmp_path_factory):
    """The page of a study of which one member failed with a message that is HTML."""
    study = made_study(arms=2, seeds=3, stages=2, hypotheses=HYPOTHESES, comparisons=COMPARISONS)
    records = simulated_records(study)
    records[0] |= {"status": "failed", "message": "<script>alert(1)</script> & more", "reason": "a<b"}
    report = build_study_report(study, records)
    path = tmp_path_factory.mktemp("page") / "study.html"
    write_html(report, path, commands=["holdfast study run toy.yaml"])
    return report, path.read_text(encoding="utf-8")


def test_the_page_holds_everything_and_asks_for_nothing(page_of_some):
    report, content = page_of_some
    page = _Page()
    page.feed(content)
    assert page.open == [] and "script" not in page.tags
    assert len(page.images) == 7 and all(image["alt"] and image["src"].startswith("data:image/svg+xml;base64,") for image in page.images)
    text = " ".join(page.texts)
    counts = [sum(item["verdict"] == verdict for item in report["hypotheses"]) for verdict in ("seen", "contradicted", "not_seen", "no_data")]
    assert "Of 4 hypotheses: {} seen, {} contradicted, {} not seen, {} no data.".format(*counts) in text and counts[1] == 1
    assert all(of["figure"] in text for of in report["figures"])
    row = next(row for row in next(of["rows"] for of in report["figures"] if of["figure"] == "stage_drift") if row["arm"] == "arm-1")
    assert f"{row['mean']:.4g}" in text and "seeds:" in text and "holdfast study run toy.yaml" in text
    assert content.index("<h2>Summary") < content.index("<h2>Compared after the runs, not judged") < content.index("<h2>Progress")
    assert "It also &lt;gains&gt; more." in content


def test_text_from_outside_is_escaped(page_of_some):
    _, content = page_of_some
    assert "<script" not in content and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in content and "a&lt;b" in content
    assert "Drift is &lt;larger&gt; &amp; stays so." in content
