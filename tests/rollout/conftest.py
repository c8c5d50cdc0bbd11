"""A tiny Qwen-style tokenizer, and groups of rollouts to build contexts from."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

from cluster.messages import Completion, Problem, Rollout, RolloutGroup
from rollout.chat import ChatFormat

CORPUS = ["solution feedback attempt answer now", "what is 37+58=? 95", "the quick brown fox", "too small too large wrong order"] * 4
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def save_tokenizer(folder, **changes):
    """Byte-level BPE with the special tokens and the turns of the Qwen family."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    options = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **changes}
    template = options.pop("chat_template", CHAT_TEMPLATE)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder():
    """``save_tokenizer``, for tests of other tokenizers."""
    return save_tokenizer


@pytest.fixture(scope="session")
def chat(tmp_path_factory) -> ChatFormat:
    return ChatFormat(str(save_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture
def group(chat):
    """A function from the rollouts' texts to a group of problem 'sums/train/3'."""
    problem = Problem(
        problem_id="sums/train/3",
        domain="sums",
        messages=({"role": "system", "content": "be brief"}, {"role": "user", "content": "37+58=?"}),
        solution="95",
        answer=95,
    )

    def make(*texts: str) -> RolloutGroup:
        prompt = chat.prompt_token_ids(problem.messages)
        rollouts = []
        for index, text in enumerate(texts):
            ids = chat.completion_token_ids(text)
            logprobs = np.zeros(len(ids), dtype=np.float32)
            completion = Completion(token_ids=ids, logprobs=logprobs, finish_reason="stop", policy_version=1)
            rollouts.append(
                Rollout(
                    rollout_id=f"{problem.problem_id}/{index}",
                    problem_id=problem.problem_id,
                    prompt_token_ids=prompt,
                    completion=completion,
                    text=text,
                )
            )
        return RolloutGroup(problem=problem, rollouts=tuple(rollouts))

    return make
