"""Which tensors of two sets of weights belong together, and which kind of matrix each is.

Invariant: a pair is refused before any arithmetic, with the field that differs; a head that is tied to the embedding in both
sets is counted once, as the embedding.
"""

from __future__ import annotations

import re

import torch

from trainer.diagnostics.weight_files import DriftRefused, WeightFiles

CONFIG_FIELDS = (
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
"""Compared where both sides have a config.json that states them: a difference here has a better name than a shape."""

KIND_PATTERNS = {
    "norm": r"norm|(^|\.)ln_",
    "embedding": r"embed|(^|\.)(wte|wpe|lm_head)\.",
    "attention": r"attn|attention",
    "mlp": r"mlp|feed_forward|ffn|expert",
}
"""The first that is found in a name gives its kind (a q_norm lies inside self_attn and is a norm); else ``other``."""
KINDS = (*KIND_PATTERNS, "other")
EMBEDDING_NAME = re.compile(r"(^|\.)(embed_tokens|wte)\.weight$")
HEAD_NAME = "lm_head.weight"
SHOWN_NAMES = 3
BLOCK_ROWS = 4096


def kind_of(name: str) -> str:
    """attention, mlp, embedding, norm or other, by a tensor's checkpoint name."""
    return next((kind for kind, pattern in KIND_PATTERNS.items() if re.search(pattern, name)), "other")


def paired_names(before: WeightFiles, after: WeightFiles) -> list[str]:
    """The names to compare, in order. Raises DriftRefused where the two are not the same architecture."""
    _check_configs(before, after)
    names = [set(side.files) for side in (before, after)]
    if _tied(before) and _tied(after):
        for side in names:
            side.discard(HEAD_NAME)
    for have, lack, one, other in ((*names, before, after), (*names[::-1], after, before)):
        missing = sorted(have - lack)
        if missing:
            more = f" and {len(missing) - SHOWN_NAMES} more" if len(missing) > SHOWN_NAMES else ""
            raise DriftRefused(
                "tensor names", f"{other.path} lacks {', '.join(missing[:SHOWN_NAMES])}{more}, which {one.path} has"
            )
    for name in sorted(names[0]):
        if before.shapes[name] != after.shapes[name]:
            raise DriftRefused(
                f"shape of {name}", f"{list(before.shapes[name])} in {before.path}, {list(after.shapes[name])} in {after.path}"
            )
    return sorted(names[0])


def _check_configs(before: WeightFiles, after: WeightFiles) -> None:
    for key in CONFIG_FIELDS:
        old, new = before.config.get(key), after.config.get(key)
        if old is not None and new is not None and old != new:
            raise DriftRefused(
                f"config.json {key}", f"{old!r} in {before.path}, {new!r} in {after.path}; architectures must be the same"
            )


def _tied(side: WeightFiles) -> bool:
    """Whether the head is the embedding: not in the files at all, or equal to it in every entry."""
    if HEAD_NAME not in side.files:
        return True
    embedding = next((name for name in side.files if EMBEDDING_NAME.search(name)), None)
    if embedding is None or side.shapes[embedding] != side.shapes[HEAD_NAME]:
        return False
    head, table = side.read(HEAD_NAME), side.read(embedding)
    rows = range(0, head.shape[0], BLOCK_ROWS)
    return head.dtype == table.dtype and all(torch.equal(head[i : i + BLOCK_ROWS], table[i : i + BLOCK_ROWS]) for i in rows)
