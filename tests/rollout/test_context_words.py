"""What each kind of context says, what the policy writes for it, and what is done where there is nothing to say."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cluster.errors import StageError
from cluster.messages import Verdict, token_digest
from cluster.spec.contexts import (
    TEMPLATE_TOKENS,
    Critique,
    Demonstration,
    Feedback,
    NoContext,
    ReasonFirst,
    SiblingSolution,
)
from rollout.context.templates import TEMPLATES, ContextTemplate
from rollout.context.thinking import spoken, without_thinking
from rollout.seeds import sampling_seed

PASS = Verdict(score=1.0, passed=True)
FAIL = Verdict(score=0.0, passed=False, feedback="too small")
MUTE = Verdict(score=0.0, passed=False)
BROKEN = Verdict(score=0.0, passed=False, feedback="x", error="the verifier raised")
FRAME = "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n37+58=?{}<|im_end|>\n<|im_start|>assistant\n"


def text_of(chat, context) -> str:
    return chat._tokenizer.decode(context.teacher_prompt_token_ids.tolist(), skip_special_tokens=False)


def shown(chat, contexts) -> list[str | None]:
    """What stands between the problem and the instruction; None where there is no context."""
    head, tail = FRAME.format("|").split("|", 1)[0], "\nAnswer now.<|im_end|>\n<|im_start|>assistant\n"
    head = FRAME.split("{}")[0]
    found = []
    for context in contexts:
        text = None if context is None else text_of(chat, context)
        assert text is None or (text.startswith(head) and text.endswith(tail))
        found.append(text and text[len(head) : -len(tail)])
    return found


# -- demonstration ---------------------------------------------------------------------------------------------------


def test_a_demonstration_is_the_problems_solution_for_every_rollout(chat, group, build):
    assert shown(chat, build(Demonstration(), group("a", "b", "c"), [PASS, FAIL, BROKEN])) == ["\nSolution: 95"] * 3
    spec = Demonstration(feedback="always", show_attempt=True)
    assert shown(chat, build(spec, group("a", "b", "c"), [PASS, FAIL, BROKEN])) == [
        "\nSolution: 95\nAttempt: a",
        "\nSolution: 95\nFeedback: too small\nAttempt: b",
        "\nSolution: 95\nAttempt: c",
    ]


# -- which sibling ---------------------------------------------------------------------------------------------------


def test_the_best_sibling_has_the_highest_score_then_the_fewest_tokens_then_the_first_place(chat, group, build):
    score = [Verdict(score=value, passed=value == 1.0) for value in (0.0, 0.6, 1.0, 1.0, 1.0)]
    rollouts = group("no", "x", "the quick brown fox", "fox", "brown")
    sizes = [len(rollout.completion.token_ids) for rollout in rollouts.rollouts]
    assert sizes[1] < sizes[3] < sizes[2] and sizes[3] <= sizes[4]
    spec = SiblingSolution(choice="best", success_threshold=0.5)
    found = shown(chat, build(spec, rollouts, score))
    assert found == ["\nSolution: fox", "\nSolution: fox", "\nSolution: fox", "\nSolution: brown", "\nSolution: fox"]
    tied = group("no", "12", "34")
    assert len({len(rollout.completion.token_ids) for rollout in tied.rollouts[1:]}) == 1
    assert shown(chat, build(spec, tied, [MUTE, PASS, PASS]))[0] == "\nSolution: 12"


def test_a_random_sibling_is_a_function_of_seed_stage_step_and_rollout(chat, group, stage_contexts):
    texts = [f"t{index}" for index in range(6)]
    rollouts, verdicts = group(*texts), [PASS] * 6
    spec = SiblingSolution(choice="random")

    def drawn(step=0, **of_stage):
        return shown(chat, stage_contexts(spec, **of_stage).build([rollouts], [verdicts], step)[0])

    expected = []
    for index, rollout in enumerate(rollouts.rollouts):
        others = texts[:index] + texts[index + 1 :]
        expected.append("\nSolution: " + others[sampling_seed(7, 0, 0, "sibling", rollout.rollout_id, spacing=1) % 5])
    assert drawn() == expected == drawn()
    assert drawn(step=1) != expected and drawn(job_seed=8) != expected and drawn(stage_index=1) != expected
    counts = [text for step in range(60) for text in drawn(step=step)]
    assert all(40 <= counts.count(f"\nSolution: {text}") <= 80 for text in texts)  # 60 expected, a standard deviation is 7


def test_the_attempt_beside_a_sibling_is_the_rollouts_own_and_never_alone(chat, group, build):
    spec = SiblingSolution(show_attempt=True, own_success=True)
    assert shown(chat, build(spec, group("yes", "no"), [PASS, FAIL])) == ["\nSolution: yes", "\nSolution: yes\nAttempt: no"]
    assert build(spec, group("no", "nay"), [FAIL, FAIL]) == [None, None]


# -- thinking --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>first</think>\n\n95", "95"),
        ("it was opened in the prompt</think> 95", "95"),
        ("opened there</think>95<think>again</think> yes", "95 yes"),
        ("95 <think>and on and on", "95"),
        ("<think>cut before it closed", ""),
        ("a</think>b</think>c", "b</think>c"),
        (" no thinking ", " no thinking "),
    ],
)
def test_thinking_is_told_apart(text, answer):
    assert without_thinking(text) == answer


def test_a_text_that_is_all_thinking_still_says_it():
    assert spoken("<think>too small", "strip") == "too small"
    assert spoken("<think>hm</think>too small", "strip") == "too small"
    assert spoken("<think>hm</think>too small", "keep") == "<think>hm</think>too small"


def test_thinking_is_stripped_from_solutions_and_attempts_or_kept(chat, group, build):
    rollouts = group("5 more</think>95", "<think>hm</think>12")
    verdicts = [PASS, FAIL]
    stripped = build(SiblingSolution(show_attempt=True), rollouts, verdicts)
    assert shown(chat, stripped)[1] == "\nSolution: 95\nAttempt: 12"
    kept = build(SiblingSolution(show_attempt=True, thinking="keep"), rollouts, verdicts)
    assert shown(chat, kept)[1] == "\nSolution: 5 more</think>95\nAttempt: <think>hm</think>12"


def test_a_success_of_which_only_thinking_is_there_is_no_solution(chat, group, build):
    rollouts = group("<think>95", "95", "no")
    assert shown(chat, build(SiblingSolution(), rollouts, [PASS, PASS, FAIL])) == ["\nSolution: 95", None, "\nSolution: 95"]


# -- nothing to say --------------------------------------------------------------------------------------------------


def test_without_context_the_rollout_is_masked_or_the_teacher_reads_the_plain_prompt(chat, group, stage_contexts):
    rollouts = group("yes", "no")
    for when_empty, kind in (("mask", None), ("plain_prompt", "plain_prompt")):
        contexts = stage_contexts(SiblingSolution(when_empty=when_empty))
        alone, sibling = contexts.build([rollouts], [[PASS, FAIL]], 0)[0]
        assert (alone and alone.kind) == kind and sibling.kind == "sibling_solution"
        if alone is not None:
            np.testing.assert_array_equal(alone.teacher_prompt_token_ids, rollouts.rollouts[0].prompt_token_ids)
            assert alone.problem_id == "sums/train/3" and alone.truncated_tokens == 0
        assert contexts.metrics == {
            "teacher/context_share": 0.5,
            "teacher/plain_prompt_share": 0.5 if kind else 0.0,
            "teacher/context_truncated_tokens": 0.0,
        }


def test_truncated_tokens_are_counted_over_the_step(chat, group, stage_contexts):
    tokens = len(chat.text_token_ids("95"))
    contexts = stage_contexts(Feedback(max_context_tokens=1))
    built = contexts.build([group("a", "b"), group("c")], [[FAIL, MUTE], [FAIL]], 0)
    cut = len(chat.text_token_ids("too small")) - 1
    assert tokens and cut > 0
    assert [context and context.truncated_tokens for of_group in built for context in of_group] == [cut, None, cut]
    assert contexts.metrics["teacher/context_truncated_tokens"] == 2 * cut
    assert contexts.metrics["teacher/context_share"] == 2 / 3


# -- critique --------------------------------------------------------------------------------------------------------


def test_the_policy_reads_problem_solution_attempt_and_verdict_and_its_words_become_the_context(
    chat, group, stage_contexts, writer
):
    critic = writer(lambda prompt, seed: "carry the one" if "Attempt: 12" in prompt else "fine")
    rollouts = group("95", "12", "?")
    contexts = stage_contexts(Critique(max_tokens=40), critic)
    built = contexts.build([rollouts], [[PASS, FAIL, BROKEN]], 4)[0]
    assert shown(chat, built) == ["\nCritique: fine", "\nCritique: carry the one", None]
    assert [context and context.kind for context in built] == ["critique", "critique", None]
    assert critic.prompts(0) == [
        FRAME.format("\nSolution: 95\nAttempt: 95\nFeedback: right\nSay what is wrong."),
        FRAME.format("\nSolution: 95\nAttempt: 12\nFeedback: wrong too small\nSay what is wrong."),
    ]
    (requests, sampling) = critic.calls[0]
    assert len(critic.calls) == 1 and (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (
        1.0,
        1.0,
        None,
        40,
    )
    assert [request.num_completions for request in requests] == [1, 1]
    ids = [rollout.rollout_id for rollout in rollouts.rollouts]
    assert [request.seed for request in requests] == [sampling_seed(7, 0, 4, "critique", one, spacing=1) for one in ids[:2]]
    written = sum(len(chat.completion_token_ids(text)) for text in ("fine", "carry the one"))
    assert contexts.metrics["teacher/critique_tokens"] == written


def test_a_critic_without_the_solution_and_a_teacher_with_the_attempt(chat, group, stage_contexts, writer):
    critic = writer(lambda prompt, seed: "carry")
    contexts = stage_contexts(Critique(show_solution=False, show_attempt=True), critic)
    built = contexts.build([group("12")], [[FAIL]], 0)[0]
    assert critic.prompts(0) == [FRAME.format("\nAttempt: 12\nFeedback: wrong too small\nSay what is wrong.")]
    assert shown(chat, built) == ["\nCritique: carry\nAttempt: 12"]


def test_all_groups_of_a_step_are_criticised_in_one_call_and_cut_to_their_own_limit(chat, group, stage_contexts, writer):
    critic = writer(lambda prompt, seed: "the quick brown fox")
    groups = [group("1", "2"), group("3")]
    groups[1] = type(groups[1])(problem=_named(groups[1].problem, "other"), rollouts=groups[1].rollouts)
    contexts = stage_contexts({"sums": Critique(max_tokens=2), "other": Critique(max_tokens=50)}, critic)
    built = contexts.build(groups, [[FAIL, FAIL], [FAIL]], 0)
    assert len(critic.calls) == 1 and critic.calls[0][1].max_tokens == 50
    two = chat.decode(chat.text_token_ids("the quick brown fox")[:2])
    assert shown(chat, [*built[0], *built[1]]) == [f"\nCritique: {two}"] * 2 + ["\nCritique: the quick brown fox"]
    assert contexts.metrics["teacher/critique_tokens"] == 2 + 2 + len(chat.completion_token_ids("the quick brown fox"))


def test_the_attempt_gets_the_critics_budget_before_the_solution(chat, group, stage_contexts, writer):
    critic = writer(lambda prompt, seed: "long")
    words = len(chat.text_token_ids("wrong too small"))
    attempt = "the quick brown fox"
    spec = Critique(max_context_tokens=words + len(chat.text_token_ids(attempt)))
    stage_contexts(spec, critic).build([group(attempt)], [[FAIL]], 0)
    assert critic.prompts(0) == [FRAME.format(f"\nAttempt: {attempt}\nFeedback: wrong too small\nSay what is wrong.")]


def test_an_empty_critique_is_no_context_even_beside_the_attempt(chat, group, stage_contexts, writer):
    contexts = stage_contexts(Critique(show_attempt=True), writer(lambda prompt, seed: "  "))
    assert contexts.build([group("12")], [[FAIL]], 0)[0] == [None]


def test_critiques_that_did_not_come_are_an_error(group, stage_contexts):
    with pytest.raises(StageError, match="2 texts of kind critique were asked for, 0 came") as raised:
        stage_contexts(Critique(), lambda requests, sampling: [() for _ in requests]).build([group("1", "2")], [[FAIL, FAIL]], 3)
    assert raised.value.reason == "rollouts_missing"


# -- reason first ----------------------------------------------------------------------------------------------------


def test_reasoning_is_written_from_the_context_and_stands_before_the_instruction(chat, group, stage_contexts, writer):
    policy = writer(lambda prompt, seed: "7+8 is 15")
    contexts = stage_contexts(SiblingSolution(reason_first=ReasonFirst(max_tokens=30)), policy)
    built = contexts.build([group("95", "12")], [[PASS, FAIL]], 2)[0]
    assert policy.prompts(0) == [FRAME.format("\nSolution: 95\nSay why.")]  # none for the rollout without a sibling
    assert shown(chat, built) == [None, "\nSolution: 95\nReasoning: 7+8 is 15"]
    assert policy.calls[0][1].max_tokens == 30
    assert policy.calls[0][0][0].seed == sampling_seed(7, 0, 2, "reasoning", "sums/train/3/1", spacing=1)
    assert contexts.metrics["teacher/reasoning_tokens"] == len(chat.completion_token_ids("7+8 is 15"))


@pytest.mark.parametrize("spec", [Demonstration, SiblingSolution, Feedback, Critique])
def test_every_context_of_words_can_reason_first(chat, group, stage_contexts, writer, spec):
    policy = writer(lambda prompt, seed: "because" if "Say why." in prompt else "carry")
    built = stage_contexts(spec(reason_first=ReasonFirst()), policy).build([group("95", "12")], [[PASS, FAIL]], 0)[0]
    assert shown(chat, built)[1].endswith("\nReasoning: because")
    assert len(policy.calls) == (2 if spec is Critique else 1)  # each kind of text in one call


def test_reasoning_has_the_budget_before_what_it_explains(chat, group, stage_contexts, writer):
    long = "the quick brown fox " * 10
    reasoning = len(chat.text_token_ids("short"))
    spec = SiblingSolution(max_context_tokens=reasoning + 4, reason_first=ReasonFirst())
    context = stage_contexts(spec, writer(lambda prompt, seed: "short")).build([group(long, "12")], [[PASS, FAIL]], 0)[0][1]
    four, cut = chat.head(long, 4)
    assert shown(chat, [context]) == [f"\nSolution: {four}\nReasoning: short"] and context.truncated_tokens == cut


# -- domains, templates, T14 -----------------------------------------------------------------------------------------


def _named(problem, domain):
    fields = {name: getattr(problem, name) for name in problem.__slots__}
    return type(problem)(**{**fields, "domain": domain})


def test_contexts_are_routed_by_the_problems_domain(chat, group, stage_contexts):
    groups = [group("95", "12") for _ in range(3)]
    groups = [
        type(one)(problem=_named(one.problem, name), rollouts=one.rollouts) for one, name in zip(groups, "abc", strict=True)
    ]
    contexts = stage_contexts({"a": Feedback(), "b": NoContext(), "c": Demonstration()})
    built = contexts.build(groups, [[PASS, FAIL]] * 3, 0)
    assert [[context and context.kind for context in of_group] for of_group in built] == [
        [None, "feedback"], ["none", "none"], ["demonstration", "demonstration"],
    ]  # fmt: skip


def test_the_second_template_has_its_own_words_for_every_section(chat, group, build):
    spec = Demonstration(template="holdfast-2", feedback="always", show_attempt=True)
    words = TEMPLATES["holdfast-2"]
    context = build(spec, group("12"), [FAIL])[0]
    sections = "".join(
        (
            words.solution.replace("{text}", "95"),
            words.feedback.replace("{text}", "too small"),
            words.attempt.replace("{text}", "12"),
        )
    )
    assert text_of(chat, context) == FRAME.format(sections + words.instruction)


def test_the_released_template_never_changes():
    assert TEMPLATES["holdfast-1"].solution == "\nSolution: {text}"
    assert TEMPLATES["holdfast-1"].feedback == "\nFeedback: {text}"
    assert TEMPLATES["holdfast-1"].attempt == "\nAttempt: {text}"
    assert TEMPLATES["holdfast-1"].instruction == "\nAnswer now."


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_named_templates_words_fit_in_the_room_that_the_spec_keeps_for_them(name):
    words: ContextTemplate = TEMPLATES[name]
    sections = [words.solution, words.feedback, words.attempt, words.critique, words.reasoning]
    assert all(section.count("{text}") == 1 for section in sections)
    longest = max((words.instruction, words.criticise + words.wrong, words.explain), key=len)
    everything = "".join(sections).replace("{text}", "") + longest
    if name == "holdfast-1":
        assert len(everything) <= TEMPLATE_TOKENS  # one token a character, as a miniature has it
    assert len(everything.split()) * 1.4 <= TEMPLATE_TOKENS  # English has about 1.3 tokens a word


def test_t14_the_response_ids_are_bit_identical_under_the_policys_and_the_teachers_prompt(chat, group, stage_contexts, writer):
    """Ids that no tokenizer would give for their text stay as they were sampled, and each stands at the place that its
    prompt's length says."""
    rollouts = group("the quick brown fox", "95 fox", "?").rollouts
    one_by_one = [token for character in "the quick brown fox" for token in chat.text_token_ids(character)]
    odd = np.asarray([*one_by_one, chat.eos_token_id], dtype=np.int32)
    assert not np.array_equal(odd, rollouts[0].completion.token_ids) and chat.decode(odd) == rollouts[0].text
    completion = SimpleNamespace(token_ids=odd)
    sampled = SimpleNamespace(**{name: getattr(rollouts[0], name) for name in rollouts[0].__slots__} | {"completion": completion})
    one = SimpleNamespace(problem=group("x").problem, rollouts=(sampled, *rollouts[1:]))
    verdicts = [PASS, PASS, FAIL]
    before = [token_digest(rollout.completion.token_ids) for rollout in one.rollouts]
    specs = (
        NoContext(),
        Demonstration(),
        SiblingSolution(feedback="always", show_attempt=True),
        Feedback(when_empty="plain_prompt"),
    )
    for spec in (*specs, Critique(reason_first=ReasonFirst(), template="holdfast-2"), SiblingSolution(max_context_tokens=3)):
        contexts = stage_contexts(spec, writer(lambda prompt, seed: "carry the one")).build([one], [verdicts], 0)[0]
        for rollout, context in zip(one.rollouts, contexts, strict=True):
            own, teacher = rollout.prompt_token_ids, context.teacher_prompt_token_ids
            response = rollout.completion.token_ids
            by_policy, by_teacher = np.concatenate((own, response)), np.concatenate((teacher, response))
            assert by_policy.dtype == by_teacher.dtype == np.int32
            assert by_policy[len(own) :].tobytes() == by_teacher[len(teacher) :].tobytes() == response.tobytes()
            header = chat.text_token_ids("<|im_start|>assistant\n")
            assert own[-len(header) :].tobytes() == teacher[-len(header) :].tobytes() == header.tobytes()
    assert [token_digest(rollout.completion.token_ids) for rollout in one.rollouts] == before
