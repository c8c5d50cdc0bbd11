"""Scores of a model folder on domains, plain and with privileged context: is there a teacher, and room to learn?

Prompts, contexts and verdicts come from the code that jobs use (``rollout.chat``, ``rollout.context``,
``rollout.domains``); only the sampling is plain Transformers, so that no engine has to start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.messages import Problem
from rollout.chat import ChatFormat
from rollout.context.solution import feedback_prompt, solution_prompt
from rollout.domains.base import Domain
from services.pebble.mixtures import slip

BATCH = 256


@dataclass(frozen=True, slots=True)
class Measured:
    """Pass rates on the first ``problems`` evaluation problems; sampled at temperature 1 unless said otherwise."""

    domain: str
    problems: int
    plain: float
    with_solution: float
    """With the problem's own solution in context."""
    with_feedback: float
    """With the verifier's words on a wrong answer in context, the wrong answer itself not shown."""
    greedy: float
    """Plain, the most likely token each time: what the model would say if it were sure."""
    truncated: float
    """Share of plain completions that reach the token limit."""


def measure(
    folder: Path,
    domains: Mapping[str, Domain],
    *,
    problems: int = 512,
    max_tokens: int = 32,
    seed: int = 0,
    wrong: Callable[[Problem, random.Random], str] = slip,
) -> list[Measured]:
    """One row per domain; with 512 problems the standard error of a rate is at most 0.022."""
    from transformers import AutoModelForCausalLM

    chat = ChatFormat(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sampler = Sampler(model, chat, max_tokens=max_tokens, seed=seed)
    return [_measure_domain(sampler, name, domain, problems, seed, wrong) for name, domain in domains.items()]


def table(rows: list[Measured]) -> str:
    """The rows as a Markdown table."""
    lines = ["| domain | plain | with solution | with feedback | plain, greedy | truncated |", "|---|---|---|---|---|---|"]
    for row in rows:
        rates = (row.plain, row.with_solution, row.with_feedback, row.greedy, row.truncated)
        lines.append(f"| {row.domain} | " + " | ".join(f"{rate:.3f}" for rate in rates) + " |")
    return "\n".join(lines)


def _measure_domain(sampler: Sampler, name: str, domain: Domain, problems: int, seed: int, wrong) -> Measured:
    chat, generator = sampler.chat, random.Random(f"pebble-measure/{seed}")
    asked = [domain.problem("evaluation", index) for index in range(problems)]
    words = [domain.verify(problem, wrong(problem, generator)).feedback for problem in asked]
    plain = [chat.prompt_token_ids(problem.messages) for problem in asked]
    solved = [solution_prompt(problem, chat) for problem in asked]
    told = [feedback_prompt(problem, word, chat) for problem, word in zip(asked, words, strict=True)]

    def rate(prompts: list[np.ndarray], *, greedy: bool = False) -> float:
        return pass_rate(domain, asked, sampler.texts(prompts, greedy=greedy))

    return Measured(
        domain=name,
        problems=problems,
        plain=rate(plain),
        truncated=sampler.truncated,
        with_solution=rate(solved),
        with_feedback=rate(told),
        greedy=rate(plain, greedy=True),
    )


def pass_rate(domain: Domain, problems: list[Problem], texts: list[str]) -> float:
    return float(np.mean([domain.verify(problem, text).passed for problem, text in zip(problems, texts, strict=True)]))


class Sampler:
    """Completions of prompt ids through a model's own key-value cache."""

    def __init__(self, model, chat: ChatFormat, *, max_tokens: int, seed: int):
        self.chat = chat
        self.truncated = 0.0
        """Share of the last call's completions that did not end by themselves."""
        self._model = model
        self._max_tokens = max_tokens
        self._seed = seed

    def texts(self, prompts: list[np.ndarray], *, greedy: bool = False) -> list[str]:
        torch.manual_seed(self._seed)
        rows = [row for start in range(0, len(prompts), BATCH) for row in self._generate(prompts[start : start + BATCH], greedy)]
        self.truncated = float(np.mean([self.chat.eos_token_id not in row for row in rows]))
        return [self.chat.decode(_until(row, self.chat.eos_token_id)) for row in rows]

    @torch.no_grad()
    def _generate(self, prompts: list[np.ndarray], greedy: bool) -> list[np.ndarray]:
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
            mask[row, longest - len(prompt) :] = 1
        options = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
        eos = self.chat.eos_token_id
        out = self._model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=self._max_tokens, eos_token_id=eos, pad_token_id=0, **options
        )
        return list(out[:, longest:].numpy())


def _until(row: np.ndarray, eos: int) -> np.ndarray:
    ends = np.flatnonzero(row == eos)
    return row[: ends[0]] if len(ends) else row
