"""How much completions repeat themselves and each other. Pure; token ids in, shares out."""

from __future__ import annotations

from collections.abc import Sequence

MAX_TOKENS = 4096
"""Looked at for ``distinct``: the figure falls with the number of tokens, so that number has a ceiling."""


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(ids[start:] for start in range(n)), strict=False))


def repeated_share(ids: Sequence[int], n: int) -> float | None:
    """1 - distinct / all n-grams of one completion: 0 says every n-gram is new; None where it has fewer than two."""
    found = ngrams(ids, n)
    return 1.0 - len(set(found)) / len(found) if len(found) >= 2 else None


def mean_repeated_share(completions: Sequence[Sequence[int]], n: int) -> float | None:
    """Over the completions that are long enough; None where there is none."""
    shares = [share for ids in completions if (share := repeated_share(ids, n)) is not None]
    return sum(shares) / len(shares) if shares else None


def distinct(completions: Sequence[Sequence[int]], n: int) -> float | None:
    """distinct-n over completions of *different* problems: low where every problem gets the same answer."""
    found: list[tuple[int, ...]] = []
    for ids in completions:
        if len(found) >= MAX_TOKENS:
            break
        found += ngrams(ids, n)
    return len(set(found)) / len(found) if found else None
