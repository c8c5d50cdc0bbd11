"""What it saves that rollouts of one problem share its prompt in the learner: forward and backward, shared against repeated, in one run.

    python tests/benchmarks/shared_prompts.py [--rounds 5] [--threads 1]

Random weights of two sizes; GRPO-like batches of 16 problems x 8 rollouts with the given lengths of prompt and completion. Processor
seconds of this process, the median of the rounds; both kinds take turns. Prints a table, and the ratio repeated / shared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from machine import header
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.modeling.attention import PACKED_ATTENTION
from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel

SIZES = {
    "0.8M": {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "4M": {"hidden_size": 256, "num_hidden_layers": 6, "intermediate_size": 768, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
}
LENGTHS = ((14, 6), (64, 16), (16, 64))
PROBLEMS, ROLLOUTS, VOCABULARY = 16, 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(header(options.threads))
    print(f"{options.rounds} rounds, {PROBLEMS} problems x {ROLLOUTS} rollouts")
    print(f"{'model':>6} {'prompt':>7} {'completion':>11} {'tokens':>8} {'shared':>8} {'repeated s':>11} {'shared s':>9} {'ratio':>6}")
    for name, size in SIZES.items():
        torch.manual_seed(0)
        config = Qwen3Config(vocab_size=VOCABULARY, tie_word_embeddings=True, attn_implementation=PACKED_ATTENTION, **size)
        model = PolicyModel(Qwen3ForCausalLM(config).eval())
        for prompt, completion in LENGTHS:
            packs = [pack_sequences(_pairs(prompt, completion), share_prompts=share) for share in (False, True)]
            repeated, shared = _seconds(model, packs, options.rounds)
            tokens = [pack.token_ids.shape[1] for pack in packs]
            print(f"{name:>6} {prompt:>7} {completion:>11} {tokens[0]:>8} {tokens[1]:>8} {repeated:>11.3f} {shared:>9.3f} {repeated / shared:>6.2f}")


def _pairs(prompt: int, completion: int) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    prompts = [generator.integers(0, VOCABULARY, prompt, dtype=np.int32) for _ in range(PROBLEMS)]
    lengths = generator.integers(max(1, completion // 2), completion + completion // 2 + 1, (PROBLEMS, ROLLOUTS))
    return [(one, generator.integers(0, VOCABULARY, length, dtype=np.int32)) for one, of_one in zip(prompts, lengths, strict=True) for length in of_one]


def _seconds(model: PolicyModel, packs: list, rounds: int) -> list[float]:
    taken: list[list[float]] = [[] for _ in packs]
    for turn in range(rounds + 1):
        for place, pack in enumerate(packs):
            started = time.process_time()
            model(pack, lambda hidden, head: torch.logsumexp(hidden @ head.T, -1).sum()).backward()
            model.zero_grad(set_to_none=True)
            if turn:  # the first round warms up
                taken[place].append(time.process_time() - started)
    return [statistics.median(of) for of in taken]


if __name__ == "__main__":
    main()
