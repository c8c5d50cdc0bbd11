"""Pebble from nothing: tokenizer, base training, measurement, model card.

Invariant: what is trained on and what is measured are disjoint (the domains' splits), and every figure in the card was
measured on the weights next to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from rollout.chat import ChatFormat
from services.pebble.card import Built, write_card
from services.pebble.corpus import Corpus, Ingredient
from services.pebble.measure import measure, table
from services.pebble.mixtures import DEMO, Mixture, Phase
from services.pebble.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, VOCABULARY_SIZE, save_tokenizer
from services.pebble.train import train

BATCH_SIZE, PEAK_LR = 192, 3e-3
CORPUS_SEED, MEASURE_SEED = 12345, 7


def build(
    folder: Path,
    mixture: Mixture = DEMO,
    *,
    steps: int | None = None,
    seed: int = 0,
    problems: int = 512,
    report: Callable[[str], None] = print,
) -> None:
    """Train a pebble in minutes on two cores and write ``folder``: Hugging Face files and a model card, a few MB."""
    import torch

    started, steps = time.monotonic(), steps or mixture.steps
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_tokenizer(folder)
    chat = ChatFormat(str(folder))
    model = new_model(chat)
    loss = train(model, base_corpora(chat, steps, seed, mixture), batch_size=BATCH_SIZE, peak_lr=PEAK_LR, report=report)
    model.save_pretrained(folder)
    minutes = (time.monotonic() - started) / 60
    report(f"trained in {minutes:.1f} minutes; measuring on {problems} problems a domain")
    rows = measure(folder, mixture.domains(MEASURE_SEED), problems=problems, wrong=mixture.wrong)
    report(table(rows))
    built = Built(
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=seed,
        minutes=minutes,
        machine=f"a CPU, torch threads: {torch.get_num_threads()}",
        loss=loss,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        day=date.today(),
        phases=[_in_words(phase) for phase in mixture.phases],
    )
    write_card(folder, mixture, built, rows)


def base_corpora(chat: ChatFormat, steps: int, seed: int, mixture: Mixture = DEMO) -> list[tuple[Corpus, int]]:
    """The corpus of each phase and its number of steps; each phase draws problems of its own."""
    first = round(steps * mixture.phases[0].share)
    return [
        (phase_corpus(phase, chat, CORPUS_SEED + 1000 * seed + index, mixture), length)
        for index, (phase, length) in enumerate(zip(mixture.phases, (first, steps - first), strict=True))
    ]


def phase_corpus(phase: Phase, chat: ChatFormat, seed: int, mixture: Mixture = DEMO) -> Corpus:
    domains = mixture.domains(seed)
    ingredients = [
        Ingredient(domain, phase.weights[name], phase.corrupted[name], mixture.wrong) for name, domain in domains.items()
    ]
    return Corpus(ingredients, chat, with_solution=phase.with_solution, with_feedback=phase.with_feedback, seed=seed)


def _in_words(phase: Phase) -> str:
    return (
        f"{phase.share:.0%} of the steps: samples {_list(phase.weights, 'g')}; wrong targets in plain prompts "
        f"{_list(phase.corrupted, '.0%')};\n  {phase.with_solution:.0%} of the prompts with the solution, "
        f"{phase.with_feedback:.0%} with feedback on a wrong answer"
    )


def _list(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{kind} {value:{form}}" for kind, value in values.items())


def new_model(chat: ChatFormat):
    """A random model of 0.8 million parameters in Qwen3's architecture, with tied embeddings."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    pad = int(chat.text_token_ids(END_OF_TEXT)[0])
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            rope_theta=10000.0,
            bos_token_id=None,
            eos_token_id=chat.eos_token_id,
            pad_token_id=pad,
            attention_bias=False,
            dtype="float32",
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=chat.eos_token_id, pad_token_id=pad, do_sample=True, temperature=1.0)
    return model
