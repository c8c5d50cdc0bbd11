"""Pebble's model card: what it is, how it was built, what it scores. Every figure comes from the build that writes it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from services.pebble.measure import Measured, table
from services.pebble.mixtures import Mixture
from services.pebble.tokenizer import CONTEXT_LENGTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build was."""

    steps: int
    batch_size: int
    seed: int
    minutes: float
    """Wall clock of the base training."""
    machine: str
    loss: float
    """Nats per completion token over the last tenth of the steps."""
    parameters: int
    day: date
    phases: list[str]
    """What each phase of the training read, in words."""


CARD = """# {title}

A language model of {millions:.1f} million parameters for demonstrations and tests of continual post-training: Qwen3
architecture (4 layers, hidden 128, 4 heads), tied embeddings, float32, a vocabulary of 128 (one token a character, a few
marks of JSON, the turn marks of the Qwen chat template), context {context} (its base training saw less than 200). {knows} It knows nothing else and no language.

## How it was built

`holdfast model build-pebble --mixture {mixture}`: {steps} steps of {batch_size} samples, seed {seed}, {minutes:.0f} minutes on {machine}, {day}; final loss
{loss:.3f} nats per completion token. Cross-entropy on the completions of the training splits of {number} procedural domains, in
phases (samples by domain are relative weights):

{phases}

Problems of the evaluation splits are never seen.

**Why it is right only half of the time.** In the last phase a plain prompt has a wrong target in a fixed share of the samples: {why}; a
prompt with a solution or with feedback in context always has the right one. So the right answer is the model's most likely
answer (column 'plain, greedy'), sampling at temperature 1 finds it about half of the time, and the same weights with a solution
in context are reliable: a policy with room to learn, and a teacher. Difficulty alone did not give that: sums turn from never to
always right within some dozen steps of base training. This is a miniature of a large model's situation, made by construction:
gains on it show that the machinery works, and say nothing about how large such gains are elsewhere.

## Scores

{problems} evaluation problems a domain, sampled at temperature 1 with Transformers; standard error at most {error:.3f}. 'With solution' and
'with feedback': the teacher's prompt with the problem's own solution, or with the verifier's words on a wrong answer.

{table}
"""


def write_card(folder: Path, mixture: Mixture, built: Built, rows: list[Measured]) -> Path:
    problems = max(row.problems for row in rows)
    card = folder / "README.md"
    card.write_text(
        CARD.format(
            title=folder.name,
            knows=mixture.knows,
            mixture=mixture.name,
            number=len(mixture.specs),
            why=mixture.why,
            context=CONTEXT_LENGTH,
            millions=built.parameters / 1e6,
            steps=built.steps,
            batch_size=built.batch_size,
            seed=built.seed,
            minutes=built.minutes,
            machine=built.machine,
            day=built.day.isoformat(),
            loss=built.loss,
            phases="\n".join(f"- {phase}" for phase in built.phases),
            problems=problems,
            error=0.5 / problems**0.5,
            table=table(rows),
        )
    )
    return card
