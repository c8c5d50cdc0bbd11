"""T14: a completion's ids stay as they are behind any prompt, and every log-probability belongs to its own token.

Held with a model that reads one token at a time (attention writes nothing), where a prompt that ends in the same token may
change nothing at all, and with an ordinary one, against each sequence alone.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cluster.messages import TrainingSample
from cluster.spec.composition import Composition, Term
from cluster.spec.objectives import ForwardKL
from cluster.spec.teachers import EmaTeacher
from trainer.modeling.loss_rows import collate
from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel
from trainer.modeling.scoring import score_rows
from trainer.terms import stage_loss

VOCABULARY = 40
COMPLETION = np.array([7, 3, 3, 29, 1], dtype=np.int32)
PROMPT_LENGTHS = (1, 2, 5, 17, 40)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> PolicyModel:
    folder = tmp_path_factory.mktemp("t14")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=False,
        initializer_range=0.4,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return PolicyModel.load(folder, dtype=torch.float64)


@pytest.fixture
def one_token_model(model):
    """The same, but attention's output is nothing: the next token depends on the last one alone."""
    kept = [layer.self_attn.o_proj.weight.detach().clone() for layer in model.layers]
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.o_proj.weight.zero_()
        yield model
        for layer, weight in zip(model.layers, kept, strict=True):
            layer.self_attn.o_proj.weight.copy_(weight)


def _prompts() -> list[np.ndarray]:
    """Of every length, with the same last token."""
    generator = np.random.default_rng(1)
    return [np.append(generator.integers(0, VOCABULARY, length - 1), 11).astype(np.int32) for length in PROMPT_LENGTHS]


@torch.no_grad()
def _logprobs(model: PolicyModel, pairs) -> list[torch.Tensor]:
    packed = pack_sequences(pairs)
    scores = model(packed, lambda hidden, head: score_rows(hidden, head, packed.target_ids, temperature=1.0))
    return packed.split_rows(scores.logprobs)


def test_t14_the_same_log_probabilities_after_every_prompt_length(one_token_model):
    scored = _logprobs(one_token_model, [(prompt, COMPLETION) for prompt in _prompts()])
    for values in scored[1:]:
        torch.testing.assert_close(values, scored[0], atol=1e-12, rtol=0)
    assert scored[0].std() > 0.1 and scored[0][1] != scored[0][2]


def test_t14_shifting_the_completion_by_one_token_is_seen(one_token_model):
    """What the test above would say of an off-by-one: rows that predict the token after, or before, differ."""
    (right,) = _logprobs(one_token_model, [(_prompts()[2], COMPLETION)])
    (late,) = _logprobs(one_token_model, [(np.append(_prompts()[2], COMPLETION[0]), COMPLETION[1:])])
    torch.testing.assert_close(late, right[1:], atol=1e-12, rtol=0)
    assert (right[:-1] - right[1:]).abs().max() > 0.1


def test_t14_in_an_ordinary_model_each_sequence_is_scored_as_if_alone(model):
    pairs = [(prompt, COMPLETION[: 1 + index]) for index, prompt in enumerate(_prompts())]
    packed = _logprobs(model, pairs)
    for (prompt, completion), values in zip(pairs, packed, strict=True):
        (alone,) = _logprobs(model, [(prompt, completion)])
        torch.testing.assert_close(values, alone, atol=1e-12, rtol=0)
        hidden = model.backbone(
            input_ids=torch.from_numpy(np.concatenate((prompt, completion))).long()[None],
            packed_layout=pack_sequences([(np.concatenate((prompt, completion)), np.zeros(1, np.int32))]).layout,
            use_cache=False,
        ).last_hidden_state[0]
        table = (hidden @ model.head_weight.T).log_softmax(-1)
        expected = torch.stack([table[len(prompt) - 1 + t, token] for t, token in enumerate(completion.tolist())])
        torch.testing.assert_close(values, expected.detach(), atol=1e-12, rtol=0)


def test_t14_collate_keeps_ids_and_the_teachers_scores_on_their_tokens():
    """Every field carries the number of its own token, so a shift of any of them shows; some tokens carry no weight."""
    term = Term(name="distillation", objective=ForwardKL())
    loss = stage_loss(Composition(teacher=EmaTeacher(), terms=(term,)), temperature=1.0)
    samples = []
    for index, prompt in enumerate(_prompts()):
        numbers = (100 * index + np.arange(len(COMPLETION))).astype(np.float32)
        weights = np.where(np.arange(len(COMPLETION)) == index, 0.0, 1.0).astype(np.float32)
        samples.append(
            TrainingSample(
                sample_id=f"s{index}",
                prompt_token_ids=prompt,
                completion_token_ids=COMPLETION,
                rollout_logprobs=-numbers,
                teacher_logprobs=-numbers - 0.5,
                term_weights={"distillation": weights},
            )
        )
    packed, rows = collate(samples, loss)
    kept = [(index, t) for index in range(len(samples)) for t in range(len(COMPLETION)) if t != index]
    assert rows.token_ids.tolist() == [int(COMPLETION[t]) for _, t in kept]
    assert rows.rollout_logprobs.tolist() == [-(100.0 * index + t) for index, t in kept]
    assert rows.teacher_logprobs.tolist() == [-(100.0 * index + t) - 0.5 for index, t in kept]
    starts = np.cumsum([0, *(len(sample.prompt_token_ids) + len(COMPLETION) - 1 for sample in samples)])
    before = [int(starts[index]) + len(samples[index].prompt_token_ids) - 1 + t for index, t in kept]
    assert packed.row_indices.tolist() == before
    fed = np.concatenate([np.concatenate((sample.prompt_token_ids, COMPLETION[:-1])) for sample in samples])
    assert packed.token_ids[0].tolist() == fed.tolist()
