"""What a stage costs elsewhere reaches the record: drift as metrics, collapse as events, and a checkpoint carries the watch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from services.scheduler.side_watch import STATE_FILE, SideWatch

PEBBLE = Path(__file__).resolve().parents[2] / "deploy" / "models" / "pebble"
SAMPLING = SimpleNamespace(experience=SimpleNamespace(kind="policy"))
STAGES = tuple(SimpleNamespace(index=index, name=name, steps=40, composition=SAMPLING) for index, name in enumerate(("first", "second")))


class Record:
    """The link and the log in one; ``calls`` and ``values`` are what they were told."""

    def __init__(self):
        self.calls, self.values = [], []

    def call(self, name, *arguments):
        self.calls.append((name, *arguments))

    def artifact(self, path, artifact_path, *, stage, global_step):
        self.calls.append(("artifact", path.name, artifact_path, stage))

    def metrics(self, *, stage, stage_index, step, global_step, values):
        self.values.append((stage, step, values))


def watch_over(record: Record, run_dir: Path, when: str = "evaluations") -> SideWatch:
    chat = SimpleNamespace(decode=lambda ids: " ".join(map(str, ids)))
    return SideWatch(record, record, chat, base_folder=PEBBLE, run_dir=run_dir, stages=STAGES, when=when)


def scaled(folder: Path, factor: float) -> Path:
    """A copy of the model with every weight times ``factor``."""
    shutil.copytree(PEBBLE, folder)
    path = folder / "model.safetensors"
    save_file({name: tensor * factor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return folder


def test_drift_is_against_the_base_and_against_where_the_stage_began(tmp_path):
    """Weights times 1.2, in a stage that began at weights times 1.1: 20 % from the base and 1/11 from the start."""
    record = Record()
    scaled(tmp_path / "stages" / "0-first" / "policy", 1.1)
    watch = watch_over(record, tmp_path)
    watch.drift(STAGES[1], 20, 60, scaled(tmp_path / "now", 1.2))
    ((stage, step, values),) = record.values
    assert (stage, step) == ("second", 20)
    assert values["drift/base/relative_l2"] == pytest.approx(0.2, rel=1e-5)
    assert values["drift/stage/relative_l2"] == pytest.approx(1.2 / 1.1 - 1, rel=1e-5)
    assert values["drift/base/nss_median"] == pytest.approx(0.2, rel=1e-4)


def test_every_matrix_is_kept_with_its_sums_and_ratios(tmp_path):
    """All weights times 1.2 from 1.1 times the base's: |0.2 w|^2 over |w|^2, and |0.1 w|^2 over |1.1 w|^2, in every matrix."""
    record = Record()
    scaled(tmp_path / "stages" / "0-first" / "policy", 1.1)
    watch_over(record, tmp_path).drift(STAGES[1], 40, 80, scaled(tmp_path / "now", 1.2))
    kept = json.loads((tmp_path / "stages/1-second/drift/step-000040.json").read_text())
    weights = load_file(PEBBLE / "model.safetensors")
    rows = {row["name"]: row for row in kept["base"]["matrices"]}
    assert set(rows) == set(weights) == {row["name"] for row in kept["start"]["matrices"]}
    name = next(name for name, tensor in weights.items() if tensor.dim() == 2)
    squared = float(weights[name].double().pow(2).sum())
    assert rows[name]["squared_before"] == pytest.approx(squared, rel=1e-6) and rows[name]["squared_change"] == pytest.approx(0.04 * squared, rel=1e-4)
    assert all(row["relative_l2"] == pytest.approx(1.2 / 1.1 - 1, rel=1e-4) for row in kept["start"]["matrices"] if row["relative_l2"])
    assert {"principal_both", "principal_updated", "principal_before", "mask_entries", "bf16_unchanged", "entries"} <= set(rows[name])
    assert record.calls == [("artifact", "step-000040.json", "drift", "second")]


def test_a_restart_forgets_the_drift_of_steps_that_it_does_again(tmp_path):
    watch = watch_over(Record(), tmp_path)
    for stage, step in ((0, 40), (1, 20), (1, 40)):
        watch._drift_file(stage, STAGES[stage].name, step).parent.mkdir(parents=True, exist_ok=True)
        watch._drift_file(stage, STAGES[stage].name, step).write_text("{}")
    watch.rewind(1, 20)
    assert sorted(str(path.relative_to(tmp_path / "stages")) for path in tmp_path.glob("stages/*/drift/*")) == ["0-first/drift/step-000040.json", "1-second/drift/step-000020.json"]


def test_the_first_stage_began_at_the_base(tmp_path):
    record = Record()
    watch_over(record, tmp_path).drift(STAGES[0], 40, 40, PEBBLE)
    values = record.values[0][2]
    assert values["drift/stage/relative_l2"] == values["drift/base/relative_l2"] == 0.0


@pytest.mark.parametrize(("when", "steps"), [("evaluations", [20, 40]), ("stage_ends", [40]), ("never", [])])
def test_when_drift_is_measured_is_the_job_files_choice(tmp_path, when, steps):
    record = Record()
    watch = watch_over(record, tmp_path, when)
    for step in (20, 40):
        watch.drift(STAGES[0], step, step, PEBBLE)
    assert [step for _, step, _ in record.values] == steps


def falling(step: int) -> dict[str, float]:
    """A score that holds for 30 steps and then falls to nothing."""
    return {"rollout/score_mean": 0.8 if step < 30 else max(0.0, 0.8 - 0.05 * (step - 30)), "policy/entropy_nats": 0.5}


def test_a_sign_of_collapse_becomes_one_event_with_its_evidence(tmp_path):
    record = Record()
    watch = watch_over(record, tmp_path)
    watch.begin_stage(STAGES[0], resumed=False)
    for step in range(60):
        values = watch.observe(step, falling(step), [])
    warnings = [warning for name, warning in record.calls if name == "collapse_warning" and warning["code"] == "score_falls"]
    assert len(warnings) == 1 and warnings[0]["raised"] and warnings[0]["stage"] == "first" and 30 < warnings[0]["step"] < 50
    assert values["collapse/active"] >= 1.0


@pytest.mark.parametrize("kind", ["demonstrations", "replayed"])
def test_a_stage_that_learns_from_data_is_not_watched_by_its_steps(tmp_path, kind):
    """Its completions are the data's: a policy that dies would look well, and one that lives ill."""
    record = Record()
    watch = watch_over(record, tmp_path)
    stage = SimpleNamespace(index=0, name="first", steps=40, composition=SimpleNamespace(experience=SimpleNamespace(kind=kind)))
    watch.begin_stage(stage, resumed=False)
    assert [watch.observe(step, falling(step), []) for step in range(60)] == [{}] * 60 and record.calls == []
    watch.begin_stage(STAGES[1], resumed=False)
    assert "collapse/active" in watch.observe(1, falling(1), [])


def test_a_watch_restored_from_a_checkpoint_goes_on_and_one_of_another_stage_does_not(tmp_path):
    whole, half = Record(), Record()
    one, two = watch_over(whole, tmp_path), watch_over(half, tmp_path)
    for watch in (one, two):
        watch.begin_stage(STAGES[0], resumed=False)
    for step in range(35):
        one.observe(step, falling(step), [])
        two.observe(step, falling(step), [])
    two.save(tmp_path)
    assert (tmp_path / STATE_FILE).exists()
    again = watch_over(half, tmp_path)
    again.load(tmp_path)
    again.begin_stage(STAGES[0], resumed=True)
    for step in range(35, 60):
        assert one.observe(step, falling(step), []) == again.observe(step, falling(step), [])
    assert [call[1]["step"] for call in whole.calls] == [call[1]["step"] for call in half.calls]
    other = watch_over(Record(), tmp_path)
    other.load(tmp_path)
    other.begin_stage(STAGES[1], resumed=True)
    assert other._watch.state()["steps"] == 0
