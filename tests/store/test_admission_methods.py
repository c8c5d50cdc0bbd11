"""Methods against their budget, the model and the files that they name: every refusal of admission, one by one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from admission_jobs import CPU, check, job, make_home, stage

METHOD = "/stages/0/method"
FROZEN = {"kind": "frozen"}


def custom(*terms: dict, **more) -> dict:
    return {"recipe": "custom", "terms": list(terms), **more}


def gradient(**advantage) -> dict:
    return {"name": "t", "objective": {"kind": "policy_gradient", "advantage": advantage}}


def masked(*masks: dict) -> dict:
    return custom({"name": "t", "objective": {"kind": "policy_gradient"}, "masks": list(masks)})


def tokenizer(*entries: str) -> str:
    return json.dumps({"model": {"vocab": {text: token for token, text in enumerate(entries)}}, "added_tokens": []})


@pytest.fixture
def home(tmp_path) -> Path:
    return make_home(tmp_path)


@pytest.fixture
def teacher(home) -> Path:
    """A second model folder beside the policy's, called ``other``."""
    (home / "model" / "tokenizer.json").write_text(tokenizer("a", "b", "c"))
    shutil.copytree(home / "model", home / "other")
    return home / "other"


def external(path: str = "other") -> dict:
    return {"recipe": "opd_sampled", "teacher": {"kind": "external", "path": path}}


SINGLE = [
    ({"recipe": "grpo"}, ["compares the rollouts", "group_mean", "at least 2"]),
    (custom(gradient(), advantage={"baseline": "leave_one_out"}), ["leave_one_out", "advantage.baseline none"]),
    ({"recipe": "sdpo", "context": {"kind": "sibling_solution", "max_context_tokens": 20}}, ["another rollout of the same problem", "own_success"]),
    ({"recipe": "sdpo", "when_empty": "policy_gradient", "context": {"kind": "feedback", "max_context_tokens": 20}}, ["compares the rollouts"]),
    (
        custom(gradient(outcome_weight=1.0), advantage={"baseline": "none"}, experience={"kind": "policy", "dynamic_sampling": {}}),
        ["dynamic sampling drops groups"],
    ),
]


@pytest.mark.parametrize(("method", "words"), SINGLE)
def test_one_rollout_of_a_problem_is_not_enough_for_what_compares_them(home, method, words):
    found, _ = check(home, job(stages=[stage(method=method, rollouts_per_problem=1)]))
    assert list(found) == [("/stages/0/rollouts_per_problem", "cannot_learn")]
    assert [word for word in words if word not in found["/stages/0/rollouts_per_problem", "cannot_learn"]] == []
    assert check(home, job(stages=[stage(method=method, rollouts_per_problem=2)]))[0] == {}


@pytest.mark.parametrize(
    "method",
    [
        {"recipe": "sft"},
        custom(gradient(outcome_weight=0.0, teacher_weight=1.0), teacher=FROZEN),
        custom(gradient(), advantage={"baseline": "none"}),
        {"recipe": "sdpo", "context": {"kind": "sibling_solution", "own_success": True, "max_context_tokens": 20}},
        {"recipe": "sdpo", "context": {"kind": "sibling_solution", "feedback": "always", "max_context_tokens": 20}},
    ],
)
def test_one_rollout_is_enough_for_what_does_not_compare_them(home, method):
    assert check(home, job(stages=[stage(method=method, rollouts_per_problem=1)]))[0] == {}


PARTS = [
    ({"recipe": "dapo", "overlong_buffer_tokens": 32}, "buffer_too_long", ["32 tokens is not smaller than max_tokens 32", "a fifth", "6"]),
    (
        {"recipe": "prefix_opd", "teacher": FROZEN, "start_tokens": 33},
        "prefix_too_long",
        ["starts at 33 tokens, max_tokens is 32"],
    ),
    (masked({"kind": "skip_first", "tokens": 32}), "cannot_learn", ["skip_first 32 leaves no token"]),
    (masked({"kind": "pattern", "pattern": "(a"}), "pattern_invalid", ["'(a' is not a regular expression"]),
    (masked({"kind": "special_tokens", "texts": ["<b>", ""]}), "text_empty", ["empty text"]),
    (
        {"recipe": "sdpo", "context": {"kind": "feedback", "max_context_tokens": 2, "template": {"text": "{{ problem }} {{ answer }}"}}},
        "template_invalid",
        ["unknown variable 'answer'", "solution"],
    ),
    (
        {"recipe": "sdpo", "context": {"kind": "feedback", "max_context_tokens": 2, "template": {"text": "{{ problem"}}},
        "template_invalid",
        ["line 1"],
    ),
]


@pytest.mark.parametrize(("method", "code", "words"), PARTS, ids=[f"{code}-{place}" for place, (_, code, _) in enumerate(PARTS)])
def test_what_does_not_go_with_the_longest_completion_or_does_not_compile(home, method, code, words):
    found, _ = check(home, job(stages=[stage(method=method)]))
    assert list(found) == [(METHOD, code)]
    assert [word for word in words if word not in found[METHOD, code]] == []


def test_numbers_just_below_the_longest_completion_are_let_in(home):
    stages = [
        stage("a", method={"recipe": "dapo", "overlong_buffer_tokens": 31}),
        stage("b", method={"recipe": "prefix_opd", "teacher": FROZEN, "start_tokens": 32}),
        stage("c", method=masked({"kind": "skip_first", "tokens": 31}, {"kind": "pattern", "pattern": r"\\boxed\{(?:[^{}]|(?R))*\}"})),
        stage("d", method={"recipe": "sdpo", "context": {"kind": "feedback", "max_context_tokens": 2, "template": {"text": "{{ problem }}"}}}),
    ]
    assert check(home, job(stages=stages))[0] == {}


def test_what_the_policy_writes_for_a_context_must_fit_it_too(home):
    context = {"kind": "critique", "max_context_tokens": 20, "max_tokens": 44}
    assert check(home, job(stages=[stage(method={"recipe": "sdpo", "context": context}, max_prompt_tokens=64)]))[0] == {}
    for longer in ({"max_tokens": 45}, {"reason_first": {"max_tokens": 45}}):
        found, _ = check(home, job(stages=[stage(method={"recipe": "sdpo", "context": context | longer}, max_prompt_tokens=64)]))
        assert "what the policy writes for it 193 = 257 tokens, the model has 256" in found["/stages/0/max_prompt_tokens", "context_too_long"]


def test_a_context_of_one_domain_counts_as_much_as_that_of_all(home):
    method = custom(
        {"name": "t", "objective": {"kind": "forward_kl"}}, teacher=FROZEN, domain_contexts={"s": {"kind": "feedback", "max_context_tokens": 400}}
    )
    assert list(check(home, job(stages=[stage(method=method, max_prompt_tokens=9)]))[0]) == [("/stages/0/max_prompt_tokens", "context_too_long")]


# -- other models ----------------------------------------------------------------------------------------------------


def test_an_external_teacher_is_found_looked_at_and_resolved(home, teacher):
    found, resolved = check(home, job(stages=[stage(method=external())]))
    assert found == {}
    assert resolved["teachers"] == {"other": str(teacher)}
    assert resolved["teacher_sha256"]["other"] == resolved["model_sha256"], "a copy of the policy"


def test_an_external_teacher_that_is_not_there_or_could_execute(home, teacher):
    found, _ = check(home, job(stages=[stage(method=external("nowhere"))]))
    assert "teacher nowhere: model folder 'nowhere' does not exist" in found[METHOD, "model_not_found"]
    (teacher / "old.bin").write_bytes(b"")
    found, _ = check(home, job(stages=[stage(method=external())]))
    assert list(found) == [(METHOD, "pickle")] and found[METHOD, "pickle"].startswith("teacher other: old.bin")
    (teacher / "old.bin").unlink()
    (teacher / "model.safetensors").unlink()
    assert list(check(home, job(stages=[stage(method=external())]))[0]) == [(METHOD, "model_incomplete")]


def test_an_external_teacher_of_another_vocabulary(home, teacher):
    (teacher / "tokenizer.json").write_text(tokenizer("a", "c", "b"))
    found, resolved = check(home, job(stages=[stage(method=external())]))
    assert list(found) == [(METHOD, "vocabulary_differs")]
    assert "2 of 3 ids" in found[METHOD, "vocabulary_differs"] and "teachers" in resolved


@pytest.mark.parametrize(
    ("support", "refused"),
    [({"kind": "sampled"}, False), ({"kind": "top_k", "k": 2, "support_from": "teacher"}, False), ({"kind": "full"}, True),
     ({"kind": "top_k", "k": 2, "support_from": "policy"}, True), ({"kind": "top_k", "k": 2, "support_from": "rollout"}, True)],
)
def test_special_ids_that_differ_are_masked_where_the_support_allows_it(home, teacher, support, refused):
    special = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 2, "content": "<stop>", "special": True}]}
    (home / "model" / "tokenizer.json").write_text(json.dumps(special))
    special["added_tokens"][0]["content"] = "<end>"
    (teacher / "tokenizer.json").write_text(json.dumps(special))
    term = {"name": "t", "objective": {"kind": "reverse_kl"}, "support": support}
    found, _ = check(home, job(stages=[stage(method=custom(term, teacher=external()["teacher"]))]))
    assert list(found) == ([(METHOD, "vocabulary_differs")] if refused else [])
    assert not refused or "1 special ids mean other tokens to it ([2] ...)" in found[METHOD, "vocabulary_differs"]


def test_an_external_teacher_that_cannot_hold_the_sequences(home, teacher):
    (teacher / "config.json").write_text(json.dumps({"vocab_size": 128, "max_position_embeddings": 95}))
    found, _ = check(home, job(stages=[stage(method=external())]))
    assert "64 + context 0 + max_tokens 32 = 96 tokens, the teacher other has 95" in found[METHOD, "context_too_long"]


def test_every_model_of_a_mix_and_of_domains_is_looked_at(home, teacher):
    mix = {"kind": "mix", "first": {"kind": "external", "path": "gone"}, "second": {"kind": "external", "path": "other"}, "weight": 2}
    both = {"kind": "per_domain", "teachers": {"s": mix}}
    method = custom({"name": "t", "objective": {"kind": "reverse_kl"}}, teacher=both)
    found, resolved = check(home, job(stages=[stage(method=method)]))
    assert list(found) == [(METHOD, "model_not_found")] and list(resolved["teachers"]) == ["other"]


def test_a_teachers_id_is_pinned_as_the_models_is(home, monkeypatch):
    import huggingface_hub

    class Hub:
        def model_info(self, name, *, revision, timeout):
            files = [type("File", (), {"rfilename": "model.safetensors"})()]
            return type("Info", (), {"sha": "e" * 40, "siblings": files, "config": {}})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    method = {"recipe": "opd_sampled", "teacher": {"kind": "external", "id": "good/model", "revision": "main"}}
    found, resolved = check(home, job(stages=[stage(method=method)]))
    assert found == {} and resolved["teacher_revisions"] == {"good/model@main": "e" * 40} and "teachers" not in resolved


def test_a_teacher_begins_only_at_a_checkpoint_of_the_policys_shape(home, teacher):
    method = {"recipe": "sdft", "context": {"kind": "none"}, "teacher": {"kind": "ema", "initial": {"path": "other", "share": 0.6}}}
    found, resolved = check(home, job(stages=[stage(method=method)]))
    assert found == {} and resolved["teachers"] == {"other": str(teacher)}
    (teacher / "config.json").write_text(json.dumps({"vocab_size": 128, "hidden_size": 7, "max_position_embeddings": 256}))
    found, _ = check(home, job(stages=[stage(method=method)]))
    assert "differs from it in hidden_size 7 against None; use an external teacher" in found[METHOD, "architecture_differs"]
    shutil.rmtree(teacher)
    assert list(check(home, job(stages=[stage(method=method)]))[0]) == [(METHOD, "model_not_found")]


# -- recorded rollouts -----------------------------------------------------------------------------------------------


def recording(**changes) -> dict:
    return stage("first", method=custom(gradient(), experience={"kind": "policy", "record": True}), steps=3) | changes


def replaying(**changes) -> dict:
    method = custom(gradient(), experience={"kind": "replayed", "stage": "first"})
    named = {"name": "second", "domains": [{"name": "first", "domain": {"kind": "arithmetic"}}], "method": method, "steps": 3}
    return named | changes


def test_a_stage_replays_what_an_earlier_one_recorded(home):
    assert check(home, job(stages=[recording(), replaying()]))[0] == {}


WITH_IDS = custom(
    {"name": "t", "objective": {"kind": "reverse_kl"}, "support": {"kind": "top_k", "k": 4}},
    teacher=FROZEN,
    experience={"kind": "replayed", "stage": "first"},
)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([replaying(), recording()], ["'first', which is not an earlier one", "earlier stages are []"]),
        ([recording(method={"recipe": "grpo"}), replaying()], ["does not record", "experience.record"]),
        ([recording(), replaying(steps=4)], ["replays 4 steps", "records 3"]),
        ([recording(), replaying(sampling={"max_tokens": 32, "temperature": 0.5})], ["another sampling (temperature)"]),
        ([recording(), replaying(sampling={"max_tokens": 31})], ["a longer max_tokens"]),
        ([recording(), replaying(domains=[{"name": "x", "domain": {"kind": "arithmetic"}}])], ["problems of ['first']"]),
        ([recording(), replaying(method=WITH_IDS)], ["4 most likely ids", "records 0"]),
    ],
)
def test_a_record_that_will_not_be_there_or_not_fit(home, stages, words):
    found, _ = check(home, job(stages=stages))
    place = next(index for index, item in enumerate(stages) if item["name"] == "second")
    assert list(found) == [(f"/stages/{place}/method/experience/stage", "nothing_recorded")]
    assert [word for word in words if word not in next(iter(found.values()))] == []


def test_a_folder_of_recorded_rollouts_must_hold_every_step(home):
    method = custom(gradient(), experience={"kind": "replayed", "path": "kept"})
    where = ("/stages/0/method/experience/path", "nothing_recorded")
    found, _ = check(home, job(stages=[stage(method=method, steps=2)]))
    assert "'kept' has no recorded rollouts of step 0" in found[where]
    (home / "kept").mkdir()
    (home / "kept" / "step-000000.safetensors").write_bytes(b"")
    found, _ = check(home, job(stages=[stage(method=method, steps=2)]))
    assert "of step 1, stage 's' replays 2 steps" in found[where]
    (home / "kept" / "step-000001.safetensors").write_bytes(b"")
    found, resolved = check(home, job(stages=[stage(method=method, steps=2)]))
    assert found == {} and resolved["replayed"] == {"kept": str(home / "kept")}


def test_a_reference_alone_needs_a_scoring_process_too(home):
    three = {"cpus": 2.0, "gpus": 0.0}
    assert check(home, job(stages=[stage(method={"recipe": "grpo"})]), three)[0] == {}
    found, _ = check(home, job(stages=[stage(method={"recipe": "grpo", "reference_coefficient": 0.1})]), three)
    assert list(found) == [("/compute", "insufficient_resources")]
    assert check(home, job(stages=[stage(method={"recipe": "grpo", "reference_coefficient": 0.1})]), CPU)[0] == {}


def test_looking_at_every_kind_of_method_loads_nothing_heavy():
    code = """
import sys, yaml
from pathlib import Path
from services.jobs.admission import check_environment
from services.jobs.faults import parse_job
faults, _ = check_environment(parse_job(yaml.safe_load(Path("deploy/jobs/all-recipes.yaml").read_text())), base_dir=Path(), cluster=None)
print(faults, {"torch", "ray", "vllm", "transformers", "mlflow"} & set(sys.modules))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert found.stdout.strip() == "[] set()"


def test_a_kept_teacher_of_a_domain_that_had_none(home):
    term = {"name": "t", "objective": {"kind": "reverse_kl"}}
    shared = {"context": {"kind": "feedback", "max_context_tokens": 8}}
    one = custom(term, teacher={"kind": "per_domain", "teachers": {"s": FROZEN}}, **shared)
    two = custom(term, teacher={"kind": "per_domain", "teachers": {"s": FROZEN, "u": FROZEN}}, **shared)
    both = [{"name": name, "domain": {"kind": "arithmetic"}} for name in ("s", "u")]
    stages = [stage(method=one), stage("next", domain=None, domains=both, method=two, boundary={"teacher": "keep"})]
    found, _ = check(home, job(stages=stages))
    assert "asks for one of ['u']" in found["/stages/1/boundary/teacher", "no_teacher_to_keep"]


@pytest.mark.parametrize(("boundary", "refused"), [("keep", True), ("re_anchor", False)])
def test_one_teacher_cannot_be_kept_of_several(home, boundary, refused):
    term = {"name": "t", "objective": {"kind": "reverse_kl"}}
    several = custom(term, teacher={"kind": "per_domain", "teachers": {"s": {"kind": "live"}}}, context={"kind": "feedback", "max_context_tokens": 8})
    one = custom(term, teacher=FROZEN, context={"kind": "feedback", "max_context_tokens": 8})
    stages = [stage(method=several), stage("between"), stage("u", method=one, boundary={"teacher": boundary})]
    found, _ = check(home, job(stages=stages))
    assert list(found) == ([("/stages/2/boundary/teacher", "no_teacher_to_keep")] if refused else [])


@pytest.mark.parametrize(
    ("stages", "pointer", "words"),
    [
        ([stage("a", replay={"share": 0.1})], "/stages/0/replay", "is the first"),
        ([stage("a"), stage("b", replay={"share": 0.1, "stages": ["c"]})], "/stages/1/replay/stages", "'c' is not an earlier stage; allowed: a"),
        ([stage("a"), stage("b", domain=None, domains=[{"name": "a", "domain": {"kind": "arithmetic"}}], replay={"share": 0.1})],
         "/stages/1/replay", "trains on every domain that it would replay"),
    ],
)
def test_a_stage_replays_domains_of_earlier_stages_only(home, stages, pointer, words):
    found, _ = check(home, job(stages=stages))
    assert list(found) == [(pointer, "nothing_to_replay")] and words in found[pointer, "nothing_to_replay"]


def test_replay_of_an_earlier_domain_is_let_in(home):
    assert check(home, job(stages=[stage("a"), stage("b", domain={"kind": "tool_call"}, replay={"share": 0.1})]))[0] == {}
