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
from services.pebble.corpus import Corpus, Ingredient, demo_domains
from services.pebble.measure import measure, table
from services.pebble.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, VOCABULARY_SIZE, save_tokenizer
from services.pebble.train import train

STEPS = 700
BATCH_SIZE = 192
PEAK_LR = 2e-3
WITH_SOLUTION, WITH_FEEDBACK = 0.3, 0.1
WEIGHTS = {"arithmetic": 1.4, "strings": 1.0, "tool_call": 1.0}
CORRUPTED = {"arithmetic": 0.4, "strings": 0.4, "tool_call": 0.4}
"""Shares of wrong targets among the plain samples: they set the plain scores, see the model card."""
CORPUS_SEED, MEASURE_SEED = 12345, 7


def build(
    folder: Path, *, steps: int = STEPS, seed: int = 0, problems: int = 512, report: Callable[[str], None] = print
) -> None:
    """Train pebble in minutes on two cores and write ``folder``: Hugging Face files and a model card, a few MB."""
    import torch

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_tokenizer(folder)
    chat = ChatFormat(str(folder))
    model = new_model(chat)
    loss = train(model, base_corpus(chat, seed), steps=steps, batch_size=BATCH_SIZE, peak_lr=PEAK_LR, report=report)
    model.save_pretrained(folder)
    minutes = (time.monotonic() - started) / 60
    report(f"trained in {minutes:.1f} minutes; measuring on {problems} problems a domain")
    rows = measure(folder, demo_domains(MEASURE_SEED), problems=problems)
    report(table(rows))
    built = Built(
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=seed,
        minutes=minutes,
        machine=f"a CPU, {torch.get_num_threads()} threads",
        loss=loss,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        day=date.today(),
    )
    write_card(folder, built, rows, mixture=_mixture(), corrupted=_shares(CORRUPTED))


def _mixture() -> str:
    return (
        f"weights {', '.join(f'{kind} {weight:g}' for kind, weight in WEIGHTS.items())}; {WITH_SOLUTION:.0%} of the samples with the "
        f"solution and {WITH_FEEDBACK:.0%} with\nthe verifier's feedback on a wrong answer in the prompt, as a teacher reads them"
    )


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())


def base_corpus(chat: ChatFormat, seed: int) -> Corpus:
    domains = demo_domains(CORPUS_SEED + seed)
    ingredients = [Ingredient(domain, WEIGHTS[kind], CORRUPTED[kind]) for kind, domain in domains.items()]
    return Corpus(ingredients, chat, with_solution=WITH_SOLUTION, with_feedback=WITH_FEEDBACK, seed=seed)


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
