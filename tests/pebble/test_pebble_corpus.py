"""Pebble's corpus and its chunks: right targets where a teacher will stand, no evaluation problem, one gradient."""

from __future__ import annotations

import random

import pytest
import torch

from rollout.chat import ChatFormat
from services.pebble.build import base_corpora, new_model, phase_corpus
from services.pebble.corpus import corrupt
from services.pebble.mixtures import DEMO, RIVAL, RIVALS, rival_answer
from services.pebble.tokenizer import save_tokenizer
from services.pebble.train import accumulate, chunks, completion_losses, learning_rate, padded


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> ChatFormat:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return ChatFormat(str(folder))


def question_and_rest(chat: ChatFormat, prompt) -> tuple[str, str]:
    question, _, rest = chat.decode(prompt).partition("\n")
    return question, rest.strip()


@pytest.mark.parametrize("solution", ["95", "7", "abbd", "aaaa", '{"tool":"light","args":{"room":"den","pct":40}}'])
def test_a_corrupted_answer_is_never_the_solution(solution):
    generator = random.Random(0)
    wrong = {corrupt(solution, generator) for _ in range(300)}
    assert solution not in wrong
    assert len(wrong) > 3


def test_no_evaluation_problem_and_right_targets_with_context(chat):
    held_out = {
        domain.problem("evaluation", index).messages[0]["content"]
        for seed in range(2)
        for domain in DEMO.domains(seed).values()
        for index in range(512)
    }
    seen = {"plain": 0, "solution": 0, "feedback": 0}
    for prompt, completion in phase_corpus(DEMO.phases[-1], chat, 0).batch(1500):
        question, rest = question_and_rest(chat, prompt)
        assert question not in held_out
        text = chat.decode(completion)
        if rest.startswith("Solution: "):
            seen["solution"] += 1
            assert rest == f"Solution: {text}\nAnswer now."
        elif rest:
            seen["feedback"] += 1
            assert rest.startswith("Feedback: ") and rest.endswith("\nAnswer now.")
            if question.startswith("sort: "):
                assert text == "".join(sorted(question.removeprefix("sort: ")))
        else:
            seen["plain"] += 1
        assert completion[-1] == chat.eos_token_id
        assert len(completion) <= 32
        assert len(prompt) + len(completion) <= 128
    assert min(seen.values()) > 75 and seen["plain"] == max(seen.values())


def test_the_corpus_is_a_function_of_its_seed(chat):
    def texts(seed):
        return [(chat.decode(prompt), chat.decode(completion)) for prompt, completion in phase_corpus(DEMO.phases[-1], chat, seed).batch(40)]

    assert texts(0) == texts(0)
    assert texts(0) != texts(1)


def test_chunks_do_not_change_loss_or_gradient(chat, monkeypatch):
    torch.manual_seed(0)
    model = new_model(chat).double()
    samples = phase_corpus(DEMO.phases[-1], chat, 0).batch(24)
    whole = completion_losses(model, *padded(samples)).mean()
    whole.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr("services.pebble.train.CHUNK_TOKENS", 300)
    assert len(chunks(samples, 300)) > 3
    assert sum(map(len, chunks(samples, 300))) == len(samples)
    assert accumulate(model, samples) == pytest.approx(float(whole.detach()), abs=1e-9)
    worst = max((wanted[name] - parameter.grad).abs().max().item() for name, parameter in model.named_parameters())
    assert worst < 1e-12


def test_the_loss_is_that_of_the_completion_alone(chat):
    torch.manual_seed(0)
    model = new_model(chat).double()
    ((prompt, completion),) = phase_corpus(DEMO.phases[-1], chat, 0).batch(1)
    ids = torch.tensor([[*prompt, *completion]])
    logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
    by_hand = [-logprobs[len(prompt) + place - 1, int(token)].item() for place, token in enumerate(completion)]
    losses = completion_losses(model, *padded([(prompt, completion)]))
    assert losses.tolist() == pytest.approx(by_hand, abs=1e-10)


def test_the_learning_rate_warms_up_and_decays():
    rates = [learning_rate(step, 100, peak=2.0, warmup=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * (0.05 + 0.95 * 0.5))
    assert rates[100] == pytest.approx(0.1)


def test_phases_fill_the_steps_with_problems_of_their_own(chat):
    corpora = base_corpora(chat, 7, 0)
    assert [length for _, length in corpora] == [4, 3]
    firsts = [chat.decode(corpus.batch(50)[0][0]) for corpus, _ in corpora]
    assert firsts[0] != firsts[1]
    assert sum(phase.share for phase in DEMO.phases) == pytest.approx(1.0)


def test_a_rival_answer_is_what_another_operation_gives():
    generator = random.Random(0)
    problem = RIVAL.domains(3)["sort"].problem("train", 0)
    text = problem.messages[0]["content"].removeprefix("sort: ")
    given = {rival_answer(problem, generator) for _ in range(200)}
    assert given == {text[::-1], text[1:] + text[:1], "".join(text[i : i + 2][::-1] for i in range(0, len(text), 2))} - {problem.solution}
    sums = RIVAL.domains(3)["arithmetic"].problem("train", 0)
    assert sums.solution not in {rival_answer(sums, generator) for _ in range(50)}


def test_every_phase_names_every_domain():
    for mixture in (DEMO, RIVAL):
        for phase in mixture.phases:
            assert set(phase.weights) == set(phase.corrupted) == set(mixture.specs)
    assert {f"{name}-long" for name in RIVALS} < set(RIVAL.specs)
