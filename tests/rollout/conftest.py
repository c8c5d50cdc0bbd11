"""A tiny Qwen-style tokenizer, and groups of rollouts to build contexts from."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from types import SimpleNamespace

import numpy as np
import pytest
from numbers_domain import Generator, Judge, Numbers

from cluster.messages import Completion, Problem, Rollout, RolloutGroup
from cluster.spec.experience import PolicyExperience
from rollout.chat import ChatFormat
from rollout.context import StageContexts
from rollout.engines.base import EngineSampling
from rollout.sources import StageProblems, build_source

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


class Writer:
    """A policy that writes: ``say(prompt as text, seed)`` is its text; keeps every call that it got."""

    def __init__(self, chat: ChatFormat, say):
        self._chat, self._say, self.calls = chat, say, []

    def __call__(self, requests, sampling):
        self.calls.append((list(requests), sampling))
        return [tuple(self._one(request, request.seed + child, sampling) for child in range(request.num_completions)) for request in requests]

    def prompts(self, call: int) -> list[str]:
        return [self._text(request.prompt_token_ids) for request in self.calls[call][0]]

    def _text(self, ids) -> str:
        return self._chat._tokenizer.decode(ids.tolist(), skip_special_tokens=False)

    def _one(self, request, seed, sampling) -> Completion:
        ids = self._chat.completion_token_ids(self._say(self._text(request.prompt_token_ids), seed))[: sampling.max_tokens]
        logprobs = np.full(len(ids), -0.5, dtype=np.float32)
        finish = "stop" if ids[-1] == self._chat.eos_token_id else "length"
        return Completion(token_ids=ids, logprobs=logprobs, finish_reason=finish, policy_version=3)


@pytest.fixture
def writer(chat):
    """A function from ``say(prompt as text, seed)`` to a ``Writer``."""
    return lambda say: Writer(chat, say)


@pytest.fixture
def stage_contexts(chat):
    """A function from a spec, or specs by domain, to the ``StageContexts`` of a stage; closed at the end."""
    made = []

    def make(spec, generate=None, *, job_seed=7, stage_index=0) -> StageContexts:
        composition = SimpleNamespace(context_of=lambda domain: spec[domain] if isinstance(spec, dict) else spec)
        writes = generate or Writer(chat, lambda prompt, seed: "words")
        made.append(StageContexts(composition, chat, writes, job_seed=job_seed, stage_index=stage_index))
        return made[-1]

    yield make
    for contexts in made:
        contexts.close()


@pytest.fixture
def build(stage_contexts):
    """Contexts of one group under one spec."""
    return lambda spec, group, verdicts, **of_stage: stage_contexts(spec, **of_stage).build([group], [verdicts], 0)[0]


@pytest.fixture
def source(chat):
    """A function from an experience and fields of the stage to its source: 4 problems a step, 3 rollouts each."""

    def make(experience=None, generate=None, **changes):
        fields = {
            "domains": [(Numbers("a"), 1.0)],
            "chat": chat,
            "stage_index": 1,
            "job_seed": 7,
            "problems_per_step": 4,
            "rollouts_per_problem": 3,
            "sampling": EngineSampling(temperature=1.0, top_p=1.0, max_tokens=32),
            "max_prompt_tokens": 64,
            "generate": generate or Generator(chat),
            "verify": Judge(),
        }
        return build_source(experience or PolicyExperience(), StageProblems(**{**fields, **changes}))

    return make
