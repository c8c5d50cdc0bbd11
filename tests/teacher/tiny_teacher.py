"""A random tiny Qwen3, published snapshots of a made-up policy, and the float64 average that they imply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from cluster.messages import TeacherRequest
from cluster.transfer.snapshot import read_snapshot, write_snapshot

VOCABULARY = 60


def build_model(folder: Path, *, tied: bool, seed: int = 0, hidden: int = 32, vocabulary: int = VOCABULARY) -> Path:
    """2 layers, weights large enough that logits differ."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def save_tokenizer(folder: Path, *, specials: tuple[str, ...] = ("<end>", "<user>"), words: int = VOCABULARY - 4, first: str = "w") -> Path:
    """One word per id, then special ids; two head rows stay unused, as in a padded vocabulary."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    entries = {f"{first if index == 0 else 'w'}{index}": index for index in range(words)}
    tokenizer = Tokenizer(models.WordLevel(entries, unk_token=f"{first}0"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in specials])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=specials[0]).save_pretrained(folder)
    return folder


def policy_tensors(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"].clone())
    return tensors


def publish(folder: Path, model_folder: Path, versions: int, *, step: float = 3e-3, seed: int = 1) -> list[Path]:
    """Snapshots 1 .. versions of a policy that walks away from the model folder's weights."""
    generator = torch.Generator().manual_seed(seed)
    tensors, paths = policy_tensors(model_folder), []
    tied = torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    for version in range(1, versions + 1):
        for tensor in tensors.values():
            tensor += step * (torch.randn(tensor.shape, generator=generator) + 0.5)
        if tied:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        paths.append(write_snapshot(folder, version, tensors.items()))
    return paths


def float64_average(start: dict[str, torch.Tensor], snapshots: list[Path], rate: float) -> dict[str, np.ndarray]:
    state = {name: tensor.numpy().astype(np.float64) for name, tensor in start.items()}
    for path in snapshots:
        policy = read_snapshot(path)
        state = {name: (1.0 - rate) * value + rate * policy[name].numpy().astype(np.float64) for name, value in state.items()}
    return state


def largest_difference(state: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(tensor.numpy().astype(np.float64) - expected[name]).max()) for name, tensor in state.items())


def requests(count: int, *, seed: int = 0, support_k: int = 0) -> list[TeacherRequest]:
    """Prompts of 3 to 20 ids and completions of 1 to 12."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        completion = generator.integers(0, VOCABULARY, generator.integers(1, 13)).astype(np.int32)
        support = None
        if support_k:
            support = np.stack([generator.permutation(VOCABULARY)[:support_k] for _ in completion]).astype(np.int32)
        made.append(
            TeacherRequest(
                rollout_id=f"r{index}",
                problem_id=f"p{index}",
                prompt_token_ids=generator.integers(0, VOCABULARY, generator.integers(3, 21)).astype(np.int32),
                completion_token_ids=completion,
                support_ids=support,
            )
        )
    return made
