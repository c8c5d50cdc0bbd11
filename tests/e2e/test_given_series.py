"""``holdfast evaluate`` through the real service: checkpoints that were not trained here, measured as stages are."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import psutil
import pytest
from e2e_service import ROOT, Service
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.timeout(900)
PEBBLE = ROOT / "deploy" / "models" / "pebble"
SCALED = "model.layers.1.mlp.up_proj.weight"
FACTOR = 1.25
DOMAINS = ("--domain", "sums=arithmetic:digits=2", "--domain", "letters=strings:operation=sort,length=[4,6]")
SMALL = ("--problems", "64", "--set", "defaults.sampling.max_tokens=32", "--set", "defaults.max_prompt_tokens=160")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[Path, Path]:
    """The base unchanged, with what another trainer leaves beside it, and the base with one matrix scaled."""
    root = tmp_path_factory.mktemp("checkpoints")
    unchanged, scaled = (Path(shutil.copytree(PEBBLE, root / name)) for name in ("unchanged", "scaled"))
    (unchanged / "optimizer.pt").write_bytes(b"\x80 a pickle that nobody opens")
    weights = load_file(PEBBLE / "model.safetensors")
    save_file(weights | {SCALED: weights[SCALED] * FACTOR}, scaled / "model.safetensors", metadata={"format": "pt"})
    return unchanged, scaled


@pytest.fixture(scope="module")
def measured(service: Service, checkpoints, tmp_path_factory) -> Path:
    """The folder that ``holdfast evaluate BASE UNCHANGED SCALED`` wrote."""
    out = tmp_path_factory.mktemp("measured")
    result = service.command(
        "evaluate", str(PEBBLE), *map(str, checkpoints), *DOMAINS, "--trained-on", "sums", "--trained-on", "letters", *SMALL, "--out", str(out), timeout_s=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return out


def _report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_the_row_of_an_unchanged_copy_is_the_base_s_exactly(measured):
    matrix = _report(measured)["score_matrix"]
    assert matrix["rows"] == ["base", "unchanged", "scaled"] and matrix["domains"] == ["sums", "letters"]
    assert matrix["means"][1] == matrix["means"][0] and matrix["mean_tokens"][1] == matrix["mean_tokens"][0]
    assert matrix["mean_tokens"][2] != matrix["mean_tokens"][0]


def test_engines_and_learner_agreed_on_every_checkpoint(measured):
    parity = _report(measured)["parity"]
    assert parity["num_probes"] == 3 and parity["max_abs_nats"] < 1e-4


def test_drift_is_zero_for_the_copy_and_the_scaled_matrix_s_own_for_the_other(measured):
    copy, scaled = _report(measured)["drift"]["parameters"]
    weights = load_file(PEBBLE / "model.safetensors")
    total = sum(float(tensor.double().square().sum()) for tensor in weights.values())
    expected = (FACTOR - 1.0) * float(weights[SCALED].double().norm()) / total**0.5
    for against in ("base", "start"):
        assert copy[against]["relative_l2"] == 0.0 and copy[against]["bf16_unchanged_share"] == 1.0
        assert scaled[against]["relative_l2"] == pytest.approx(expected, rel=1e-6)
        assert scaled[against]["nss_max"] == pytest.approx(FACTOR - 1.0, rel=1e-6) and scaled[against]["nss_median"] == 0.0
    answers = {(entry["stage"], entry["domain"]): entry for entry in _report(measured)["drift"]["responses"]}
    for domain in ("sums", "letters"):
        assert answers["unchanged", domain]["base"]["kl_policy_base"] == 0.0
        assert answers["scaled", domain]["base"]["kl_policy_base"] > 0.0
        assert answers["scaled", domain]["start"]["kl_policy_start"] == pytest.approx(answers["scaled", domain]["base"]["kl_policy_base"], rel=1e-6)


def test_the_report_has_retention_figures_of_what_each_was_trained_on(measured):
    report = _report(measured)
    means = report["score_matrix"]["means"]
    assert [stage["recipe"] for stage in report["stages"]] == ["given", "given"] and [stage["steps"] for stage in report["stages"]] == [0, 0]
    assert [stage["domains"] for stage in report["stages"]] == [["sums"], ["letters"]]
    assert report["retention"]["stage_gains"][0]["value"] == 0.0
    assert report["retention"]["stage_gains"][1]["value"] == pytest.approx(means[2][1] - means[1][1])
    assert report["retention"]["backward_transfer"]["value"] == pytest.approx(means[2][0] - means[1][0])


def test_figures_and_one_page_that_needs_nothing_else_are_written(measured):
    names = {path.name for path in measured.iterdir()}
    assert {"report.json", "report.html", "score_matrix.png", "score_by_stage.png", "drift_by_step.png"} <= names
    assert all((measured / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith(".png"))
    page = (measured / "report.html").read_text()
    assert page.count("<img ") == len([name for name in names if name.endswith(".png")])
    assert "src=\"http" not in page and "<script" not in page and "unchanged" in page


@pytest.mark.slow
def test_a_stage_that_trains_after_a_given_one_starts_at_its_weights_and_a_killed_job_goes_on(service: Service, checkpoints, measured):
    """Given, trained, given; the learner is killed after the first. The rows of the given ones are what the other job measured."""
    unchanged, scaled = checkpoints
    sums, letters = ({"kind": "arithmetic", "digits": 2}, {"kind": "strings", "operation": "sort", "length": [4, 6]})
    spec = {
        "version": 1,
        "name": "mixed",
        "model": {"path": str(PEBBLE)},
        "defaults": {"steps": 2, "problems_per_step": 8, "rollouts_per_problem": 4, "max_prompt_tokens": 160, "sampling": {"max_tokens": 32}, "optimizer": {"lr": 3e-5}},
        "stages": [
            {"name": "other", "domains": [{"name": "letters", "domain": letters}], "policy": {"path": str(scaled)}},
            {"name": "ours", "domains": [{"name": "sums", "domain": sums}], "method": {"recipe": "sdpo", "teacher": {"kind": "ema"}}, "boundary": {"optimizer": "keep"}},
            {"name": "back", "domains": [{"name": "sums", "domain": sums}], "policy": {"path": str(unchanged)}},
        ],
        "evaluation": {"problems": 64},
        "checkpoint": {"every_steps": 1},
        "compute": {"device": "cpu"},
    }
    with service.client() as client:
        job = client.submit(spec)
        _kill_after_first_stage(client, job["id"])
        job = client.wait(job["id"], timeout_s=600)
        assert job["status"] == "succeeded", job
        report = client.report(job["id"])
        starts = [event for event in client.events(job["id"], limit=100)["data"] if event["type"] == "learner.started"]
    assert len(starts) == 2
    other, matrix = _report(measured)["score_matrix"], report["score_matrix"]
    place = [matrix["domains"].index(name) for name in other["domains"]]
    ours = [[row[index] for index in place] for row in matrix["means"]]
    assert (ours[0], ours[1], ours[3]) == (other["means"][0], other["means"][2], other["means"][0])
    ends = {entry["stage"]: entry for entry in report["drift"]["parameters"]}
    assert ends["back"]["base"]["relative_l2"] == 0.0
    assert 0.0 < ends["ours"]["start"]["relative_l2"] < 0.1 * ends["ours"]["base"]["relative_l2"]
    assert [entry["global_step"] for entry in report["drift"]["parameters"]] == [1, 3, 4]


def _kill_after_first_stage(client, job_id: str) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        job = client.get(job_id)
        assert job["status"] not in ("failed", "cancelled"), job
        if job["stages"][0]["status"] == "succeeded":
            started = [event for event in client.events(job_id, limit=100)["data"] if event["type"] == "learner.started"]
            psutil.Process(started[-1]["data"]["pid"]).kill()
            return
        time.sleep(0.05)
    pytest.fail("the first stage never ended")
