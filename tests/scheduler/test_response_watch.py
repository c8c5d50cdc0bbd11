"""Response drift of a job: which completions each figure is measured on, roles, files, and what a restart finds again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cluster.spec.job import JobSpec
from cluster.transfer.snapshot import write_snapshot
from rollout.chat import ChatFormat
from rollout.domains import build_domain
from rollout.engines.base import EngineSampling
from rollout.engines.scripted import ScriptedEngine
from services.evaluation.evaluator import Evaluator, FirstCompletions
from services.scheduler import response_watch
from services.scheduler.probe_files import PROBES_FILE, read_probes, write_probes
from services.scheduler.response_watch import DISTANCES_FILE, ENTRIES_FILE, ResponseWatch
from services.scheduler.side_watch import SideWatch, shares
from trainer.divergence.response_drift import ResponseDrift
from trainer.modeling.policy_model import PolicyModel

PEBBLE = Path(__file__).resolve().parents[2] / "deploy" / "models" / "pebble"
TEMPERATURE = 0.7
PROBES = 4
NAMES = ("first", "second", "third")


def job(**evaluation) -> JobSpec:
    kinds = ({"kind": "arithmetic"}, {"kind": "strings"})
    stages = [{"name": name, "domain": kind, "method": {"recipe": "grpo"}, "steps": 6} for name, kind in zip(NAMES, kinds, strict=False)]
    suites = [{"name": "third", "domain": {"kind": "tool_call"}}]
    drift = {"response_drift": {"problems": PROBES}}
    return JobSpec.model_validate(
        {
            "name": "x",
            "model": {"path": str(PEBBLE)},
            "stages": stages,
            "evaluation": {"problems": 6, "domains": suites, "temperature": TEMPERATURE} | drift | evaluation,
        }
    )


class Log:
    def __init__(self):
        self.points: dict[str, float] = {}

    def metrics(self, *, stage, stage_index, step, global_step, values):
        self.points |= values


class Engine(ScriptedEngine):
    """Answers with ``letters`` and something of the prompt; counts what it was asked for."""

    def __init__(self):
        super().__init__(lambda prompt, seed: [self.letter, 20 + seed % 5, self.letter], eos_token_id=1)
        self.letter, self.requests = 30, 0

    def generate(self, requests, sampling):
        self.requests += len(requests)
        return super().generate(requests, sampling)


class World:
    """A watch over the run folder; ``again`` is the next incarnation's; ``fewer`` problems of some domains."""

    def __init__(self, run_dir: Path, spec: JobSpec, engine: Engine | None = None, fewer: dict[str, int] | None = None):
        self.job, self.run_dir, self.log, self.engine = spec, run_dir, Log(), engine or Engine()
        domains = {name: build_domain(domain, name=name, seed=0) for name, domain in _domains(spec).items()}
        sampling = EngineSampling(temperature=TEMPERATURE, top_p=1.0, max_tokens=8)
        verifiers = SimpleNamespace(verify=lambda tasks: [domain.verify(problem, text) for domain, problem, text in tasks])
        problems = dict.fromkeys(domains, 6) | (fewer or {})
        self.evaluator = Evaluator(self.engine, verifiers, ChatFormat(str(PEBBLE)), domains, problems, sampling, 0)
        model = {"dtype": torch.float64, "device": "cpu", "embedding_folder": None}
        self.watch = ResponseWatch(self.log, self.evaluator, job=spec, base_folder=PEBBLE, run_dir=run_dir, model=model)
        self.stages = spec.resolved_stages()

    def again(self) -> World:
        return World(self.run_dir, self.job)

    def base_row(self) -> None:
        self.watch.base_row(self.evaluator.score(), engines_hold_base=True)

    def measure(self, stage: int, step: int, snapshot: Path, start: Path | None = None, *, letter: int = 40) -> list[dict]:
        self.engine.letter = letter
        names = None if step == self.stages[stage].steps else [self.stages[stage].name]
        self.watch.measure(self.stages[stage], step, 6 * stage + step, snapshot, self.evaluator.score(names), start=start)
        return self.entries(stage)

    def entries(self, stage: int) -> list[dict]:
        return json.loads((self.run_dir / "stages" / f"{stage}-{NAMES[stage]}" / ENTRIES_FILE).read_text())["entries"]

    def answers(self, name: str, letter: int) -> tuple[list, list]:
        """(prompts, completions) of a domain's probes as the engine gives them with a letter."""
        kept, self.engine.letter = self.engine.letter, letter
        found = self.evaluator.sample([name], PROBES)[name].token_ids
        self.engine.letter = kept
        return self.evaluator.prompts(name, PROBES)[0], list(found)


def _domains(spec: JobSpec) -> dict:
    return {stage.name: stage.domain for stage in spec.stages} | {suite.name: suite.domain for suite in spec.evaluation.domains}


def moved(folder: Path, version: int, scale: float) -> Path:
    """A snapshot of the base with noise of a share of each parameter's size."""
    generator, model = torch.Generator().manual_seed(version), PolicyModel.load(PEBBLE)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.abs().mean() * scale)
    return write_snapshot(folder, version, model.model.named_parameters())


def test_each_kl_is_of_the_completions_that_its_first_argument_sampled(tmp_path):
    world = World(tmp_path, job())
    world.base_row()
    start, policy = moved(tmp_path, 1, 0.1), moved(tmp_path, 2, 0.3)
    world.measure(0, 6, start)
    found = next(entry for entry in world.measure(1, 3, policy, start, letter=50) if entry["domain"] == "second")
    drift = ResponseDrift(PEBBLE, dtype=torch.float64)
    prompts, base_answers = world.answers("second", 30)
    _, start_answers = world.answers("second", 40)
    _, policy_answers = world.answers("second", 50)

    def kl(completions, against, name, of=policy):
        side = "policy" if name.startswith("kl_policy") else "base"
        return drift.measure(prompts, completions, of, sampled_by=side, against=against, temperature=TEMPERATURE)[name]

    expected = {
        ("base", "kl_policy_base"): kl(policy_answers, None, "kl_policy_base"),
        ("base", "kl_base_policy"): kl(base_answers, None, "kl_base_policy"),
        ("start", "kl_policy_start"): kl(policy_answers, start, "kl_policy_base"),
        ("start", "kl_start_policy"): kl(start_answers, start, "kl_base_policy"),
        ("base_start", "kl_start_base"): kl(start_answers, None, "kl_policy_base", of=start),
        ("base_start", "kl_base_start"): kl(base_answers, None, "kl_base_policy", of=start),
    }
    for (group, name), value in expected.items():
        assert found[group][name] == pytest.approx(value, rel=1e-9), (group, name)
    # the other side's completions, and the other temperature, would have given something else
    wrong = kl(policy_answers, None, "kl_base_policy"), kl(base_answers, None, "kl_policy_base")
    assert min(abs(one / expected["base", "kl_base_policy"] - 1) for one in wrong) > 1e-3
    hot = drift.measure(prompts, policy_answers, policy)["kl_policy_base"]
    assert abs(hot / expected["base", "kl_policy_base"] - 1) > 1e-2
    assert found["base"]["similarity"] == {k: v for k, v in drift.similarity(base_answers, policy_answers).items() if k != "num_pairs"}


def test_the_base_itself_has_not_moved(tmp_path):
    world = World(tmp_path, job())
    world.base_row()
    base = write_snapshot(tmp_path, 1, PolicyModel.load(PEBBLE).model.named_parameters())
    for entry in world.measure(0, 6, base, letter=30):
        assert entry["base"]["kl_policy_base"] == entry["base"]["kl_base_policy"] == entry["start"]["kl_policy_start"] == 0.0
        assert entry["base_start"] == {"kl_base_start": 0.0, "kl_start_base": 0.0}
        assert entry["base"]["cosines"] == [1.0] * PROBES and entry["base"]["similarity"]["q25"] == pytest.approx(1.0)


def test_roles_figures_and_metrics_at_a_stages_end_and_inside(tmp_path):
    world = World(tmp_path, job())
    world.base_row()
    start = moved(tmp_path, 1, 0.1)
    world.measure(0, 6, start)
    inside = world.measure(1, 3, start, start)
    assert [(entry["domain"], entry["role"], entry["at"]) for entry in inside] == [("second", "own", "during")]
    assert "cosines" not in inside[0]["base"] and inside[0]["num_prompts"] == PROBES
    ends = world.measure(1, 6, start, start)[1:]
    assert [(entry["domain"], entry["role"], entry["at"], entry["global_step"]) for entry in ends] == [
        ("first", "earlier", "stage_end", 12),
        ("second", "own", "stage_end", 12),
        ("third", "other", "stage_end", 12),
    ]
    assert all(len(entry["base"]["cosines"]) == PROBES for entry in ends)
    policy = ends[0]["policy"]
    assert (policy["mean_tokens"], policy["p95_tokens"], policy["cut_share"]) == (4.0, 4.0, 0.0) and policy["entropy"] > 0
    tokens = {int(token) for ids in world.answers("first", 40)[1] for token in ids}
    assert policy["distinct_1"] == len(tokens) / (4 * PROBES)
    points = world.log.points
    assert points["responses/first/kl_policy_base"] == ends[0]["base"]["kl_policy_base"]
    assert points["responses/third/similarity_median"] == ends[2]["base"]["similarity"]["median"]
    assert points["responses/seconds"] > 0
    assert {name.rsplit("/", 1)[1] for name in points if name.startswith("responses/first/")} == {
        *("kl_policy_base", "kl_base_policy", "kl_policy_start", "kl_start_policy", "similarity_median", "similarity_q25", "similarity_q75"),
        *("entropy", "distinct_1", "distinct_2", "mean_tokens"),
    }


def test_the_evaluations_completions_are_used_and_nothing_is_sampled_twice(tmp_path):
    world = World(tmp_path, job())
    world.base_row()
    world.measure(0, 6, moved(tmp_path, 1, 0.1))
    assert world.engine.requests == 2 * 3 * 6


@pytest.mark.parametrize(("when", "steps"), [("evaluations", [3, 6]), ("stage_ends", [6]), ("never", [])])
def test_when_it_is_measured_is_the_job_files_choice(tmp_path, when, steps):
    world = World(tmp_path, job(response_drift={"problems": PROBES, "when": when}))
    world.base_row()
    snapshot = moved(tmp_path, 1, 0.1)
    for step in (3, 6):
        world.watch.measure(world.stages[0], step, step, snapshot, world.evaluator.score(), start=None)
    found = world.entries(0) if steps else []
    assert sorted({entry["step"] for entry in found}) == steps
    assert (tmp_path / DISTANCES_FILE).exists() == bool(steps)


def test_domains_distances_are_in_the_run_folder_and_in_the_log(tmp_path):
    world = World(tmp_path, job())
    world.base_row()
    found = json.loads((tmp_path / DISTANCES_FILE).read_text())
    assert set(found) == {"bandwidth", "mmd_squared", "notes"} and found["bandwidth"] > 0 and found["notes"] == []
    assert found["mmd_squared"]["first"]["third"] == found["mmd_squared"]["third"]["first"] > 0
    assert world.log.points["domains/mmd_squared/first/third"] == found["mmd_squared"]["first"]["third"]


def test_a_domain_of_one_prompt_has_no_distance_and_says_so_and_the_others_have_theirs(tmp_path):
    world = World(tmp_path, job(), fewer={"third": 1})
    world.base_row()
    found = json.loads((tmp_path / DISTANCES_FILE).read_text())
    assert found["mmd_squared"]["first"] == {"second": found["mmd_squared"]["second"]["first"]} and found["mmd_squared"]["third"] == {}
    assert [note for note in found["notes"] if "'third'" in note and "too_few_prompts" in note] == found["notes"] != []
    assert {name for name in world.log.points if name.startswith("domains/")} == {"domains/mmd_squared/first/second", "domains/mmd_squared/second/first"}
    assert [entry["num_prompts"] for entry in world.measure(0, 6, moved(tmp_path, 1, 0.1))] == [PROBES, PROBES, 1]


def test_what_goes_wrong_in_embedding_is_not_taken_for_prompts_without_a_distance(tmp_path, monkeypatch):
    def fail(self, token_ids):
        raise ValueError("no such embedding")

    world = World(tmp_path, job())
    monkeypatch.setattr(ResponseDrift, "embed", fail)
    with pytest.raises(ValueError, match="no such embedding"):
        world.base_row()


@pytest.mark.parametrize("scored", [True, False])
def test_the_base_has_an_answer_to_every_probe_however_many_the_collapse_watch_reads(tmp_path, monkeypatch, scored):
    """As with 513 probes, and more evaluation problems than that, of a valid job file."""
    monkeypatch.setattr(response_watch, "BASE_COMPLETIONS", PROBES - 1)
    world = World(tmp_path, job())
    world.watch.base_row(world.evaluator.score() if scored else {}, engines_hold_base=True)
    for entry in world.measure(0, 6, moved(tmp_path, 1, 0.1)):
        assert entry["num_prompts"] == len(entry["base"]["cosines"]) == PROBES
        assert None not in (entry["base"]["kl_base_policy"], entry["start"]["kl_start_policy"])
    assert len(world.watch.base_completions(["first"])["first"].token_ids) == PROBES - 1, "what it sees does not depend on the probes"


def test_a_file_with_fewer_base_answers_than_probes_serves_the_collapse_watch_alone(tmp_path, monkeypatch):
    """One that was written when the base's answers were cut at what the collapse watch reads."""
    world = World(tmp_path, job())
    world.base_row()
    kept = read_probes(tmp_path / PROBES_FILE, {name: world.evaluator.digest(name) for name in NAMES})
    write_probes(tmp_path / PROBES_FILE, {name: (world.evaluator.digest(name), first.head(PROBES - 1)) for name, first in kept.items()})
    late = world.again()
    late.watch.base_row({}, engines_hold_base=False)
    entry = late.measure(0, 6, moved(tmp_path, 1, 0.1))[0]
    assert entry["base"]["kl_policy_base"] > 0 and entry["base"]["kl_base_policy"] is None and entry["base"]["similarity"] is None
    assert len(late.watch.base_completions(["first"])["first"].token_ids) == PROBES - 1
    early = world.again()
    early.watch.base_row({}, engines_hold_base=True)  # they are sampled now, as the file's were
    assert early.measure(0, 6, moved(tmp_path, 2, 0.1))[0]["base"]["kl_base_policy"] > 0


def test_a_later_incarnation_reads_the_same_base_and_stage_start(tmp_path):
    world = World(tmp_path, job())
    world.base_row()
    start, policy = moved(tmp_path, 1, 0.1), moved(tmp_path, 2, 0.3)
    world.measure(0, 6, start)
    straight = world.measure(1, 3, policy, start, letter=50)
    again = world.again()
    again.engine.letter = 60  # what it would sample now is another model's
    again.watch.base_row({}, engines_hold_base=False)
    assert again.engine.requests == 0
    assert again.measure(1, 3, policy, start, letter=50) == straight
    assert again.watch.base_completions(["first"])["first"].token_ids[0].tolist() == world.answers("first", 30)[1][0].tolist()


def test_a_base_that_was_recorded_before_is_sampled_while_the_engines_hold_it_and_never_after(tmp_path):
    world = World(tmp_path / "one", job())
    (tmp_path / "one").mkdir()
    world.watch.base_row({}, engines_hold_base=True)
    assert world.engine.requests == 2 * 6 + PROBES and (tmp_path / "one" / PROBES_FILE).exists()
    late = World(tmp_path / "two", job())
    (tmp_path / "two").mkdir()
    late.watch.base_row({}, engines_hold_base=False)
    entry = late.measure(0, 6, moved(tmp_path, 1, 0.1))[0]
    assert late.watch.base_completions(["first"]) is None
    assert entry["base"]["kl_policy_base"] > 0 and entry["base"]["kl_base_policy"] is None and entry["base"]["similarity"] is None
    assert "responses/first/kl_base_policy" not in late.log.points


def test_a_restart_drops_what_it_undoes_and_measures_again_in_its_place(tmp_path):
    world = World(tmp_path, job())
    world.base_row()
    start = moved(tmp_path, 1, 0.1)
    for step in (2, 4, 6):
        world.measure(0, step, start)
    world.measure(1, 3, start, start)
    again = world.again()
    again.watch.base_row({}, engines_hold_base=False)
    again.watch.rewind(0, 4)
    assert [entry["step"] for entry in again.entries(0)] == [2, 4] and again.entries(1) == []
    again.measure(0, 6, start)
    again.measure(0, 6, start)
    assert [entry["step"] for entry in again.entries(0)] == [2, 4, 6, 6, 6]


def test_completions_of_other_problems_or_of_a_damaged_file_are_not_read(tmp_path):
    path, first = tmp_path / PROBES_FILE, FirstCompletions((np.array([5, 6], dtype=np.int32), np.array([7], dtype=np.int32)), np.array([True, False]))
    write_probes(path, {"a": ("digest", first), "b": ("old", first)})
    found = read_probes(path, {"a": "digest", "b": "new", "c": "digest"})
    assert set(found) == {"a"} and [ids.tolist() for ids in found["a"].token_ids] == [[5, 6], [7]] and found["a"].cut.tolist() == [True, False]
    path.write_bytes(path.read_bytes()[:60])
    assert read_probes(path, {"a": "digest"}) == {}


def test_the_collapse_watch_counts_from_the_bases_answers_of_the_stages_domains(tmp_path):
    world = World(tmp_path, job())
    chat = SimpleNamespace(decode=lambda ids: "(" * len(ids))
    side = SideWatch(None, world.log, chat, base_folder=PEBBLE, run_dir=tmp_path, stages=world.stages, responses=world.watch)
    side.base_row(world.evaluator.score(), engines_hold_base=True)
    side.begin_stage(world.stages[0], resumed=False, solutions=[np.array([7, 8]), np.array([7])])
    state = side._watch.state()
    assert state["counts"]["ngrams_amplified"]["solutions"] == {"7": 2, "8": 1, "7 8": 1}
    assert state["counts"]["format_amplified"]["solutions"] == {"(": 2, "( x2": 1}  # as the chat decodes them
    assert state["base_given"] and state["counts"]["ngrams_amplified"]["base_completions"] == 6
    assert state["counts"]["ngrams_amplified"]["base"]["30"] == 6  # each of the six has the letter, twice
    assert state["counts"]["format_amplified"]["base"] == {"(": 6, "( x4": 6}


def test_base_answers_are_in_the_mixtures_proportion():
    assert shares({"own": (0.9, 500), "replayed": (0.1, 500)}) == {"own": 500, "replayed": 56}
    assert shares({"own": (3.0, 6), "other": (1.0, 100)}) == {"own": 6, "other": 2}


def test_the_bases_answers_do_not_depend_on_who_scored_it(tmp_path):
    """Members of a study that take over another's base scores watch for amplification with as many answers."""
    scored, shared = World(tmp_path / "scored", job()), World(tmp_path / "shared", job())
    scored.base_row()
    shared.watch.base_row({}, engines_hold_base=True)
    for name in NAMES[:2]:  # the third is a suite, which no stage watches
        mine, others = (world.watch.base_completions([name])[name].token_ids for world in (scored, shared))
        assert len(mine) > PROBES and [ids.tolist() for ids in mine] == [ids.tolist() for ids in others]
