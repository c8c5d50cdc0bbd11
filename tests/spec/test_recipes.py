"""What every recipe becomes: the settings of its paper, and of its released code where that differs."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from cluster.spec.composition import Composition
from cluster.spec.contexts import Demonstration
from cluster.spec.job import JobSpec
from cluster.spec.objectives import ForwardKL, JensenShannon, ReverseKL
from cluster.spec.recipes import RECIPES, MethodSpec, resolve
from cluster.spec.supports import FullSupport, SampledSupport, TopKSupport
from cluster.spec.teachers import EmaTeacher, FrozenTeacher

EXTERNAL = {"kind": "external", "path": "deploy/models/pebble"}


def become(recipe: str, **parameters) -> Composition:
    return resolve(TypeAdapter(MethodSpec).validate_python({"recipe": recipe, **parameters}))


def shape(composition: Composition) -> list[tuple]:
    """(name, objective, support, normaliser, importance cap, masks) of every term."""
    return [
        (term.name, term.objective.kind, term.support.kind, term.normaliser, term.importance_cap, [mask.kind for mask in term.masks])
        for term in composition.terms
    ]


SHAPES = [
    ("grpo", {}, [("policy_gradient", "policy_gradient", "sampled", "sequence_mean", 2.0, [])]),
    ("grpo", {"variant": "sdpo_code"}, [("policy_gradient", "policy_gradient", "sampled", "token_mean", 2.0, [])]),
    (
        "grpo",
        {"reference_coefficient": 0.04},
        [
            ("policy_gradient", "policy_gradient", "sampled", "sequence_mean", 2.0, []),
            ("reference_kl", "reference_kl", "sampled", "sequence_mean", 2.0, []),
        ],
    ),
    ("dr_grpo", {}, [("policy_gradient", "policy_gradient", "sampled", "constant", 2.0, [])]),
    ("dapo", {"mask_truncated": True}, [("policy_gradient", "policy_gradient", "sampled", "token_mean", 2.0, ["truncated"])]),
    ("sdpo", {}, [("distillation", "jensen_shannon", "full", "token_mean", 2.0, [])]),
    ("sdpo", {"variant": "paper"}, [("distillation", "jensen_shannon", "top_k", "token_mean", 2.0, [])]),
    ("sdpo", {"variant": "code"}, [("distillation", "jensen_shannon", "top_k", "sequence_mean", 2.0, [])]),
    ("sdpo", {"variant": "code", "feedback": True}, [("distillation", "reverse_kl", "top_k", "sequence_mean", 2.0, [])]),
    ("sdpo", {"mask_ratio": 0.25}, [("distillation", "jensen_shannon", "full", "token_mean", 2.0, ["random"])]),
    ("sdpo", {"level": "token"}, [("distillation", "reverse_kl", "sampled", "token_mean", 2.0, [])]),
    ("sdpo", {"level": "sequence"}, [("distillation", "policy_gradient", "sampled", "token_mean", 2.0, [])]),
    ("stable_sdpo", {}, [("distillation", "jensen_shannon", "full", "token_mean", 2.0, [])]),
    ("sdpo_grpo", {}, [("blend", "policy_gradient", "sampled", "token_mean", 2.0, [])]),
    (
        "sdpo_grpo",
        {"blend": "loss"},
        [("policy_gradient", "policy_gradient", "sampled", "token_mean", 2.0, []), ("distillation", "jensen_shannon", "full", "token_mean", 2.0, [])],
    ),
    ("sdft", {}, [("distillation", "forward_kl", "full", "sequence_mean", 2.0, ["skip_first"])]),
    ("sdft", {"variant": "paper"}, [("distillation", "reverse_kl", "full", "sequence_mean", 2.0, ["skip_first"])]),
    (
        "sdft",
        {"top_entropy": 0.2, "mask_truncated": True, "skip_first_tokens": 0},
        [("distillation", "forward_kl", "full", "sequence_mean", 2.0, ["entropy_quantile", "truncated"])],
    ),
    ("opsd", {}, [("distillation", "forward_kl", "full", "sequence_mean", None, [])]),
    ("opsd", {"variant": "code"}, [("distillation", "jensen_shannon", "full", "sequence_mean", None, [])]),
    ("opd_sampled", {"teacher": EXTERNAL}, [("distillation", "policy_gradient", "sampled", "token_mean", 2.0, [])]),
    (
        "opd_sampled",
        {"teacher": EXTERNAL, "mask_special_tokens": True},
        [("distillation", "policy_gradient", "sampled", "token_mean", 2.0, ["special_tokens"])],
    ),
    ("opd_topk", {"teacher": EXTERNAL}, [("distillation", "reverse_kl", "top_k", "token_mean", None, ["special_tokens"])]),
    (
        "opd_topk",
        {"teacher": EXTERNAL, "top_entropy": 0.2},
        [("distillation", "reverse_kl", "top_k", "token_mean", None, ["special_tokens", "entropy_quantile"])],
    ),
    ("tm_opd", {"teacher": EXTERNAL}, [("distillation", "policy_gradient", "sampled", "token_mean", None, [])]),
    ("exopd", {"teacher": EXTERNAL}, [("distillation", "policy_gradient", "sampled", "token_mean", 5.0, [])]),
    (
        "eopd",
        {"teacher": EXTERNAL},
        [
            ("distillation", "policy_gradient", "sampled", "token_mean", 2.0, []),
            ("unsure", "forward_kl", "top_k", "token_mean", 2.0, ["entropy_threshold"]),
        ],
    ),
    ("prefix_opd", {"teacher": EXTERNAL}, [("distillation", "policy_gradient", "sampled", "token_mean", 2.0, [])]),
    ("sft", {}, [("cross_entropy", "cross_entropy", "sampled", "token_mean", None, [])]),
    (
        "custom",
        {"terms": [{"name": "mine", "objective": {"kind": "entropy_bonus"}, "coefficient": 0.1}]},
        [("mine", "entropy_bonus", "sampled", "token_mean", 2.0, [])],
    ),
]


@pytest.mark.parametrize(("recipe", "parameters", "terms"), SHAPES, ids=[f"{name}-{'-'.join(map(str, given))}" for name, given, _ in SHAPES])
def test_the_terms_of_a_recipe(recipe, parameters, terms):
    assert shape(become(recipe, **parameters)) == terms


def test_every_recipe_is_looked_at():
    assert {name for name, _, _ in SHAPES} == set(RECIPES)


def test_grpo_and_the_baseline_of_sdpos_code():
    paper, code = become("grpo"), become("grpo", variant="sdpo_code")
    ours, theirs = paper.terms[0].objective, code.terms[0].objective
    assert (ours.clip_low, ours.clip_high, ours.dual_clip, paper.advantage.scale) == (0.2, 0.2, None, "group_std")
    assert (theirs.clip_low, theirs.clip_high, theirs.dual_clip, code.advantage.scale) == (0.2, 0.28, 3.0, "none")
    assert paper.teacher is None and not paper.needs_reference and not code.needs_reference, "no KL to a reference unless asked for"
    said = become("grpo", variant="sdpo_code", scale="batch_std", dual_clip=4.0, normaliser="sequence_sum", clip_high=0.3)
    assert (said.advantage.scale, said.terms[0].objective.dual_clip, said.terms[0].normaliser, said.terms[0].objective.clip_high) == (
        "batch_std", 4.0, "sequence_sum", 0.3,
    )  # fmt: skip


def test_a_reference_is_asked_for_by_a_coefficient_and_is_no_teacher():
    for recipe in ("grpo", "sdpo", "sdft"):
        with_reference = become(recipe, reference_coefficient=0.04)
        penalty = with_reference.terms[-1]
        assert (penalty.name, penalty.coefficient, penalty.objective.estimator) == ("reference_kl", 0.04, "k3")
        assert with_reference.needs_reference and with_reference.teacher == become(recipe).teacher
        assert penalty.normaliser == with_reference.terms[0].normaliser, "a penalty is averaged as the loss beside it"
    beside = become("sdft", reference_coefficient=0.1).terms[-1]
    assert beside.importance_level == "sequence_mean" and [mask.kind for mask in beside.masks] == ["skip_first"]


def test_dr_grpo_does_not_scale_and_divides_by_a_constant():
    made = become("dr_grpo")
    assert (made.advantage.scale, made.terms[0].normaliser_tokens) == ("none", None)
    assert become("dr_grpo", normaliser_tokens=99).terms[0].normaliser_tokens == 99


def test_dapo_refills_equal_groups_widens_the_upper_clip_and_shapes_long_completions():
    made = become("dapo")
    clips = made.terms[0].objective
    assert (clips.clip_low, clips.clip_high) == (0.2, 0.28)
    assert made.experience.dynamic_sampling.max_refills == 10
    assert (made.advantage.overlong.buffer_tokens, made.advantage.overlong.penalty) == (4096, 1.0)
    assert made.advantage.scale == "group_std" and not made.needs_reference
    assert become("dapo", overlong_buffer_tokens=None).advantage.overlong is None


@pytest.mark.parametrize(
    ("variant", "given", "divergence", "support", "rate", "own", "threshold", "feedback", "counted"),
    [
        ("holdfast", {}, JensenShannon(), FullSupport(), 0.05, False, 1.0, "without_solution", False),
        ("holdfast", {"feedback": False}, JensenShannon(), FullSupport(), 0.05, False, 1.0, "never", False),
        ("paper", {}, JensenShannon(), TopKSupport(k=100, support_from="policy"), 0.05, True, 1.0, "never", False),
        ("code", {}, JensenShannon(), TopKSupport(k=100, support_from="policy"), 0.05, False, 0.5, "never", True),
        ("paper", {"feedback": True}, ReverseKL(), TopKSupport(k=20, support_from="policy"), 0.01, True, 1.0, "without_solution", False),
        ("code", {"feedback": True}, ReverseKL(), TopKSupport(k=20, support_from="policy"), 0.01, False, 0.5, "without_solution", True),
    ],
)
def test_the_variants_of_sdpo(variant, given, divergence, support, rate, own, threshold, feedback, counted):
    made = become("sdpo", variant=variant, **given)
    term, context = made.terms[0], made.context
    assert (term.objective, term.support, made.teacher) == (divergence, support, EmaTeacher(update_rate=rate))
    assert made.teacher.every == "rollout_batch", "applied once per batch of rollouts, as their code does"
    assert (context.own_success, context.success_threshold, context.feedback) == (own, threshold, feedback)
    assert (context.kind, context.choice, context.thinking, context.when_empty) == ("sibling_solution", "first", "strip", "mask")
    assert term.count_missing_targets is counted
    if term.support.kind == "top_k":
        assert term.support.tail == "bucket"


def test_the_levels_of_sdpo_thin_the_supervision():
    assert become("sdpo", level="token").terms[0].support == SampledSupport()
    sequence = become("sdpo", level="sequence").terms[0].objective
    assert (sequence.advantage.level, sequence.advantage.teacher_weight, sequence.advantage.outcome_weight) == ("sequence", 1.0, 0.0)
    assert sequence.clip_low is None and sequence.clip_high is None


def test_what_sdpo_does_without_a_target():
    assert become("sdpo", when_empty="plain_prompt").context.when_empty == "plain_prompt"
    made = become("sdpo", when_empty="policy_gradient")
    assert [(term.name, term.samples) for term in made.terms] == [("distillation", "all"), ("policy_gradient", "without_target")]
    assert made.context.when_empty == "mask", "with a plain prompt every rollout would have a target"


def test_the_random_mask_of_sdpo_says_what_it_divides_by():
    (mask,) = become("sdpo", mask_ratio=0.75, mask_denominator="all").terms[0].masks
    assert (mask.ratio, mask.denominator) == (0.75, "all")
    assert become("sdpo", mask_ratio=0.0).terms[0].masks == ()


def test_stable_sdpo_jumps_by_what_an_ema_of_one_percent_moves_in_fifty_steps():
    teacher = become("stable_sdpo").teacher
    assert (teacher.kind, teacher.period, teacher.gamma) == ("restart_and_freeze", 50, 0.4)
    assert teacher.equivalent_update_rate == pytest.approx(0.0101645, abs=1e-7)
    assert 1.0 - (1.0 - teacher.equivalent_update_rate) ** 50 == pytest.approx(0.4, abs=1e-12)


def test_the_blends_of_sdpo_and_grpo_share_one_weight():
    advantage = become("sdpo_grpo").terms[0].objective.advantage
    assert (advantage.outcome_weight, advantage.teacher_weight, advantage.clip) == (0.9, pytest.approx(0.1), 5.0)
    terms = become("sdpo_grpo", blend="loss", grpo_weight=0.25).terms
    assert [term.coefficient for term in terms] == [0.25, 0.75]
    assert (terms[0].objective.clip_low, terms[0].objective.clip_high) == (0.2, 0.28)
    assert become("sdpo_grpo").advantage.scale == "none"


def test_sdft_follows_every_optimizer_step_and_weighs_whole_sequences():
    made = become("sdft")
    assert made.teacher == EmaTeacher(update_rate=0.01, every="optimizer_step") and made.follows_every_update
    assert made.context == Demonstration()
    term = made.terms[0]
    assert (term.importance_level, term.importance_cap, term.masks[0].tokens) == ("sequence_mean", 2.0, 3)
    assert isinstance(term.objective, ForwardKL), "the code's default, and what the errata say of the paper's results"
    assert isinstance(become("sdft", variant="paper").terms[0].objective, ReverseKL)


def test_opsd_shows_the_ground_truth_to_a_frozen_teacher():
    made = become("opsd")
    assert made.teacher == FrozenTeacher() and made.context.kind == "demonstration" and made.context.reason_first is None
    assert made.terms[0].objective.entry_clip == 0.05
    assert become("opsd", variant="code").terms[0].objective == JensenShannon(), "the snapshot has no pointwise clip"
    assert become("opsd", variant="code", pointwise_clip=0.05).terms[0].objective.entry_clip == 0.05
    assert become("opsd", pointwise_clip=0).terms[0].objective.entry_clip is None
    assert become("opsd", reason_first_tokens=77).context.reason_first.max_tokens == 77


def test_sampled_token_distillation():
    made = become("opd_sampled", teacher=EXTERNAL, reward_weight=0.5, future_coupling=0.25, log_ratio_clip=5)
    advantage = made.terms[0].objective.advantage
    assert (advantage.outcome_weight, advantage.teacher_weight, advantage.future_coupling, advantage.log_ratio_clip) == (0.5, 1.0, 0.25, 5.0)
    assert (made.advantage.baseline, made.advantage.scale) == ("none", "none"), "the score is added as it is"
    assert become("opd_sampled", teacher=EXTERNAL).terms[0].objective.advantage.future_coupling == 0.0


@pytest.mark.parametrize(
    ("given", "support", "clip"),
    [
        ({}, TopKSupport(k=32, support_from="teacher", tail="renormalise"), None),
        ({"variant": "code"}, TopKSupport(k=32, support_from="teacher", tail="renormalise"), 5.0),
        ({"support_from": "policy", "join_sampled": True}, TopKSupport(k=32, support_from="policy", tail="renormalise", join_sampled=True), None),
        ({"tail": "sampled_correction"}, TopKSupport(k=32, support_from="teacher", tail="sampled_correction"), None),
    ],
    ids=["v1", "code", "v2", "v5"],
)
def test_local_support_matching_and_its_ablations(given, support, clip):
    made = become("opd_topk", teacher=EXTERNAL, **given)
    term = made.terms[0]
    assert (term.support, term.objective.log_ratio_clip) == (support, clip)
    (mask,) = term.masks
    assert (mask.texts, mask.occurrences) == (("<", "think"), "first")
    assert made.teacher_support_k == (32 if support.support_from == "teacher" else 0)


def test_thinking_machines_takes_the_ratio_to_the_sampler_unclipped():
    made = become("tm_opd", teacher=EXTERNAL, kl_coefficient=0.5, reward_weight=1.0)
    objective = made.terms[0].objective
    assert (objective.clip_low, objective.clip_high, made.terms[0].importance_cap) == (None, None, None)
    assert (objective.advantage.teacher_weight, objective.advantage.outcome_weight) == (0.5, 1.0)
    assert (made.advantage.baseline, made.advantage.scale) == ("group_mean", "none")


def test_extrapolation_mixes_a_reference_and_an_external_teacher_and_looks_at_the_token_alone():
    made = become("exopd", teacher=EXTERNAL)
    assert (made.teacher.kind, made.teacher.first.kind, made.teacher.second.kind, made.teacher.weight) == ("mix", "anchor", "external", 1.25)
    advantage = made.terms[0].objective.advantage
    assert (advantage.future_coupling, advantage.teacher_weight, advantage.outcome_weight) == (0.0, 1.0, 0.0)
    other = become("exopd", teacher=EXTERNAL, reference={"kind": "external", "path": "elsewhere"})
    assert other.teacher.first.path == "elsewhere"


def test_entropy_aware_distillation_gates_a_summand_and_not_its_mean():
    made = become("eopd", teacher=EXTERNAL)
    gated = made.terms[1]
    assert (gated.support.k, gated.support.support_from, gated.support.tail) == (16, "teacher", "bucket")
    (mask,) = gated.masks
    assert (mask.of, mask.above_nats, mask.denominator) == ("teacher", 0.8, "all")
    assert made.terms[0].objective.clip_low == made.terms[0].objective.clip_high == 0.2
    assert made.needs_teacher_entropy and not made.needs_policy_entropy


def test_prefix_distillation_stops_generation_at_a_length_that_grows():
    prefix = become("prefix_opd", teacher=EXTERNAL, start_tokens=8, tokens_per_step=2.5).experience.prefix
    assert [prefix.tokens_at(step, 20) for step in (0, 1, 2, 3, 9)] == [8, 10, 13, 15, 20]


def test_sft_learns_from_the_domains_solutions():
    made = become("sft")
    assert made.experience.kind == "demonstrations" and made.teacher is None and not made.needs_scorer


def test_custom_is_the_composition_that_it_writes():
    composition = become("sdpo", variant="code", feedback=True, mask_ratio=0.5, reference_coefficient=0.1)
    assert become("custom", **composition.model_dump(mode="json")) == composition


@pytest.mark.parametrize(("recipe", "parameters", "_"), SHAPES, ids=[f"{name}-{'-'.join(map(str, given))}" for name, given, _ in SHAPES])
def test_a_stored_job_file_with_all_defaults_written_out_resolves_to_the_same(recipe, parameters, _):
    """The row keeps the file with defaults filled in, and every attempt resolves it anew."""
    stage = {"name": "s", "domain": {"kind": "arithmetic"}, "method": {"recipe": recipe, **parameters}}
    job = JobSpec.model_validate({"name": "x", "model": {"path": "m"}, "stages": [stage]})
    again = JobSpec.model_validate(job.model_dump(mode="json"))
    assert again.resolved_stages() == job.resolved_stages()
