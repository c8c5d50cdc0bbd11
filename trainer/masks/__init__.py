"""Masks by kind: which tokens of a completion a term sees. The keys are the kinds of ``cluster/spec/masks.py``."""

from __future__ import annotations

from trainer.masks.base import CompletionView, Mask, MaskContext, TokenTable
from trainer.masks.end_of_sequence import end_of_sequence_mask
from trainer.masks.entropy_quantile import entropy_quantile_mask
from trainer.masks.entropy_threshold import entropy_threshold_mask
from trainer.masks.pattern import check_pattern, pattern_mask
from trainer.masks.prefix import prefix_mask
from trainer.masks.random import random_mask
from trainer.masks.region import region_mask
from trainer.masks.skip_first import skip_first_mask
from trainer.masks.special_tokens import special_tokens_mask
from trainer.masks.truncated import truncated_mask

MASKS: dict[str, Mask] = {
    "random": random_mask,
    "skip_first": skip_first_mask,
    "prefix": prefix_mask,
    "special_tokens": special_tokens_mask,
    "end_of_sequence": end_of_sequence_mask,
    "pattern": pattern_mask,
    "region": region_mask,
    "entropy_quantile": entropy_quantile_mask,
    "entropy_threshold": entropy_threshold_mask,
    "truncated": truncated_mask,
}

__all__ = ["MASKS", "CompletionView", "Mask", "MaskContext", "TokenTable", "check_pattern"]
