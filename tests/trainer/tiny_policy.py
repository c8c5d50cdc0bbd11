"""A random Qwen3 with two layers, and samples for it; shared by the tests of the trainer room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from cluster.messages import TrainingSample
from cluster.spec.composition import Composition, Term
from cluster.spec.job import OptimizerSpec
from cluster.spec.objectives import JensenShannon, PolicyGradient
from cluster.spec.supports import FullSupport, TopKSupport
from cluster.spec.teachers import EmaTeacher
from trainer.learner import Learner, LearnerSettings

VOCABULARY, HIDDEN, K = 50, 32, 5
OPTIMIZER = OptimizerSpec(lr=1e-3, warmup_steps=4, weight_decay=0.01, gradient_clip=0.5)
PG = Term(name="pg", objective=PolicyGradient(), normaliser="sequence_mean", importance_cap=2.0)
JSD = Term(name="jsd", objective=JensenShannon(), support=FullSupport(), coefficient=0.5, importance_cap=None)
TOP = Term(name="top", objective=JensenShannon(), support=TopKSupport(k=K), coefficient=0.5, importance_cap=2.0)
COMPOSITION = Composition(teacher=EmaTeacher(), terms=(PG, JSD, TOP))
TEMPERATURE = 0.8


def save_tiny_model(folder: Path, *, tied: bool, seed: int = 0, **config) -> Path:
    torch.manual_seed(seed)
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
    }
    Qwen3ForCausalLM(Qwen3Config(**(fields | config))).save_pretrained(folder)
    return folder


def make_learner(folder: Path, *, rank: int = 0, world_size: int = 1, seed: int = 0) -> Learner:
    settings = LearnerSettings(model_folder=str(folder), device="cpu", dtype="float32", micro_batch_tokens=64, seed=seed)
    return Learner(settings, rank=rank, world_size=world_size)


def make_samples(count: int, seed: int = 0, vocabulary: int = VOCABULARY, hidden: int = HIDDEN) -> list[TrainingSample]:
    """Different lengths; every third sample has no teacher."""
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        prompt, tokens = int(generator.integers(2, 9)), int(generator.integers(1, 12))
        taught = index % 3 != 2
        weights = {"pg": np.full(tokens, 1.0 / tokens, np.float32)}
        if taught:
            weights |= {"jsd": np.ones(tokens, np.float32), "top": np.ones(tokens, np.float32)}
        teacher = np.log(generator.dirichlet(np.ones(vocabulary), tokens))
        ids = np.stack([generator.permutation(vocabulary)[:K] for _ in range(tokens)])
        completion = generator.integers(0, vocabulary, tokens)
        samples.append(
            TrainingSample(
                sample_id=f"s{index:03d}",
                prompt_token_ids=generator.integers(0, vocabulary, prompt).astype(np.int32),
                completion_token_ids=completion.astype(np.int32),
                rollout_logprobs=(-4.0 + generator.normal(size=tokens)).astype(np.float32),
                term_weights=weights,
                term_advantages={"pg": np.full(tokens, generator.normal(), np.float32)},
                support_ids=ids.astype(np.int32) if taught else None,
                teacher_logprobs=np.take_along_axis(teacher, completion[:, None], 1)[:, 0].astype(np.float32) if taught else None,
                teacher_support_logprobs=np.take_along_axis(teacher, ids, 1).astype(np.float32) if taught else None,
                teacher_hidden=generator.normal(size=(tokens, hidden)).astype(np.float32) if taught else None,
            )
        )
    return samples


def term_counts(samples: list[TrainingSample]) -> dict[str, float]:
    """The pg term is a sequence mean, with three dead samples in its denominator; the others are token means."""
    return {
        "pg": len(samples) + 3.0,
        "jsd": float(sum(len(sample.completion_token_ids) for sample in samples if "jsd" in sample.term_weights)),
        "top": float(sum(len(sample.completion_token_ids) for sample in samples if "top" in sample.term_weights)),
    }


def teacher_head(seed: int = 5, vocabulary: int = VOCABULARY, hidden: int = HIDDEN) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(vocabulary, hidden)).astype(np.float32) * 0.3
