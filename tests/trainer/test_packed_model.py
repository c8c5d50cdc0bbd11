"""Packed sequences: each sees itself only, whatever shares its pack; and no tokens x tokens mask is ever built."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_policy import VOCABULARY, save_tiny_model
from transformers import AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask

from trainer.modeling.attention import repeat_rows
from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel
from trainer.modeling.scoring import score_rows


def _pairs(seed: int = 0, lengths=((3, 5), (7, 1), (2, 9), (6, 6))):
    generator = np.random.default_rng(seed)
    return [(generator.integers(0, VOCABULARY, p).astype(np.int32), generator.integers(0, VOCABULARY, c).astype(np.int32)) for p, c in lengths]


def test_layout_names_the_position_before_every_completion_token():
    pairs = _pairs()
    packed = pack_sequences(pairs)
    assert packed.token_ids.shape == (1, sum(len(p) + len(c) - 1 for p, c in pairs))
    assert packed.position_ids[0].tolist() == [i for p, c in pairs for i in range(len(p) + len(c) - 1)]
    assert packed.target_ids.tolist() == [token for _, completion in pairs for token in completion]
    inputs = [token for p, c in pairs for token in [*p, *c[:-1]]]
    before_first = [inputs[row] for row in packed.row_indices[[0, 5, 6]].tolist()]
    assert before_first == [pairs[0][0][-1], pairs[1][0][-1], pairs[2][0][-1]]
    assert [part.tolist() for part in packed.split_rows(packed.target_ids)] == [completion.tolist() for _, completion in pairs]


def test_empty_prompts_and_completions_are_refused():
    token = np.array([1], dtype=np.int32)
    for pair in ((token[:0], token), (token, token[:0])):
        with pytest.raises(ValueError, match="at least one"):
            pack_sequences([pair])


@pytest.mark.parametrize("config", [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}], ids=["causal", "window"])
@pytest.mark.parametrize("tied", [True, False])
def test_packed_forward_equals_plain_transformers(tmp_path, tied, config):
    folder = save_tiny_model(tmp_path, tied=tied, **config)
    model = PolicyModel.load(folder)
    assert model.is_tied == tied
    plain = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    pairs = _pairs()
    packed = pack_sequences(pairs)
    scores = score_rows(model.hidden_states(packed), model.head_weight, packed.target_ids, temperature=0.8, top_k=3)
    for (prompt, completion), got, ids in zip(
        pairs, packed.split_rows(scores.logprobs), packed.split_rows(scores.support_ids), strict=True
    ):
        token_ids = torch.from_numpy(np.concatenate((prompt, completion))).long()
        with torch.no_grad():
            logprobs = torch.log_softmax(plain(token_ids[None]).logits[0, len(prompt) - 1 : -1] / 0.8, -1)
        torch.testing.assert_close(got, logprobs.gather(1, token_ids[len(prompt) :, None])[:, 0], atol=1e-5, rtol=0)
        assert torch.equal(ids, logprobs.topk(3).indices)


def test_neighbours_in_the_pack_change_neither_values_nor_gradients(tmp_path):
    model = PolicyModel.load(save_tiny_model(tmp_path, tied=True))
    pairs = _pairs(1)

    def run(part):
        model.zero_grad()
        packed = pack_sequences(part)
        hidden = model(packed, lambda states, _: states)
        (hidden * torch.sin(torch.arange(hidden.shape[1]))).sum().backward()
        return hidden.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}

    together, gradient = run(pairs)
    alone = [run([pair]) for pair in pairs]
    torch.testing.assert_close(together, torch.cat([hidden for hidden, _ in alone]), atol=1e-5, rtol=1e-5)
    for name, value in gradient.items():
        torch.testing.assert_close(value, sum(own[name] for _, own in alone), atol=2e-4, rtol=1e-4, msg=name)
    reordered = run(pairs[::-1])[1]
    for name, value in gradient.items():
        torch.testing.assert_close(reordered[name], value, atol=2e-4, rtol=1e-4, msg=name)


def test_transformers_builds_no_mask_for_our_attention(tmp_path):
    model = PolicyModel.load(save_tiny_model(tmp_path, tied=True))
    mask = create_causal_mask(
        config=model.config,
        inputs_embeds=torch.zeros(1, 6, 32),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]),
    )
    assert mask is None
    with pytest.raises(ValueError, match="packed_layout"):
        model.model(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_heads_that_would_give_wrong_logprobs_are_refused(tmp_path):
    model = PolicyModel.load(save_tiny_model(tmp_path, tied=False))
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        PolicyModel(model.model)


def test_scores_on_given_ids_are_normalised_over_the_full_vocabulary():
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 8, generator=generator, dtype=torch.float64) for n in (5, VOCABULARY))
    ids = torch.arange(VOCABULARY).expand(5, -1)
    scores = score_rows(hidden, head, torch.arange(5), temperature=0.5, support_ids=ids)
    expected = torch.log_softmax(hidden @ head.T / 0.5, -1)
    torch.testing.assert_close(scores.support_logprobs, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(scores.logprobs, expected[torch.arange(5), torch.arange(5)], atol=1e-12, rtol=0)


@pytest.mark.parametrize("config", [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}], ids=["causal", "window"])
def test_prompts_that_come_again_go_through_the_model_once_and_change_nothing(tmp_path, config):
    model = PolicyModel.load(save_tiny_model(tmp_path, tied=True, **config), dtype=torch.float64)
    (first, _), (second, _), *_ = _pairs(2)
    completions = [completion for _, completion in _pairs(3, lengths=((1, 5), (1, 1), (1, 9), (1, 2), (1, 5)))]
    pairs = list(zip((first, second, first, first, second), completions, strict=True))
    alone, shared = pack_sequences(pairs), pack_sequences(pairs, share_prompts=True)
    assert shared.token_ids.shape[1] == alone.token_ids.shape[1] - 2 * len(first) - len(second)
    assert torch.equal(shared.target_ids, alone.target_ids) and shared.completion_lengths == alone.completion_lengths
    torch.testing.assert_close(model.hidden_states(shared), model.hidden_states(alone), atol=1e-12, rtol=0)
    different = pack_sequences(_pairs(), share_prompts=True)
    assert different.layout.shared is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("config", [{}, {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}], ids=["causal", "window"])
def test_shared_prompts_give_the_gradient_of_repeated_ones(tmp_path, config, tied):
    """Several completions of one prompt pull at it together; a prompt that comes once, and one of a single token, are among them.

    transformers' norms compute in float32 whatever the model's dtype, so a sum before them and one behind them differ by its rounding.
    """
    model = PolicyModel.load(save_tiny_model(tmp_path, tied=tied, **config), dtype=torch.float64)
    (first, _), (second, _), (third, _), *_ = _pairs(2)
    completions = [completion for _, completion in _pairs(3, lengths=((1, 5), (1, 1), (1, 9), (1, 2), (1, 5), (1, 4), (1, 3)))]
    pairs = list(zip((first, second, first, first, second[:1], third, second[:1]), completions, strict=True))
    gradients = []
    for packed in (pack_sequences(pairs), pack_sequences(pairs, share_prompts=True)):
        factors = torch.randn((len(packed.target_ids), model.config.hidden_size), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        model.zero_grad()
        model(packed, lambda hidden, head, factors=factors: (hidden * factors).tanh().sum() + head.pow(2).sum()).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert packed.layout.shared is not None
    for name, expected in gradients[0].items():
        largest = float(expected.abs().max())
        assert largest > 1e-6, name
        torch.testing.assert_close(gradients[1][name], expected, atol=5e-7 * largest, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_the_gradient_of_a_row_that_comes_again_is_summed_in_float32():
    source = torch.zeros((1, 1), dtype=torch.bfloat16, requires_grad=True)
    rows = repeat_rows(source, torch.zeros(1000, dtype=torch.int64))
    rows.backward(torch.full((1000, 1), 1.0, dtype=torch.bfloat16))
    assert source.grad.item() == 1000.0  # in bfloat16 the sum would stop at 256


def test_a_prompt_that_saves_next_to_nothing_is_repeated():
    prompt, long = np.array([1, 2], dtype=np.int32), np.arange(60, dtype=np.int32)
    assert pack_sequences([(prompt, long)] * 2, share_prompts=True).layout.shared is None
    assert pack_sequences([(prompt, long[:10])] * 2, share_prompts=True).token_ids.shape[1] == 20

