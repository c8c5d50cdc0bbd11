"""Sampling seeds as a function of what is sampled, so that a restarted stage samples again what it would have sampled."""

from __future__ import annotations

import hashlib

SEED_RANGE = 2**31


def sampling_seed(*parts: int | str, spacing: int) -> int:
    """A seed below 2**31 with room for ``spacing`` children, from the numbers and names of what is sampled."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (SEED_RANGE // spacing) * spacing
