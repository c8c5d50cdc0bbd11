"""What the watch measures of a step's rollouts: repetition, markers, and the items whose amplification is followed.

Cost: linear in the tokens; beyond ``MAX_STEP_TOKENS`` only the first completions of every group are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from services.evaluation.collapse.markers import marker_counts
from services.evaluation.collapse.repetition import distinct, mean_repeated_share, ngrams

MAX_STEP_TOKENS = 65_536
NGRAM_ORDERS = (1, 2, 3)
REPEATED_ORDER = 4

FORMAT = re.compile(
    r"\\[A-Za-z]+"  # LaTeX commands, \boxed above all
    r"|</?[A-Za-z_][\w-]*>"  # tags
    r"|```|\*\*|^#{1,6}(?= )|^[-*](?= )|\n\n|\\\[|\\\]|\$\$"  # markdown and display mathematics
    r"|[^\w\s]",  # punctuation
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class StepTexts:
    """Of one step."""

    metrics: dict[str, float]
    ngrams: list[set[str]] = field(default_factory=list)
    """Per completion its n-grams of token ids, each as ids with blanks between."""
    formats: list[set[str]] = field(default_factory=list)
    """Per completion its format pieces, with how often where that is more than once: ``\\boxed``, ``\\boxed x4``."""


def read_rollouts(groups: Sequence[Any]) -> StepTexts:
    """``groups``: RolloutGroup records. Empty groups give no metrics."""
    rollouts = _within_budget([list(group.rollouts) for group in groups])
    flat = [rollout for of_group in rollouts for rollout in of_group]
    if not flat:
        return StepTexts({})
    ids = [rollout.completion.token_ids.tolist() for rollout in flat]
    texts = [rollout.text for rollout in flat]
    # one per problem: rollouts of one problem may well be equal when it is solved
    firsts = [of_group[0].completion.token_ids.tolist() for of_group in rollouts if of_group]
    num_tokens = max(sum(map(len, ids)), 1)
    measured: dict[str, float | None] = {
        "collapse/distinct_2": distinct(firsts, 2),
        f"collapse/repeated_{REPEATED_ORDER}gram_share": mean_repeated_share(ids, REPEATED_ORDER),
    }
    measured |= {f"collapse/{name}_per_1000_tokens": 1000.0 * count / num_tokens for name, count in marker_counts(texts).items()}
    return StepTexts(
        {name: value for name, value in measured.items() if value is not None},
        [ngram_items(one) for one in ids],
        [format_items(text) for text in texts],
    )


def ngram_items(ids: Sequence[int]) -> set[str]:
    return {" ".join(map(str, one)) for n in NGRAM_ORDERS for one in ngrams(ids, n)}


def format_items(text: str) -> set[str]:
    """Pieces, and pieces with their number rounded down to a power of two: five times \\boxed is another item than once."""
    counts: dict[str, int] = {}
    for piece in FORMAT.findall(text):
        counts[piece] = counts.get(piece, 0) + 1
    items = set(counts)
    return items | {f"{piece} x{1 << (count.bit_length() - 1)}" for piece, count in counts.items() if count > 1}


def _within_budget(groups: list[list[Any]]) -> list[list[Any]]:
    """The same number of rollouts of every group, as many as fit; one of each at least."""
    total = sum(len(rollout.completion.token_ids) for of_group in groups for rollout in of_group)
    if total <= MAX_STEP_TOKENS:
        return groups
    largest = max(map(len, groups))
    keep = max(1, largest * MAX_STEP_TOKENS // total)
    return [of_group[:keep] for of_group in groups]
